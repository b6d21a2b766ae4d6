/* SPDX-License-Identifier: Apache-2.0 */
/* Finds options in the #SBATCH lines of a batch script.
 *
 * A script may be submitted without the plugin: by pyslurm or slurmrestd, which don't
 * read #SBATCH lines, or from a host that has no plugin. Then there is no request, but
 * `#SBATCH --ch-image=...` shows that the user wants a container. The task reads the
 * script as the user, before it is executed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plugin.h"

/* This much of the script is read. Directives come before the first command, where sbatch stops. */
#define SCRIPT_SIZE 65536
/* This much of a word is compared. */
#define WORD_SIZE 64

static bool is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r';
}

/* Whether `is` holds for a word of the line. As in Slurm, a word that begins with # ends the line. */
static bool line_has(const char *at, const char *end, bool is(const char *word))
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

/* Whether `is` holds for a word in a directive before the text's first command. */
static bool text_has(const char *text, size_t size, bool is(const char *word))
{
	static const char mark[] = "#SBATCH";
	const char *end = text + size, *line, *next, *first;

	for (line = text; line < end; line = next + 1) {
		next = memchr(line, '\n', end - line);
		if (!next)
			next = end;
		if ((size_t)(next - line) > sizeof(mark) - 1 && !memcmp(line, mark, sizeof(mark) - 1) &&
		    is_blank(line[sizeof(mark) - 1]) && line_has(line + sizeof(mark) - 1, next, is))
			return true;
		for (first = line; first < next && is_blank(*first); first++)
			;
		if (first < next && *first != '#')
			return false;
	}
	return false;
}

/* Whether `is` holds for a word in the script's #SBATCH lines; false if the script can't be read. */
bool batch_script_has(const char *path, bool is(const char *word))
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
	return text_has(text, size, is);
}

static bool is_option_of_ours(const char *word)
{
	return !strncmp(word, "--ch-", strlen("--ch-")) && word[strlen("--ch-")];
}

/* Whether the script requests a container by our options. */
bool batch_script_has_ours(const char *path)
{
	return batch_script_has(path, is_option_of_ours);
}
