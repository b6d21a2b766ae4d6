/* SPDX-License-Identifier: Apache-2.0 */
/* The protocol of a join's peers with its holder, over an abstract unix socket.
 *
 * Each peer sends one hello. The holder answers BEGIN to the first peer, which starts the launcher and
 * sends the socket where the ticket will be (HAVE, with that descriptor). The holder sends every other
 * peer a copy of that descriptor (TAKE).
 */
#ifndef MEETING_H
#define MEETING_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "step.h"

#define MEETING_MAGIC "chmeet1"

enum meeting_kind {
	MEETING_BEGIN = 1, /* start the launcher */
	MEETING_HAVE,	   /* from the first peer: the launcher is started */
	MEETING_TAKE,	   /* the ticket will be here; value: whether the rules are those of the first peer */
	MEETING_COUNT,	   /* value: the number of peers according to the others */
	MEETING_TAG,	   /* the socket's name is in use for another tag */
	MEETING_LOST,	   /* the holder was killed, and its socket for the ticket is lost */
	MEETING_OTHER,	   /* not a message of this version */
};

struct hello {
	char magic[8];
	uint64_t image, rules;
	int64_t rank; /* -1: none */
	uint32_t peers;
	char name[32];
	char tag[TAG_MAX + 4];
};

struct answer {
	char magic[8];
	uint32_t kind, value;
	int32_t pid;   /* of the peer that makes the container */
	char name[32]; /* of the same */
};

/* exchange.c: send or receive a message, with a descriptor, or -1 for none. */
int message_send(int sock, const void *message, size_t size, int fd);
ssize_t message_receive(int sock, void *message, size_t size, int *fd, int flags);
/* Whether errno means that the kernel had no room for the message, so that it can be sent again. */
bool message_again(void);

/* Whether the process at the other end of a socket is this user's and in this user namespace; NOBODYS: it has ended. */
enum whose { OURS, ANOTHER_USERS, ANOTHER_NAMESPACES, NOBODYS };
enum whose meeting_whose(int sock, struct ucred *who);

/* meeting.c: take part in a join. meeting_enter returns false if the kernel's policy refuses sockets. The first peer
 * (`begin`) then starts the launcher and calls meeting_hand_over. */
struct meeting {
	int sock;	 /* -1 after TAKE */
	int ticket;	 /* with TAKE */
	bool begin, same_rules;
	struct answer answer;
};
bool meeting_enter(const struct step *s, const struct hello *h, unsigned seconds, struct meeting *m);
void meeting_hand_over(struct meeting *m, int ticket);

/* holder.c: start a holder, and its guard, at a socket that is bound; return -1 with errno. After the end of
 * process `watch` no more peers come (0: not known). With `seconds`, the holder ends that long after the last peer
 * came. */
int holder_start(int sock, pid_t watch, unsigned seconds);

#endif
