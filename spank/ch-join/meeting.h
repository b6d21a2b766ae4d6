/* SPDX-License-Identifier: Apache-2.0 */
/* The meeting place of a join's peers: an abstract unix socket, at which a holder answers.
 *
 * A peer says hello, once. The holder answers BEGIN to the first, who starts the launcher and hands
 * over the end of the tasks' socket at which the ticket will be (HAVE, with that descriptor). Every
 * other peer is given a copy of it (TAKE).
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
	MEETING_HAVE,	   /* the beginner's: it is started */
	MEETING_TAKE,	   /* the ticket will be here; value: whether the rules are the beginner's */
	MEETING_COUNT,	   /* value: how many peers the others say there are */
	MEETING_TAG,	   /* the name is another tag's */
	MEETING_LOST,	   /* the holder was killed, and with it the way in */
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
	int32_t pid; /* of the process that makes the container, */
	char name[32];
};

/* exchange.c. Send or receive a message, and a descriptor with it if there is one (-1). */
int message_send(int sock, const void *message, size_t size, int fd);
ssize_t message_receive(int sock, void *message, size_t size, int *fd, int flags);
/* By errno: whether what the kernel had no room for is to be sent again. */
bool message_again(void);

/* Whether the process at the other end of a socket belongs to this user, and is in this user namespace. */
enum whose { OURS, ANOTHER_USERS, ANOTHER_NAMESPACES, NOBODYS };
enum whose meeting_whose(int sock, struct ucred *who);

/* meeting.c: meet, and say hello. Where the kernel's policy refuses sockets: `refused`. */
struct meeting {
	int sock;	 /* -1 after TAKE */
	int ticket;	 /* with TAKE */
	bool begin, same_rules;
	struct answer answer;
};
bool meeting_enter(const struct step *s, const struct hello *h, unsigned seconds, struct meeting *m);
void meeting_hand_over(struct meeting *m, int ticket);

/* holder.c: start a holder, and its guard, at a socket that is bound; -1 with errno. `watch` is
 * a process after whose end no more peers come (0: not known). With `seconds` the holder ends that
 * long after the last arrival. */
int holder_start(int sock, pid_t watch, unsigned seconds);

#endif
