/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel asks of a file system, answered from the image. */
#ifndef ANSWERS_H
#define ANSWERS_H

#include <limits.h>
#include <linux/fuse.h>

#include "image.h"

/* The kernel wants room for 8 KiB; nothing longer is ever written to us. */
#define REQUEST_BYTES (16 << 10)
#define READ_BYTES (128 << 10) /* the longest read: 32 pages unless told otherwise, which may be of 64 KiB */
#define REPLY_BYTES (READ_BYTES + (4 << 10))

struct request {
	struct fuse_in_header head;
	char body[REQUEST_BYTES - sizeof(struct fuse_in_header)]; /* ends with a NUL */
};

/* Seconds that INIT asks the kernel for; 0: none. */
extern uint16_t request_timeout;
/* Whether all files are root's, who in the mount's user namespace is its maker: no other id exists there. */
extern bool one_owner;

/* Write the answer to `reply`, which has room for REPLY_BYTES; its size, or -errno. */
ssize_t answer(struct image *image, const struct request *r, char *reply);

#endif
