/* SPDX-License-Identifier: Apache-2.0 */
/* Confining the SquashFS server to what serving needs. */
#ifndef SERVE_CONFINE_H
#define SERVE_CONFINE_H

/* Become nobody's child, in a session of its own, deaf to the signals that are for the tasks, and with no capability; -1 with errno.
 * Whoever started it waits for a process that has ended. */
int step_aside(void);

/* Take every right that serving doesn't need from this process and its future threads; -1 with errno. */
int confine(void);

/* Close all but standard input, output and error, and these two; -1 with errno. */
int close_others(int one, int other);

#endif
