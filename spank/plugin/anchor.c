/* SPDX-License-Identifier: Apache-2.0 */
/* Makes relative paths absolute when they become defaults of a job's steps, because a step may start
 * in another directory. slurm_ch/request/anchor.py does the same for the steps that a step starts. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "plugin.h"

/* Where Slurm runs a job whose working directory is missing. */
#define FALLBACK "/tmp"

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

/* A path that begins with ~ or $ was meant for the shell to expand: left as it is, so that the node refuses it. */
static bool is_relative(const char *text, size_t n)
{
	return n && *text != '/' && *text != '~' && *text != '$';
}

/* Write a directory's name into a list, where commas and colons are separators. */
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
	if (kind == PATHS_FILE) /* NAME=VALUE is no file; image: is relative to the image */
		anchor = anchor && !memchr(part, '=', n) && strncmp(part, "image:", strlen("image:"));
	else if (kind == PATHS_IMAGE)
		anchor = anchor && !is_reference(part);
	else if (kind == PATHS_DEVICES)
		anchor = anchor && (*part == '.' || ends_with(part, n, ".json") || ends_with(part, n, ".yaml"));
	if (anchor && listed)
		write_escaped(out, directory);
	else if (anchor)
		fputs(directory, out);
	if (anchor) /* of an image, "/./" marks where the given text begins, because that may be a name */
		fputs(kind == PATHS_IMAGE ? "/./" : "/", out);
	fwrite(part, 1, n, out);
}

/* Return the length of a value's first part, up to a separator. */
static size_t part_length(enum paths kind, const char *text)
{
	const char *ends = kind == PATHS_BINDS || kind == PATHS_DEVICES ? ",\n" :
			   kind == PATHS_DIRECTORIES			? ":\n" :
									  "\n";
	size_t n = strcspn(text, ends);

	/* A comma after a backslash is no separator. */
	while (n && text[n] == ',' && text[n - 1] == '\\')
		n += 1 + strcspn(text + n + 1, ends);
	return n;
}

/* Return an option's value, or its values, one per line, with relative paths made absolute by `directory`;
 * NULL if there is no memory. */
char *anchor_paths(enum paths kind, const char *value, const char *directory)
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

/* Anchor the defaults in a task's variables `env`, or without `sp` in this process's own. */
static int anchor_in(spank_t sp, char **env, const char *directory)
{
	int failed = 0;

	for (size_t i = 0; i < sizeof(defaults) / sizeof(defaults[0]) && !failed; i++) {
		const char *name = defaults[i].name, *value = sp ? variable(env, name) : getenv(name);
		char *there;

		if (!value || defaults[i].paths == PATHS_NONE)
			continue;
		there = anchor_paths(defaults[i].paths, value, directory);
		if (!there)
			failed = 1;
		else if (strcmp(there, value))
			failed = sp ? spank_setenv(sp, name, there, 1) != ESPANK_SUCCESS : setenv(name, there, 1);
		free(there);
	}
	return failed ? -1 : 0;
}

/* In a batch script's task, before the script can change directory: anchor the defaults of its steps. */
int anchor_defaults(spank_t sp, char **env)
{
	char *directory = getcwd(NULL, 0);
	const char *pwd = variable(env, "PWD");
	int failed = 0;

	/* If the job's directory is missing, Slurm runs the script in FALLBACK, where no relative path was meant. */
	if (directory && !(!strcmp(directory, FALLBACK) && pwd && strcmp(pwd, FALLBACK)))
		failed = anchor_in(sp, env, directory);
	free(directory);
	return failed;
}

/* In salloc: anchor the defaults of the steps that its shell starts. */
int anchor_own_defaults(void)
{
	char *directory = getcwd(NULL, 0);
	int failed = directory ? anchor_in(NULL, NULL, directory) : 0;

	free(directory);
	return failed;
}
