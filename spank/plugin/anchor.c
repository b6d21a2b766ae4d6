/* SPDX-License-Identifier: Apache-2.0 */
/* Relative paths that become defaults of steps: anchored where they were first given,
 * because a step may start in another directory. slurm_ch/request/anchor.py does the same
 * for the steps of a step. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "plugin.h"

/* Where Slurm runs a job whose working directory is missing. */
#define FALLBACK "/tmp"

static const char *value_in(char **env, const char *name)
{
	size_t n = strlen(name);

	for (char **e = env; e && *e; e++)
		if (!strncmp(*e, name, n) && (*e)[n] == '=')
			return *e + n + 1;
	return NULL;
}

bool is_reference(const char *image)
{
	static const char *const beginnings[] = { REFERENCE_BEGINNINGS };

	for (size_t i = 0; i < sizeof(beginnings) / sizeof(*beginnings); i++)
		if (!strncmp(image, beginnings[i], strlen(beginnings[i])))
			return true;
	return false;
}

static bool ends_with(const char *text, size_t n, const char *end)
{
	size_t length = strlen(end);

	return n >= length && !memcmp(text + n - length, end, length);
}

/* What a person writes for the shell to expand is no path yet; the node will say so. */
static bool is_relative(const char *text, size_t n)
{
	return n && *text != '/' && *text != '~' && *text != '$';
}

/* A directory's name where commas and colons mean something. */
static void write_escaped(FILE *out, const char *text)
{
	for (; *text; text++) {
		if (strchr(",:", *text))
			fputc('\\', out);
		fputc(*text, out);
	}
}

static void write_part(FILE *out, enum paths kind, const char *part, size_t n, const char *directory)
{
	bool listed = kind == PATHS_BINDS || kind == PATHS_DEVICES, anchor;
	size_t prefix = kind == PATHS_FILE && !strncmp(part, "host:", strlen("host:")) ? strlen("host:") : 0;

	fwrite(part, 1, prefix, out);
	part += prefix;
	n -= prefix;
	anchor = is_relative(part, n);
	if (kind == PATHS_FILE) /* NAME=VALUE is no file; one in the image has its own root */
		anchor = anchor && !memchr(part, '=', n) && strncmp(part, "image:", strlen("image:"));
	else if (kind == PATHS_IMAGE)
		anchor = anchor && !is_reference(part);
	else if (kind == PATHS_DEVICES)
		anchor = anchor && (*part == '.' || ends_with(part, n, ".json") || ends_with(part, n, ".yaml"));
	if (anchor && listed)
		write_escaped(out, directory);
	else if (anchor)
		fputs(directory, out);
	if (anchor) /* of an image, what was given must still be seen: it may be a name */
		fputs(kind == PATHS_IMAGE ? "/./" : "/", out);
	fwrite(part, 1, n, out);
}

/* How long the part is that a value, or a line of one, begins with. */
static size_t part_length(enum paths kind, const char *text)
{
	const char *ends = kind == PATHS_BINDS || kind == PATHS_DEVICES ? ",\n" :
			   kind == PATHS_DIRECTORIES			? ":\n" :
									  "\n";
	size_t n = strcspn(text, ends);

	/* A backslash keeps the comma behind it. */
	while (n && text[n] == ',' && text[n - 1] == '\\')
		n += 1 + strcspn(text + n + 1, ends);
	return n;
}

/* Return an option's value, or all of its values, a line each, with relative paths below
 * `directory`; NULL if there is no memory. */
char *anchored(enum paths kind, const char *value, const char *directory)
{
	char *text = NULL;
	size_t size;
	FILE *out;

	if (kind == PATHS_NONE || *directory != '/')
		return strdup(value);
	out = open_memstream(&text, &size);
	if (!out)
		return NULL;
	for (;;) {
		size_t n = part_length(kind, value);

		write_part(out, kind, value, n, directory);
		value += n;
		if (!*value)
			break;
		fputc(*value++, out);
	}
	if (!fclose(out))
		return text;
	free(text);
	return NULL;
}

static const struct {
	const char *name; /* of the default */
	enum paths paths;
} defaults[] = {
#define OPTION(variable, name, arg, help, bare, kind, sure, paths, group) { SRUN_PREFIX #variable, paths },
#include "options.inc"
#undef OPTION
};

/* Anchor the defaults in a task's variables `env`; in this process' own where there is no `sp`. */
static int anchor_in(spank_t sp, char **env, const char *directory)
{
	int failed = 0;

	for (size_t i = 0; i < sizeof(defaults) / sizeof(defaults[0]) && !failed; i++) {
		const char *name = defaults[i].name, *value = sp ? value_in(env, name) : getenv(name);
		char *there;

		if (!value || defaults[i].paths == PATHS_NONE)
			continue;
		there = anchored(defaults[i].paths, value, directory);
		if (!there)
			failed = 1;
		else if (strcmp(there, value))
			failed = sp ? spank_setenv(sp, name, there, 1) != ESPANK_SUCCESS : setenv(name, there, 1);
		free(there);
	}
	return failed ? -1 : 0;
}

/* In a batch script's task: the defaults of its steps. The script may change directory. */
int anchor_defaults(spank_t sp, char **env)
{
	char *directory = getcwd(NULL, 0);
	const char *pwd = value_in(env, "PWD");
	int failed = 0;

	/* Slurm may be here because there is no such directory; then nothing here is the user's. */
	if (directory && !(!strcmp(directory, FALLBACK) && pwd && strcmp(pwd, FALLBACK)))
		failed = anchor_in(sp, env, directory);
	free(directory);
	return failed;
}

/* In salloc: the same, for what its shell starts. */
int anchor_own_defaults(void)
{
	char *directory = getcwd(NULL, 0);
	int failed = directory ? anchor_in(NULL, NULL, directory) : 0;

	free(directory);
	return failed;
}
