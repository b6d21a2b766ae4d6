/* SPDX-License-Identifier: Apache-2.0 */
/* Where the user submits: options in, one request out.
 *
 * Strings are collected and forwarded; what they mean is the launcher's
 * business. What can be refused here, is: before the job waits in the queue.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../agreement.h"
#include "plugin.h"

enum kind { KIND_ONE, KIND_LIST, KIND_FLAG, KIND_OPTIONAL };

struct option {
	const char *name; /* "ch-bind" */
	const char *arg;      /* metavariable, or NULL */
	const char *help;
	const char *bare; /* the value when none is given; NULL: one is needed */
	enum kind kind;
	bool sure; /* bare, it is right with every image and every other option */
	enum paths paths;
	/* Of pyxis' options, what is common to those of which one is given; NULL: ours. */
	const char *group;
};

#define OPTION(variable, ...) OPTION_##variable,
enum {
#include "options.inc"
	OPTION_COUNT
};
#undef OPTION

#define OPTION(variable, ...) { __VA_ARGS__ },
static const struct option options[] = {
#include "options.inc"
};
#undef OPTION

/* As Slurm has them. */
#define NO_ARGUMENT 0
#define REQUIRED_ARGUMENT 1
#define OPTIONAL_ARGUMENT 2

struct setting {
	int option;
	char *value;
};

static struct setting *settings; /* as given, in order */
static size_t setting_count;
static bool remote_saw_option, unusable, speaks_pyxis;

static bool is_known(const struct option *o)
{
	return speaks_pyxis || !o->group;
}

/* Whether it says no to an option of that name, and so has no line and no variable of its own. */
static bool is_negation(const struct option *o)
{
	return o->group && !strncmp(o->name, "no-", strlen("no-"));
}

/* What its lines in the request begin with. */
static const char *key(const struct option *o)
{
	return o->name + (!o->group ? strlen("ch-") : is_negation(o) ? strlen("no-") : 0);
}

/* As Slurm's own options have it: each command has its own defaults. */
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
	/* To pyxis, what doesn't begin as a path does is a reference. */
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

	/* On the node the request counts, which has every value; that there was
	 * an option at all must agree with it. */
	if (remote) {
		remote_saw_option = true;
		return 0;
	}
	if (strchr(value, '\n')) {
		slurm_error("slurm_ch: --%s: the value has a newline in it", options[val].name);
		/* An error from here would end some commands with a status of Slurm's. */
		unusable = true;
		return 0;
	}
	return add(val, value);
}

/* In an allocation, Slurm hands sbatch's and salloc's options to srun through
 * the environment as if given there: of a repeated one only the last. Our own
 * SLURM_CH_* variables have them all. */
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
	speaks_pyxis = site_says_yes("pyxis", ac, av) && !beside_pyxis();
	for (int i = 0; i < OPTION_COUNT; i++) {
		const struct option *o = &options[i];
		struct spank_option so = { (char *)o->name, (char *)o->arg, (char *)o->help,
					   argument_of(o), i, on_option };

		if (!is_known(o))
			continue;
		if (spank_option_register(sp, &so) != ESPANK_SUCCESS) {
			slurm_error("slurm_ch: can't register --%s", o->name);
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

static bool given(int option, size_t explicit_count)
{
	for (size_t i = 0; i < explicit_count; i++)
		if (is_same(settings[i].option, option))
			return true;
	return false;
}

/* Whether the image is given in the words of the other family than an option's: then a
 * default of that option's is of another container. */
static bool is_overruled(int option, size_t explicit_count)
{
	if (options[option].group)
		return given(OPTION_IMAGE, explicit_count);
	return option == OPTION_IMAGE && given(OPTION_CONTAINER_IMAGE, explicit_count);
}

/* Put the environment's defaults behind what was given explicitly. */
static int add_defaults(size_t explicit_count)
{
	for (int i = 0; i < OPTION_COUNT; i++) {
		char name[128];
		char *copy, *line, *rest;
		int failed = 0;

		if (!is_known(&options[i]) || is_negation(&options[i]))
			continue;
		variable_name(&options[i], prefix(), name, sizeof(name));
		if (given(i, explicit_count) || is_overruled(i, explicit_count) || !getenv(name))
			continue;
		if (!*getenv(name)) /* empty is as good as unset */
			continue;
		if ((options[i].kind != KIND_LIST || options[i].group) && strchr(getenv(name), '\n')) {
			slurm_error("slurm_ch: %s: the value has a newline in it", name);
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

/* Whether a word of the command line is `word`, cut to no less than `least` letters. */
static bool command_line_has(const char *word, size_t least)
{
	FILE *in = fopen("/proc/self/cmdline", "re");
	char *one = NULL;
	size_t size = 0;
	bool found = false;

	while (in && !found && getdelim(&one, &size, '\0', in) > 0)
		found = strlen(one) >= least && !strncmp(one, word, strlen(one));
	free(one);
	if (in)
		fclose(in);
	return found;
}

/* Tell the node which variables srun's --export names: no plugin is told, and the environment doesn't show
 * which of its variables somebody has chosen. */
static int publish_exported(void)
{
	static const char option[] = "--export";
	const char *in_force = getenv("SLURM_EXPORT_ENV");
	FILE *in = fopen("/proc/self/cmdline", "re");
	char *text = strdup(in_force ? in_force : ""), *one = NULL;
	size_t size = 0, n = strlen(option);
	bool next = false;
	int failed = !text;

	while (in && !failed && getdelim(&one, &size, '\0', in) > 0) {
		bool attached = !strncmp(one, option, n) && one[n] == '=';

		if (attached || next) {
			free(text);
			text = strdup(attached ? one + n + 1 : one);
			failed = !text;
		}
		next = !next && !strcmp(one, option);
	}
	if (!failed && *text && strcasecmp(text, "all") && strcasecmp(text, "none"))
		failed = setenv(EXPORTED_VARIABLE, text, 1);
	free(text);
	free(one);
	if (in)
		fclose(in);
	return failed;
}

static void write_line(FILE *out, const struct setting *s)
{
	fprintf(out, "%s=%s\n", key(&options[s->option]), s->value);
}

/* Defaults first, in the table's order, then what was given, in the order given;
 * last, where the image is, if that is known. Freed by the caller; NULL if there is
 * no memory. */
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

/* What the image's reference came to, kept: Slurm reads the options of a job of several
 * components again for each. */
static struct pin pin;
static char *pinned;

static int replace(struct setting *setting, const char *value)
{
	char *copy = strdup(value);

	if (!copy)
		return -1;
	free(setting->value);
	setting->value = copy;
	return 0;
}

/* From here on the image is the one that its name means now, for all steps of a job;
 * and what was to be pulled again has been. */
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

void options_free(void)
{
	for (size_t i = 0; i < setting_count; i++)
		free(settings[i].value);
	free(settings);
	forget_pin();
	settings = NULL;
	setting_count = 0;
}

/* Return the request, checked, and with the image that its reference means; NULL if
 * there is no memory. */
static char *checked_request(size_t explicit_count, const char *image, bool plain, int ac, char **av)
{
	char *request = write_request(explicit_count, pin.located);
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

/* The image that counts; whether nothing can be wrong but the image. */
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

/* An srun or salloc of several components has one set of options: to Slurm's
 * plugins all are one command line. */
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

/* What sbatch and salloc were given is the default of the steps inside. salloc's relative paths
 * are of this directory; sbatch's of the one where the job starts, which its node knows. */
static int publish_defaults(void)
{
	char *directory = strcmp(submitter(), "salloc") ? NULL : getcwd(NULL, 0);

	for (int i = 0; i < OPTION_COUNT; i++) {
		char name[128];
		char *text = NULL, *there;
		size_t size;
		FILE *out;
		const char *between = options[i].group ? "," : "\n";
		int n = 0, failed;

		if (is_negation(&options[i]))
			continue;
		variable_name(&options[i], SRUN_PREFIX, name, sizeof(name));
		/* What the job's own options have replaced is no default of its steps'. */
		if (is_known(&options[i]) && is_overruled(i, setting_count) && unsetenv(name))
			return -1;
		if (!given(i, setting_count))
			continue;
		out = open_memstream(&text, &size);
		if (!out)
			return -1;
		for (size_t s = 0; s < setting_count; s++) {
			if (settings[s].option != i && strcmp(key(&options[settings[s].option]), key(&options[i])))
				continue;
			if (options[i].kind != KIND_LIST)
				rewind(out);
			there = directory ? anchored(options[i].paths, settings[s].value, directory) : NULL;
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

/* Whether --multi-prog may have been given: no plugin is told. A word of the
 * command may look like it; the node looks closer. */
static bool may_be_multi_prog(void)
{
	return getenv("SLURM_SRUN_MULTI") || command_line_has("--multi-prog", strlen("--mu"));
}

/* Slurm 22.05's srun would go on, and end with status 0, if this failed. */
static void __attribute__((noreturn)) refuse(void)
{
	exit(EXIT_USAGE);
}

int options_post_opt(int ac, char **av)
{
	size_t explicit_count = setting_count;
	const char *image;
	char *request;
	bool plain;

	unsetenv(REQUEST_VARIABLE);
	unsetenv(MULTI_PROG_VARIABLE);
	unsetenv(EXPORTED_VARIABLE);
	unsetenv(COMMAND_VARIABLE);
	if (unusable)
		refuse();
	if (add_defaults(explicit_count)) {
		slurm_error("slurm_ch: can't collect the options");
		refuse();
	}
	if (use_pin()) {
		slurm_error("slurm_ch: can't pin the image");
		refuse();
	}
	image = image_of(&plain);
	if (!image) {
		if (!explicit_count)
			return ESPANK_SUCCESS;
		slurm_error("slurm_ch: --%s: --%s is missing", options[settings[0].option].name,
			    options[options[settings[0].option].group ? OPTION_CONTAINER_IMAGE : OPTION_IMAGE].name);
		refuse();
	}
	if (differs_by_component()) {
		slurm_error("slurm_ch: --%s=%s: all components of one command have the same image; "
			    "use an srun for each",
			    options[given(OPTION_CONTAINER_IMAGE, setting_count) ? OPTION_CONTAINER_IMAGE :
										   OPTION_IMAGE].name,
			    image);
		refuse();
	}
	if (other_container(0))
		refuse();
	request = checked_request(explicit_count, image, plain, ac, av);
	if (!request || setenv(REQUEST_VARIABLE, request, 1) ||
	    (may_be_multi_prog() && setenv(MULTI_PROG_VARIABLE, "1", 1)) || publish_exported() ||
	    (spank_context() == S_CTX_ALLOCATOR && publish_defaults())) {
		slurm_error("slurm_ch: can't publish the options: %s", strerror(errno));
		refuse();
	}
	free(request);
	return ESPANK_SUCCESS;
}
