/* SPDX-License-Identifier: Apache-2.0 */
/* Turns the broker's child into one of Slurm's commands, with what the caller sent and what the host decides. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../agreement.h"
#include "broker.h"

extern char **environ;

void send_reply(int fd, enum relay_kind kind, uint32_t value)
{
	struct relay_reply reply = { kind, value };

	/* A few replies always fit; a caller that doesn't read them gets no more. */
	send(fd, &reply, sizeof(reply), MSG_NOSIGNAL | MSG_DONTWAIT);
}

static bool is_named(const char *variable, const char *name)
{
	size_t n = strlen(name);

	return !strncmp(variable, name, n) && variable[n] == '=';
}

/* Variables that lead programs to files of the container, not of the host. For srun, these
 * are passed on to the step, which runs in a container too. */
static bool is_relayed(const char *variable)
{
	return is_named(variable, "PATH") || is_named(variable, "TMPDIR") || !strncmp(variable, "LD_", 3);
}

/* Variables whose host's value a program on the host needs. */
static bool is_hosts(const char *variable)
{
	static const char *const names[] = { "HOME",       "PWD",            "OLDPWD",    "LOCPATH",
					     "GCONV_PATH", "GLIBC_TUNABLES", "SLURM_CONF" };

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (is_named(variable, names[i]))
			return true;
	return is_relayed(variable);
}

/* Whether the first n bytes of one of `among` are those of `variable`. */
static bool is_among(const char *variable, size_t n, char **among)
{
	for (; *among; among++)
		if (!strncmp(*among, variable, n))
			return true;
	return false;
}

static char *pasted(const char *a, const char *b, const char *c)
{
	char *text;

	if (asprintf(&text, "%s%s%s", a, b, c) < 0)
		_exit(EXIT_SETUP);
	return text;
}

/* Return the script's variables, with the host's own values of those that the host's programs
 * need. For srun, the script's values of PATH, TMPDIR and LD_* are passed on to the step's
 * container, and so is a working directory that only exists in the container. */
static char **environment(const struct request *q, bool arrived)
{
	size_t count = 0, i = 0;
	bool srun = !strcmp(q->name, "srun");
	char here[PATH_MAX], **out;

	for (char **e = environ; *e; e++)
		count++;
	out = calloc(2 * count + q->head.variables + 3, sizeof(char *));
	if (!out)
		_exit(EXIT_SETUP);
	for (char **e = q->variables; *e; e++) {
		if (!strncmp(*e, RELAYED_PREFIX, strlen(RELAYED_PREFIX)) ||
		    is_named(*e, RUNNING_VARIABLE))
			continue;
		if (!is_hosts(*e))
			out[i++] = *e;
		else if (srun && is_relayed(*e) && !is_among(*e, strlen(*e) + 1, environ))
			out[i++] = pasted(RELAYED_PREFIX, *e, "");
	}
	for (char **e = environ; *e; e++) {
		size_t n = strcspn(*e, "=");

		if (is_hosts(*e) && !is_named(*e, "PWD"))
			out[i++] = *e;
		/* Slurm gives each task a TMPDIR. */
		if (srun && is_relayed(*e) && !is_named(*e, "TMPDIR") && !is_among(*e, n + 1, q->variables)) {
			char *name = strndup(*e, n);

			out[i++] = pasted(RELAYED_PREFIX, name ? name : "", "="); /* unset */
			free(name);
		}
	}
	if (getcwd(here, sizeof(here)))
		out[i++] = pasted("PWD=", here, "");
	if (srun && !arrived && *q->directory)
		out[i++] = pasted(RELAYED_PREFIX, "PWD=", q->directory);
	return out;
}

/* Whether the caller may set a variable for a confined command: the format of its output,
 * and which jobs and nodes it shows. None of these names a file, a program or a plugin. */
static bool is_harmless(const char *variable)
{
	static const char *const names[] = { "LANG",	       "LANGUAGE",	    "TZ",
					     "TERM",	       "COLUMNS",	    "LINES",
					     "SLURM_CLUSTERS", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN" };
	static const char *const prefixes[] = { "LC_",     "SQUEUE_", "SINFO_",  "SACCT_",
						"SSTAT_",  "SPRIO_",  "SSHARE_", "SDIAG_",
						"SREPORT_" };
	const char *value = strchr(variable, '=');
	bool ours = false, path;

	if (!value++)
		return false;
	/* The C library and curses take some of these for a file's name. */
	path = *value == '/' || *value == ':' || *value == '.' || strstr(value, "/.");
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (is_named(variable, names[i]))
			return !path;
	for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++)
		ours |= !strncmp(variable, prefixes[i], strlen(prefixes[i]));
	return ours && !(path && !strncmp(variable, "LC_", 3));
}

/* Return the host's variables, with the caller's values of the harmless ones. */
static char **confined_environment(const struct request *q)
{
	size_t count = 0, i = 0;
	char here[PATH_MAX], **out;

	for (char **e = environ; *e; e++)
		count++;
	out = calloc(count + q->head.variables + 2, sizeof(char *));
	if (!out)
		_exit(EXIT_SETUP);
	for (char **e = q->variables; *e; e++)
		if (is_harmless(*e))
			out[i++] = *e;
	for (char **e = environ; *e; e++)
		if (!is_harmless(*e) && !is_named(*e, "PWD") &&
		    strncmp(*e, RELAYED_PREFIX, strlen(RELAYED_PREFIX)) != 0)
			out[i++] = *e;
	if (getcwd(here, sizeof(here)))
		out[i++] = pasted("PWD=", here, "");
	return out;
}

/* Find a command in the host's PATH; relative directories don't count. */
static char *find(const char *name)
{
	const char *item = getenv("PATH");
	int error = ENOENT;

	for (; item; item = *item ? item + 1 : NULL) {
		size_t n = strcspn(item, ":");

		if (n && *item == '/') {
			char *path;

			if (asprintf(&path, "%.*s/%s", (int)n, item, name) < 0)
				return NULL;
			if (!access(path, X_OK))
				return path;
			if (errno == EACCES)
				error = errno;
			free(path);
		}
		item += n;
	}
	errno = error;
	return NULL;
}

static void inherit(const struct request *q)
{
	struct sigaction action = { .sa_handler = SIG_DFL };
	sigset_t blocked;

	sigemptyset(&blocked);
	for (int s = 1; s <= 64; s++) {
		action.sa_handler = q->head.ignored >> (s - 1) & 1 ? SIG_IGN : SIG_DFL;
		sigaction(s, &action, NULL);
		if (q->head.blocked >> (s - 1) & 1)
			sigaddset(&blocked, s);
	}
	sigprocmask(SIG_SETMASK, &blocked, NULL);
	umask(q->head.umask & 0777);
	for (int i = 0; i < (int)RLIM_NLIMITS; i++) {
		struct rlimit now, wanted = { q->head.limits[i].soft, q->head.limits[i].hard };

		if (!getrlimit(i, &now) && wanted.rlim_max > now.rlim_max)
			wanted.rlim_max = now.rlim_max;
		if (wanted.rlim_cur > wanted.rlim_max)
			wanted.rlim_cur = wanted.rlim_max;
		setrlimit(i, &wanted);
	}
}

void command_become(const struct request *q, int client, pid_t broker)
{
	char **env, *path;
	bool arrived;

	setpgid(0, 0);
	/* The command must not outlive the broker. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != broker)
		_exit(EXIT_SETUP);
	for (int i = 0; i < 3; i++) {
		if (q->streams[i] < 0)
			close(i);
		else if (dup2(q->streams[i], i) < 0)
			_exit(EXIT_SETUP);
	}
	if (q->confined) {
		env = confined_environment(q);
	} else {
		arrived = *q->directory == '/' && !chdir(q->directory);
		env = environment(q, arrived);
	}
	path = find(q->name);
	if (path) {
		inherit(q);
		execve(path, q->argv, env);
	}
	send_reply(client, RELAY_FAILED, errno);
	_exit(errno == ENOENT ? EXIT_NOT_FOUND : EXIT_CANNOT_EXECUTE);
}
