/* SPDX-License-Identifier: Apache-2.0 */
/* Python's part of the installation, as seen from this program. */
#ifndef PYTHON_H
#define PYTHON_H

struct python {
	char *interpreter; /* an absolute path */
	char *launcher;
	char *program; /* the script of the command slurm-ch */
};

/* Find all three; die with the reason if one is missing. */
void python_find(struct python *p);

/* Become the command in Python: called `name`, with `how` peers are to meet, and its words. */
void python_become(const char *name, const char *how, char **words) __attribute__((noreturn));

#endif
