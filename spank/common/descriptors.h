/* SPDX-License-Identifier: Apache-2.0 */
/* The descriptors of a program that is about to be executed. */
#ifndef DESCRIPTORS_H
#define DESCRIPTORS_H

/* In a list of descriptors: /dev/null. */
#define DEV_NULL -1

/* Make the listed descriptors 0, 1, 2, ... and close all others; -1 with errno. Nothing
 * but a descriptor above the list is changed where that fails. */
int descriptors_become(const int *list, int count);

#endif
