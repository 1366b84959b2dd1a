/*
 * Runs in the VM as a child of PID 1 and obeys the test. The kernel starts it as the init (rdinit=/agent). It forks a child and executes
 * /init, the program under test, as PID 1. The child reads commands from the virtio-serial port `agent`, one per line, and answers each
 * with one line. The arguments say what to set up before the init starts.
 *
 * Arguments:
 *   bind PORT     listens on this TCP port
 *   tasks N       limits the init to N threads and processes, itself included (pids.max)
 *   hold          stops the init's main thread at sync() indefinitely, as a hanging disk would
 *
 * Commands:
 *   kill N        sends signal N to PID 1
 *   end N         sends signal N to the process that serves
 *   server        the ID of that process
 *   orphans N     creates N orphaned processes that end
 *   zombies       number of processes that have ended and are not reaped
 *   descriptors   number of open file descriptors of the process that serves
 *   files N       limits its descriptors to numbers below N
 *   call N ARG... makes its main thread make system call N, as code of an attacker in it would: the result, or `killed` by a signal. An
 *                 argument that is not a number is a string, 200 bytes in its memory; `SERVER` stands for its process ID
 *   read PATH     content of the file, with '|' between lines; `SERVER` stands for the ID of the process that serves
 *   fault         makes the main thread of PID 1 jump to address 0
 *   exhaust       allocates all memory, protected from the OOM killer
 *   connect ADDRESS PORT   opens a TCP connection within 10 s: `connected`, or the error
 *   send ADDRESS PORT      sends a UDP datagram: `sent`, or the error
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static void put(const char *path, const char *text)
{
	int file = open(path, O_WRONLY | O_CREAT, 0644);
	if (file < 0 || write(file, text, strlen(text)) < 0)
		fprintf(stderr, "agent: write %s to %s: %s\n", text, path, strerror(errno));
	close(file);
}

static void bind_port(int port)
{
	struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	int listener = socket(AF_INET6, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1))
		fprintf(stderr, "agent: listen on %d: %s\n", port, strerror(errno));
}

static void limit_tasks(const char *count)
{
	mkdir("/cgroup", 0755);
	if (mount("cgroup2", "/cgroup", "cgroup2", 0, NULL))
		fprintf(stderr, "agent: mount cgroup2: %s\n", strerror(errno));
	put("/cgroup/cgroup.subtree_control", "+pids");
	mkdir("/cgroup/init", 0755);
	put("/cgroup/init/pids.max", count);
	put("/cgroup/init/cgroup.procs", "1");
}

/* The process that serves: the child of PID 1 that runs its program. */
static int server(void)
{
	for (int id = 2; id < 1 << 16; id++) {
		char path[32], text[32] = "";
		snprintf(path, sizeof path, "/proc/%d/cmdline", id);
		int file = open(path, O_RDONLY);
		ssize_t count = file < 0 ? 0 : read(file, text, sizeof text - 1);
		if (file >= 0)
			close(file);
		if (count == sizeof "/proc/self/exe" + sizeof "serve" && !strcmp(text + sizeof "/proc/self/exe", "serve"))
			return id;
	}
	return -1;
}

/* Waits until the thread stops at the entry or the exit of a system call. */
static int stop_at_call(int id)
{
	for (int status;;) {
		if (ptrace(PTRACE_SYSCALL, id, NULL, 0) || waitpid(id, &status, __WALL) != id)
			return -1;
		if (!WIFSTOPPED(status))
			return status;
		if (WSTOPSIG(status) == (SIGTRAP | 0x80))
			return 0;
	}
}

static void call(FILE *port, char *words)
{
	struct user_regs_struct before, now;
	int id = server(), status, at = 0;
	char *word = strtok(words, " ");
	if (ptrace(PTRACE_SEIZE, id, NULL, PTRACE_O_TRACESYSGOOD) || ptrace(PTRACE_INTERRUPT, id, NULL, NULL) ||
	    waitpid(id, &status, __WALL) != id) {
		fprintf(port, "ptrace: %s\n", strerror(errno));
		return;
	}
	/* Its next call becomes another one. The call that the interruption ended is made again. */
	if (stop_at_call(id)) {
		fprintf(port, "it makes no call\n");
		return;
	}
	ptrace(PTRACE_GETREGS, id, NULL, &before);
	now = before;
	now.orig_rax = strtoul(word, NULL, 0);
	unsigned long *registers[] = { &now.rdi, &now.rsi, &now.rdx, &now.r10, &now.r8 };
	while (at < 5 && (word = strtok(NULL, " "))) {
		char *end, text[200] = "";
		*registers[at] = strtoul(word, &end, 0);
		if (*end || end == word) {
			char *name = strstr(word, "SERVER");
			if (name)
				snprintf(text, sizeof text, "%.*s%d%s", (int)(name - word), word, id, name + 6);
			else
				snprintf(text, sizeof text, "%s", word);
			*registers[at] = (before.rsp - 4096 + sizeof text * at) & ~7UL;
			for (size_t byte = 0; byte < sizeof text; byte += sizeof(long))
				ptrace(PTRACE_POKEDATA, id, *registers[at] + byte, *(long *)(text + byte));
		}
		at++;
	}
	ptrace(PTRACE_SETREGS, id, NULL, &now);
	status = stop_at_call(id);
	if (status) {
		fprintf(port, "killed %d\n", WTERMSIG(status));
		return;
	}
	ptrace(PTRACE_GETREGS, id, NULL, &now);
	before.rax = before.orig_rax;
	before.rip -= 2;
	before.orig_rax = -1;
	ptrace(PTRACE_SETREGS, id, NULL, &before);
	ptrace(PTRACE_DETACH, id, NULL, NULL);
	if ((long)now.rax < 0 && (long)now.rax > -4096)
		fprintf(port, "%s\n", strerror(-(int)now.rax));
	else
		fprintf(port, "%ld\n", (long)now.rax);
}

static void seize(int options)
{
	int status;
	if (ptrace(PTRACE_SEIZE, 1, NULL, options) || ptrace(PTRACE_INTERRUPT, 1, NULL, NULL))
		fprintf(stderr, "agent: ptrace: %s\n", strerror(errno));
	waitpid(1, &status, __WALL);
}

static void hold_at_sync(void)
{
	struct user_regs_struct registers;
	int status = 0, deliver = 0;
	do {
		ptrace(PTRACE_SYSCALL, 1, NULL, deliver);
		if (waitpid(1, &status, __WALL) != 1)
			return;
		deliver = status >> 16 || WSTOPSIG(status) & 0x80 ? 0 : WSTOPSIG(status);
		ptrace(PTRACE_GETREGS, 1, NULL, &registers);
	} while (WSTOPSIG(status) != (SIGTRAP | 0x80) || registers.orig_rax != SYS_sync);
	for (;;)
		pause();
}

static void fault(void)
{
	struct user_regs_struct registers;
	seize(0);
	ptrace(PTRACE_GETREGS, 1, NULL, &registers);
	registers.rip = 0;
	registers.orig_rax = -1;
	ptrace(PTRACE_SETREGS, 1, NULL, &registers);
	ptrace(PTRACE_DETACH, 1, NULL, NULL);
}

static void orphans(int count)
{
	int alive[2];
	if (pipe(alive))
		fprintf(stderr, "agent: pipe: %s\n", strerror(errno));
	int parent = fork();
	if (!parent) {
		for (int made = 0; made < count; made++) {
			int child = fork();
			if (child < 0)
				fprintf(stderr, "agent: fork: %s\n", strerror(errno));
			if (child)
				continue;
			/* The pipe ends when its last writer, the parent, ends. */
			close(alive[1]);
			_exit(read(alive[0], &(char){ 0 }, 1) != 0);
		}
		_exit(0);
	}
	close(alive[0]);
	close(alive[1]);
	waitpid(parent, NULL, 0);
}

/* The number of processes: all, or only zombies. */
static int processes(int all)
{
	struct dirent *entry;
	DIR *proc = opendir("/proc");
	int count = 0;
	while (proc && (entry = readdir(proc))) {
		char path[300], text[512] = "";
		int file;
		if (entry->d_name[0] < '0' || entry->d_name[0] > '9')
			continue;
		snprintf(path, sizeof path, "/proc/%s/stat", entry->d_name);
		if ((file = open(path, O_RDONLY)) < 0)
			continue;
		if (read(file, text, sizeof text - 1) > 0 && strrchr(text, ')'))
			count += all || strrchr(text, ')')[2] == 'Z';
		close(file);
	}
	closedir(proc);
	return count;
}

static int descriptors(void)
{
	char path[32];
	snprintf(path, sizeof path, "/proc/%d/fd", server());
	DIR *folder = opendir(path);
	int count = 0;
	while (folder && readdir(folder))
		count++;
	closedir(folder);
	return count - 2;
}

static void exhaust(void)
{
	put("/proc/self/oom_score_adj", "-1000");
	for (;;) {
		char *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (memory != MAP_FAILED)
			memset(memory, 1, 1 << 20);
	}
}

/* Connects or sends a datagram to an IPv4 or IPv6 address, and returns the result. */
static const char *reach(int type, const char *host, int port)
{
	struct sockaddr_in to4 = { .sin_family = AF_INET, .sin_port = htons(port) };
	struct sockaddr_in6 to6 = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	struct timeval patience = { .tv_sec = 10 };
	int is4 = inet_pton(AF_INET, host, &to4.sin_addr) == 1, file, failed;
	if (!is4 && inet_pton(AF_INET6, host, &to6.sin6_addr) != 1)
		return "no address";
	file = socket(is4 ? AF_INET : AF_INET6, type, 0);
	setsockopt(file, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
	failed = is4 ? connect(file, (struct sockaddr *)&to4, sizeof to4) : connect(file, (struct sockaddr *)&to6, sizeof to6);
	if (!failed && type == SOCK_DGRAM)
		failed = send(file, "x", 1, 0) < 0;
	const char *outcome = failed ? strerror(errno) : type == SOCK_DGRAM ? "sent" : "connected";
	close(file);
	return outcome;
}

static void obey(FILE *port, char *command)
{
	char word[32] = "", rest[200] = "";
	int number, second = 0;
	sscanf(command, "%31s %199s %d", word, rest, &second);
	number = atoi(rest);
	if (!strcmp(word, "kill")) {
		kill(1, number);
	} else if (!strcmp(word, "end")) {
		kill(server(), number);
	} else if (!strcmp(word, "server")) {
		fprintf(port, "%d\n", server());
		return;
	} else if (!strcmp(word, "orphans")) {
		orphans(number);
	} else if (!strcmp(word, "zombies")) {
		fprintf(port, "%d\n", processes(0));
		return;
	} else if (!strcmp(word, "descriptors")) {
		fprintf(port, "%d\n", descriptors());
		return;
	} else if (!strcmp(word, "files")) {
		struct rlimit limit = { number, 1 << 20 };
		if (prlimit(server(), RLIMIT_NOFILE, &limit, NULL))
			fprintf(stderr, "agent: prlimit: %s\n", strerror(errno));
	} else if (!strcmp(word, "call")) {
		call(port, command + 5);
		return;
	} else if (!strcmp(word, "read")) {
		char path[300], *name = strstr(rest, "SERVER");
		int byte;
		if (name)
			snprintf(path, sizeof path, "%.*s%d%s", (int)(name - rest), rest, server(), name + 6);
		int file = open(name ? path : rest, O_RDONLY);
		FILE *text = fdopen(file, "r");
		while (text && (byte = fgetc(text)) != EOF)
			fputc(byte == '\n' ? '|' : byte, port);
		if (text)
			fclose(text);
		fputs("\n", port);
		return;
	} else if (!strcmp(word, "connect") || !strcmp(word, "send")) {
		fprintf(port, "%s\n", reach(word[0] == 'c' ? SOCK_STREAM : SOCK_DGRAM, rest, second));
		return;
	} else if (!strcmp(word, "fault")) {
		fault();
	} else if (!strcmp(word, "exhaust")) {
		exhaust();
	} else {
		fprintf(port, "what is %s\n", word);
		return;
	}
	fputs("ok\n", port);
}

/* Opens the port as soon as the init has loaded its driver. */
static int open_port(void)
{
	for (;; usleep(20000)) {
		struct dirent *entry;
		DIR *ports = opendir("/sys/class/virtio-ports");
		while (ports && (entry = readdir(ports))) {
			char path[600], name[64] = "";
			snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
			int file = open(path, O_RDONLY);
			if (file < 0)
				continue;
			ssize_t count = read(file, name, sizeof name - 1);
			close(file);
			if (count <= 0 || strncmp(name, "agent", 5))
				continue;
			snprintf(path, sizeof path, "/dev/%s", entry->d_name);
			if ((file = open(path, O_RDWR)) >= 0) {
				closedir(ports);
				return file;
			}
		}
		if (ports)
			closedir(ports);
	}
}

static void serve(void)
{
	char command[256];
	size_t length = 0;
	int file = open_port();
	FILE *port = fdopen(file, "w");
	for (;;) {
		char byte;
		ssize_t count = read(file, &byte, 1);
		if (count != 1) {
			/* The host's end is not open. */
			usleep(20000);
		} else if (byte == '\n') {
			command[length] = 0;
			length = 0;
			obey(port, command);
			fflush(port);
		} else if (length < sizeof command - 1) {
			command[length++] = byte;
		}
	}
}

int main(int count, char **arguments)
{
	int ready[2], hold = 0, tasks = 0, port = 0;
	for (int at = 1; at < count; at++) {
		if (!strcmp(arguments[at], "hold"))
			hold = 1;
		else if (!strcmp(arguments[at], "tasks") && at + 1 < count)
			tasks = ++at;
		else if (!strcmp(arguments[at], "bind") && at + 1 < count)
			port = atoi(arguments[++at]);
	}
	if (pipe(ready))
		return 1;
	if (!fork()) {
		if (port)
			bind_port(port);
		if (hold && !fork()) {
			seize(PTRACE_O_TRACESYSGOOD);
			close(ready[0]);
			close(ready[1]);
			hold_at_sync();
			_exit(1);
		}
		close(ready[0]);
		close(ready[1]);
		serve();
	}
	close(ready[1]);
	/* Waits until the children have finished their setup: the one that seizes this process interrupts it here. */
	while (read(ready[0], &(char){ 0 }, 1) < 0 && errno == EINTR)
		;
	close(ready[0]);
	if (tasks)
		limit_tasks(arguments[tasks]);
	execl("/init", "/init", NULL);
	return 1;
}
