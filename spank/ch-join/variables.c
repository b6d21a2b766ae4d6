/* SPDX-License-Identifier: Apache-2.0 */
/* Changes a task's environment as a plan's records say. */
#define _GNU_SOURCE
#include <errno.h>
#include <fnmatch.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../agreement.h"
#include "ch-join.h"

/* Append n bytes to a growing string. */
static void append(char **text, size_t *length, const char *more, size_t n)
{
	*text = need(realloc(*text, *length + n + 1));
	memcpy(*text + *length, more, n);
	*length += n;
	(*text)[*length] = '\0';
}

/* Expand each colon-separated item that starts with "$". An item whose variable is unset
 * or empty is removed, with one colon. A "$" alone, or inside an item, stays. */
static char *expand_items(const char *value)
{
	char *out = need(strdup(""));
	size_t length = 0;
	bool any = false;

	for (const char *item = value;; item++) {
		size_t n = strcspn(item, ":");
		const char *text = item;
		size_t text_n = n;

		if (n > 1 && *item == '$') {
			char *name = need(strndup(item + 1, n - 1));

			text = getenv(name);
			text_n = text ? strlen(text) : 0;
			free(name);
		}
		if (!(n > 1 && *item == '$' && !text_n)) {
			if (any)
				append(&out, &length, ":", 1);
			append(&out, &length, text, text_n);
			any = true;
		}
		item += n;
		if (!*item)
			return out;
	}
}

/* Append an item of n bytes with each $NAME and ${NAME} expanded, and "\$" as "$"; any other "$"
 * stays. Return whether the item consists of such names only. */
static bool expand_item(const char *item, size_t n, char **out, size_t *length)
{
	static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_0123456789";
	const char *end = item + n;
	bool only_names = n > 0;

	while (item < end) {
		size_t braces, name_n, plain;
		const char *text;
		char *name;

		if (*item == '$') {
			braces = item[1] == '{';
			name_n = strspn(item + 1 + braces, letters);
			if (name_n && (item[1 + braces] < '0' || item[1 + braces] > '9') &&
			    (!braces || item[2 + name_n] == '}')) {
				name = need(strndup(item + 1 + braces, name_n));
				text = getenv(name);
				if (text)
					append(out, length, text, strlen(text));
				free(name);
				item += 1 + name_n + 2 * braces;
				continue;
			}
		}
		if (*item == '\\' && item + 1 < end && item[1] == '$')
			item++;
		plain = 1 + strcspn(item + 1, "$\\");
		if (plain > (size_t)(end - item))
			plain = end - item;
		append(out, length, item, plain);
		item += plain;
		only_names = false;
	}
	return only_names;
}

/* Expand each $NAME and ${NAME}. If an item between colons consists of names only, and all are unset or
 * empty, it is removed, with one colon: in a search path it would mean the working directory. */
static char *expand_anywhere(const char *value)
{
	char *out = need(strdup(""));
	size_t length = 0;
	bool any = false;

	for (const char *item = value;; item++) {
		size_t n = strcspn(item, ":"), before = length, start;

		if (any)
			append(&out, &length, ":", 1);
		start = length;
		if (expand_item(item, n, &out, &length) && length == start) {
			length = before;
			out[length] = '\0';
		} else
			any = true;
		item += n;
		if (!*item)
			return out;
	}
}

void set_variable(const char *assignment, enum expansion how)
{
	const char *equals = strchr(assignment, '=');
	char *name, *value;

	if (!equals || equals == assignment)
		die(EXIT_SETUP, "malformed plan: %s", assignment);
	name = need(strndup(assignment, equals - assignment));
	switch (how) {
	case EXPAND_ITEMS:
		value = expand_items(equals + 1);
		break;
	case EXPAND_ANYWHERE:
		value = expand_anywhere(equals + 1);
		break;
	default:
		value = need(strdup(equals + 1));
	}
	if (setenv(name, value, 1))
		die(EXIT_SETUP, "can't set %s: %s", name, strerror(errno));
	info(3, "environment: %s=%s", name, value);
	free(name);
	free(value);
}

void unset_variables(const char *pattern)
{
	for (char **e = environ; *e;) {
		size_t n = strcspn(*e, "=");
		char *name = need(strndup(*e, n));

		/* An entry without a name or "=" can't be unset: the loop must pass it. */
		if (n && (*e)[n] && !fnmatch(pattern, name, FNM_EXTMATCH) && !unsetenv(name)) {
			info(3, "environment: unset %s", name);
			e = environ; /* unsetenv moved the rest */
		} else
			e++;
		free(name);
	}
}

void set_default(const char *assignment)
{
	char *name = need(strndup(assignment, strcspn(assignment, "=")));
	bool unset = !getenv(name);

	free(name);
	if (unset)
		set_variable(assignment, LITERAL);
}

bool is_still(const char *assignment)
{
	size_t n = strcspn(assignment, "=");
	char *name = need(strndup(assignment, n));
	const char *value = getenv(name);

	free(name);
	return value && assignment[n] && !strcmp(value, assignment + n + 1);
}

static bool has_item(const char *list, const char *item, size_t n)
{
	for (;; list++) {
		size_t length = strcspn(list, ":");

		if (length == n && !strncmp(list, item, n))
			return true;
		list += length;
		if (!*list)
			return false;
	}
}

/* Append each directory of the list to PATH, unless PATH has it. If PATH is unset, set it only if `makes_one`. */
void add_to_path(const char *directories, bool makes_one)
{
	for (const char *one = directories, *path; *one; one += *one == ':') {
		size_t n = strcspn(one, ":");
		char *with;

		path = getenv("PATH");
		if (!path && !makes_one)
			return;
		path = path ? path : "";
		if (!has_item(path, one, n)) {
			if (asprintf(&with, "%s%s%.*s", path, *path ? ":" : "", (int)n, one) < 0)
				need(NULL);
			setenv("PATH", with, 1);
			free(with);
		}
		one += n;
	}
}

/* Set to /tmp each variable for temporary files that names no directory of the container. A TaskProlog may have
 * set it after the container was made. */
void check_temporary(bool reports)
{
	static const char *const names[] = { TEMPORARY_VARIABLES };
	struct stat st;

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		const char *path = getenv(names[i]);

		/* A relative path belongs to the directory where the command starts, and that is not entered yet. */
		if (!path || *path != '/' || (!stat(path, &st) && S_ISDIR(st.st_mode)))
			continue;
		if (reports && is_first_task())
			warn("%s=%s: no such directory in the container; using /tmp", names[i], path);
		setenv(names[i], "/tmp", 1);
	}
}
