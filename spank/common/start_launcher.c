/* SPDX-License-Identifier: Apache-2.0 */
/* Starts the launcher, as the user and as a grandchild of a task.
 *
 * A grandchild, because slurmstepd waits for its own children, and because the
 * task's command must not find a child that it did not start.
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

/* Places in the list of become(). */
#define SOCKET_FD 4
#define ERRORS_FD 5
#define NULL_FD 6
#define USER_FD 7

static void __attribute__((format(printf, 2, 3))) report(const char *node, const char *format, ...)
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
	report(l->node, "can't start launcher: %s: %s", path, strerror(error));
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
	/* The launcher must not keep descriptors of the task or of slurmstepd open. */
	if (descriptors_become(list, ready ? USER_FD + 2 : USER_FD))
		refuse(l, l->socket, l->python);
	/* When all tasks are gone, nobody waits for the container: SIGIO then ends the launcher,
	 * even if it hangs in a file of a server that is down. */
	if (fcntl(SOCKET_FD, F_SETOWN, getpid()) ||
	    fcntl(SOCKET_FD, F_SETFL, fcntl(SOCKET_FD, F_GETFL) | O_ASYNC))
		refuse(l, SOCKET_FD, l->python);
	if (access(l->launcher, R_OK))
		refuse(l, SOCKET_FD, l->launcher);
	/* An interpreter that can't start writes tens of lines, and ch-join reports it in one. So standard
	 * error is /dev/null until the launcher runs and takes ERRORS_FD. */
	dup2(NULL_FD, STDERR_FILENO);
	fcntl(NULL_FD, F_SETFD, FD_CLOEXEC);
	execve(l->python, argv, envp);
	dup2(ERRORS_FD, STDERR_FILENO);
	refuse(l, SOCKET_FD, l->python);
}

/* Child and grandchild are vforks, because copying slurmstepd's page tables twice would take longer
 * than everything else in the plugin. Until the exec they use the task's own memory, and the task
 * waits. Each vfork has its own function, so that neither touches the other's frame. */
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

/* Start the launcher; return -1 with errno if no process can be started. */
int launch_start(const struct launch *l)
{
	sigset_t all, before;
	volatile int failure = 0;
	pid_t pid;
	int error;

	/* A handler of the task must not run in the children, which share its memory. */
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &before);
	pid = child(l, &failure);
	error = errno;
	sigprocmask(SIG_SETMASK, &before, NULL);
	if (pid < 0) {
		errno = error;
		return -1;
	}
	/* If SIGCHLD is ignored, there is no child to wait for. */
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	errno = failure;
	return failure ? -1 : 0;
}
