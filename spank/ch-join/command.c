/* SPDX-License-Identifier: Apache-2.0 */
/* The last steps before the exec of the command: its directory, hidden output, keyring, root emulation. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "../agreement.h"
#include "ch-join.h"

#define HIDES_OUTPUT -1
#define HIDES_ERRORS -3

/* Change to the requested directory; else to the image's, for the image's own command; else to that
 * of a caller in another container; else to the usual one. */
static void change_directory(const struct settings *s, const char *callers, bool is_own)
{
	char here[PATH_MAX];
	const char *name = here;

	if (s->directory) {
		if (chdir(s->directory))
			die(EXIT_SETUP, "can't cd to %s: %s", s->directory, strerror(errno));
	} else if (is_own && s->images_directory && !chdir(s->images_directory)) {
		;
	} else if (callers && !chdir(callers)) {
		;
	} else if (s->usual_directory && !chdir(s->usual_directory)) {
		name = s->usual_directory; /* as the user typed it, with symbolic links */
	} else if (callers || s->usual_directory) {
		info(1, "working directory %s is not in the container; using /",
		     callers ? callers : s->usual_directory);
		if (chdir("/"))
			die(EXIT_SETUP, "can't cd to /: %s", strerror(errno));
	}
	if (!getcwd(here, sizeof(here)))
		die(EXIT_SETUP, "can't find the working directory: %s", strerror(errno));
	setenv("PWD", name, 1);
}

/* Discard what the command writes to `fd`. */
static void hide(int fd)
{
	int null = open("/dev/null", O_WRONLY | O_CLOEXEC);

	if (null < 0 || dup2(null, fd) < 0)
		die(EXIT_SETUP, "can't open /dev/null: %s", strerror(errno));
	close(null);
}

static void hide_streams(int verbosity)
{
	int own;

	if (verbosity <= HIDES_OUTPUT)
		hide(STDOUT_FILENO);
	if (verbosity <= HIDES_ERRORS) {
		own = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
		hide(STDERR_FILENO);
		if (own >= 0)
			messages_to(own);
	}
}

void command_run(const struct settings *s, const char *callers, char **argv)
{
	bool is_own = !strcmp(argv[0], "-");

	change_directory(s, callers, is_own);
	if (is_own)
		argv = images_own(argv);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		die(EXIT_SETUP, "can't set no_new_privs: %s", strerror(errno));
	hide_streams(s->verbosity);
	if (!s->keeps_keyring)
		leave_keyring();
	if (s->emulates_root)
		emulate_root(s->emulates_root);
	info(1, "executing %s", argv[0]);
	execute(s, argv);
}
