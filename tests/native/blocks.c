/* SPDX-License-Identifier: Apache-2.0 */
/* The SquashFS server's caches under several threads, which are stopped at critical places.
 *
 *   blocks IMAGE DIRECTORY NAME...
 *
 * DIRECTORY is what IMAGE was made of; the first NAME has no holes and more
 * blocks than the cache. Built with the thread sanitizer. Prints what is wrong.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image.h"

#define THREADS 8
#define READ_MAX 140000 /* more than the kernel asks for */
#define READS 150
#define WRONG_MAX 10

struct file {
	const char *name;
	char *bytes;
	size_t size;
	struct inode inode;
	uint64_t directory; /* where it is found */
};

enum stop { NOWHERE, LOAD, WAIT, COPY };

/* Stops the first thread that comes to `place`, or all that do. Not used where all run freely: it
 * puts threads in an order, and would hide races from the sanitizer. */
static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	enum stop place;
	bool used, all, failing, stopped;
	int opened;		/* how often */
	int arrived;		/* threads that load, or wait for another to load, since */
	const char *copied;	/* what the thread that is stopped copies from */
} gate = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static struct image image;
static block_loader *loader;
static struct file *files;
static int file_count;
static int loads, wrong; /* atomic, and relaxed so as to order nothing */

#define ADD(what, n) __atomic_add_fetch(&(what), n, __ATOMIC_RELAXED)

static void __attribute__((format(printf, 1, 2))) complain(const char *format, ...)
{
	va_list args;

	if (ADD(wrong, 1) > WRONG_MAX)
		return;
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
}

/* ---- What comes in between ---- */

/* Stop here if that is set; return whether to fail then. */
static bool pass(enum stop place, const char *copied)
{
	bool stops, fails;
	int opened;

	if (!gate.used)
		return false;
	pthread_mutex_lock(&gate.lock);
	stops = place == gate.place && (gate.all || !gate.stopped);
	fails = stops && gate.failing;
	opened = gate.opened;
	gate.arrived += place == LOAD || place == WAIT;
	if (stops) {
		gate.stopped = true;
		gate.failing = false;
		gate.copied = copied;
	}
	pthread_cond_broadcast(&gate.changed);
	while (stops && gate.opened == opened)
		pthread_cond_wait(&gate.changed, &gate.lock);
	if (stops)
		gate.copied = NULL;
	pthread_mutex_unlock(&gate.lock);
	return fails;
}

static int gated_load(struct image *of, struct block *block)
{
	if (gate.used) {
		pthread_mutex_lock(&gate.lock);
		if (gate.copied >= (char *)block->data && gate.copied < (char *)block->data + image.block_size)
			complain("a block is replaced while it is copied from");
		pthread_mutex_unlock(&gate.lock);
	}
	ADD(loads, 1);
	return pass(LOAD, NULL) ? -EIO : loader(of, block);
}

static int wait_for_load(pthread_cond_t *condition, pthread_mutex_t *mutex)
{
	pass(WAIT, NULL);
	return pthread_cond_wait(condition, mutex);
}

static void copy_out(char *to, const void *from, size_t size)
{
	pass(COPY, from);
	memcpy(to, from, size);
}

int damaged(struct image *of, const char *what, uint64_t position)
{
	(void)of, (void)what, (void)position;
	return -EIO;
}

#define pthread_cond_wait wait_for_load
#include "../../spank/ch-squashfuse_ll/cache.c"
#undef pthread_cond_wait
#define load load_block
#define copy copy_block
#define memcpy copy_out
#include "../../spank/ch-squashfuse_ll/blocks.c"
#undef memcpy
#undef load
#undef copy

/* ---- Reading ---- */

/* Compare one read with the source; return 0 or -errno. */
static int compare(struct file *f, uint64_t start, size_t size)
{
	static _Thread_local char bytes[READ_MAX];
	size_t there = start < f->size ? f->size - start : 0;
	ssize_t n = blocks_read(&image, &f->inode, start, size, bytes);

	if (n < 0)
		return n;
	if (there > size)
		there = size;
	if ((size_t)n != there)
		complain("%s: %zd bytes at %zu instead of %zu", f->name, n, (size_t)start, there);
	else if (there && memcmp(bytes, f->bytes + start, there))
		complain("%s: wrong bytes at %zu", f->name, (size_t)start);
	return 0;
}

/* Compare the beginning of a block of the first file. */
static int compare_block(int number)
{
	return compare(files, (uint64_t)number * image.block_size, 4096);
}

static void *read_one(void *number)
{
	return (void *)(intptr_t)compare_block((intptr_t)number);
}

static void *read_anything(void *seed)
{
	unsigned int dice = (intptr_t)seed;

	for (int i = 0; i < READS; i++) {
		struct file *f = files + rand_r(&dice) % file_count;
		uint64_t start = rand_r(&dice) % (f->size + 1);
		struct inode directory;
		struct entry entry;

		if (inode_read(&image, f->directory, TYPE_DIRECTORY, &directory) ||
		    directory_find(&image, &directory, f->name, strlen(f->name), &entry) != 1 ||
		    entry.reference != f->inode.reference)
			complain("%s: isn't found", f->name);
		if (compare(f, start, 1 + rand_r(&dice) % READ_MAX))
			complain("%s: can't be read", f->name);
	}
	return NULL;
}

/* ---- Scenes, each with an empty cache ---- */

static void begin(enum stop place, bool all, bool failing)
{
	gate.used = place != NOWHERE;
	gate.place = place;
	gate.all = all;
	gate.failing = failing;
	gate.stopped = false;
	gate.opened = gate.arrived = loads = 0;
	if (!blocks_init(&image, THREADS))
		complain("the cache can't be set up");
	loader = image.data.load;
	image.data.load = gated_load;
}

static void check(const char *scene, struct cache *cache)
{
	for (struct block *b = cache->blocks; b < cache->blocks + cache->sets * cache->ways; b++) {
		if (b->users)
			complain("%s: a block has %d users left", scene, b->users);
		if (b->state == LOADING)
			complain("%s: a block is loading for ever", scene);
		for (struct block *other = cache->blocks; other < b; other++)
			if (is(b, other->position, other->header) && other->state == READY)
				complain("%s: a block is there twice", scene);
	}
}

/* No block is held any longer, and none is there twice. After a failed scene, further ones would mean nothing. */
static void end(const char *scene)
{
	check(scene, &image.metadata);
	check(scene, &image.data);
	cache_free(&image.data);
	if (wrong)
		exit(1);
}

static void start_threads(pthread_t *threads, int count, void *(*run)(void *), int argument, int step)
{
	for (int i = 0; i < count; i++)
		if (pthread_create(&threads[i], NULL, run, (void *)(intptr_t)(argument + i * step)))
			exit(2);
}

/* Wait until one thread has stopped, and `arrived` threads have come. */
static void await(int arrived)
{
	pthread_mutex_lock(&gate.lock);
	while (!gate.stopped || gate.arrived < arrived)
		pthread_cond_wait(&gate.changed, &gate.lock);
	pthread_mutex_unlock(&gate.lock);
}

/* Let the stopped threads go on, and perhaps stop the next. */
static void open_gate(bool stop_next)
{
	pthread_mutex_lock(&gate.lock);
	gate.opened++;
	gate.arrived = 0;
	gate.stopped = false;
	if (!stop_next)
		gate.place = NOWHERE;
	pthread_cond_broadcast(&gate.changed);
	pthread_mutex_unlock(&gate.lock);
}

/* One thread reads everything. */
static void alone(void)
{
	begin(NOWHERE, false, false);
	for (struct file *f = files; f < files + file_count; f++)
		for (uint64_t start = 0; start <= f->size; start += 70001)
			if (compare(f, start, 70001))
				complain("%s: can't be read", f->name);
	end("alone");
}

static void freely(void)
{
	pthread_t threads[THREADS];

	begin(NOWHERE, false, false);
	start_threads(threads, THREADS, read_anything, 1, 1);
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	end("freely");
}

/* All threads want the block that one is loading: it is loaded for all. If that fails, another thread tries. */
static void together(const char *scene, bool failing)
{
	pthread_t threads[THREADS];
	int failed = 0;
	void *result;

	begin(LOAD, true, failing);
	start_threads(threads, THREADS, read_one, 1, 0);
	await(THREADS);
	open_gate(failing);
	if (failing) {
		await(THREADS - 1);
		open_gate(false);
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(threads[i], &result);
		failed += (intptr_t)result == -EIO;
	}
	if (loads != 1 + failing)
		complain("%s: a block was loaded %d times", scene, loads);
	if (failed != failing)
		complain("%s: %d reads failed", scene, failed);
	end(scene);
}

/* One thread loads or copies a block for so long that all other blocks of the cache are replaced. */
static void turnover(const char *scene, enum stop place)
{
	pthread_t thread;
	void *result;

	begin(place, false, false);
	start_threads(&thread, 1, read_one, 0, 0);
	await(1);
	for (uint64_t i = 1; i < files->inode.file.blocks; i++)
		if (compare_block(i))
			complain("%s: block %d can't be read", scene, (int)i);
	open_gate(false);
	pthread_join(thread, &result);
	if (result)
		complain("%s: the block can't be read", scene);
	for (uint64_t i = files->inode.file.blocks; i--;)
		if (compare_block(i))
			complain("%s: block %d can't be read again", scene, (int)i);
	end(scene);
}

static void open_file(struct file *f, const char *name)
{
	int fd = open(name, O_RDONLY);
	struct inode root;
	struct entry entry;
	struct stat st;

	if (fd < 0 || fstat(fd, &st) || !(f->bytes = malloc(st.st_size + 1)) ||
	    read(fd, f->bytes, st.st_size) != st.st_size || inode_read(&image, image.root, TYPE_DIRECTORY, &root) ||
	    directory_find(&image, &root, name, strlen(name), &entry) != 1 ||
	    inode_read(&image, entry.reference, TYPE_FILE, &f->inode))
		exit(2);
	close(fd);
	f->name = name;
	f->size = st.st_size;
	f->directory = image.root;
}

int main(int argc, char **argv)
{
	struct stat st;
	char why[200];
	int fd;

	if (argc < 4 || (fd = open(argv[1], O_RDONLY)) < 0 || fstat(fd, &st) ||
	    !image_open(&image, fd, 0, st.st_size, THREADS, why, sizeof(why)) || chdir(argv[2]))
		return 2;
	cache_free(&image.data);
	file_count = argc - 3;
	if (!(files = calloc(file_count, sizeof(*files))))
		return 2;
	for (int i = 0; i < file_count; i++)
		open_file(files + i, argv[3 + i]);
	alone();
	together("together", false);
	together("together, and the first fails", true);
	turnover("loads for long", LOAD);
	turnover("copies for long", COPY);
	freely();
	puts("done");
	return 0;
}
