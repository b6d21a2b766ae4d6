/* SPDX-License-Identifier: Apache-2.0 */
/* ch-relay: Slurm's commands for a container whose image has no Slurm.
 *
 * The program has two roles. In the container, under the name srun, squeue, ...:
 * send all that the command depends on to the broker, pass signals on, and end as
 * the command ended. On the host (`ch-relay --serve COMMANDS`, started by
 * ch-join): the broker, broker.c.
 *
 * It is statically linked for the same reasons as ch-join.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "../agreement.h"
#include "../common/message_line.h"
#include "broker.h"

extern char **environ;

/* The signals that a user, a shell, a terminal or Slurm sends. */
static const int passed_on[] = { SIGHUP,  SIGINT,  SIGQUIT, SIGTERM, SIGALRM,
				 SIGUSR1, SIGUSR2, SIGCONT, SIGTSTP, SIGWINCH };

static const char *name;

static void __attribute__((format(printf, 1, 2))) report(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	message_line(STDERR_FILENO, false, getenv("SLURMD_NODENAME"), "error", format, args);
	va_end(args);
}

static void __attribute__((noreturn, format(printf, 2, 3))) die(int code, const char *format, ...)
{
	char text[PATH_MAX + 512];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	report("%.64s: %s", name, text);
	exit(code);
}

/* Connect to the broker. Its socket is beside this program, wherever that is in the container. */
static int connect_to_broker(void)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	char self[PATH_MAX], *slash;
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	int sock;

	if (n < 0)
		die(EXIT_SETUP, "can't find the relay's socket: %s", strerror(errno));
	self[n] = '\0';
	slash = strrchr(self, '/');
	if (!slash || (size_t)snprintf(to.sun_path, sizeof(to.sun_path), "%.*s/socket",
				       (int)(slash - self), self) >= sizeof(to.sun_path))
		die(EXIT_SETUP, "can't find the relay's socket: %s", self);
	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (sock < 0)
		die(EXIT_SETUP, "can't make a socket: %s", strerror(errno));
	while (connect(sock, (struct sockaddr *)&to, sizeof(to)))
		if (errno == ECONNREFUSED)
			die(EXIT_SETUP, "the relay's other end, on the host, is gone");
		else if (errno != EINTR)
			die(EXIT_SETUP, "can't reach the host: %s: %s", to.sun_path,
			    strerror(errno));
	return sock;
}

static void put(FILE *out, const char *text)
{
	fwrite(text, 1, strlen(text) + 1, out);
}

/* Write the request's strings to a memory file, which is sealed so that nothing
 * changes while the broker reads it. */
static int write_strings(char **argv, struct relay_request *r)
{
	static const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;
	int fd = memfd_create("slurm_ch-relay", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	FILE *out = fd < 0 ? NULL : fdopen(dup(fd), "w");
	char here[PATH_MAX];
	struct stat st;

	if (!out)
		die(EXIT_SETUP, "can't make a memory file: %s", strerror(errno));
	put(out, name);
	put(out, getcwd(here, sizeof(here)) && *here == '/' ? here : "");
	for (char **a = argv + 1; *a; a++, r->arguments++)
		put(out, *a);
	for (char **e = environ; *e; e++, r->variables++)
		put(out, *e);
	if (fclose(out) || fstat(fd, &st) || fcntl(fd, F_ADD_SEALS, seals))
		die(EXIT_SETUP, "can't write a memory file: %s", strerror(errno));
	r->size = st.st_size;
	return fd;
}

/* Note what the command would have inherited from this process. */
static void note_inherited(struct relay_request *r)
{
	sigset_t blocked;
	struct sigaction now;

	sigprocmask(SIG_SETMASK, NULL, &blocked);
	for (int s = 1; s <= 64; s++) {
		if (!sigaction(s, NULL, &now) && now.sa_handler == SIG_IGN)
			r->ignored |= 1ull << (s - 1);
		if (sigismember(&blocked, s) == 1)
			r->blocked |= 1ull << (s - 1);
	}
	r->umask = umask(0);
	umask(r->umask);
	for (int i = 0; i < (int)RLIM_NLIMITS; i++) {
		struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };

		getrlimit(i, &limit);
		r->limits[i].soft = limit.rlim_cur;
		r->limits[i].hard = limit.rlim_max;
	}
}

/* Note which streams are open, and open /dev/null for the others, so that no
 * descriptor of ours becomes one. Return a descriptor of /dev/null. */
static int note_streams(struct relay_request *r)
{
	int fd;

	for (int stream = 0; stream < 3; stream++)
		if (fcntl(stream, F_GETFD) >= 0)
			r->streams |= 1u << stream;
	do
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	while (fd >= 0 && fd < 3);
	if (fd < 0)
		die(EXIT_SETUP, "can't open /dev/null: %s", strerror(errno));
	return fd;
}

static void send_request(int sock, int null, char **argv, struct relay_request *r)
{
	union {
		char space[CMSG_SPACE(4 * sizeof(int))];
		struct cmsghdr align;
	} control = { .space = { 0 } };
	struct iovec iov = { r, sizeof(*r) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control };
	struct cmsghdr *c = &control.align;
	int fds[4], count = 1, tries = 1000;

	memcpy(r->magic, RELAY_MAGIC, sizeof(r->magic));
	fds[0] = write_strings(argv, r);
	for (int stream = 0; stream < 3; stream++)
		if (r->streams >> stream & 1)
			fds[count++] = stream;
	msg.msg_controllen = CMSG_SPACE(count * sizeof(int));
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(count * sizeof(int));
	memcpy(CMSG_DATA(c), fds, count * sizeof(int));
	/* The kernel limits the descriptors on their way: with many callers, some wait for the others. */
	while (sendmsg(sock, &msg, MSG_NOSIGNAL) < 0)
		if (errno == ETOOMANYREFS && tries--)
			usleep(10000);
		else if (errno != EINTR)
			die(EXIT_SETUP, "can't send the request to the host: %s", strerror(errno));
	close(fds[0]);
	/* The streams belong to the command now: a pipe that the command closes must not
	 * stay open here. Standard error stays, for our own messages. */
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
}

/* End by the signal that ended the command. */
static void __attribute__((noreturn)) end_by(int signal_number)
{
	struct rlimit none = { 0, 0 };
	sigset_t all;

	setrlimit(RLIMIT_CORE, &none); /* only the command may leave a core file */
	signal(signal_number, SIG_DFL);
	raise(signal_number);
	sigfillset(&all);
	sigprocmask(SIG_UNBLOCK, &all, NULL);
	exit(128 + signal_number);
}

static void pass_on(int sock, int number, bool group)
{
	struct relay_signal out = { number, group };

	send(sock, &out, sizeof(out), MSG_NOSIGNAL);
}

/* Stop as the command did; when this process is continued, continue the command. The
 * pending SIGCONT is taken without waiting, because a further stop may have discarded it. */
static void stop(int sock)
{
	static const struct timespec now = { 0, 0 };
	sigset_t cont;

	raise(SIGSTOP);
	sigemptyset(&cont);
	sigaddset(&cont, SIGCONT);
	sigtimedwait(&cont, NULL, &now);
	pass_on(sock, SIGCONT, true);
}

static void act_on(int sock, const struct relay_reply *reply)
{
	switch (reply->kind) {
	case RELAY_EXITED:
		exit(reply->value & 0xff);
	case RELAY_KILLED:
		end_by(reply->value & 0x7f);
	case RELAY_STOPPED:
		stop(sock);
		return;
	case RELAY_FAILED:
		die(reply->value == ENOENT ? EXIT_NOT_FOUND : EXIT_CANNOT_EXECUTE,
		    "can't execute it on the host: %s", strerror(reply->value));
	case RELAY_REFUSED:
		if (reply->value == EPERM)
			die(EXIT_CANNOT_EXECUTE, "not a command that may be called from inside a "
						 "container here");
		die(EXIT_SETUP, "the host refused the request: %s", strerror(reply->value));
	default:
		die(EXIT_SETUP, "the relay's two ends are of different versions");
	}
}

/* Send signals and receive replies until the command ends. */
static void __attribute__((noreturn)) wait_for_end(int sock, int signals)
{
	struct pollfd wait[] = { { .fd = sock, .events = POLLIN },
				 { .fd = signals, .events = POLLIN } };

	for (;;) {
		struct relay_reply reply;
		struct signalfd_siginfo got;
		ssize_t n;

		if (poll(wait, 2, -1) < 0) {
			if (errno == EINTR)
				continue;
			die(EXIT_SETUP, "can't wait for the command: %s", strerror(errno));
		}
		/* A terminal's signals are for the whole process group. */
		if (wait[1].revents && read(signals, &got, sizeof(got)) == sizeof(got))
			pass_on(sock, got.ssi_signo, got.ssi_code == SI_KERNEL);
		if (!wait[0].revents)
			continue;
		n = recv(sock, &reply, sizeof(reply), MSG_DONTWAIT);
		if (n == sizeof(reply))
			act_on(sock, &reply);
		else if (n >= 0 || (errno != EAGAIN && errno != EINTR))
			die(EXIT_SETUP, "the relay's other end, on the host, has ended before the "
					"command");
	}
}

/* Have the signals read from a descriptor from now on, except those that are ignored. */
static int take_signals(const struct relay_request *r)
{
	sigset_t ours;
	int fd;

	sigemptyset(&ours);
	for (size_t i = 0; i < sizeof(passed_on) / sizeof(passed_on[0]); i++)
		if (!(r->ignored >> (passed_on[i] - 1) & 1))
			sigaddset(&ours, passed_on[i]);
	sigprocmask(SIG_BLOCK, &ours, NULL);
	fd = signalfd(-1, &ours, SFD_CLOEXEC);
	if (fd < 0)
		die(EXIT_SETUP, "can't wait for signals: %s", strerror(errno));
	return fd;
}

int main(int argc, char **argv)
{
	struct relay_request r = { .magic = "" };
	int sock, signals, null;

	if (argc < 1)
		return EXIT_USAGE;
	name = strrchr(argv[0], '/');
	name = name ? name + 1 : argv[0];
	if (!strcmp(name, "ch-relay")) {
		if (argc == 3 && !strcmp(argv[1], "--serve"))
			return relay_serve(argv[2]);
		die(EXIT_USAGE, "called by the name of one of Slurm's commands, not by hand");
	}
	null = note_streams(&r);
	sock = connect_to_broker();
	note_inherited(&r);
	signals = take_signals(&r);
	send_request(sock, null, argv, &r);
	wait_for_end(sock, signals);
}
