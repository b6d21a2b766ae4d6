/* SPDX-License-Identifier: Apache-2.0 */
/* ch-join's part of the relay: starts the broker, and gives a task the variables that
 * came with a relayed srun. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../agreement.h"
#include "../common/descriptors.h"
#include "../common/relay.h"
#include "ch-join.h"

extern char **environ;

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

/* Find the broker's program, ch-relay, beside this program; return -1 with errno. The kernel
 * tells where this program is: the maker of the ticket must not choose what runs on the host. */
static int find_program(char path[PATH_MAX])
{
	static const char name[] = "ch-relay";
	ssize_t n = readlink("/proc/self/exe", path, PATH_MAX);
	char *slash;

	if (n < 0)
		return -1;
	path[n < PATH_MAX ? n : PATH_MAX - 1] = '\0';
	slash = strrchr(path, '/');
	if (!slash || slash + 1 + sizeof(name) > path + PATH_MAX) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memcpy(slash + 1, name, sizeof(name));
	return access(path, X_OK);
}

static void __attribute__((noreturn))
become(const char *program, const char *commands, int listen_fd, int watch_fd)
{
	char *argv[] = { "ch-relay", "--serve", (char *)commands, NULL };
	/* The last two become RELAY_LISTEN_FD and RELAY_WATCH_FD. */
	const int list[] = { DEV_NULL, DEV_NULL, DEV_NULL, listen_fd, watch_fd };

	/* The broker must not keep the task's streams open, nor receive its terminal's signals. */
	if (setsid() < 0 || descriptors_become(list, sizeof(list) / sizeof(*list)))
		_exit(EXIT_SETUP);
	execv(program, argv);
	_exit(EXIT_SETUP);
}

/* Start the broker before the task enters any namespace; return -1 with errno. It is a
 * grandchild, because the command must not find a child that it did not start. `broker`
 * comes from the plugin: "t" if the broker ends with this task, "s" if with the step;
 * then its commands. */
int relay_start(const char *broker, int listen_fd)
{
	char program[PATH_MAX];
	int watch_fd = -1, status = -1;
	pid_t child;

	if (find_program(program))
		return -1;
	watch_fd = syscall(SYS_pidfd_open, *broker == 't' ? getpid() : getppid(), 0);
	if (watch_fd >= 0 && (child = fork()) >= 0) {
		if (child == 0) {
			pid_t grandchild = fork();

			if (grandchild == 0)
				become(program, broker + 1, listen_fd, watch_fd);
			_exit(grandchild < 0 ? errno : 0);
		}
		while (waitpid(child, &status, 0) < 0 && errno == EINTR)
			;
		errno = WIFEXITED(status) ? WEXITSTATUS(status) : ECHILD;
		status = errno ? -1 : 0;
	}
	if (watch_fd >= 0)
		close(watch_fd);
	return status;
}

/* Apply the changes that a script in a container made to its variables before it called
 * srun; return -1 when out of memory. If the script's directory does not exist on the
 * host, set `directory` to it. */
int relay_take_variables(const char **directory)
{
	static const size_t n = sizeof(RELAYED_PREFIX) - 1;

	for (char **e = environ; *e;) {
		char *whole, *value;
		int failed = 0;

		if (strncmp(*e, RELAYED_PREFIX, n) || strlen(*e) == n || (*e)[n] == '=' ||
		    !strchr(*e + n, '=')) {
			e++;
			continue;
		}
		whole = strdup(*e);
		if (!whole)
			return -1;
		value = whole + n + strcspn(whole + n, "=");
		*value++ = '\0';
		unsetenv(whole);
		if (!strcmp(whole + n, "PWD"))
			failed = !(*directory = strdup(value));
		else if (!strcmp(whole + n, "TMPDIR"))
			; /* left to the plan, because a TaskProlog's counts more */
		else if (*value)
			failed = setenv(whole + n, value, 1);
		else
			unsetenv(whole + n);
		free(whole);
		if (failed)
			return -1;
		e = environ; /* unsetenv moved the rest, setenv perhaps all */
	}
	return 0;
}
