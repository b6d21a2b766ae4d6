/* SPDX-License-Identifier: Apache-2.0 */
/* A join's peers: a holder with callers that lie, come and go in any order; and a peer at
 * whose other end anything may be.
 *
 * Sockets, time and processes are the input's. What a holder gives must be what it was given, for that image,
 * by who was told to begin; a rank is in each join once; and no descriptor stays. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../spank/ch-join/ch-join.h"
#include "../../spank/ch-join/meeting.h"
#include "fuzz.h"

/* Numbers of callers' sockets, and of descriptors that came with messages. */
#define CALLER 1000
#define PASSED 5000
#define MOST 1000

static struct seen {
	bool open, heard, begins;
	struct hello hello;
} seen[MOST];
static struct passed {
	bool open, handed_over;
	uint64_t image;
} passed[MOST];
static int seen_count, passed_count, open_others;
static int64_t milliseconds;
static bool is_peer;
static void *reallocated;

static struct seen *caller_of(int fd)
{
	if (fd < CALLER || fd >= CALLER + seen_count || !seen[fd - CALLER].open)
		abort();
	return &seen[fd - CALLER];
}

static int fuzz_close(int fd)
{
	if (fd >= PASSED) {
		if (fd >= PASSED + passed_count || !passed[fd - PASSED].open)
			abort();
		passed[fd - PASSED].open = false;
	} else if (fd >= CALLER) {
		caller_of(fd)->open = false;
	} else if (fd > 2) {
		open_others--;
	}
	return 0;
}

static int new_fd(void)
{
	open_others++;
	return 3 + open_others;
}

static int fuzz_accept(int fd, void *address, void *size, int flags)
{
	(void)fd, (void)address, (void)size, (void)flags;
	if (seen_count == MOST || fuzz_byte() % 16 == 0) {
		errno = EMFILE;
		return -1;
	}
	seen[seen_count] = (struct seen){ .open = true };
	return CALLER + seen_count++;
}

/* Sometimes make a whole message, which mutations would never reach. */
static size_t make_message(uint8_t kind, uint8_t *to, size_t room, bool to_peer)
{
	size_t got;
	const uint8_t *from;

	memset(to, 0, room);
	if (kind & 1 && to_peer && room >= sizeof(struct answer)) {
		struct answer a = { .magic = MEETING_MAGIC, .kind = fuzz_byte() % 9, .value = fuzz_byte() % 3 };

		from = fuzz_take(fuzz_byte() % (sizeof(a.name) + 1), &got);
		memcpy(a.name, from, got);
		memcpy(to, &a, sizeof(a));
		return sizeof(a);
	}
	if (kind & 1 && room >= sizeof(struct hello)) {
		struct hello h = { .magic = MEETING_MAGIC, .image = fuzz_byte() % 3, .rules = fuzz_byte() % 2 };

		h.rank = fuzz_byte() % 5 - 1;
		h.peers = fuzz_byte() % 4;
		h.tag[0] = 'a' + fuzz_byte() % 8 / 7;
		memset(h.name, fuzz_byte(), sizeof(h.name));
		memcpy(to, &h, sizeof(h));
		return sizeof(h);
	}
	if (kind & 2) {
		struct answer a = { .magic = MEETING_MAGIC, .kind = MEETING_HAVE };

		memcpy(to, &a, sizeof(a));
		return sizeof(a);
	}
	from = fuzz_take(fuzz_byte() * 2, &got);
	memcpy(to, from, got < room ? got : room);
	return got;
}

static ssize_t fuzz_recvmsg(int fd, struct msghdr *m, int flags)
{
	uint8_t kind = fuzz_byte();
	struct seen *s = is_peer ? NULL : caller_of(fd);
	size_t n, room = m->msg_iov->iov_len;
	struct cmsghdr *c = m->msg_control;

	(void)flags;
	if (kind % 16 == 15 || (!fuzz_size && is_peer)) {
		m->msg_controllen = 0;
		errno = kind & 16 ? ECONNRESET : kind & 32 && !is_peer ? EAGAIN : EINTR;
		if (errno == EINTR || !fuzz_size)
			return 0; /* the end */
		return -1;
	}
	n = make_message(kind, m->msg_iov->iov_base, room, is_peer);
	if (!(kind & 4) || passed_count == MOST) {
		m->msg_controllen = 0;
	} else {
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = m->msg_controllen = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &(int){ PASSED + passed_count }, sizeof(int));
		passed[passed_count] = (struct passed){ .open = true };
		if (s && s->begins && n == sizeof(struct answer)) {
			passed[passed_count].handed_over = true;
			passed[passed_count].image = s->hello.image;
		}
		passed_count++;
	}
	if (s && !s->heard && n == sizeof(s->hello)) {
		s->heard = true;
		memcpy(&s->hello, m->msg_iov->iov_base, sizeof(s->hello));
	}
	return n;
}

/* The holder's answer to a caller. */
static void check_answer(struct seen *to, const struct msghdr *m)
{
	const struct answer *a = m->msg_iov->iov_base;
	int fd;

	if (m->msg_iov->iov_len != sizeof(*a) || memcmp(a->magic, MEETING_MAGIC, sizeof(a->magic)))
		abort();
	if ((a->kind == MEETING_TAKE) != (m->msg_control != NULL) || memchr(a->name, '\0', sizeof(a->name)) == NULL)
		abort();
	if (a->kind == MEETING_BEGIN) {
		if (!to->heard || to->begins)
			abort();
		to->begins = true;
	}
	if (a->kind != MEETING_TAKE)
		return;
	memcpy(&fd, CMSG_DATA((struct cmsghdr *)m->msg_control), sizeof(fd));
	if (fd < PASSED || !passed[fd - PASSED].open || !passed[fd - PASSED].handed_over ||
	    !to->heard || passed[fd - PASSED].image != to->hello.image)
		abort();
}

static ssize_t fuzz_sendmsg(int fd, const struct msghdr *m, int flags)
{
	uint8_t how = fuzz_byte();

	(void)flags;
	if (how % 16 == 15) {
		errno = how & 16 ? ETOOMANYREFS : how & 32 ? ENOBUFS : EPIPE;
		return -1;
	}
	if (!is_peer)
		check_answer(caller_of(fd), m);
	return m->msg_iov->iov_len;
}

static int fuzz_poll(struct pollfd *fds, nfds_t count, int timeout)
{
	int ready = 0;

	milliseconds += fuzz_byte();
	if (!fuzz_size) { /* the end: who starts peers is gone */
		fds[0].revents = POLLIN;
		if (is_peer)
			milliseconds += timeout;
		return 1;
	}
	for (nfds_t i = 0; i < count; i++)
		fds[i].revents = 0;
	for (nfds_t i = is_peer ? 0 : 1; i < count; i++)
		if (fds[i].fd >= 0 && fuzz_byte() & 1) {
			fds[i].revents = POLLIN;
			ready++;
		}
	if (!ready)
		milliseconds += timeout > 0 ? timeout : 1;
	return ready;
}

static int fuzz_clock(clockid_t clock, struct timespec *t)
{
	(void)clock;
	milliseconds++;
	*t = (struct timespec){ milliseconds / 1000, milliseconds % 1000 * 1000000 };
	return 0;
}

static int fuzz_usleep(useconds_t us)
{
	milliseconds += us / 1000 + 1;
	return 0;
}

static int fuzz_getrlimit(int which, struct rlimit *limit)
{
	(void)which;
	*limit = (struct rlimit){ 12, 12 + fuzz_byte() % 8 };
	return 0;
}

static void *fuzz_realloc(void *p, size_t size)
{
	return reallocated = realloc(p, size);
}

static int fuzz_getsockopt(int fd, int level, int name, void *value, socklen_t *size)
{
	uint8_t how = fuzz_byte();

	(void)fd, (void)level, (void)size;
	if (name == SO_PEERCRED)
		*(struct ucred *)value = (struct ucred){ how % 32 == 31 ? 0 : 77, geteuid() + (how % 32 == 30), 1 };
	else if (how % 16 < 2) {
		errno = how % 16 ? ENOPROTOOPT : ESRCH;
		return -1;
	} else {
		*(int *)value = new_fd();
	}
	return 0;
}

static ssize_t fuzz_readlink(const char *path, char *to, size_t room)
{
	uint8_t how = strstr(path, "self") ? 0 : fuzz_byte() % 32;

	if (how > 29) {
		errno = how & 1 ? ENOENT : EACCES;
		return -1;
	}
	memset(to, how == 29 ? 'y' : 'x', room);
	return how == 28 ? 3 : 20;
}

static long fuzz_syscall(long number, ...)
{
	if (number == SYS_pidfd_open)
		return new_fd();
	errno = ESRCH;
	return fuzz_byte() % 16 ? 0 : -1;
}

static int fuzz_outcome(uint8_t how)
{
	static const int errors[] = { ECONNREFUSED, ECONNREFUSED, ECONNREFUSED, EAGAIN, EPERM, EACCES, ENOMEM, EADDRINUSE };

	errno = errors[how % 8];
	return how & 8 ? 0 : -1;
}

#define accept4 fuzz_accept
#define bind(fd, name, size) ((void)(name), (void)(size), fuzz_outcome(fuzz_byte()))
#define clock_gettime fuzz_clock
#define close fuzz_close
#define connect(fd, name, size) ((void)(name), (void)(size), fuzz_outcome(fuzz_byte()))
#define fork() (errno = EAGAIN, fuzz_byte() & 1 ? -1 : 99)
#define getrlimit fuzz_getrlimit
#define getsockopt fuzz_getsockopt
#define listen(fd, backlog) (fuzz_byte() & 1 ? -1 : 0)
#define pipe2(fds, flags) ((fds)[0] = new_fd(), (fds)[1] = new_fd(), 0)
#define poll fuzz_poll
#define read(fd, to, n) ((void)(to), 0)
#define readlink fuzz_readlink
#define realloc fuzz_realloc
#define recvmsg fuzz_recvmsg
#define sendmsg fuzz_sendmsg
#define setrlimit(which, limit) ((void)(limit))
#define setsockopt(fd, level, name, value, size) ((void)(value), fuzz_byte() % 32 == 31 ? -1 : 0)
#define socket(domain, type, protocol) (fuzz_byte() % 32 == 31 ? (errno = EPERM, -1) : new_fd())
#define syscall fuzz_syscall
#define usleep fuzz_usleep
#define waitpid(pid, status, flags) (*(status) = fuzz_byte() & 1 ? 0 : 9, 99)
#include "../../spank/ch-join/exchange.c"
#define now_ms holders_now_ms
#include "../../spank/ch-join/serve_peers.c"
#include "../../spank/ch-join/holder.c"
#undef now_ms
#include "../../spank/ch-join/meeting.c"
#include "../../spank/ch-join/words.c"
#undef close
#undef realloc

/* Format the whole message, so that every argument is read. */
void die(int code, const char *format, ...)
{
	char text[2048];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	fuzz_exit(code);
}

static void hold_among(void)
{
	struct caller *c;
	int open = 0, held = 0;

	joins = NULL;
	callers = NULL;
	caller_count = 0;
	anybody_came = false;
	memset(tag, 0, sizeof(tag));
	serve_peers(fuzz_byte() % 4);
	for (int i = 0; i < seen_count; i++)
		open += seen[i].open;
	for (int i = 0; i < passed_count; i++)
		held += passed[i].open;
	for (struct join *j = joins, *next; j; j = next) {
		if (j->arrived > j->peers || (j->ticket >= 0 && (!passed[j->ticket - PASSED].handed_over || j->maker)))
			abort();
		for (uint32_t i = 0; i < j->arrived; i++)
			for (uint32_t k = 0; k < i; k++)
				if (j->ranks[i] >= 0 && j->ranks[i] == j->ranks[k])
					abort();
		held -= j->ticket >= 0;
		next = j->next;
		free(j->ranks);
		free(j);
	}
	while ((c = callers)) {
		open -= c->fd >= 0;
		callers = c->next;
		free(c);
	}
	if (open || held || open_others)
		abort();
}

static void meet(void)
{
	static struct step s;
	static struct hello h;
	static struct meeting m;
	size_t got, n = fuzz_byte();
	const uint8_t *text = fuzz_take(n < TAG_MAX ? n : TAG_MAX, &got);

	memset(&s, 0, sizeof(s));
	for (size_t i = 0; i < got; i++)
		s.tag[i] = TAG_LETTERS[text[i] % (sizeof(TAG_LETTERS) - 1)];
	s.peers = 3;
	h = (struct hello){ .magic = MEETING_MAGIC, .peers = 3 };
	if (!meeting_enter(&s, &h, 1 + fuzz_byte() % 30, &m))
		return;
	/* The only good ends: the peer was told to begin, or was given the ticket. */
	if (m.begin == (m.sock < 0) || (!m.begin && m.ticket < 0) ||
	    !memchr(m.answer.name, '\0', sizeof(m.answer.name)))
		abort();
	if (m.begin)
		meeting_hand_over(&m, PASSED);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	fuzz_data = data;
	fuzz_size = size;
	seen_count = passed_count = open_others = 0;
	milliseconds = 0;
	reallocated = NULL;
	is_peer = fuzz_byte() & 1;
	if (!setjmp(fuzz_top)) {
		if (is_peer)
			meet();
		else
			hold_among();
	}
	free(reallocated);
	return 0;
}
