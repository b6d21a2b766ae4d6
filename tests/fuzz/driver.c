/* SPDX-License-Identifier: Apache-2.0 */
/* For compilers without libFuzzer: replays files, then mutates them.
 *
 *   TARGET RUNS SEED FILE...
 *
 * The same seed makes the same cases. A case that fails is in CRASH_FILE.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef PLAIN
#include <sanitizer/common_interface_defs.h>
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define SIZE_MAX_CASE 4096

static uint8_t current[SIZE_MAX_CASE];
static size_t current_size;
static uint64_t state;

static uint32_t dice(uint32_t sides)
{
	state = state * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(state >> 33) % sides;
}

#ifndef PLAIN
static void keep(void)
{
	const char *path = getenv("CRASH_FILE");
	int fd = path ? open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644) : -1;

	if (fd >= 0 && write(fd, current, current_size) < 0)
		return;
}
#endif

static void mutate(void)
{
	static const uint8_t odd[] = { 0, 1, '\n', '=', ':', ',', '$', '%', '*', '[', '\\', '/', 0x1b, 0x7f, 0x80, 0xc2, 0xff };

	for (uint32_t n = 1 + dice(8); n; n--) {
		size_t at = dice(current_size + 1), length = 1 + dice(16);

		switch (dice(6)) {
		case 0:
			if (current_size)
				current[at % current_size] = dice(256);
			break;
		case 1:
			if (current_size)
				current[at % current_size] = odd[dice(sizeof(odd))];
			break;
		case 2: /* cut */
			current_size = at;
			break;
		case 3: /* leave out */
			if (at + length <= current_size) {
				memmove(current + at, current + at + length, current_size - at - length);
				current_size -= length;
			}
			break;
		case 4: /* repeat */
			if (at + length <= current_size && current_size + length <= SIZE_MAX_CASE) {
				memmove(current + at + length, current + at, current_size - at);
				current_size += length;
			}
			break;
		default: /* put in */
			if (current_size + length <= SIZE_MAX_CASE) {
				memmove(current + at + length, current + at, current_size - at);
				for (size_t i = 0; i < length; i++)
					current[at + i] = dice(2) ? odd[dice(sizeof(odd))] : dice(256);
				current_size += length;
			}
		}
	}
}

static void one(void)
{
	uint8_t *copy = malloc(current_size ? current_size : 1); /* of its size, for the sanitizer */

	memcpy(copy, current, current_size);
	LLVMFuzzerTestOneInput(copy, current_size);
	free(copy);
}

static void load(const char *path)
{
	int fd = open(path, O_RDONLY);
	ssize_t n = read(fd, current, sizeof(current));

	if (n < 0) {
		perror(path);
		exit(2);
	}
	current_size = n;
	close(fd);
}

int main(int argc, char **argv)
{
	long runs;

	if (argc < 4)
		return 2;
#ifndef PLAIN
	__sanitizer_set_death_callback(keep);
#endif
	runs = atol(argv[1]);
	state = strtoull(argv[2], NULL, 10);
	for (int i = 3; i < argc; i++) {
		load(argv[i]);
		one();
	}
	for (long i = 0; i < runs; i++) {
		load(argv[3 + dice(argc - 3)]);
		mutate();
		one();
	}
	printf("%ld\n", runs + argc - 3);
	return 0;
}
