/* SPDX-License-Identifier: Apache-2.0 */
/* What the launcher and the checker are told, and where they are. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* Open the facts with what is always in them: environment, site, request. */
FILE *step_facts(int *fd, const char *request, char **env, int ac, char **av)
{
	FILE *out = facts_open(fd, env);

	if (!out)
		return NULL;
	for (int i = 0; i < ac; i++)
		facts_record(out, FACT_ARGUMENT, av[i]);
	facts_record(out, FACT_REQUEST, request);
	return out;
}
