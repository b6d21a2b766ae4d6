/* SPDX-License-Identifier: Apache-2.0 */
/* Puts ch-join in front of the commands of --multi-prog: each task has its own command, from a file whose text
 * Slurm passes in place of the arguments.
 *
 * Since 23.02.5, Slurm itself puts ch-join in front of each command. Before, the plugin can't do so on the node.
 * But in srun it has the text, and puts ch-join's path in front of each command there. On a node without the
 * plugin, ch-join refuses to run, because it has no ticket: so it also guards these commands.
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

/* Whether the arguments are a --multi-prog file's text, if that option may have been given. */
bool is_multi_prog(int argc, char **argv)
{
	const char *text = argc < 2 ? "" : first_task(argv[1]);

	return *text == '*' || (*text >= '0' && *text <= '9');
}

/* Whether the first task's command begins with `path`. */
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

/* Whether `text` is the file's contents. If it isn't, the words of an ordinary command only look like --multi-prog. */
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
static char *put_in_front(const char *text, const char *path)
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

/* In srun: put ch-join in front of each task's command, unless Slurm does so on the node. Return -1 after reporting
 * why, if that is impossible. */
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
	more = path ? put_in_front(argv[1], path) : NULL;
	if (!more || setenv(MULTI_PROG_VARIABLE, path, 1)) {
		complain("can't guard the commands of --multi-prog");
		free(more);
		free(path);
		return -1;
	}
	argv[1] = more; /* from now on srun's */
	free(path);
	return 0;
}
