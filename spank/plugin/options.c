/* SPDX-License-Identifier: Apache-2.0 */
/* Registers the options and collects their values where the user submits, with the defaults from the environment.
 * Values are strings, which only the launcher interprets. */
#define _GNU_SOURCE
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../agreement.h"
#include "options.h"
#include "plugin.h"

#define OPTION(variable, ...) { __VA_ARGS__ },
const struct option options[] = {
#include "options.inc"
};
#undef OPTION

/* Slurm's numbers. */
#define NO_ARGUMENT 0
#define REQUIRED_ARGUMENT 1
#define OPTIONAL_ARGUMENT 2

struct setting *settings; /* in the order in which they were given, then the defaults */
size_t setting_count;
static bool remote_saw_option, unusable, has_pyxis_options;

static bool is_known(const struct option *o)
{
	return has_pyxis_options || !o->group;
}

/* Whether it is --no-NAME, which has no line in the request and no variable of its own. */
static bool is_negation(const struct option *o)
{
	return o->group && !strncmp(o->name, "no-", strlen("no-"));
}

/* Return what an option's lines in the request begin with. */
const char *option_key(const struct option *o)
{
	return o->name + (!o->group ? strlen("ch-") : is_negation(o) ? strlen("no-") : 0);
}

/* As for Slurm's own options, each command has its own variables. */
static const char *prefix(void)
{
	if (!strcmp(submitter(), "sbatch"))
		return SBATCH_PREFIX;
	if (!strcmp(submitter(), "salloc"))
		return SALLOC_PREFIX;
	return SRUN_PREFIX;
}

/* Write the name of the variable that has an option's default. */
static void variable_name(const struct option *o, const char *ours, char *name, size_t size)
{
	const char *word = o->group ? o->name + strlen("container-") : o->name + strlen("ch-");

	snprintf(name, size, "%s%s", o->group ? PYXIS_PREFIX : ours, word);
	for (char *c = name; *c; c++)
		*c = *c == '-' ? '_' : toupper((unsigned char)*c);
}

static int add(int option, const char *value)
{
	struct setting *more = realloc(settings, (setting_count + 1) * sizeof(*settings));

	if (!more)
		return -1;
	settings = more;
	settings[setting_count].option = option;
	/* For pyxis, an image that doesn't begin as a path is a reference. */
	if (option == OPTION_CONTAINER_IMAGE && *value != '/' && *value != '.' && !strstr(value, "://")) {
		if (asprintf(&settings[setting_count].value, "docker://%s", value) < 0)
			return -1;
	} else {
		settings[setting_count].value = strdup(value);
	}
	return settings[setting_count].value ? (setting_count++, 0) : -1;
}

static int on_option(int val, const char *optarg, int remote)
{
	const char *value = optarg ? optarg : options[val].bare ? options[val].bare : "";

	/* On the node, the values come from the request, which has all of them. But if an option was
	 * given, there must be a request. */
	if (remote) {
		remote_saw_option = true;
		return 0;
	}
	if (strchr(value, '\n')) {
		complain("--%s: the value has a newline in it", options[val].name);
		/* Not an error from here: some commands would end with Slurm's status, not ours. */
		unusable = true;
		return 0;
	}
	return add(val, value);
}

/* In an allocation, Slurm passes sbatch's and salloc's options to srun by the environment,
 * as if they were srun's; of a repeated option, only the last value. Our own SLURM_CH_*
 * variables have all values. */
static void drop_inherited(const struct option *o)
{
	static const char *const prefixes[] = { "SLURM_SPANK__SLURM_SPANK_OPTION_slurm_ch_",
						"_SLURM_SPANK_OPTION_slurm_ch_" };

	for (size_t p = 0; p < sizeof(prefixes) / sizeof(prefixes[0]); p++) {
		char name[128];

		snprintf(name, sizeof(name), "%s%s", prefixes[p], o->name);
		for (char *c = name; *c; c++)
			if (*c == '-')
				*c = '_';
		unsetenv(name);
	}
}

static int argument_of(const struct option *o)
{
	if (!o->bare)
		return REQUIRED_ARGUMENT;
	return o->group ? NO_ARGUMENT : OPTIONAL_ARGUMENT;
}

int options_register(spank_t sp, int ac, char **av)
{
	has_pyxis_options = site_says_yes("pyxis", ac, av) && !is_pyxis_loaded();
	for (int i = 0; i < OPTION_COUNT; i++) {
		const struct option *o = &options[i];
		struct spank_option so = { (char *)o->name, (char *)o->arg, (char *)o->help,
					   argument_of(o), i, on_option };

		if (!is_known(o))
			continue;
		if (spank_option_register(sp, &so) != ESPANK_SUCCESS) {
			complain("can't register --%s", o->name);
			return ESPANK_ERROR;
		}
		if (spank_context() != S_CTX_REMOTE)
			drop_inherited(o);
	}
	return ESPANK_SUCCESS;
}

bool options_remote_saw_option(void)
{
	return remote_saw_option;
}

static bool is_same(int one, int other)
{
	const char *a = options[one].group, *b = options[other].group;

	return one == other || (a && b && !strcmp(a, b));
}

bool option_given(int option, size_t explicit_count)
{
	for (size_t i = 0; i < explicit_count; i++)
		if (is_same(settings[i].option, option))
			return true;
	return false;
}

/* Whether the image is given by the other family of options (ours or pyxis') than an option's: then the option's
 * default belongs to another container. */
static bool is_overruled(int option, size_t explicit_count)
{
	if (options[option].group)
		return option_given(OPTION_IMAGE, explicit_count);
	return option == OPTION_IMAGE && option_given(OPTION_CONTAINER_IMAGE, explicit_count);
}

/* Add the defaults from the environment after the explicit settings. */
int options_add_defaults(size_t explicit_count)
{
	for (int i = 0; i < OPTION_COUNT; i++) {
		char name[128];
		char *copy, *line, *rest;
		int failed = 0;

		if (!is_known(&options[i]) || is_negation(&options[i]))
			continue;
		variable_name(&options[i], prefix(), name, sizeof(name));
		if (option_given(i, explicit_count) || is_overruled(i, explicit_count) || !getenv(name))
			continue;
		if (!*getenv(name)) /* empty is as good as unset */
			continue;
		if ((options[i].kind != KIND_LIST || options[i].group) && strchr(getenv(name), '\n')) {
			complain("%s: the value has a newline in it", name);
			return -1;
		}
		copy = rest = strdup(getenv(name));
		if (!copy)
			return -1;
		while (!failed && (line = strsep(&rest, "\n")))
			if (*line)
				failed = add(i, line);
		free(copy);
		if (failed)
			return -1;
	}
	return 0;
}

/* Publish the options of sbatch and salloc as defaults of the job's steps. salloc's relative paths belong to this
 * directory. sbatch's belong to the directory where the job starts: they are anchored on the node. */
int options_publish_defaults(void)
{
	char *directory = strcmp(submitter(), "salloc") ? NULL : getcwd(NULL, 0);

	for (int i = 0; i < OPTION_COUNT; i++) {
		char name[128];
		char *text = NULL, *there;
		size_t size;
		FILE *out;
		const char *between = options[i].group ? "," : "\n";
		int n = 0, failed;

		/* The file that a batch script's container is saved to is not for its steps. */
		if (is_negation(&options[i]) || i == OPTION_SAVE || i == OPTION_CONTAINER_SAVE)
			continue;
		variable_name(&options[i], SRUN_PREFIX, name, sizeof(name));
		/* A default that the job's options have replaced must not become its steps' default. */
		if (is_known(&options[i]) && is_overruled(i, setting_count) && unsetenv(name))
			return -1;
		if (!option_given(i, setting_count))
			continue;
		out = open_memstream(&text, &size);
		if (!out)
			return -1;
		for (size_t s = 0; s < setting_count; s++) {
			if (settings[s].option != i && strcmp(option_key(&options[settings[s].option]), option_key(&options[i])))
				continue;
			if (options[i].kind != KIND_LIST)
				rewind(out);
			there = directory ? anchor_paths(options[i].paths, settings[s].value, directory) : NULL;
			fprintf(out, "%s%s", n++ && options[i].kind == KIND_LIST ? between : "",
				there ? there : settings[s].value);
			free(there);
		}
		if (fclose(out)) {
			free(text);
			return -1;
		}
		failed = setenv(name, text, 1);
		free(text);
		if (failed)
			return -1;
	}
	free(directory);
	return 0;
}

bool options_unusable(void)
{
	return unusable;
}

void options_free(void)
{
	for (size_t i = 0; i < setting_count; i++)
		free(settings[i].value);
	free(settings);
	settings = NULL;
	setting_count = 0;
}
