/* SPDX-License-Identifier: Apache-2.0 */
/* The plugin where a user submits: options and defaults in, one request out. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>

#include "../native/spank_fake.h"
#include "fuzz.h"

extern char **environ;

#define exit fuzz_exit
#include "../../spank/plugin/command_line.c"
#include "../../spank/plugin/options.c"
#include "../../spank/plugin/request.c"
#include "../../spank/plugin/anchor.c"
#include "../../spank/plugin/components.c"
#include "../../spank/plugin/variable.c"
#include "../../spank/plugin/submitter.c"

bool other_container(int command_words)
{
	(void)command_words;
	return false;
}
#undef exit

bool is_pyxis_loaded(void)
{
	return false;
}

bool site_says_yes(const char *key, int ac, char **av)
{
	(void)key, (void)av;
	return ac;
}

static bool api_fails(void)
{
	return false;
}

static void job_setenv(const char *name, const char *value)
{
	(void)name, (void)value;
	abort();
}

static void job_unsetenv(const char *name)
{
	(void)name;
	abort();
}

static void show_error(const char *text)
{
	(void)text;
}

void broadcast_in_job(char **request, int ac, char **av)
{
	(void)request, (void)ac, (void)av;
}

/* Every line has the name of an option, so no value has added a line. */
void precheck_request(const char *request, const char *image, bool plain, int ac, char **av,
		      struct pin *pin)
{
	size_t lines = 0;

	(void)plain, (void)ac, (void)av;
	for (const char *line = request; *line; line = strchr(line, '\n') + 1) {
		size_t name = strcspn(line, "=");
		bool known = false;

		for (int i = 0; i < OPTION_COUNT; i++)
			known |= is_known(&options[i]) && !strncmp(line, option_key(&options[i]), name) &&
				 !option_key(&options[i])[name];
		if (!known || line[name] != '=' || !strchr(line, '\n'))
			abort();
		lines++;
	}
	if (lines != setting_count || !image)
		abort();
	*pin = (struct pin){ NULL, NULL };
	if (*image == 'd') {
		pin->image = strdup("docker://docker.io/library/it@sha256:0");
		pin->located = strdup("host:/it");
	}
}

/* A list's default has the same values; salloc's paths belong to this directory. */
static void check_defaults(void)
{
	char *directory = strcmp(submitter(), "salloc") ? NULL : getcwd(NULL, 0), *there;

	for (int i = 0; i < OPTION_COUNT; i++) {
		char name[128], *copy, *rest, *line;
		size_t s = 0;

		variable_name(&options[i], SRUN_PREFIX, name, sizeof(name));
		if (options[i].kind != KIND_LIST || options[i].group || !option_given(i, setting_count))
			continue;
		copy = rest = strdup(getenv(name));
		while ((line = strsep(&rest, "\n"))) {
			while (s < setting_count && settings[s].option != i)
				s++;
			if (s == setting_count)
				abort();
			there = directory ? anchor_paths(options[i].paths, settings[s].value, directory) :
					    strdup(settings[s].value);
			if (strcmp(there, line))
				abort();
			free(there);
			s++;
		}
		free(copy);
	}
	free(directory);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static char *none[1], program[16], *site[] = { "pyxis=yes" };
	uint8_t way;

	fuzz_data = data;
	fuzz_size = size;
	environ = none;
	way = fuzz_byte();
	context = way & 1 ? S_CTX_ALLOCATOR : S_CTX_LOCAL;
	strcpy(program, way & 2 ? "sbatch" : way & 4 ? "salloc" : "srun");
	program_invocation_short_name = program;
	if (!setjmp(fuzz_top)) {
		registered_count = 0;
		options_register(NULL, way >> 3 & 1, site);
		for (uint8_t left = fuzz_byte() % 32; left; left--) {
			int i = fuzz_byte();

			if (i & 128) {
				char name[128];

				variable_name(&options[i % 64 % OPTION_COUNT], i & 64 ? SRUN_PREFIX : prefix(), name,
					      sizeof(name));
				setenv(name, fuzz_string(), 1);
			} else {
				const struct option *o = &options[i % OPTION_COUNT];

				if (!is_known(o))
					break;
				if (on_option(i % OPTION_COUNT, i & 64 && o->bare ? NULL : fuzz_string(), 0))
					break;
			}
		}
		request_post_opt(0, NULL);
		if (context == S_CTX_ALLOCATOR && getenv(REQUEST_VARIABLE))
			check_defaults();
	}
	request_free();
	options_free();
	components_free();
	unusable = remote_saw_option = false;
	environ = none;
	fuzz_free_strings();
	return 0;
}
