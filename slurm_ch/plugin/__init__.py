# SPDX-License-Identifier: Apache-2.0
"""The programs that the SPANK plugin starts: the launcher, and the check of a submission.

On a node, for each step:
    launch                  the launcher's main program
    bundled bundle          its modules in one file: bundled loads the file, bundle writes it at the build
    launcher facts tickets  read the plugin's facts, make the container, hand out the ticket
On a node, only for steps that need them:
    command_launcher        the launcher for `slurm-ch run`
    named_container         named containers
    references local_copy   images from a registry; the copy of an image on the node's own disk
    save record background  --ch-save; the image in Slurm's job record; work that no task waits for
Where a job is submitted:
    submit_check slurm_words    check the request, and Slurm's own options as far as they matter
    references broadcast    images from a registry; --ch-broadcast
When a job has ended:
    job_end                 remove the job's named containers
"""
