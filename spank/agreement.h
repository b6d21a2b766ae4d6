/* SPDX-License-Identifier: Apache-2.0 */
/* What the plugin, the launcher and ch-join agree on.
 *
 * The Python side has the same in slurm_ch/errors.py, tickets.py,
 * environment.py and launcher.py; a test compares them.
 */
#ifndef AGREEMENT_H
#define AGREEMENT_H

#define EXIT_SETUP 31
#define EXIT_LAUNCHER_DIED 33
#define EXIT_USAGE 64
#define EXIT_CANNOT_EXECUTE 126
#define EXIT_NOT_FOUND 127

#define TICKET_MAGIC "slurmch1"
#define PLAN_HEADER "slurm_ch plan 1"
#define FACTS_MAGIC "slurm_ch facts 1"

/* What a container may pass on to the host where the site doesn't say: site.py's RELAYED. */
#define RELAYED_COMMANDS \
	"srun,sbatch,sbcast,scancel,scontrol,sinfo,squeue,sacct,sattach,sprio,sshare,sstat"

#endif
