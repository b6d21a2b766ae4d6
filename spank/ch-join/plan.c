/* SPDX-License-Identifier: Apache-2.0 */
/* Reads and carries out the plan: what to do to a task's environment, and how to run its command. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../agreement.h"
#include "ch-join.h"

#define PLAN_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

struct plan plan_read(int fd)
{
	const char *plan, *end;
	struct stat st;
	int seals = fcntl(fd, F_GET_SEALS);

	/* The launcher seals its plan, so that nothing changes while it is read. */
	if (seals < 0 || fstat(fd, &st))
		die(EXIT_SETUP, "can't read the plan: %s", strerror(errno));
	if ((seals & PLAN_SEALS) != PLAN_SEALS)
		die(EXIT_SETUP, "can't read the plan: it is not sealed");
	if (st.st_size < (off_t)sizeof(PLAN_MAGIC))
		die(EXIT_SETUP, "can't read the plan");
	plan = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (plan == MAP_FAILED)
		die(EXIT_SETUP, "can't read the plan: %s", strerror(errno));
	close(fd);
	end = plan + st.st_size;
	if (memcmp(plan, PLAN_MAGIC, sizeof(PLAN_MAGIC)) || end[-1])
		die(EXIT_SETUP, "launcher and ch-join are of different versions");
	return (struct plan){ plan + sizeof(PLAN_MAGIC), end };
}

/* Carry out a record; return false if the next record is to be skipped. */
static bool carry_out(const char *record, struct settings *s)
{
	const char *rest = record + 1;

	switch (*record) {
	case PLAN_SET:
		set_variable(rest, LITERAL);
		break;
	case PLAN_SET_ITEMS:
		set_variable(rest, EXPAND_ITEMS);
		break;
	case PLAN_SET_ANYWHERE:
		set_variable(rest, EXPAND_ANYWHERE);
		break;
	case PLAN_SET_DEFAULT:
		set_default(rest);
		break;
	case PLAN_IF_STILL:
		return is_still(rest);
	case PLAN_UNSET:
		unset_variables(rest);
		break;
	case PLAN_PATH:
		if (*rest == '/')
			add_to_path(rest, true);
		else
			add_to_path("/bin", !*rest);
		break;
	case PLAN_TEMPORARY:
		check_temporary(!*rest);
		break;
	case PLAN_DIRECTORY:
		s->directory = rest;
		break;
	case PLAN_USUAL_DIRECTORY:
		s->usual_directory = rest;
		break;
	case PLAN_LOST_DIRECTORY:
		s->lost_directory = rest;
		break;
	case PLAN_AS_SRUN:
		s->as_srun = true;
		break;
	case PLAN_IMAGES_DIRECTORY:
		s->images_directory = rest;
		break;
	case PLAN_LIKE_CH_RUN:
		exit_codes_of_ch_run();
		break;
	case PLAN_VERBOSITY:
		s->verbosity = atoi(rest);
		messages_level(s->verbosity);
		break;
	case PLAN_COLOR:
		if (strcmp(rest, IF_TERMINAL) || isatty(STDERR_FILENO))
			messages_color();
		break;
	case PLAN_ROOT:
		s->emulates_root = rest;
		break;
	case PLAN_KEYRING:
		s->keeps_keyring = true;
		break;
	default:
		die(EXIT_SETUP, "launcher and ch-join are of different versions");
	}
	return true;
}

struct settings plan_carry_out(struct plan plan)
{
	struct settings s = { .directory = NULL };

	for (const char *r = plan.first; r < plan.end; r += strlen(r) + 1)
		if (!carry_out(r, &s) && r + strlen(r) + 1 < plan.end)
			r += strlen(r) + 1;
	return s;
}
