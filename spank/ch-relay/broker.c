/* SPDX-License-Identifier: Apache-2.0 */
/* The relay's broker: runs Slurm's commands on the host for the relays inside.
 *
 * Forked by ch-join before it entered any namespace: it is where a plain batch
 * script's commands would be, with the host's files, the task's environment and
 * limits, as the user. It lives as long as the process that it watches.
 *
 * What comes from inside is not trusted: only commands of a fixed list run, from
 * the PATH that the task had on the host.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../agreement.h"
#include "broker.h"

struct client {
	int fd;      /* -1: hung up */
	pid_t child; /* 0: nothing runs */
};

static const char *allowed; /* names, separated by commas */
static struct client *clients;
static size_t client_count;
static struct rlimit own_files;

static void serve_request(struct client *c)
{
	struct request q = { .streams = { -1, -1, -1 } };
	pid_t broker = getpid();
	int fds[4], error;
	size_t count;
	ssize_t n = request_receive(c->fd, &q.head, sizeof(q.head), fds, 4, &count);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	error = n < 0 ? errno : request_understand(&q, n, fds, count, allowed);
	if (!error) {
		c->child = fork();
		if (c->child == 0)
			command_become(&q, c->fd, broker);
		if (c->child < 0) {
			error = errno;
			c->child = 0;
		} else {
			setpgid(c->child, c->child); /* whoever comes first */
		}
	}
	request_release(&q);
	if (error) {
		relay_tell(c->fd, RELAY_REFUSED, error);
		close(c->fd);
		c->fd = -1;
	}
}

/* A signal for the command, or the end of the one who asked: what kills the
 * relay shall kill the command. Not its group: what srun leaves to clean up
 * after itself shall do so. */
static void serve_signal(struct client *c)
{
	struct relay_signal s = { 0, 0 };
	size_t count;
	ssize_t n = request_receive(c->fd, &s, sizeof(s), NULL, 0, &count);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n != sizeof(s)) {
		kill(c->child, SIGKILL);
		close(c->fd);
		c->fd = -1;
	} else if (s.number > 0 && s.number < NSIG) {
		kill(s.group ? -c->child : c->child, (int)s.number);
	}
}

static void welcome(void)
{
	int fd = accept4(RELAY_LISTEN_FD, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct ucred who;
	socklen_t size = sizeof(who);
	struct client *more;

	if (fd < 0)
		return;
	/* The socket is where only the user gets; this is the second lock. */
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) || who.uid != geteuid()) {
		relay_tell(fd, RELAY_REFUSED, EACCES);
		close(fd);
		return;
	}
	more = realloc(clients, (client_count + 1) * sizeof(*clients));
	if (!more) {
		close(fd);
		return;
	}
	clients = more;
	clients[client_count++] = (struct client){ fd, 0 };
}

static void bury(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG | WUNTRACED)) > 0) {
		struct client *c = NULL;

		for (size_t i = 0; i < client_count; i++)
			if (clients[i].child == pid)
				c = &clients[i];
		if (!c)
			continue;
		if (WIFSTOPPED(status)) {
			if (c->fd >= 0)
				relay_tell(c->fd, RELAY_STOPPED, WSTOPSIG(status));
			continue;
		}
		if (c->fd >= 0) {
			if (WIFEXITED(status))
				relay_tell(c->fd, RELAY_EXITED, WEXITSTATUS(status));
			else
				relay_tell(c->fd, RELAY_KILLED, WTERMSIG(status));
			close(c->fd);
			c->fd = -1;
		}
		c->child = 0;
	}
}

static void forget_the_gone(void)
{
	size_t kept = 0;

	for (size_t i = 0; i < client_count; i++)
		if (clients[i].fd >= 0 || clients[i].child)
			clients[kept++] = clients[i];
	client_count = kept;
}

static void serve(int children)
{
	struct pollfd *wait = NULL;

	for (;;) {
		size_t count = client_count;
		struct pollfd *more = realloc(wait, (count + 3) * sizeof(*wait));
		struct signalfd_siginfo got;

		if (!more)
			break;
		wait = more;
		wait[0] = (struct pollfd){ .fd = RELAY_WATCH_FD, .events = POLLIN };
		wait[1] = (struct pollfd){ .fd = children, .events = POLLIN };
		/* Without a descriptor to spare, the next caller waits for one. */
		wait[2] = (struct pollfd){ .fd = RELAY_LISTEN_FD, .events = POLLIN };
		if (count + 16 > own_files.rlim_max)
			wait[2].fd = -1;
		for (size_t i = 0; i < count; i++)
			wait[i + 3] = (struct pollfd){ .fd = clients[i].fd, .events = POLLIN };
		if (poll(wait, count + 3, -1) < 0) {
			if (errno == EINTR)
				continue;
			break;
		}
		if (wait[0].revents)
			break;
		for (size_t i = 0; i < count; i++) {
			if (!wait[i + 3].revents)
				continue;
			if (clients[i].child)
				serve_signal(&clients[i]);
			else
				serve_request(&clients[i]);
		}
		if (wait[1].revents && read(children, &got, sizeof(got)) > 0)
			bury();
		if (wait[2].revents)
			welcome();
		forget_the_gone();
	}
	free(wait);
}

int relay_serve(const char *commands)
{
	sigset_t all, child;
	struct rlimit files;
	int children;

	allowed = commands;
	/* Those inside run as the same user; what is here isn't theirs to debug. */
	prctl(PR_SET_DUMPABLE, 0);
	getrlimit(RLIMIT_NOFILE, &own_files);
	files = own_files;
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	/* The step's signals are for the script. */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	children = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
	if (children < 0 || fcntl(RELAY_LISTEN_FD, F_SETFD, FD_CLOEXEC) ||
	    fcntl(RELAY_WATCH_FD, F_SETFD, FD_CLOEXEC))
		return EXIT_SETUP;
	signal(SIGCHLD, SIG_DFL);
	fcntl(RELAY_LISTEN_FD, F_SETFL, O_RDWR | O_NONBLOCK);
	serve(children);
	/* The script has ended, and what it left running ends with it, as Slurm has it. */
	for (size_t i = 0; i < client_count; i++) {
		if (clients[i].child)
			kill(-clients[i].child, SIGKILL);
		if (clients[i].child && clients[i].fd >= 0)
			relay_tell(clients[i].fd, RELAY_KILLED, SIGKILL);
	}
	free(clients);
	return 0;
}
