/* SPDX-License-Identifier: Apache-2.0 */
/* Makes one request of all options where the user submits, has it checked, and publishes it for the node.
 *
 * Values are passed on as strings. Errors that can be detected here are reported before the job is queued.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../agreement.h"
#include "options.h"
#include "plugin.h"

/* Whether a word of the command line is `word`, or an abbreviation of it with at least `least` letters. */
static bool command_line_has(const char *word, size_t least)
{
	char **line = command_line();
	bool found = false;

	for (char **one = line; one && *one && !found; one++)
		found = strlen(*one) >= least && !strncmp(*one, word, strlen(*one));
	free(line);
	return found;
}

/* Publish for the node which variables srun's --export names. Slurm doesn't tell plugins, and the environment doesn't
 * show which of its variables the user has chosen. */
static int publish_exported(void)
{
	static const char option[] = "--export";
	const char *in_force = getenv("SLURM_EXPORT_ENV");
	char *text = strdup(in_force ? in_force : ""), **line = command_line();
	size_t n = strlen(option);
	bool next = false;
	int failed = !text;

	for (char **one = line; one && *one && !failed; one++) {
		bool attached = !strncmp(*one, option, n) && (*one)[n] == '=';

		if (attached || next) {
			free(text);
			text = strdup(attached ? *one + n + 1 : *one);
			failed = !text;
		}
		next = !next && !strcmp(*one, option);
	}
	if (!failed && *text && strcasecmp(text, "all") && strcasecmp(text, "none"))
		failed = setenv(EXPORTED_VARIABLE, text, 1);
	free(text);
	free(line);
	return failed;
}

static void write_line(FILE *out, const struct setting *s)
{
	fprintf(out, "%s=%s\n", option_key(&options[s->option]), s->value);
}

/* Return the request: the defaults in the table's order, then the explicit settings in the
 * order given, then the image's location, if it is known. Freed by the caller; NULL if there
 * is no memory. */
static char *write_request(size_t explicit_count, const char *located)
{
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	if (!out)
		return NULL;
	for (size_t i = explicit_count; i < setting_count; i++)
		write_line(out, &settings[i]);
	for (size_t i = 0; i < explicit_count; i++)
		write_line(out, &settings[i]);
	if (located)
		fprintf(out, "%s%s\n", LOCATED_LINE, located);
	if (fclose(out)) {
		free(text);
		return NULL;
	}
	return text;
}

static bool is_image(const struct setting *s)
{
	return s->option == OPTION_IMAGE || s->option == OPTION_CONTAINER_IMAGE;
}

/* The image that a reference means. It is kept, because for a job of several components Slurm reads the
 * options again for each component. */
static struct pin pin;
static char *pinned;
/* How many of the settings are from the component before this one, in an srun of several components. */
static size_t carried;

static int replace(struct setting *setting, const char *value)
{
	char *copy = strdup(value);

	if (!copy)
		return -1;
	free(setting->value);
	setting->value = copy;
	return 0;
}

/* Replace the reference by the image that it means now, so that all steps of a job have the same image; and
 * --ch-pull=always by auto, because the image has been pulled. */
static int use_pin(void)
{
	if (!pin.image)
		return 0;
	for (size_t i = 0; i < setting_count; i++) {
		if (is_image(&settings[i]) && !strcmp(settings[i].value, pinned) &&
		    replace(&settings[i], pin.image))
			return -1;
		if (settings[i].option == OPTION_PULL && !strcmp(settings[i].value, "always") &&
		    replace(&settings[i], "auto"))
			return -1;
	}
	return 0;
}

static void forget_pin(void)
{
	free(pinned);
	free(pin.image);
	free(pin.located);
	pinned = NULL;
	pin = (struct pin){ NULL, NULL };
}

void request_free(void)
{
	forget_pin();
	components_free();
	carried = 0;
}

/* Have the request checked, and return it with the image that its reference means; NULL if there is no memory. */
static char *checked_request(size_t explicit_count, const char *image, bool plain, int ac, char **av)
{
	/* The pin may be for another component's image. */
	const char *located = pin.image && !strcmp(image, pin.image) ? pin.located : NULL;
	char *request = write_request(explicit_count, located);
	struct pin found;

	if (!request)
		return NULL;
	precheck_request(request, image, plain, ac, av, &found);
	if (found.image) {
		forget_pin();
		pin = found;
		pinned = strdup(image);
		free(request);
		request = pinned && !use_pin() ? write_request(explicit_count, pin.located) : NULL;
	}
	return request;
}

static bool is_sure(const struct setting *s)
{
	return options[s->option].sure && !strcmp(s->value, options[s->option].bare);
}

/* Return the image of the last setting that gives one. `plain` tells whether only the image can be wrong. */
static const char *image_of(bool *plain)
{
	const char *image = NULL;
	int family = -1;

	*plain = true;
	for (size_t i = 0; i < setting_count; i++) {
		if (is_image(&settings[i])) {
			if (image && (strcmp(image, settings[i].value) || settings[i].option != family))
				*plain = false; /* of a script with several components? */
			family = settings[i].option;
			image = settings[i].value;
			if (settings[i].option == OPTION_CONTAINER_IMAGE && *image != '/' && *image != '.')
				*plain = false;
		} else if (!is_sure(&settings[i])) {
			*plain = false;
		}
	}
	return image;
}

/* A component with an image of its own only has the options that are given with it. A component without one also
 * has the options of the component before it. */
static void begin_component(void)
{
	size_t own = setting_count - carried;
	bool named = false;

	for (size_t i = carried; i < setting_count; i++)
		named |= is_image(&settings[i]);
	if (!named)
		return;
	for (size_t i = 0; i < carried; i++)
		free(settings[i].value);
	memmove(settings, settings + carried, own * sizeof(*settings));
	setting_count = own;
}

/* Keep the explicit settings for the next component, without the defaults from the environment. */
static void end_component(size_t explicit_count)
{
	while (setting_count > explicit_count)
		free(settings[--setting_count].value);
	carried = setting_count;
}

/* Whether the components of an sbatch or salloc have different images. They can't, because there is only one script
 * or shell to run. */
static bool differs_by_component(void)
{
	const char *first = NULL;

	for (size_t i = 0; i < setting_count; i++) {
		if (!is_image(&settings[i]))
			continue;
		if (first && strcmp(first, settings[i].value))
			return command_line_has(":", 1);
		first = settings[i].value;
	}
	return false;
}

/* Whether --multi-prog may have been given; Slurm doesn't tell plugins. A word of the
 * command may look like it, so the node checks again. */
static bool may_be_multi_prog(void)
{
	return getenv("SLURM_SRUN_MULTI") || command_line_has("--multi-prog", strlen("--mu"));
}

/* Exit here, because after an error Slurm 22.05's srun goes on and ends with status 0. */
static void __attribute__((noreturn)) refuse(void)
{
	exit(EXIT_USAGE);
}

int request_post_opt(int ac, char **av)
{
	bool srun = spank_context() == S_CTX_LOCAL, plain;
	size_t explicit_count;
	const char *image;
	char *request = NULL;

	if (srun)
		begin_component();
	explicit_count = setting_count;
	unsetenv(REQUEST_VARIABLE);
	unsetenv(MULTI_PROG_VARIABLE);
	unsetenv(EXPORTED_VARIABLE);
	unsetenv(COMMAND_VARIABLE);
	if (options_unusable())
		refuse();
	if (!srun && !strcmp(submitter(), "salloc") && anchor_own_defaults()) {
		complain("can't anchor the relative paths in " SRUN_PREFIX "*");
		refuse();
	}
	if (options_add_defaults(explicit_count)) {
		complain("can't collect the options");
		refuse();
	}
	if (use_pin()) {
		complain("can't pin the image");
		refuse();
	}
	image = image_of(&plain);
	if (!image && option_given(OPTION_CONTAINER_NAME, setting_count)) {
		/* The node has a container of that name, with its image. */
		image = "";
		plain = false;
	}
	if (!image) {
		if (!explicit_count && (!srun || !components_add(&request)))
			return ESPANK_SUCCESS;
		complain("--%s: --%s is missing", options[settings[0].option].name,
			 options[options[settings[0].option].group ? OPTION_CONTAINER_IMAGE : OPTION_IMAGE].name);
		refuse();
	}
	if (!srun && differs_by_component()) {
		complain("--%s=%s: all components of one command have the same image; "
			 "use an srun for each",
			 options[option_given(OPTION_CONTAINER_IMAGE, setting_count) ? OPTION_CONTAINER_IMAGE :
										OPTION_IMAGE].name,
			 image);
		refuse();
	}
	if (other_container(0))
		refuse();
	request = checked_request(explicit_count, image, plain, ac, av);
	if (srun && request)
		broadcast_in_job(&request, ac, av);
	if (!request || (srun && components_add(&request)) || setenv(REQUEST_VARIABLE, request, 1) ||
	    (may_be_multi_prog() && setenv(MULTI_PROG_VARIABLE, "1", 1)) || publish_exported() ||
	    (spank_context() == S_CTX_ALLOCATOR && options_publish_defaults())) {
		complain("can't publish the options: %s", strerror(errno));
		refuse();
	}
	free(request);
	if (srun)
		end_component(explicit_count);
	return ESPANK_SUCCESS;
}
