/* SPDX-License-Identifier: Apache-2.0 */
/* Keeping the SquashFS server to serving. */
#ifndef SERVE_CONFINE_H
#define SERVE_CONFINE_H

/* Take all from this process and its threads to come that serving doesn't need; -1 with errno. */
int confine(void);

/* Close all but standard input, output and error, and these two; -1 with errno. */
int close_others(int one, int other);

#endif
