/* SPDX-License-Identifier: Apache-2.0 */
/* The launcher's start: a grandchild of one of the tasks, as the user.
 *
 * A grandchild, because slurmstepd waits for its own children, and the task's
 * command must not find a child that it didn't start.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../agreement.h"
#include "descriptors.h"
#include "message_line.h"
#include "start_launcher.h"

/* In the order of the list in become(). */
#define SOCKET_FD 4
#define ERRORS_FD 5
#define NULL_FD 6
#define USER_FD 7

static void __attribute__((format(printf, 2, 3))) say(const char *node, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	message_line(STDERR_FILENO, false, node, "error", format, args);
	va_end(args);
}

static void __attribute__((noreturn)) refuse(const struct launch *l, int sock, const char *path)
{
	struct {
		char magic[8];
		unsigned char code[4];
	} head = { .code = { EXIT_SETUP } };
	int error = errno;

	memcpy(head.magic, TICKET_MAGIC, sizeof(head.magic));
	say(l->node, "can't start launcher: %s: %s", path, strerror(error));
	send(sock, &head, sizeof(head), MSG_NOSIGNAL);
	_exit(EXIT_SETUP);
}

static void __attribute__((noreturn)) become(const struct launch *l)
{
	bool ready = l->user_fd >= 0;
	char *node = (char *)(l->node || !ready ? l->node : "");
	char *argv[] = { (char *)l->python, "-I", "-S", (char *)l->launcher, "3", "4", "5", node,
			 ready ? "7" : NULL, "8", NULL };
	char *envp[] = { NULL };
	/* A task may have no standard error. */
	int errors = fcntl(STDERR_FILENO, F_GETFD) < 0 ? DEV_NULL : STDERR_FILENO;
	const int list[] = { DEV_NULL, DEV_NULL, errors, l->facts, l->socket, errors, DEV_NULL,
			     l->user_fd, l->mount_fd };
	sigset_t none;

	/* The terminal's signals are for the task. */
	setsid();
	for (int s = 1; s < NSIG; s++)
		signal(s, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	/* Neither the task's descriptors nor slurmstepd's are the launcher's. */
	if (descriptors_become(list, ready ? USER_FD + 2 : USER_FD))
		refuse(l, l->socket, l->python);
	/* Nobody waits for a container any more when all tasks are gone: SIGIO
	 * ends the launcher then, even where it hangs in a dead server's file. */
	if (fcntl(SOCKET_FD, F_SETOWN, getpid()) ||
	    fcntl(SOCKET_FD, F_SETFL, fcntl(SOCKET_FD, F_GETFL) | O_ASYNC))
		refuse(l, SOCKET_FD, l->python);
	if (access(l->launcher, R_OK))
		refuse(l, SOCKET_FD, l->launcher);
	/* An interpreter that can't start says so in tens of lines; ch-join has
	 * one for it. The launcher takes ERRORS_FD as its own when it runs. */
	dup2(NULL_FD, STDERR_FILENO);
	fcntl(NULL_FD, F_SETFD, FD_CLOEXEC);
	execve(l->python, argv, envp);
	dup2(ERRORS_FD, STDERR_FILENO);
	refuse(l, SOCKET_FD, l->python);
}

/* Both are vforks: copying slurmstepd's page tables twice would take longer than
 * all that the plugin does. So memory is the task's own until the exec, and the
 * task waits for that; a function each, whose frame the other doesn't touch. */
static int __attribute__((noinline)) grandchild(const struct launch *l)
{
	pid_t pid = vfork();

	if (pid == 0)
		become(l);
	return pid < 0 ? errno : 0;
}

static pid_t __attribute__((noinline)) child(const struct launch *l, volatile int *error)
{
	pid_t pid = vfork();

	if (pid == 0) {
		*error = grandchild(l);
		_exit(0);
	}
	return pid;
}

/* Start the launcher; -1 with errno if there can be no process. */
int launch_start(const struct launch *l)
{
	sigset_t all, before;
	volatile int failure = 0;
	pid_t pid;
	int error;

	/* No handler of the task's may run in the children, on its memory. */
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &before);
	pid = child(l, &failure);
	error = errno;
	sigprocmask(SIG_SETMASK, &before, NULL);
	if (pid < 0) {
		errno = error;
		return -1;
	}
	/* Who ignores SIGCHLD has no child to wait for. */
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	errno = failure;
	return failure ? -1 : 0;
}
