/* An init that does nothing but cut the power: what a boot costs before any of ours. */
#include <sys/reboot.h>

int main(void)
{
	return reboot(RB_POWER_OFF);
}
