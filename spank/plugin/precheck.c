/* SPDX-License-Identifier: Apache-2.0 */
/* The request, before it waits in the queue: read by the same code as on the
 * node, with the same words where it is wrong.
 *
 * A step with nothing but a good image must cost nothing, so that is looked at
 * here. For everything else the checker is run: Python, started as the launcher
 * is. Where it isn't installed, or too much is unknown, the node will say. It also
 * finds out which image a reference means, and pulls it: once, before there is an
 * allocation, so that no node waits for it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../agreement.h"
#include "../common/descriptors.h"
#include "plugin.h"

extern char **environ;

/* The longest word that is passed on. */
#define VERDICT_SIZE 8192

/* Whether a directory has what most images have. */
static bool has_programs(const char *directory)
{
	int fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
	bool has;

	if (fd < 0)
		return false;
	has = !faccessat(fd, "bin", F_OK, AT_SYMLINK_NOFOLLOW) || !faccessat(fd, "usr", F_OK, 0);
	close(fd);
	return has;
}

/* Whether `image` may be one: all but what is here and isn't, or needs a closer look. */
static bool may_be_image(const char *image)
{
	const char *colon = strchr(image, ':');
	char magic[sizeof(SQUASHFS_MAGIC) - 1];
	struct stat st;
	bool good;
	int fd;

	/* No path: what a shell should have expanded, what is to be pulled. */
	if (!*image || *image == '~' || strchr(image, '$'))
		return false;
	if (stat(image, &st))
		return !colon || (colon[1] != '/' && colon[1] != '.');
	if (!S_ISREG(st.st_mode))
		return S_ISDIR(st.st_mode) && has_programs(image);
	fd = open(image, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return true;
	good = read(fd, magic, sizeof(magic)) == sizeof(magic) && !memcmp(magic, SQUASHFS_MAGIC, sizeof(magic));
	close(fd);
	return good;
}

static bool site_decides(int ac, char **av)
{
	for (int i = 0; i < ac; i++)
		if (!strncmp(av[i], "default=", 8) || !strncmp(av[i], "forbid=", 7))
			return true;
	return false;
}

/* What is pulled shows how far it is, and ends with whoever waits for it. */
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

/* Ctrl-C is the checker's, which cleans up and says so; what else asks us to end does,
 * even where Slurm has blocked it by now: then the checker ends with us. */
static const struct {
	int number;
	void (*handler)(int);
} asking[] = { { SIGINT, SIG_IGN }, { SIGQUIT, SIG_IGN }, { SIGTERM, SIG_DFL }, { SIGHUP, SIG_DFL } };

#define N_ASKING (sizeof(asking) / sizeof(*asking))

/* In Slurm 26.05 a thread of srun's installs handlers that keep a signal for later, and may do so after us. */
#define AGAIN_MS 50

struct signals {
	struct sigaction actions[N_ASKING];
	sigset_t mask;
};

/* Have the signals do what they are to, and keep in `before` what they did. */
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

/* Read all that the checker has to say: nothing, "CODE LINE", or what the image is. While
 * it pulls, `before` is what the signals did. */
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

/* Return the checker's words in `verdict`; whether it could be started at all. */
static bool ask_checker(const char *python, const char *launcher, int facts, bool pulls, char *verdict)
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
		close(out[0]); /* it may have more to say than we listen to */
		/* Its word counts, not its status: SIGCHLD may be ignored here. */
		while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
			;
		if (pulls)
			take_signals_back(&before);
	} else {
		close(out[0]);
	}
	return child > 0;
}

/* Take what the checker says a reference means; whether it says so. */
static bool read_pin(char *verdict, struct pin *pin)
{
	char *rest = verdict + strlen(PIN_WORD), *image, *located;

	if (strncmp(verdict, PIN_WORD, strlen(PIN_WORD)))
		return false;
	image = strsep(&rest, "\n");
	if (!rest || !*image)
		return false;
	located = strsep(&rest, "\n");
	pin->image = strdup(image);
	pin->located = *located ? strdup(located) : NULL;
	return pin->image;
}

/* Exit with the checker's words, if it has something against the request. */
static void heed(char *verdict)
{
	char *line;
	long code = strtol(verdict, &line, 10);

	if (code > 0 && code < 256 && *line == ' ') {
		fputs(line + 1, stderr);
		exit(code);
	}
}

/* Have the checker look at `request`; for its step in `job`, if that is not NULL. Whether it could. */
static bool consult(const char *request, const char *job, bool pulls, int ac, char **av, char *verdict)
{
	/* With "ulimit -f 0" there is no file of facts, and the node will say. */
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
			asked = ask_checker(python, launcher, facts, pulls, verdict);
			close(facts);
		}
	}
	free(python);
	free(launcher);
	return asked;
}

static void __attribute__((noreturn)) died(const char *who)
{
	complain("what %s the image died (killed, or no Python could start): if memory ran out, ask for more, "
		 "or pull the image before the job (`slurm-ch pull`)",
		 who);
	exit(EXIT_LAUNCHER_DIED);
}

/* Return if there is nothing to say against `request`; else say it and exit. Where
 * the image is a reference, `pin` is what it means, if that could be found out here. */
void precheck_request(const char *request, const char *image, bool plain, int ac, char **av, struct pin *pin)
{
	bool pulls = is_reference(image) || !strncmp(image, "dockerd://", strlen("dockerd://"));
	char verdict[VERDICT_SIZE] = "";

	*pin = (struct pin){ NULL, NULL };
	if (!pulls && plain && !site_decides(ac, av) && may_be_image(image))
		return;
	if (!consult(request, NULL, pulls, ac, av, verdict) || (pulls && read_pin(verdict, pin)))
		return;
	heed(verdict);
	if (pulls)
		died("finds and pulls");
}

/* Have the image copied to the nodes of a job; return the request with the place of it, or NULL if there is no
 * memory, or nothing to run that with: then the nodes read the image where it is. */
char *precheck_broadcast(const char *request, const char *job, int ac, char **av)
{
	char verdict[VERDICT_SIZE] = "", *path = verdict + strlen(BROADCAST_WORD), *more;

	if (!consult(request, job, true, ac, av, verdict))
		return NULL;
	if (strncmp(verdict, BROADCAST_WORD, strlen(BROADCAST_WORD))) {
		heed(verdict);
		died("copies");
	}
	path[strcspn(path, "\n")] = '\0';
	return asprintf(&more, "%s%s%s\n", request, BROADCAST_LINE, path) < 0 ? NULL : more;
}
