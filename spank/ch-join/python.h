/* SPDX-License-Identifier: Apache-2.0 */
/* Python's part of the installation, from here. */
#ifndef PYTHON_H
#define PYTHON_H

struct python {
	char *interpreter; /* an absolute path */
	char *launcher;
	char *program; /* the command */
};

/* Find it; dies with the reason if it isn't there. */
void python_find(struct python *p);

/* Become the command in Python. */
void python_become(const char *name, const char *how, char **words) __attribute__((noreturn));

#endif
