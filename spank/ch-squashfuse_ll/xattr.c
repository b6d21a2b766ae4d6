/* SPDX-License-Identifier: Apache-2.0 */
/* Reads extended attributes. A value may be elsewhere, and shared by several inodes. */
#include <errno.h>
#include <string.h>

#include "image.h"

#define VALUE_ELSEWHERE 0x100
/* Linux's own limits. */
#define NAME_MAX_LENGTH 255
#define NAMES_MAX (64 << 10)
#define VALUE_MAX (64 << 10)

static const struct {
	const char *text;
	size_t length;
} prefixes[] = { { "user.", 5 }, { "trusted.", 8 }, { "security.", 9 } };

#define TRUSTED 1

/* Goes through an inode's attributes in order. */
struct attributes {
	struct cursor cursor;
	uint32_t left;
	size_t names; /* bytes of all so far */
	unsigned int type;
	uint32_t length;
	const uint8_t *name; /* without its prefix */
	uint8_t scratch[NAME_MAX_LENGTH];
};

static struct place place_of(const struct image *image, uint64_t reference)
{
	return (struct place){ image->xattrs.start + (reference >> 16), reference & 0xffff };
}

static int spoilt(struct attributes *a, const char *what)
{
	uint64_t position = a->cursor.block->position;

	cursor_close(&a->cursor);
	return damaged(a->cursor.image, what, position);
}

static int begin(struct attributes *a, struct image *image, const struct inode *inode)
{
	uint8_t entry[16];

	a->cursor.block = NULL;
	a->left = 0;
	a->names = 0;
	if (inode->xattrs == NO_INDEX)
		return 0;
	if (table_read(image, &image->xattr_ids, inode->xattrs, entry))
		return -EIO;
	a->left = le32(entry + 8);
	return a->left ? cursor_open(&a->cursor, image, &image->xattrs, place_of(image, le64(entry))) : 0;
}

/* Read the next name; its value comes after it. Return 1, 0 at the end, or -EIO. */
static int next(struct attributes *a)
{
	uint8_t scratch[4];
	const uint8_t *p;

	if (!a->left) {
		cursor_close(&a->cursor);
		return 0;
	}
	a->left--;
	if (!(p = cursor_take(&a->cursor, scratch, 4)))
		return -EIO;
	a->type = le16(p);
	a->length = le16(p + 2);
	a->names += a->length + 1;
	/* Linux allows no file more names than this; to read more would only take long. */
	if (!a->length || a->length > NAME_MAX_LENGTH || (a->type & ~VALUE_ELSEWHERE) > 2 || a->names > NAMES_MAX)
		return spoilt(a, "an attribute's name");
	return (a->name = cursor_take(&a->cursor, a->scratch, a->length)) ? 1 : -EIO;
}

static int skip_value(struct attributes *a)
{
	uint8_t scratch[4];
	const uint8_t *p = cursor_take(&a->cursor, scratch, 4);
	uint32_t size;

	if (!p)
		return -EIO;
	size = le32(p);
	return size > VALUE_MAX ? spoilt(a, "an attribute's value") : cursor_read(&a->cursor, NULL, size);
}

/* Copy the next value and close the cursor; return the value's size, or -errno. */
static ssize_t copy_value(struct attributes *a, char *to, size_t room)
{
	struct image *image = a->cursor.image;
	uint8_t scratch[12];
	const uint8_t *p;
	struct place elsewhere;
	uint32_t size;
	int failed;

	if (a->type & VALUE_ELSEWHERE) { /* the value is a place; what is there is not a place again */
		if (!(p = cursor_take(&a->cursor, scratch, 12)))
			return -EIO;
		if (le32(p) != 8)
			return spoilt(a, "an attribute's value");
		elsewhere = place_of(image, le64(p + 4));
		if (cursor_open(&a->cursor, image, &image->xattrs, elsewhere))
			return -EIO;
	}
	if (!(p = cursor_take(&a->cursor, scratch, 4)))
		return -EIO;
	size = le32(p);
	if (size > VALUE_MAX)
		return spoilt(a, "an attribute's value");
	if (size > room) {
		cursor_close(&a->cursor);
		return room ? -ERANGE : (ssize_t)size;
	}
	failed = cursor_read(&a->cursor, to, size);
	cursor_close(&a->cursor);
	return failed ? failed : (ssize_t)size;
}

ssize_t xattr_read(struct image *image, const struct inode *inode, const char *name, char *to, size_t room)
{
	struct attributes a;
	size_t length = strlen(name);
	int found;

	if (begin(&a, image, inode))
		return -EIO;
	while ((found = next(&a)) == 1) {
		unsigned int prefix = a.type & ~VALUE_ELSEWHERE;

		if (length == prefixes[prefix].length + a.length &&
		    !memcmp(name, prefixes[prefix].text, prefixes[prefix].length) &&
		    !memcmp(name + prefixes[prefix].length, a.name, a.length))
			return copy_value(&a, to, room);
		if (skip_value(&a))
			return -EIO;
	}
	return found ? found : -ENODATA;
}

ssize_t xattr_list(struct image *image, const struct inode *inode, char *to, size_t room)
{
	struct attributes a;
	size_t used = 0;
	int found;

	if (begin(&a, image, inode))
		return -EIO;
	while ((found = next(&a)) == 1) {
		unsigned int prefix = a.type & ~VALUE_ELSEWHERE;
		size_t before = prefixes[prefix].length;

		if (memchr(a.name, '\0', a.length))
			return spoilt(&a, "an attribute's name");
		/* As in any file system, trusted attributes are listed only for those who may read them: nobody in a container. */
		if (prefix != TRUSTED) {
			if (room && before + a.length + 1 > room - used) {
				cursor_close(&a.cursor);
				return -ERANGE;
			}
			if (room) {
				memcpy(to + used, prefixes[prefix].text, before);
				memcpy(to + used + before, a.name, a.length);
				to[used + before + a.length] = '\0';
			}
			used += before + a.length + 1;
		}
		if (skip_value(&a))
			return -EIO;
	}
	return found ? found : (ssize_t)used;
}
