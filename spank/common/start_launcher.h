/* SPDX-License-Identifier: Apache-2.0 */
/* Starting the launcher, to which the caller hands the facts and a socket for the ticket. */
#ifndef START_LAUNCHER_H
#define START_LAUNCHER_H

struct launch {
	const char *python, *launcher;
	const char *node; /* for messages; NULL: not known */
	int facts, socket;
	int user_fd, mount_fd; /* namespaces of a container that exists already; -1: make one */
};
int launch_start(const struct launch *l);

#endif
