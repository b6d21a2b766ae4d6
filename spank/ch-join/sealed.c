/* SPDX-License-Identifier: Apache-2.0 */
/* Runs ch-join from a copy that nobody can change, if its file belongs to the user or is writable for them.
 *
 * A process in the container can reach ch-join's file on the host: by /proc/PID/exe,
 * by a command that is a link to /proc/self/exe, or by a script whose first line
 * names that. So a user who may write the file could do so from inside the container.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../agreement.h"
#include "ch-join.h"

#ifndef MFD_EXEC
#define MFD_EXEC 0x10U /* from Linux 6.3 on */
#endif

#define OWN "/proc/self/exe"
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL)
#define CHUNK (1 << 24)

extern char **environ;

static int copy_of(int own)
{
	int copy = memfd_create("ch-join", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC);
	/* A limit on the size of files holds for memory files too: an error, not the end of this process. */
	void (*before)(int) = signal(SIGXFSZ, SIG_IGN);
	ssize_t n;

	if (copy < 0 && errno == EINVAL)
		copy = memfd_create("ch-join", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	do
		n = copy < 0 ? -1 : sendfile(copy, own, NULL, CHUNK);
	while (n > 0);
	signal(SIGXFSZ, before);
	return n < 0 || fcntl(copy, F_ADD_SEALS, SEALS) ? -1 : copy;
}

int sealed_copy(void)
{
	struct stat st;
	int own, copy;

	if (stat(OWN, &st))
		die(EXIT_SETUP, "can't look at %s: %s", OWN, strerror(errno));
	/* An owner can make the file writable. */
	if (st.st_uid != geteuid() && faccessat(AT_FDCWD, OWN, W_OK, AT_EACCESS))
		return -1;
	own = open(OWN, O_RDONLY | O_CLOEXEC);
	copy = own < 0 ? -1 : copy_of(own);
	if (copy < 0)
		die(EXIT_SETUP, "can't copy ch-join into memory to execute it (is vm.memfd_noexec 2?): %s",
		    strerror(errno));
	close(own);
	return copy;
}

void become_copy(int copy, int plan_fd, const char *directory, char **argv)
{
	size_t n = 0;
	char option[32], **words;

	while (argv[n])
		n++;
	words = (char **)need(calloc(n + 4, sizeof(char *)));
	snprintf(option, sizeof(option), "%s%d", PLAN_OPTION, plan_fd);
	words[0] = "ch-join";
	words[1] = option;
	words[2] = "--";
	memcpy(words + 3, argv, n * sizeof(char *));
	if (directory)
		setenv(CWD_VARIABLE, directory, 1);
	else
		unsetenv(CWD_VARIABLE);
	fcntl(plan_fd, F_SETFD, 0);
	/* By descriptor, because the container's /proc can't be trusted. */
	syscall(SYS_execveat, copy, "", words, environ, AT_EMPTY_PATH);
	die(EXIT_SETUP, "can't execute ch-join: %s", strerror(errno));
}
