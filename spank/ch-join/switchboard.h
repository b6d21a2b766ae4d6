/* SPDX-License-Identifier: Apache-2.0 */
/* What a join's holder does, and what its guard does when the holder was killed. */
#ifndef SWITCHBOARD_H
#define SWITCHBOARD_H

/* Where callers come, as both have it. */
#define LISTEN_FD 3

/* How many callers may be waiting to be let in. */
#define BACKLOG 4096

/* A process after whose end no more peers come; -1: none is known. */
extern int watch_fd;

/* Serve the callers until all have been served, or none can come any more; with `seconds`, until so
 * long after the last arrival. */
void hold(unsigned seconds);

/* Tell who comes that it is too late, until nobody can come any more. */
void mourn(unsigned seconds);

#endif
