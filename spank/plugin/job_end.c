/* SPDX-License-Identifier: Apache-2.0 */
/* Removes a job's copies of images and its named containers when the job is over, in a process of the job's user.
 *
 * Slurm calls this as root. So the new process first becomes the user, irrevocably. Only then does it look for
 * something to remove, and start a program for that (plugin/job_end.py).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../common/descriptors.h"
#include "plugin.h"

#define NOBODYS_GROUP 65534

/* Become the user, with none of root's rights and no group but the user's own. */
static int become_user(uid_t uid, gid_t gid)
{
	if (geteuid() == 0 && setgroups(0, NULL))
		return -1;
	if (setresgid(gid, gid, gid) || setresuid(uid, uid, uid))
		return -1;
	/* It must be impossible to become root again. */
	return uid && !setuid(0) ? -1 : 0;
}

static void __attribute__((noreturn)) remove_as(uid_t uid, uint32_t job, int ac, char **av)
{
	char *python = site_path("python", DEFAULT_PYTHON, ac, av);
	char *launcher = site_path("launcher", DEFAULT_LAUNCHER, ac, av);
	char *root = site_path("containers", "/", ac, av);
	const int list[] = { DEV_NULL, DEV_NULL, DEV_NULL };
	char *envp[] = { NULL };
	char number[16], *directory;
	struct stat st;
	bool own;

	snprintf(number, sizeof(number), "%u", job);
	if (!python || !launcher || !root)
		_exit(0);
	own = !strcmp(root, "/");
	if (asprintf(&directory, "%s%s%u/" CONTAINERS_OF_JOB "%u", own ? "" : root,
		     own ? CONTAINERS_OWN : CONTAINERS_BELOW, uid, job) < 0 ||
	    lstat(directory, &st))
		_exit(0);
	if (!descriptors_become(list, sizeof(list) / sizeof(*list))) {
		char *argv[] = { python, "-I", "-S", launcher, JOB_END_OPTION, number, own ? NULL : root, NULL };

		execve(python, argv, envp);
	}
	_exit(0);
}

void job_end(spank_t sp, int ac, char **av)
{
	/* Only pyxis' options make something that the user's group matters for; to look the user up may take long. */
	bool pyxis = site_says_yes("pyxis", ac, av);
	struct passwd *user;
	uint32_t job;
	uid_t uid;
	pid_t pid;

	if (spank_get_item(sp, S_JOB_UID, &uid) != ESPANK_SUCCESS ||
	    spank_get_item(sp, S_JOB_ID, &job) != ESPANK_SUCCESS)
		return;
	user = pyxis ? getpwuid(uid) : NULL;
	pid = fork();
	if (pid == 0) {
		if (become_user(uid, user ? user->pw_gid : NOBODYS_GROUP))
			_exit(0);
		broadcast_remove(uid, job, ac, av);
		if (!user)
			_exit(0);
		remove_as(uid, job, ac, av);
	}
	while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
}
