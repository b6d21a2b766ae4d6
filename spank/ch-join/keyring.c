/* SPDX-License-Identifier: Apache-2.0 */
/* The session keyring: what Kerberos and AFS keep there is not the image's.
 *
 * One per container and not per task: the kernel lets a user have 200 keys, and a
 * node may have more tasks. Names of keyrings belong to the user namespace, so the
 * name means this container's; whoever comes first makes it. The kernel lets nobody
 * find a keyring by its name before its maker has allowed that, so tasks of one
 * container make theirs in turn: a lock on what they have in common, its user
 * namespace.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <poll.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../agreement.h"
#include "ch-join.h"

#define KEYRING_NAME "slurm_ch"

/* As the kernel makes it (whoever has it may do all, the user see it), and the
 * user may find it: without that each task would get one of its own. */
#define KEYRING_PERMISSIONS 0x3f1b0000

/* A turn lasts microseconds. A command may take the lock and keep it; who waited
 * this long then goes on without, with a keyring that is at worst a task's own. */
#define LONGEST_TURN_MS 200

static int take_turn(void)
{
	int turn = open("/proc/self/ns/user", O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	int waited = 0;

	while (turn >= 0 && flock(turn, LOCK_EX | LOCK_NB) && waited++ < LONGEST_TURN_MS)
		poll(NULL, 0, 1);
	return turn;
}

void leave_keyring(void)
{
	int turn = take_turn();
	long keyring = syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, KEYRING_NAME);
	int error = errno;

	if (keyring >= 0)
		syscall(SYS_keyctl, KEYCTL_SETPERM, keyring, KEYRING_PERMISSIONS);
	if (turn >= 0)
		close(turn);
	if (keyring >= 0)
		return;
	errno = error;
	/* A kernel without keyrings, or a filter around us that refuses them to the
	 * command as well. */
	if (errno != ENOSYS && errno != EPERM)
		die(EXIT_SETUP, "can't make a session keyring: %s (kernel.keys.maxkeys? --ch-keep-keyring goes without)",
		    strerror(errno));
	info(2, "no session keyring of its own: %s", strerror(errno));
}
