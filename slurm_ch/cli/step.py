# SPDX-License-Identifier: Apache-2.0
"""What --ch-broadcast and --ch-save add before and after a step's containers, for `slurm-ch explain`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from slurm_ch import agreement
from slurm_ch.plugin import broadcast, save

from . import pulling

if TYPE_CHECKING:
    from slurm_ch.engine.container import Container


def before(container: Container) -> list[str]:
    """Return lines for what happens before the job's first step with this image; ChError if that isn't possible."""
    wanted = container.spec
    if wanted.broadcast is None:
        return []
    broadcast.refuse_all_but_files(wanted, container.image.kind)
    place = wanted.broadcast or pulling.site_of(container.caller.environment).broadcast
    place = place or os.path.dirname(agreement.BROADCAST_FILE)
    image = container.image.path
    return [f"copy {image} to {place} of the job's nodes by sbcast, once per job; removed when the job ends"]


def after(container: Container) -> list[str]:
    """Return lines for what happens after the last task; ChError if it is known not to be possible."""
    wanted = container.spec
    if wanted.save is None:
        return []
    env = container.caller.environment
    save.check(container, pulling.site_of(env), env, is_batch=False)
    return [f"save the container in {container.caller.path(wanted.save)} when all tasks have ended with status 0"]
