/* SPDX-License-Identifier: Apache-2.0 */
/* Tells which of Slurm's commands this is. Slurm doesn't tell plugins, and a site may have renamed the program to
 * put a script of its own in its place. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "plugin.h"

/* Whether the name that the program was called by, or its file's name, contains the word. */
static bool name_has(const char *word)
{
	char path[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
	const char *slash;

	if (strstr(program_invocation_short_name, word))
		return true;
	path[n < 0 ? 0 : n] = '\0';
	slash = strrchr(path, '/');
	return slash && strstr(slash, word);
}

const char *submitter(void)
{
	if (!strcmp(program_invocation_short_name, "sbatch") || !strcmp(program_invocation_short_name, "salloc"))
		return program_invocation_short_name;
	if (spank_context() != S_CTX_ALLOCATOR)
		return "srun";
	/* In doubt sbatch, because that is the program that sites wrap to enforce rules. */
	return name_has("salloc") ? "salloc" : "sbatch";
}
