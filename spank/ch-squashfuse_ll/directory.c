/* SPDX-License-Identifier: Apache-2.0 */
/* Reads directories: a listing that is sorted by name, and an index if it is long.
 *
 * The listing is a sequence of headers, each with up to 256 entries whose inodes are
 * in the same metadata block. The index has names with the positions of their headers.
 */
#include <errno.h>
#include <string.h>

#include "image.h"

#define HEADER 12
#define ENTRIES_MAX 256
#define ENTRY 8
#define INDEX 12
/* A listing's size counts three bytes for "." and "..", which aren't in it. squashfs-tools-ng 1.0 doesn't count them.
 * So, as in the kernel, no header begins in the last three bytes, but an entry may end there. */
#define DOTS 3

static int spoilt(struct directory *d, const char *what)
{
	uint64_t position = d->cursor.block ? d->cursor.block->position : 0;

	directory_close(d);
	return damaged(d->cursor.image, what, position);
}

/* Return the listing's next bytes; if there are fewer, close it and return NULL. */
static const uint8_t *take(struct directory *d, uint8_t *scratch, size_t size)
{
	if (size > d->size - d->at.position) {
		spoilt(d, "a directory's size");
		return NULL;
	}
	d->at.position += size;
	return cursor_take(&d->cursor, scratch, size);
}

static int compare(const uint8_t *a, size_t a_length, const uint8_t *b, size_t b_length)
{
	int order = memcmp(a, b, a_length < b_length ? a_length : b_length);

	return order ? order : (a_length > b_length) - (a_length < b_length);
}

/* As directory_next(), but without the check of the name. */
static int step(struct directory *d, struct entry *entry)
{
	uint8_t scratch[HEADER];
	const uint8_t *p;

	if (!d->at.left) {
		if (d->size - d->at.position <= DOTS)
			return 0;
		if (!(p = take(d, scratch, HEADER)))
			return -EIO;
		if (le32(p) >= ENTRIES_MAX)
			return spoilt(d, "a directory's header");
		d->at.left = le32(p) + 1;
		d->at.block = le32(p + 4);
		d->at.number = le32(p + 8);
	}
	if (!(p = take(d, scratch, ENTRY)))
		return -EIO;
	d->at.left--;
	entry->reference = (uint64_t)d->at.block << 16 | le16(p);
	entry->number = d->at.number + (int16_t)le16(p + 2);
	entry->type = le16(p + 4);
	entry->length = le16(p + 6) + 1u;
	if (entry->type < TYPE_DIRECTORY || entry->type > TYPE_SOCKET || entry->length > NAME_LENGTH_MAX)
		return spoilt(d, "a directory's entry");
	if (!(entry->name = take(d, d->scratch, entry->length)))
		return -EIO;
	entry->next = d->at.position;
	return 1;
}

static bool is_name(const uint8_t *name, size_t length)
{
	if (name[0] == '.' && (length == 1 || (length == 2 && name[1] == '.')))
		return false;
	return !memchr(name, '/', length) && !memchr(name, '\0', length);
}

int directory_next(struct directory *d, struct entry *entry)
{
	int found;

	d->before = d->at;
	if (d->cursor.block)
		d->before.place = cursor_place(&d->cursor);
	found = step(d, entry);
	if (found != 1)
		return found;
	return is_name(entry->name, entry->length) ? 1 : spoilt(d, "a directory's names");
}

void directory_close(struct directory *d)
{
	cursor_close(&d->cursor);
}

/* Find the last place in the index that is not after `position` and, if `name` is given, not after that. */
static int search_index(struct image *image, const struct inode *inode, uint32_t position, const char *name,
			size_t length, uint32_t *found, struct place *place)
{
	uint8_t scratch[INDEX], name_scratch[NAME_LENGTH_MAX];
	struct cursor c = { .block = NULL };

	if (cursor_open(&c, image, &image->inodes, inode->rest))
		return -EIO;
	for (uint32_t i = 0; i < inode->directory.index_count; i++) {
		const uint8_t *p = cursor_take(&c, scratch, INDEX), *first;
		uint32_t at, block, size;

		if (!p)
			return -EIO;
		at = le32(p);
		block = le32(p + 4);
		size = le32(p + 8) + 1;
		if (size - 1 >= NAME_LENGTH_MAX || at > inode->size) {
			cursor_close(&c);
			return damaged(image, "a directory's index", inode->rest.block);
		}
		if (!(first = cursor_take(&c, name_scratch, size)))
			return -EIO;
		if (at > position || (name && compare(first, size, (const uint8_t *)name, length) > 0))
			break;
		*found = at;
		/* All blocks but the last are full, so the offset in the block follows from that in the listing. */
		place->block = image->directories.start + block;
		place->offset = (inode->directory.listing.offset + at) % METADATA_SIZE;
	}
	cursor_close(&c);
	return 0;
}

static int begin(struct directory *d, struct image *image, const struct inode *inode, uint32_t position,
		 const char *name, size_t length)
{
	struct place place = inode->directory.listing;

	d->cursor = (struct cursor){ .image = image };
	d->at = (struct resume){ 0 };
	d->size = inode->size;
	if (d->size <= DOTS)
		return 0;
	/* Without the index, because it is damaged, the search begins at the first entry and only takes longer. */
	if (inode->directory.index_count && (position || name) &&
	    search_index(image, inode, name ? d->size : position, name, length, &d->at.position, &place)) {
		d->at.position = 0;
		place = inode->directory.listing;
	}
	return cursor_open(&d->cursor, image, &image->directories, place);
}

void directory_interrupt(const struct directory *d, const struct inode *inode)
{
	struct image *image = d->cursor.image;
	struct resume *resume;

	pthread_mutex_lock(&image->lock);
	resume = image->resume + image->resumed++ % RESUMES;
	*resume = d->before;
	resume->inode = inode->reference;
	pthread_mutex_unlock(&image->lock);
}

/* Find the listing that was interrupted at `position`, which isn't 0. */
static bool recall(struct image *image, const struct inode *inode, uint32_t position, struct resume *found)
{
	bool known = false;

	pthread_mutex_lock(&image->lock);
	for (struct resume *r = image->resume; !known && r < image->resume + RESUMES; r++)
		if ((known = r->inode == inode->reference && r->position == position))
			*found = *r;
	pthread_mutex_unlock(&image->lock);
	return known;
}

int directory_open(struct directory *d, struct image *image, const struct inode *inode, uint32_t position)
{
	struct entry entry;
	int found;

	d->cursor.block = NULL;
	if (position && recall(image, inode, position, &d->at)) {
		d->size = inode->size;
		return cursor_open(&d->cursor, image, &image->directories, d->at.place);
	}
	if (begin(d, image, inode, position, NULL, 0))
		return -EIO;
	while (d->at.position < position && (found = step(d, &entry)))
		if (found < 0)
			return found;
	return 0;
}

int directory_find(struct image *image, const struct inode *inode, const char *name, size_t length,
		   struct entry *entry)
{
	struct directory d;
	int found, order = 1;

	if (begin(&d, image, inode, 0, name, length))
		return -EIO;
	while ((found = step(&d, entry)) == 1)
		if ((order = compare(entry->name, entry->length, (const uint8_t *)name, length)) >= 0)
			break;
	directory_close(&d);
	return found == 1 ? !order : found;
}
