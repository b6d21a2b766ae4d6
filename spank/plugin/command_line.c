/* SPDX-License-Identifier: Apache-2.0 */
/* Reads the words of this process's command line, because Slurm doesn't tell plugins about its own options. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin.h"

/* Return all of the file's bytes, with a NUL after them, or NULL. */
static char *read_all(const char *path, size_t *size)
{
	FILE *in = fopen(path, "re");
	char *text = NULL, part[4096];
	FILE *out = in ? open_memstream(&text, size) : NULL;
	bool failed = !out;
	size_t n;

	while (!failed && (n = fread(part, 1, sizeof(part), in)))
		failed = fwrite(part, 1, n, out) < n;
	if (out)
		failed |= fclose(out);
	if (in)
		fclose(in);
	if (failed) {
		free(text);
		return NULL;
	}
	return text;
}

char **command_line(void)
{
	size_t size = 0, count = 0;
	char *text = read_all("/proc/self/cmdline", &size), **words, *copy;

	if (!text)
		return NULL;
	for (char *word = text; word < text + size; word += strlen(word) + 1)
		count++;
	words = malloc((count + 1) * sizeof(*words) + size + 1);
	if (words) {
		copy = memcpy(words + count + 1, text, size + 1);
		for (size_t i = 0; i < count; i++, copy += strlen(copy) + 1)
			words[i] = copy;
		words[count] = NULL;
	}
	free(text);
	return words;
}
