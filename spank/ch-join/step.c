/* SPDX-License-Identifier: Apache-2.0 */
/* Derives a join's tag, its number of peers and this process's rank from Slurm's variables or mpirun's, by
 * the rules of slurm_ch/request/step.py.
 *
 * If a variable makes no sense, all is left to Python, which reports the error.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "step.h"

#define DIGITS 12
#define TASKS_MAX (1 << 20)
#define PART_MAX 64
#define BATCH 4294967291u

static const char *const ranks[] = { "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID" };
enum source { OPEN_MPI, HYDRA, SLURM, NO_SOURCE };

static bool variable(const char *name, uint64_t *n)
{
	const char *text = getenv(name);

	return text && read_number(text, DIGITS, n);
}

/* Append to the tag; return false if it becomes too long. */
static bool __attribute__((format(printf, 2, 3))) add(struct step *s, const char *format, ...)
{
	size_t n = strlen(s->tag);
	va_list args;
	int more;

	va_start(args, format);
	more = vsnprintf(s->tag + n, sizeof(s->tag) - n, format, args);
	va_end(args);
	return more >= 0 && n + more < sizeof(s->tag);
}

/* Copy text, with "_" for each character that a tag may not have. */
static const char *safe(const char *text, char out[PART_MAX + 1])
{
	size_t n = 0;

	for (; n < PART_MAX && text[n]; n++)
		out[n] = strchr(TAG_LETTERS, text[n]) ? text[n] : '_';
	out[n] = '\0';
	return out;
}

static pid_t parent(pid_t pid, char name[32])
{
	char path[32], text[512], *end;
	ssize_t n;
	int fd;

	*name = '\0';
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (fd >= 0)
		close(fd);
	if (n <= 0)
		return 0;
	text[n] = '\0';
	end = strrchr(text, ')');
	if (!end || !strchr(text, '(') || strlen(end) < 5)
		return 0;
	snprintf(name, 32, "%.*s", (int)(end - strchr(text, '(') - 1), strchr(text, '(') + 1);
	return atoi(end + 4);
}

/* Return the nearest ancestor whose name begins with `name`; 0 if there is none. */
static pid_t ancestor(const char *name)
{
	char its[32];

	for (pid_t pid = getppid(); pid > 1;) {
		pid_t above = parent(pid, its);

		if (!above && !*its)
			return 0;
		if (!strncmp(its, name, strlen(name)))
			return pid;
		pid = above;
	}
	return 0;
}

static bool step_id(uint64_t *id)
{
	const char *text = getenv("SLURM_STEP_ID");
	bool minus;

	*id = BATCH;
	if (!text)
		return true;
	minus = *text == '-';
	if (!read_number(text + minus, DIGITS, id))
		return false;
	*id = (uint32_t)(minus ? -*id : *id);
	return true;
}

/* Append what all ranks that one mpirun has started on this node have in common. */
static bool add_starter(struct step *s)
{
	char part[PART_MAX + 1];
	const char *name = getenv("PMIX_NAMESPACE"), *dot = *s->tag ? "." : "";

	if (getenv("OMPI_COMM_WORLD_LOCAL_SIZE") && name && *name)
		return add(s, "%smpirun-%s", dot, safe(name, part));
	if (!getenv(HYDRA_COUNT))
		return true;
	s->starter = ancestor(HYDRA_PROXY);
	if (!s->starter)
		s->starter = getppid();
	return add(s, "%shydra-%d", dot, s->starter);
}

static bool make_tag(struct step *s)
{
	static const char *const words[] = { "interactive", "batch", "extern" };
	const char *component = getenv("SLURM_HET_JOB_OFFSET"), *node = getenv("SLURMD_NODENAME");
	const char *restarts = getenv("SLURM_RESTART_COUNT"), *ids = getenv("SLURM_GTIDS");
	uint64_t job, id, number;
	char part[PART_MAX + 1], first[DIGITS + 1];

	if (!getenv("SLURM_JOB_ID")) {
		if (!add_starter(s))
			return false;
		if (!*s->tag) {
			s->starter = getppid();
			return add(s, "parent-%d", s->starter);
		}
		return true;
	}
	if (!variable("SLURM_JOB_ID", &job) || !step_id(&id))
		return false;
	if (!component || !*component)
		component = ids ? ids : "0";
	snprintf(first, sizeof(first), "%.*s",
		 (int)(component == ids ? strcspn(ids, ",") : strlen(component)), component);
	if (!read_number(first, DIGITS, &number) ||
	    (component == ids ? strcspn(ids, ",") : strlen(component)) > DIGITS)
		return false;
	if (!add(s, "%" PRIu64 ".", job))
		return false;
	if (id >= BATCH - 1 && id <= BATCH + 1 ? !add(s, "%s.", words[id - (BATCH - 1)]) :
						 !add(s, "%" PRIu64 ".", id))
		return false;
	if (!add(s, "%s.%s", first, safe(node && *node ? node : "node", part)))
		return false;
	if (restarts && strcmp(restarts, "0") && !add(s, ".%s", safe(restarts, part)))
		return false;
	return add_starter(s);
}

/* Read this node's item of a list like 4(x2),3; return false if it isn't such a list. */
static bool slurm_count(const char *text, uint64_t node, uint64_t *count)
{
	for (;;) {
		size_t n = strspn(text, "0123456789");
		char digits[DIGITS + 1];
		uint64_t repeat = 1;

		if (!n || n > DIGITS)
			return false;
		snprintf(digits, sizeof(digits), "%.*s", (int)n, text);
		*count = strtoull(digits, NULL, 10);
		text += n;
		if (!strncmp(text, "(x", 2)) {
			text += 2;
			n = strspn(text, "0123456789");
			if (!n || n > DIGITS || text[n] != ')')
				return false;
			repeat = strtoull(text, NULL, 10);
			if (!repeat)
				return false;
			text += n + 1;
		}
		if (*text && *text != ',')
			return false;
		if (node < repeat)
			return true;
		node -= repeat;
		if (!*text++)
			return false;
	}
}

/* Read how many peers this node has, and from whose variable. */
static bool count_peers(uint64_t *count, enum source *source)
{
	const char *list = getenv("SLURM_STEP_TASKS_PER_NODE");
	uint64_t node;

	*source = NO_SOURCE;
	if (getenv("OMPI_COMM_WORLD_LOCAL_SIZE")) {
		*source = OPEN_MPI;
		return variable("OMPI_COMM_WORLD_LOCAL_SIZE", count);
	}
	if (getenv(HYDRA_COUNT)) {
		*source = HYDRA;
		return variable(HYDRA_COUNT, count);
	}
	if (list) {
		*source = SLURM;
		return variable("SLURM_NODEID", &node) && slurm_count(list, node, count);
	}
	return variable("SLURM_CPUS_ON_NODE", count);
}

bool step_read(const struct words *w, struct step *s)
{
	uint64_t count = 0, rank, id;
	enum source source;
	bool counted;

	*s = (struct step){ .rank = -1 };
	counted = count_peers(&count, &source) && count && count <= TASKS_MAX;
	if (!w->peers && (!counted || count > JOIN_MAX))
		return false;
	s->peers = w->peers ? w->peers : count;
	if (w->tag)
		strcpy(s->tag, w->tag);
	else if (!make_tag(s))
		return false;
	/* A batch script has a rank too, but so has every process that it starts: the same one. And if there
	 * are more peers than ranks, the peers are not the ranks. */
	if (source != NO_SOURCE && counted && s->peers <= count &&
	    (source != SLURM || (step_id(&id) && id != BATCH)) && variable(ranks[source], &rank))
		s->rank = rank;
	strcpy(s->name, "peer");
	if (s->rank >= 0)
		snprintf(s->name, sizeof(s->name), "task %ld", s->rank);
	if (source == SLURM && !w->tag && !w->peers && step_id(&id) && id != BATCH) {
		s->starter = ancestor("slurmstepd");
		s->complete = s->starter;
	}
	return true;
}
