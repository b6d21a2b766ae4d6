/* SPDX-License-Identifier: Apache-2.0 */
/* Looks up a variable in the job's environment, which is not this process's. */
#include <string.h>

#include "plugin.h"

const char *variable(char **env, const char *name)
{
	size_t n = strlen(name);

	for (char **e = env; e && *e; e++)
		if (!strncmp(*e, name, n) && (*e)[n] == '=')
			return *e + n + 1;
	return NULL;
}
