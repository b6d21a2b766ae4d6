/* SPDX-License-Identifier: Apache-2.0 */
/* Refuses a request for a container together with Slurm's own --container, which passes the step to an OCI
 * runtime: one container would be inside the other, or run in its place.
 *
 * Slurm doesn't tell plugins about its own options, so this looks for their words and variables.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "options.h"

/* A shorter word may be an abbreviation of --contiguous. */
#define LEAST strlen("--conta")

static bool names_runtime(const char *word)
{
	size_t n = strcspn(word, "=");

	return (n >= LEAST && (!strncmp(word, "--container-id", n) || !strncmp(word, "--container-type", n))) ||
	       (n == strlen("--runtime") && !strncmp(word, "--runtime", n));
}

/* Whether the word may be the command, which ends the options; an option's value may look like one too. */
static bool may_be_command(const char *word, bool script)
{
	struct stat st;

	if (script)
		return !stat(word, &st) && S_ISREG(st.st_mode);
	return *word != '-' && strspn(word, "0123456789:,-") < strlen(word);
}

/* Return the first word of this command line that requests Slurm's container, or NULL; freed by the caller. The
 * last `command_words` words are the command; if that is 0, look for the command's beginning. */
static char *on_command_line(int command_words)
{
	bool script = !strcmp(submitter(), "sbatch"), several = false;
	char **words = command_line(), *found = NULL;
	int count = 0, n = 0;

	if (!words)
		return NULL;
	for (; words[count]; count++)
		several |= command_words && !strcmp(words[count], ":");
	/* With several components, the last words may belong to another component's command. */
	for (; !several && !found && n < count; n++) {
		if (command_words ? n >= count - command_words : n && may_be_command(words[n], script))
			break;
		if (names_runtime(words[n]))
			found = strndup(words[n], strcspn(words[n], "="));
	}
	/* A script's #SBATCH lines may have it too. */
	if (!found && script && n && words[n] && batch_script_has(words[n], names_runtime))
		found = strdup("#SBATCH --container");
	free(words);
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

/* Return the option that requests our container. */
static const char *own_option(void)
{
	const int asking[] = { OPTION_CONTAINER_IMAGE, OPTION_CONTAINER_NAME };

	for (size_t i = 0; i < sizeof(asking) / sizeof(asking[0]); i++)
		if (option_given(asking[i], setting_count))
			return options[asking[i]].name;
	return options[OPTION_IMAGE].name;
}

/* Whether Slurm's own container is requested as well; if so, report it. */
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
