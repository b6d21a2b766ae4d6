# SPDX-License-Identifier: Apache-2.0
"""Record the image in Slurm's job record: `record=comment` or `record=extra` in plugstack.conf.

A child process calls Slurm's commands, so that no task waits for slurmctld. It is
started before the launcher leaves the host's namespaces. Loaded only if the site asks for it.
"""

from __future__ import annotations

import os
import stat
import time

from .. import agreement
from .background import in_child, slurm_environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_SECONDS = 20


def description(path: str, name: str = "") -> str:
    """Return a text that identifies the image: its path, time of the last change in UTC, and size in bytes.

    If `name`, as the user gave it, is a reference, it comes first.
    """
    text = f"ch-image={name} {path}" if name.startswith(agreement.REFERENCE_BEGINNINGS) else f"ch-image={path}"
    try:
        status = os.stat(path)
    except OSError:
        return text
    text += time.strftime(" %Y-%m-%dT%H:%M:%SZ", time.gmtime(status.st_mtime))
    return f"{text} {status.st_size}" if stat.S_ISREG(status.st_mode) else text


def note(place: str, what: str, env: Mapping[str, str]) -> None:
    """Write `what` to the job's field `place`, comment or extra, in a child; only on the step's first node."""
    if env.get("SLURM_NODEID", "0") != "0" or not env.get("SLURM_JOB_ID"):
        return
    in_child(lambda: _update(place, what, env), f"can't note the image in the job's {place}")


def _update(place: str, text: str, env: Mapping[str, str]) -> None:
    import subprocess

    own = slurm_environment(env)
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
            text = f"{before}; {text}"  # keep the user's comment
    subprocess.run(["scontrol", "update", f"JobId={job}", f"{place}={text}"], check=False, env=own, timeout=_SECONDS)
