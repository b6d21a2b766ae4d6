/* SPDX-License-Identifier: Apache-2.0 */
/* Runs our LZO decoder on streams that are truncated, changed in each byte to each value, or given too little room.
 *
 *   lzo FILE...
 *
 * Each FILE is a whole stream. Built with sanitizers: all memory is exactly as large as what is said of it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"

#define ROOM 8192

static ssize_t inflate(const uint8_t *from, size_t size, size_t room)
{
	uint8_t *in = malloc(size), *out = malloc(room);
	ssize_t n;

	memcpy(in, from, size);
	n = lzo_decompress(in, size, out, room);
	if (n > (ssize_t)room)
		abort();
	free(in);
	free(out);
	return n;
}

static void complain(const char *what, size_t number)
{
	printf("%s: %zu\n", what, number);
	exit(1);
}

static void try(uint8_t *stream, size_t size)
{
	ssize_t whole = inflate(stream, size, ROOM);

	if (whole <= 0)
		complain("a whole stream isn't inflated", size);
	for (ssize_t room = 0; room < whole; room++)
		if (inflate(stream, size, room) >= 0)
			complain("more than there is room for", room);
	for (size_t cut = 0; cut < size; cut++)
		if (inflate(stream, cut, ROOM) >= 0)
			complain("a stream that was cut", cut);
	/* Only the end of a stream has the bytes 11 00 00. */
	if (inflate(stream, size + 1, ROOM) >= 0)
		complain("a stream that goes on", size);
	stream[size - 3]++;
	if (inflate(stream, size, ROOM) >= 0)
		complain("another end", size);
	stream[size - 3]--;
	for (size_t at = 0; at < size; at++) {
		uint8_t kept = stream[at];

		for (int value = 0; value < 256; value++) {
			stream[at] = value;
			inflate(stream, size, whole);
		}
		stream[at] = kept;
	}
}

int main(int argc, char **argv)
{
	static uint8_t stream[ROOM + 1];

	for (int i = 1; i < argc; i++) {
		FILE *file = fopen(argv[i], "rb");

		try(stream, file ? fread(stream, 1, ROOM, file) : 0);
		fclose(file);
	}
	puts("done");
	return 0;
}
