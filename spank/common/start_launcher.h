/* SPDX-License-Identifier: Apache-2.0 */
/* The launcher's start, for whoever has the facts and the tasks' socket. */
#ifndef START_LAUNCHER_H
#define START_LAUNCHER_H

struct launch {
	const char *python, *launcher;
	const char *node; /* for messages; NULL: not known */
	int facts, socket;
	int user_fd, mount_fd; /* of a container that there is; -1: none */
};
int launch_start(const struct launch *l);

#endif
