/* SPDX-License-Identifier: Apache-2.0 */
/* Opens an image: reads the superblock, and finds all tables by it. */
#include "../agreement.h"
#include "image.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define SUPERBLOCK_SIZE 96
#define XATTR_HEADER 16

/* Fill in a table that is an array. Return false if the array is empty, if the positions of its blocks do not fit
 * between `index` and `end`, or if the first block is below `start`. */
static bool find_array(struct image *image, struct table *t, const char *name, uint64_t index, uint32_t count,
		       uint32_t entry, uint64_t start, uint64_t end)
{
	uint32_t in_block = METADATA_SIZE / entry;
	uint64_t blocks = ((uint64_t)count + in_block - 1) / in_block;
	uint8_t first[8];

	*t = (struct table){ .name = name, .end = index, .index = index, .count = count, .entry = entry };
	if (!count || index >= end || blocks > (end - index) / sizeof(first) || bytes_read(image, first, sizeof(first), index))
		return false;
	t->start = le64(first);
	return t->start >= start && t->start < t->end;
}

/* Fill in both tables of the attributes, and set `end` to where the tables before them must end. */
static bool find_xattrs(struct image *image, uint64_t at, uint64_t *end)
{
	uint8_t head[XATTR_HEADER];
	uint64_t start;
	uint32_t count;

	if (bytes_read(image, head, sizeof(head), at))
		return false;
	start = le64(head);
	count = le32(head + 8);
	if (!count)
		return true;
	image->has_xattrs = find_array(image, &image->xattr_ids, "table of attributes", at + sizeof(head), count, 16,
				       start, image->size);
	/* The index comes after the header, the blocks before it. */
	image->xattr_ids.end = at;
	image->xattrs = (struct table){ .name = "attributes", .start = start, .end = image->xattr_ids.start };
	*end = start;
	return image->has_xattrs && image->xattr_ids.start < at;
}

/* The tables follow each other, the inodes first: each ends where the next begins. */
static bool find_tables(struct image *image, const uint8_t *super)
{
	uint64_t inodes = le64(super + 64), directories = le64(super + 72), xattrs = le64(super + 56);
	uint32_t fragments = le32(super + 16);
	uint64_t end = image->size;

	if (inodes < SUPERBLOCK_SIZE || inodes >= directories)
		return false;
	if (xattrs != NONE && !find_xattrs(image, xattrs, &end))
		return false;
	if (!find_array(image, &image->ids, "table of users", le64(super + 48), le16(super + 26), 4, directories, end))
		return false;
	end = image->ids.start;
	if (fragments) {
		if (!find_array(image, &image->fragments, "table of fragments", le64(super + 80), fragments, 16,
				directories, end))
			return false;
		end = image->fragments.start;
	}
	image->inodes = (struct table){ .name = "inodes", .start = inodes, .end = directories };
	image->directories = (struct table){ .name = "directories", .start = directories, .end = end };
	return true;
}

bool image_open(struct image *image, int fd, uint64_t offset, uint64_t size, int threads, char *why,
		size_t why_size)
{
	uint8_t super[SUPERBLOCK_SIZE];
	struct inode root;
	uint16_t log;
	const char *name;

	pthread_mutex_init(&image->lock, NULL);
	image->fd = fd;
	image->offset = offset;
	image->size = size > offset ? size - offset : 0;
	if (image->size < sizeof(super) || bytes_read(image, super, sizeof(super), 0) ||
	    memcmp(super, SQUASHFS_MAGIC, strlen(SQUASHFS_MAGIC))) {
		snprintf(why, why_size, "not a SquashFS image");
		return false;
	}
	if (le16(super + 28) != 4 || le16(super + 30) != 0) {
		snprintf(why, why_size, "SquashFS %u.%u: only 4.0 is supported", le16(super + 28), le16(super + 30));
		return false;
	}
	image->compression = le16(super + 20);
	if (!compression_supported(image->compression)) {
		name = compression_name(image->compression);
		snprintf(why, why_size, "the image's compression is not supported: %s (%d)", name ? name : "unknown",
			 image->compression);
		return false;
	}
	if (le64(super + 40) > image->size) {
		snprintf(why, why_size, "the image is truncated: %" PRIu64 " bytes of %" PRIu64, image->size,
			 le64(super + 40));
		return false;
	}
	image->size = le64(super + 40);
	image->inode_count = le32(super + 4);
	image->block_size = le32(super + 12);
	image->root = le64(super + 32);
	log = le16(super + 22);
	if (log > 20 || image->block_size != 1u << log || image->block_size < BLOCK_SIZE_MIN ||
	    !find_tables(image, super)) {
		snprintf(why, why_size, "the image is damaged: its superblock");
		return false;
	}
	if (!metadata_init(image, threads) || !blocks_init(image, threads)) {
		snprintf(why, why_size, "out of memory");
		return false;
	}
	if (inode_read(image, image->root, TYPE_DIRECTORY, &root)) {
		snprintf(why, why_size, "the image is damaged: its root directory");
		return false;
	}
	return true;
}

void image_close(struct image *image)
{
	pthread_mutex_destroy(&image->lock);
	cache_free(&image->metadata);
	cache_free(&image->data);
}
