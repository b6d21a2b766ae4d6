/* SPDX-License-Identifier: Apache-2.0 */
/* Blocks of the image, inflated once and shared by all threads.
 *
 * A block doesn't change once it is loaded: who holds it reads it with no lock.
 * Each set of blocks has a lock of its own, held for the search only.
 */
#ifndef CACHE_H
#define CACHE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct image;

/* A test can keep the blocks apart, and see to it that nobody reads what isn't loaded. */
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
	/* What it is: a block has the same position and header whoever asks for it. */
	uint64_t position;
	uint32_t header;
	/* What loading it finds: its bytes, and how many of the image they are. */
	uint32_t size;
	uint32_t stored;
	uint8_t *data;
};

/* Load a block's data, with room for the cache's `bytes`. 0, or -EIO. */
typedef int block_loader(struct image *image, struct block *block);

struct cache {
	block_loader *load;
	unsigned int sets, ways;
	size_t bytes; /* the most that a block may have */
	struct set *set;
	struct block *blocks;
	uint8_t *data;
};

/* `sets` is a power of two. Each has as many `ways` as asked for, or more: so that there is always a block that
 * nobody holds, though all threads hold as many as they ever do at once (`held`, of all), and load one.
 * The data's memory is taken as blocks are first used. */
bool cache_init(struct cache *cache, block_loader *load, unsigned int sets, unsigned int ways, unsigned int held,
		size_t bytes);
void cache_free(struct cache *cache);

/* Return a block, and keep it; NULL if it can't be read. */
struct block *cache_hold(struct cache *cache, struct image *image, uint64_t position, uint32_t header);
void cache_let_go(struct block *block);

#endif
