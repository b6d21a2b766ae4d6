/* SPDX-License-Identifier: Apache-2.0 */
/* Reads plugstack.conf's arguments that the plugin needs, such as the paths of parts. Python reads the others. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin.h"

/* Return a site argument's value, else `beside`, which may be relative to this plugin's directory. */
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

/* Whether a site argument, which is no by default, is yes. */
bool site_says_yes(const char *key, int ac, char **av)
{
	size_t n = strlen(key);
	bool yes = false;

	for (int i = 0; i < ac; i++)
		if (!strncmp(av[i], key, n) && av[i][n] == '=')
			yes = !strcmp(av[i] + n + 1, "yes");
	return yes;
}
