/* SPDX-License-Identifier: Apache-2.0 */
/* ch-join: the last step of a task's way into its container.
 *
 * Statically linked, because it runs with the container's root and the task's
 * environment: no loader, no LD_PRELOAD, no library of the image's.
 *
 * Two ways in:
 *   SLURM_CH_JOIN="FD[:BROKER][ ARGV0|+ARGV0]"  from the plugin: wait on socket
 *       FD for the launcher's ticket, enter its namespaces, carry out its plan.
 *       BROKER says which broker of Slurm's commands may be started (relay_start.c).
 *       ARGV0, where given, is the command, in the place of the first word (this
 *       program's own path), or, behind a "+", of the one after it.
 *   ch-join --plan=FD -- CMD...  from `slurm-ch run`: already in the container.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../agreement.h"
#include "ch-join.h"
#include "../ch-relay/relay.h"

/* As the options -v and -q: above 0 more, below 0 less. */
static int verbosity;
static bool colored;
static bool emulating_root;
static bool keeping_keyring;

/* Where messages go: the command's standard error may be hidden. */
static int messages = STDERR_FILENO;

#define HIDES_OUTPUT -1
#define HIDES_ERRORS -3

/* Write a line, with what could steer a terminal as an escape: control
 * characters, ASCII's and (two bytes of UTF-8) those from 0x80 to 0x9f. */
static void write_printable(const char *before, const char *text, size_t n, const char *behind)
{
	char line[4 * (PATH_MAX + 512) + 32];
	size_t to = sprintf(line, "%s", before);

	for (size_t i = 0; i < n; i++) {
		bool two = (unsigned char)text[i] == 0xc2 && i + 1 < n &&
			   ((unsigned char)text[i + 1] & 0xe0) == 0x80;
		unsigned char c = text[two ? ++i : i];

		if (two || c < 0x20 || c == 0x7f)
			to += sprintf(line + to, "\\x%02x", c);
		else
			line[to++] = c;
	}
	to += sprintf(line + to, "%s\n", behind);
	if (write(messages, line, to) < 0)
		return;
}

static void say(const char *kind, const char *format, va_list args)
{
	char text[PATH_MAX + 512];
	const char *node = getenv("SLURMD_NODENAME");
	const char *color = !colored ? "" : *kind == 'e' ? "\033[0;31m" : "\033[0;33m";
	int n = snprintf(text, sizeof(text), "slurm-ch: %s%s%s: ", node ? node : "", node ? ": " : "",
			 kind);

	/* A long environment variable for a node's name is not worth a failure. */
	if (n < 0 || n >= PATH_MAX)
		n = 0;
	n += vsnprintf(text + n, sizeof(text) - n, format, args);
	if (n > (int)sizeof(text) - 1)
		n = sizeof(text) - 1;
	write_printable(color, text, n, colored ? "\033[0m" : "");
}

void die(int code, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say("error", format, args);
	va_end(args);
	exit(code);
}

void info(int level, const char *format, ...)
{
	va_list args;

	if (verbosity < level)
		return;
	va_start(args, format);
	say("info", format, args);
	va_end(args);
}

/* ---- The ticket ---- */

/* How long a container may take before the user is told. */
#ifndef SLOW_SECONDS
#define SLOW_SECONDS 10
#endif

struct ticket {
	int user_fd, mount_fd, plan_fd;
	int relay_fd; /* -1: no relay */
};

/* Only one task of a node repeats what is wrong with all of them. */
static bool is_first_task(void)
{
	const char *id = getenv("SLURM_LOCALID");

	return !id || !strcmp(id, "0");
}

/* A limit is Slurm's to set: an image on a slow server may take its time. */
static void __attribute__((format(printf, 1, 2))) warn(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say("warning", format, args);
	va_end(args);
}

/* Look at the ticket without taking it: the other tasks need it too. */
static void read_ticket(int sock, struct ticket *t)
{
	struct {
		char magic[8];
		unsigned char code[4];
	} head;
	union {
		char space[CMSG_SPACE(4 * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { &head, sizeof(head) };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	struct pollfd wait = { .fd = sock, .events = POLLIN };
	struct cmsghdr *c;
	ssize_t n;
	unsigned code;

	if (is_first_task() && !poll(&wait, 1, SLOW_SECONDS * 1000))
		warn("no container after %d seconds; still waiting (a file server that hangs?)",
		     SLOW_SECONDS);
	for (;;) {
		/* Not a blocking recvmsg: its waiters are woken one by one, and
		 * a look takes nothing away that would wake the next. */
		while (poll(&wait, 1, -1) < 0)
			if (errno != EINTR)
				die(EXIT_SETUP, "can't wait for the launcher: %s", strerror(errno));
		n = recvmsg(sock, &msg, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (n >= 0)
			break;
		/* ECONNRESET, once: the launcher left without reading what a task
		 * has sent; its own message is there all the same. */
		if (errno != EAGAIN && errno != EINTR && errno != ECONNRESET)
			die(EXIT_SETUP, "can't receive the ticket: %s", strerror(errno));
	}
	if (n == 0) {
		if (is_first_task())
			die(EXIT_LAUNCHER_DIED, "the launcher died before the container was ready "
						"(killed, or no Python could start)");
		exit(EXIT_LAUNCHER_DIED);
	}
	if (n != sizeof(head) || msg.msg_flags & MSG_TRUNC || memcmp(head.magic, TICKET_MAGIC, sizeof(head.magic)))
		die(EXIT_SETUP, "launcher and ch-join are of different versions");
	code = head.code[0] | head.code[1] << 8 | head.code[2] << 16 | (unsigned)head.code[3] << 24;
	if (code) /* the launcher said why */
		exit(code & 0xff ? code & 0xff : EXIT_SETUP);
	c = CMSG_FIRSTHDR(&msg);
	if (msg.msg_flags & MSG_CTRUNC || !c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS ||
	    (c->cmsg_len != CMSG_LEN(sizeof(int) * 3) && c->cmsg_len != CMSG_LEN(sizeof(int) * 4)))
		die(EXIT_SETUP, "can't receive the ticket: out of file descriptors");
	t->relay_fd = -1;
	memcpy(t, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0));
}

static void enter(int fd, int type, const char *kind)
{
	/* EINVAL comes now and then for no lasting reason. */
	for (int left = 4; setns(fd, type); left--)
		if (errno != EINVAL || !left)
			die(EXIT_SETUP, "can't join %s namespace of the container: %s", kind,
			    strerror(errno));
	close(fd);
}

/* ---- The plan ---- */

char *need(char *allocated)
{
	if (!allocated)
		die(EXIT_SETUP, "out of memory");
	return allocated;
}

static void carry_out(const char *record, const char **directory)
{
	const char *rest = record + 1;

	switch (*record) {
	case 'E':
		set_variable(rest, LITERAL);
		break;
	case 'X':
		set_variable(rest, EXPAND_ITEMS);
		break;
	case 'A':
		set_variable(rest, EXPAND_ANYWHERE);
		break;
	case 'U':
		unset_variables(rest);
		break;
	case 'P':
		path_has_bin();
		break;
	case 'C':
		*directory = rest;
		break;
	case 'V':
		verbosity = atoi(rest);
		break;
	case 'K':
		colored = true;
		break;
	case 'S':
		emulating_root = true;
		break;
	case 'R':
		keeping_keyring = true;
		break;
	default:
		die(EXIT_SETUP, "launcher and ch-join are of different versions");
	}
}

#define PLAN_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

struct plan {
	const char *first, *end;
};

static struct plan read_plan(int fd)
{
	const char *plan, *end;
	struct stat st;
	int seals = fcntl(fd, F_GET_SEALS);

	/* What is read can't change meanwhile: a plan of the launcher's is sealed. */
	if (seals < 0 || fstat(fd, &st))
		die(EXIT_SETUP, "can't read the plan: %s", strerror(errno));
	if ((seals & PLAN_SEALS) != PLAN_SEALS)
		die(EXIT_SETUP, "can't read the plan: it is not sealed");
	if (st.st_size < (off_t)sizeof(PLAN_HEADER))
		die(EXIT_SETUP, "can't read the plan");
	plan = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (plan == MAP_FAILED)
		die(EXIT_SETUP, "can't read the plan: %s", strerror(errno));
	close(fd);
	end = plan + st.st_size;
	if (memcmp(plan, PLAN_HEADER, sizeof(PLAN_HEADER)) || end[-1])
		die(EXIT_SETUP, "launcher and ch-join are of different versions");
	return (struct plan){ plan + sizeof(PLAN_HEADER), end };
}

/* Carry out the plan; return the directory it asks for, or NULL. */
static const char *carry_out_plan(struct plan plan)
{
	const char *directory = NULL;

	for (const char *r = plan.first; r < plan.end; r += strlen(r) + 1)
		carry_out(r, &directory);
	return directory;
}

/* Start what carries out Slurm's commands on the host, once per node. The ticket
 * only has the socket for it: whether there may be a broker, and for what, is the
 * plugin's word. */
static void start_broker(const char *broker, int listen_fd)
{
	if (!*broker)
		die(EXIT_SETUP, "the launcher offers a relay of Slurm's commands where the plugin "
				"knows of none");
	if (is_first_task() && relay_start(broker, listen_fd))
		die(EXIT_SETUP, "can't start the relay of Slurm's commands: %s", strerror(errno));
	close(listen_fd);
}

/* ---- The command ---- */

/* The directory asked for, else the caller's, else the root. */
static void change_directory(const char *asked, const char *callers)
{
	char here[PATH_MAX];

	if (asked) {
		if (chdir(asked))
			die(EXIT_SETUP, "can't cd to %s: %s", asked, strerror(errno));
	} else if (!callers || chdir(callers)) {
		info(1, "working directory %s is not in the container; using /",
		     callers ? callers : "(unknown)");
		if (chdir("/"))
			die(EXIT_SETUP, "can't cd to /: %s", strerror(errno));
	}
	if (!getcwd(here, sizeof(here)))
		die(EXIT_SETUP, "can't find the working directory: %s", strerror(errno));
	setenv("PWD", here, 1);
}

/* Send what the command writes nowhere, as -q and -qqq ask for. */
static void hide(int fd)
{
	int null = open("/dev/null", O_WRONLY | O_CLOEXEC);

	if (null < 0 || dup2(null, fd) < 0)
		die(EXIT_SETUP, "can't open /dev/null: %s", strerror(errno));
	close(null);
}

static void hide_streams(void)
{
	int own;

	if (verbosity <= HIDES_OUTPUT)
		hide(STDOUT_FILENO);
	if (verbosity <= HIDES_ERRORS) {
		own = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
		hide(STDERR_FILENO);
		if (own >= 0)
			messages = own;
	}
}

static void __attribute__((noreturn)) run(char **argv)
{
	int code;

	if (!strcmp(argv[0], "-"))
		argv = images_own(argv);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		die(EXIT_SETUP, "can't set no_new_privs: %s", strerror(errno));
	hide_streams();
	if (!keeping_keyring)
		leave_keyring();
	if (emulating_root)
		emulate_root();
	info(1, "executing %s", argv[0]);
	execvp(argv[0], argv);
	code = errno == ENOENT || errno == ENOTDIR ? EXIT_NOT_FOUND : EXIT_CANNOT_EXECUTE;
	die(code, "can't execute %s: %s", argv[0], strerror(errno));
}

/* Read a small non-negative number and move past it; -1 if there is none. */
static int number(const char **text)
{
	char *end;
	long n;

	if (**text < '0' || **text > '9')
		return -1;
	n = strtol(*text, &end, 10);
	*text = end;
	return n > INT_MAX ? -1 : (int)n;
}

static void through_ticket(const char *join, char **argv)
{
	struct ticket t;
	struct plan plan;
	const char *rest = join;
	const char *callers = getcwd(NULL, 0);
	char *broker = "", *command = NULL;
	int sock = number(&rest), copy, plan_fd;
	bool behind;

	if (sock >= 0 && *rest == ':') {
		size_t n = strcspn(++rest, " +");

		broker = need(strndup(rest, n));
		rest += n;
	}
	behind = *rest != ' ';
	if (sock < 0 || (*rest && *rest != ' ' && *rest != '+'))
		die(EXIT_USAGE, "ch-join is started by Slurm's plugin, not by hand");
	if (*rest)
		command = need(strdup(rest + 1));
	unsetenv("SLURM_CH_JOIN");
	read_ticket(sock, &t);
	close(sock);
	copy = sealed_copy();
	plan_fd = copy < 0 ? -1 : fcntl(t.plan_fd, F_DUPFD_CLOEXEC, 0);
	plan = read_plan(t.plan_fd);
	if (t.relay_fd >= 0)
		start_broker(broker, t.relay_fd);
	/* Between the two, root in the container has a say over a process that
	 * still sees the host's files. */
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
		die(EXIT_SETUP, "can't make this process undumpable: %s", strerror(errno));
	enter(t.user_fd, CLONE_NEWUSER, "user");
	enter(t.mount_fd, CLONE_NEWNS, "mount");
	argv += behind;
	if (!argv[0])
		die(EXIT_USAGE, "no command given");
	if (command)
		argv[0] = command;
	if (relay_take_variables(&callers))
		need(NULL);
	if (copy >= 0)
		become_copy(copy, plan_fd, callers, argv);
	change_directory(carry_out_plan(plan), callers);
	run(argv);
}

int main(int argc, char **argv)
{
	const char *join = getenv("SLURM_CH_JOIN");
	const char *rest;
	int plan;

	if (argc > 3 && !strncmp(argv[1], "--plan=", 7) && !strcmp(argv[2], "--")) {
		rest = argv[1] + 7;
		plan = number(&rest);
		if (plan >= 0 && !*rest) {
			char *callers = getcwd(NULL, 0);

			/* `slurm-ch run` passes where it was called in PWD's place. */
			if (getenv("SLURM_CH_CWD")) {
				free(callers);
				callers = need(strdup(getenv("SLURM_CH_CWD")));
				unsetenv("SLURM_CH_CWD");
			}
			change_directory(carry_out_plan(read_plan(plan)), callers);
			run(argv + 3);
		}
	}
	if (!join)
		die(EXIT_USAGE, "ch-join is started by Slurm's plugin, not by hand");
	through_ticket(join, argv);
	return EXIT_SETUP;
}
