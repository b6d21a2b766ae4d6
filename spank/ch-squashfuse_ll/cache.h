/* SPDX-License-Identifier: Apache-2.0 */
/* Blocks of the image, inflated once and shared by all threads.
 *
 * A loaded block doesn't change: a thread that holds it reads it without a lock.
 * Each set of blocks has a lock of its own, which is held for the search only.
 */
#ifndef CACHE_H
#define CACHE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct image;

/* A test defines these to keep the blocks apart, and to detect reads of a block that is not loaded. */
#ifndef BLOCK_GAP
#define BLOCK_GAP 0
#define BLOCK_LOADING(block, bytes)
#define BLOCK_LOADED(block, bytes)
#endif

enum block_state { EMPTY, LOADING, READY };

struct block {
	enum block_state state;
	int users;
	uint64_t used;
	/* The block's identity. */
	uint64_t position;
	uint32_t header;
	/* Set by the loader: the bytes, their number, and how many bytes of the image they were. */
	uint32_t size;
	uint32_t stored;
	uint8_t *data;
};

/* Load a block's data, with room for the cache's `bytes`; return 0 or -EIO. */
typedef int block_loader(struct image *image, struct block *block);

struct cache {
	block_loader *load;
	unsigned int sets, ways;
	size_t bytes; /* the most that a block may have */
	struct set *set;
	struct block *blocks;
	uint8_t *data;
};

/* `sets` is a power of two. Each set has at least `ways` blocks, and more than `held`, which is how many blocks all
 * threads together hold at most: so there is always one to replace. A block takes memory when it is first used. */
bool cache_init(struct cache *cache, block_loader *load, unsigned int sets, unsigned int ways, unsigned int held,
		size_t bytes);
void cache_free(struct cache *cache);

/* Return a block, which stays until it is released; NULL if it can't be read. */
struct block *cache_hold(struct cache *cache, struct image *image, uint64_t position, uint32_t header);
void cache_release(struct block *block);

#endif
