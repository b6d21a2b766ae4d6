/* SPDX-License-Identifier: Apache-2.0 */
/* The ticket, which the launcher sends to a node's tasks: an exit code, or the container's namespaces and
 * the plan. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/nsfs.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "../agreement.h"
#include "ch-join.h"

#define LEAST_FDS 3
#define MOST_FDS (LEAST_FDS + 1 + MORE_NAMESPACES)

/* After this time without a container, a message tells the user. */
#ifndef SLOW_SECONDS
#define SLOW_SECONDS 10
#endif

/* Only the first task of a node reports what concerns all of them. */
bool is_first_task(void)
{
	const char *id = getenv("SLURM_LOCALID");

	return !id || !strcmp(id, "0");
}

static void wait_for_peer(int sock, const struct waiting *w)
{
	struct pollfd wait = { .fd = sock, .events = POLLIN };
	struct timespec start, now;
	int64_t left = w->seconds * 1000ll;

	clock_gettime(CLOCK_MONOTONIC, &start);
	while (poll(&wait, 1, left > 0 ? (int)left : 0) <= 0) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		left = w->seconds * 1000ll - (now.tv_sec - start.tv_sec) * 1000 -
		       (now.tv_nsec - start.tv_nsec) / 1000000;
		if (left <= 0)
			die(EXIT_JOIN, "join: %s: waited %u s for the container that %s (pid %d) makes", w->tag,
			    w->seconds, w->maker, w->pid);
	}
}

/* After the first three may come the relay's socket and further namespaces. Only the kernel can tell which is
 * which. */
static void take_descriptors(struct ticket *t, const int *fds, size_t count)
{
	t->user_fd = fds[0];
	t->mount_fd = fds[1];
	t->plan_fd = fds[2];
	t->relay_fd = -1;
	t->more_count = 0;
	for (size_t i = LEAST_FDS; i < count; i++)
		if (ioctl(fds[i], NS_GET_NSTYPE) < 0)
			t->relay_fd = fds[i];
		else if (t->more_count < MORE_NAMESPACES)
			t->more_fds[t->more_count++] = fds[i];
}

/* MSG_PEEK leaves the ticket in the socket, because the other tasks need it too. */
void ticket_read(int sock, struct ticket *t, const struct waiting *w)
{
	struct {
		char magic[8];
		unsigned char code[4];
	} head;
	union {
		char space[CMSG_SPACE(MOST_FDS * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { &head, sizeof(head) };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	struct pollfd wait = { .fd = sock, .events = POLLIN };
	struct cmsghdr *c;
	ssize_t n;
	unsigned code;

	/* Under Slurm there is no limit but the job's: an image on a slow server may take long. */
	if (w->seconds)
		wait_for_peer(sock, w);
	else if (w->reports && !poll(&wait, 1, SLOW_SECONDS * 1000))
		warn("no container after %d seconds; still waiting (a file server that hangs?)",
		     SLOW_SECONDS);
	for (;;) {
		/* Not a blocking recvmsg: the kernel wakes its waiters one by one, each
		 * when the one before has taken a message, and MSG_PEEK takes none. */
		while (poll(&wait, 1, -1) < 0)
			if (errno != EINTR)
				die(EXIT_SETUP, "can't wait for the launcher: %s", strerror(errno));
		n = recvmsg(sock, &msg, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (n >= 0)
			break;
		/* ECONNRESET, once: the launcher ended without reading what a task
		 * has sent; the launcher's own message is there all the same. */
		if (errno != EAGAIN && errno != EINTR && errno != ECONNRESET)
			die(EXIT_SETUP, "can't receive the ticket: %s", strerror(errno));
	}
	if (n == 0) {
		if (w->reports)
			die(EXIT_LAUNCHER_DIED, "the launcher died before the container was ready "
						"(killed, or no Python could start): if memory ran out, ask for more, "
						"or pull the image before the job (`slurm-ch pull`)");
		exit(exit_code(EXIT_LAUNCHER_DIED));
	}
	if (n != sizeof(head) || msg.msg_flags & MSG_TRUNC || memcmp(head.magic, TICKET_MAGIC, sizeof(head.magic)))
		die(EXIT_SETUP, "launcher and ch-join are of different versions");
	code = head.code[0] | head.code[1] << 8 | head.code[2] << 16 | (unsigned)head.code[3] << 24;
	if (code) /* the launcher has reported why */
		exit(exit_code(code & 0xff ? code & 0xff : EXIT_SETUP));
	c = CMSG_FIRSTHDR(&msg);
	if (msg.msg_flags & MSG_CTRUNC || !c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS ||
	    c->cmsg_len < CMSG_LEN(sizeof(int) * LEAST_FDS))
		die(EXIT_SETUP, "can't receive the ticket: out of file descriptors");
	take_descriptors(t, (const int *)(const void *)CMSG_DATA(c), (c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
}

static void enter(int fd, int type, const char *kind)
{
	/* setns sometimes fails with EINVAL, and then succeeds when tried again. */
	for (int left = SETNS_TRIES - 1; setns(fd, type); left--)
		if (errno != EINVAL || !left)
			die(EXIT_SETUP, "can't join %s namespace of the container: %s", kind,
			    strerror(errno));
	close(fd);
}

void ticket_check_owner(const struct ticket *t)
{
	uid_t owner;

	if (ioctl(t->user_fd, NS_GET_OWNER_UID, &owner))
		die(EXIT_SETUP, "can't find out whose the container is: %s", strerror(errno));
	if (owner != geteuid())
		die(EXIT_SETUP, "can't join: the container belongs to uid %u", owner);
}

void ticket_enter(const struct ticket *t)
{
	/* After the first setns and before the last, the container's root could trace this
	 * process, which still sees the host's files. */
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
		die(EXIT_SETUP, "can't make this process undumpable: %s", strerror(errno));
	enter(t->user_fd, CLONE_NEWUSER, "user");
	for (size_t i = 0; i < t->more_count; i++)
		enter(t->more_fds[i], 0, "another");
	enter(t->mount_fd, CLONE_NEWNS, "mount");
}
