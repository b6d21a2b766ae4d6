/* SPDX-License-Identifier: Apache-2.0 */
/* A reader of SquashFS 4.0 images that does not trust the image.
 *
 * Each value from the image is checked before it is used: a position against its
 * table, a table against the file, a size against the room for it. No number from
 * the image decides how much memory is allocated, except the block size, which is
 * at most 1 MiB. If a check fails, the request that needed the value fails with
 * EIO, and the first such failure is reported (damaged()).
 *
 * All functions may be called by several threads at the same time.
 */
#ifndef IMAGE_H
#define IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "cache.h"

#define METADATA_SIZE 8192
#define BLOCK_SIZE_MIN 4096
#define BLOCK_SIZE_MAX (1 << 20)
#define NAME_LENGTH_MAX 256
#define NONE UINT64_MAX /* the position of a table that the image lacks */
#define KNOWN_IDS 256
#define RESUMES 16
#define STEPS 1024
#define NO_INDEX UINT32_MAX /* of an inode without a fragment, or without attributes */

/* A fuzzer defines this to learn what is read where. */
#ifndef FIELD
#define FIELD(at, size)
#endif

/* Little-endian numbers, at any address. */
static inline uint16_t le16(const uint8_t *p)
{
	FIELD(p, 2);
	return p[0] | p[1] << 8;
}

static inline uint32_t le32(const uint8_t *p)
{
	FIELD(p, 4);
	return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline uint64_t le64(const uint8_t *p)
{
	FIELD(p, 8);
	return le32(p) | (uint64_t)le32(p + 4) << 32;
}

/* ---- The image: image.c ---- */

/* Metadata blocks from `start` up to `end`. If `entry` is not 0, they are an array of `count` entries of
 * that size, and the positions of its blocks are listed at `index`. */
struct table {
	const char *name;
	uint64_t start, end;
	uint64_t index;
	uint32_t count;
	uint32_t entry;
};

/* A place in a table to which a cursor can be set again. */
struct place {
	uint64_t block; /* its position in the image */
	uint32_t offset;
};

/* Where a listing was interrupted, for the request that continues it: directory.c. */
struct resume {
	uint64_t inode; /* the directory's reference */
	uint32_t position; /* in the listing */
	uint32_t left; /* entries that still belong to the last header */
	uint32_t block, number; /* from that header */
	struct place place;
};

/* Where a block of a long file is: blocks.c. */
struct step {
	uint64_t inode; /* the file's reference; 0 for none */
	uint64_t number;
	uint64_t position;
	struct place place;
};

struct image {
	int fd;
	uint64_t offset; /* of the image in its file */
	uint64_t size; /* of the image, from its superblock; the file is no shorter */
	uint64_t root; /* reference of the root's inode */
	uint32_t inode_count;
	uint32_t block_size;
	int compression;
	bool has_xattrs;
	struct table inodes, directories, fragments, ids, xattr_ids, xattrs;
	struct cache metadata, data;
	/* Caches. */
	uint64_t known_ids[KNOWN_IDS]; /* see inode.c */
	pthread_mutex_t lock; /* of the following: */
	unsigned int resumed;
	struct resume resume[RESUMES];
	struct step steps[STEPS];
};

/* Open the image that begins `offset` bytes into a file of `size`, for up to `threads` threads. `image` is
 * all zeros. Return false, with a message in `why`, if it is no image or its superblock or root is damaged. */
bool image_open(struct image *image, int fd, uint64_t offset, uint64_t size, int threads, char *why,
		size_t why_size);
void image_close(struct image *image);

/* bytes.c: all reads of the file. 0, or -EIO. */
int bytes_read(struct image *image, void *to, size_t size, uint64_t position);

/* Copy entry `number` of an array to `to`. 0, or -EIO. */
int table_read(struct image *image, const struct table *table, uint32_t number, uint8_t *to);

/* report.c: report a damaged place, but only the first one; return -EIO. */
int damaged(struct image *image, const char *what, uint64_t position);

/* ---- Metadata: metadata.c ---- */

/* A reading position in a table, which only moves forward. It holds a block until it is closed. */
struct cursor {
	struct image *image;
	const struct table *table;
	struct block *block;
	uint32_t offset;
};

bool metadata_init(struct image *image, int threads);

/* These return 0 or -EIO; after -EIO the cursor is closed. Set a cursor's block to NULL before it is first opened. An
 * open cursor may be opened again. If `to` is NULL, the bytes are skipped. */
int cursor_open(struct cursor *c, struct image *image, const struct table *table, struct place at);
int cursor_read(struct cursor *c, void *to, size_t size);
void cursor_close(struct cursor *c);
struct place cursor_place(const struct cursor *c);

/* Return the next `size` bytes, in place or, if they are in two blocks, copied to `scratch`. They are valid
 * until the cursor moves on. If there are fewer bytes, close the cursor and return NULL. */
static inline const uint8_t *cursor_take(struct cursor *c, uint8_t *scratch, size_t size)
{
	const uint8_t *at;

	if (!c->block || size > c->block->size - c->offset)
		return cursor_read(c, scratch, size) ? NULL : scratch;
	at = c->block->data + c->offset;
	c->offset += size;
	return at;
}

/* ---- Inodes: inode.c ---- */

enum type { TYPE_DIRECTORY = 1, TYPE_FILE, TYPE_LINK, TYPE_BLOCK, TYPE_CHARACTER, TYPE_FIFO, TYPE_SOCKET };

struct inode {
	uint64_t reference;
	enum type type;
	uint32_t mode; /* type and permissions, as stat has them */
	uint32_t uid, gid;
	uint32_t mtime;
	uint32_t number;
	uint32_t links;
	uint64_t size;
	uint32_t xattrs; /* number of its entry, or NO_INDEX */
	struct place rest; /* where the block list, the directory's index or the link's target is */
	union {
		struct {
			uint64_t start; /* of its first block */
			uint64_t blocks;
			uint32_t fragment; /* or NO_INDEX */
			uint32_t fragment_offset;
		} file;
		struct {
			struct place listing;
			uint32_t parent;
			uint32_t index_count;
		} directory;
		uint32_t device; /* as the kernel encodes it */
	};
};

/* Read the inode of a directory's entry, which must have this `type` (0: any); return 0 or -EIO. The second
 * function is for several in a row: the caller sets the cursor's block to NULL at first, and closes the cursor. */
int inode_read(struct image *image, uint64_t reference, enum type type, struct inode *inode);
int inode_read_next(struct cursor *c, struct image *image, uint64_t reference, enum type type, struct inode *inode);

/* Copy a link's target without a NUL; return its size, or -EIO. */
ssize_t link_read(struct image *image, const struct inode *inode, char *to, size_t room);

/* ---- Directories: directory.c ---- */

struct directory {
	struct cursor cursor;
	uint32_t size; /* of the listing */
	struct resume at, before; /* the current place, and that before the last entry */
	uint8_t scratch[NAME_LENGTH_MAX];
};

struct entry {
	uint64_t reference;
	uint32_t number;
	enum type type;
	uint32_t next; /* where the listing continues */
	uint32_t length;
	const uint8_t *name; /* without a NUL; valid until the next entry is read */
};

/* Begin a listing at 0, or continue one that was interrupted at `position`; return 0 or -EIO. */
int directory_open(struct directory *d, struct image *image, const struct inode *inode, uint32_t position);
/* Read the next entry; return 1, 0 at the end, or -EIO. */
int directory_next(struct directory *d, struct entry *entry);
/* Note that the listing is interrupted before the last entry, and will soon be continued with it. */
void directory_interrupt(const struct directory *d, const struct inode *inode);
void directory_close(struct directory *d);
/* Find an entry by name; return 1 with the entry (whose `name` isn't valid), 0 if there is none, or -EIO. */
int directory_find(struct image *image, const struct inode *inode, const char *name, size_t length,
		   struct entry *entry);

/* ---- Contents: blocks.c ---- */

bool blocks_init(struct image *image, int threads);

/* Read up to `size` bytes of a regular file from `start`; return their number, or -EIO. */
ssize_t blocks_read(struct image *image, const struct inode *inode, uint64_t start, size_t size, char *to);

/* ---- Extended attributes: xattr.c ---- */

/* Copy the value of attribute `name` to `to`; return its size, -ENODATA, -ERANGE if the room is too small, or -EIO.
 * With a room of 0, only return the size. */
ssize_t xattr_read(struct image *image, const struct inode *inode, const char *name, char *to, size_t room);

/* Copy the names of all attributes except trusted ones, each with its NUL; return as above. */
ssize_t xattr_list(struct image *image, const struct inode *inode, char *to, size_t room);

/* ---- Compression: decompress.c, lzo.c ---- */

enum compression { GZIP = 1, LZMA, LZO, XZ, LZ4, ZSTD };

const char *compression_name(int compression); /* NULL if the number is unknown */
bool compression_supported(int compression);

/* Inflate to at most `room` bytes; return their number, or -1. */
ssize_t decompress(int compression, const uint8_t *from, size_t size, uint8_t *to, size_t room);
ssize_t lzo_decompress(const uint8_t *from, size_t size, uint8_t *to, size_t room);

#endif
