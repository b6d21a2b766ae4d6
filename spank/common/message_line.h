/* SPDX-License-Identifier: Apache-2.0 */
/* Message lines on standard error. */
#ifndef MESSAGE_LINE_H
#define MESSAGE_LINE_H

#include <stdarg.h>
#include <stdbool.h>

/* Write "slurm-ch: NODE: KIND: ..." in one write. The node may be NULL. */
void message_line(int fd, bool colored, const char *node, const char *kind, const char *format, va_list args)
	__attribute__((format(printf, 5, 0)));

#endif
