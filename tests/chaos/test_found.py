# SPDX-License-Identifier: Apache-2.0
"""The faults that the campaign has found: each has its own case here, because the short form may not hit it."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import leftovers

from .harness import HANG_SECONDS, Call, Lab, wait_for
from .test_calls import recorded

TASKS = 2


def launcher_calls(lab: Lab) -> list[Call]:
    calls, _ = recorded(lab, "launcher")
    return [call for call in calls if call.process == 0]


def test_a_server_that_answers_with_an_error_hangs_nobody(lab: Lab) -> None:
    """The launcher once read the server's messages until the end of a pipe that a living server keeps open."""
    calls = launcher_calls(lab)
    served = max(call.index for call in calls if call.name == "wait4")
    # The C library's stat(2) and lstat(2) are calls of their own until 2.33.
    looks = [call for call in calls if call.name in ("newfstatat", "stat", "lstat") and call.index > served]
    assert looks
    for call in looks:
        lab.parts["python"].act(call, f"errno {errno.EIO}")
        done = lab.step(tasks=TASKS)
        assert not done.problem(TASKS), (call, done)


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENOMEM])
def test_an_interpreter_or_module_that_cannot_be_loaded_is_one_line(lab: Lab, error: int) -> None:
    """Both once filled the user's screen with tracebacks."""
    opens = [call for call in launcher_calls(lab) if call.name == "openat"]
    for call in opens[:60:6]:
        lab.parts["python"].act(call, f"errno {error}")
        done = lab.step(tasks=TASKS)
        assert not done.problem(TASKS), (call, done)


@pytest.mark.parametrize("who", ["launcher", "server"])
def test_nobody_waits_when_all_tasks_are_gone(lab: Lab, who: str) -> None:
    """A launcher once outlived its step, while it waited for something that did not come."""
    part = lab.parts["squashfuse"] if who == "server" else lab.parts["python"]
    calls, _ = recorded(lab, who)
    # The launcher at its last call but one; the server at its first answer, to the kernel's greeting. A request that it
    # has taken after that, the kernel lets nobody leave.
    call = calls[-2]
    if who == "server":
        call = Call(-1, 0, next(call.number for call in calls if call.name == "writev"))
    lab.leave_alone()
    part.act(call, "hold")

    def kill_tasks(step: subprocess.Popen[bytes]) -> None:
        held = part.wait_until_held()
        assert held
        children = Path(f"/proc/{step.pid}/task/{step.pid}/children").read_text().split()
        assert len(children) == TASKS
        for pid in children:
            os.kill(int(pid), signal.SIGKILL)
        if who == "server":
            # The launcher goes though nobody has answered it; and without it, there is nothing to serve.
            assert wait_for(lambda: not lab.launchers(), HANG_SECONDS)
        part.go()

    done = lab.step(tasks=TASKS, meanwhile=kill_tasks)
    assert done.status
    assert not done.left


FULL_SHM = "mount -t tmpfs -o size={size}k,mode=1777 shm /dev/shm; head -c4096 /dev/zero > /dev/shm/full; "


def without_room(free: int, command: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a shell command where /dev/shm has `free` pages left."""
    script = FULL_SHM.format(size=4 * (free + 1)) + command + "; echo status $?; ls /dev/shm"
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *map(str, words)],
        check=False, capture_output=True, text=True, timeout=HANG_SECONDS, cwd="/",
    )  # fmt: skip


@pytest.mark.parametrize(("free", "count"), [(0, 1), (1, 1), (1, 400)])
def test_a_join_needs_no_room(lab: Lab, free: int, count: int) -> None:
    """Peers meet at a socket: the free space in /dev/shm and the number of peers don't matter."""
    before = leftovers.Snapshot(1)
    words = "--join --join-ct=$3 --join-tag=t --join-timeout=1"
    command = f'setpriv --reuid=$1 --regid=$1 --clear-groups "$2" run {words} "$4" -- /bin/cat /marker'
    done = without_room(free, command, lab.uid, Path(sys.executable).parent / "slurm-ch", count, lab.image)
    assert (done.stdout.splitlines()[-2:], done.stderr) == (["status 0", "full"], ""), done
    # Who keeps the meeting place waits for those that don't come, as long as they may take.
    before.wait_until_clean()


@pytest.mark.parametrize(("free", "count"), [(0, 1), (1, 1), (1, 400)])
def test_no_room_for_the_library_s_join(lab: Lab, free: int, count: int) -> None:
    """A peer once died of SIGBUS in its own segment, and left the segment there."""
    code = "import sys; from slurm_ch.standalone import peers; peers.Peer('t', int(sys.argv[1]), timeout=5).arrive()"
    command = f'setpriv --reuid=$1 --regid=$1 --clear-groups "$2" -c "{code}" $3'
    done = without_room(free, command, lab.uid, sys.executable, count)
    assert done.stdout == "status 1\nfull\n", done
    assert "No space left on device" in done.stderr.splitlines()[-1] or "No space left" in done.stderr, done


@pytest.mark.parametrize("count", [11, 12, 13, 14])
def test_hardly_a_descriptor_left(lab: Lab, count: int) -> None:
    """With one descriptor too few, for the launcher's standard error, it once failed without a message."""
    done = lab.step(tasks=TASKS, before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count)))
    assert not done.problem(TASKS, voices=TASKS), done


def test_no_memory_for_the_launchers_modules(lab: Lab) -> None:
    """A MemoryError has no text of its own."""
    for mib in (3, 4, 5):
        done = lab.step(
            tasks=TASKS, before=lambda mib=mib: resource.setrlimit(resource.RLIMIT_DATA, (mib << 20, mib << 20))
        )  # type: ignore[misc]
        assert not done.problem(TASKS, voices=TASKS), (mib, done)
