/* SPDX-License-Identifier: Apache-2.0 */
/* The SquashFS reader, and the answers that are made of what it reads, on hostile images.
 *
 *   small-squashfs RUNS SEED IMAGE...         run the images, then RUNS cases made of them
 *   small-squashfs write DIRECTORY FIRST COUNT SEED IMAGE...      write some of these cases, as DIRECTORY/NUMBER
 *
 * A case is SEED and its number, nothing else. It is made by setting fields of
 * an image to values that matter: which bytes are fields is seen by watching the
 * reader. With FUZZ_THREADS, that many ask at once.
 */
#include <errno.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../../spank/ch-squashfuse_ll/answers.h"

/* Of the reader only. */
#undef pread
#undef malloc
#undef calloc
#undef free

#if defined(__has_feature)
#if __has_feature(memory_sanitizer)
#include <sanitizer/msan_interface.h>
#define HAVE_MSAN
#endif
#if __has_feature(address_sanitizer)
#define HAVE_ASAN
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(HAVE_ASAN)
#include <sanitizer/asan_interface.h>
#define POISON(at, size) __asan_poison_memory_region(at, size)
#define UNPOISON(at, size) __asan_unpoison_memory_region(at, size)
#elif defined(HAVE_MSAN)
#define POISON(at, size) __msan_poison(at, size)
#define UNPOISON(at, size) (void)(at), (void)(size)
#else
#define POISON(at, size) (void)(at), (void)(size)
#define UNPOISON(at, size) (void)(at), (void)(size)
#endif

#define IMAGE_MAX (1 << 20)
#define SIZE_MIN 200
/* The requests and the memory of a case; the reader itself takes 2 MiB for metadata and at least 4 for blocks. */
#define REQUESTS 160
#define NODES 64
#define SECONDS_MAX 2
#define MEMORY_MAX (8 << 20)
#define MEMORY_MAX_THREAD (3 << 20)
#define FIELDS_MAX 60000
#define SUPER_FIELDS 22 /* with those of the attributes' header */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned int seed);

static struct image image;
static const uint8_t *bytes;
static size_t byte_count;

static struct fields {
	size_t count;
	struct field {
		uint32_t at;
		uint8_t size;
	} field[FIELDS_MAX];
	uint8_t seen[IMAGE_MAX];
} *recording;

static void __attribute__((noreturn)) fail(const char *what)
{
	fprintf(stderr, "fuzz_squashfs: %s\n", what);
	abort();
}

static uint32_t dice(uint64_t *state, uint32_t sides)
{
	*state = *state * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(*state >> 33) % sides;
}

/* ---- What the reader calls ---- */

ssize_t fuzz_pread(int fd, void *to, size_t size, off_t offset)
{
	size_t there = (size_t)offset < byte_count ? byte_count - offset : 0;

	(void)fd;
	if (offset < 0)
		fail("a negative offset");
	if (there > size)
		there = size;
	memcpy(to, bytes + offset, there);
	return there;
}

int damaged(struct image *damaged_image, const char *what, uint64_t position)
{
	(void)damaged_image, (void)what, (void)position;
	return -EIO;
}

static size_t live;
static int thread_count = 1;

static void *count(void *memory, size_t size)
{
	if (__atomic_add_fetch(&live, size, __ATOMIC_RELAXED) >
	    MEMORY_MAX + (size_t)thread_count * MEMORY_MAX_THREAD)
		fail("too much memory");
	*(size_t *)memory = size;
	return (char *)memory + 16;
}

/* Keep the caches' memory: every case asks for it, and it is too large to be allocated each time. */
static struct {
	void *memory;
	size_t size;
	bool used;
} kept[2];

void *fuzz_malloc(size_t size)
{
	void *memory;

	for (int i = 0; size > 1 << 20 && i < 2; i++) {
		if (kept[i].used)
			continue;
		if (kept[i].size < size) {
			free(kept[i].memory);
			kept[i].memory = malloc(size + 16);
			kept[i].size = size;
		}
		kept[i].used = true;
		return count(kept[i].memory, size);
	}
	return (memory = malloc(size + 16)) ? count(memory, size) : NULL;
}

void *fuzz_calloc(size_t number, size_t size)
{
	void *memory = fuzz_malloc(number * size);

	return memory ? memset(memory, 0, number * size) : NULL;
}

void fuzz_free(void *memory)
{
	char *start = memory;
	size_t size;

	if (!memory)
		return;
	start -= 16;
	size = *(size_t *)start;
	__atomic_sub_fetch(&live, size, __ATOMIC_RELAXED);
	for (int i = 0; i < 2; i++)
		if (kept[i].memory == start) {
			UNPOISON(memory, size);
			kept[i].used = false;
			return;
		}
	free(start);
}

void fuzz_loading(uint8_t *data, size_t size)
{
	UNPOISON(data, size);
#ifdef HAVE_MSAN
	POISON(data, size);
#endif
	POISON(data + size, BLOCK_GAP);
}

static void record(uint64_t at, size_t size)
{
	if (at + size > byte_count || recording->seen[at] == size || recording->count == FIELDS_MAX)
		return;
	recording->seen[at] = size;
	recording->field[recording->count++] = (struct field){ at, size };
}

void fuzz_loaded(uint8_t *data, size_t size, size_t used, uint64_t position)
{
	POISON(data + used, size - used);
	if (recording && size == METADATA_SIZE && used)
		record(position, 2);
}

/* Where in the image is what the reader looks at? In a block that is stored plainly. */
void fuzz_field(const uint8_t *at, size_t size)
{
	struct cache *cache = &image.metadata;
	size_t stride = METADATA_SIZE + BLOCK_GAP;
	const struct block *b;
	uint64_t position;

	if (!recording || !cache->data || at < cache->data || at >= cache->data + cache->sets * cache->ways * stride)
		return;
	b = cache->blocks + (at - cache->data) / stride;
	if (b->header == 0 && b->stored != b->size + 2)
		return;
	position = b->position + (b->header == 0 ? 2 : 0) + (at - b->data);
	record(position, size);
}

#ifdef HAVE_MSAN
/* The compression libraries are not built for this sanitizer. */
ssize_t __real_decompress(int compression, const uint8_t *from, size_t size, uint8_t *to, size_t room);
ssize_t __wrap_decompress(int compression, const uint8_t *from, size_t size, uint8_t *to, size_t room)
{
	ssize_t n;

	if (compression == LZO)
		return __real_decompress(compression, from, size, to, room);
	__msan_scoped_disable_interceptor_checks();
	n = __real_decompress(compression, from, size, to, room);
	__msan_scoped_enable_interceptor_checks();
	__msan_unpoison(&n, sizeof(n));
	if (n > 0)
		__msan_unpoison(to, n);
	return n;
}
#endif

/* ---- A kernel that asks about everything ---- */

struct kernel {
	uint64_t state;
	int left; /* requests */
	size_t node_count;
	uint64_t nodes[NODES];
	struct request r;
	char reply[REPLY_BYTES];
};

static ssize_t ask(struct kernel *k, uint32_t opcode, uint64_t node, const void *body, size_t size)
{
	ssize_t n;

	k->left--;
	k->r.head.opcode = opcode;
	k->r.head.nodeid = node;
	memcpy(k->r.body, body, size);
	UNPOISON(k->reply, sizeof(k->reply));
#ifdef HAVE_MSAN
	POISON(k->reply, sizeof(k->reply));
#endif
	n = answer(&image, &k->r, k->reply);
	if (n > REPLY_BYTES)
		fail("an answer that is too long");
	if (n < 0 && n != -EIO && n != -ENOTDIR && n != -EINVAL && n != -ENODATA && n != -ERANGE && n != -ENOSYS)
		fail("an error that there isn't");
#ifdef HAVE_MSAN
	if (n > 0)
		__msan_check_mem_is_initialized(k->reply, n);
#endif
	return n;
}

static void add_node(struct kernel *k, uint64_t node)
{
	if (node == FUSE_ROOT_ID || !node)
		return;
	if (k->node_count < NODES)
		k->nodes[k->node_count++] = node;
	else
		k->nodes[dice(&k->state, NODES)] = node;
}

static void look_up(struct kernel *k, uint64_t node, const char *name, size_t length)
{
	const struct fuse_entry_out *out = (const struct fuse_entry_out *)k->reply;
	char body[NAME_LENGTH_MAX + 2] = "";

	memcpy(body, name, length);
	body[length] = '\0';
	if (ask(k, FUSE_LOOKUP, node, body, length + 1) == sizeof(*out))
		add_node(k, out->nodeid);
}

/* The entries of a reply have names, and each comes after the one before. */
static void list(struct kernel *k, uint64_t node, bool plus, uint32_t size)
{
	struct fuse_read_in in = { .size = size };
	char name[NAME_LENGTH_MAX];
	size_t name_length = 0, before = plus ? sizeof(struct fuse_entry_out) : 0, seen = 0;
	ssize_t n;

	while (k->left > 0 && (n = ask(k, plus ? FUSE_READDIRPLUS : FUSE_READDIR, node, &in, sizeof(in))) > 0) {
		uint64_t last = in.offset;

		if ((uint32_t)n > size)
			fail("a listing that is too long");
		for (ssize_t at = 0; at < n;) {
			const struct fuse_dirent *d = (const struct fuse_dirent *)(k->reply + at + before);

			if (d->off <= last || !d->namelen || d->namelen > NAME_LENGTH_MAX ||
			    memchr(d->name, '/', d->namelen) || memchr(d->name, '\0', d->namelen) ||
			    at + before + sizeof(*d) + d->namelen > (size_t)n)
				fail("a listing that makes no sense");
			last = d->off;
			if (plus)
				add_node(k, ((const struct fuse_entry_out *)(k->reply + at))->nodeid);
			if (!dice(&k->state, ++seen)) {
				name_length = d->namelen;
				memcpy(name, d->name, name_length);
			}
			at += FUSE_DIRENT_ALIGN(before + sizeof(*d) + d->namelen);
		}
		in.offset = last;
		if (!dice(&k->state, 4)) /* as somebody who has been there before */
			in.offset += dice(&k->state, 5000);
	}
	if (!name_length)
		return;
	look_up(k, node, name, name_length);
	name[name_length - 1]++;
	look_up(k, node, name, name_length);
}

static void ask_xattrs(struct kernel *k, uint64_t node)
{
	struct fuse_getxattr_in in = { .size = dice(&k->state, 3) ? 65536 : dice(&k->state, 100) };
	char body[sizeof(in) + 300], name[256] = "security.capability";
	ssize_t n = ask(k, FUSE_LISTXATTR, node, &in, sizeof(in));

	if (n > (ssize_t)in.size && in.size)
		fail("more attributes than there is room for");
	for (ssize_t at = 0; in.size && at < n; at += strlen(k->reply + at) + 1)
		if (!dice(&k->state, 3) && strlen(k->reply + at) < sizeof(name)) {
			strcpy(name, k->reply + at);
			break;
		}
	in.size = dice(&k->state, 3) ? 65536 : dice(&k->state, 100);
	memcpy(body, &in, sizeof(in));
	strcpy(body + sizeof(in), name);
	if (ask(k, FUSE_GETXATTR, node, body, sizeof(in) + strlen(name) + 1) > (ssize_t)in.size && in.size)
		fail("an attribute that is longer than there is room for");
}

static void ask_contents(struct kernel *k, uint64_t node, uint64_t size)
{
	uint64_t places[] = { 0, size / 2, size - 1, size ? ((uint64_t)dice(&k->state, 1u << 31) << 20 | 77) % size : 0 };

	for (int i = 0; i < 4 && k->left > 0; i++) {
		struct fuse_read_in in = { .offset = places[i], .size = dice(&k->state, 2) ? 131072 : 5000 };

		if (ask(k, FUSE_READ, node, &in, sizeof(in)) > (ssize_t)in.size)
			fail("more was read than was asked for");
	}
}

static void explore(struct kernel *k)
{
	k->nodes[k->node_count++] = FUSE_ROOT_ID;
	while (k->node_count && k->left > 0) {
		const struct fuse_attr_out *out = (const struct fuse_attr_out *)k->reply;
		size_t which = dice(&k->state, k->node_count);
		uint64_t node = k->nodes[which];
		struct fuse_attr attr;
		bool plus;

		k->nodes[which] = k->nodes[--k->node_count];
		if (ask(k, FUSE_GETATTR, node, "", 0) != sizeof(*out))
			continue;
		attr = out->attr;
		switch (attr.mode & S_IFMT) {
		case S_IFDIR:
			plus = dice(&k->state, 2);
			list(k, node, plus, dice(&k->state, 2) ? 4096 : 32768);
			break;
		case S_IFREG:
			ask_contents(k, node, attr.size);
			break;
		case S_IFLNK:
			ask(k, FUSE_READLINK, node, "", 0);
			break;
		}
		if (!dice(&k->state, 3))
			ask_xattrs(k, node);
		if (!dice(&k->state, 9)) /* what doesn't fit */
			ask(k, (uint32_t[]){ FUSE_READLINK, FUSE_READ, FUSE_READDIR, FUSE_STATFS }[dice(&k->state, 4)], node,
			    "", 0);
	}
}

static void explore_from(uint64_t seed)
{
	static _Thread_local struct kernel k;

	k.state = seed;
	k.left = REQUESTS;
	k.node_count = 0;
	explore(&k);
}

/* Further threads live as long as the program, because the reader keeps memory for each. */
static pthread_barrier_t begins, ends;
static uint64_t shared_seed;

static void *explore_each(void *number)
{
	for (;;) {
		pthread_barrier_wait(&begins);
		explore_from(shared_seed + (uintptr_t)number);
		pthread_barrier_wait(&ends);
	}
	return NULL;
}

static void explore_together(uint64_t seed)
{
	static bool begun;
	pthread_t thread;

	if (thread_count > 1 && !begun) {
		pthread_barrier_init(&begins, NULL, thread_count);
		pthread_barrier_init(&ends, NULL, thread_count);
		for (intptr_t i = 1; i < thread_count; i++)
			if (pthread_create(&thread, NULL, explore_each, (void *)i))
				fail("no threads");
		begun = true;
	}
	shared_seed = seed;
	if (thread_count > 1)
		pthread_barrier_wait(&begins);
	explore_from(seed);
	if (thread_count > 1)
		pthread_barrier_wait(&ends);
}

static void nothing_is_held(const struct cache *cache)
{
	for (unsigned int i = 0; i < cache->sets * cache->ways; i++)
		if (cache->blocks[i].users || cache->blocks[i].state == LOADING)
			fail("a block is still held");
}

static bool run(const uint8_t *data, size_t size, uint64_t seed)
{
	struct timespec begin, end;
	char why[200] = "";
	bool opened;

	bytes = data;
	byte_count = size;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
	memset(&image, 0, sizeof(image));
	opened = image_open(&image, -1, 0, size, thread_count, why, sizeof(why));
	if (opened == (*why != 0))
		fail("an image that isn't opened without a reason, or with one");
	if (opened)
		explore_together(seed);
	if (opened)
		nothing_is_held(&image.metadata), nothing_is_held(&image.data);
	image_close(&image);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
	if (end.tv_sec - begin.tv_sec > SECONDS_MAX * thread_count)
		fail("too slow");
	return opened;
}

/* ---- Cases ---- */

static uint64_t get(const uint8_t *p, size_t size)
{
	uint64_t value = 0;

	memcpy(&value, p, size);
	return value;
}

static uint64_t new_value(const uint8_t *data, size_t size, const struct fields *f, struct field field, uint64_t *state)
{
	static const uint64_t edges[] = {
		0, 1, 2, 3, 7, 8, 13, 0x7f, 0x80, 0xff, 0x100, 0x101, 0x7fff, 0x8000, 0x8001, 0xffff, 0x10000, 0xffffff,
		0x1000000, 0x1000001, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x7fffffffffffffff,
		0x8000000000000000, 0xfffffffffffffffe, 0xffffffffffffffff, 4095, 4096, 4097, 8191, 8192, 8193, 0xa000, 131072,
		1 << 20, (1 << 20) + 1, (1 << 24) + 4096, (1 << 24) + 4097,
	};
	uint64_t value = get(data + field.at, field.size);
	struct field other = f->field[dice(state, f->count)];

	switch (dice(state, 8)) {
	case 0:
	case 1:
		return edges[dice(state, sizeof(edges) / sizeof(*edges))];
	case 2:
		return value + 1 + dice(state, 16);
	case 3:
		return value - 1 - dice(state, 16);
	case 4:
		return value ^ 1ull << dice(state, field.size * 8);
	case 5:
		return get(data + other.at, other.size);
	case 6:
		return dice(state, size + 1);
	default:
		return dice(state, 2) ? value * 2 : ~value;
	}
}

/* Change the image at `data`; return its new size. */
static size_t mutate(uint8_t *data, size_t size, const struct fields *f, uint64_t *state)
{
	uint32_t times = 1 + dice(state, 1 + dice(state, 10));

	while (times-- && size >= SIZE_MIN) {
		uint32_t which = dice(state, f->count);
		struct field field;
		uint64_t value;
		size_t from, to, n;

		/* Few fields are in the superblock, and most changes to them end the case immediately: change them less often. */
		if (which < SUPER_FIELDS && dice(state, 8))
			which = dice(state, f->count);
		field = f->field[which];
		/* If the metadata is compressed, few fields are known. */
		switch (dice(state, f->count < 100 ? 5 : 24)) {
		case 0:
			to = dice(state, size);
			data[to] = dice(state, 256);
			break;
		case 1:
			from = dice(state, size), to = dice(state, size), n = dice(state, 300);
			if (from + n <= size && to + n <= size)
				memmove(data + to, data + from, n);
			break;
		case 2:
			if (!dice(state, 4))
				size -= dice(state, size / 8 + 1);
			break;
		case 3:
			if (!dice(state, 4))
				field = f->field[dice(state, f->count < SUPER_FIELDS ? f->count : SUPER_FIELDS)];
			/* fall through */
		default:
			if (field.at + field.size > size)
				break;
			value = new_value(data, size, f, field, state);
			memcpy(data + field.at, &value, field.size);
		}
	}
	return size;
}

/* Find an image's fields by letting the reader read it; those of the superblock come first. */
static void find_fields(struct fields *f, const uint8_t *data, size_t size, int runs)
{
	static const struct field super[] = {
		{ 0, 4 }, { 4, 4 }, { 8, 4 }, { 12, 4 }, { 16, 4 }, { 20, 2 }, { 22, 2 }, { 24, 2 }, { 26, 2 },
		{ 28, 2 }, { 30, 2 }, { 32, 8 }, { 40, 8 }, { 48, 8 }, { 56, 8 }, { 64, 8 }, { 72, 8 }, { 80, 8 }, { 88, 8 },
	};
	uint64_t xattrs;

	memset(f, 0, sizeof(*f));
	if (size < SIZE_MIN)
		return;
	bytes = data;
	byte_count = size;
	recording = f;
	for (size_t i = 0; i < sizeof(super) / sizeof(*super); i++)
		record(super[i].at, super[i].size);
	xattrs = get(data + 56, 8);
	if (xattrs <= size - 16)
		record(xattrs, 8), record(xattrs + 8, 4), record(xattrs + 12, 4);
	for (int i = 0; i < runs; i++)
		run(data, size, i);
	recording = NULL;
}

#ifdef LIBFUZZER
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned int seed)
{
	static struct fields f;
	static size_t last;
	uint64_t state = seed;

	/* After a few changes, most fields are still at the same places. */
	if (size != last || !dice(&state, 32)) {
		find_fields(&f, data, size, 4);
		last = size;
	}
	return f.count ? mutate(data, size, &f, &state) : LLVMFuzzerMutate(data, size, max);
}
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size <= IMAGE_MAX)
		run(data, size, 1);
	return 0;
}

#ifndef LIBFUZZER

struct seed {
	const char *path;
	uint8_t *data;
	size_t size;
	struct fields fields;
};

static long current = -1;

#ifdef HAVE_ASAN
#define DEATH __sanitizer_set_death_callback
#elif defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define DEATH __sanitizer_set_death_callback
#endif
#ifdef DEATH
static void tell(void)
{
	fprintf(stderr, "fuzz_squashfs: case %ld\n", current);
}
#endif

static void load_seed(struct seed *s, const char *path)
{
	FILE *file = fopen(path, "rb");

	s->path = path;
	s->data = malloc(IMAGE_MAX);
	if (!file || !s->data || !(s->size = fread(s->data, 1, IMAGE_MAX, file)) || fgetc(file) != EOF) {
		fprintf(stderr, "fuzz_squashfs: %s: can't be read, or is too large\n", path);
		exit(2);
	}
	fclose(file);
	find_fields(&s->fields, s->data, s->size, 60);
}

static size_t make_case(const struct seed *seeds, int seed_count, uint64_t seed, long number, uint8_t *to)
{
	uint64_t state = (seed * 0x9e3779b97f4a7c15 + number) * 0xbf58476d1ce4e5b9 + 1;
	const struct seed *s;

	for (int i = 0; i < 4; i++)
		dice(&state, 2);
	s = seeds + dice(&state, seed_count);
	memcpy(to, s->data, s->size);
	return s->fields.count ? mutate(to, s->size, &s->fields, &state) : s->size;
}

static void write_case(const char *directory, const uint8_t *data, size_t size)
{
	char path[4096];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%ld", directory, current);
	file = fopen(path, "wb");
	if (!file || fwrite(data, 1, size, file) != size || fclose(file)) {
		perror(path);
		exit(2);
	}
}

int main(int argc, char **argv)
{
	static uint8_t data[IMAGE_MAX];
	bool writing = argc > 6 && !strcmp(argv[1], "write");
	char **rest = argv + (writing ? 5 : 2);
	int seed_count = argv + argc - rest - 1;
	const char *threads = getenv("FUZZ_THREADS");
	struct seed *seeds;
	long runs, opened = 0, seeds_opened = 0;
	uint64_t seed;
	size_t size;

	if (argc < 4)
		return 2;
#ifdef DEATH
	DEATH(tell);
#endif
	seeds = calloc(seed_count, sizeof(*seeds));
	runs = atol(rest[-1]);
	seed = strtoull(rest[0], NULL, 10);
	for (int i = 0; i < seed_count; i++)
		load_seed(seeds + i, rest[1 + i]);
	if (writing) {
		current = atol(rest[-2]);
		for (runs += current; current < runs; current++) {
			size = make_case(seeds, seed_count, seed, current, data);
			write_case(argv[2], data, size);
		}
		runs = current = opened = 0;
	}
	if (threads)
		thread_count = atoi(threads) < 8 ? atoi(threads) : 8;
	for (int i = 0; i < seed_count; i++)
		seeds_opened += run(seeds[i].data, seeds[i].size, i);
	for (current = 0; current < runs; current++) {
		size = make_case(seeds, seed_count, seed, current, data);
		opened += run(data, size, current);
	}
	printf("%ld\n%ld\n%ld\n", runs + seed_count, opened, seeds_opened);
	for (int i = 0; i < seed_count; i++)
		free(seeds[i].data);
	free(seeds);
	return 0;
}

#endif
