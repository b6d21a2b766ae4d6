/* SPDX-License-Identifier: Apache-2.0 */
/* Lines on standard error: one prefix, nothing that could steer a terminal. */
#define _GNU_SOURCE
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "../agreement.h"
#include "ch-join.h"

/* As the options -v and -q: above 0 more, below 0 less. */
static int verbosity;
static bool colored;

/* Where messages go: the command's standard error may be hidden. */
static int messages = STDERR_FILENO;

static bool like_ch_run;

void exit_codes_of_ch_run(void)
{
	like_ch_run = true;
}

/* ch-run has one code for a command that can't be executed, and one for all else. */
int exit_code(int code)
{
	if (!like_ch_run)
		return code;
	return code == EXIT_CANNOT_EXECUTE || code == EXIT_NOT_FOUND ? EXIT_CH_RUN_COMMAND : EXIT_SETUP;
}

void messages_level(int level)
{
	verbosity = level;
}

void messages_color(void)
{
	colored = true;
}

void messages_to(int fd)
{
	messages = fd;
}

/* Write a line, with what could steer a terminal as an escape: control
 * characters, ASCII's and (two bytes of UTF-8) those from 0x80 to 0x9f. */
static void write_printable(const char *before, const char *text, size_t n, const char *behind)
{
	char line[4 * (PATH_MAX + 512) + 32];
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
	to += sprintf(line + to, "%s\n", behind);
	if (write(messages, line, to) < 0)
		return;
}

static void say(const char *kind, const char *format, va_list args)
{
	char text[PATH_MAX + 512];
	const char *node = getenv("SLURMD_NODENAME");
	const char *color = !colored ? "" : *kind == 'e' ? "\033[0;31m" : "\033[0;33m";
	int n = snprintf(text, sizeof(text), "slurm-ch: %s%s%s: ", node ? node : "", node ? ": " : "",
			 kind);

	/* A long environment variable for a node's name is not worth a failure. */
	if (n < 0 || n >= PATH_MAX)
		n = 0;
	n += vsnprintf(text + n, sizeof(text) - n, format, args);
	if (n > (int)sizeof(text) - 1)
		n = sizeof(text) - 1;
	write_printable(color, text, n, colored ? "\033[0m" : "");
}

void die(int code, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say("error", format, args);
	va_end(args);
	exit(exit_code(code));
}

void info(int level, const char *format, ...)
{
	va_list args;

	if (verbosity < level)
		return;
	va_start(args, format);
	say("info", format, args);
	va_end(args);
}

void warn(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say("warning", format, args);
	va_end(args);
}

char *need(char *allocated)
{
	if (!allocated)
		die(EXIT_SETUP, "out of memory");
	return allocated;
}
