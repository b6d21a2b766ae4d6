/* SPDX-License-Identifier: Apache-2.0 */
/* The image's own command: the ENTRYPOINT and CMD that it was built with.
 *
 * Apptainer and enroot keep both as one script. ch-image and slurm-ch keep each as a
 * file: the four bytes "angi", then for every string its length (four bytes, the most
 * significant first) and its bytes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../agreement.h"
#include "ch-join.h"

/* A test has other files. */
#ifndef ENTRYPOINT
#define ENTRYPOINT IMAGE_ENTRYPOINT
#define CMD IMAGE_COMMAND
#define APPTAINERS APPTAINER_START
#define ENROOTS ENROOT_START
#endif

#define SHELL "/bin/sh"

#define MAGIC "angi"
#define MAGIC_SIZE 4
#define LENGTH_SIZE 4

/* The kernel takes 2 MiB of arguments, so that no command line is longer. */
#define FILE_MAX (2 << 20)

/* Return the file's bytes, which are never freed, and their number; NULL if there is no file. */
static char *contents(const char *path, size_t *size)
{
	/* O_NONBLOCK: the open of a FIFO would hang. */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;
	size_t have = 0;
	ssize_t n = 1;
	char *data;

	if (fd < 0) {
		if (errno == ENOENT || errno == ENOTDIR)
			return NULL;
		die(EXIT_SETUP, "can't read %s: %s", path, strerror(errno));
	}
	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size > FILE_MAX)
		die(EXIT_SETUP, "can't read %s: not a file of at most %d bytes", path, FILE_MAX);
	data = need(malloc(st.st_size + 1));
	while (have < (size_t)st.st_size && n > 0) {
		n = read(fd, data + have, st.st_size - have);
		if (n < 0)
			die(EXIT_SETUP, "can't read %s: %s", path, strerror(errno));
		have += n;
	}
	close(fd);
	*size = have;
	return data;
}

/* Return the strings of a file, ended by NULL, and add their number to `count`. */
static char **list(const char *path, size_t *count)
{
	size_t size = 0, at = MAGIC_SIZE, n = 0;
	char *data = contents(path, &size);
	char **strings = (char **)need(calloc(size / LENGTH_SIZE + 1, sizeof(char *)));

	if (!data || !size)
		return strings;
	if (size < MAGIC_SIZE || memcmp(data, MAGIC, MAGIC_SIZE))
		die(EXIT_SETUP, "can't read %s: not a list of strings as ch-image writes it", path);
	while (at < size) {
		const unsigned char *b = (const unsigned char *)data + at;
		uint32_t length;

		if (size - at < LENGTH_SIZE)
			die(EXIT_SETUP, "can't read %s: truncated", path);
		length = (uint32_t)b[0] << 24 | b[1] << 16 | b[2] << 8 | b[3];
		at += LENGTH_SIZE;
		if (length > size - at)
			die(EXIT_SETUP, "can't read %s: truncated", path);
		if (memchr(data + at, '\0', length))
			die(EXIT_SETUP, "can't read %s: a NUL in a string", path);
		strings[n++] = need(strndup(data + at, length));
		at += length;
	}
	free(data);
	*count += n;
	return strings;
}

static bool is_file(const char *path)
{
	struct stat st;

	return !stat(path, &st) && S_ISREG(st.st_mode);
}

/* Return the command for Apptainer's or enroot's script with the words after "-", or NULL if there is no script. */
static char **script(char **arguments)
{
	bool apptainers = is_file(APPTAINERS);
	size_t n = 0;
	char **own;

	if (!apptainers && !is_file(ENROOTS))
		return NULL;
	while (arguments[n])
		n++;
	own = (char **)need(calloc(n + 3, sizeof(char *)));
	if (apptainers) {
		own[0] = APPTAINERS;
	} else {
		own[0] = SHELL;
		own[1] = ENROOTS;
	}
	memcpy(own + (apptainers ? 1 : 2), arguments, n * sizeof(char *));
	return own;
}

char **images_own(char **argv)
{
	size_t count = 0, n = 0;
	char **entrypoint = list(ENTRYPOINT, &count);
	char **arguments = argv + 1;
	char **own;

	if (!count && !is_file(CMD)) {
		own = script(arguments);
		if (own)
			return own;
	}
	if (*arguments)
		while (arguments[n])
			n++;
	else
		arguments = list(CMD, &n);
	if (!count && !n)
		die(EXIT_USAGE, "-: the image has no command of its own (" ENTRYPOINT ", " CMD
				", " APPTAINERS ", " ENROOTS ")");
	own = (char **)need(calloc(count + n + 1, sizeof(char *)));
	memcpy(own, entrypoint, count * sizeof(char *));
	memcpy(own + count, arguments, n * sizeof(char *));
	free(entrypoint);
	return own;
}
