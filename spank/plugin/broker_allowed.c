/* SPDX-License-Identifier: Apache-2.0 */
/* Decides whether a step's container may have a broker of Slurm's commands, and for which commands.
 *
 * The plugin decides that from the site's and the user's options. The launcher's ticket
 * can't: the launcher has read the image, which may be hostile, and a broker runs on the host.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "../agreement.h"
#include "../common/relay.h"
#include "plugin.h"

static bool is_one_of(const char *word, size_t n, const char *const *words)
{
	for (; *words; words++)
		if (strlen(*words) == n && !strncasecmp(*words, word, n))
			return true;
	return false;
}

/* The launcher refuses a word that is neither yes nor no. */
static const char *const no[] = { NO_WORDS, NULL };

/* These start the user's programs, in the environment that they are called with. */
static const char *const starting[] = { "srun", "sbatch", "salloc", "scrontab", "strigger", NULL };

/* By a list the site limits what a caller can do. So the caller's environment must not
 * influence commands that start no program: mark them for the broker. */
static bool write_list(FILE *out, const char *list)
{
	for (const char *item = list;; item++) {
		size_t n = strcspn(item, ",");

		fprintf(out, "%.*s%s%s", (int)n, item, is_one_of(item, n, starting) ? "" : RELAY_CONFINED,
			item[n] ? "," : "");
		item += n;
		if (!*item)
			return !ferror(out);
	}
}

/* Return the part of ch-join's variable about the broker: ":", then "t" if the broker
 * ends with its task or "s" if with the step, then its commands; "" if there may be no
 * broker; NULL when out of memory. */
char *broker_allowed(const char *request, bool batch, int ac, char **av)
{
	const char *commands = NULL, *asked = NULL, *word;
	char *broker = NULL;
	bool whole = true;
	size_t n = 0, size;
	FILE *out;

	for (int i = 0; i < ac; i++) {
		if (!strncmp(av[i], "relay=", 6)) {
			commands = av[i] + 6;
			whole = !strcmp(commands, "yes");
		} else if (!strcmp(av[i], "default=relay") || !strncmp(av[i], "default=relay=", 14)) {
			asked = av[i][13] ? av[i] + 14 : "yes";
			n = strlen(asked);
		}
	}
	word = last_line(request, "relay=", &n);
	if (word)
		asked = word;
	if ((!whole && !strcmp(commands, "no")) || (asked ? is_one_of(asked, n, no) : !batch))
		return strdup("");
	out = open_memstream(&broker, &size);
	if (!out)
		return NULL;
	fprintf(out, ":%c", batch ? 't' : 's');
	if (whole)
		fputs(RELAYED_COMMANDS, out);
	else
		whole = write_list(out, commands);
	if (fclose(out) || !whole) {
		free(broker);
		return NULL;
	}
	return broker;
}
