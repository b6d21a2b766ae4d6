/* SPDX-License-Identifier: Apache-2.0 */
/* Combines and separates the requests of an srun of several components, `srun A : B`, each with an
 * image and options of its own.
 *
 * Slurm tells a plugin nothing about components. srun calls the plugin at the end of each
 * component's options, but the variable that the plugin sets is in the environment of all their
 * steps. So that variable has all requests, each marked with what identifies its step: the id of
 * its job, if the job exists already and has several parts; else its rank among the components.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../agreement.h"
#include "plugin.h"

#define MAX_COMPONENTS 128 /* as Slurm has it */

struct component {
	char *request; /* NULL: no image was given so far */
	unsigned group;
	unsigned long job; /* 0: not known yet, or the same for all */
};

static struct component components[MAX_COMPONENTS];
static unsigned component_count;
/* The groups that the words up to the next ":" name, unless srun has read these words for them already. */
static bool pending[MAX_COMPONENTS];
static unsigned parts_read;

static bool names_groups(const char *word)
{
	size_t n = strcspn(word, "=");

	return (n >= strlen("--het") && n <= strlen("--het-group") && !strncmp(word, "--het-group", n)) ||
	       (n >= strlen("--pack") && n <= strlen("--pack-group") && !strncmp(word, "--pack-group", n));
}

/* Mark the groups in a list like "0,2-3". */
static void mark_groups(const char *list)
{
	while (*list) {
		char *end;
		unsigned long first = strtoul(list, &end, 10), last = first;

		if (end == list)
			return;
		if (*end == '-')
			last = strtoul(end + 1, &end, 10);
		for (; first <= last && first < MAX_COMPONENTS; first++)
			pending[first] = true;
		list = end + (*end == ',');
		if (*end && *end != ',')
			return;
	}
}

/* Mark the groups that the words of one component name; `part` counts the components of the command line. */
static void read_groups(unsigned part)
{
	char **line = command_line();
	bool found = false, next = false;
	unsigned at = 0;

	for (char **word = line; word && *word && !found; word++) {
		if (!strcmp(*word, ":")) {
			at++;
		} else if (at == part && next) {
			mark_groups(*word);
			found = true;
		} else if (at == part && names_groups(*word)) {
			found = strchr(*word, '=');
			next = !found;
			if (found)
				mark_groups(strchr(*word, '=') + 1);
		}
	}
	if (!found && part < MAX_COMPONENTS)
		pending[part] = true;
	free(line);
}

/* Return the group for which srun is reading words. srun reads a component's words once for each group that they
 * name, from the lowest on. */
static unsigned next_group(void)
{
	for (bool again = true;; again = false) {
		for (unsigned group = 0; group < MAX_COMPONENTS; group++)
			if (pending[group]) {
				pending[group] = false;
				return group;
			}
		if (!again)
			return parts_read;
		read_groups(parts_read++);
	}
}

/* Return the id of a group's job in this allocation, or 0. */
static unsigned long job_of_group(char **env, unsigned group)
{
	static const char *const names[] = { "SLURM_JOB_ID_HET_GROUP_%u", "SLURM_JOB_ID_PACK_GROUP_%u" };

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		char name[64];

		snprintf(name, sizeof(name), names[i], group);
		if (variable(env, name))
			return strtoul(variable(env, name), NULL, 10);
	}
	return 0;
}

/* Components before the first image have the request of the first component with an image. */
static const char *request_of(unsigned index)
{
	while (index < component_count - 1 && !components[index].request)
		index++;
	return components[index].request;
}

static bool are_alike(void)
{
	for (unsigned i = 1; i < component_count; i++)
		if (strcmp(request_of(i - 1), request_of(i)))
			return false;
	return true;
}

static unsigned rank_of(unsigned index)
{
	unsigned rank = 0;

	for (unsigned i = 0; i < component_count; i++)
		rank += components[i].group < components[index].group;
	return rank;
}

/* Add the request of the component whose options have just been read (NULL if there is none), and replace it by
 * the requests of all components so far. Return -1 if there is no memory, or too many components. */
int components_add(char **request)
{
	struct component *own = &components[component_count];
	char *text = NULL;
	size_t size;
	FILE *out;

	if (component_count == MAX_COMPONENTS)
		return -1;
	own->group = next_group();
	own->job = getenv("SLURM_JOB_ID") ? job_of_group(environ, own->group) : 0;
	own->request = *request ? strdup(*request) : NULL;
	if (*request && !own->request)
		return -1;
	component_count++;
	if (!*request || are_alike())
		return 0;
	out = open_memstream(&text, &size);
	if (!out)
		return -1;
	for (unsigned i = 0; i < component_count; i++)
		fprintf(out, "%s%u:%lu\n%s", COMPONENT_LINE, rank_of(i), components[i].job, request_of(i));
	if (fclose(out)) {
		free(text);
		return -1;
	}
	free(*request);
	*request = text;
	return 0;
}

void components_free(void)
{
	while (component_count)
		free(components[--component_count].request);
	memset(pending, 0, sizeof(pending));
	parts_read = 0;
}

/* Return the rank of this step's component, if the components are in one job; -1 if it can't be found out. Every Slurm
 * release with such steps shows the rank only in the name of slurmstepd's socket, NODE_JOB.STEP.RANK. If two
 * components run on one node, it stays unknown for both. */
static long rank_by_socket(const char *node, uint32_t job, uint32_t step)
{
	FILE *in = node ? fopen("/proc/net/unix", "re") : NULL;
	char *line = NULL, *begin = NULL, *end;
	long rank = -1, other;
	size_t size = 0;

	if (in && asprintf(&begin, "/%s_%u.%u.", node, job, step) < 0)
		begin = NULL;
	while (begin && getline(&line, &size, in) > 0) {
		const char *found = strstr(line, begin);

		if (!found)
			continue;
		other = strtol(found + strlen(begin), &end, 10);
		if (end == found + strlen(begin) || *end != '\n')
			continue;
		if (rank >= 0 && other != rank) {
			rank = -1;
			break;
		}
		rank = other;
	}
	free(begin);
	free(line);
	if (in)
		fclose(in);
	return rank;
}

/* Whether this step is the component that the line identifies. */
static bool is_this_step(const char *line, unsigned long job, long socket, char **env)
{
	char *end;
	unsigned long rank = strtoul(line, &end, 10), of_job = strtoul(end + 1, NULL, 10);

	if (of_job)
		return of_job == job;
	return socket >= 0 ? rank == (unsigned long)socket : job_of_group(env, rank) == job;
}

/* Return this step's request from the requests of all components, or NULL if it can't be found out which that is;
 * freed by the caller. */
char *component_request(spank_t sp, const char *text, char **env)
{
	size_t n = strlen(COMPONENT_LINE);
	uint32_t job, step;
	long socket;

	if (strncmp(text, COMPONENT_LINE, n))
		return strdup(text);
	if (spank_get_item(sp, S_JOB_ID, &job) != ESPANK_SUCCESS ||
	    spank_get_item(sp, S_JOB_STEPID, &step) != ESPANK_SUCCESS)
		return NULL;
	socket = rank_by_socket(variable(env, "SLURMD_NODENAME"), job, step);
	while (*text) {
		const char *begin = text + n, *end;
		bool own = is_this_step(begin, job, socket, env);

		begin += strcspn(begin, "\n");
		begin += *begin == '\n';
		for (end = begin; *end && strncmp(end, COMPONENT_LINE, n);) {
			end += strcspn(end, "\n");
			end += *end == '\n';
		}
		if (own)
			return strndup(begin, end - begin);
		text = end;
	}
	return NULL;
}
