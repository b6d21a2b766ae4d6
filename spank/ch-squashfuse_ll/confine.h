/* SPDX-License-Identifier: Apache-2.0 */
/* Confining the SquashFS server to what serving needs. */
#ifndef CONFINE_H
#define CONFINE_H

/* Continue in a child, and end this process, so that its parent need not wait for the server. The child has a
 * session of its own and no capability, and ignores the signals that are for the tasks. -1 with errno. */
int go_to_background(void);

/* Take every right that serving doesn't need from this process and its future threads; -1 with errno. */
int confine(void);

/* Close all descriptors but standard input, output and error, and these two; -1 with errno. */
int close_others(int one, int other);

#endif
