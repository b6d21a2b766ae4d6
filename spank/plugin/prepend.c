/* SPDX-License-Identifier: Apache-2.0 */
/* Puts ch-join in front of a task's command, on the node. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../agreement.h"
#include "plugin.h"
#include "step_sockets.h"

typedef spank_err_t prepend_f(spank_t, int, const char **);

/* Put `path` in front of the command by Slurm's function for that, since 23.02.5. ch-join then drops its own
 * word; after a "+" in `join`, it also restores the command. */
static int prepend_by_api(spank_t sp, prepend_f *api, const char *path, const char *command,
			  const char *broker, char **join)
{
	const char *first[] = { path };

	if (asprintf(join, command ? "%d%s+%s" : "%d%s", tasks_end.fd, broker, command) < 0)
		return -1;
	return api(sp, 1, first) == ESPANK_SUCCESS ? 0 : -1;
}

/* In srun, the plugin has put ch-join in front of each task's command already. */
static int keep_command(const char *broker, char **join)
{
	return asprintf(join, "%d%s", tasks_end.fd, broker) < 0 ? -1 : 0;
}

/* Before 23.02.5: replace the command's first word by `path`, and pass that word in `join`. */
static int replace_command(const char *path, const char *command, const char *broker, char **word,
			   char **join)
{
	char *copy;

	if (asprintf(join, "%d%s %s", tasks_end.fd, broker, command ? command : *word) < 0)
		return -1;
	copy = strdup(path);
	if (!copy)
		return -1;
	*word = copy; /* from now on Slurm's; the task may use it until its end */
	return 0;
}

/* Put ch-join in front of the command, and tell it which broker it may start; return -1 after reporting why not. */
int prepend_ch_join(spank_t sp, int id, char **env, const char *path, const char *broker)
{
	prepend_f *api = (prepend_f *)dlsym(RTLD_DEFAULT, "spank_prepend_task_argv");
	const char *command = NULL;
	char **argv = NULL, *join = NULL;
	int argc = 0, failed = -1;
	bool several, there;

	if (spank_get_item(sp, S_JOB_ARGV, &argc, &argv) != ESPANK_SUCCESS || argc < 1)
		goto out;
	if (guard_is(argv[0])) {
		command = variable(env, COMMAND_VARIABLE);
		if (!command)
			goto out;
	}
	several = variable(env, MULTI_PROG_VARIABLE) && is_multi_prog(argc, argv);
	there = several && multi_prog_goes_through(argv[1], variable(env, MULTI_PROG_VARIABLE));
	if (!api && several && !there) {
		/* Each task has an argument array of its own, out of reach. */
		if (id == 0)
			complain("--ch-image and --multi-prog together need Slurm "
				 "23.02.5 or later; refusing to run on the host");
		return -1;
	}
	failed = there ? keep_command(broker, &join) :
		 api   ? prepend_by_api(sp, api, path, command, broker, &join) :
			 replace_command(path, command, broker, argv, &join);
	if (!failed)
		failed = spank_setenv(sp, JOIN_VARIABLE, join, 1) == ESPANK_SUCCESS ? 0 : -1;
out:
	if (failed)
		complain("can't put ch-join in front of the command");
	free(join);
	spank_unsetenv(sp, MULTI_PROG_VARIABLE);
	spank_unsetenv(sp, EXPORTED_VARIABLE);
	spank_unsetenv(sp, COMMAND_VARIABLE);
	return failed;
}
