/* SPDX-License-Identifier: Apache-2.0 */
/* Submits a script as slurmrestd and pyslurm do: its text, without reading its #SBATCH lines.
 *
 *   submit SCRIPT OUTPUT    prints the job's number
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <slurm/slurm.h>
#include <slurm/slurm_errno.h>

int main(int argc, char **argv)
{
	static char text[1 << 16];
	char *environment[] = { "PATH=/usr/bin:/bin", NULL };
	submit_response_msg_t *answer;
	job_desc_msg_t job;
	FILE *script = argc == 3 ? fopen(argv[1], "r") : NULL;

	if (!script || !fread(text, 1, sizeof(text) - 1, script))
		return 2;
	fclose(script);
	slurm_init(NULL);
	slurm_init_job_desc_msg(&job);
	job.script = text;
	job.name = "past";
	job.user_id = getuid();
	job.group_id = getgid();
	job.work_dir = "/";
	job.std_out = argv[2];
	job.environment = environment;
	job.env_size = 1;
	job.min_nodes = 1;
	if (slurm_submit_batch_job(&job, &answer)) {
		slurm_perror("submit");
		return 1;
	}
#if SLURM_VERSION_NUMBER >= SLURM_VERSION_NUM(25, 11, 0)
	printf("%u\n", answer->step_id.job_id);
#else
	printf("%u\n", answer->job_id);
#endif
	return 0;
}
