/* SPDX-License-Identifier: Apache-2.0 */
/* The facts: the memory file of records that the launcher and the checker read. */
#ifndef FACTS_H
#define FACTS_H

#include <stdio.h>

FILE *facts_open(int *fd, char **env);
void facts_record(FILE *out, char kind, const char *text);
int facts_close(int fd, FILE *out);

#endif
