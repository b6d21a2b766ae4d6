/* SPDX-License-Identifier: Apache-2.0 */
/* Saves a container when all of the step's tasks on this node have ended with status 0.
 *
 * For that, a process of each task must outlive its command: the keeper, which is the process that slurmstepd has
 * started. It stays on the host, waits for the command, which is its child, and ends with the command's status. If
 * all commands end with status 0, the keeper of the last one becomes the saver (slurm_ch/plugin/save.py) and ends
 * with the saver's status. When Slurm kills the step, it kills keepers and commands; when a keeper is killed, its
 * command is killed with it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../agreement.h"
#include "../common/descriptors.h"
#include "ch-join.h"
#include "python.h"

/* The keeper's descriptors after the streams. The saver gets the first two. */
#define USER_FD 3
#define MOUNT_FD 4
#define PLAN_FD 5

/* A task that fails adds this to the count: more than the number of tasks on any node. */
#define FAILURE ((off_t)1 << 32)

/* The option, FILE and the site's arguments about packing. */
#define WORDS_MAX 16

struct request {
	bool batch;
	long tasks;
	char *words[WORDS_MAX + 1];
};

/* In the child: its parent, with which it is to end. */
static pid_t keeper;

/* SAVER_VARIABLE in agreement.py describes the format. */
static struct request read_request(const char *text)
{
	struct request r = { .batch = *text == SAVER_BATCH };
	char *rest = need(strdup(text + r.batch)), *word = strsep(&rest, "\n");
	size_t n = 0;

	r.tasks = strtol(word, NULL, 10);
	while (n < WORDS_MAX && (word = strsep(&rest, "\n")))
		r.words[n++] = word;
	if (r.tasks < 1 || n < 2)
		die(EXIT_SETUP, "the plugin and ch-join are of different versions");
	return r;
}

/* Add to the tasks' common count and return it. The count is the offset in their plan, because all tasks share
 * one open file of it, and lseek reads and moves the offset in one step. */
static off_t add_to_count(off_t more)
{
	struct stat st;
	off_t now = lseek(PLAN_FD, more, SEEK_CUR);

	/* The launcher has left the offset at the end of the plan. */
	return now < 0 || fstat(PLAN_FD, &st) ? -1 : now - st.st_size;
}

static void __attribute__((noreturn)) end_like(int status)
{
	const struct rlimit none = { 0, 0 };
	sigset_t ending;

	if (WIFEXITED(status))
		_exit(WEXITSTATUS(status));
	/* Only the command may leave a core file. */
	setrlimit(RLIMIT_CORE, &none);
	signal(WTERMSIG(status), SIG_DFL);
	raise(WTERMSIG(status));
	sigemptyset(&ending);
	sigaddset(&ending, WTERMSIG(status));
	sigprocmask(SIG_UNBLOCK, &ending, NULL);
	_exit(128 + WTERMSIG(status));
}

/* Whether a signal has reached the keeper only, and not its command. Slurm signals every process of a step, and
 * a terminal its foreground. There are two exceptions: a signal for the batch script alone, and a terminal's end. */
static bool is_for_keeper_only(const struct request *r, const siginfo_t *s)
{
	if (s->si_signo == SIGHUP && s->si_code == SI_KERNEL)
		return true;
	return r->batch && s->si_code == SI_USER && s->si_signo != SIGCONT;
}

/* Return the command's status, and in `cancelled` whether Slurm has sent SIGTERM to the step meanwhile. */
static int wait_for(const struct request *r, pid_t command, bool *cancelled)
{
	sigset_t all;
	siginfo_t s;
	int status;

	sigfillset(&all);
	*cancelled = false;
	for (;;) {
		if (sigwaitinfo(&all, &s) < 0)
			continue;
		if (s.si_signo == SIGCHLD) {
			if (waitpid(command, &status, WNOHANG) == command)
				return status;
			continue;
		}
		if (s.si_signo == SIGTERM)
			*cancelled = true;
		if (is_for_keeper_only(r, &s))
			kill(command, s.si_signo);
	}
}

static char *variable(const char *name, const char *value)
{
	char *text;

	if (asprintf(&text, "%s=%s", name, value) < 0)
		need(NULL);
	return text;
}

static void __attribute__((noreturn)) become_saver(const struct request *r)
{
	static const int for_commands[] = { SIGHUP, SIGUSR1, SIGUSR2, SIGALRM };
	const char *node = getenv("SLURMD_NODENAME"), *path = getenv("PATH"), *tmp = getenv("TMPDIR");
	char *envp[3] = { NULL }, *argv[11 + WORDS_MAX] = { NULL };
	struct python p;
	sigset_t none;
	size_t n = 0;

	/* PATH, because the saver looks there for the packing program; nothing else of the environment counts. */
	if (path)
		envp[n++] = variable("PATH", path);
	if (tmp)
		envp[n++] = variable("TMPDIR", tmp);
	python_find(&p);
	n = 0;
	argv[n++] = p.interpreter;
	argv[n++] = "-I";
	argv[n++] = "-S";
	argv[n++] = p.launcher;
	argv[n++] = SAVE_OPTION;
	argv[n++] = "1";
	argv[n++] = "2";
	argv[n++] = (char *)(node ? node : "");
	argv[n++] = "3";
	argv[n++] = "4";
	for (size_t i = 0; r->words[i]; i++)
		argv[n++] = r->words[i];
	close(PLAN_FD);
	for (int s = 1; s < NSIG; s++)
		signal(s, SIG_DFL);
	/* Slurm signals the processes of a step one after the other. The command may have ended as such a signal asks
	 * for before it reaches this process, which it isn't meant to end. */
	for (size_t i = 0; i < sizeof(for_commands) / sizeof(*for_commands); i++)
		signal(for_commands[i], SIG_IGN);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	execve(p.interpreter, argv, envp);
	die(EXIT_SETUP, "can't start Python: %s: %s", p.interpreter, strerror(errno));
}

static void __attribute__((noreturn)) keep(const struct request *r, const struct ticket *t, pid_t command)
{
	/* A task may have no standard error. The other streams are for the command alone. */
	int errors = fcntl(STDERR_FILENO, F_GETFD) < 0 ? DEV_NULL : STDERR_FILENO;
	const int list[] = { DEV_NULL, DEV_NULL, errors, t->user_fd, t->mount_fd, t->plan_fd };
	bool cancelled;
	int status;

	if (descriptors_become(list, sizeof(list) / sizeof(*list)))
		die(EXIT_SETUP, "can't wait for the command: %s", strerror(errno));
	status = wait_for(r, command, &cancelled);
	if (!WIFEXITED(status) || WEXITSTATUS(status) || cancelled) {
		off_t failed = add_to_count(FAILURE);

		if (failed >= FAILURE && failed < 2 * FAILURE)
			warn("%s=%s: not saved: %s", r->words[0], r->words[1],
			     cancelled ? "the step was told to end" : "a task failed");
		end_like(status);
	}
	if (add_to_count(1) == r->tasks)
		become_saver(r);
	_exit(0);
}

void save_at_end(const char *text, const struct ticket *t)
{
	struct request r = read_request(text);
	struct sigaction usual = { .sa_handler = SIG_DFL }, before;
	sigset_t all, mask;
	pid_t self = getpid(), command;

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &mask);
	sigaction(SIGCHLD, &usual, &before);
	command = fork();
	if (command < 0)
		die(EXIT_SETUP, "can't start the command: %s", strerror(errno));
	if (command > 0)
		keep(&r, t, command);
	keeper = self;
	sigaction(SIGCHLD, &before, NULL);
	sigprocmask(SIG_SETMASK, &mask, NULL);
}

/* Called after the child has entered the container, because setns of a user namespace clears PDEATHSIG. */
void end_with_keeper(void)
{
	if (!keeper)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != keeper)
		_exit(EXIT_SETUP);
}
