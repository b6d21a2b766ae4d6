# SPDX-License-Identifier: Apache-2.0
"""Each part of a step killed at each of its system calls, and each call failing with each plausible errno."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from typing import Any

import pytest

from .conftest import FULL, Record
from .harness import LOOK, Call, Lab

PARTS = ["launcher", "ch-join", "server"]
KINDS = {"launcher": "python", "ch-join": "ch_join", "server": "squashfuse"}
TASKS = 2
# One of the two tasks' ch-join is struck; the launcher and the server are all tasks'.
RANK = {"ch-join": 1}
SPARED = {"ch-join": 1, "server": TASKS}
COMMAND = {"server": ("/bin/cat", "/marker")}
# A server that fails late fails each task in its own way.
VOICES = {"server": TASKS}

# What a call may fail with on a machine in trouble; calls without a line here: the first line.
PLAUSIBLE = {
    "": (errno.ENOMEM, errno.EIO, errno.EPERM),
    "openat": (errno.EMFILE, errno.ENFILE, errno.EACCES, errno.ENOMEM, errno.EIO, errno.EINTR),
    "openat2": (errno.EMFILE, errno.EACCES, errno.ENOMEM, errno.EIO, errno.EAGAIN),
    "read": (errno.EIO, errno.EINTR, errno.ENOMEM),
    "pread64": (errno.EIO, errno.EINTR),
    "write": (errno.ENOSPC, errno.EIO, errno.EINTR, errno.EPERM, errno.ENOMEM),
    # If /dev/fuse did not take an answer, the asking process would wait; the kernel has no such failure.
    "writev": (),
    # A word to wake up that fails is lost likewise.
    "futex": (),
    "close": (errno.EIO, errno.EINTR),
    "mmap": (errno.ENOMEM,),
    "mprotect": (errno.ENOMEM,),
    "newfstatat": (errno.ENOMEM, errno.EACCES, errno.EIO),
    "unshare": (errno.EPERM, errno.ENOSPC, errno.ENOMEM, errno.EUSERS, errno.EINVAL),
    "setns": (errno.EPERM, errno.ENOMEM, errno.EINVAL, errno.ENOSPC),
    "clone": (errno.EAGAIN, errno.ENOMEM),
    "clone3": (errno.EAGAIN, errno.ENOMEM),
    "mkdir": (errno.ENOSPC, errno.EACCES, errno.EEXIST),
    "move_mount": (errno.EPERM, errno.ENOMEM, errno.ENOSPC),
    "open_tree": (errno.EPERM, errno.ENOMEM, errno.ENOSPC, errno.EMFILE),
    "fsopen": (errno.EPERM, errno.ENODEV, errno.EMFILE, errno.ENOMEM),
    "memfd_create": (errno.EMFILE, errno.ENOMEM),
    "sendmsg": (errno.ETOOMANYREFS, errno.ENOBUFS, errno.EPIPE, errno.ENOMEM),
    "recvmsg": (errno.ENOMEM, errno.EINTR),
    "poll": (errno.EINTR, errno.ENOMEM),
    "rt_sigaction": (errno.EINVAL,),
    "lseek": (errno.EIO,),
    "ioctl": (errno.EIO,),
    # These can't fail, or not with an errno; a limit of memory makes brk fail as the kernel does it.
    **dict.fromkeys(
        ("brk", "arch_prctl", "set_tid_address", "set_robust_list", "rseq", "umask", "getuid", "geteuid", "getegid", "exit_group"), ()
    ),
    "execve": (errno.EACCES, errno.ENOMEM, errno.EIO, errno.ETXTBSY),
}  # fmt: skip

Case = tuple[Call, "int | None"]


def recorded(lab: Lab, part: str) -> tuple[list[Call], set[str]]:
    """Return the calls of a part in an undisturbed step, and what its container looks like."""
    lab.leave_alone()
    lab.parts[KINDS[part]].record(RANK.get(part, -1))
    done = lab.step(tasks=TASKS, command=COMMAND.get(part, LOOK))
    assert not done.problem(TASKS), done
    return lab.parts[KINDS[part]].calls(), done.sums


def strike(lab: Lab, part: str, case: Case, sums: set[str]) -> dict[str, object]:
    """Cause one fault at one call, and return how the step ended."""
    call, error = case
    stepper = lab.parts[KINDS[part]]
    stepper.act(call, "kill" if error is None else f"errno {error}", RANK.get(part, -1))
    done = lab.step(tasks=TASKS, command=COMMAND.get(part, LOOK))
    problem = done.problem(TASKS, SPARED.get(part, 0), VOICES.get(part, 1), sums)
    what = "killed" if error is None else errno.errorcode[error]
    return {
        "problem": f"{part} {what} at {call!r}: {problem}: {done!r}" if problem else "",
        "hit": stepper.hit() is not None,
        "failed": done.status != 0,
        "seconds": done.seconds,
    }


def in_parallel(lab: Lab, part: str, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Return how each case ended, done by as many processes as there are processors.

    Each has a lab and a user of its own: what a case leaves behind is known by its owner.
    """
    pipes = []
    count = min(os.cpu_count() or 1, len(cases))
    for number in range(count):
        reader, writer = os.pipe()
        if os.fork() == 0:
            found: object = "died"
            try:
                mine = Lab(lab.tools, lab.image, 64000 + number)
                _, sums = recorded(mine, part)
                found = [strike(mine, part, case, sums) for case in cases[number::count]]
            except BaseException as error:
                found = repr(error)
            finally:
                with open(writer, "w") as file:
                    json.dump(found, file)
                os._exit(0)
        os.close(writer)
        pipes.append(reader)
    everything = []
    for reader in pipes:
        with open(reader) as file:
            found = json.load(file)
        os.wait()
        assert isinstance(found, list), found
        everything += found
    return everything


def campaign(lab: Lab, part: str, cases: list[Case], record: Record, fault: str, calls: int) -> None:
    found = in_parallel(lab, part, cases)
    seconds = sorted(row["seconds"] for row in found if row["failed"])
    problems = [row["problem"] for row in found if row["problem"]]
    record(
        fault, cases=len(found), calls=calls, hit=sum(row["hit"] for row in found), failed=len(seconds),
        problems=len(problems), slowest=round(seconds[-1], 2) if seconds else None,
    )  # fmt: skip
    assert not problems, "\n".join(problems[:20])
    # Which of a server's threads does what is another matter each time; its last calls may never come.
    assert sum(row["hit"] for row in found) >= (0.5 if part == "server" else 0.9) * len(found)


@pytest.mark.parametrize("part", PARTS)
def test_killed_at_every_call(lab: Lab, part: str, record: Record) -> None:
    calls, _ = recorded(lab, part)
    stride = 1 if FULL else max(1, len(calls) // 16)
    cases: list[Case] = [(call, None) for call in calls[::stride]]
    campaign(lab, part, cases, record, f"kill {part}", len(calls))


@pytest.mark.parametrize("part", PARTS)
def test_every_call_failing(lab: Lab, part: str, record: Record) -> None:
    calls, _ = recorded(lab, part)
    cases: list[Case] = []
    for place, call in enumerate(calls):
        errors = PLAUSIBLE.get(call.name, PLAUSIBLE[""])
        # In the launcher's first half an interpreter starts: there, any errno will do.
        cases += [(call, error) for error in errors[: 1 if part == "launcher" and place < len(calls) // 2 else None]]
    if not FULL:
        cases = cases[len(cases) // 3 :: max(1, len(cases) // 40)]
    campaign(lab, part, cases, record, f"errno {part}", len(calls))
