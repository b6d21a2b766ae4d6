/* SPDX-License-Identifier: Apache-2.0 */
/* The descriptors of a program that is about to be executed. */
#ifndef DESCRIPTORS_H
#define DESCRIPTORS_H

/* In a list of descriptors: /dev/null. */
#define DEV_NULL -1

/* Make the listed descriptors 0, 1, 2, ... and close all others. Return -1 with errno on failure; if it
 * was a copy that failed, the descriptors below `count` are unchanged. */
int descriptors_become(const int *list, int count);

#endif
