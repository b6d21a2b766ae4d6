/* On the node: one socketpair per step, `ch-join` in front of each command,
 * and one launcher, started by local task 0. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ch-join.h"
#include "plugin.h"

/* The tasks' end and the launcher's end. */
static int tasks_end = -1, launcher_end = -1;
/* user_init's errors don't reach the user: kept for task_init. */
static int socket_errno;

static const char *request(char **env)
{
	size_t n = strlen(REQUEST_VARIABLE);

	for (char **e = env; e && *e; e++)
		if (!strncmp(*e, REQUEST_VARIABLE, n) && (*e)[n] == '=')
			return *e + n + 1;
	return NULL;
}

/* The environment if this step runs in a container, else NULL. */
static char **wanted(spank_t sp, uint32_t *step)
{
	char **env = NULL;

	if (spank_get_item(sp, S_JOB_STEPID, step) != ESPANK_SUCCESS ||
	    spank_get_item(sp, S_JOB_ENV, &env) != ESPANK_SUCCESS)
		return NULL;
	/* salloc's own shell stays on the host: its options are for the steps. */
	if (*step == SLURM_EXTERN_CONT || *step == SLURM_INTERACTIVE_STEP)
		return NULL;
	return request(env) ? env : NULL;
}

int node_user_init(spank_t sp)
{
	uint32_t step;
	int pair[2];

	if (!wanted(sp, &step))
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

void node_free(void)
{
	node_task_post_fork();
}

/* A site argument's value, or what lies at `beside` this plugin's directory. */
static char *path_of(const char *key, const char *beside, int ac, char **av)
{
	size_t n = strlen(key);
	Dl_info self;
	char real[PATH_MAX], *path, *slash;

	for (int i = 0; i < ac; i++)
		if (!strncmp(av[i], key, n) && av[i][n] == '=' && av[i][n + 1])
			return strdup(av[i] + n + 1);
	if (*beside == '/')
		return strdup(beside);
	if (!dladdr(path_of, &self) || !realpath(self.dli_fname, real) ||
	    !(slash = strrchr(real, '/')))
		return NULL;
	*slash = '\0';
	return asprintf(&path, "%s/%s", real, beside) < 0 ? NULL : path;
}

static void record(FILE *out, char kind, const char *text)
{
	fprintf(out, "%c%s", kind, text);
	fputc('\0', out);
}

/* Everything that the launcher may need to know, as data. */
static int write_facts(spank_t sp, uint32_t step, char **env, int ac, char **av)
{
	uint32_t tasks;
	char count[16], **argv = NULL;
	int argc, fd, copy;
	FILE *out;

	fd = memfd_create("slurm_ch-facts", MFD_CLOEXEC);
	if (fd < 0)
		return -1;
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 10);
	out = copy < 0 ? NULL : fdopen(copy, "w");
	if (!out)
		goto fail;
	fprintf(out, "%s", FACTS_MAGIC);
	fputc('\0', out);
	for (int i = 0; i < ac; i++)
		record(out, 'a', av[i]);
	record(out, 'r', request(env));
	for (char **e = env; *e; e++)
		record(out, 'e', *e);
	if (spank_get_item(sp, S_JOB_LOCAL_TASK_COUNT, &tasks) == ESPANK_SUCCESS) {
		snprintf(count, sizeof(count), "%u", tasks);
		record(out, 't', count);
	}
	if (step == SLURM_BATCH_SCRIPT &&
	    spank_get_item(sp, S_JOB_ARGV, &argc, &argv) == ESPANK_SUCCESS && argc > 0)
		record(out, 'b', argv[0]);
	if (!fclose(out))
		return fd;
	copy = -1;
fail:
	if (copy >= 0)
		close(copy);
	close(fd);
	return -1;
}

static int start_launcher(spank_t sp, uint32_t step, char **env, int ac, char **av)
{
	char *python = path_of("python", "/usr/bin/python3", ac, av);
	char *launcher = path_of("launcher", "../launch.py", ac, av);
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

/* Put ch-join in front of the command. What travels to it is `join`. */
static int prepend(spank_t sp, uint32_t step, char *path)
{
	prepend_f *api = (prepend_f *)dlsym(RTLD_DEFAULT, "spank_prepend_task_argv");
	const char *first[] = { path };
	char **argv = NULL, *join = NULL;
	int argc = 0, n;
	spank_err_t rc;

	if (api) {
		rc = api(sp, 1, first);
		n = asprintf(&join, "%d", tasks_end);
	} else {
		rc = spank_get_item(sp, S_JOB_ARGV, &argc, &argv);
		if (rc == ESPANK_SUCCESS && argc < 1)
			rc = ESPANK_ERROR;
		/* Before 23.02.5. With --multi-prog each task has an array of
		 * its own, that no plugin reaches; srun sends the file's text
		 * as the second argument. */
		if (rc == ESPANK_SUCCESS && step != SLURM_BATCH_SCRIPT &&
		    0)
			return -1;
		n = rc == ESPANK_SUCCESS ? asprintf(&join, "%d %s", tasks_end, argv[0]) : -1;
		if (n >= 0)
			argv[0] = strdup(path);
	}
	if (rc != ESPANK_SUCCESS || n < 0)
		return -1;
	rc = spank_setenv(sp, JOIN_VARIABLE, join, 1);
	free(join);
	return rc == ESPANK_SUCCESS ? 0 : -1;
}

int node_task_init(spank_t sp, int ac, char **av)
{
	uint32_t step;
	char **env = wanted(sp, &step);
	int id = -1, failed;
	char *path;

	if (!env) {
		if (!submit_remote_saw_option() || step == SLURM_EXTERN_CONT ||
		    step == SLURM_INTERACTIVE_STEP)
			return ESPANK_SUCCESS;
		slurm_error("slurm_ch: --ch-* options were given, but " REQUEST_VARIABLE
			    " did not get here; refusing to run on the host");
		return ESPANK_ERROR;
	}
	if (tasks_end < 0) {
		slurm_error("slurm_ch: can't create a socket pair: %s", strerror(socket_errno));
		return ESPANK_ERROR;
	}
	if (spank_get_item(sp, S_TASK_ID, &id) != ESPANK_SUCCESS)
		return ESPANK_ERROR;
	if (id == 0 && start_launcher(sp, step, env, ac, av))
		return ESPANK_ERROR;
	close_end(&launcher_end);
	spank_unsetenv(sp, REQUEST_VARIABLE);
	path = path_of("ch_join", "ch-join", ac, av);
	failed = !path || access(path, X_OK);
	if (failed)
		slurm_error("slurm_ch: can't execute ch-join: %s: %s", path ? path : "?",
			    strerror(errno));
	else
		failed = prepend(sp, step, path);
	/* The one descriptor that the command's exec must not close. */
	if (!failed)
		failed = fcntl(tasks_end, F_SETFD, 0);
	free(path);
	return failed ? ESPANK_ERROR : ESPANK_SUCCESS;
}
