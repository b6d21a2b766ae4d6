/* SPDX-License-Identifier: Apache-2.0 */
/* What ch-join is told of saving the container.
 *
 * The plugin tells it, not the launcher's ticket: what writes a file of the user's runs on the host, and the
 * launcher has read the image.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../agreement.h"
#include "plugin.h"

/* Of the site's arguments, those that have a say in packing. */
static const char *const packing[] = { "packer=", "pull_threads=", NULL };

static bool is_about_packing(const char *argument)
{
	for (const char *const *key = packing; *key; key++)
		if (!strncmp(argument, *key, strlen(*key)))
			return true;
	return false;
}

/* Set ch-join's variable if a request asks for it, else remove one that the user has; -1 if that can't be. */
int saver_tell(spank_t sp, const char *request, bool batch, int ac, char **av)
{
	static const char *const options[] = { "save=", "container-save=" };
	const char *file = NULL, *label = NULL;
	size_t n = 0, size;
	uint32_t tasks;
	char *text = NULL;
	FILE *out;
	int failed;

	for (size_t i = 0; i < sizeof(options) / sizeof(*options) && !file; i++) {
		file = last_line(request, options[i], &n);
		label = i ? "--container-save" : "--ch-save";
	}
	if (!file) {
		spank_unsetenv(sp, SAVER_VARIABLE);
		return 0;
	}
	if (spank_get_item(sp, S_JOB_LOCAL_TASK_COUNT, &tasks) != ESPANK_SUCCESS)
		return -1;
	out = open_memstream(&text, &size);
	if (!out)
		return -1;
	if (batch)
		fputc(SAVER_BATCH, out);
	fprintf(out, "%u\n%s\n%.*s", tasks, label, (int)n, file);
	for (int i = 0; i < ac; i++)
		if (is_about_packing(av[i]))
			fprintf(out, "\n%s", av[i]);
	failed = fclose(out) || spank_setenv(sp, SAVER_VARIABLE, text, 1) != ESPANK_SUCCESS;
	free(text);
	if (failed)
		complain("can't tell ch-join where the container is to be saved");
	return failed ? -1 : 0;
}
