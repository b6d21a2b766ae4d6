/* SPDX-License-Identifier: Apache-2.0 */
/* The socket pair of a step, between its tasks and its launcher. */
#ifndef STEP_SOCKETS_H
#define STEP_SOCKETS_H

#include <stdbool.h>
#include <sys/types.h>

/* A socket of ours, with the file's identity, because its number may come to mean another file. */
struct end {
	int fd;
	dev_t dev;
	ino_t ino;
};

/* The socket where the tasks wait, and the socket from which a task takes the launcher's end. */
extern struct end tasks_end, offer;
/* Messages from slurmstepd don't reach the user, so the errno is kept for task_init. */
extern int socket_errno;

/* Make the pair, and offer the launcher's end. */
void sockets_make(void);

/* Return the launcher's end, or -1: with errno 0 if another task has taken it. */
int sockets_take(void);

/* Whether the descriptor is still the socket that was made: if another plugin closes all
 * descriptors, our number may come to mean another file. */
bool end_is_ours(const struct end *end);

void end_close(struct end *end);

#endif
