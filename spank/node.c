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
	record(out, 'r', variable(env, REQUEST_VARIABLE));
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

/* Whether srun sent a --multi-prog file's text in place of arguments. Its first
 * line that says something begins with task numbers. */
static bool is_multi_prog(char **env, int argc, char **argv)
{
	const char *text;

	if (!variable(env, MULTI_PROG_VARIABLE) || argc < 2)
		return false;
	for (text = argv[1]; *text == '#' || *text == '\n' || *text == ' ' || *text == '\t';)
		text += *text == '#' ? strcspn(text, "\n") : 1;
	return *text == '*' || (*text >= '0' && *text <= '9');
}

typedef spank_err_t prepend_f(spank_t, int, const char **);

/* Put `path` in front of the command the way that Slurm has for it, since 23.02.5. */
static int prepend_by_api(spank_t sp, prepend_f *api, const char *path, char **join)
{
	const char *first[] = { path };

	if (asprintf(join, "%d", tasks_end) < 0)
		return -1;
	return api(sp, 1, first) == ESPANK_SUCCESS ? 0 : -1;
}

/* Before that: put `path` in the command's place, which travels in `join`. */
static int replace_command(spank_t sp, int id, char **env, const char *path, char **join)
{
	char **argv = NULL, *copy;
	int argc = 0;

	if (spank_get_item(sp, S_JOB_ARGV, &argc, &argv) != ESPANK_SUCCESS || argc < 1)
		return -1;
	if (is_multi_prog(env, argc, argv)) {
		/* Each task has an argument array of its own, out of reach. */
		if (id == 0)
			slurm_error("slurm_ch: --ch-image and --multi-prog together need Slurm "
				    "23.02.5 or later; refusing to run on the host");
		return -2;
	}
	if (asprintf(join, "%d %s", tasks_end, argv[0]) < 0)
		return -1;
	copy = strdup(path);
	if (!copy)
		return -1;
	argv[0] = copy; /* Slurm's now, for as long as the task is */
	return 0;
}

/* Put ch-join in front of the command. */
static int prepend(spank_t sp, int id, char **env, const char *path)
{
	prepend_f *api = (prepend_f *)dlsym(RTLD_DEFAULT, "spank_prepend_task_argv");
	char *join = NULL;
	int failed = api ? prepend_by_api(sp, api, path, &join) :
			   replace_command(sp, id, env, path, &join);

	if (!failed)
		failed = spank_setenv(sp, JOIN_VARIABLE, join, 1) == ESPANK_SUCCESS ? 0 : -1;
	if (failed == -1)
		slurm_error("slurm_ch: can't put ch-join in front of the command");
	free(join);
	spank_unsetenv(sp, MULTI_PROG_VARIABLE);
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
	char *path;

	/* Slurm doesn't tell, and nobody asked for a container: as without us. */
	if (wish == UNKNOWN && tasks_end < 0 && !submit_remote_saw_option())
		wish = HOST;
	if (wish == HOST)
		return ESPANK_SUCCESS;
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
	path = path_of("ch_join", "ch-join", ac, av);
	if (!path || access(path, X_OK)) {
		if (id == 0) /* once is enough: it is the same for all */
			slurm_error("slurm_ch: can't execute ch-join: %s: %s",
				    path ? path : "?", strerror(errno));
		refuse();
	}
	/* The one descriptor that the command's exec must not close. */
	if (prepend(sp, id, env, path) || fcntl(tasks_end, F_SETFD, 0))
		refuse();
	spank_unsetenv(sp, REQUEST_VARIABLE);
	free(path);
	return ESPANK_SUCCESS;
}
