# SPDX-License-Identifier: Apache-2.0
"""What ran, in Slurm's own record of the job: `record=comment` or `record=extra` in plugstack.conf.

Loaded only where a site asks for it. Slurm is asked by a child, before the
launcher leaves the host behind, so that no task waits for the controller.
"""

from __future__ import annotations

import os
import stat
import time

from .. import agreement
from .background import in_child, slurms_environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_SECONDS = 20


def description(path: str, name: str = "") -> str:
    """Return what tells this image from others: path, time of the last change in UTC, size in bytes.

    In front of that the `name` that was asked for, where it is a reference: a path is there already.
    """
    text = f"ch-image={name} {path}" if name.startswith(agreement.REFERENCE_BEGINNINGS) else f"ch-image={path}"
    try:
        status = os.stat(path)
    except OSError:
        return text
    text += time.strftime(" %Y-%m-%dT%H:%M:%SZ", time.gmtime(status.st_mtime))
    return f"{text} {status.st_size}" if stat.S_ISREG(status.st_mode) else text


def note(place: str, what: str, env: Mapping[str, str]) -> None:
    """Have `what` the image is noted in the job's comment or extra field, by the step's first node; doesn't wait."""
    if env.get("SLURM_NODEID", "0") != "0" or not env.get("SLURM_JOB_ID"):
        return
    in_child(lambda: _ask(place, what, env), f"can't note the image in the job's {place}")


def _ask(place: str, text: str, env: Mapping[str, str]) -> None:
    import subprocess

    own = slurms_environment(env)
    job = env["SLURM_JOB_ID"]
    if place == "comment":
        asked = subprocess.run(
            ["squeue", "--noheader", f"--jobs={job}", "--format=%k"],
            check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=own, timeout=_SECONDS,
        )  # fmt: skip
        before = asked.stdout.strip()
        if text in before:
            return
        if before not in ("", "(null)"):
            text = f"{before}; {text}"  # what the user says there stays
    subprocess.run(["scontrol", "update", f"JobId={job}", f"{place}={text}"], check=False, env=own, timeout=_SECONDS)
