/* SPDX-License-Identifier: Apache-2.0 */
/* A Slurm of the test's own: as much of SPANK as the plugin uses, and a driver.
 *
 *   fake submit OPTION...        the submitting side, twice with FAKE_COMMAND
 *                                as the command; then prints it and SLURM_CH_*
 *   fake remote TASKS STEP CMD   slurmstepd: one process a task, which execs CMD
 *   fake many CMD                500 steps that end before they have tasks
 *   fake epilog UID JOB          the end of a user's job
 *
 * FAKE_CONTEXT local or allocator; FAKE_SITE site arguments, one a line;
 * FAKE_OPTION an option that reaches the node; FAKE_FAIL the number of the API
 * call that fails; FAKE_CLOSE closes the tasks' streams; FAKE_RANKS gives each
 * task its SLURM_PROCID; FAKE_PROLOG is run by each task before its command. FAKE_CONTAIN
 * runs what Slurm's contain_spank does in a child that shares the memory alone; FAKE_KILL
 * ends the task of that number before the plugin sees it; FAKE_CLOBBER puts another file
 * under the plugin's descriptors; FAKE_WAIT is a FIFO that is read, and printed, before the
 * end; FAKE_LOAD is another plugin. The job's environment is this process's without FAKE_*.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "spank_fake.h"

extern char **environ;

static int calls, fail_at;
static struct sigaction started_with[NSIG];

static bool api_fails(void)
{
	return ++calls == fail_at;
}

static void job_unsetenv(const char *name)
{
	size_t n = strlen(name);
	char **to = job_env;

	for (char **e = job_env; *e; e++)
		if (strncmp(*e, name, n) || (*e)[n] != '=')
			*to++ = *e;
	*to = NULL;
}

static void job_setenv(const char *name, const char *value)
{
	int n = 0;

	job_unsetenv(name);
	while (job_env[n])
		n++;
	if (asprintf(&job_env[n], "%s=%s", name, value) < 0)
		abort();
	job_env[n + 1] = NULL;
}

static void show_error(const char *text)
{
	fprintf(stderr, "error: %s\n", text);
}

#ifdef WITH_API
spank_err_t spank_prepend_task_argv(spank_t sp, int argc, const char *argv[])
{
	char **more = calloc(job_argc + argc + 1, sizeof(char *));

	(void)sp;
	if (api_fails()) {
		free(more);
		return ESPANK_ERROR;
	}
	for (int i = 0; i < argc; i++)
		more[i] = strdup(argv[i]);
	memcpy(more + argc, job_argv, job_argc * sizeof(char *));
	job_argv = more;
	job_argc += argc;
	return ESPANK_SUCCESS;
}
#endif

int slurm_spank_init(spank_t, int, char **);
int slurm_spank_init_post_opt(spank_t, int, char **);
int slurm_spank_local_user_init(spank_t, int, char **);
int slurm_spank_user_init(spank_t, int, char **);
int slurm_spank_task_init(spank_t, int, char **);
int slurm_spank_task_post_fork(spank_t, int, char **);
int slurm_spank_task_exit(spank_t, int, char **);
int slurm_spank_exit(spank_t, int, char **);
int slurm_spank_job_epilog(spank_t, int, char **);

struct call {
	int (*callback)(spank_t, int, char **);
	int ac, rc;
	char **av;
};

static int call_in_child(void *data)
{
	struct call *c = data;

	c->rc = c->callback(NULL, c->ac, c->av);
	return 0;
}

/* As Slurm's _run_spank_func, with contain_spank: the callback may run in another process. */
static int call(int (*callback)(spank_t, int, char **), int ac, char **av)
{
	static char stack[1 << 20] __attribute__((aligned(16)));
	struct call c = { callback, ac, -1, av };
	pid_t child;

	if (!getenv("FAKE_CONTAIN"))
		return callback(NULL, ac, av);
	child = clone(call_in_child, stack + sizeof(stack), CLONE_VM | SIGCHLD, &c);
	if (child < 0 || waitpid(child, NULL, 0) != child)
		abort();
	return c.rc;
}

/* As a plugin that closes unknown descriptors, and another that opens a file. */
static void clobber(void)
{
	char path[64], target[64];
	int other = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	ssize_t n;

	for (int fd = 3; fd < 64; fd++) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		n = readlink(path, target, sizeof(target) - 1);
		if (n < 7 || strncmp(target, "socket:", 7))
			continue;
		if (dup2(other, fd) != fd)
			abort();
	}
	close(other);
}

static int descriptors(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = -1;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static int give(const char *word, int remote)
{
	for (int i = 0; i < registered_count; i++) {
		struct spank_option *o = &registered[i];
		size_t n = strlen(o->name);

		if (strncmp(word, o->name, n) || (word[n] && word[n] != '='))
			continue;
		return o->cb(o->val, word[n] ? word + n + 1 : NULL, remote);
	}
	abort();
}

static int site_arguments(char **av)
{
	char *site = getenv("FAKE_SITE");
	int ac = 0;

	for (char *word = site ? strtok(site, "\n") : NULL; word; word = strtok(NULL, "\n"))
		av[ac++] = word;
	return ac;
}

static int submit(int argc, char **argv)
{
	char *av[16];
	int ac = site_arguments(av);

	context = getenv("FAKE_CONTEXT") ? S_CTX_ALLOCATOR : S_CTX_LOCAL;
	if (getenv("FAKE_LOAD") && !dlopen(getenv("FAKE_LOAD"), RTLD_LAZY))
		abort();
	if (slurm_spank_init(NULL, ac, av))
		return 2;
	for (int i = 0; i < argc; i++)
		if (give(argv[i] + 2, 0)) {
			slurm_spank_exit(NULL, 0, NULL);
			return 3;
		}
	if (slurm_spank_init_post_opt(NULL, ac, av))
		return 4;
	if (getenv("FAKE_COMMAND")) {
		char *words[] = { getenv("FAKE_COMMAND"), getenv("FAKE_WORD"), NULL };

		job_argv = words;
		job_argc = words[1] ? 2 : 1;
		for (int i = 0; i < 2; i++)
			if (slurm_spank_local_user_init(NULL, ac, av))
				return 5;
		printf("COMMAND=%s%c", words[0], 0);
		printf("WORD=%s%c", words[1] ? words[1] : "", 0);
		if (words[0] != getenv("FAKE_COMMAND"))
			free(words[0]);
		if (words[1] != getenv("FAKE_WORD"))
			free(words[1]);
	}
	for (char **e = environ; *e; e++)
		if (strstr(*e, "SLURM_") && strstr(*e, "ch_"))
			printf("%s%c", *e, 0);
		else if (!strncmp(*e, "SLURM_CH_", 9) || !strncmp(*e, "PYXIS_CONTAINER_", 16))
			printf("%s%c", *e, 0);
	fflush(stdout);
	return slurm_spank_exit(NULL, 0, NULL);
}

static void copy_environment(void)
{
	int n = 0;

	while (environ[n])
		n++;
	job_env = calloc(n + 8, sizeof(char *));
	n = 0;
	for (char **e = environ; *e; e++)
		if (strncmp(*e, "FAKE_", 5))
			job_env[n++] = *e;
}

static void give_rank(int id)
{
	int n = 0;

	while (job_env[n])
		n++;
	if (asprintf(&job_env[n], "SLURM_PROCID=%d", id) < 0 || asprintf(&job_env[n + 1], "SLURM_LOCALID=%d", id) < 0)
		abort();
	job_env[n + 2] = NULL;
}

static void task(int id, int ac, char **av)
{
	int rc;

	task_id = id;
	if (getenv("FAKE_KILL") && atoi(getenv("FAKE_KILL")) == id)
		raise(SIGKILL);
	if (getenv("FAKE_RANKS"))
		give_rank(id);
	if (getenv("FAKE_CLOSE"))
		for (int fd = 0; fd < 3; fd++)
			close(fd);
	rc = slurm_spank_task_init(NULL, ac, av);
	if (rc)
		_exit(90);
	if (getenv("FAKE_NO_EXEC"))
		_exit(0);
	if (getenv("FAKE_PROLOG") && fork() == 0) {
		execl(getenv("FAKE_PROLOG"), "prolog", NULL);
		_exit(92);
	}
	if (getenv("FAKE_PROLOG"))
		wait(NULL);
	execve(job_argv[0], job_argv, job_env);
	_exit(91);
}

static int remote(char **argv, int argc)
{
	char *av[16];
	int ac = site_arguments(av), before, status, worst = 0;
	struct sigaction old;
	mode_t mask = umask(022);

	umask(mask);
	context = S_CTX_REMOTE;
	job_tasks = atoi(argv[0]);
	job_step = strtoul(argv[1], NULL, 0);
	job_argv = calloc(argc, sizeof(char *));
	for (job_argc = 0; job_argc < argc - 2; job_argc++)
		job_argv[job_argc] = argv[job_argc + 2];
	if (getenv("FAKE_FAIL"))
		fail_at = atoi(getenv("FAKE_FAIL"));
	copy_environment();
	before = descriptors();
	if (slurm_spank_init(NULL, ac, av))
		return 2;
	if (getenv("FAKE_OPTION"))
		give(getenv("FAKE_OPTION"), 1);
	if (slurm_spank_init_post_opt(NULL, ac, av))
		return 5;
	if (call(slurm_spank_user_init, ac, av))
		return 5;
	if (getenv("FAKE_CLOBBER"))
		clobber();
	if (getenv("FAKE_CLOEXEC"))
		return execl("/bin/ls", "ls", "/proc/self/fd", NULL);
	for (uint32_t i = 0; i < job_tasks; i++)
		if (fork() == 0)
			task(i, ac, av);
	for (uint32_t i = 0; i < job_tasks; i++)
		call(slurm_spank_task_post_fork, ac, av);
	if (descriptors() != before && !getenv("FAKE_CONTAIN") && !getenv("FAKE_CLOBBER"))
		fprintf(stderr, "descriptors: %d before, %d after\n", before, descriptors());
	while (wait(&status) > 0) {
		int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);

		printf("task: %d\n", code);
		if (code > worst)
			worst = code;
		call(slurm_spank_task_exit, ac, av);
	}
	if (getenv("FAKE_WAIT")) {
		char text[16] = "";
		int fd = open(getenv("FAKE_WAIT"), O_RDONLY | O_CLOEXEC);

		if (fd < 0 || read(fd, text, sizeof(text) - 1) < 0)
			abort();
		close(fd);
		puts(text);
	}
	slurm_spank_exit(NULL, ac, av);
	if (descriptors() != before + (getenv("FAKE_CLOBBER") ? 2 : 0))
		fprintf(stderr, "descriptors: %d before, %d at the end\n", before, descriptors());
	if (umask(mask) != mask)
		fprintf(stderr, "umask changed\n");
	for (int s = 1; s < NSIG; s++)
		if (!sigaction(s, NULL, &old) && old.sa_handler != started_with[s].sa_handler)
			fprintf(stderr, "signal %d changed\n", s);
	return worst;
}

static int many(char **argv, int argc)
{
	int before;

	context = S_CTX_REMOTE;
	job_step = 0;
	job_tasks = 1;
	job_argv = argv;
	job_argc = argc;
	copy_environment();
	before = descriptors();
	for (int i = 0; i < 500; i++) {
		registered_count = 0;
		if (slurm_spank_init(NULL, 0, NULL) || slurm_spank_init_post_opt(NULL, 0, NULL) ||
		    slurm_spank_user_init(NULL, 0, NULL) || slurm_spank_exit(NULL, 0, NULL))
			return 2;
	}
	return descriptors() == before ? 0 : 6;
}

static int epilog(char **argv)
{
	char *av[16];
	int ac = site_arguments(av);

	context = S_CTX_JOB_SCRIPT;
	job_uid = atoi(argv[0]);
	job_id = atoi(argv[1]);
	return slurm_spank_job_epilog(NULL, ac, av) || geteuid() ? 2 : 0;
}

#include "stepd.h"

int main(int argc, char **argv)
{
	for (int s = 1; s < NSIG; s++)
		sigaction(s, NULL, &started_with[s]);
	if (argc >= 3 && !strcmp(argv[1], "state"))
		return state(argv + 2, argc - 2);
	if (argc >= 3 && !strcmp(argv[1], "bare"))
		return bare(argv + 2);
	if (argc >= 3 && !strcmp(argv[1], "memory"))
		return memory(argv + 2, argc - 2);
	if (argc >= 2 && !strcmp(argv[1], "submit"))
		return submit(argc - 2, argv + 2);
	if (argc >= 5 && !strcmp(argv[1], "remote"))
		return remote(argv + 2, argc - 2);
	if (argc >= 3 && !strcmp(argv[1], "many"))
		return many(argv + 2, argc - 2);
	if (argc == 4 && !strcmp(argv[1], "epilog"))
		return epilog(argv + 2);
	return 1;
}
