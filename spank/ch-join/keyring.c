/* SPDX-License-Identifier: Apache-2.0 */
/* Gives the container a session keyring of its own: the image's programs must not get what Kerberos
 * and AFS keep in the user's.
 *
 * There is one per container, not per task: the kernel allows a user 200 keys, and a
 * node may have more tasks. Keyring names belong to the user namespace, so the name
 * means this container's keyring; the first task creates it. Another task finds it by
 * name only after the first has set its permissions. So the tasks take turns, by a lock
 * on the file that they have in common: the container's user namespace.
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

/* The kernel's default (the possessor may do all, the user may view it), and the user may search
 * it: without that each task would get a keyring of its own. */
#define KEYRING_PERMISSIONS 0x3f1b0000

/* A turn lasts microseconds. But a command in the container may take the lock and keep it: after
 * this time a task goes on without the lock, and at worst gets a keyring of its own. */
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
	/* ENOSYS: the kernel has no keyrings. EPERM: a seccomp filter refuses them, to the command too. */
	if (errno != ENOSYS && errno != EPERM)
		die(EXIT_SETUP, "can't make a session keyring: %s (kernel.keys.maxkeys? --ch-keep-keyring goes without)",
		    strerror(errno));
	info(2, "no session keyring of its own: %s", strerror(errno));
}
