/* SPDX-License-Identifier: Apache-2.0 */
/* --ch-broadcast: the image is copied to the nodes' own disks by Slurm's sbcast before a job's first step, and
 * removed at the end of the job.
 *
 * For an srun in a job, the copy is made before srun creates its step: an srun that fails after that leaves the step
 * in the controller, and the job's next srun waits for that step to end. An srun that submits its own job has a job
 * from local_user_init on, and no task yet. Python makes the copy (slurm_ch/plugin/broadcast.py). The copy's name
 * has the user and the job.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plugin.h"

static bool is_requested(const char *request)
{
	static const char *const no[] = { NO_WORDS };
	const char *word;
	size_t n = 0;

	word = last_line(request, "broadcast=", &n);
	for (size_t i = 0; word && i < sizeof(no) / sizeof(*no); i++)
		if (strlen(no[i]) == n && !strncasecmp(no[i], word, n))
			return false;
	return word;
}

/* Whether the command line may be for another job than the environment's, for several components, or for the
 * shell that salloc starts by an srun. If only a word of the command looks like that, the copy is made later. */
static bool is_no_plain_step(void)
{
	static const char *const words[] = { "--jobi", "--interac" };
	char **line = command_line();
	bool found = !line;

	for (char **word = line; !found && *word; word++) {
		found = !strcmp(*word, ":");
		for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
			found |= !strncmp(*word, words[i], strlen(words[i]));
	}
	free(line);
	return found;
}

/* Have the image of an srun in a job copied, and add the copy's path to the request; exit if that fails. */
void broadcast_in_job(char **request, int ac, char **av)
{
	const char *job = getenv("SLURM_JOB_ID");
	char *more;

	if (!job || !*job || strspn(job, "0123456789") != strlen(job) || getenv("SLURM_HET_SIZE") ||
	    !is_requested(*request) || is_no_plain_step())
		return;
	more = precheck_broadcast(*request, job, ac, av);
	if (more) {
		free(*request);
		*request = more;
	}
}

int broadcast_local_user_init(spank_t sp, int ac, char **av)
{
	const char *request = getenv(REQUEST_VARIABLE);
	char job[16], *more;
	uint32_t id, step;
	size_t n;
	int failed;

	if (!request || !is_requested(request) || last_line(request, BROADCAST_LINE, &n) ||
	    spank_get_item(sp, S_JOB_ID, &id) != ESPANK_SUCCESS ||
	    (spank_get_item(sp, S_JOB_STEPID, &step) == ESPANK_SUCCESS && step == SLURM_INTERACTIVE_STEP))
		return ESPANK_SUCCESS;
	if (strstr(request, COMPONENT_LINE)) {
		complain("--ch-broadcast: an srun of several components reads its images where they are");
		return ESPANK_SUCCESS;
	}
	snprintf(job, sizeof(job), "%u", id);
	more = precheck_broadcast(request, job, ac, av);
	failed = more && setenv(REQUEST_VARIABLE, more, 1);
	free(more);
	return failed ? ESPANK_ERROR : ESPANK_SUCCESS;
}

static bool ends_with(const char *text, const char *end)
{
	size_t n = strlen(text), m = strlen(end);

	return n >= m && !strcmp(text + n - m, end);
}

/* Remove the copy that a note names, if the copy's name begins as this job's do. */
static void remove_noted(int directory, const char *note, const char *begin)
{
	char path[PATH_MAX + 1];
	int fd = openat(directory, note, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, path, PATH_MAX);
	const char *slash;

	if (fd >= 0)
		close(fd);
	if (n <= 0)
		return;
	path[n] = '\0';
	path[strcspn(path, "\n")] = '\0';
	slash = strrchr(path, '/');
	if (*path == '/' && !strncmp(slash + 1, begin, strlen(begin)))
		unlink(path);
}

/* Remove a job's copies from this node; called as the user. */
void broadcast_remove(uid_t uid, uint32_t job, int ac, char **av)
{
	static const char usual[] = BROADCAST_FILE;
	const char *name_begins = strrchr(usual, '/') + 1;
	char *place = site_path("broadcast", usual, ac, av), begin[64];
	struct dirent *entry;
	struct stat st;
	DIR *entries;

	if (place && !strcmp(place, usual))
		place[name_begins - usual - 1] = '\0';
	entries = place ? opendir(place) : NULL;
	snprintf(begin, sizeof(begin), "%s%u-%u-", name_begins, uid, job);
	while (entries && (entry = readdir(entries))) {
		const char *name = entry->d_name;

		if (strncmp(name, begin, strlen(begin)) ||
		    fstatat(dirfd(entries), name, &st, AT_SYMLINK_NOFOLLOW) || st.st_uid != uid ||
		    !S_ISREG(st.st_mode))
			continue;
		if (ends_with(name, BROADCAST_NOTE))
			remove_noted(dirfd(entries), name, begin);
		unlinkat(dirfd(entries), name, 0);
	}
	if (entries)
		closedir(entries);
	free(place);
}
