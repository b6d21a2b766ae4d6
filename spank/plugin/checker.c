/* SPDX-License-Identifier: Apache-2.0 */
/* Runs the checker, a process in Python that checks a request, pulls its image, or copies it to a job's nodes. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../agreement.h"
#include "../common/descriptors.h"
#include "plugin.h"

extern char **environ;

/* In the checker's process, before a pull: let signals through, because the pull shows its progress and can be
 * interrupted, and end with the parent, which waits for it. */
static void stay_in_foreground(pid_t parent)
{
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent)
		_exit(EXIT_SETUP);
}

static void __attribute__((noreturn)) become(const char *python, const char *launcher, int facts, int out,
					     int err)
{
	char *argv[] = { (char *)python, "-I", "-S", (char *)launcher, CHECK_OPTION, "3", NULL };
	char *envp[] = { NULL };
	const int list[] = { DEV_NULL, out, err, facts };

	if (descriptors_become(list, sizeof(list) / sizeof(*list)))
		_exit(EXIT_SETUP);
	execve(python, argv, envp);
	_exit(EXIT_SETUP);
}

/* While the checker pulls, Ctrl-C is left to the checker, which cleans up and reports it. The other signals end this
 * process, even if Slurm has blocked them, and the checker ends with it. */
static const struct {
	int number;
	void (*handler)(int);
} asking[] = { { SIGINT, SIG_IGN }, { SIGQUIT, SIG_IGN }, { SIGTERM, SIG_DFL }, { SIGHUP, SIG_DFL } };

#define N_ASKING (sizeof(asking) / sizeof(*asking))

/* In Slurm 26.05 a thread of srun installs handlers that defer signals, maybe after ours: so ours are set again at
 * this interval. */
#define AGAIN_MS 50

struct signals {
	struct sigaction actions[N_ASKING];
	sigset_t mask;
};

/* Set the actions above, and note in `before` those that they replace. */
static void set_actions(struct signals *before)
{
	for (size_t i = 0; i < N_ASKING; i++) {
		struct sigaction now, action = { .sa_handler = asking[i].handler };

		sigaction(asking[i].number, NULL, &now);
		/* nohup's stays ignored */
		if (now.sa_handler == SIG_IGN || now.sa_handler == asking[i].handler)
			continue;
		before->actions[i] = now;
		sigaction(asking[i].number, &action, NULL);
	}
}

static void leave_signals_to_checker(struct signals *before)
{
	sigset_t ending;

	sigemptyset(&ending);
	for (size_t i = 0; i < N_ASKING; i++) {
		sigaction(asking[i].number, NULL, &before->actions[i]);
		if (asking[i].handler == SIG_DFL)
			sigaddset(&ending, asking[i].number);
	}
	sigprocmask(SIG_UNBLOCK, &ending, &before->mask);
	set_actions(before);
}

static void take_signals_back(const struct signals *before)
{
	sigprocmask(SIG_SETMASK, &before->mask, NULL);
	for (size_t i = 0; i < N_ASKING; i++)
		sigaction(asking[i].number, &before->actions[i], NULL);
}

/* Read the checker's verdict: nothing, "CODE MESSAGE", or what the image is. During a pull, `before` has the actions
 * of signals before it. */
static void read_verdict(int fd, char *verdict, struct signals *before)
{
	struct pollfd one = { .fd = fd, .events = POLLIN };
	size_t length = 0;
	ssize_t n;

	while (length < VERDICT_SIZE - 1) {
		if (before && poll(&one, 1, AGAIN_MS) <= 0) {
			set_actions(before);
			continue;
		}
		n = read(fd, verdict + length, VERDICT_SIZE - 1 - length);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		length += n;
	}
	verdict[length] = '\0';
}

/* Start the checker and wait for it; return its words in `verdict`, or false if it could not be started. */
static bool run_process(const char *python, const char *launcher, int facts, bool pulls, char *verdict)
{
	pid_t child, parent = getpid();
	struct signals before;
	int out[2];

	if (pipe2(out, O_CLOEXEC))
		return false;
	child = fork();
	if (child == 0) {
		if (pulls)
			stay_in_foreground(parent);
		become(python, launcher, facts, out[1], pulls ? STDERR_FILENO : DEV_NULL);
	}
	close(out[1]);
	if (child > 0) {
		if (pulls)
			leave_signals_to_checker(&before);
		read_verdict(out[0], verdict, pulls ? &before : NULL);
		close(out[0]); /* or the checker hangs, if it writes more than is read */
		/* Only its verdict counts: there may be no status, because SIGCHLD may be ignored here. */
		while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
			;
		if (pulls)
			take_signals_back(&before);
	} else {
		close(out[0]);
	}
	return child > 0;
}

/* Have the checker check `request`, and if `job` is not NULL, copy its image to that job's nodes. Return false if the
 * checker could not be run. */
bool run_checker(const char *request, const char *job, bool pulls, int ac, char **av, char *verdict)
{
	/* After "ulimit -f 0" the facts can't be written: ignore the signal, and leave the check to the node. */
	struct sigaction ignore = { .sa_handler = SIG_IGN }, before;
	char *python = site_path("python", DEFAULT_PYTHON, ac, av);
	char *launcher = site_path("launcher", DEFAULT_LAUNCHER, ac, av);
	bool asked = false;
	int facts;
	FILE *out;

	if (python && launcher && !access(python, X_OK) && !access(launcher, R_OK)) {
		sigaction(SIGXFSZ, &ignore, &before);
		out = step_facts(&facts, request, environ, ac, av);
		if (out)
			facts_record(out, FACT_COMMAND, submitter());
		if (out && job)
			facts_record(out, FACT_BROADCAST, job);
		facts = out ? facts_close(facts, out) : -1;
		sigaction(SIGXFSZ, &before, NULL);
		if (facts >= 0) {
			asked = run_process(python, launcher, facts, pulls, verdict);
			close(facts);
		}
	}
	free(python);
	free(launcher);
	return asked;
}
