/* SPDX-License-Identifier: Apache-2.0 */
/* Confining the SquashFS server to what serving needs. */
#ifndef SERVE_CONFINE_H
#define SERVE_CONFINE_H

/* Take every right that serving doesn't need from this process and its future threads; -1 with errno. */
int confine(void);

/* Close all but standard input, output and error, and these two; -1 with errno. */
int close_others(int one, int other);

#endif
