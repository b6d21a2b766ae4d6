/* SPDX-License-Identifier: Apache-2.0 */
/* What the launcher and the checker are told, as data, and where they are. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../agreement.h"
#include "plugin.h"

/* A site argument's value, or what lies at `beside` this plugin's directory. */
char *site_path(const char *key, const char *beside, int ac, char **av)
{
	size_t n = strlen(key);
	Dl_info self;
	char real[PATH_MAX], *path, *slash;

	for (int i = 0; i < ac; i++)
		if (!strncmp(av[i], key, n) && av[i][n] == '=' && av[i][n + 1])
			return strdup(av[i] + n + 1);
	if (*beside == '/')
		return strdup(beside);
	if (!dladdr(site_path, &self) || !realpath(self.dli_fname, real) ||
	    !(slash = strrchr(real, '/')))
		return NULL;
	*slash = '\0';
	return asprintf(&path, "%s/%s", real, beside) < 0 ? NULL : path;
}

void facts_record(FILE *out, char kind, const char *text)
{
	fprintf(out, "%c%s", kind, text);
	fputc('\0', out);
}

/* Open a memory file with what is always in it: site, request, environment.
 * The caller adds to it, and ends with facts_close. */
FILE *facts_open(int *fd, const char *request, char **env, int ac, char **av)
{
	int copy;
	FILE *out;

	*fd = memfd_create("slurm_ch-facts", MFD_CLOEXEC);
	if (*fd < 0)
		return NULL;
	copy = fcntl(*fd, F_DUPFD_CLOEXEC, 10);
	out = copy < 0 ? NULL : fdopen(copy, "w");
	if (!out) {
		if (copy >= 0)
			close(copy);
		close(*fd);
		return NULL;
	}
	fprintf(out, "%s", FACTS_MAGIC);
	fputc('\0', out);
	for (int i = 0; i < ac; i++)
		facts_record(out, 'a', av[i]);
	facts_record(out, 'r', request);
	for (char **e = env; *e; e++)
		facts_record(out, 'e', *e);
	return out;
}

/* Return the memory file's descriptor, or -1 if not all of it could be written. */
int facts_close(int fd, FILE *out)
{
	if (!fclose(out))
		return fd;
	close(fd);
	return -1;
}
