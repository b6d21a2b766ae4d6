/* SPDX-License-Identifier: Apache-2.0 */
/* --multi-prog: each task has a command of its own, from a file whose text travels in the
 * place of arguments.
 *
 * Since 23.02.5 Slurm puts ch-join in front of each. Before, the tasks' commands are out of the
 * node's reach, but srun's side has the text, and can put ch-join's path in front of each
 * command in it. Started without its ticket, ch-join refuses: so it is a guard as well.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../agreement.h"
#include "plugin.h"

/* Skip to the first line that names tasks. */
static const char *first_task(const char *text)
{
	while (*text == '#' || *text == '\n' || *text == ' ' || *text == '\t')
		text += *text == '#' ? strcspn(text, "\n") : 1;
	return text;
}

/* Whether a --multi-prog file's text is in place of arguments, if that option may
 * have been given. */
bool is_multi_prog(int argc, char **argv)
{
	const char *text = argc < 2 ? "" : first_task(argv[1]);

	return *text == '*' || (*text >= '0' && *text <= '9');
}

/* Whether `path` is what the first task's command begins with. */
bool multi_prog_goes_through(const char *text, const char *path)
{
	size_t n = strlen(path);

	text = first_task(text);
	while (*text && !isspace((unsigned char)*text))
		text++;
	while (*text && isspace((unsigned char)*text))
		text++;
	return *path == '/' && !strncmp(text, path, n) && isspace((unsigned char)text[n]);
}

/* Whether `text` is what the file has. A command's own words may look like the option and its
 * file's text. */
static bool is_text_of(const char *file, const char *text)
{
	FILE *in = fopen(file, "re");
	size_t n = strlen(text), size = 0;
	char *read = NULL;
	bool same;

	if (!in)
		return false;
	same = getdelim(&read, &size, '\0', in) == (ssize_t)n && !memcmp(read, text, n);
	free(read);
	fclose(in);
	return same;
}

/* Return the text with `path` in front of each command, or NULL. */
static char *through(const char *text, const char *path)
{
	char *more = NULL;
	size_t size;
	FILE *out = open_memstream(&more, &size);

	while (out && *text) {
		size_t n = strcspn(text, "\n"), tasks = 0;

		while (tasks < n && isspace((unsigned char)text[tasks]))
			tasks++;
		if (tasks < n && text[tasks] != '#') {
			while (tasks < n && !isspace((unsigned char)text[tasks]))
				tasks++;
			fprintf(out, "%.*s %s%.*s", (int)tasks, text, path, (int)(n - tasks), text + tasks);
		} else {
			fprintf(out, "%.*s", (int)n, text);
		}
		text += n;
		if (*text)
			fputc(*text++, out);
	}
	if (out && !fclose(out))
		return more;
	free(more);
	return NULL;
}

/* In srun: put ch-join in front of each task's command, where the node can't. -1, said, if
 * that can't be done here either. */
int multi_prog_guard(char **argv, int ac, char **av)
{
	const char *with = NULL;
	char *path, *more;

	if (dlsym(RTLD_DEFAULT, "spank_prepend_task_argv") ||
	    multi_prog_goes_through(argv[1], getenv(MULTI_PROG_VARIABLE))) /* srun launches again */
		return 0;
	path = site_path("ch_join", "ch-join", ac, av);
	if (!is_text_of(argv[0], argv[1]))
		with = "what can't be read twice";
	else if (strstr(argv[1], "\\\n")) /* joins lines */
		with = "a backslash at a line's end";
	else if (path && strpbrk(path, " \t\\\"'%"))
		with = "such a path of ch-join";
	if (with) {
		complain("--ch-image and --multi-prog with %s need Slurm 23.02.5 or later", with);
		free(path);
		return -1;
	}
	more = path ? through(argv[1], path) : NULL;
	if (!more || setenv(MULTI_PROG_VARIABLE, path, 1)) {
		complain("can't guard the commands of --multi-prog");
		free(more);
		free(path);
		return -1;
	}
	argv[1] = more; /* srun's now */
	free(path);
	return 0;
}
