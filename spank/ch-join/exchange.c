/* SPDX-License-Identifier: Apache-2.0 */
/* Messages between a peer and the holder, and which process is at the other end of their socket. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "meeting.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* from Linux 6.5 on */
#endif
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif

int message_send(int sock, const void *message, size_t size, int fd)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr head;
	} control = { .head = { .cmsg_level = SOL_SOCKET,
				.cmsg_type = SCM_RIGHTS,
				.cmsg_len = CMSG_LEN(sizeof(int)) } };
	struct iovec data = { (void *)message, size };
	struct msghdr m = { .msg_iov = &data, .msg_iovlen = 1 };

	if (fd >= 0) {
		memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
		m.msg_control = &control;
		m.msg_controllen = sizeof(control);
	}
	return sendmsg(sock, &m, MSG_NOSIGNAL) == (ssize_t)size ? 0 : -1;
}

bool message_again(void)
{
	return errno == ETOOMANYREFS || errno == ENOBUFS || errno == ENOMEM;
}

/* MSG_TRUNC: of a message that is too long, return the whole length, which is not the expected one. */
ssize_t message_receive(int sock, void *message, size_t size, int *fd, int flags)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr head;
	} control;
	struct iovec data = { message, size };
	struct msghdr m = { .msg_iov = &data,
			    .msg_iovlen = 1,
			    .msg_control = &control,
			    /* sizeof(control) would have room for a second descriptor. */
			    .msg_controllen = CMSG_LEN(sizeof(int)) };
	struct cmsghdr *c;
	ssize_t n;

	*fd = -1;
	while ((n = recvmsg(sock, &m, flags | MSG_CMSG_CLOEXEC | MSG_TRUNC)) < 0 && errno == EINTR)
		;
	c = n < 0 ? NULL : CMSG_FIRSTHDR(&m);
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(fd, CMSG_DATA(c), sizeof(int));
	return n;
}

static bool user_namespace(const char *pid, char name[64])
{
	char path[40];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%s/ns/user", pid);
	n = readlink(path, name, 63);
	name[n < 0 ? 0 : n] = '\0';
	return n > 0;
}

/* Return a pidfd of the process at the other end; -1 if it is gone, or (*known is false) if the kernel
 * can't tell. */
static int peer_pidfd(int sock, bool *known)
{
	int pidfd = -1;
	socklen_t size = sizeof(pidfd);

	*known = !getsockopt(sock, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) || errno != ENOPROTOOPT;
	return pidfd;
}

/* A process in a container of the same user must not pass for a peer. */
enum whose meeting_whose(int sock, struct ucred *who)
{
	socklen_t size = sizeof(*who);
	char pid[16], own[64], its[64];
	bool known, found, gone = false;
	int pidfd, error;

	*who = (struct ucred){ 0, -1, -1 };
	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, who, &size) || who->uid != geteuid())
		return ANOTHER_USERS;
	snprintf(pid, sizeof(pid), "%d", who->pid);
	if (!who->pid || !user_namespace("self", own))
		return ANOTHER_NAMESPACES;
	pidfd = peer_pidfd(sock, &known);
	if (known && pidfd < 0)
		return NOBODYS;
	found = user_namespace(pid, its);
	error = errno;
	/* If the process has ended while a child of its keeps the socket, its pid may be another process's by now. */
	if (pidfd >= 0) {
		gone = syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0) && errno == ESRCH;
		close(pidfd);
	}
	if (gone || (!found && (error == ENOENT || error == ESRCH)))
		return NOBODYS;
	return !found || strcmp(own, its) ? ANOTHER_NAMESPACES : OURS;
}
