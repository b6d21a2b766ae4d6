/* SPDX-License-Identifier: Apache-2.0 */
/* Writes one message line: prefix, text, and no character that could steer a terminal. */
#include "message_line.h"

#include <limits.h>
#include <stdio.h>
#include <unistd.h>

#include "../agreement.h"

#define TEXT_MAX (PATH_MAX + 512)

/* Write a line in which control characters are escapes like \x1b: those of ASCII, and those from
 * 0x80 to 0x9f, which UTF-8 has in two bytes. */
static void write_printable(int fd, const char *before, const char *text, size_t n, const char *after)
{
	char line[4 * TEXT_MAX + 32];
	size_t to = sprintf(line, "%s", before);

	for (size_t i = 0; i < n; i++) {
		bool two = (unsigned char)text[i] == 0xc2 && i + 1 < n &&
			   ((unsigned char)text[i + 1] & 0xe0) == 0x80;
		unsigned char c = text[two ? ++i : i];

		if (two || c < 0x20 || c == 0x7f)
			to += sprintf(line + to, "\\x%02x", c);
		else
			line[to++] = c;
	}
	to += sprintf(line + to, "%s\n", after);
	if (write(fd, line, to) < 0)
		return;
}

void message_line(int fd, bool colored, const char *node, const char *kind, const char *format, va_list args)
{
	char text[TEXT_MAX];
	const char *color = !colored ? "" : *kind == 'e' ? "\033[0;31m" : "\033[0;33m";
	int n = snprintf(text, sizeof(text), SLURM_CH ": %s%s%s: ", node ? node : "", node ? ": " : "", kind);

	/* The node's name is a variable of the user's and may be of any length: then there is no prefix. */
	if (n < 0 || n >= PATH_MAX)
		n = 0;
	n += vsnprintf(text + n, sizeof(text) - n, format, args);
	if (n > (int)sizeof(text) - 1)
		n = sizeof(text) - 1;
	write_printable(fd, color, text, n, colored ? "\033[0m" : "");
}
