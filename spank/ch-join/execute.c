/* SPDX-License-Identifier: Apache-2.0 */
/* Executes the command, and reports why if that fails. Before that nothing is looked at, so that a good command
 * costs nothing. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../agreement.h"
#include "ch-join.h"

extern char **environ;

/* Without PATH, commands are looked up here, as in libc. */
#define DEFAULT_PATH "/bin:/usr/bin"
#define SHELL "/bin/sh"

/* The file to explain, and its errno: the first that was found, unless execution of a later one was
 * denied; NULL if none was found. */
static const char *found;
static int found_why;

/* Execute a file; return errno. As in execvp, the shell runs a file without a first line "#!..."; but
 * only if the file is text. */
static int try(const char *path, char **argv)
{
	struct stat st;
	char **words;
	size_t n = 0;
	int why;

	execve(path, argv, environ);
	why = errno;
	if ((!found || (why == EACCES && found_why != EACCES)) && !lstat(path, &st)) {
		found = need(strdup(path));
		found_why = why;
	}
	if (why != ENOEXEC || !is_text_file(path))
		return why;
	while (argv[n])
		n++;
	words = (char **)need(calloc(n + 2, sizeof(char *)));
	words[0] = SHELL;
	words[1] = (char *)path;
	memcpy(words + 2, argv + 1, n * sizeof(char *));
	execve(SHELL, words, environ);
	die(errno == ENOENT ? EXIT_NOT_FOUND : EXIT_CANNOT_EXECUTE,
	    "can't execute %s: a script without #! in its first line, and " SHELL ": %s", argv[0], strerror(errno));
}

/* Try the command in each directory of PATH; return the errno that counts. */
static int search(char **argv)
{
	const char *path = getenv("PATH");
	bool denied = false;
	int why = ENOENT;

	if (!path)
		path = DEFAULT_PATH;
	for (const char *end; path; path = *end ? end + 1 : NULL) {
		char *file;

		end = strchrnul(path, ':');
		if (asprintf(&file, "%.*s%s%s", (int)(end - path), path, end > path ? "/" : "", argv[0]) < 0)
			need(NULL);
		why = try(file, argv);
		free(file);
		if (why == EACCES)
			denied = true;
		else if (why != ENOENT && why != ENOTDIR && why != ESTALE && why != ENODEV && why != ETIMEDOUT)
			return why;
	}
	return denied ? EACCES : why;
}

void execute(const struct settings *s, char **argv)
{
	char reason[REASON_SIZE];
	bool plain = !strchr(argv[0], '/');
	int why = !*argv[0] ? ENOENT : plain ? search(argv) : try(argv[0], argv);
	int code;
	const char *lost = *argv[0] != '/' && (!plain || s->as_srun) ? s->lost_directory : NULL;

	/* As slurmstepd does: a command that is not in PATH is taken from the working directory. */
	if (plain && *argv[0] && !found && s->as_srun)
		why = try(argv[0], argv);
	code = why == ENOENT || why == ENOTDIR ? EXIT_NOT_FOUND : EXIT_CANNOT_EXECUTE;
	if (!found)
		die(code, "can't execute %s: %s%s%s", argv[0], strerror(why), lost ? "; " : "", lost ? lost : "");
	why = found_why;
	code = why == ENOENT || why == ENOTDIR ? EXIT_NOT_FOUND : EXIT_CANNOT_EXECUTE;
	explain_exec_failure(found, why, reason);
	if (plain)
		die(code, "can't execute %s: %s: %s", argv[0], found, reason);
	die(code, "can't execute %s: %s", argv[0], reason);
}
