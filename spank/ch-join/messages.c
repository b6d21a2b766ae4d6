/* SPDX-License-Identifier: Apache-2.0 */
/* Messages of ch-join: their level, where they are written, and the exit code that follows. */
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#include "../agreement.h"
#include "../common/message_line.h"
#include "ch-join.h"

/* As counted by the options -v (up) and -q (down). */
static int verbosity;
static bool colored;

/* Not always standard error, because the command's may be hidden. */
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

static void print(const char *kind, const char *format, va_list args)
{
	message_line(messages, colored, getenv("SLURMD_NODENAME"), kind, format, args);
}

void die(int code, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	print("error", format, args);
	va_end(args);
	exit(exit_code(code));
}

void info(int level, const char *format, ...)
{
	va_list args;

	if (verbosity < level)
		return;
	va_start(args, format);
	print("info", format, args);
	va_end(args);
}

void warn(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	print("warning", format, args);
	va_end(args);
}

char *need(char *allocated)
{
	if (!allocated)
		die(EXIT_SETUP, "out of memory");
	return allocated;
}
