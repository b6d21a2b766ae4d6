/* SPDX-License-Identifier: Apache-2.0 */
/* Data blocks and fragments: a cache that all threads share.
 *
 * The kernel asks for 128 KiB around a page fault, which is rarely aligned to
 * a block: every block is wanted at least twice. Kept here it is inflated once,
 * by whoever comes first, while the others wait or inflate other blocks.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#ifdef HAVE_LIBDEFLATE
#include <libdeflate.h>
#endif

#include "blocks.h"

/* What the cache may hold; the server as a whole is to stay below 8 MiB. */
#define CACHE_BYTES (4 << 20)
#define ENTRIES_MAX 256
#define BLOCK_MAX (1 << 20) /* SquashFS's own limit */

enum state { EMPTY, LOADING, READY };

struct entry {
	enum state state;
	uint64_t position;
	uint64_t used;
	int users;
	sqfs_block *block;
};

static struct entry *entries;
static int entry_count;
static uint64_t now;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t loaded = PTHREAD_COND_INITIALIZER;

#ifdef HAVE_LIBDEFLATE
/* As libsquashfuse's own for gzip, in less than half its time. */
static sqfs_err inflate_fast(void *in, size_t in_size, void *out, size_t *out_size)
{
	static _Thread_local struct libdeflate_decompressor *d;
	size_t room = *out_size;

	if (!d && !(d = libdeflate_alloc_decompressor()))
		return SQFS_ERR;
	return libdeflate_zlib_decompress(d, in, in_size, out, room, out_size) ? SQFS_ERR : SQFS_OK;
}

static void choose_decompressor(struct image *image)
{
	if (sqfs_compression(&image->fs) == ZLIB_COMPRESSION)
		image->fs.decompressor = inflate_fast;
}
#else
static void choose_decompressor(struct image *image)
{
	(void)image;
}
#endif

int blocks_init(struct image *image, int threads)
{
	uint32_t size = image->fs.sb.block_size;

	if (!size || size > BLOCK_MAX)
		return -1;
	choose_decompressor(image);
	entry_count = CACHE_BYTES / size;
	if (entry_count > ENTRIES_MAX)
		entry_count = ENTRIES_MAX;
	/* A thread uses one at a time: so there is always one to be had. */
	if (entry_count < threads + 1)
		entry_count = threads + 1;
	entries = calloc(entry_count, sizeof(*entries));
	return entries && !pthread_mutex_init(&image->metadata, NULL) ? 0 : -1;
}

/* The entry for `position`, or the one to put it in: the longest unused. */
static struct entry *find(uint64_t position)
{
	struct entry *oldest = NULL;

	for (struct entry *e = entries; e < entries + entry_count; e++) {
		if (e->state != EMPTY && e->position == position)
			return e;
		if (!e->users && (!oldest || e->used < oldest->used))
			oldest = e;
	}
	if (!oldest) /* there are more entries than threads */
		__builtin_unreachable();
	return oldest;
}

/* Get the block at `position` and hold it; NULL if it can't be read. */
static struct entry *hold(struct image *image, uint64_t position, uint32_t header)
{
	struct entry *e;
	sqfs_block *block = NULL;
	sqfs_err error;

	pthread_mutex_lock(&lock);
	while ((e = find(position))->state == LOADING && e->position == position)
		pthread_cond_wait(&loaded, &lock);
	e->used = ++now;
	e->users++;
	if (e->state == READY && e->position == position) {
		pthread_mutex_unlock(&lock);
		return e;
	}
	if (e->block)
		sqfs_block_dispose(e->block);
	e->block = NULL;
	e->state = LOADING;
	e->position = position;
	pthread_mutex_unlock(&lock);
	error = sqfs_data_block_read(&image->fs, position, header, &block);
	pthread_mutex_lock(&lock);
	e->block = error ? NULL : block;
	e->state = error ? EMPTY : READY;
	if (error) {
		e->used = 0;
		e->users--;
	}
	pthread_cond_broadcast(&loaded);
	pthread_mutex_unlock(&lock);
	return error ? NULL : e;
}

static void let_go(struct entry *e)
{
	pthread_mutex_lock(&lock);
	e->users--;
	pthread_mutex_unlock(&lock);
}

/* Copy `size` bytes that begin at `offset` of a block; 0, or -errno. */
static int copy(struct image *image, uint64_t position, uint32_t header, size_t offset, size_t size,
		char *to)
{
	struct entry *e = hold(image, position, header);
	int failed = 0;

	if (!e)
		return -EIO;
	if (offset + size > e->block->size)
		failed = -EIO;
	else
		memcpy(to, (char *)e->block->data + offset, size);
	let_go(e);
	return failed;
}

/* Where one piece of a file is: filled in with the metadata locked. */
struct piece {
	uint64_t position;
	uint32_t header;
	bool hole;
	size_t offset;
};

/* The block that `start` is in, or the next after one that was returned before;
 * the fragment comes last. */
static int next_piece(struct image *image, sqfs_inode *inode, sqfs_blocklist *list, uint64_t start,
		      struct piece *p)
{
	struct squashfs_fragment_entry fragment;
	uint64_t block_size = image->fs.sb.block_size;

	memset(p, 0, sizeof(*p));
	while (list->remain) {
		if (sqfs_blocklist_next(list))
			return -EIO;
		if (list->pos + block_size <= start)
			continue;
		p->position = list->block;
		p->header = list->header;
		p->hole = list->input_size == 0;
		return list->input_size > block_size ? -EIO : 0;
	}
	if (sqfs_frag_entry(&image->fs, &fragment, inode->xtra.reg.frag_idx))
		return -EIO;
	p->position = fragment.start_block;
	p->header = fragment.size;
	p->offset = inode->xtra.reg.frag_off;
	return (p->header & ~SQUASHFS_COMPRESSED_BIT_BLOCK) > block_size ? -EIO : 0;
}

ssize_t blocks_read(struct image *image, sqfs_inode *inode, uint64_t start, size_t size, char *to)
{
	uint64_t file = inode->xtra.reg.file_size;
	size_t block_size = image->fs.sb.block_size, done = 0;
	sqfs_blocklist list;
	struct piece p;
	int failed;

	if (start >= file)
		return 0;
	if (size > file - start)
		size = file - start;
	pthread_mutex_lock(&image->metadata);
	failed = sqfs_blockidx_blocklist(&image->fs, inode, &list, start) ? -EIO : 0;
	pthread_mutex_unlock(&image->metadata);
	while (!failed && done < size) {
		size_t inside = (start + done) % block_size;
		size_t n = block_size - inside;

		if (n > size - done)
			n = size - done;
		pthread_mutex_lock(&image->metadata);
		failed = next_piece(image, inode, &list, start, &p);
		pthread_mutex_unlock(&image->metadata);
		if (failed)
			break;
		if (p.hole)
			memset(to + done, 0, n);
		else
			failed = copy(image, p.position, p.header, p.offset + inside, n, to + done);
		done += n;
	}
	return failed ? failed : (ssize_t)done;
}
