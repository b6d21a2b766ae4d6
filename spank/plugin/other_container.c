/* SPDX-License-Identifier: Apache-2.0 */
/* Slurm's own containers: --container hands the step to an OCI runtime, which would run
 * ours in its place or inside of it. Nobody can mean both.
 *
 * No plugin is told of Slurm's options, so their words and variables are looked for.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "options.h"

/* Shorter, it might be --contiguous. */
#define LEAST strlen("--conta")

static bool names_runtime(const char *word)
{
	size_t n = strcspn(word, "=");

	return (n >= LEAST && (!strncmp(word, "--container-id", n) || !strncmp(word, "--container-type", n))) ||
	       (n == strlen("--runtime") && !strncmp(word, "--runtime", n));
}

/* Whether the options may end here: the command, or an option's value that looks like one. */
static bool may_be_command(const char *word, bool script)
{
	struct stat st;

	if (script)
		return !stat(word, &st) && S_ISREG(st.st_mode);
	return *word != '-' && strspn(word, "0123456789:,-") < strlen(word);
}

/* Return the first such word of this command line, or NULL; freed by the caller. The
 * last `command_words` are the command's own, if they are known, else it is looked for. */
static char *on_command_line(int command_words)
{
	bool script = !strcmp(submitter(), "sbatch"), several = false;
	FILE *in = fopen("/proc/self/cmdline", "re");
	char *word = NULL, *found = NULL;
	size_t size = 0;
	int words = 0, n;

	if (!in)
		return NULL;
	if (command_words) {
		for (; getdelim(&word, &size, '\0', in) > 0; words++)
			several |= !strcmp(word, ":");
		rewind(in);
	}
	/* Of several components nobody knows which the last words belong to. */
	for (n = 0; !several && !found && getdelim(&word, &size, '\0', in) > 0; n++) {
		if (command_words ? n >= words - command_words : n && may_be_command(word, script))
			break;
		if (names_runtime(word))
			found = strndup(word, strcspn(word, "="));
	}
	/* A script may say it too. */
	if (!found && script && n && word && batch_script_says(word, names_runtime))
		found = strdup("#SBATCH --container");
	free(word);
	fclose(in);
	return found;
}

static const char *in_environment(void)
{
	static const char *const names[] = { "SRUN_CONTAINER", "SRUN_CONTAINER_ID", "SLURM_CONTAINER",
					     "SLURM_CONTAINER_ID" };
	static const char *const allocators[][2] = { { "SBATCH_CONTAINER", "SBATCH_CONTAINER_ID" },
						     { "SALLOC_CONTAINER", "SALLOC_CONTAINER_ID" } };
	const char *program = submitter();
	const char *const *list = names;
	size_t count = sizeof(names) / sizeof(names[0]);

	if (!strcmp(program, "sbatch") || !strcmp(program, "salloc")) {
		list = allocators[program[1] == 'a'];
		count = 2;
	}
	for (size_t i = 0; i < count; i++)
		if (getenv(list[i]) && *getenv(list[i]))
			return list[i];
	return NULL;
}

/* The option by which ours is asked for. */
static const char *own_option(void)
{
	const int asking[] = { OPTION_CONTAINER_IMAGE, OPTION_CONTAINER_NAME };

	for (size_t i = 0; i < sizeof(asking) / sizeof(asking[0]); i++)
		if (option_given(asking[i], setting_count))
			return options[asking[i]].name;
	return options[OPTION_IMAGE].name;
}

/* Whether a container of Slurm's own is asked for as well; says so. */
bool other_container(int command_words)
{
	const char *variable = in_environment();
	char *word = variable ? NULL : on_command_line(command_words);
	bool found = variable || word;

	if (found)
		complain("--%s and %s: each makes a container; give one of them", own_option(),
			 variable ? variable : word);
	free(word);
	return found;
}
