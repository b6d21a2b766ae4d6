/* SPDX-License-Identifier: Apache-2.0 */
/* The words of the command, and the variables of Slurm and mpirun: read by the static program
 * before anything else. What it understands must be sound; for all else there is Python.
 *
 * Variables come first, up to an empty string: the first byte is which, the rest its value. */
#define _GNU_SOURCE
#include <string.h>

#include "fuzz.h"

#include "../../spank/ch-join/step.c"
#include "../../spank/ch-join/words.c"

#define MOST 64

extern char **environ;

static char *set_variables(char **env)
{
	static const char *const names[] = {
		"SLURM_JOB_ID",	   "SLURM_STEP_ID",	 "SLURM_STEP_TASKS_PER_NODE",  "SLURM_NODEID",	 "SLURMD_NODENAME",
		"SLURM_PROCID",	   "SLURM_CPUS_ON_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE", "PMIX_NAMESPACE", "OMPI_COMM_WORLD_RANK",
		"SLURM_HET_JOB_OFFSET", "SLURM_GTIDS",	 "SLURM_RESTART_COUNT",	       HYDRA_COUNT,	 "PMI_RANK",
	};
	size_t n = 0;

	while (n < MOST && fuzz_size) {
		char *text = fuzz_string(), *pair;

		if (!*text)
			break;
		if (asprintf(&pair, "%s=%s", names[(unsigned char)*text % (sizeof(names) / sizeof(*names))], text + 1) < 0)
			abort();
		env[n++] = pair;
	}
	env[n] = NULL;
	return n ? env[0] : NULL;
}

static void check_words(char **words, size_t count, const struct words *w)
{
	size_t image = count;

	if (w->count > count || (w->command && (w->command <= words || w->command > words + count)))
		abort();
	if (w->peers > JOIN_MAX || !w->seconds || w->seconds > JOIN_SECONDS_MAX || (w->join && w->by_pid))
		abort();
	if (w->tag && (!*w->tag || strlen(w->tag) > TAG_MAX || w->tag[strspn(w->tag, TAG_LETTERS)]))
		abort();
	for (size_t i = 0; i < count; i++)
		if (words[i] == w->image)
			image = i;
	/* There is no command without an image, except in a container that exists. */
	if (w->image ? !*w->image || image >= w->count : !w->by_pid || !w->command || !*w->command)
		abort();
}

static void check_step(const struct words *w, const struct step *s)
{
	if (!*s->tag || strlen(s->tag) > TAG_MAX || s->tag[strspn(s->tag, TAG_LETTERS)])
		abort();
	if (!s->peers || s->peers > JOIN_MAX || s->rank < -1 || strlen(s->name) >= sizeof(s->name))
		abort();
	if ((w->tag && strcmp(w->tag, s->tag)) || (w->peers && w->peers != s->peers))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static char *env[MOST + 1], *words[MOST + 1];
	char **before = environ;
	struct words w;
	struct step s;
	size_t n = 0;

	fuzz_data = data;
	fuzz_size = size;
	set_variables(env);
	while (n < MOST && fuzz_size)
		words[n++] = fuzz_string();
	words[n] = NULL;
	environ = env;
	if (words_read(words, &w)) {
		check_words(words, n, &w);
		words_is_reference(&w);
		if (step_read(&w, &s))
			check_step(&w, &s);
	}
	environ = before;
	for (size_t i = 0; env[i]; i++)
		free(env[i]);
	fuzz_free_strings();
	return 0;
}
