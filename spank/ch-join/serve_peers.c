/* SPDX-License-Identifier: Apache-2.0 */
/* Serves the peers of a join, in its holder: sends each peer the socket where the ticket is or will be,
 * which the first peer has handed over. While the holder has that socket, the container stays for
 * peers that come late.
 *
 * The holder may have several joins: one after another, or of several images at a time. A peer with a
 * rank takes part in each join once, so a peer that comes again belongs to the next join, even if others
 * of this one have not come yet. Peers without a rank are only counted.
 */
#define _GNU_SOURCE
#include "serve_peers.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "../agreement.h"
#include "meeting.h"

/* Descriptors that are not for peers: streams, the listening socket, watch_fd, the sockets handed over. */
#define OWN_FDS 10
/* How soon to try again when the kernel had no room for descriptors on their way. */
#define AGAIN_MS 5

struct join {
	struct join *next;
	uint64_t image, rules;
	uint32_t peers, arrived;
	int64_t *ranks;
	int ticket;	     /* -1: not handed over yet */
	struct caller *maker; /* the peer that has been told to begin, until it hands over */
	int32_t maker_pid;
	char maker_name[32];
};

struct caller {
	struct caller *next;
	int fd; /* -1: to be freed */
	int32_t pid;
	struct join *join; /* NULL: no hello yet */
	struct hello hello;
};

static struct join *joins;
static struct caller *callers;
static unsigned caller_count;
static bool anybody_came;
int watch_fd = -1;
static char tag[sizeof(((struct hello *)0)->tag)];

static void *allocate(size_t size)
{
	void *p = calloc(1, size);

	/* The guard takes over, as after any death of the holder. */
	if (!p)
		abort();
	return p;
}

static int send_answer(struct caller *c, uint32_t kind, uint32_t value, const struct join *j, int fd)
{
	struct answer a = { .magic = MEETING_MAGIC, .kind = kind, .value = value };

	if (j) {
		a.pid = j->maker_pid;
		memcpy(a.name, j->maker_name, sizeof(a.name));
	}
	return message_send(c->fd, &a, sizeof(a), fd);
}

static void close_caller(struct caller *c)
{
	close(c->fd);
	c->fd = -1;
}

static bool has_rank(const struct join *j, int64_t rank)
{
	for (uint32_t i = 0; i < j->arrived; i++)
		if (rank >= 0 && j->ranks[i] == rank)
			return true;
	return false;
}

/* Return the join that a peer belongs to, new or old: one of its image in which its rank has not been. */
static struct join *find_join(const struct hello *h)
{
	struct join **end = &joins;

	for (; *end; end = &(*end)->next)
		if ((*end)->image == h->image && (*end)->arrived < (*end)->peers && !has_rank(*end, h->rank))
			return *end;
	*end = allocate(sizeof(**end));
	**end = (struct join){ .image = h->image, .rules = h->rules, .peers = h->peers, .ticket = -1 };
	(*end)->ranks = allocate(h->peers * sizeof(int64_t));
	return *end;
}

/* Tell the first caller of a join that has no container yet to begin; return whether to try again later. */
static bool find_maker(struct join *j)
{
	for (struct caller *c = callers; c && !j->maker && j->ticket < 0; c = c->next) {
		if (c->fd < 0 || c->join != j)
			continue;
		if (send_answer(c, MEETING_BEGIN, 0, NULL, -1)) {
			if (message_again())
				return true;
			close_caller(c);
			continue;
		}
		j->maker = c;
		j->rules = c->hello.rules;
		j->maker_pid = c->pid;
		memcpy(j->maker_name, c->hello.name, sizeof(j->maker_name));
	}
	return false;
}

static void take_hello(struct caller *c)
{
	const struct hello *h = &c->hello;
	struct join *j;

	if (!anybody_came)
		memcpy(tag, h->tag, sizeof(tag));
	if (memcmp(tag, h->tag, sizeof(tag))) {
		send_answer(c, MEETING_TAG, 0, NULL, -1);
		close_caller(c);
		return;
	}
	anybody_came = true;
	j = find_join(h);
	if (j->peers != h->peers) {
		send_answer(c, MEETING_COUNT, j->peers, NULL, -1);
		close_caller(c);
		return;
	}
	c->join = j;
	j->ranks[j->arrived++] = h->rank;
}

static bool is_hello(const struct hello *h, ssize_t n)
{
	return n == sizeof(*h) && !memcmp(h->magic, MEETING_MAGIC, sizeof(h->magic)) &&
	       !h->tag[sizeof(h->tag) - 1] && h->peers > 0 && h->peers <= JOIN_MAX && h->rank >= -1;
}

/* Receive a caller's message: a hello, and after that only the socket, from the peer that was told to begin. */
static void receive(struct caller *c)
{
	union {
		struct hello hello;
		struct answer have;
	} got;
	int fd;
	ssize_t n = message_receive(c->fd, &got, sizeof(got), &fd, MSG_DONTWAIT);
	struct join *j = c->join;

	if (n < 0 && errno == EAGAIN)
		return;
	if (!j && is_hello(&got.hello, n)) {
		c->hello = got.hello;
		c->hello.name[sizeof(c->hello.name) - 1] = '\0';
		take_hello(c);
	} else if (j && j->maker == c && n == sizeof(got.have) && got.have.kind == MEETING_HAVE && fd >= 0) {
		j->ticket = fd;
		fd = -1;
		close_caller(c);
	} else {
		if (n > 0)
			send_answer(c, MEETING_OTHER, 0, NULL, -1);
		close_caller(c);
	}
	if (fd >= 0)
		close(fd);
	if (j && j->maker == c && c->fd < 0)
		j->maker = NULL;
}

static void accept_caller(void)
{
	int fd = accept4(LISTEN_FD, NULL, NULL, SOCK_CLOEXEC);
	struct caller *c;
	struct ucred who;

	if (fd < 0)
		return;
	if (meeting_whose(fd, &who) != OURS) {
		close(fd);
		return;
	}
	c = allocate(sizeof(*c));
	*c = (struct caller){ .next = callers, .fd = fd, .pid = who.pid };
	callers = c;
	caller_count++;
}

/* Send all answers that are due; return whether to try again later. */
static bool send_answers(void)
{
	bool again = false;

	for (struct join *j = joins; j; j = j->next)
		again |= find_maker(j);
	for (struct caller *c = callers; c; c = c->next) {
		struct join *j = c->join;

		if (c->fd < 0 || !j || j->ticket < 0)
			continue;
		/* Keep a caller that was not served: if it had to come again, it would be in the next join. */
		if (send_answer(c, MEETING_TAKE, j->rules == c->hello.rules, j, j->ticket) && message_again())
			again = true;
		else
			close_caller(c);
	}
	return again;
}

/* Free the callers that have been served, then the joins to which all peers have come. */
static void free_served(void)
{
	for (struct caller **at = &callers; *at;) {
		struct caller *c = *at;

		if (c->fd >= 0) {
			at = &c->next;
			continue;
		}
		*at = c->next;
		caller_count--;
		free(c);
	}
	for (struct join **at = &joins; *at;) {
		struct join *j = *at;
		bool awaited = j->arrived < j->peers && j->ticket >= 0;

		/* A join without a container is of no use to later peers: it goes with its last caller. */
		for (struct caller *c = callers; c && !awaited; c = c->next)
			awaited = c->join == j;
		if (awaited) {
			at = &j->next;
			continue;
		}
		*at = j->next;
		if (j->ticket >= 0)
			close(j->ticket);
		free(j->ranks);
		free(j);
	}
}

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* How long poll may wait, in ms; -1: without a limit. */
static int left(int64_t deadline, bool again)
{
	int64_t ms = deadline ? deadline - now_ms() : -1;

	if (deadline && ms < 0)
		ms = 0;
	return again && (ms < 0 || ms > AGAIN_MS) ? AGAIN_MS : (int)ms;
}

void serve_peers(unsigned seconds)
{
	struct rlimit files = { 64, 64 };
	struct pollfd *wait = NULL;
	int64_t deadline;
	bool again = false;

	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	deadline = seconds ? now_ms() + seconds * 1000 : 0;
	for (;;) {
		unsigned count = caller_count, i = 2;
		struct caller *first = callers;
		int ready;

		wait = realloc(wait, (count + 2) * sizeof(*wait));
		if (!wait)
			abort();
		wait[0] = (struct pollfd){ .fd = watch_fd, .events = POLLIN };
		/* When descriptors run out, the next caller is accepted later. */
		wait[1] = (struct pollfd){ .fd = count + OWN_FDS < files.rlim_cur ? LISTEN_FD : -1,
					   .events = POLLIN };
		for (struct caller *c = first; c; c = c->next)
			wait[i++] = (struct pollfd){ .fd = c->fd, .events = POLLIN };
		ready = poll(wait, count + 2, left(deadline, again));
		if (ready < 0 && errno != EINTR)
			abort();
		if (wait[0].revents & POLLIN || (deadline && now_ms() >= deadline))
			break;
		if (wait[1].revents) {
			accept_caller();
			if (seconds)
				deadline = now_ms() + seconds * 1000;
		}
		i = 2;
		for (struct caller *c = first; c; c = c->next)
			if (wait[i++].revents)
				receive(c);
		again = send_answers();
		free_served();
		if (anybody_came && !joins)
			break;
	}
}
