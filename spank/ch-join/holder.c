/* SPDX-License-Identifier: Apache-2.0 */
/* Starts the holder of a join, which serves its peers (serve_peers.c), and the holder's guard.
 *
 * The guard is the holder's parent. If the holder is killed, nobody knows any more which peers have joined,
 * and the next peer would make a second container: so the guard refuses the peers that still come.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../agreement.h"
#include "../common/descriptors.h"
#include "meeting.h"
#include "serve_peers.h"

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

/* Its place in become_holder's list. */
#define WATCH_FD 4

/* Keep nothing of the task's: streams, terminal, directory, signals. */
static void become_holder(int sock, int watch)
{
	const int list[] = { DEV_NULL, DEV_NULL, DEV_NULL, sock, watch < 0 ? DEV_NULL : watch };
	sigset_t all;

	/* Signals from scancel or a terminal are for the tasks. */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	signal(SIGCHLD, SIG_DFL);
	if (setsid() < 0 || chdir("/") || descriptors_become(list, sizeof(list) / sizeof(*list)))
		_exit(EXIT_SETUP);
	watch_fd = watch < 0 ? -1 : WATCH_FD;
	fcntl(LISTEN_FD, F_SETFL, O_RDWR | O_NONBLOCK);
}

/* In the guard, after the holder was killed: answer each peer that comes that it is too late, until no more can. */
static void refuse_peers(unsigned seconds)
{
	const struct answer lost = { .magic = MEETING_MAGIC, .kind = MEETING_LOST };
	struct pollfd wait[] = { { .fd = watch_fd, .events = POLLIN }, { .fd = LISTEN_FD, .events = POLLIN } };

	/* From now on peers see this process at the other end, not the dead holder. */
	if (listen(LISTEN_FD, BACKLOG))
		return;
	for (;;) {
		int fd, ready = poll(wait, 2, seconds ? (int)seconds * 1000 : -1);

		if (ready < 0 && errno == EINTR)
			continue;
		if (ready <= 0 || wait[0].revents & POLLIN)
			return;
		fd = accept4(LISTEN_FD, NULL, NULL, SOCK_CLOEXEC);
		if (fd < 0)
			continue;
		message_send(fd, &lost, sizeof(lost), -1);
		close(fd);
	}
}

static void __attribute__((noreturn)) guard(int sock, int watch, int ready, unsigned seconds)
{
	pid_t holder;
	int status = 0;

	prctl(PR_SET_NAME, "slurm_ch guard");
	holder = fork();
	if (holder <= 0) {
		/* Peers see the process that has called listen() at the other end, so it must be the
		 * holder. If fork has failed, this process is the holder, without a guard. */
		if (listen(sock, BACKLOG))
			_exit(EXIT_SETUP);
		prctl(PR_SET_NAME, "slurm_ch holder");
		become_holder(sock, watch);
		serve_peers(seconds);
		_exit(0);
	}
	close(ready);
	become_holder(sock, watch);
	while (waitpid(holder, &status, 0) < 0 && errno == EINTR)
		;
	if (!WIFEXITED(status))
		refuse_peers(seconds);
	_exit(0);
}

/* Guard and holder are grandchildren, because the command must not find a child that it did not start.
 * Return when the holder listens, or has failed. */
int holder_start(int sock, pid_t watch, unsigned seconds)
{
	int pidfd = watch > 0 ? (int)syscall(SYS_pidfd_open, watch, 0) : -1;
	int ready[2] = { -1, -1 }, status = 0, error = 0;
	pid_t child = -1;
	char byte;

	/* The holder must end at some time. */
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
		/* If SIGCHLD is ignored, there is no child to wait for. */
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
