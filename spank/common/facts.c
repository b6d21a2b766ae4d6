/* SPDX-License-Identifier: Apache-2.0 */
/* The facts: the memory file from which the launcher and the checker read the environment and the request. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../agreement.h"
#include "facts.h"

void facts_record(FILE *out, char kind, const char *text)
{
	fprintf(out, "%c%s", kind, text);
	fputc('\0', out);
}

/* Create the memory file and write the environment to it. The caller adds its records, then calls
 * facts_close. */
FILE *facts_open(int *fd, char **env)
{
	int copy;
	FILE *out;

	*fd = memfd_create("slurm_ch-facts", MFD_CLOEXEC);
	if (*fd < 0)
		return NULL;
	copy = fcntl(*fd, F_DUPFD_CLOEXEC, 10);
	out = copy < 0 ? NULL : fdopen(copy, "w");
	if (!out) {
		if (copy >= 0)
			close(copy);
		close(*fd);
		return NULL;
	}
	fprintf(out, "%s", FACTS_MAGIC);
	fputc('\0', out);
	for (char **e = env; *e; e++)
		facts_record(out, FACT_VARIABLE, *e);
	return out;
}

/* Return the memory file's descriptor, or -1 if not all of it could be written. */
int facts_close(int fd, FILE *out)
{
	if (!fclose(out))
		return fd;
	close(fd);
	return -1;
}
