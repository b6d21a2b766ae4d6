# SPDX-License-Identifier: Apache-2.0
"""At a job's end: its containers that have a name are removed, by a process of the job's user.

Started by the plugin on each node (spank/plugin/job_end.c), with nothing but the job and the place.
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
    # What is left then, a later step of the user's finds: Slurm, which waits for this, has other work.
    _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    _signal.alarm(_SECONDS)
    try:
        os.chdir("/")
        named_containers.remove_job(root, job)
        named_containers.sweep(root)
    except Exception:
        # Nobody listens, and a later step of the user's looks again.
        return 1
    return 0


def run() -> None:
    """Run as a program; leaves without the interpreter's clean-up."""
    os._exit(main(sys.argv[2:]))
