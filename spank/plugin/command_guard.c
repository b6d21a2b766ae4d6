/* SPDX-License-Identifier: Apache-2.0 */
/* A node without this plugin would run the command on the host, and say nothing.
 *
 * So srun's side puts a word in the command's place that no host can execute,
 * and the command travels beside it; the node's side puts it back. A batch
 * script is out of a plugin's reach, and so are, since Slurm
 * 23.02.5, the commands of --multi-prog (multi_prog.c) and, of an srun of several components, those of all but one.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../agreement.h"
#include "plugin.h"

/* Where nothing can be created. Slurm shows it: "execve(): ...: No such file". */
#ifndef GUARD /* the tests' plugin of another age */
#define GUARD "/proc/no-slurm_ch-plugin-on-this-node,-or-an-older-one"
#endif

/* Whether the words from `first` on, up to the end of a component, are the command as it was
 * typed: with a name in the place of the path that srun has found for it. */
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

/* The command's first word as it was typed. srun puts a path of this machine in the place of
 * ./app, and with LaunchParameters=test_exec in the place of every name: in the container, that
 * may be nowhere, or another program. NULL if there is no memory; freed by the caller. */
static char *as_typed(int argc, char **argv)
{
	FILE *in = *argv[0] == '/' ? fopen("/proc/self/cmdline", "re") : NULL;
	char **words = NULL, *one = NULL, *found = NULL;
	size_t all = 0, count = 0, size = 0;

	while (in && getdelim(&one, &size, '\0', in) > 0)
		all++;
	words = calloc(all + 1, sizeof(*words));
	if (in && words)
		rewind(in);
	for (; words && count < all; count++) {
		size = 0;
		if (getdelim(&words[count], &size, '\0', in) <= 0)
			break;
	}
	for (size_t i = 1; i < count && !found; i++)
		if (is_typed(words, count, i, argc, argv))
			found = strdup(words[i]);
	for (size_t i = 0; words && i < all; i++)
		free(words[i]);
	free(words);
	free(one);
	if (in)
		fclose(in);
	return found ? found : strdup(argv[0]);
}

/* In srun, after the options; of several components Slurm calls it for one, and its step alone
 * has the environment of after it. */
int guard_local_user_init(spank_t sp, int ac, char **av)
{
	char **argv = NULL, *word, *typed;
	uint32_t step;
	int argc = 0;

	if (!getenv(REQUEST_VARIABLE))
		return ESPANK_SUCCESS;
	/* salloc's shell is on the host in any case. */
	if (spank_get_item(sp, S_JOB_STEPID, &step) == ESPANK_SUCCESS && step == SLURM_INTERACTIVE_STEP)
		return ESPANK_SUCCESS;
	if (spank_get_item(sp, S_JOB_ARGV, &argc, &argv) != ESPANK_SUCCESS || argc < 1)
		return ESPANK_SUCCESS;
	if (getenv(MULTI_PROG_VARIABLE) && is_multi_prog(argc, argv)) {
		if (multi_prog_guard(argv, ac, av))
			exit(EXIT_USAGE);
		return ESPANK_SUCCESS;
	}
	if (!strcmp(argv[0], GUARD)) /* srun launches again; the variable is there */
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
	argv[0] = word; /* srun's now */
	return ESPANK_SUCCESS;
}

bool guard_is(const char *word)
{
	return !strcmp(word, GUARD);
}
