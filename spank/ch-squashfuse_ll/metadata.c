/* SPDX-License-Identifier: Apache-2.0 */
/* Reads metadata: tables in blocks of 8 KiB, by a cursor that goes through them. */
#include <errno.h>
#include <string.h>

#include "image.h"

/* 2 MiB: about half of the look-ups in a directory of 100,000 entries find their block in the cache. */
#ifndef METADATA_SETS
#define METADATA_SETS 16
#define METADATA_WAYS 16
#endif
/* Blocks that a thread holds at the same time: of a listing, of its entries' inodes, of their owners. */
#define HELD 3
#define STORED_PLAIN 0x8000
/* How a block is loaded; the cache has this in place of a data block's header. */
enum { INFLATED, RAW };

/* bytes_read() refuses a block that begins or ends beyond the image. No table ends in the image's last eight bytes. */
static int load(struct image *image, struct block *b)
{
	uint8_t stored[2 + METADATA_SIZE];
	uint64_t left = image->size - b->position;
	size_t size = left < sizeof(stored) ? left : sizeof(stored);
	ssize_t inflated;
	uint16_t header;

	if (b->header == RAW) {
		b->size = b->stored = size < METADATA_SIZE ? size : METADATA_SIZE;
		return bytes_read(image, b->data, b->size, b->position);
	}
	if (bytes_read(image, stored, size, b->position))
		return -EIO;
	header = le16(stored);
	b->stored = 2 + (header & ~STORED_PLAIN);
	if (b->stored > size)
		return damaged(image, "size of a metadata block", b->position);
	inflated = b->stored - 2;
	if (header & STORED_PLAIN)
		memcpy(b->data, stored + 2, inflated);
	else
		inflated = decompress(image->compression, stored + 2, inflated, b->data, METADATA_SIZE);
	if (inflated <= 0)
		return damaged(image, "metadata block", b->position);
	b->size = inflated;
	return 0;
}

bool metadata_init(struct image *image, int threads)
{
	return cache_init(&image->metadata, load, METADATA_SETS, METADATA_WAYS, HELD * threads, METADATA_SIZE);
}

int cursor_open(struct cursor *c, struct image *image, const struct table *table, struct place at)
{
	if (c->block && c->table == table && c->block->position == at.block && at.offset <= c->block->size) {
		c->offset = at.offset;
		return 0;
	}
	cursor_close(c);
	*c = (struct cursor){ .image = image, .table = table, .offset = at.offset };
	if (at.block < table->start || at.block >= table->end)
		return damaged(image, table->name, at.block);
	c->block = cache_hold(&image->metadata, image, at.block, INFLATED);
	if (!c->block)
		return -EIO;
	if (c->block->stored <= table->end - at.block && at.offset <= c->block->size)
		return 0;
	cursor_close(c);
	return damaged(image, table->name, at.block);
}

void cursor_close(struct cursor *c)
{
	if (c->block)
		cache_release(c->block);
	c->block = NULL;
}

struct place cursor_place(const struct cursor *c)
{
	return (struct place){ c->block->position, c->offset };
}

static int next_block(struct cursor *c)
{
	return cursor_open(c, c->image, c->table, (struct place){ c->block->position + c->block->stored, 0 });
}

/* The loop ends, because no block is empty. */
int cursor_read(struct cursor *c, void *to, size_t size)
{
	for (uint8_t *at = to; size;) {
		size_t there = c->block ? c->block->size - c->offset : 0;

		if (!c->block) /* never, but gcc -fanalyzer can't tell that damaged() isn't 0 */
			return -EIO;
		if (!there) {
			if (next_block(c))
				return -EIO;
			continue;
		}
		if (there > size)
			there = size;
		if (at) {
			memcpy(at, c->block->data + c->offset, there);
			at += there;
		}
		c->offset += there;
		size -= there;
	}
	return 0;
}

/* The positions of a table's blocks are plain numbers in the image; they are read in units of 8 KiB too. */
static int position_of(struct image *image, const struct table *table, uint32_t block, uint64_t *position)
{
	uint64_t at = table->index + block / (METADATA_SIZE / 8) * (uint64_t)METADATA_SIZE;
	uint32_t offset = block % (METADATA_SIZE / 8) * 8;
	struct block *b = cache_hold(&image->metadata, image, at, RAW);

	if (!b)
		return -EIO;
	*position = le64(b->data + offset);
	cache_release(b);
	return 0;
}

int table_read(struct image *image, const struct table *table, uint32_t number, uint8_t *to)
{
	uint32_t in_block = METADATA_SIZE / table->entry;
	struct place at = { .offset = number % in_block * table->entry };
	struct cursor c = { .block = NULL };
	int failed;

	if (number >= table->count)
		return damaged(image, table->name, number);
	if (position_of(image, table, number / in_block, &at.block) || cursor_open(&c, image, table, at))
		return -EIO;
	failed = cursor_read(&c, to, table->entry);
	cursor_close(&c);
	return failed;
}
