# SPDX-License-Identifier: Apache-2.0
"""Work that the launcher leaves to a child process, so that no task waits for it. Loaded only if there is some."""

from __future__ import annotations

import os

from .. import linux, log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def in_child(work: Callable[[], object], failure: str) -> None:
    """Call `work` in a child with its own session, and don't wait for it. If fork fails, `failure` is reported."""
    try:
        if os.fork():
            return
    except OSError as error:
        log.info(f"{failure}: {error.strerror}")
        return
    try:
        # While the launcher's end of the tasks' socket is open here, the tasks don't notice that the launcher died.
        linux.close_range(3, 0)
        os.setsid()
        work()
    finally:
        os._exit(0)


def slurm_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for the host's Slurm commands: the job's PATH and SLURM_CONF."""
    return {name: env[name] for name in ("PATH", "SLURM_CONF") if name in env}
