# SPDX-License-Identifier: Apache-2.0
"""The task plan: what `ch-join` does in each task, as records, as bytes, and as a memory file.

A plan is a sequence of records. Each record ends with NUL; its first byte is its kind, one of agreement.py's PLAN_.
"""

from __future__ import annotations

import fcntl

from .. import agreement
from .. import lean_os as os
from ..errors import ChError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

Record = tuple[str, str]
HEADER = agreement.PLAN_MAGIC.encode() + b"\0"

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def encode(records: Sequence[Record]) -> bytes:
    """Return the plan as bytes; ChError if a value has a NUL in it."""
    parts = [HEADER]
    for kind, value in records:
        data = os.fsencode(kind + value)
        if b"\0" in data:
            raise ChError(f"a NUL in an environment rule: {value!r}")
        parts.append(data + b"\0")
    return b"".join(parts)


def describe(record: Record) -> str:
    """Return one line that tells a user what a record does."""
    kind, value = record
    words = {
        agreement.PLAN_SET: "set",
        agreement.PLAN_SET_ITEMS: "set, expanding:",
        agreement.PLAN_SET_ANYWHERE: "set, expanding anywhere:",
        agreement.PLAN_SET_DEFAULT: "set, where there is none:",
        agreement.PLAN_IF_STILL: "for tasks that still have",
        agreement.PLAN_UNSET: "unset",
        agreement.PLAN_PATH: "add to PATH, if they aren't in it, /bin or these:",
        agreement.PLAN_TEMPORARY: "use /tmp if TMPDIR is not there",
        agreement.PLAN_USUAL_DIRECTORY: "start in",
        agreement.PLAN_LOST_DIRECTORY: "note:",
        agreement.PLAN_AS_SRUN: "find the command in the working directory too",
        agreement.PLAN_DIRECTORY: "change directory to",
        agreement.PLAN_IMAGES_DIRECTORY: "directory of the image's own command:",
        agreement.PLAN_LIKE_CH_RUN: "exit with ch-run's codes",
        agreement.PLAN_VERBOSITY: "verbosity",
        agreement.PLAN_COLOR: "color messages",
        agreement.PLAN_ROOT: "emulate root",
        agreement.PLAN_KEYRING: "keep the session keyring",
    }
    return f"environment: {words[kind]} {value}".rstrip()


def plan_file(plan: bytes) -> int:
    """Return a sealed memory file that holds `plan`."""
    try:
        fd = os.memfd_create("slurm_ch-plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        view = memoryview(plan)
        while view:
            view = view[os.write(fd, view) :]
        seal(fd)
    except OSError as error:
        raise ChError("can't write the tasks' plan") from error
    return fd


def seal(fd: int) -> None:
    """Seal a memory file, so that nobody can change it any more."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
