/* SPDX-License-Identifier: Apache-2.0 */
/* Starting the launcher; the caller has the facts and the tasks' socket. */
#ifndef START_LAUNCHER_H
#define START_LAUNCHER_H

struct launch {
	const char *python, *launcher;
	const char *node; /* for messages; NULL: not known */
	int facts, socket;
	int user_fd, mount_fd; /* of an existing container; -1: none */
};
int launch_start(const struct launch *l);

#endif
