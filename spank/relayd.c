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
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ch-join.h"
#include "relay.h"

extern char **environ;

struct client {
	int fd;      /* -1: hung up */
	pid_t child; /* 0: nothing runs */
};

static const char *allowed; /* names, separated by commas */
static struct client *clients;
static size_t client_count;
static struct rlimit own_files;

static void tell(int fd, enum relay_kind kind, uint32_t value)
{
	struct relay_reply reply = { kind, value };

	/* A few replies always fit; who doesn't read them gets no more. */
	send(fd, &reply, sizeof(reply), MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* ---- One request ---- */

struct request {
	struct relay_request head;
	int streams[3]; /* -1: closed */
	char *text;
	const char *name, *directory;
	char **argv; /* ends with NULL, as the next */
	char **variables;
};

static void release(struct request *q)
{
	for (int i = 0; i < 3; i++)
		if (q->streams[i] >= 0)
			close(q->streams[i]);
	free(q->text);
	free(q->argv);
	free(q->variables);
}

/* Read the memory file whole; an errno. Sealed, or reading it might block. */
static int read_text(int fd, struct request *q)
{
	int seals = fcntl(fd, F_GET_SEALS);
	uint64_t size = q->head.size;
	struct stat st;

	if (seals < 0 || (seals & (F_SEAL_SHRINK | F_SEAL_WRITE)) != (F_SEAL_SHRINK | F_SEAL_WRITE))
		return EBADMSG;
	if (fstat(fd, &st) || (uint64_t)st.st_size != size || size < 2)
		return EBADMSG;
	if (size > RELAY_MAX_BYTES)
		return E2BIG;
	q->text = malloc(size);
	if (!q->text)
		return ENOMEM;
	if (pread(fd, q->text, size, 0) != (ssize_t)size || q->text[size - 1])
		return EBADMSG;
	return 0;
}

/* Cut the text into name, directory, arguments and variables; an errno. */
static int cut(struct request *q)
{
	uint32_t arguments = q->head.arguments, variables = q->head.variables;
	const char *end = q->text + q->head.size;
	char *at = q->text;

	if (arguments > RELAY_MAX_STRINGS || variables > RELAY_MAX_STRINGS)
		return E2BIG;
	q->argv = calloc(arguments + 2, sizeof(char *));
	q->variables = calloc(variables + 1, sizeof(char *));
	if (!q->argv || !q->variables)
		return ENOMEM;
	for (uint64_t i = 0; i < 2 + (uint64_t)arguments + variables; i++) {
		if (at >= end)
			return EBADMSG;
		if (i == 0)
			q->argv[0] = at;
		else if (i == 1)
			q->directory = at;
		else if (i < 2 + (uint64_t)arguments)
			q->argv[i - 1] = at;
		else
			q->variables[i - 2 - arguments] = at;
		at += strlen(at) + 1;
	}
	q->name = q->argv[0];
	return at == end ? 0 : EBADMSG;
}

static bool is_allowed(const char *name)
{
	size_t n = strlen(name);

	if (!n || strpbrk(name, ",/"))
		return false;
	for (const char *item = allowed;; item++) {
		size_t length = strcspn(item, ",");

		if (length == n && !strncmp(item, name, n))
			return true;
		item += length;
		if (!*item)
			return false;
	}
}

static void close_all(const int *fds, size_t count)
{
	for (size_t i = 0; i < count; i++)
		close(fds[i]);
}

/* Receive one message: its bytes and at most `room` descriptors. */
static ssize_t receive(int fd, void *data, size_t size, int *fds, size_t room, size_t *count)
{
	union {
		char space[CMSG_SPACE(8 * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { data, size };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	ssize_t n = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	*count = 0;
	for (struct cmsghdr *c = n < 0 ? NULL : CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
		size_t got = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < got; i++) {
			int one;

			memcpy(&one, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (*count < room)
				fds[(*count)++] = one;
			else
				close(one);
		}
	}
	if (n >= 0 && msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
		close_all(fds, *count);
		*count = 0;
		errno = msg.msg_flags & MSG_CTRUNC ? EMFILE : EBADMSG;
		return -1;
	}
	return n;
}

/* Take a request apart; 0, or an errno for the one who asked. */
static int understand(struct request *q, ssize_t n, int *fds, size_t count)
{
	size_t next = 1;
	int error = EBADMSG;

	if (n != sizeof(q->head) || memcmp(q->head.magic, RELAY_MAGIC, sizeof(q->head.magic)) ||
	    !count)
		goto out;
	if (q->head.streams > 7 || count != 1 + (size_t)__builtin_popcount(q->head.streams))
		goto out;
	for (int i = 0; i < 3; i++)
		if (q->head.streams >> i & 1) {
			q->streams[i] = fds[next];
			fds[next++] = -1;
		}
	error = read_text(fds[0], q);
	if (!error)
		error = cut(q);
	if (!error && !is_allowed(q->name))
		error = EPERM;
out:
	for (size_t i = 0; i < count; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	return error;
}

/* ---- The command's environment ---- */

static bool is_named(const char *variable, const char *name)
{
	size_t n = strlen(name);

	return !strncmp(variable, name, n) && variable[n] == '=';
}

/* What leads programs to files: in the container's places, not the host's. The
 * first few are worth something to a step in a container. */
static bool is_relayed(const char *variable)
{
	return is_named(variable, "PATH") || !strncmp(variable, "LD_", 3);
}

static bool is_hosts(const char *variable)
{
	static const char *const names[] = { "HOME",   "TMPDIR",      "PWD",     "OLDPWD",
					     "LOCPATH", "GCONV_PATH", "GLIBC_TUNABLES" };

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (is_named(variable, names[i]))
			return true;
	return is_relayed(variable);
}

/* Whether one of `among` begins as `variable` does, for n bytes. */
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

/* The script's variables, with the host's own where the host's programs need
 * them. For srun, what the script has made of PATH and LD_* goes on to the step's
 * container, and so does a working directory that only exists there. */
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
		    is_named(*e, "CH_RUNNING"))
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
		if (srun && is_relayed(*e) && !is_among(*e, n + 1, q->variables)) {
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

/* ---- The command ---- */

/* Find a command in the host's PATH; relative places don't count. */
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

static void __attribute__((noreturn)) become(const struct request *q, int client, pid_t broker)
{
	char **env, *path;
	bool arrived;

	setpgid(0, 0);
	/* Nothing that we started runs on without us. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != broker)
		_exit(EXIT_SETUP);
	for (int i = 0; i < 3; i++) {
		if (q->streams[i] < 0)
			close(i);
		else if (dup2(q->streams[i], i) < 0)
			_exit(EXIT_SETUP);
	}
	arrived = *q->directory == '/' && !chdir(q->directory);
	env = environment(q, arrived);
	path = find(q->name);
	if (path) {
		inherit(q);
		execve(path, q->argv, env);
	}
	tell(client, RELAY_FAILED, errno);
	_exit(errno == ENOENT ? EXIT_NOT_FOUND : EXIT_CANNOT_EXECUTE);
}

static void serve_request(struct client *c)
{
	struct request q = { .streams = { -1, -1, -1 } };
	pid_t broker = getpid();
	int fds[4], error;
	size_t count;
	ssize_t n = receive(c->fd, &q.head, sizeof(q.head), fds, 4, &count);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	error = n < 0 ? errno : understand(&q, n, fds, count);
	if (!error) {
		c->child = fork();
		if (c->child == 0)
			become(&q, c->fd, broker);
		if (c->child < 0) {
			error = errno;
			c->child = 0;
		} else {
			setpgid(c->child, c->child); /* whoever comes first */
		}
	}
	release(&q);
	if (error) {
		tell(c->fd, RELAY_REFUSED, error);
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
	ssize_t n = receive(c->fd, &s, sizeof(s), NULL, 0, &count);

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

/* ---- All of them ---- */

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
		tell(fd, RELAY_REFUSED, EACCES);
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
				tell(c->fd, RELAY_STOPPED, WSTOPSIG(status));
			continue;
		}
		if (c->fd >= 0) {
			if (WIFEXITED(status))
				tell(c->fd, RELAY_EXITED, WEXITSTATUS(status));
			else
				tell(c->fd, RELAY_KILLED, WTERMSIG(status));
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
	/* The script has ended, and what it left running ends with it. */
	for (size_t i = 0; i < client_count; i++)
		if (clients[i].child)
			kill(-clients[i].child, SIGKILL);
	free(clients);
	return 0;
}
