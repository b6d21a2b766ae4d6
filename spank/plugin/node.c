/* SPDX-License-Identifier: Apache-2.0 */
/* On the node: one socketpair per step, `ch-join` in front of each command,
 * and one launcher, started by local task 0. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../agreement.h"
#include "plugin.h"

/* The tasks' end and the launcher's end. */
static int tasks_end = -1, launcher_end = -1;
/* user_init's errors don't reach the user: kept for task_init. */
static int socket_errno;

static const char *variable(char **env, const char *name)
{
	size_t n = strlen(name);

	for (char **e = env; e && *e; e++)
		if (!strncmp(*e, name, n) && (*e)[n] == '=')
			return *e + n + 1;
	return NULL;
}

enum wish { HOST, CONTAINER, UNKNOWN };

/* Whether this step runs in a container, and if so, its environment. */
static enum wish wanted(spank_t sp, uint32_t *step, char ***env)
{
	if (spank_get_item(sp, S_JOB_STEPID, step) != ESPANK_SUCCESS)
		return UNKNOWN;
	/* salloc's own shell stays on the host: its options are for the steps. */
	if (*step == SLURM_EXTERN_CONT || *step == SLURM_INTERACTIVE_STEP)
		return HOST;
	if (spank_get_item(sp, S_JOB_ENV, env) != ESPANK_SUCCESS || !*env)
		return UNKNOWN;
	if (variable(*env, REQUEST_VARIABLE))
		return CONTAINER;
	return submit_remote_saw_option() ? UNKNOWN : HOST;
}

int node_user_init(spank_t sp)
{
	uint32_t step;
	char **env;
	int pair[2];

	if (wanted(sp, &step, &env) != CONTAINER)
		return ESPANK_SUCCESS;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
		socket_errno = errno;
		return ESPANK_SUCCESS;
	}
	tasks_end = pair[0];
	launcher_end = pair[1];
	return ESPANK_SUCCESS;
}

static void close_end(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* All tasks are forked by now. A copy of the launcher's end that stays open
 * here would keep its death from the tasks. */
int node_task_post_fork(void)
{
	close_end(&tasks_end);
	close_end(&launcher_end);
	return ESPANK_SUCCESS;
}

static void close_tasks_end(void)
{
	close_end(&tasks_end);
}

void node_free(void)
{
	node_task_post_fork();
}

/* Everything that the launcher may need to know, as data. */
static int write_facts(spank_t sp, uint32_t step, char **env, int ac, char **av)
{
	uint32_t tasks;
	char count[16], **argv = NULL;
	int argc, fd;
	FILE *out = facts_open(&fd, variable(env, REQUEST_VARIABLE), env, ac, av);

	if (!out)
		return -1;
	if (spank_get_item(sp, S_JOB_LOCAL_TASK_COUNT, &tasks) == ESPANK_SUCCESS) {
		snprintf(count, sizeof(count), "%u", tasks);
		facts_record(out, 't', count);
	}
	if (step == SLURM_BATCH_SCRIPT &&
	    spank_get_item(sp, S_JOB_ARGV, &argc, &argv) == ESPANK_SUCCESS && argc > 0)
		facts_record(out, 'b', argv[0]);
	return facts_close(fd, out);
}

static int start_launcher(spank_t sp, uint32_t step, char **env, int ac, char **av)
{
	char *python = site_path("python", "/usr/bin/python3", ac, av);
	char *launcher = site_path("launcher", "../plugin/launch.py", ac, av);
	struct launch l = { python, launcher, -1, launcher_end };
	int failed = -1;

	if (python && launcher) {
		l.facts = write_facts(sp, step, env, ac, av);
		if (l.facts >= 0) {
			failed = launch_start(&l);
			close(l.facts);
		}
	}
	if (failed)
		slurm_error("slurm_ch: can't start the launcher: %s", strerror(errno));
	free(python);
	free(launcher);
	return failed;
}

typedef spank_err_t prepend_f(spank_t, int, const char **);

/* Put `path` in front of the command the way that Slurm has for it, since
 * 23.02.5. ch-join passes over itself, and with a "+" puts the command in. */
static int prepend_by_api(spank_t sp, prepend_f *api, const char *path, const char *command,
			  const char *broker, char **join)
{
	const char *first[] = { path };

	if (asprintf(join, command ? "%d%s+%s" : "%d%s", tasks_end, broker, command) < 0)
		return -1;
	return api(sp, 1, first) == ESPANK_SUCCESS ? 0 : -1;
}

/* Before that: put `path` in the command's place, which travels in `join`. */
static int replace_command(const char *path, const char *command, const char *broker, char **word,
			   char **join)
{
	char *copy;

	if (asprintf(join, "%d%s %s", tasks_end, broker, command ? command : *word) < 0)
		return -1;
	copy = strdup(path);
	if (!copy)
		return -1;
	*word = copy; /* Slurm's now, for as long as the task is */
	return 0;
}

/* Put ch-join in front of the command, and tell it which broker it may start. */
static int prepend(spank_t sp, int id, char **env, const char *path, const char *broker)
{
	prepend_f *api = (prepend_f *)dlsym(RTLD_DEFAULT, "spank_prepend_task_argv");
	const char *command = NULL;
	char **argv = NULL, *join = NULL;
	int argc = 0, failed = -1;

	if (spank_get_item(sp, S_JOB_ARGV, &argc, &argv) != ESPANK_SUCCESS || argc < 1)
		goto out;
	if (guard_is(argv[0])) {
		command = variable(env, COMMAND_VARIABLE);
		if (!command)
			goto out;
	}
	if (!api && variable(env, MULTI_PROG_VARIABLE) && guard_is_multi_prog(argc, argv)) {
		/* Each task has an argument array of its own, out of reach. */
		if (id == 0)
			slurm_error("slurm_ch: --ch-image and --multi-prog together need Slurm "
				    "23.02.5 or later; refusing to run on the host");
		return -1;
	}
	failed = api ? prepend_by_api(sp, api, path, command, broker, &join) :
		       replace_command(path, command, broker, argv, &join);
	if (!failed)
		failed = spank_setenv(sp, JOIN_VARIABLE, join, 1) == ESPANK_SUCCESS ? 0 : -1;
out:
	if (failed)
		slurm_error("slurm_ch: can't put ch-join in front of the command");
	free(join);
	spank_unsetenv(sp, MULTI_PROG_VARIABLE);
	spank_unsetenv(sp, COMMAND_VARIABLE);
	return failed;
}

/* Slurm goes on to run the command, on the host, when this plugin is optional
 * or returns a positive error: only the end of the process is sure. */
static void __attribute__((noreturn)) refuse(void)
{
	_exit(EXIT_SETUP);
}

int node_task_init(spank_t sp, int ac, char **av)
{
	uint32_t step;
	char **env = NULL;
	enum wish wish = wanted(sp, &step, &env);
	int id = -1;
	const char *request;
	char *path, *broker;

	/* Slurm doesn't tell, and nobody asked for a container: as without us. */
	if (wish == UNKNOWN && tasks_end < 0 && !submit_remote_saw_option())
		wish = HOST;
	if (wish == HOST) {
		spank_unsetenv(sp, REQUEST_VARIABLE); /* salloc's, for its steps */
		return ESPANK_SUCCESS;
	}
	if (wish == UNKNOWN) {
		slurm_error("slurm_ch: --ch-* options were given, but " REQUEST_VARIABLE
			    " did not get here; refusing to run on the host");
		refuse();
	}
	if (spank_get_item(sp, S_TASK_ID, &id) != ESPANK_SUCCESS) {
		slurm_error("slurm_ch: can't find out which task this is");
		refuse();
	}
	if (tasks_end < 0) {
		if (id == 0)
			slurm_error("slurm_ch: can't create a socket pair: %s",
				    strerror(socket_errno));
		refuse();
	}
	if (id == 0 && start_launcher(sp, step, env, ac, av))
		refuse();
	close_end(&launcher_end);
	path = site_path("ch_join", "ch-join", ac, av);
	if (!path || access(path, X_OK)) {
		if (id == 0) /* once is enough: it is the same for all */
			slurm_error("slurm_ch: can't execute ch-join: %s: %s",
				    path ? path : "?", strerror(errno));
		refuse();
	}
	request = variable(env, REQUEST_VARIABLE);
	broker = broker_allowed(request ? request : "", step == SLURM_BATCH_SCRIPT, ac, av);
	/* The one descriptor that the task's own exec must not close. What the
	 * task forks before that, a TaskProlog, gets none. */
	if (!broker || prepend(sp, id, env, path, broker) ||
	    pthread_atfork(NULL, NULL, close_tasks_end) || fcntl(tasks_end, F_SETFD, 0))
		refuse();
	spank_unsetenv(sp, REQUEST_VARIABLE);
	free(broker);
	free(path);
	return ESPANK_SUCCESS;
}
