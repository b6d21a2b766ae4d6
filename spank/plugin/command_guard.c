/* SPDX-License-Identifier: Apache-2.0 */
/* A node without this plugin would run the command on the host, and say nothing.
 *
 * So srun's side puts a word in the command's place that no host can execute,
 * and the command travels beside it; the node's side puts it back. A batch
 * script is out of a plugin's reach, and so are the commands of --multi-prog.
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

/* Whether a --multi-prog file's text is in place of arguments, if that option may
 * have been given. The first line that says something begins with task numbers. */
bool guard_is_multi_prog(int argc, char **argv)
{
	const char *text;

	if (argc < 2)
		return false;
	for (text = argv[1]; *text == '#' || *text == '\n' || *text == ' ' || *text == '\t';)
		text += *text == '#' ? strcspn(text, "\n") : 1;
	return *text == '*' || (*text >= '0' && *text <= '9');
}

/* In srun, after the options, once for each component of a heterogeneous step. */
int guard_local_user_init(spank_t sp)
{
	char **argv = NULL, *word;
	uint32_t step;
	int argc = 0;

	if (!getenv(REQUEST_VARIABLE))
		return ESPANK_SUCCESS;
	/* salloc's shell is on the host in any case. */
	if (spank_get_item(sp, S_JOB_STEPID, &step) == ESPANK_SUCCESS && step == SLURM_INTERACTIVE_STEP)
		return ESPANK_SUCCESS;
	if (spank_get_item(sp, S_JOB_ARGV, &argc, &argv) != ESPANK_SUCCESS || argc < 1)
		return ESPANK_SUCCESS;
	if (getenv(MULTI_PROG_VARIABLE) && guard_is_multi_prog(argc, argv))
		return ESPANK_SUCCESS;
	if (!strcmp(argv[0], GUARD)) /* srun launches again; the variable is there */
		return ESPANK_SUCCESS;
	if (other_container(argc))
		exit(EXIT_USAGE);
	word = strdup(GUARD);
	if (!word || setenv(COMMAND_VARIABLE, argv[0], 1)) {
		free(word);
		slurm_error("slurm_ch: can't guard the command");
		return ESPANK_ERROR;
	}
	argv[0] = word; /* srun's now */
	return ESPANK_SUCCESS;
}

bool guard_is(const char *word)
{
	return !strcmp(word, GUARD);
}
