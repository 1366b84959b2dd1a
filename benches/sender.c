/* An init that sends the first disk by sendfile to whoever connects: what the kernel, the network and the emulator allow a server in the
   guest. Compiled with its address, its network's mask and its MTU. It understands one header, "Range: bytes=0-LAST". */
#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static void load_modules(void)
{
	FILE *order = fopen("/lib/modules/order", "r");
	char name[256], path[512];
	while (order && fscanf(order, "%255s", name) == 1) {
		snprintf(path, sizeof path, "/lib/modules/%s", name);
		int file = open(path, O_RDONLY);
		/* The kernel may have it already. */
		syscall(SYS_finit_module, file, "", 0);
		close(file);
	}
}

static void set_address(int request, struct ifreq *interface, int socket, const char *text)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	inet_pton(AF_INET, text, &address.sin_addr);
	memcpy(&interface->ifr_addr, &address, sizeof address);
	ioctl(socket, request, interface);
}

static void set_up_network(int socket)
{
	struct ifreq interface = { .ifr_name = "eth0" };
	while (ioctl(socket, SIOCGIFINDEX, &interface) != 0)
		usleep(1000);
	interface.ifr_mtu = MTU;
	ioctl(socket, SIOCSIFMTU, &interface);
	set_address(SIOCSIFADDR, &interface, socket, ADDRESS);
	set_address(SIOCSIFNETMASK, &interface, socket, "255.255.255.0");
	interface.ifr_flags = IFF_UP | IFF_RUNNING;
	ioctl(socket, SIOCSIFFLAGS, &interface);
}

static void answer(int client, int disk)
{
	char request[4096], head[256];
	size_t have = 0;
	ssize_t count;
	do {
		count = read(client, request + have, sizeof request - 1 - have);
		if (count <= 0)
			return;
		have += count;
		request[have] = 0;
	} while (!strstr(request, "\r\n\r\n"));
	char *range = strstr(request, "bytes=0-");
	off_t size = lseek(disk, 0, SEEK_END), end = range ? atoll(range + 8) + 1 : size, sent = 0;
	if (end > size)
		end = size;
	int length = snprintf(head, sizeof head, "HTTP/1.1 206 Partial Content\r\nContent-Length: %lld\r\n\r\n", (long long)end);
	if (write(client, head, length) != length)
		return;
	while (sent < end && sendfile(client, disk, &sent, end - sent) > 0)
		;
}

int main(void)
{
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	load_modules();
	signal(SIGCHLD, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	int server = socket(AF_INET, SOCK_STREAM, 0), disk;
	set_up_network(server);
	while ((disk = open("/dev/vda", O_RDONLY)) < 0)
		usleep(1000);
	struct sockaddr_in any = { .sin_family = AF_INET, .sin_port = htons(5000) };
	bind(server, (struct sockaddr *)&any, sizeof any);
	listen(server, 64);
	for (;;) {
		int client = accept(server, NULL, NULL);
		if (client >= 0 && fork() == 0) {
			answer(client, disk);
			_exit(0);
		}
		close(client);
	}
}
