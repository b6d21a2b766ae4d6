/* SPDX-License-Identifier: Apache-2.0 */
/* Serves the FUSE device: each thread reads requests and writes replies. */
#include "fuse.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#include "answers.h"

/* The reader needs some 10 KiB, and the libraries no more than that. */
#define STACK_BYTES (256 << 10)

struct worker {
	char reply[REPLY_BYTES] __attribute__((aligned(4096))); /* like the pages that the kernel copies it to */
	struct request request;
	struct image *image;
	int fuse;
	int more; /* how many threads are still to be started */
};

/* Read one request; return false when the mount is gone. */
static bool receive(int fuse, struct request *r)
{
	for (;;) {
		ssize_t n = read(fuse, r, sizeof(*r));

		if (n >= (ssize_t)sizeof(r->head)) {
			/* The kernel ends names with a NUL; this one is for a request without. */
			((char *)r)[n < (ssize_t)sizeof(*r) ? n : (ssize_t)sizeof(*r) - 1] = '\0';
			return true;
		}
		if (n >= 0 || (errno != EINTR && errno != EAGAIN && errno != ENOENT))
			return false;
	}
}

static void send_reply(int fuse, const struct request *r, char *reply, ssize_t size)
{
	struct fuse_out_header head = { .unique = r->head.unique };
	struct iovec parts[] = { { &head, sizeof(head) }, { reply, size > 0 ? size : 0 } };

	head.error = size < 0 ? size : 0;
	head.len = sizeof(head) + parts[1].iov_len;
	/* ENOENT: the request was interrupted. The next read reports any other error. */
	if (writev(fuse, parts, 2) < 0)
		return;
}

static void begin(struct image *image, int fuse, int more, bool here);

static void *serve(void *argument)
{
	struct worker *w = argument;
	const struct request *r = &w->request;

	while (receive(w->fuse, &w->request)) {
		if (r->head.opcode == FUSE_FORGET || r->head.opcode == FUSE_BATCH_FORGET)
			continue;
		/* One thread is enough, and starts sooner, until the contents of a file are read. */
		for (; w->more && r->head.opcode == FUSE_READ; w->more--)
			begin(w->image, w->fuse, 0, false);
		send_reply(w->fuse, r, w->reply, answer(w->image, r, w->reply));
	}
	_exit(0);
}

/* Begin to serve, in this thread or another. If there is no memory for another, the existing ones serve. */
static void begin(struct image *image, int fuse, int more, bool here)
{
	struct worker *w = aligned_alloc(4096, sizeof(*w));
	pthread_attr_t small;
	pthread_t thread;

	if (!w)
		return;
	w->image = image;
	w->fuse = fuse;
	w->more = more;
	if (here)
		serve(w);
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, STACK_BYTES);
	if (pthread_create(&thread, &small, serve, w))
		free(w);
}

void fuse_serve(struct image *image, int fuse, int threads)
{
	begin(image, fuse, threads - 1, true);
}
