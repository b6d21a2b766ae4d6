/* SPDX-License-Identifier: Apache-2.0 */
/* The relay's broker: runs Slurm's commands on the host, for callers in the container.
 *
 * ch-join forks it before entering any namespace. So it runs as a plain batch
 * script's commands would: as the user, with the host's files and the task's
 * environment and limits. It ends with the process that it watches.
 *
 * Requests from the container are not trusted: the broker only runs commands of a
 * fixed list, from the PATH that the task had on the host.
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
	error = n < 0 ? errno : request_parse(&q, n, fds, count, allowed);
	if (!error) {
		c->child = fork();
		if (c->child == 0)
			command_become(&q, c->fd, broker);
		if (c->child < 0) {
			error = errno;
			c->child = 0;
		} else {
			setpgid(c->child, c->child); /* the child does so too: one of the two is first */
		}
	}
	request_release(&q);
	if (error) {
		send_reply(c->fd, RELAY_REFUSED, error);
		close(c->fd);
		c->fd = -1;
	}
}

/* Pass a signal on to the command; if the caller has ended, kill the command, as
 * whatever killed the caller would have. But not the command's process group: a
 * process that srun leaves to clean up must be able to do so. */
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

static void accept_client(void)
{
	int fd = accept4(RELAY_LISTEN_FD, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct ucred who;
	socklen_t size = sizeof(who);
	struct client *more;

	if (fd < 0)
		return;
	/* Only the user can reach the socket's directory; this check is a second barrier. */
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) || who.uid != geteuid()) {
		send_reply(fd, RELAY_REFUSED, EACCES);
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

static void reap_children(void)
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
				send_reply(c->fd, RELAY_STOPPED, WSTOPSIG(status));
			continue;
		}
		if (c->fd >= 0) {
			if (WIFEXITED(status))
				send_reply(c->fd, RELAY_EXITED, WEXITSTATUS(status));
			else
				send_reply(c->fd, RELAY_KILLED, WTERMSIG(status));
			close(c->fd);
			c->fd = -1;
		}
		c->child = 0;
	}
}

static void remove_served_clients(void)
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
		/* When descriptors run out, the next caller is accepted later. */
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
			reap_children();
		if (wait[2].revents)
			accept_client();
		remove_served_clients();
	}
	free(wait);
}

int relay_serve(const char *commands)
{
	sigset_t all, child;
	struct rlimit files;
	int children;

	allowed = commands;
	/* Processes in the container run as the same user, and must not trace this one. */
	prctl(PR_SET_DUMPABLE, 0);
	getrlimit(RLIMIT_NOFILE, &own_files);
	files = own_files;
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	/* Signals to the step are for the script. */
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
	/* The script has ended; as in any Slurm step, the processes that it left end with it. */
	for (size_t i = 0; i < client_count; i++) {
		if (clients[i].child)
			kill(-clients[i].child, SIGKILL);
		if (clients[i].child && clients[i].fd >= 0)
			send_reply(clients[i].fd, RELAY_KILLED, SIGKILL);
	}
	free(clients);
	return 0;
}
