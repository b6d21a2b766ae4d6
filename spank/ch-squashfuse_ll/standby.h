/* SPDX-License-Identifier: Apache-2.0 */
/* A server that waits for its turn on a connection that others serve. */
#ifndef STANDBY_H
#define STANDBY_H

#include <stdbool.h>

/* Note one that serves, or waits, ahead of this one: "PIDFD:FUSE", its process and a copy of its FUSE descriptor.
 * False if that isn't two numbers, or there are too many. */
bool standby_behind(const char *words);

/* Wait until all of these have ended, and have the kernel ask again what they leave unanswered; `fuse` is this
 * one's own descriptor. At once where there are none. */
void standby_wait(int fuse);

#endif
