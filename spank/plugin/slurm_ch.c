/* SPDX-License-Identifier: Apache-2.0 */
/* The functions that Slurm calls. Each passes the call on to the part for its context. */
#include "plugin.h"

#pragma GCC visibility push(default)
SPANK_PLUGIN(slurm_ch, 1);

int slurm_spank_init(spank_t sp, int ac, char **av);
int slurm_spank_init_post_opt(spank_t sp, int ac, char **av);
int slurm_spank_local_user_init(spank_t sp, int ac, char **av);
int slurm_spank_user_init(spank_t sp, int ac, char **av);
int slurm_spank_task_init(spank_t sp, int ac, char **av);
int slurm_spank_task_post_fork(spank_t sp, int ac, char **av);
int slurm_spank_task_exit(spank_t sp, int ac, char **av);
int slurm_spank_exit(spank_t sp, int ac, char **av);
int slurm_spank_job_epilog(spank_t sp, int ac, char **av);

#if SLURM_VERSION_NUMBER >= SLURM_VERSION_NUM(25, 5, 0)
/* If the plugin can't start, Slurm fails the job, and does not drain the node. Before this
 * release, Slurm has neither the variable nor the choice. */
int slurm_spank_init_failure_mode = ESPANK_JOB_FAILURE;
#endif
#pragma GCC visibility pop

/* Of what is not ESPANK_SUCCESS, Slurm 20.11 minds only what is below 0; later releases mind all. */
#define FAILED (-1)

#define UNUSED (void)sp, (void)ac, (void)av

/* plugstack.conf may name this plugin twice: on Debian it includes plugstack.conf.d, and an
 * admin may add that line again. Both lines share this memory. Slurm calls each function
 * once per line, in a row: only the first call of a row counts. */
static unsigned loads;

static bool again(unsigned *calls)
{
	return loads && (*calls)++ % loads != 0;
}

static bool submitting(void)
{
	return spank_context() == S_CTX_LOCAL || spank_context() == S_CTX_ALLOCATOR;
}

int slurm_spank_init(spank_t sp, int ac, char **av)
{
	if (loads++)
		return ESPANK_SUCCESS;
	/* Not on a node: that would drain it. */
	if (submitting() && version_is_of_other_release())
		return FAILED;
	if (submitting() || spank_context() == S_CTX_REMOTE)
		return options_register(sp, ac, av);
	return ESPANK_SUCCESS;
}

int slurm_spank_init_post_opt(spank_t sp, int ac, char **av)
{
	static unsigned calls;

	if (again(&calls))
		return ESPANK_SUCCESS;
	if (submitting())
		return request_post_opt(ac, av);
	return spank_context() == S_CTX_REMOTE ? node_init_post_opt(sp) : ESPANK_SUCCESS;
}

int slurm_spank_local_user_init(spank_t sp, int ac, char **av)
{
	static unsigned calls;

	if (again(&calls))
		return ESPANK_SUCCESS;
	return guard_local_user_init(sp, ac, av) == ESPANK_SUCCESS &&
			       broadcast_local_user_init(sp, ac, av) == ESPANK_SUCCESS ?
		       ESPANK_SUCCESS :
		       FAILED;
}

int slurm_spank_user_init(spank_t sp, int ac, char **av)
{
	static unsigned calls;

	UNUSED;
	if (again(&calls))
		return ESPANK_SUCCESS;
	return node_user_init();
}

int slurm_spank_task_init(spank_t sp, int ac, char **av)
{
	static unsigned calls;

	if (again(&calls))
		return ESPANK_SUCCESS;
	return node_task_init(sp, ac, av);
}

int slurm_spank_task_post_fork(spank_t sp, int ac, char **av)
{
	static unsigned calls;

	UNUSED;
	if (again(&calls))
		return ESPANK_SUCCESS;
	return node_task_post_fork();
}

int slurm_spank_task_exit(spank_t sp, int ac, char **av)
{
	static unsigned calls;

	UNUSED;
	if (again(&calls))
		return ESPANK_SUCCESS;
	return node_task_exit(sp);
}

/* Always a success, because an error here would drain the node. */
int slurm_spank_job_epilog(spank_t sp, int ac, char **av)
{
	static unsigned calls;

	if (!again(&calls))
		job_end(sp, ac, av);
	return ESPANK_SUCCESS;
}

int slurm_spank_exit(spank_t sp, int ac, char **av)
{
	static unsigned calls;

	UNUSED;
	if (!again(&calls)) {
		request_free();
		options_free();
		node_free();
	}
	if (loads && calls % loads == 0)
		loads = 0; /* Slurm may load its plugins again in this process */
	return ESPANK_SUCCESS;
}
