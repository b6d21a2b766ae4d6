/* SPDX-License-Identifier: Apache-2.0 */
/* What a request says: lines NAME=VALUE. */
#include <string.h>

#include "plugin.h"

/* The last of the lines that start with `key`, or NULL; its length in n. */
const char *last_line(const char *text, const char *key, size_t *n)
{
	const char *found = NULL;
	size_t length = strlen(key);

	for (const char *line = text; *line; line += strcspn(line, "\n"), line += *line == '\n')
		if (!strncmp(line, key, length)) {
			found = line + length;
			*n = strcspn(found, "\n");
		}
	return found;
}
