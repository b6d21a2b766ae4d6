/* SPDX-License-Identifier: Apache-2.0 */
/* ch-join: plans, tickets, its variable, the image's own command, what a relayed
 * srun hands on. The first byte says which. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fuzz.h"

#define FAKE_FD 1000

static void *mapped[8];
static int mapped_count;
static uint8_t flags;

static int fuzz_fstat(int fd, struct stat *st)
{
	(void)fd;
	*st = (struct stat){ .st_mode = S_IFREG | 0644, .st_size = fuzz_size };
	return 0;
}

/* Of exactly this size, so that an access one byte beyond it is detected. */
static void *fuzz_mmap(void *at, size_t size, int prot, int how, int fd, off_t offset)
{
	size_t got;
	const uint8_t *from = fuzz_take(size, &got);
	char *copy = malloc(size);

	(void)at, (void)prot, (void)how, (void)fd, (void)offset;
	memcpy(copy, from, got);
	mapped[mapped_count++] = copy;
	return copy;
}

static int fuzz_open(const char *path, int how, ...)
{
	(void)how;
	if (path[0] == '/' && path[1] == 'c' && flags & (strstr(path, "cmd") ? 1 : 2)) {
		errno = ENOENT;
		return -1;
	}
	return FAKE_FD;
}

static ssize_t fuzz_read(int fd, void *to, size_t size)
{
	size_t got;
	const uint8_t *from = fuzz_take(size, &got);

	(void)fd;
	memcpy(to, from, got);
	return got;
}

/* No message may have a character that steers the terminal. */
static ssize_t fuzz_write(int fd, const void *text, size_t n)
{
	const char *at = text, *end = at + n - 1;

	if (fd != STDERR_FILENO || !n || *end != '\n')
		abort();
	if (!strncmp(at, "\033[0;3", 5) && !strncmp(end - 4, "\033[0m", 4))
		at += 7, end -= 4;
	for (; at < end; at++)
		if ((unsigned char)*at < 0x20 || *at == 0x7f)
			abort();
	return n;
}

static ssize_t fuzz_recvmsg(int fd, struct msghdr *msg, int how)
{
	size_t got, room = msg->msg_iov->iov_len, count = flags & 7;
	uint8_t kind = fuzz_byte();
	const uint8_t *from = fuzz_take(kind & 1 ? room : kind >> 3, &got);
	struct cmsghdr *c = msg->msg_control;

	(void)fd, (void)how;
	memcpy(msg->msg_iov->iov_base, from, got < room ? got : room);
	msg->msg_flags = kind & 2 ? MSG_CTRUNC : 0;
	if (!count || CMSG_SPACE(count * sizeof(int)) > msg->msg_controllen) {
		msg->msg_controllen = 0;
		return got;
	}
	msg->msg_controllen = CMSG_SPACE(count * sizeof(int));
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = kind & 4 ? SCM_CREDENTIALS : SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(count * sizeof(int));
	for (size_t i = 0; i < count; i++)
		memcpy(CMSG_DATA(c) + i * sizeof(int), &(int){ FAKE_FD + i }, sizeof(int));
	return got;
}

static int fuzz_poll(struct pollfd *fds, nfds_t n, int timeout)
{
	(void)fds, (void)n, (void)timeout;
	return 1;
}

static int fuzz_close(int fd)
{
	(void)fd;
	return 0;
}

static int fuzz_setns(int fd, int kind)
{
	(void)fd, (void)kind;
	errno = EINVAL;
	return flags & 8 ? -1 : 0;
}

static int fuzz_prctl(int what, ...)
{
	(void)what;
	return 0;
}

static int fuzz_chdir(const char *path)
{
	errno = ENOENT;
	return strcmp(path, "/") && flags & 16 ? -1 : 0;
}

static int fuzz_dup2(int from, int to)
{
	(void)from;
	return to;
}

static int fuzz_fcntl(int fd, int what, ...)
{
	if (what == F_GET_SEALS)
		return flags & 64 ? F_SEAL_GROW : F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
	return fd == STDERR_FILENO ? -1 : fd;
}

static long fuzz_syscall(long number, ...)
{
	(void)number;
	return 0;
}

static pid_t fuzz_fork(void)
{
	errno = EAGAIN;
	return -1;
}

#define main ch_join_main
#define exit fuzz_exit
#define fstat fuzz_fstat
#define mmap fuzz_mmap
#define open fuzz_open
#define read fuzz_read
#define write fuzz_write
#define recvmsg fuzz_recvmsg
#define poll(a, b, c) fuzz_poll(a, b, c)
#define close fuzz_close
#define setns fuzz_setns
#define prctl fuzz_prctl
#define chdir fuzz_chdir
#define dup2 fuzz_dup2
#define fcntl fuzz_fcntl
#define syscall fuzz_syscall
#define fork fuzz_fork

/* This only reads the program's own file. */
int sealed_copy(void)
{
	return -1;
}

void become_copy(int copy, int plan_fd, const char *directory, char **argv)
{
	(void)copy, (void)plan_fd, (void)directory, (void)argv;
	abort();
}

/* The command has its own fuzz targets. */
void run_cli(const char *name, char **argv)
{
	(void)name, (void)argv;
	abort();
}

#include "../../spank/common/message_line.c"
#include "../../spank/ch-join/messages.c"

/* Saving needs a process that waits for the task: tests/cluster/test_save.py. */
void save_at_end(const char *text, const struct ticket *t)
{
	(void)text, (void)t;
}

void end_with_keeper(void)
{
}

/* If an exec fails, execute() would look at files of this machine. */
void execute(const struct settings *s, char **argv)
{
	(void)s;
	for (char **word = argv; *word; word++)
		if (strlen(*word) > 1 << 20)
			abort();
	(void)s;
	die(EXIT_NOT_FOUND, "can't execute %s", argv[0]);
}

#include "../../spank/ch-join/ticket.c"
#include "../../spank/ch-join/plan.c"
#include "../../spank/ch-join/command.c"
#include "../../spank/ch-join/task.c"
#include "../../spank/ch-join/main.c"
#include "../../spank/ch-join/relay_start.c"
#include "../../spank/common/descriptors.c"
#include "../../spank/ch-join/entrypoint.c"
#include "../../spank/ch-join/keyring.c"
#include "../../spank/ch-join/root_emulation.c"
#include "../../spank/ch-join/variables.c"

static void fresh_environment(void)
{
	static char *variables[64];
	size_t n = 0;

	while (n < 63 && fuzz_size && *fuzz_data) {
		char *text = fuzz_string();

		/* Slurm passes on any words that execve takes. */
		variables[n++] = text;
	}
	fuzz_byte();
	variables[n] = NULL;
	environ = variables;
}

static void check_environment(void)
{
	for (char **e = environ; *e; e++)
		if (memchr(*e, '\0', 1) && **e)
			abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *words[] = { "ch-join", "--plan=5", "--", "-", "argument", NULL };
	static uint8_t kind;
	static char *none[1];
	char value[64];
	size_t got;
	const uint8_t *text;
	const char *directory = NULL;

	fuzz_data = data;
	fuzz_size = size;
	verbosity = 0;
	colored = false;
	messages = STDERR_FILENO;
	kind = fuzz_byte();
	flags = fuzz_byte();
	fresh_environment();
	if (!setjmp(fuzz_top)) {
		switch (kind % 5) {
		case 0:
			words[3] = flags & 32 ? "-" : "command";
			ch_join_main(5, words);
			break;
		case 1:
			words[3] = "command";
			ch_join_main(4, words);
			break;
		case 2:
			text = fuzz_take(fuzz_byte() % (sizeof(value) - 1), &got);
			memcpy(value, text, got);
			value[got] = '\0';
			setenv("SLURM_CH_JOIN", value, 1);
			words[1] = "command";
			ch_join_main(5, words);
			break;
		case 3:
			images_own(words + 3);
			break;
		default:
			relay_take_variables(&directory);
			check_environment();
		}
	}
	while (mapped_count)
		free(mapped[--mapped_count]);
	environ = none;
	fuzz_free_strings();
	return 0;
}
