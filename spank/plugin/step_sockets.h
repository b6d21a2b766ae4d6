/* SPDX-License-Identifier: Apache-2.0 */
/* The socket pair of a step, between its tasks and its launcher. */
#ifndef STEP_SOCKETS_H
#define STEP_SOCKETS_H

#include <stdbool.h>
#include <sys/types.h>

/* A socket of ours, and what tells it from another file under its number. */
struct end {
	int fd;
	dev_t dev;
	ino_t ino;
};

/* What the tasks wait at, and where the launcher's end is to be had. */
extern struct end tasks_end, offer;
/* Errors of slurmstepd's don't reach the user: kept for task_init. */
extern int socket_errno;

/* Make the pair, and offer the launcher's end. */
void sockets_make(void);

/* Return the launcher's end, or -1: with errno 0 if another task has it. */
int sockets_take(void);

/* Whether the descriptor is still the socket that was made: another plugin that closes
 * all descriptors makes our number mean another file. */
bool end_is_ours(const struct end *end);

void end_close(struct end *end);

#endif
