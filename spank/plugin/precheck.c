/* SPDX-License-Identifier: Apache-2.0 */
/* Checks a request before the job is queued, by the same code as on the node, so that
 * an error has the same message.
 *
 * A step with a good image and no other option must cost nothing, so only that case is
 * checked here. For everything else the checker is run: it is Python, started as the
 * launcher is. If Python isn't installed here, or the checker can't tell, the node will
 * report an error. The checker also finds out which image a reference means, and pulls
 * it: once, before there is an allocation, so that no node waits for it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../agreement.h"
#include "plugin.h"

/* Whether a directory has bin or usr, as most images do. */
static bool has_programs(const char *directory)
{
	int fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
	bool has;

	if (fd < 0)
		return false;
	has = !faccessat(fd, "bin", F_OK, AT_SYMLINK_NOFOLLOW) || !faccessat(fd, "usr", F_OK, 0);
	close(fd);
	return has;
}

/* Whether `image` needs no check: a good image, or one that isn't on this host, so that nothing can be checked. */
static bool may_be_image(const char *image)
{
	const char *colon = strchr(image, ':');
	char magic[sizeof(SQUASHFS_MAGIC) - 1];
	struct stat st;
	bool good;
	int fd;

	/* Not a path, but something that a shell should have expanded. */
	if (!*image || *image == '~' || strchr(image, '$'))
		return false;
	if (stat(image, &st))
		return !colon || (colon[1] != '/' && colon[1] != '.');
	if (!S_ISREG(st.st_mode))
		return S_ISDIR(st.st_mode) && has_programs(image);
	fd = open(image, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return true;
	good = read(fd, magic, sizeof(magic)) == sizeof(magic) && !memcmp(magic, SQUASHFS_MAGIC, sizeof(magic));
	close(fd);
	return good;
}

static bool site_decides(int ac, char **av)
{
	for (int i = 0; i < ac; i++)
		if (!strncmp(av[i], "default=", 8) || !strncmp(av[i], "forbid=", 7))
			return true;
	return false;
}

/* Read what a reference means; return false if the verdict is not about that. */
static bool read_pin(char *verdict, struct pin *pin)
{
	char *rest = verdict + strlen(PIN_WORD), *image, *located;

	if (strncmp(verdict, PIN_WORD, strlen(PIN_WORD)))
		return false;
	image = strsep(&rest, "\n");
	if (!rest || !*image)
		return false;
	located = strsep(&rest, "\n");
	pin->image = strdup(image);
	pin->located = *located ? strdup(located) : NULL;
	return pin->image;
}

/* If the checker has found an error, print its message and exit with its code. */
static void exit_on_error(char *verdict)
{
	char *line;
	long code = strtol(verdict, &line, 10);

	if (code > 0 && code < 256 && *line == ' ') {
		fputs(line + 1, stderr);
		exit(code);
	}
}

static void __attribute__((noreturn)) died(const char *who)
{
	complain("what %s the image died (killed, or no Python could start): if memory ran out, ask for more, "
		 "or pull the image before the job (`slurm-ch pull`)",
		 who);
	exit(EXIT_LAUNCHER_DIED);
}

/* Return if no error is found in `request`; else print the error and exit. If the image is a reference, `pin` is set
 * to what it means, as far as that can be found out here. */
void precheck_request(const char *request, const char *image, bool plain, int ac, char **av, struct pin *pin)
{
	bool pulls = is_reference(image) || !strncmp(image, "dockerd://", strlen("dockerd://"));
	char verdict[VERDICT_SIZE] = "";

	*pin = (struct pin){ NULL, NULL };
	if (!pulls && plain && !site_decides(ac, av) && may_be_image(image))
		return;
	if (!run_checker(request, NULL, pulls, ac, av, verdict) || (pulls && read_pin(verdict, pin)))
		return;
	exit_on_error(verdict);
	if (pulls)
		died("finds and pulls");
}

/* Have the image copied to the nodes of a job; return the request with the copy's path. Return NULL if there is no
 * memory, or if the checker can't be run: then the nodes read the image where it is. */
char *precheck_broadcast(const char *request, const char *job, int ac, char **av)
{
	char verdict[VERDICT_SIZE] = "", *path = verdict + strlen(BROADCAST_WORD), *more;

	if (!run_checker(request, job, true, ac, av, verdict))
		return NULL;
	if (strncmp(verdict, BROADCAST_WORD, strlen(BROADCAST_WORD))) {
		exit_on_error(verdict);
		died("copies");
	}
	path[strcspn(path, "\n")] = '\0';
	return asprintf(&more, "%s%s%s\n", request, BROADCAST_LINE, path) < 0 ? NULL : more;
}
