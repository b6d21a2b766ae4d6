/* SPDX-License-Identifier: Apache-2.0 */
/* The holder of a join, which is its switchboard, and the holder's guard.
 *
 * The guard is the holder's parent: should the holder be killed, nobody would know any more who is in, and
 * the next peer would make a second container. The guard tells whoever still comes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../agreement.h"
#include "../common/descriptors.h"
#include "meeting.h"
#include "switchboard.h"

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

/* After the streams and LISTEN_FD: see become_holder. */
#define WATCH_FD 4

/* Nothing of the task's is kept: streams, terminal, directory, signals. */
static void become_holder(int sock, int watch)
{
	const int list[] = { DEV_NULL, DEV_NULL, DEV_NULL, sock, watch < 0 ? DEV_NULL : watch };
	sigset_t all;

	/* What is for the tasks (scancel --signal, a terminal's) is not for us. */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	signal(SIGCHLD, SIG_DFL);
	if (setsid() < 0 || chdir("/") || descriptors_become(list, sizeof(list) / sizeof(*list)))
		_exit(EXIT_SETUP);
	watch_fd = watch < 0 ? -1 : WATCH_FD;
	fcntl(LISTEN_FD, F_SETFL, O_RDWR | O_NONBLOCK);
}

static void __attribute__((noreturn)) guard(int sock, int watch, int ready, unsigned seconds)
{
	pid_t holder;
	int status = 0;

	prctl(PR_SET_NAME, "slurm_ch guard");
	holder = fork();
	if (holder <= 0) {
		/* The name is that of who listens: the one that is let in by the others. Where there
		 * can be no other process, this one holds. */
		if (listen(sock, BACKLOG))
			_exit(EXIT_SETUP);
		prctl(PR_SET_NAME, "slurm_ch holder");
		become_holder(sock, watch);
		hold(seconds);
		_exit(0);
	}
	close(ready);
	become_holder(sock, watch);
	while (waitpid(holder, &status, 0) < 0 && errno == EINTR)
		;
	if (!WIFEXITED(status))
		mourn(seconds);
	_exit(0);
}

/* Grandchildren: the command must not find a child that it didn't start. Return when the holder
 * listens, or can't. */
int holder_start(int sock, pid_t watch, unsigned seconds)
{
	int pidfd = watch > 0 ? (int)syscall(SYS_pidfd_open, watch, 0) : -1;
	int ready[2] = { -1, -1 }, status = 0, error = 0;
	pid_t child = -1;
	char byte;

	/* There must be an end. */
	if (pidfd < 0 && !seconds)
		seconds = JOIN_SECONDS;
	if (!pipe2(ready, O_CLOEXEC))
		child = fork();
	if (child == 0) {
		pid_t grandchild = fork();

		if (grandchild == 0) {
			close(ready[0]);
			guard(sock, pidfd, ready[1], seconds);
		}
		_exit(grandchild < 0 ? errno : 0);
	}
	error = errno;
	if (pidfd >= 0)
		close(pidfd);
	if (ready[1] >= 0)
		close(ready[1]);
	if (child > 0) {
		/* Who ignores SIGCHLD has no child to wait for. */
		error = 0;
		while (waitpid(child, &status, 0) < 0 && errno == EINTR)
			;
		if (WIFEXITED(status))
			error = WEXITSTATUS(status);
		while (read(ready[0], &byte, 1) < 0 && errno == EINTR)
			;
	}
	if (ready[0] >= 0)
		close(ready[0]);
	errno = error;
	return error ? -1 : 0;
}
