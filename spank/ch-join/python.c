/* SPDX-License-Identifier: Apache-2.0 */
/* Finds Python's part of the installation: interpreter, launcher and command.
 *
 * This program lies in one of two places. In the package: in a checkout, or after `make install`,
 * which writes the interpreter's path into a file beside it. Or, after pip, in a directory of programs
 * (bin): then the package is somewhere below ../lib, and the interpreter's path is in a script that
 * pip has put beside this program.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../agreement.h"
#include "ch-join.h"
#include "python.h"

#define LINE_MAX_BYTES 4096

extern char **environ;

static char *in(const char *directory, const char *name)
{
	char *path;

	if (asprintf(&path, "%s/%s", directory, name) < 0)
		need(NULL);
	return path;
}

/* The directory that this program's file is in. */
static char *own_directory(void)
{
	char path[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
	char *slash;

	if (n < 0)
		die(EXIT_SETUP, "can't find this program: /proc/self/exe: %s", strerror(errno));
	path[n] = '\0';
	slash = strrchr(path, '/');
	if (!slash)
		die(EXIT_SETUP, "can't find this program: %s", path);
	*slash = '\0';
	return need(strdup(path));
}

/* Return the directory native/ of a package that is installed below `bin`/../lib or lib64: that of the
 * Python named `python`, if there are several; NULL if there is none. */
static char *package_near(const char *bin, const char *python)
{
	static const char *const libraries[] = { "../lib", "../lib64" };
	static const char *const sites[] = { "site-packages", "dist-packages" };
	char *found = NULL, *named = NULL;

	for (size_t i = 0; i < 2; i++) {
		char *library = in(bin, libraries[i]);
		DIR *entries = opendir(library);
		struct dirent *entry;

		while (entries && (entry = readdir(entries)))
			for (size_t j = 0; !strncmp(entry->d_name, "python3", 7) && j < 2; j++) {
				char *path;

				if (asprintf(&path, "%s/%s/%s/slurm_ch/native", library, entry->d_name,
					     sites[j]) < 0)
					need(NULL);
				if (access(path, X_OK)) {
					free(path);
					continue;
				}
				if (!strcmp(entry->d_name, python))
					named = path;
				else
					found = path;
			}
		if (entries)
			closedir(entries);
		free(library);
	}
	return named ? named : found;
}

/* Read the beginning of a file as text; return NULL if there is nothing to read. */
static char *start_of(const char *path, char text[LINE_MAX_BYTES + 1])
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	ssize_t n = fd < 0 ? -1 : read(fd, text, LINE_MAX_BYTES);

	if (fd >= 0)
		close(fd);
	if (n <= 0)
		return NULL;
	text[n] = '\0';
	return text;
}

static char *installed_interpreter(const char *native)
{
	char text[LINE_MAX_BYTES + 1], *path = in(native, INTERPRETER_FILE), *found = start_of(path, text);

	free(path);
	if (!found)
		return need(strdup(DEFAULT_PYTHON));
	found[strcspn(found, "\n")] = '\0';
	return need(strdup(found));
}

/* Return the interpreter that pip has written into a script: "#!INTERPRETER", or if that is too long
 * for the kernel, "#!/bin/sh" and this line: '''exec' INTERPRETER "$0" "$@" */
static char *interpreter_in(const char *script)
{
	static const char exec[] = "'''exec' ";
	char text[LINE_MAX_BYTES + 1], *start = text + 2, *end;

	if (!start_of(script, text) || strncmp(text, "#!", 2))
		return NULL;
	if (!strncmp(start, "/bin/sh\n", 8)) {
		start = strstr(start, exec);
		if (!start)
			return NULL;
		start += sizeof(exec) - 1;
		start += *start == '"';
		end = start + strcspn(start, start[-1] == '"' ? "\"\n" : " \n");
	} else {
		start += strspn(start, " ");
		end = start + strcspn(start, "\n");
	}
	*end = '\0';
	return *start == '/' ? need(strdup(start)) : NULL;
}

void python_find(struct python *p)
{
	char *native = own_directory(), *script;

	p->launcher = in(native, DEFAULT_LAUNCHER);
	if (!access(p->launcher, R_OK)) {
		p->interpreter = installed_interpreter(native);
	} else {
		script = in(native, PYTHON_COMMAND);
		p->interpreter = interpreter_in(script);
		if (!p->interpreter || access(p->interpreter, X_OK)) {
			free(p->interpreter);
			p->interpreter = in(native, "python3");
		}
		native = package_near(native, basename(p->interpreter));
		if (!native)
			die(EXIT_SETUP, "can't find the package slurm_ch: neither beside this program nor "
					"in ../lib/python3*: install it anew");
		p->launcher = in(native, DEFAULT_LAUNCHER);
		free(script);
	}
	p->program = in(native, PYTHON_PROGRAM);
	free(native);
}

void python_become(const char *name, const char *how, char **words)
{
	struct python p;
	size_t n = 0;
	char **argv;

	python_find(&p);
	while (words[n])
		n++;
	argv = (char **)need(calloc(n + 6, sizeof(char *)));
	argv[0] = p.interpreter;
	argv[1] = "-I";
	argv[2] = p.program;
	argv[3] = (char *)name;
	argv[4] = (char *)how;
	memcpy(argv + 5, words, n * sizeof(char *));
	execve(p.interpreter, argv, environ);
	die(EXIT_SETUP, "can't start Python: %s: %s", p.interpreter, strerror(errno));
}
