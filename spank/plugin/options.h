/* SPDX-License-Identifier: Apache-2.0 */
/* The options, and the values given for them: shared by options.c and request.c. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include "plugin.h"

enum kind { KIND_ONE, KIND_LIST, KIND_FLAG, KIND_OPTIONAL };

struct option {
	const char *name; /* "ch-bind" */
	const char *arg;      /* metavariable, or NULL */
	const char *help;
	const char *bare; /* the value when none is given; NULL: a value is required */
	enum kind kind;
	bool sure; /* if given without a value, valid with every image and every other option */
	enum paths paths;
	/* For options of pyxis: a group of options that exclude each other; NULL: not an option of pyxis. */
	const char *group;
};

#define OPTION(variable, ...) OPTION_##variable,
enum {
#include "options.inc"
	OPTION_COUNT
};
#undef OPTION

extern const struct option options[];

struct setting {
	int option;
	char *value;
};

extern struct setting *settings;
extern size_t setting_count;

const char *option_key(const struct option *o);
bool option_given(int option, size_t explicit_count);
bool options_unusable(void);
int options_add_defaults(size_t explicit_count);
int options_publish_defaults(void);

#endif
