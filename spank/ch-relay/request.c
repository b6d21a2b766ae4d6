/* SPDX-License-Identifier: Apache-2.0 */
/* Receives and checks a request, whose sender may be hostile. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "broker.h"

void request_release(struct request *q)
{
	for (int i = 0; i < 3; i++)
		if (q->streams[i] >= 0)
			close(q->streams[i]);
	free(q->text);
	free(q->argv);
	free(q->variables);
}

/* Read the whole memory file; return 0 or an errno. It must be sealed, because reading another file
 * might block. */
static int read_text(int fd, struct request *q)
{
	int seals = fcntl(fd, F_GET_SEALS);
	uint64_t size = q->head.size;
	struct stat st;

	if (seals < 0 || (seals & (F_SEAL_SHRINK | F_SEAL_WRITE)) != (F_SEAL_SHRINK | F_SEAL_WRITE))
		return EBADMSG;
	if (fstat(fd, &st) || (uint64_t)st.st_size != size || size < 2)
		return EBADMSG;
	if (size > RELAY_MAX_BYTES)
		return E2BIG;
	q->text = malloc(size);
	if (!q->text)
		return ENOMEM;
	if (pread(fd, q->text, size, 0) != (ssize_t)size || q->text[size - 1])
		return EBADMSG;
	return 0;
}

/* Cut the text into name, directory, arguments and variables; return 0 or an errno. */
static int cut(struct request *q)
{
	uint32_t arguments = q->head.arguments, variables = q->head.variables;
	const char *end = q->text + q->head.size;
	char *at = q->text;

	if (arguments > RELAY_MAX_STRINGS || variables > RELAY_MAX_STRINGS)
		return E2BIG;
	q->argv = calloc(arguments + 2, sizeof(char *));
	q->variables = calloc(variables + 1, sizeof(char *));
	if (!q->argv || !q->variables)
		return ENOMEM;
	for (uint64_t i = 0; i < 2 + (uint64_t)arguments + variables; i++) {
		if (at >= end)
			return EBADMSG;
		if (i == 0)
			q->argv[0] = at;
		else if (i == 1)
			q->directory = at;
		else if (i < 2 + (uint64_t)arguments)
			q->argv[i - 1] = at;
		else
			q->variables[i - 2 - arguments] = at;
		at += strlen(at) + 1;
	}
	q->name = q->argv[0];
	return at == end ? 0 : EBADMSG;
}

/* Whether the list has the name. The caller must not control a command whose item ends
 * with RELAY_CONFINED. */
static bool is_allowed(const char *name, const char *allowed, bool *confined)
{
	size_t n = strlen(name);

	if (!n || strpbrk(name, "/," RELAY_CONFINED))
		return false;
	for (const char *item = allowed;; item++) {
		size_t length = strcspn(item, ",");

		*confined = length && item[length - 1] == RELAY_CONFINED[0];
		if (length - *confined == n && !strncmp(item, name, n))
			return true;
		item += length;
		if (!*item)
			return false;
	}
}

static void close_all(const int *fds, size_t count)
{
	for (size_t i = 0; i < count; i++)
		close(fds[i]);
}

/* Receive one message: its bytes and at most `room` descriptors. */
ssize_t request_receive(int fd, void *data, size_t size, int *fds, size_t room, size_t *count)
{
	union {
		char space[CMSG_SPACE(8 * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { data, size };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	ssize_t n = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	*count = 0;
	for (struct cmsghdr *c = n < 0 ? NULL : CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
		size_t got = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < got; i++) {
			int one;

			memcpy(&one, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (*count < room)
				fds[(*count)++] = one;
			else
				close(one);
		}
	}
	if (n >= 0 && msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
		close_all(fds, *count);
		*count = 0;
		errno = msg.msg_flags & MSG_CTRUNC ? EMFILE : EBADMSG;
		return -1;
	}
	return n;
}

/* Parse and check a received request; return 0, or an errno for its sender. */
int request_parse(struct request *q, ssize_t n, int *fds, size_t count, const char *allowed)
{
	size_t next = 1;
	int error = EBADMSG;

	if (n != sizeof(q->head) || memcmp(q->head.magic, RELAY_MAGIC, sizeof(q->head.magic)) ||
	    !count)
		goto out;
	if (q->head.streams > 7 || count != 1 + (size_t)__builtin_popcount(q->head.streams))
		goto out;
	for (int i = 0; i < 3; i++)
		if (q->head.streams >> i & 1) {
			q->streams[i] = fds[next];
			fds[next++] = -1;
		}
	error = read_text(fds[0], q);
	if (!error)
		error = cut(q);
	if (!error && !is_allowed(q->name, allowed, &q->confined))
		error = EPERM;
out:
	for (size_t i = 0; i < count; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	return error;
}
