/* SPDX-License-Identifier: Apache-2.0 */
/* Guards the command, because a node without this plugin would run it on the host without a word.
 *
 * In srun, the plugin replaces the command by a path that no host can execute, and passes
 * the command in a variable; on the node, the plugin restores it. No plugin can replace a
 * batch script; nor, since Slurm 23.02.5, the commands of --multi-prog (multi_prog.c); nor,
 * of an srun of several components, the commands of more than one.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../agreement.h"
#include "plugin.h"

/* A path in a directory where nothing can be created. Slurm reports "execve(): ...: No such file". */
#ifndef GUARD /* a test builds a plugin of another version */
#define GUARD "/proc/no-slurm_ch-plugin-on-this-node,-or-an-older-one"
#endif

/* Whether the words from `first` to the end of a component are the command as it was typed: the same words,
 * but with a name instead of the path that srun has found for it. */
static bool is_typed(char **words, size_t count, size_t first, int argc, char **argv)
{
	size_t n = strlen(words[first]), whole = strlen(argv[0]);

	if (*words[first] == '/' || !n || whole <= n || argv[0][whole - n - 1] != '/' ||
	    strcmp(argv[0] + whole - n, words[first]) || first + argc > count ||
	    (first + argc < count && strcmp(words[first + argc], ":")))
		return false;
	for (int i = 1; i < argc; i++)
		if (strcmp(words[first + i], argv[i]))
			return false;
	return true;
}

/* Return the command's first word as it was typed. srun replaces ./app by a path of this machine, and with
 * LaunchParameters=test_exec every name: in the container, that path may be missing or another program. NULL
 * if there is no memory; freed by the caller. */
static char *as_typed(int argc, char **argv)
{
	char **words = *argv[0] == '/' ? command_line() : NULL, *found = NULL;
	size_t count = 0;

	while (words && words[count])
		count++;
	for (size_t i = 1; i < count && !found; i++)
		if (is_typed(words, count, i, argc, argv))
			found = strdup(words[i]);
	free(words);
	return found ? found : strdup(argv[0]);
}

/* In srun, after the options. Of several components, Slurm calls this for one only, and only that one's step gets
 * the variables set here. */
int guard_local_user_init(spank_t sp, int ac, char **av)
{
	char **argv = NULL, *word, *typed;
	uint32_t step;
	int argc = 0;

	if (!getenv(REQUEST_VARIABLE))
		return ESPANK_SUCCESS;
	/* salloc's shell always runs on the host. */
	if (spank_get_item(sp, S_JOB_STEPID, &step) == ESPANK_SUCCESS && step == SLURM_INTERACTIVE_STEP)
		return ESPANK_SUCCESS;
	if (spank_get_item(sp, S_JOB_ARGV, &argc, &argv) != ESPANK_SUCCESS || argc < 1)
		return ESPANK_SUCCESS;
	if (getenv(MULTI_PROG_VARIABLE) && is_multi_prog(argc, argv)) {
		if (multi_prog_guard(argv, ac, av))
			exit(EXIT_USAGE);
		return ESPANK_SUCCESS;
	}
	if (!strcmp(argv[0], GUARD)) /* srun launches again; the variable is set already */
		return ESPANK_SUCCESS;
	if (other_container(argc))
		exit(EXIT_USAGE);
	word = strdup(GUARD);
	typed = as_typed(argc, argv);
	if (!word || !typed || setenv(COMMAND_VARIABLE, typed, 1)) {
		free(word);
		free(typed);
		complain("can't guard the command");
		return ESPANK_ERROR;
	}
	free(typed);
	argv[0] = word; /* from now on srun's */
	return ESPANK_SUCCESS;
}

bool guard_is(const char *word)
{
	return !strcmp(word, GUARD);
}
