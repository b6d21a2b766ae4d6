/* SPDX-License-Identifier: Apache-2.0 */
/* The plugin on the node, where any call to Slurm may fail: the launcher's facts,
 * and never the command on the host. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../native/spank_fake.h"
#include "fuzz.h"

static bool prepends, prepended, wants_container;
static uint64_t failures;
static int calls;
static char *variables[128], *arguments[8], **words;
static int word_count;

static bool api_fails(void)
{
	return failures >> (calls++ % 64) & 1;
}

static spank_err_t fuzz_prepend(spank_t sp, int argc, const char **argv)
{
	(void)sp;
	if (api_fails())
		return ESPANK_ERROR;
	if (argc != 1 || strcmp(argv[0], "/bin/true"))
		abort();
	prepended = true;
	return ESPANK_SUCCESS;
}

static void *fuzz_dlsym(void *handle, const char *name)
{
	(void)handle, (void)name;
	return prepends ? (void *)fuzz_prepend : NULL;
}

#define _exit fuzz_exit
#define dlsym fuzz_dlsym
#include "../../spank/plugin/step_sockets.c"
#include "../../spank/plugin/node.c"
#include "../../spank/plugin/prepend.c"
#include "../../spank/plugin/anchor.c"
#include "../../spank/plugin/batch_script.c"
#include "../../spank/plugin/command_guard.c"
#include "../../spank/plugin/command_line.c"
#include "../../spank/plugin/components.c"
#include "../../spank/plugin/multi_prog.c"
#include "../../spank/plugin/request_lines.c"
#include "../../spank/plugin/saver.c"
#include "../../spank/plugin/variable.c"

bool other_container(int command_words)
{
	(void)command_words;
	return false;
}

#include "../../spank/plugin/site_arguments.c"
#include "../../spank/plugin/step_facts.c"
#include "../../spank/common/facts.c"
#include "../../spank/plugin/broker_allowed.c"
#undef _exit

bool options_remote_saw_option(void)
{
	return wants_container;
}

static char *join_value;

static void job_setenv(const char *name, const char *value)
{
	if (strncmp(name, SRUN_PREFIX, strlen(SRUN_PREFIX)))
		abort();
	/* other variables: the saver's, and those of a script's defaults with paths */
	if (strcmp(name, JOIN_VARIABLE))
		return;
	free(join_value);
	join_value = strdup(value);
}

static void job_unsetenv(const char *name)
{
	(void)name;
}

static void show_error(const char *text)
{
	(void)text;
}

/* Every string is one record, whatever it contains. */
int launch_start(const struct launch *l)
{
	struct stat st;
	char *text, *at;
	int variable_count = 0, argument_count = 0, requests = 0;

	if (fstat(l->facts, &st))
		abort();
	text = malloc(st.st_size);
	if (pread(l->facts, text, st.st_size, 0) != st.st_size || text[st.st_size - 1] ||
	    strcmp(text, FACTS_MAGIC))
		abort();
	for (at = text + sizeof(FACTS_MAGIC); at < text + st.st_size; at += strlen(at) + 1) {
		switch (*at) {
		case 'e':
			if (strcmp(at + 1, job_env[variable_count++]))
				abort();
			break;
		case 'a':
			if (strcmp(at + 1, words[argument_count++]))
				abort();
			break;
		case 'r':
			requests++;
			break;
		case 't':
		case 'b':
		case 'j':
			break;
		default:
			abort();
		}
	}
	if (requests != 1 || argument_count != word_count || job_env[variable_count])
		abort();
	free(text);
	return api_fails() ? -1 : 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint32_t steps[] = { 0, 1, SLURM_BATCH_SCRIPT, SLURM_EXTERN_CONT, SLURM_INTERACTIVE_STEP };
	char *site[4] = { "ch_join=/bin/true", NULL };
	uint8_t way;
	int n;

	fuzz_data = data;
	fuzz_size = size;
	way = fuzz_byte();
	prepends = way & 1;
	wants_container = way & 2;
	task_id = way >> 2 & 1;
	job_step = steps[fuzz_byte() % 5];
	failures = 0;
	for (int i = 0; i < 3; i++)
		failures |= (uint64_t)(fuzz_byte() & fuzz_byte()) << (8 * i);
	calls = 0;
	job_env = variables;
	job_argv = arguments;
	job_tasks = 4;
	context = S_CTX_REMOTE;
	prepended = false;
	for (word_count = 1; word_count < 1 + (way >> 4 & 3) && word_count < 4; word_count++)
		site[word_count] = fuzz_string();
	words = site;
	job_argc = way >> 6;
	for (int i = 0; i < job_argc; i++)
		job_argv[i] = fuzz_string();
	job_argv[job_argc] = NULL;
	for (n = 0; n < 100 && fuzz_size; n++)
		job_env[n] = fuzz_string();
	job_env[n] = NULL;
	char *first = job_argv[0];
	bool whole = false;

	if (!setjmp(fuzz_top)) {
		node_init_post_opt(NULL);
		node_user_init();
		whole = node_task_init(NULL, word_count, site) == ESPANK_SUCCESS;
	}
	/* If the plugin lets the task go on, the task runs ch-join, or no container was requested. */
	if (whole && variable(job_env, REQUEST_VARIABLE) && wants_container && job_step < 2 &&
	    !prepended && job_argv[0] == first)
		abort();
	if (job_argc && job_argv[0] != first)
		free(job_argv[0]);
	free(join_value);
	join_value = NULL;
	node_free();
	fuzz_free_strings();
	return 0;
}
