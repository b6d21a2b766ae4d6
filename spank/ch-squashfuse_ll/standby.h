/* SPDX-License-Identifier: Apache-2.0 */
/* Waiting for one's turn to serve a mount that other servers serve first. */
#ifndef STANDBY_H
#define STANDBY_H

#include <stdbool.h>

/* Note a server ahead of this one, "PIDFD:FUSE": its process and a copy of its FUSE descriptor. Return false
 * if that isn't two numbers, or if there are too many servers. */
bool standby_note(const char *words);

/* Wait until all of them have ended, then have the kernel send their unanswered requests again, by this server's
 * own descriptor `fuse`. Without such servers, return immediately. */
void standby_wait(int fuse);

#endif
