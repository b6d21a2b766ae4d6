/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of a command line of `slurm-ch run` that ch-join itself needs. */
#ifndef WORDS_H
#define WORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct words {
	char **all;	  /* options and image */
	size_t count;	  /* how many words of `all` these are */
	const char *image; /* NULL: none, with --join-pid */
	char **command;	  /* NULL: the image's own */
	bool join, by_pid;
	unsigned peers;	  /* 0: not given */
	const char *tag;  /* NULL: not given */
	unsigned seconds; /* to wait for peers */
	const char *storage;
	uint64_t rules;	  /* a hash of what may differ from task to task */
};

/* Read the words; return false if they are left to Python, which also reports errors. */
bool words_read(char **words, struct words *w);

/* Whether the image is a reference, which Python resolves. */
bool words_is_reference(const struct words *w);

/* Add a string to a hash, with its NUL. */
#define HASH_START 0xcbf29ce484222325u
uint64_t hash_string(uint64_t hash, const char *text);

/* Read a whole number of at most `digits` digits, and nothing else. */
bool read_number(const char *text, size_t digits, uint64_t *n);

#endif
