# SPDX-License-Identifier: Apache-2.0
"""Work that a launcher leaves to a child, so that no task waits for it. Loaded only where there is some."""

from __future__ import annotations

import os

from .. import linux, log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def in_child(work: Callable[[], object], failure: str) -> None:
    """Have a child in its own session do the work, without waiting for it; `failure` is said if there can't be one."""
    try:
        if os.fork():
            return
    except OSError as error:
        log.info(f"{failure}: {error.strerror}")
        return
    try:
        # Whoever has the launcher's end of the tasks' socket keeps its death from them.
        linux.close_range(3, 0)
        os.setsid()
        work()
    finally:
        os._exit(0)


def slurms_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return what Slurm's commands get: they are the host's, found as the task would have found them there."""
    return {name: env[name] for name in ("PATH", "SLURM_CONF") if name in env}
