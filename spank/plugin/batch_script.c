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
/* What of a word is looked at. */
#define WORD_SIZE 64

static bool is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r';
}

/* Whether a word of the line is one, as Slurm takes words apart; one that begins
 * with # ends it. */
static bool line_says(const char *at, const char *end, bool is(const char *word))
{
	char word[WORD_SIZE];
	size_t n;

	while (at < end) {
		while (at < end && is_blank(*at))
			at++;
		if (at < end && *at == '#')
			return false;
		for (n = 0; at < end && !is_blank(*at); at++)
			if (n < sizeof(word) - 1)
				word[n++] = *at;
		word[n] = '\0';
		if (is(word))
			return true;
	}
	return false;
}

/* Whether the text has such a word in a directive before its first command. */
static bool text_says(const char *text, size_t size, bool is(const char *word))
{
	static const char mark[] = "#SBATCH";
	const char *end = text + size, *line, *next, *first;

	for (line = text; line < end; line = next + 1) {
		next = memchr(line, '\n', end - line);
		if (!next)
			next = end;
		if ((size_t)(next - line) > sizeof(mark) - 1 && !memcmp(line, mark, sizeof(mark) - 1) &&
		    is_blank(line[sizeof(mark) - 1]) && line_says(line + sizeof(mark) - 1, next, is))
			return true;
		for (first = line; first < next && is_blank(*first); first++)
			;
		if (first < next && *first != '#')
			return false;
	}
	return false;
}

/* Whether a word of the script's #SBATCH lines is one; no if it can't be read. */
bool batch_script_says(const char *path, bool is(const char *word))
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
	return text_says(text, size, is);
}

static bool is_option_of_ours(const char *word)
{
	return !strncmp(word, "--ch-", strlen("--ch-")) && word[strlen("--ch-")];
}

/* Whether the script asks for a container of ours. */
bool batch_script_asks(const char *path)
{
	return batch_script_says(path, is_option_of_ours);
}
