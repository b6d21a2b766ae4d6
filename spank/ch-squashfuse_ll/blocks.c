/* SPDX-License-Identifier: Apache-2.0 */
/* Reads the contents of files: blocks, whose sizes are listed after the inode, and
 * tails, many of which share one block, the fragment.
 *
 * The kernel asks for 128 KiB around a page fault, which are rarely aligned to a
 * block: so each block is read at least twice. The cache has it inflated only once,
 * by the first thread, while others wait for it or inflate other blocks.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"

/* The size of the cache: the server as a whole should stay below 8 MiB. */
#define CACHE_BYTES (4 << 20)
#define WAYS_MAX 32
#define STORED_PLAIN (1u << 24)

/* A block's position is the sum of the sizes of all blocks before it. For long lists some positions are kept:
 * one per metadata block of sizes, or fewer if a file has more than STEPS_MAX such blocks. */
#define STEP_BLOCKS (METADATA_SIZE / 4)
#define STEPS_MAX 256

static int load(struct image *image, struct block *b)
{
	static _Thread_local uint8_t *stored;
	ssize_t inflated;

	b->stored = b->header & ~STORED_PLAIN;
	if (b->stored > image->block_size)
		return damaged(image, "stored size of a data block", b->position);
	if (b->header & STORED_PLAIN) {
		b->size = b->stored;
		return bytes_read(image, b->data, b->size, b->position);
	}
	if (!stored && !(stored = malloc(BLOCK_SIZE_MAX)))
		return -EIO;
	if (bytes_read(image, stored, b->stored, b->position))
		return -EIO;
	inflated = decompress(image->compression, stored, b->stored, b->data, image->block_size);
	if (inflated < 0)
		return damaged(image, "compressed data block", b->position);
	b->size = inflated;
	return 0;
}

bool blocks_init(struct image *image, int threads)
{
	unsigned int count = CACHE_BYTES / image->block_size;
	unsigned int ways = count < WAYS_MAX ? count : WAYS_MAX;

	/* A thread holds one at a time. */
	return cache_init(&image->data, load, count / ways, ways, threads, image->block_size);
}

/* ---- Block lists ---- */

static struct step *slot(struct image *image, uint64_t inode, uint64_t number)
{
	return image->steps + ((inode + number) * 0x9e3779b97f4a7c15 >> 32) % STEPS;
}

static void keep(struct image *image, const struct step *step)
{
	pthread_mutex_lock(&image->lock);
	*slot(image, step->inode, step->number) = *step;
	pthread_mutex_unlock(&image->lock);
}

/* Return the last known position before block `number`: at worst, the beginning of the list. */
static struct step recall(struct image *image, const struct inode *inode, uint64_t number, uint64_t distance)
{
	struct step found = { inode->reference, 0, inode->file.start, inode->rest };

	pthread_mutex_lock(&image->lock);
	for (uint64_t n = number / distance * distance; n; n -= distance) {
		const struct step *step = slot(image, inode->reference, n);

		if (step->inode == inode->reference && step->number == n) {
			found = *step;
			break;
		}
	}
	pthread_mutex_unlock(&image->lock);
	return found;
}

/* Goes through a file's blocks in order. */
struct list {
	struct cursor cursor;
	uint64_t position; /* of the next block */
};

/* Read the next block's header and move past that block. */
static int list_next(struct list *l, uint32_t *header)
{
	struct image *image = l->cursor.image;
	uint8_t scratch[4];
	const uint8_t *p = cursor_take(&l->cursor, scratch, 4);

	if (!p)
		return -EIO;
	*header = le32(p);
	if ((*header & ~STORED_PLAIN) > image->block_size || l->position > image->size) {
		cursor_close(&l->cursor);
		return damaged(image, "a file's blocks", l->position);
	}
	l->position += *header & ~STORED_PLAIN;
	return 0;
}

/* Begin at block `number`. */
static int list_open(struct list *l, struct image *image, const struct inode *inode, uint64_t number)
{
	uint64_t distance = STEP_BLOCKS * (1 + inode->file.blocks / (STEP_BLOCKS * STEPS_MAX));
	struct step step = recall(image, inode, number, distance);
	uint32_t header;

	l->position = step.position;
	if (cursor_open(&l->cursor, image, &image->inodes, step.place))
		return -EIO;
	while (step.number < number) {
		if (list_next(l, &header))
			return -EIO;
		if (++step.number % distance == 0) {
			step.position = l->position;
			step.place = cursor_place(&l->cursor);
			keep(image, &step);
		}
	}
	return 0;
}

/* ---- Reading ---- */

/* Copy `size` bytes from `offset` of a block, which must have at least `least` and at most `most` bytes. */
static int copy(struct image *image, uint64_t position, uint32_t header, size_t least, size_t most, size_t offset,
		size_t size, char *to)
{
	struct block *b = cache_hold(&image->data, image, position, header);
	int failed = 0;

	if (!b)
		return -EIO;
	if (b->size < least || b->size > most)
		failed = damaged(image, "size of a data block's contents", position);
	else
		memcpy(to, b->data + offset, size);
	cache_release(b);
	return failed;
}

static int read_tail(struct image *image, const struct inode *inode, size_t offset, size_t size, char *to)
{
	uint8_t entry[16];
	size_t begin = inode->file.fragment_offset, end = begin + inode->size % image->block_size;

	if (table_read(image, &image->fragments, inode->file.fragment, entry))
		return -EIO;
	return copy(image, le64(entry), le32(entry + 8), end, image->block_size, begin + offset, size, to);
}

static int read_block(struct image *image, const struct inode *inode, struct list *l, uint64_t number,
		      size_t offset, size_t size, char *to)
{
	uint64_t left = inode->size - number * image->block_size, position = l->position;
	size_t whole = left < image->block_size ? left : image->block_size;
	uint32_t header;

	if (list_next(l, &header))
		return -EIO;
	if (header)
		return copy(image, position, header, whole, whole, offset, size, to);
	memset(to, 0, size); /* a hole */
	return 0;
}

ssize_t blocks_read(struct image *image, const struct inode *inode, uint64_t start, size_t size, char *to)
{
	uint64_t number = start / image->block_size;
	size_t offset = start % image->block_size, done = 0;
	struct list l = { .cursor.block = NULL };
	int failed = 0;

	if (start >= inode->size)
		return 0;
	if (size > inode->size - start)
		size = inode->size - start;
	if (number < inode->file.blocks && list_open(&l, image, inode, number))
		return -EIO;
	for (; !failed && done < size; number++, offset = 0) {
		size_t n = image->block_size - offset;

		if (n > size - done)
			n = size - done;
		if (number < inode->file.blocks)
			failed = read_block(image, inode, &l, number, offset, n, to + done);
		else
			failed = read_tail(image, inode, offset, n, to + done);
		done += n;
	}
	cursor_close(&l.cursor);
	return failed ? failed : (ssize_t)done;
}
