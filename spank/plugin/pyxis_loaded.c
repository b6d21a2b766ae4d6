/* SPDX-License-Identifier: Apache-2.0 */
/* Detects that the plugin pyxis is loaded too. Then `pyxis=yes` is ignored: of two plugins with the same
 * option, Slurm would give it to the first that it loads, and only warn in its log.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin.h"

struct objects {
	char **paths;
	size_t count;
};

/* Keep the names, because no object may be opened in this callback. */
static int keep(struct dl_phdr_info *one, size_t size, void *data)
{
	struct objects *found = data;
	char **more = realloc(found->paths, (found->count + 1) * sizeof(*more));

	(void)size;
	if (!more)
		return 1;
	found->paths = more;
	more[found->count] = strdup(one->dlpi_name);
	return more[found->count] ? (found->count++, 0) : 1;
}

static bool is_pyxis(const char *path)
{
	void *object = *path ? dlopen(path, RTLD_LAZY | RTLD_NOLOAD) : NULL;
	const char *name = object ? dlsym(object, "plugin_name") : NULL;
	bool found = name && !strcmp(name, "pyxis");

	if (object)
		dlclose(object);
	return found;
}

/* Whether pyxis is loaded; where a user submits, report it. Slurm has opened all plugins before it calls the first. */
bool is_pyxis_loaded(void)
{
	struct objects loaded = { NULL, 0 };
	const char *path = NULL;

	dl_iterate_phdr(keep, &loaded);
	for (size_t i = 0; i < loaded.count && !path; i++)
		if (is_pyxis(loaded.paths[i]))
			path = loaded.paths[i];
	if (path && spank_context() != S_CTX_REMOTE)
		complain("plugstack.conf: pyxis=yes is ignored: %s is loaded too, and --container-image "
			 "is its own; remove one of the two",
			 path);
	for (size_t i = 0; i < loaded.count; i++)
		free(loaded.paths[i]);
	free(loaded.paths);
	return path;
}
