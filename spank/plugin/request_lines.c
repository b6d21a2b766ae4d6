/* SPDX-License-Identifier: Apache-2.0 */
/* Finds an option in a request, which is lines NAME=VALUE. */
#include <string.h>

#include "plugin.h"

/* Return the rest of the last line that starts with `key`, and its length in n; NULL if there is none. */
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
