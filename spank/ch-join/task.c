/* SPDX-License-Identifier: Apache-2.0 */
/* Takes a task from its ticket to its command, for the plugin's tasks and `slurm-ch run` alike. */
#define _GNU_SOURCE
#include <fcntl.h>

#include "../agreement.h"
#include "ch-join.h"

void task_run(const struct ticket *t, const char *directory, char **argv)
{
	int copy = sealed_copy();
	int plan_fd = copy < 0 ? -1 : fcntl(t->plan_fd, F_DUPFD_CLOEXEC, 0);
	struct plan plan = plan_read(t->plan_fd);
	struct settings settings;

	ticket_enter(t);
	end_with_keeper();
	if (copy >= 0)
		become_copy(copy, plan_fd, directory, argv);
	settings = plan_carry_out(plan);
	command_run(&settings, directory, argv);
}
