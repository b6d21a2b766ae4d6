# SPDX-License-Identifier: Apache-2.0
"""Python's part of the command, as a program: `python3 -I program.py NAME HOW WORDS...`.

The static program executes it, unless the command is a `run` that the static program can handle by itself.
NAME is the name by which the command was called, HOW is how the peers of a join meet.
"""

import sys

sys.path.insert(0, __file__.rpartition("/slurm_ch/")[0])

from slurm_ch import paths

sys.path[1:1] = paths.library_directories()

from slurm_ch.agreement import CH_RUN, MEET_BY_NAME  # noqa: E402

try:
    from slurm_ch.cli import main
except ModuleNotFoundError as error:
    if error.name != "click":
        raise
    # The distribution's package was removed, or belongs to an older Python.
    remedy = "install python3-click, or make install again (docs/admins.rst)"
    sys.exit(f"slurm-ch: error: {sys.executable} has no click any more: {remedy}")

name, how = sys.argv[1:3]
sys.argv[:3] = [name]
if how == MEET_BY_NAME:
    from slurm_ch.standalone import run

    run.sockets_refused()
main.ch_run() if name == CH_RUN else main.main()
