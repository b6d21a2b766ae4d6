/* SPDX-License-Identifier: Apache-2.0 */
/* On the node: `ch-join` in front of each command, and one launcher, started by
 * one of the tasks; they meet at a socket pair (step_sockets.c). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../agreement.h"
#include "../common/start_launcher.h"
#include "plugin.h"
#include "step_sockets.h"

static pid_t maker;
/* Whether later callbacks run in a child of slurmstepd's: set there, seen here. */
static bool contained;
static uint32_t tasks_gone;

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
	return options_remote_saw_option() ? UNKNOWN : HOST;
}

int node_init_post_opt(spank_t sp)
{
	uint32_t step;
	char **env;

	if (wanted(sp, &step, &env) == CONTAINER) {
		maker = getpid();
		contained = false;
		tasks_gone = 0;
		sockets_make();
	}
	return ESPANK_SUCCESS;
}

int node_user_init(void)
{
	if (tasks_end.fd >= 0)
		contained = getpid() != maker;
	return ESPANK_SUCCESS;
}

/* All tasks are forked by now. An end that stays open here would keep the death
 * of the task that may take it from the others, and the container from ending. */
int node_task_post_fork(void)
{
	if (!contained)
		node_free();
	return ESPANK_SUCCESS;
}

/* Where slurmstepd still has its copy, after the last task's end: what a task left
 * running gets no ticket any more, the launcher is told, and what is in the ticket
 * goes. All of it is done to the sockets, not to descriptors, and so from a child. */
int node_task_exit(spank_t sp)
{
	uint32_t tasks;

	if (tasks_end.fd < 0 || spank_get_item(sp, S_JOB_LOCAL_TASK_COUNT, &tasks) != ESPANK_SUCCESS ||
	    ++tasks_gone < tasks || !end_is_ours(&tasks_end))
		return ESPANK_SUCCESS;
	shutdown(tasks_end.fd, SHUT_RDWR);
	while (recv(tasks_end.fd, NULL, 0, MSG_DONTWAIT | MSG_TRUNC) > 0)
		;
	return ESPANK_SUCCESS;
}

static void close_tasks_end(void)
{
	end_close(&tasks_end);
}

void node_free(void)
{
	end_close(&tasks_end);
	end_close(&offer);
}

/* Everything that the launcher may need to know, as data. */
static int write_facts(spank_t sp, uint32_t step, const char *request, char **env, int ac, char **av)
{
	uint32_t tasks, job;
	char count[16], **argv = NULL;
	int argc, fd;
	size_t n;
	FILE *out = step_facts(&fd, request, env, ac, av);

	if (!out)
		return -1;
	if (spank_get_item(sp, S_JOB_LOCAL_TASK_COUNT, &tasks) == ESPANK_SUCCESS) {
		snprintf(count, sizeof(count), "%u", tasks);
		facts_record(out, FACT_TASKS, count);
	}
	if (last_line(request, "container-name=", &n) &&
	    spank_get_item(sp, S_JOB_ID, &job) == ESPANK_SUCCESS) {
		snprintf(count, sizeof(count), "%u", job);
		facts_record(out, FACT_JOB, count);
	}
	if (step == SLURM_BATCH_SCRIPT &&
	    spank_get_item(sp, S_JOB_ARGV, &argc, &argv) == ESPANK_SUCCESS && argc > 0)
		facts_record(out, FACT_SCRIPT, argv[0]);
	return facts_close(fd, out);
}

static int start_launcher(spank_t sp, uint32_t step, int sock, const char *request, char **env, int ac, char **av)
{
	char *python = site_path("python", DEFAULT_PYTHON, ac, av);
	char *launcher = site_path("launcher", DEFAULT_LAUNCHER, ac, av);
	struct launch l = { python, launcher, variable(env, "SLURMD_NODENAME"), -1, sock, -1, -1 };
	int failed = -1;

	if (python && launcher) {
		l.facts = write_facts(sp, step, request, env, ac, av);
		if (l.facts >= 0) {
			failed = launch_start(&l);
			close(l.facts);
		}
	}
	if (failed)
		complain("can't start the launcher: %s", strerror(errno));
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

	if (asprintf(join, command ? "%d%s+%s" : "%d%s", tasks_end.fd, broker, command) < 0)
		return -1;
	return api(sp, 1, first) == ESPANK_SUCCESS ? 0 : -1;
}

/* srun's side has put it in front of each task's command already. */
static int command_is_there(const char *broker, char **join)
{
	return asprintf(join, "%d%s", tasks_end.fd, broker) < 0 ? -1 : 0;
}

/* Before that: put `path` in the command's place, which travels in `join`. */
static int replace_command(const char *path, const char *command, const char *broker, char **word,
			   char **join)
{
	char *copy;

	if (asprintf(join, "%d%s %s", tasks_end.fd, broker, command ? command : *word) < 0)
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
	failed = there ? command_is_there(broker, &join) :
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

/* Slurm goes on to run the command, on the host, when this plugin is optional
 * or returns a positive error: only the end of the process is sure. */
static void __attribute__((noreturn)) refuse(void)
{
	_exit(EXIT_SETUP);
}

/* Start the launcher if that is for this task to do. Where slurmstepd can't close its
 * end of the offer, the tasks would never see that task 0 died before it took what is
 * offered: so there the first that comes takes it. Else it is task 0, whose standard
 * error the launcher's words go to. */
static void see_to_launcher(spank_t sp, uint32_t step, int id, const char *request, char **env, int ac, char **av)
{
	int sock;

	if (id == 0 || contained) {
		sock = sockets_take();
		if (sock < 0 && (errno || !contained)) {
			complain("can't take the launcher's socket: %s", strerror(errno));
			refuse();
		}
		if (sock >= 0 && start_launcher(sp, step, sock, request, env, ac, av))
			refuse();
		if (sock >= 0)
			close(sock);
	}
	end_close(&offer);
}

int node_task_init(spank_t sp, int ac, char **av)
{
	uint32_t step = 0;
	char **env = NULL, **argv = NULL;
	int argc = 0;
	enum wish wish = wanted(sp, &step, &env);
	int id = -1;
	const char *published;
	char *request, *path, *broker;

	/* Slurm doesn't tell, and nobody asked for a container: as without us. */
	if (wish == UNKNOWN && tasks_end.fd < 0 && !options_remote_saw_option())
		wish = HOST;
	if (step == SLURM_BATCH_SCRIPT && wish != UNKNOWN && env && anchor_defaults(sp, env)) {
		complain("can't anchor the relative paths in this script's " SRUN_PREFIX "*");
		refuse();
	}
	if (wish == HOST) {
		if (step == SLURM_BATCH_SCRIPT && spank_get_item(sp, S_JOB_ARGV, &argc, &argv) == ESPANK_SUCCESS &&
		    argc > 0 && batch_script_asks(argv[0])) {
			complain("the script has #SBATCH --ch- lines, but was not submitted by an "
				 "sbatch with this plugin; refusing to run it on the host");
			refuse();
		}
		spank_unsetenv(sp, REQUEST_VARIABLE); /* salloc's, for its steps */
		return ESPANK_SUCCESS;
	}
	if (wish == UNKNOWN) {
		complain("--ch-* options were given, but " REQUEST_VARIABLE
			 " did not get here; refusing to run on the host");
		refuse();
	}
	if (spank_get_item(sp, S_TASK_ID, &id) != ESPANK_SUCCESS) {
		complain("can't find out which task this is");
		refuse();
	}
	if (!end_is_ours(&tasks_end) || !end_is_ours(&offer)) {
		if (id == 0 && socket_errno)
			complain("can't create a socket pair: %s", strerror(socket_errno));
		else if (id == 0)
			complain("the socket pair that was made for this step is gone; "
				 "does another plugin close descriptors?");
		refuse();
	}
	published = variable(env, REQUEST_VARIABLE);
	request = component_request(sp, published ? published : "", env);
	if (!request) {
		if (id == 0)
			complain("can't tell which of this srun's components the step is; "
				 "use an srun for each");
		refuse();
	}
	see_to_launcher(sp, step, id, request, env, ac, av);
	path = site_path("ch_join", "ch-join", ac, av);
	if (!path || access(path, X_OK)) {
		if (id == 0) /* once is enough: it is the same for all */
			complain("can't execute ch-join: %s: %s",
				 path ? path : "?", strerror(errno));
		refuse();
	}
	broker = broker_allowed(request, step == SLURM_BATCH_SCRIPT, ac, av);
	/* The one descriptor that the task's own exec must not close. What the
	 * task forks before that, a TaskProlog, gets none. */
	if (!broker || prepend(sp, id, env, path, broker) ||
	    saver_tell(sp, request ? request : "", step == SLURM_BATCH_SCRIPT, ac, av) ||
	    pthread_atfork(NULL, NULL, close_tasks_end) || fcntl(tasks_end.fd, F_SETFD, 0))
		refuse();
	spank_unsetenv(sp, REQUEST_VARIABLE);
	free(broker);
	free(path);
	free(request);
	return ESPANK_SUCCESS;
}
