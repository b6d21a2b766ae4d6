# SPDX-License-Identifier: Apache-2.0
"""The program that `slurm-ch enter`, `ps`, `pack` and `rm` run on a job's node, as a step of the job.

on_node.py list JOB | on_node.py enter JOB LABEL STEP|- [CMD...] | on_node.py pack JOB LABEL STEP|- |
on_node.py remove JOB NAME...
"""

import sys

sys.path.insert(0, __file__.rpartition("/slurm_ch/")[0])

import os

from slurm_ch import log
from slurm_ch.attach import here, kept_containers
from slurm_ch.errors import describe, exit_code


def main(words: list[str]) -> None:
    """Carry out a command line; ChError on failure."""
    log.configure(node=os.environ.get("SLURMD_NODENAME", ""))
    if words[0] == "list":
        for line in here.containers(int(words[1])):
            print(line)
        return
    if words[0] == "remove":
        for path in kept_containers.remove(words[2:], words[1], os.environ.get("SLURMD_NODENAME")):
            print(path)
        return
    command, job, label, step, *argv = words
    which = int(job), label, None if step == "-" else step
    if command == "pack":
        here.pack(*which)
    else:
        here.enter(*which, argv)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Exception as error:
        log.error(describe(error))
        sys.exit(exit_code(error))
