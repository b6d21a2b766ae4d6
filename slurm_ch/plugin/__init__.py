# SPDX-License-Identifier: Apache-2.0
"""What the SPANK plugin starts: the launcher, and the check where a job is submitted.

On a node, for each step
    launch                  the launcher as a program
    bundled bundle          its modules in one file: loading that, and writing it at the build
    launcher facts tickets  from what the plugin says to the ticket
and where a step asks for it
    command_launcher        `slurm-ch run`
    named_container         a container with a name
    references local_copy   an image from a registry; the copy on the node's own disk
    save record background  --ch-save; Slurm's own record; what no task waits for
Where a job is submitted
    submit_check slurm_words    the request, and what Slurm's own options say about it
    references broadcast    an image from a registry; --ch-broadcast
When a job has ended
    job_end                 its containers with a name are removed
"""
