/* SPDX-License-Identifier: Apache-2.0 */
/* The plugin on the node: puts ch-join in front of each task's command, and has one task start the
 * launcher. The launcher sends its ticket to the tasks by a socket pair (step_sockets.c). */
#define _GNU_SOURCE
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
/* Whether callbacks after user_init run in a child of slurmstepd, which shares its memory (contain_spank). */
static bool contained;
static uint32_t tasks_gone;

enum place { HOST, CONTAINER, UNKNOWN };

/* Return where this step is to run, and its id and environment as far as Slurm reports them. */
static enum place place_of(spank_t sp, uint32_t *step, char ***env)
{
	if (spank_get_item(sp, S_JOB_STEPID, step) != ESPANK_SUCCESS)
		return UNKNOWN;
	/* salloc's own shell runs on the host: salloc's options are for its steps. */
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

	if (place_of(sp, &step, &env) == CONTAINER) {
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

/* All tasks have been forked. If slurmstepd kept its ends of the sockets open, the tasks would not
 * notice that task 0 died before it took the launcher's end, and the container would not end. */
int node_task_post_fork(void)
{
	if (!contained)
		node_free();
	return ESPANK_SUCCESS;
}

/* After the last task has ended, if slurmstepd still has its copy of the tasks' end: shut the socket
 * down, so that a process which a task has left running gets no ticket and the launcher notices; and
 * take the ticket out, so that its descriptors are closed. This works from a child too, because it
 * changes the socket, not the descriptor. */
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

/* Write all that the launcher may need to know. */
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

/* If this plugin is optional or returns a positive error, Slurm goes on and runs the command on the
 * host. Only the end of this process prevents that. */
static void __attribute__((noreturn)) refuse(void)
{
	_exit(EXIT_SETUP);
}

/* Start the launcher, if this is the task that should. That is task 0, because the launcher's messages go to
 * its standard error. But if slurmstepd can't close its end of the offer, the other tasks could not notice
 * that task 0 died before it took the launcher's end: then the first task that comes takes it. */
static void start_launcher_once(spank_t sp, uint32_t step, int id, const char *request, char **env, int ac, char **av)
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
	enum place place = place_of(sp, &step, &env);
	int id = -1;
	const char *published;
	char *request, *path, *broker;

	/* Slurm doesn't report it, and no container was requested: do as without this plugin. */
	if (place == UNKNOWN && tasks_end.fd < 0 && !options_remote_saw_option())
		place = HOST;
	if (step == SLURM_BATCH_SCRIPT && place != UNKNOWN && env && anchor_defaults(sp, env)) {
		complain("can't anchor the relative paths in this script's " SRUN_PREFIX "*");
		refuse();
	}
	if (place == HOST) {
		if (step == SLURM_BATCH_SCRIPT && spank_get_item(sp, S_JOB_ARGV, &argc, &argv) == ESPANK_SUCCESS &&
		    argc > 0 && batch_script_has_ours(argv[0])) {
			complain("the script has #SBATCH --ch- lines, but was not submitted by an "
				 "sbatch with this plugin; refusing to run it on the host");
			refuse();
		}
		spank_unsetenv(sp, REQUEST_VARIABLE); /* salloc's, for its steps */
		return ESPANK_SUCCESS;
	}
	if (place == UNKNOWN) {
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
	start_launcher_once(sp, step, id, request, env, ac, av);
	path = site_path("ch_join", "ch-join", ac, av);
	if (!path || access(path, X_OK)) {
		if (id == 0) /* it concerns all tasks, so one reports it */
			complain("can't execute ch-join: %s: %s",
				 path ? path : "?", strerror(errno));
		refuse();
	}
	broker = broker_allowed(request, step == SLURM_BATCH_SCRIPT, ac, av);
	/* The exec of ch-join must not close the tasks' end. A TaskProlog, which is forked before
	 * that, must not get it. */
	if (!broker || prepend_ch_join(sp, id, env, path, broker) ||
	    set_saver_variable(sp, request ? request : "", step == SLURM_BATCH_SCRIPT, ac, av) ||
	    pthread_atfork(NULL, NULL, close_tasks_end) || fcntl(tasks_end.fd, F_SETFD, 0))
		refuse();
	spank_unsetenv(sp, REQUEST_VARIABLE);
	free(broker);
	free(path);
	free(request);
	return ESPANK_SUCCESS;
}
