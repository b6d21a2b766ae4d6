/* SPDX-License-Identifier: Apache-2.0 */
/* Tells ch-join whether and where to save the container.
 *
 * The plugin tells it, not the launcher's ticket: the launcher has read the image, which may be hostile, and
 * the saver writes a file on the host.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../agreement.h"
#include "plugin.h"

/* The site's arguments about packing. */
static const char *const packing[] = { "packer=", "pull_threads=", NULL };

static bool is_about_packing(const char *argument)
{
	for (const char *const *key = packing; *key; key++)
		if (!strncmp(argument, *key, strlen(*key)))
			return true;
	return false;
}

/* Set ch-join's variable if the request has a file to save to; else unset it, because the user may have set it. Return
 * -1 on failure. */
int set_saver_variable(spank_t sp, const char *request, bool batch, int ac, char **av)
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
