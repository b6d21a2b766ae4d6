/* SPDX-License-Identifier: Apache-2.0 */
/* Reads inodes. There are 14 kinds; the last seven are the first seven with more fields. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "image.h"

#define EXTENDED 7
#define HEAD 16
#define TARGET_MAX 65535 /* more than any system takes */

static const struct {
	mode_t format;
	uint8_t size, extended_size; /* of what comes between the head and the place `rest` */
} kinds[] = {
	[TYPE_DIRECTORY] = { S_IFDIR, 16, 24 },
	[TYPE_FILE] = { S_IFREG, 16, 40 },
	[TYPE_LINK] = { S_IFLNK, 8, 8 },
	[TYPE_BLOCK] = { S_IFBLK, 8, 12 },
	[TYPE_CHARACTER] = { S_IFCHR, 8, 12 },
	[TYPE_FIFO] = { S_IFIFO, 4, 8 },
	[TYPE_SOCKET] = { S_IFSOCK, 4, 8 },
};

static void read_directory(struct inode *inode, const uint8_t *p, bool extended)
{
	uint32_t block = extended ? le32(p + 8) : le32(p);

	inode->links = extended ? le32(p) : le32(p + 4);
	inode->size = extended ? le32(p + 4) : le16(p + 8);
	inode->directory.parent = le32(p + 12);
	inode->directory.listing.block = block;
	inode->directory.listing.offset = extended ? le16(p + 18) : le16(p + 10);
	inode->directory.index_count = extended ? le16(p + 16) : 0;
	if (extended)
		inode->xattrs = le32(p + 20);
}

static void read_file(struct inode *inode, const uint8_t *p, bool extended)
{
	inode->file.start = extended ? le64(p) : le32(p);
	inode->size = extended ? le64(p + 8) : le32(p + 12);
	inode->links = extended ? le32(p + 24) : 1;
	inode->file.fragment = extended ? le32(p + 28) : le32(p + 4);
	inode->file.fragment_offset = extended ? le32(p + 32) : le32(p + 8);
	if (extended)
		inode->xattrs = le32(p + 36);
}

/* Whether a file's size, blocks and fragment agree with each other and are possible. */
static bool check_file(const struct image *image, struct inode *inode)
{
	uint64_t tail = inode->size % image->block_size;
	/* Three bytes of the table are 8 KiB at the most, and four of these are a block. */
	uint64_t blocks_max = (image->inodes.end - image->inodes.start) / 3 * (METADATA_SIZE / 4);

	inode->file.blocks = inode->size / image->block_size;
	if (inode->file.fragment == NO_INDEX)
		inode->file.blocks += tail != 0;
	else if (inode->file.fragment >= image->fragments.count ||
		 inode->file.fragment_offset > image->block_size - tail)
		return false;
	return inode->file.blocks <= blocks_max;
}

static int read_kind(struct image *image, struct cursor *c, struct inode *inode, bool extended)
{
	size_t size = extended ? kinds[inode->type].extended_size : kinds[inode->type].size;
	uint8_t scratch[40];
	const uint8_t *p = cursor_take(c, scratch, size);

	if (!p)
		return -EIO;
	switch (inode->type) {
	case TYPE_DIRECTORY:
		read_directory(inode, p, extended);
		inode->directory.listing.block += image->directories.start;
		break;
	case TYPE_FILE:
		read_file(inode, p, extended);
		if (!check_file(image, inode))
			return damaged(image, "a file's inode", c->block->position);
		break;
	case TYPE_LINK:
		inode->links = le32(p);
		inode->size = le32(p + 4);
		if (inode->size > TARGET_MAX)
			return damaged(image, "a link's inode", c->block->position);
		break;
	case TYPE_BLOCK:
	case TYPE_CHARACTER:
		inode->device = le32(p + 4);
		/* fall through */
	default:
		inode->links = le32(p);
		if (extended)
			inode->xattrs = le32(p + size - 4);
	}
	inode->rest = cursor_place(c);
	if (inode->type == TYPE_LINK && extended) { /* the target lies between */
		if (cursor_read(c, NULL, inode->size) || !(p = cursor_take(c, scratch, 4)))
			return -EIO;
		inode->xattrs = le32(p);
	}
	return 0;
}

/* Few images have more than a handful of owners, so the ids are cached by number. A cached id is one 64-bit word,
 * so that it is read and written atomically: the id, the whole number, and a bit that marks it as set. */
static int read_owner(struct image *image, uint16_t number, uint32_t *id)
{
	uint64_t *known = image->known_ids + number % KNOWN_IDS, mark = (1ull << 16 | number) << 32;
	uint64_t found = __atomic_load_n(known, __ATOMIC_RELAXED);
	uint8_t entry[4];

	if (found >> 32 != mark >> 32) {
		if (table_read(image, &image->ids, number, entry))
			return -EIO;
		found = mark | le32(entry);
		__atomic_store_n(known, found, __ATOMIC_RELAXED);
	}
	*id = found;
	return 0;
}

static int read_at(struct image *image, struct cursor *c, enum type wanted, struct inode *inode)
{
	uint8_t scratch[HEAD];
	const uint8_t *p = cursor_take(c, scratch, HEAD);
	uint16_t type, uid, gid;

	if (!p)
		return -EIO;
	type = le16(p);
	inode->mode = le16(p + 2);
	uid = le16(p + 4);
	gid = le16(p + 6);
	inode->mtime = le32(p + 8);
	inode->number = le32(p + 12);
	inode->type = type > EXTENDED ? type - EXTENDED : type;
	if (!type || type > 2 * EXTENDED || (wanted && inode->type != wanted))
		return damaged(image, "an inode's type", c->block->position);
	if (!inode->number || inode->number > image->inode_count)
		return damaged(image, "an inode's number", c->block->position);
	inode->mode = (inode->mode & 07777) | kinds[inode->type].format;
	if (read_kind(image, c, inode, type > EXTENDED))
		return -EIO;
	return read_owner(image, uid, &inode->uid) || read_owner(image, gid, &inode->gid) ? -EIO : 0;
}

int inode_read_next(struct cursor *c, struct image *image, uint64_t reference, enum type type, struct inode *inode)
{
	struct place at = { image->inodes.start + (reference >> 16), reference & 0xffff };

	*inode = (struct inode){ .reference = reference, .xattrs = NO_INDEX };
	return cursor_open(c, image, &image->inodes, at) ? -EIO : read_at(image, c, type, inode);
}

int inode_read(struct image *image, uint64_t reference, enum type type, struct inode *inode)
{
	struct cursor c = { .block = NULL };
	int failed = inode_read_next(&c, image, reference, type, inode);

	cursor_close(&c);
	return failed;
}

ssize_t link_read(struct image *image, const struct inode *inode, char *to, size_t room)
{
	struct cursor c = { .block = NULL };
	int failed;

	if (inode->size > room)
		return damaged(image, "a link that is longer than any", inode->rest.block);
	if (cursor_open(&c, image, &image->inodes, inode->rest))
		return -EIO;
	failed = cursor_read(&c, to, inode->size);
	cursor_close(&c);
	return failed ? failed : (ssize_t)inode->size;
}
