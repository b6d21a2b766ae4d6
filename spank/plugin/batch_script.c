/* SPDX-License-Identifier: Apache-2.0 */
/* A batch script that was submitted past the plugin: by pyslurm or slurmrestd, which
 * don't read #SBATCH lines, or from a host without the plugin. Whoever wrote
 * `#SBATCH --ch-image=...` into it wants a container, and there is no request.
 *
 * Read by the task, as the user, before the script is executed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plugin.h"

/* The directives are at the beginning; sbatch stops at the first command. */
#define SCRIPT_SIZE 65536

static bool is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r';
}

/* Whether a word of the line begins with --ch-, as Slurm takes words apart; one
 * that begins with # ends it. */
static bool line_asks(const char *at, const char *end)
{
	while (at < end) {
		while (at < end && is_blank(*at))
			at++;
		if (at < end && *at == '#')
			return false;
		if (end - at > 5 && !memcmp(at, "--ch-", 5))
			return true;
		while (at < end && !is_blank(*at))
			at++;
	}
	return false;
}

/* Whether the text has such a directive before its first command. */
static bool text_asks(const char *text, size_t size)
{
	static const char mark[] = "#SBATCH";
	const char *end = text + size, *line, *next, *first;

	for (line = text; line < end; line = next + 1) {
		next = memchr(line, '\n', end - line);
		if (!next)
			next = end;
		if ((size_t)(next - line) > sizeof(mark) - 1 && !memcmp(line, mark, sizeof(mark) - 1) &&
		    is_blank(line[sizeof(mark) - 1]) && line_asks(line + sizeof(mark) - 1, next))
			return true;
		for (first = line; first < next && is_blank(*first); first++)
			;
		if (first < next && *first != '#')
			return false;
	}
	return false;
}

/* Whether the script asks for a container; no if it can't be read, since then it can't run. */
bool batch_script_asks(const char *path)
{
	static char text[SCRIPT_SIZE];
	struct stat st;
	size_t size = 0;
	ssize_t n = 0;
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	if (fd < 0)
		return false;
	if (!fstat(fd, &st) && S_ISREG(st.st_mode))
		while (size < sizeof(text) && (n = read(fd, text + size, sizeof(text) - size)) > 0)
			size += n;
	close(fd);
	return text_asks(text, size);
}
