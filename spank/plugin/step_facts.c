/* SPDX-License-Identifier: Apache-2.0 */
/* Begins the facts for the launcher or the checker. */
#include "plugin.h"

/* Open the facts and write what is always in them: environment, site's arguments, request. */
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
