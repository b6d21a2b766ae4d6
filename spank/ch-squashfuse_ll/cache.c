/* SPDX-License-Identifier: Apache-2.0 */
/* A cache of inflated blocks, in sets that each have a lock. */
#include "cache.h"

#include <stdlib.h>

struct set {
	pthread_mutex_t lock;
	pthread_cond_t loaded;
	uint64_t now;
};

bool cache_init(struct cache *cache, block_loader *load, unsigned int sets, unsigned int ways, unsigned int held,
		size_t bytes)
{
	unsigned int count;

	if (ways <= held)
		ways = held + 1;
	count = sets * ways;
	*cache = (struct cache){ .load = load, .sets = sets, .ways = ways, .bytes = bytes };
	cache->set = calloc(sets, sizeof(*cache->set));
	cache->blocks = calloc(count, sizeof(*cache->blocks));
	cache->data = malloc(count * (bytes + BLOCK_GAP));
	if (!cache->set || !cache->blocks || !cache->data)
		return false;
	for (unsigned int i = 0; i < sets; i++) {
		pthread_mutex_init(&cache->set[i].lock, NULL);
		pthread_cond_init(&cache->set[i].loaded, NULL);
	}
	for (unsigned int i = 0; i < count; i++)
		cache->blocks[i].data = cache->data + i * (bytes + BLOCK_GAP);
	return true;
}

void cache_free(struct cache *cache)
{
	for (unsigned int i = 0; cache->set && i < cache->sets; i++) {
		pthread_mutex_destroy(&cache->set[i].lock);
		pthread_cond_destroy(&cache->set[i].loaded);
	}
	free(cache->set);
	free(cache->blocks);
	free(cache->data);
	*cache = (struct cache){ 0 };
}

static int load(const struct cache *cache, struct image *image, struct block *b)
{
	int failed;

	BLOCK_LOADING(b, cache->bytes);
	failed = cache->load(image, b);
	BLOCK_LOADED(b, cache->bytes);
	return failed;
}

static bool is(const struct block *b, uint64_t position, uint32_t header)
{
	return b->state != EMPTY && b->position == position && b->header == header;
}

/* Return the block from its set, or the one to replace: of those that nobody holds, the least recently used. */
static struct block *find(struct block *ways, unsigned int count, uint64_t position, uint32_t header)
{
	struct block *oldest = NULL;

	for (struct block *b = ways; b < ways + count; b++) {
		if (is(b, position, header))
			return b;
		/* Pairs with the release in cache_release(). */
		if (!__atomic_load_n(&b->users, __ATOMIC_ACQUIRE) && (!oldest || b->used < oldest->used))
			oldest = b;
	}
	return oldest;
}

struct block *cache_hold(struct cache *cache, struct image *image, uint64_t position, uint32_t header)
{
	unsigned int number = position * 0x9e3779b97f4a7c15 >> 32 & (cache->sets - 1);
	struct block *ways = cache->blocks + number * cache->ways, *b;
	struct set *set = cache->set + number;
	int failed;

	pthread_mutex_lock(&set->lock);
	while ((b = find(ways, cache->ways, position, header)) && b->state == LOADING)
		pthread_cond_wait(&set->loaded, &set->lock);
	if (!b) /* see cache_init() */
		abort();
	b->used = ++set->now;
	__atomic_add_fetch(&b->users, 1, __ATOMIC_RELAXED);
	if (is(b, position, header)) {
		pthread_mutex_unlock(&set->lock);
		return b;
	}
	b->state = LOADING;
	b->position = position;
	b->header = header;
	pthread_mutex_unlock(&set->lock);
	failed = load(cache, image, b);
	pthread_mutex_lock(&set->lock);
	b->state = failed ? EMPTY : READY;
	if (failed) {
		b->used = 0;
		b->users--;
	}
	pthread_cond_broadcast(&set->loaded);
	pthread_mutex_unlock(&set->lock);
	return failed ? NULL : b;
}

void cache_release(struct block *b)
{
	__atomic_sub_fetch(&b->users, 1, __ATOMIC_RELEASE);
}
