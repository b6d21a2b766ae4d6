/* SPDX-License-Identifier: Apache-2.0 */
/* The session keyring: what Kerberos and AFS keep there is not the image's.
 *
 * One per container and not per task: the kernel lets a user have 200 keys, and a
 * node may have more tasks. Names of keyrings belong to the user namespace, so the
 * name means this container's; whoever comes first makes it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/keyctl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../agreement.h"
#include "ch-join.h"

#define KEYRING_NAME "slurm_ch"

/* As the kernel makes it (whoever has it may do all, the user see it), and the
 * user may find it: without that each task would get one of its own. */
#define KEYRING_PERMISSIONS 0x3f1b0000

void leave_keyring(void)
{
	long keyring = syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, KEYRING_NAME);

	if (keyring >= 0) {
		syscall(SYS_keyctl, KEYCTL_SETPERM, keyring, KEYRING_PERMISSIONS);
		return;
	}
	/* A kernel without keyrings, or a filter around us that refuses them to the
	 * command as well. */
	if (errno != ENOSYS && errno != EPERM)
		die(EXIT_SETUP, "can't make a session keyring: %s (kernel.keys.maxkeys? --ch-keep-keyring goes without)",
		    strerror(errno));
	info(2, "no session keyring of its own: %s", strerror(errno));
}
