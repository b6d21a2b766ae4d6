/* SPDX-License-Identifier: Apache-2.0 */
/* The relay's broker: hostile requests from inside a container. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fuzz.h"

static int fuzz_seals;
static size_t text_size;

static int fuzz_fcntl(int fd, int what, ...)
{
	(void)fd, (void)what;
	return fuzz_seals;
}

static int fuzz_fstat(int fd, struct stat *st)
{
	(void)fd;
	*st = (struct stat){ .st_size = text_size };
	return 0;
}

static ssize_t fuzz_pread(int fd, void *to, size_t size, off_t offset)
{
	size_t got;
	const uint8_t *from = fuzz_take(size, &got);

	(void)fd, (void)offset;
	memcpy(to, from, got);
	return got;
}

static int open_fds;

static int fuzz_close(int fd)
{
	if (fd >= 1000)
		open_fds--;
	return 0;
}

static ssize_t fuzz_recvmsg(int fd, struct msghdr *msg, int how)
{
	uint8_t kind = fuzz_byte();
	size_t got, room = msg->msg_iov->iov_len, count = kind >> 4;
	const uint8_t *from = fuzz_take(kind & 1 ? room : kind, &got);
	struct cmsghdr *c = msg->msg_control;

	(void)fd, (void)how;
	memcpy(msg->msg_iov->iov_base, from, got < room ? got : room);
	msg->msg_flags = (kind & 2 && kind & 4 ? MSG_CTRUNC : 0) | (got > room ? MSG_TRUNC : 0);
	if (!count || CMSG_SPACE(count * sizeof(int)) > msg->msg_controllen) {
		msg->msg_controllen = 0;
		return got;
	}
	msg->msg_controllen = CMSG_SPACE(count * sizeof(int));
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(count * sizeof(int));
	for (size_t i = 0; i < count; i++)
		memcpy(CMSG_DATA(c) + i * sizeof(int), &(int){ 1000 + i }, sizeof(int));
	open_fds += count;
	return got;
}

#define _exit fuzz_exit
#define fcntl fuzz_fcntl
#define fstat fuzz_fstat
#define pread fuzz_pread
#define close fuzz_close
#define recvmsg fuzz_recvmsg
#include "../../spank/ch-relay/request.c"
#include "../../spank/ch-relay/command.c"

static const char allowed[] = "srun,squeue,scancel,sinfo!";

static void check(const struct request *q)
{
	size_t n = 0;
	bool confined;

	if (!is_allowed(q->name, allowed, &confined) ||
	    confined != !strcmp(q->name, "sinfo") || confined != q->confined || strchr(q->name, '/') || q->argv[0] != q->name)
		abort();
	for (char **a = q->argv; *a; a++, n++)
		if (*a < q->text || *a >= q->text + q->head.size)
			abort();
	if (n != 1 + (size_t)q->head.arguments)
		abort();
	for (n = 0; q->variables[n]; n++)
		if (q->variables[n] < q->text || q->variables[n] >= q->text + q->head.size)
			abort();
	if (n != q->head.variables)
		abort();
}

/* The host's programs must find the host's files. */
static void check_environment(char **env)
{
	static const char *const hosts[] = { "PATH=", "LD_", "HOME=", "TMPDIR=", "LOCPATH=", "SLURM_CONF=" };

	for (char **e = env; *e; e++)
		for (size_t i = 0; i < sizeof(hosts) / sizeof(*hosts); i++) {
			bool ours = false;

			for (char **own = environ; *own; own++)
				ours |= !strcmp(*own, *e);
			if (!strncmp(*e, hosts[i], strlen(hosts[i])) && !ours)
				abort();
		}
}

/* A confined command gets variables of the host, or harmless ones. */
static void check_confined(char **env)
{
	for (char **e = env; *e; e++) {
		bool ours = !strncmp(*e, "PWD=", 4);

		for (char **own = environ; *own; own++)
			ours |= *own == *e;
		if (!ours && !is_harmless(*e))
			abort();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static char *host[] = { "PATH=/usr/bin:/bin", "HOME=/home/me", "LD_PRELOAD=/x.so", "USER=me", NULL };
	static char *volatile *env;
	static struct request q;
	int fds[4], error;
	size_t count;
	ssize_t n;
	static uint8_t way;

	fuzz_data = data;
	fuzz_size = size;
	environ = host;
	open_fds = 0;
	env = NULL;
	q = (struct request){ .streams = { -1, -1, -1 } };
	way = fuzz_byte();
	fuzz_seals = way & 1 ? -1 : way & 2 ? F_SEAL_SHRINK : F_SEAL_SHRINK | F_SEAL_WRITE | F_SEAL_GROW;
	n = request_receive(5, &q.head, sizeof(q.head), fds, 4, &count);
	if (n >= 0 && !(way & 4) && n == sizeof(q.head))
		q.head.size = fuzz_size; /* else no mutation would ever get there */
	text_size = fuzz_size;
	error = n < 0 ? EBADMSG : request_parse(&q, n, fds, count, allowed);
	if (!error && !setjmp(fuzz_top)) {
		check(&q);
		env = q.confined ? confined_environment(&q) : environment(&q, way & 8);
		check_environment((char **)env);
		if (q.confined)
			check_confined((char **)env);
		free(find(q.name));
	}
	for (char *volatile *e = env; e && *e; e++) {
		bool own = *e < q.text || *e >= q.text + q.head.size;

		for (char **h = host; *h; h++)
			own &= *e != *h;
		if (own)
			free(*e);
	}
	free((void *)env);
	request_release(&q);
	/* No descriptor stays open, whatever the request was. */
	if (open_fds)
		abort();
	return 0;
}
