/* SPDX-License-Identifier: Apache-2.0 */
/* A peer's part in a join: connects to the holder, or starts it, and receives the holder's answer. */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../agreement.h"
#include "ch-join.h"
#include "meeting.h"

/* How long a process may have the name bound before it listens. */
#define NEWBORN_SECONDS 10
#define ELECTIONS_MAX 5
#define PAUSE_MIN_US 100
#define PAUSE_MAX_US 5000

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Make the socket's name from the tag; if that is too long, from its start and a hash of all of it. */
static socklen_t make_name(const char *tag, struct sockaddr_un *name)
{
	char *text = name->sun_path + 1;
	size_t room = sizeof(name->sun_path) - 1;
	int n;

	n = snprintf(text, room, "slurm_ch-%u-%s", geteuid(), tag);
	if ((size_t)n >= room) {
		snprintf(text + room - 18, 18, "-%016" PRIx64, hash_string(HASH_START, tag));
		n = room - 1;
	}
	return offsetof(struct sockaddr_un, sun_path) + 1 + n;
}

static int new_socket(unsigned seconds)
{
	int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	struct timeval limit = { .tv_sec = seconds };

	/* connect() waits while the holder's queue is full. */
	if (sock >= 0 && setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)))
		die(EXIT_SETUP, "can't use a socket: %s", strerror(errno));
	return sock;
}

static bool is_policy(int error)
{
	return error == EPERM || error == EACCES;
}

enum found { CONNECTED, ELECTED, OCCUPIED, REFUSED };

/* Connect to the name, or bind it if nobody has. */
static enum found connect_or_bind(const struct step *s, unsigned seconds, int *sock)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX };
	socklen_t size = make_name(s->tag, &name);

	*sock = new_socket(seconds);
	if (*sock >= 0) {
		if (!connect(*sock, (struct sockaddr *)&name, size))
			return CONNECTED;
		if (errno == EAGAIN)
			die(EXIT_JOIN, "join: %s: waited %u s to be let in", s->tag, seconds);
		if (errno == ECONNREFUSED) {
			if (!bind(*sock, (struct sockaddr *)&name, size))
				return ELECTED;
			if (errno == EADDRINUSE) {
				close(*sock);
				return OCCUPIED;
			}
		}
	}
	if (is_policy(errno))
		return REFUSED;
	die(EXIT_SETUP, "join: %s: can't use a socket: %s", s->tag, strerror(errno));
}

/* Return a socket that is connected to a holder; -1 if the kernel's policy refuses sockets. */
static int find_holder(const struct step *s, unsigned seconds)
{
	int64_t since = 0;
	useconds_t pause = PAUSE_MIN_US;
	unsigned elections = 0;
	unsigned patience = seconds < NEWBORN_SECONDS ? seconds : NEWBORN_SECONDS;

	for (;;) {
		int sock;

		switch (connect_or_bind(s, seconds, &sock)) {
		case CONNECTED:
			return sock;
		case REFUSED:
			return -1;
		case ELECTED:
			if (++elections > ELECTIONS_MAX)
				die(EXIT_SETUP, "join: %s: each holder that is started ends at once", s->tag);
			if (holder_start(sock, s->starter, s->complete ? 0 : seconds))
				die(EXIT_SETUP, "join: %s: can't start a process: %s", s->tag, strerror(errno));
			close(sock);
			since = 0;
			continue;
		case OCCUPIED:
			if (!since)
				since = now_ms();
			if (now_ms() - since > (int64_t)patience * 1000)
				die(EXIT_JOIN, "join: %s: its name is taken by a process that doesn't listen",
				    s->tag);
			usleep(pause);
			pause = pause * 2 < PAUSE_MAX_US ? pause * 2 : PAUSE_MAX_US;
		}
	}
}

/* Send the hello and wait for the answer; return false if the holder has ended without one. */
static bool ask(const struct step *s, const struct hello *h, int64_t deadline, unsigned seconds,
		struct meeting *m)
{
	struct ucred who;
	struct pollfd wait = { .fd = m->sock, .events = POLLIN };
	int64_t left;
	ssize_t n;
	int ready;

	switch (meeting_whose(m->sock, &who)) {
	case ANOTHER_USERS:
		die(EXIT_JOIN, "join: %s: its name belongs to uid %d (pid %d); refusing to use it", s->tag,
		    (int)who.uid, who.pid);
	case ANOTHER_NAMESPACES:
		die(EXIT_JOIN, "join: %s: its name belongs to pid %d, in a container; refusing to use it",
		    s->tag, who.pid);
	case NOBODYS:
		return false;
	case OURS:
		break;
	}
	/* If the hello can't be sent, the answer may be there all the same: a guard doesn't wait for a hello. */
	while (message_send(m->sock, h, sizeof(*h), -1) && message_again() && now_ms() < deadline)
		usleep(PAUSE_MAX_US);
	while ((left = deadline - now_ms()) > 0 && (ready = poll(&wait, 1, left)) <= 0)
		if (ready < 0 && errno != EINTR)
			die(EXIT_SETUP, "can't wait for the other peers: %s", strerror(errno));
	if (left <= 0)
		die(EXIT_JOIN, "join: %s: waited %u s for an answer of pid %d", s->tag, seconds, who.pid);
	do /* ECONNRESET, once: the holder has closed its end before it read our hello */
		n = message_receive(m->sock, &m->answer, sizeof(m->answer), &m->ticket, 0);
	while (n < 0 && errno == ECONNRESET);
	/* No second hello: if this was the answer, the holder would take it for a peer of the next join. */
	if (n < 0)
		die(EXIT_SETUP, "can't receive the answer of pid %d: %s", who.pid, strerror(errno));
	if (!n)
		return false;
	if (n != sizeof(m->answer) || memcmp(m->answer.magic, MEETING_MAGIC, sizeof(m->answer.magic)))
		m->answer.kind = MEETING_OTHER;
	m->answer.name[sizeof(m->answer.name) - 1] = '\0';
	return true;
}

static void take_answer(const struct step *s, struct meeting *m)
{
	switch (m->answer.kind) {
	case MEETING_BEGIN:
		m->begin = m->same_rules = true;
		return;
	case MEETING_TAKE:
		if (m->ticket < 0)
			die(EXIT_SETUP, "can't receive the ticket: out of file descriptors");
		m->same_rules = m->answer.value;
		close(m->sock);
		m->sock = -1;
		return;
	case MEETING_COUNT:
		die(EXIT_USAGE, "--join-ct=%u: other peers of %s say %u", s->peers, s->tag, m->answer.value);
	case MEETING_TAG:
		die(EXIT_JOIN, "join: %s: its name is another join's, whose tag has the same hash", s->tag);
	case MEETING_LOST:
		die(EXIT_JOIN, "join: %s: the container's holder was killed before this peer came", s->tag);
	default:
		die(EXIT_JOIN, "join: %s: the peers are of different versions of slurm_ch", s->tag);
	}
}

bool meeting_enter(const struct step *s, const struct hello *h, unsigned seconds, struct meeting *m)
{
	int64_t deadline = now_ms() + (int64_t)seconds * 1000;

	for (;;) {
		*m = (struct meeting){ .ticket = -1 };
		m->sock = find_holder(s, seconds);
		if (m->sock < 0)
			return false;
		if (ask(s, h, deadline, seconds, m))
			break;
		/* The holder has ended after its last peer, or was killed. */
		close(m->sock);
		if (now_ms() > deadline)
			die(EXIT_JOIN, "join: %s: its name keeps disappearing (tried for %u s)", s->tag, seconds);
	}
	take_answer(s, m);
	return true;
}

/* If the holder has died meanwhile, this peer goes on alone. */
void meeting_hand_over(struct meeting *m, int ticket)
{
	struct answer have = { .magic = MEETING_MAGIC, .kind = MEETING_HAVE };

	while (message_send(m->sock, &have, sizeof(have), ticket) && message_again())
		usleep(PAUSE_MAX_US);
	close(m->sock);
	m->sock = -1;
}
