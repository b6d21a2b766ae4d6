/* SPDX-License-Identifier: Apache-2.0 */
/* Makes the socket pair of a step, between its tasks and its launcher.
 *
 * The pair is made in init_post_opt, because user_init need not run in slurmstepd: with
 * SlurmdParameters=contain_spank (24.05 and later), user_init, task_post_fork and task_exit
 * run in a child that shares slurmstepd's memory but not its descriptors, so they can
 * neither make nor close descriptors for it. If slurmstepd had a copy of the launcher's end
 * that it could not close, the tasks would never notice the launcher's death. So slurmstepd
 * has no copy: the launcher's end is in a message on a second pair, the offer, until a task
 * takes it; only one task can. */
#include "step_sockets.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct end none = { .fd = -1 };
struct end tasks_end = { .fd = -1 }, offer = { .fd = -1 };
int socket_errno;

static int remember(struct end *end, int fd)
{
	struct stat st;

	if (fstat(fd, &st))
		return -1;
	*end = (struct end){ fd, st.st_dev, st.st_ino };
	return 0;
}

bool end_is_ours(const struct end *end)
{
	struct stat st;

	return end->fd >= 0 && !fstat(end->fd, &st) && st.st_dev == end->dev && st.st_ino == end->ino;
}

void end_close(struct end *end)
{
	if (end_is_ours(end))
		close(end->fd);
	*end = none;
}

union rights {
	struct cmsghdr head;
	char room[CMSG_SPACE(sizeof(int))];
};

/* Send `fd` to the other end of `sock`, with one byte, because an empty message carries no descriptor. */
static int send_end(int sock, int fd)
{
	char byte = 0;
	struct iovec data = { &byte, sizeof(byte) };
	union rights rights = { .head = { .cmsg_level = SOL_SOCKET,
					  .cmsg_type = SCM_RIGHTS,
					  .cmsg_len = CMSG_LEN(sizeof(int)) } };
	struct msghdr message = { .msg_iov = &data,
				  .msg_iovlen = 1,
				  .msg_control = &rights,
				  .msg_controllen = sizeof(rights) };

	memcpy(CMSG_DATA(&rights.head), &fd, sizeof(fd));
	return sendmsg(sock, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == 1 ? 0 : -1;
}

int sockets_take(void)
{
	char byte;
	struct iovec data = { &byte, sizeof(byte) };
	union rights rights;
	struct msghdr message = { .msg_iov = &data,
				  .msg_iovlen = 1,
				  .msg_control = &rights,
				  .msg_controllen = sizeof(rights) };
	ssize_t n = recvmsg(offer.fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	int fd;

	if (n == 0) /* another task has taken it: sockets_make closed the sending end */
		errno = 0;
	if (n <= 0)
		return -1;
	if (message.msg_flags & MSG_CTRUNC || message.msg_controllen < CMSG_LEN(sizeof(int))) {
		errno = EMFILE;
		return -1;
	}
	memcpy(&fd, CMSG_DATA(&rights.head), sizeof(fd));
	return fd;
}

void sockets_make(void)
{
	int pair[2], carrier[2] = { -1, -1 };

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
		socket_errno = errno;
		return;
	}
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, carrier) ||
	    remember(&tasks_end, pair[0]) || remember(&offer, carrier[0]) || send_end(carrier[1], pair[1])) {
		socket_errno = errno;
		close(pair[0]);
		if (carrier[0] >= 0)
			close(carrier[0]);
		tasks_end = offer = none;
	}
	if (carrier[1] >= 0)
		close(carrier[1]);
	close(pair[1]);
}
