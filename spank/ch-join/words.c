/* SPDX-License-Identifier: Apache-2.0 */
/* Reads the words of `slurm-ch run`: finds the image and the command, and takes the options of a join.
 *
 *   [OPTIONS] IMAGE [OPTIONS] [--] CMD...
 *
 * By the rules of slurm_ch/request/words.py, which also interprets each option. A command line that is
 * wrong, unusual, or not about a container is left to Python, because only Python has the texts of errors.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "../agreement.h"
#include "words.h"

enum kind { NO_VALUE, VALUE, ATTACHED_VALUE, LEVEL, PYTHONS };

static const struct option {
	const char *name;
	char letter;
	enum kind kind;
	bool each; /* whether its value may differ from task to task */
} options[] = {
#include "options.inc"
};

#define OPTION_COUNT (sizeof(options) / sizeof(*options))

/* Stands for the value of an option without one. */
#define BARE "\1"

uint64_t hash_string(uint64_t hash, const char *text)
{
	/* FNV-1a */
	do
		hash = (hash ^ (unsigned char)*text) * 0x100000001b3u;
	while (*text++);
	return hash;
}

bool read_number(const char *text, size_t digits, uint64_t *n)
{
	size_t length = strspn(text, "0123456789");

	if (!length || length > digits || text[length])
		return false;
	*n = strtoull(text, NULL, 10);
	return true;
}

/* Whether it names a file that only this process has open. */
static bool is_own_file(const char *text)
{
	static const char *const parts[] = { OWN_FILES };

	for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++)
		if (strstr(text, parts[i]))
			return true;
	return false;
}

static bool read_join(struct words *w, const char *name, const char *value)
{
	uint64_t n;

	if (!strcmp(name, "pid")) {
		w->by_pid = true;
		return true;
	}
	if (!strcmp(name, "timeout")) {
		if (!read_number(value, 10, &n) || n < 1 || n > JOIN_SECONDS_MAX)
			return false;
		w->seconds = n;
		return true;
	}
	w->join = true;
	if (!strcmp(name, "ct")) {
		if (!read_number(value, 10, &n) || n < 1 || n > JOIN_MAX)
			return false;
		w->peers = n;
		return true;
	}
	w->tag = value;
	return *value && strlen(value) <= TAG_MAX && !value[strspn(value, TAG_LETTERS)];
}

static bool take(struct words *w, const struct option *o, const char *value)
{
	if (is_own_file(value))
		return false;
	if (o->each)
		w->rules = hash_string(hash_string(w->rules, o->name), value);
	if (!strcmp(o->name, "storage"))
		w->storage = value;
	if (!strcmp(o->name, "join"))
		w->join = true;
	if (!strncmp(o->name, "join-", 5))
		return read_join(w, o->name + 5, value);
	return true;
}

/* Return the option of that name, which may be abbreviated if that is unambiguous; else NULL. */
static const struct option *by_name(const char *name, size_t n)
{
	const struct option *found = NULL;
	size_t count = 0;

	for (size_t i = 0; i < OPTION_COUNT; i++)
		if (!strncmp(options[i].name, name, n)) {
			if (!options[i].name[n])
				return &options[i];
			found = &options[i];
			count++;
		}
	return n && count == 1 ? found : NULL;
}

static const struct option *by_letter(char letter)
{
	for (size_t i = 0; i < OPTION_COUNT; i++)
		if (letter && options[i].letter == letter)
			return &options[i];
	return NULL;
}

/* Read a long option; if its value is the next word, move to that. */
static bool long_option(struct words *w, char ***at)
{
	const char *name = **at + 2;
	size_t n = strcspn(name, "=");
	const char *value = name[n] ? name + n + 1 : NULL;
	/* --cdi is another name of --device, but its value can't be the next word. */
	bool cdi = n == 3 && !strncmp(name, "cdi", 3);
	const struct option *o = cdi ? by_name("device", 6) : by_name(name, n);

	if (!o || o->kind == PYTHONS || (o->kind == NO_VALUE && value))
		return false;
	if (!value && o->kind == VALUE && !cdi) {
		value = *++*at;
		if (!value)
			return false;
	}
	return take(w, o, value ? value : BARE);
}

static bool short_options(struct words *w, char ***at)
{
	for (const char *c = **at + 1; *c; c++) {
		const struct option *o = by_letter(*c);
		bool more = c[1] >= '0' && c[1] <= '9';

		if (!o || c[1] & 0x80)
			return false;
		if (o->kind == NO_VALUE || (o->kind == LEVEL && !more)) {
			if (!take(w, o, BARE))
				return false;
			continue;
		}
		if (c[1])
			return take(w, o, c + 1);
		if (o->kind != VALUE)
			return take(w, o, BARE);
		return *++*at && take(w, o, **at);
	}
	return true;
}

bool words_read(char **words, struct words *w)
{
	bool separated = false;
	size_t before = 0; /* words before "--": the second one begins the command */
	char **at = words;

	*w = (struct words){ .all = words, .seconds = JOIN_SECONDS, .rules = HASH_START };
	for (; *at && before < 2; at++) {
		if (!strcmp(*at, "--")) {
			separated = true;
			break;
		}
		if (!strncmp(*at, "--", 2)) {
			if (!long_option(w, &at))
				return false;
		} else if (**at == '-' && (*at)[1]) {
			if (!short_options(w, &at))
				return false;
		} else if (before++ == 0) {
			w->image = *at;
		} else {
			break;
		}
	}
	w->count = at - words;
	at += separated;
	if (w->join && w->by_pid)
		return false;
	if (w->by_pid && (separated ? before == 0 : before == 1)) {
		/* There is no image: the first word begins the command. Options after it are still ours: left to Python. */
		if (!separated && words[--w->count] != w->image)
			return false;
		w->command = words + w->count + separated;
		w->image = NULL;
		return *w->command;
	}
	if (!w->image) {
		/* the image comes after "--" */
		if (!*at)
			return false;
		w->image = *at++;
		w->count += 2;
	}
	w->command = at;
	if (!*at) {
		if (!separated)
			return false;
		w->command = NULL;
	}
	w->rules = hash_string(w->rules, w->image);
	return *w->image && !is_own_file(w->image);
}

bool words_is_reference(const struct words *w)
{
	static const char *const schemes[] = { REFERENCE_BEGINNINGS };

	for (size_t i = 0; w->image && i < sizeof(schemes) / sizeof(*schemes); i++)
		if (!strncmp(w->image, schemes[i], strlen(schemes[i])))
			return true;
	return false;
}
