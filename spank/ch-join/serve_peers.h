/* SPDX-License-Identifier: Apache-2.0 */
/* How a join's holder serves the peers. */
#ifndef SERVE_PEERS_H
#define SERVE_PEERS_H

/* The socket that peers connect to, in the holder and in its guard. */
#define LISTEN_FD 3

/* How many peers may wait to be accepted. */
#define BACKLOG 4096

/* A pidfd of the process after whose end no more peers come; -1: none is known. */
extern int watch_fd;

/* Serve peers until all have been served, or no more can come; with `seconds`, at most until that long
 * after the last peer came. */
void serve_peers(unsigned seconds);

#endif
