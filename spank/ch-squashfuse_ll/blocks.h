/* SPDX-License-Identifier: Apache-2.0 */
/* Reading a SquashFS file's data: blocks are inflated once and shared by all threads. */
#ifndef SERVE_BLOCKS_H
#define SERVE_BLOCKS_H

#include <pthread.h>
#include <squashfuse/squashfuse.h>

struct image {
	sqfs fs;
	/* Guards all of fs but its descriptor: libsquashfuse's caches are nobody's but the caller's. */
	pthread_mutex_t metadata;
};

int blocks_init(struct image *image, int threads);

/* Read up to `size` bytes of a regular file from `start`; the number read, or -errno. */
ssize_t blocks_read(struct image *image, sqfs_inode *inode, uint64_t start, size_t size, char *to);

#endif
