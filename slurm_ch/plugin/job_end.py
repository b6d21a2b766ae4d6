# SPDX-License-Identifier: Apache-2.0
"""Remove a job's named containers when the job has ended, as the job's user.

The plugin starts this program on each node (spank/plugin/job_end.c), with the job and the containers' directory.
"""

from __future__ import annotations

import _signal
import os
import sys

from ..engine import named_containers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_SECONDS = 60


def main(argv: Sequence[str]) -> int:
    """Remove the containers of job `argv[0]`, below the site's directory `argv[1]` if there is one."""
    job, root = argv[0], argv[1] if argv[1:] else None
    # Slurm waits for this program. What is left after the time limit, a later step of the user removes.
    _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    _signal.alarm(_SECONDS)
    try:
        os.chdir("/")
        named_containers.remove_job(root, job)
        named_containers.sweep(root)
    except Exception:
        # Nobody reads a message, and a later step of the user tries again.
        return 1
    return 0


def run() -> None:
    """Run as a program; exits without the interpreter's clean-up."""
    os._exit(main(sys.argv[2:]))
