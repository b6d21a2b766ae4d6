# SPDX-License-Identifier: Apache-2.0
"""The program that `slurm-ch doctor` runs as an ordinary user: make a container, and exit.

make_container.py directory|overlay|squashfs [SQUASHFUSE], or named [ROOT] for a named container.
The exit status is 0, or it prints a line about what failed.

It is a separate program, run by the launcher's interpreter, because /proc/self of a process that
was root belongs to root until its next exec.
"""

import sys

sys.path.insert(0, __file__.rpartition("/slurm_ch/")[0])

from slurm_ch.doctor import as_user, named_containers
from slurm_ch.errors import describe, exit_code

if __name__ == "__main__":
    try:
        kind, where = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
        if kind == named_containers.KIND:
            named_containers.try_place(where)
        else:
            as_user.containerize(kind, where)
    except Exception as error:
        print(describe(error))
        sys.exit(exit_code(error))
