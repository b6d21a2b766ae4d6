/* SPDX-License-Identifier: Apache-2.0 */
/* Prints how words.c reads command lines, and how step.c reads this process's environment.
 *
 *   words          command lines from standard input: each word ends with NUL, each line with the word "\2"
 *   words step     tag, peers, rank: of no words
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "step.h"
#include "words.h"

#define MAX (1 << 22)

static void show(char **words)
{
	struct words w;

	if (!words_read(words, &w)) {
		puts("python");
		return;
	}
	printf("%zu %zd %s %s %u %u %u %016llx%s", w.count, w.command ? w.command - words : -1,
	       w.image ? w.image : "\1", w.tag ? w.tag : "\1", w.peers, w.seconds, w.join | w.by_pid << 1,
	       (unsigned long long)w.rules, words_is_reference(&w) ? " reference" : "");
	putchar('\0');
	putchar('\n');
}

int main(int argc, char **argv)
{
	static char text[MAX], *words[MAX / 2];
	size_t size, n = 0;

	if (argc > 1 && !strcmp(argv[1], "step")) {
		struct words w = { .count = 0 };
		struct step s;

		if (!step_read(&w, &s))
			puts("python");
		else
			printf("%s %u %ld\n", s.tag, s.peers, s.rank);
		return 0;
	}
	size = fread(text, 1, MAX - 1, stdin);
	for (char *at = text; at < text + size; at += strlen(at) + 1) {
		if (strcmp(at, "\2")) {
			words[n++] = at;
			continue;
		}
		words[n] = NULL;
		show(words);
		n = 0;
	}
	return 0;
}
