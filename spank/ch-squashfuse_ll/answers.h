/* SPDX-License-Identifier: Apache-2.0 */
/* Answers to the kernel's FUSE requests. */
#ifndef ANSWERS_H
#define ANSWERS_H

#include <limits.h>
#include <linux/fuse.h>

#include "image.h"

/* The kernel requires room for 8 KiB, and never sends more than this. */
#define REQUEST_BYTES (16 << 10)
#define READ_BYTES (128 << 10) /* the longest read; INIT sets it, because the default is 32 pages, of up to 64 KiB each */
#define REPLY_BYTES (READ_BYTES + (4 << 10))

struct request {
	struct fuse_in_header head;
	char body[REQUEST_BYTES - sizeof(struct fuse_in_header)]; /* ends with a NUL */
};

/* The request timeout that INIT asks the kernel for, in seconds; 0: none. */
extern uint16_t request_timeout;
/* Whether all files belong to root. In the mount's user namespace, root is the user who made it, and no other
 * id exists. */
extern bool one_owner;

/* Write the answer to `reply`, which has room for REPLY_BYTES; return its size, or -errno. */
ssize_t answer(struct image *image, const struct request *r, char *reply);

#endif
