# SPDX-License-Identifier: Apache-2.0
"""Steps with a fault at one of their system calls, and what must hold afterwards.

A step's parts (launcher, ch-join, FUSE server) are started through the plugin's
site arguments, which lead to copies of `stepper` here. The sequence of calls is
recorded first; faults are put in by position, so nothing here knows the code's calls.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from slurm_ch import agreement, paths
from slurm_ch.engine import squashfs
from tests.native.conftest import SOURCES
from tests.native.made import ROOT, SPANK

USER = "chuser"

# The command of a step: the image's marker, and a sum of all that makes its container.
LOOK = (
    "/bin/sh",
    "-c",
    "cat /marker; { id; cut -d' ' -f5,6 /proc/self/mountinfo; cat /etc/passwd /etc/group; env; pwd; ls / /dev; } | "
    "grep -v -e SLURM_PROCID -e SLURM_LOCALID | sort | md5sum",
)

# A case that takes longer hangs: generous, because other things may run here.
HANG_SECONDS = 20.0
# What is on its way out may take so long.
PATIENCE_SECONDS = 10.0

REAL = {"python": agreement.DEFAULT_PYTHON, "ch_join": paths.CH_JOIN, "squashfuse": squashfs.SERVER}
# A peer of the named join, without the plugin: `slurm-ch`'s own interpreter.
PEER = "peer"


# Who speaks, of what, and why.
CLEAR = re.compile(
    r"slurm-ch: (n\d+: )?error: (.*\w+.*: .+|the launcher died)|error: slurm_ch: |.*: error while loading shared libraries: .+"
)


# Slurm's own lines: with the program's name, or since 26.05 with the time.
_SLURMS = r"(srun|slurmstepd\S*|salloc|scancel): |\[\d[^]]*\] error: \*\*\* STEP "


class Call:
    """One system call of a recorded run: its process, its number in that process, its name."""

    def __init__(self, process: int, index: int, number: int) -> None:
        self.process = process
        self.index = index
        self.number = number
        self.name = SYSCALLS.get(number, str(number))

    def __repr__(self) -> str:
        return f"{self.process}:{self.index} {self.name}"


def _syscalls() -> dict[int, str]:
    """Return the names of this machine's system calls by number, from the C library's headers."""
    text = subprocess.run(
        ["cc", "-E", "-dM", "-include", "sys/syscall.h", "-x", "c", "/dev/null"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return {int(n): name for name, n in re.findall(r"^#define __NR_(\w+) (\d+)$", text, re.MULTILINE)}


SYSCALLS = _syscalls()


class Part:
    """One part of a step as a stepper, whose fault is in a file beside it."""

    def __init__(self, lab: Path, stepper: Path, kind: str) -> None:
        self.path = lab / kind
        self.real = sys.executable if kind == PEER else REAL[kind]
        self.log = lab / "logs" / f"{kind}.log"
        self.fifo = lab / f"{kind}.fifo"
        shutil.copy(stepper, self.path)
        for end in ("held", "go"):
            os.mkfifo(f"{self.fifo}.{end}")
            os.chmod(f"{self.fifo}.{end}", 0o666)
        self.gate = os.open(f"{self.fifo}.go", os.O_RDWR | os.O_CLOEXEC)
        self.leave_alone()

    def leave_alone(self) -> None:
        """Run the part as it is, untraced."""
        self._plan("rank 999999")

    def record(self, rank: int = -1) -> None:
        """Only write down the calls."""
        self._plan(f"log {self.log}", f"rank {rank}")

    def act(self, call: Call, action: str, rank: int = -1) -> None:
        """Do `action` ("kill", "errno N", "hold") at `call`."""
        if action == "hold":
            action = f"hold {self.fifo}"
        self._plan(f"log {self.log}", f"rank {rank}", f"at {call.process} {call.index} {call.number}", action)

    def _plan(self, *lines: str) -> None:
        # Open at both ends, so that a word stays in it until it is read; a new one for each plan.
        os.close(self.gate)
        self.gate = os.open(f"{self.fifo}.go", os.O_RDWR | os.O_CLOEXEC)
        self.log.unlink(missing_ok=True)
        Path(f"{self.path}.plan").write_text("\n".join([f"real {self.real}", *lines, ""]))

    def calls(self) -> list[Call]:
        """Return the calls of the last run."""
        lines = (line.split() for line in self.log.read_text().splitlines() if not line.startswith("#"))
        return [Call(int(words[0]), int(words[1]), int(words[2])) for words in lines]

    def hit(self) -> str | None:
        """Return the name of the call with the fault in the last run, or None."""
        try:
            found = re.search(r"^# hit \d+ \d+ (\d+)$", self.log.read_text(), re.MULTILINE)
        except FileNotFoundError:
            return None
        return SYSCALLS.get(int(found[1]), found[1]) if found else None

    def wait_until_held(self) -> int | None:
        """Return the pid of the process that is held at its call, or None if none gets there in time."""
        fd = os.open(f"{self.fifo}.held", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not select.select([fd], [], [], HANG_SECONDS)[0]:
                return None
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            return int(os.read(fd, 32) or b"0") or None
        finally:
            os.close(fd)

    def go(self) -> None:
        """Let the process go on that is held, or is about to be."""
        os.write(self.gate, b"x")


class Outcome:
    """How a step ended."""

    def __init__(self, status: int | None, out: str, err: str, seconds: float) -> None:
        self.status = status  # None: it did not end
        self.out = out
        self.err = err
        self.seconds = seconds
        self.left: list[str] = []

    @property
    def lines(self) -> list[str]:
        """The messages, without Slurm's own lines."""
        return [line for line in self.err.splitlines() if not re.match(_SLURMS, line)]

    @property
    def killed(self) -> bool:
        """Whether Slurm reports that a task died by a signal."""
        return bool(re.search(r"^task: (129|1[3-9]\d)$", self.out, re.MULTILINE))

    @property
    def markers(self) -> int:
        """How many tasks read the image's marker."""
        return self.out.splitlines().count("one")

    @property
    def sums(self) -> set[str]:
        """What the tasks have printed about their container."""
        return set(re.findall(r"^([0-9a-f]{32}) ", self.out, re.MULTILINE))

    def problem(
        self, tasks: int, spared: int = 0, voices: int = 1, sums: set[str] | None = None, slurm: bool = False
    ) -> str:
        """Return what is wrong with how a step of `tasks` tasks ended, or "".

        A step is right when all tasks ran in the image and nothing was said, or when it failed with one clear
        line; `spared` tasks may succeed all the same, `voices` may each have their own line. `sums` is what the
        container looks like when nothing is done to it. With `slurm`, Slurm's own line about a task's end will do.
        """
        if self.left:
            return f"left behind: {self.left}"
        if self.status is None:
            return "hangs"
        if "Traceback" in self.err:
            return "traceback"
        if self.status == 0:
            if self.markers != tasks:
                return f"status 0, but {self.markers} of {tasks} tasks were in the image"
            if sums is not None and self.sums != sums:
                return "succeeds in a container that is not what it should be"
            return "" if not self.lines else f"succeeds, but says {self.lines}"
        if not self.lines and (self.killed or (slurm and self.err)):
            return ""
        if self.markers > spared:
            return f"status {self.status}, but {self.markers} tasks ran"
        if not 0 < len(self.lines) <= voices:
            return f"{len(self.lines)} lines: {self.lines}"
        unclear = [line for line in self.lines if not CLEAR.match(line)]
        return f"unclear: {unclear}" if unclear else ""

    def __repr__(self) -> str:
        return f"status {self.status} after {self.seconds:.2f} s, {self.out!r}, {self.err!r}, left {self.left}"


class Lab:
    """A directory with the parts of a step, and runs of steps made of them without Slurm."""

    def __init__(self, tools: Path, image: Path, uid: int | None = None) -> None:
        """Make a lab in a directory of its own below `tools`, where `build_tools` was."""
        self.tools = tools
        self.image = image
        self.uid = pwd.getpwnam(USER).pw_uid if uid is None else uid
        self.place = Path(tempfile.mkdtemp(prefix="lab-", dir=tools))
        self.place.chmod(0o755)
        (self.place / "logs").mkdir()
        (self.place / "logs").chmod(0o1777)
        self.parts = {kind: Part(self.place, tools / "stepper", kind) for kind in (*REAL, PEER)}

    def site(self) -> list[str]:
        """Return the plugin's site arguments that lead to the parts here."""
        launcher = f"launcher={paths.LAUNCHER}"
        return [*(f"{kind}={self.parts[kind].path}" for kind in REAL), launcher]

    def launchers(self) -> list[int]:
        """Return the running launchers of this lab's user."""
        return [pid for pid in Bystanders(self.uid).processes if "/launch.py" in _command(pid)]

    def leave_alone(self) -> None:
        """Do nothing to any part."""
        for part in self.parts.values():
            part.leave_alone()

    def step(
        self,
        *options: str,
        tasks: int = 2,
        command: Sequence[str] = LOOK,
        image: Path | str | None = None,
        meanwhile: Callable[[subprocess.Popen[bytes]], None] | None = None,
        before: Callable[[], None] | None = None,
        wrap: Sequence[str] = (),
        inside: Sequence[str] = (),
        seconds: float = HANG_SECONDS,
    ) -> Outcome:
        """Run a step of `tasks` tasks by the real plugin under a Slurm of the tests' own.

        `meanwhile` is called with the running step's process, `before` in the child before it becomes that. `wrap`
        is a command of root's that executes the words after it, `inside` one of the user's.
        """
        request = "\n".join([f"image={image or self.image}", *options])
        env = {
            "FAKE_SITE": "\n".join(self.site()), "FAKE_RANKS": "1", "SLURM_CH_REQUEST": request, "SLURM_JOB_ID": "1",
            "SLURM_STEP_ID": "0", "SLURMD_NODENAME": "n1", "HOME": "/", "USER": USER, "PATH": "/usr/bin:/bin",
        }  # fmt: skip
        out, err = (_sink(name) for name in ("out", "err"))
        bystanders = Bystanders(self.uid)
        words = [*inside, str(self.tools / "slurmstepd"), "remote", str(tasks), "0", *command]
        who: dict[str, object] = {"user": self.uid, "group": self.uid, "extra_groups": []}
        if wrap:
            words = [*wrap, "setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups", *words]
            who = {}
        started = time.monotonic()
        process = subprocess.Popen(  # type: ignore[call-overload]
            words, env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
            preexec_fn=before, **who,  # noqa: PLW1509 there are no threads
        )  # fmt: skip
        try:
            if meanwhile:
                meanwhile(process)
            status = wait(process, seconds)
            elapsed = time.monotonic() - started
        finally:
            if process.poll() is None:
                bystanders.kill()
                process.wait()
        outcome = Outcome(status, _text(out), _text(err), elapsed)
        outcome.left = bystanders.wait_until_alone()
        return outcome


def build_tools(to: Path) -> Path:
    """Build the labs' programs in the new directory `to`, and return it."""
    to.mkdir(mode=0o755)
    to.chmod(0o755)
    _compile(["-o", str(to / "stepper"), str(Path(__file__).parent / "stepper.c")])
    fake = str(ROOT / "tests/native/fake.c")
    _compile(["-rdynamic", f"-I{SPANK}/plugin", "-o", str(to / "slurmstepd"), fake, *SOURCES, "-ldl"])
    return to


def _compile(arguments: list[str]) -> None:
    subprocess.run(["cc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", *arguments], check=True)


def _sink(name: str) -> int:
    """Return a memory file that several processes can write to."""
    fd = os.memfd_create(name)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    return fd


def _text(fd: int) -> str:
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, errors="replace") as file:
        return file.read()


def wait(process: subprocess.Popen[Any], seconds: float) -> int | None:
    """Return the exit status of `process`, or None when it does not end within `seconds`."""
    if process.poll() is not None:
        return process.returncode
    fd = os.pidfd_open(process.pid)
    try:
        if not select.select([fd], [], [], seconds)[0]:
            return None
        return process.wait()
    finally:
        os.close(fd)


def wait_for(ready: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> bool:
    """Poll until `ready()` or the time limit; return which. For events without a descriptor to wait at."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            return False
        os.sched_yield()
    return True


class Bystanders:
    """The processes and files of a user before a case; after it, there must be no others."""

    def __init__(self, uid: int) -> None:
        self.uid = uid
        self.processes = set(self._processes())
        self.files = set(self._files())

    def _processes(self) -> Iterator[int]:
        """Yield the user's processes, by the kernel's id: it is the same in every namespace."""
        wanted = str(self.uid)
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            try:
                with open(f"/proc/{name}/status") as file:
                    text = file.read()
            except OSError:
                continue
            found = re.search(r"^State:\t(\S)[\s\S]*^Uid:\t(\d+)", text, re.MULTILINE)
            if found and found[2] == wanted and found[1] not in "ZX":
                yield int(name)

    def _files(self) -> Iterator[str]:
        for place in ("/dev/shm", "/tmp", "/var/tmp"):
            with os.scandir(place) as entries:
                for entry in entries:
                    try:
                        # An image storage, which ch-run makes, is meant to stay.
                        if entry.stat(follow_symlinks=False).st_uid == self.uid and not entry.name.endswith(".ch"):
                            yield entry.path
                    except FileNotFoundError:
                        continue

    def left(self) -> list[str]:
        """Return the processes and files that are new."""
        processes = [f"process {pid}: {_command(pid)}" for pid in set(self._processes()) - self.processes]
        return processes + sorted(set(self._files()) - self.files)

    def kill(self) -> None:
        """Kill all new processes of the user, as the end of a step does by its cgroup."""
        for pid in set(self._processes()) - self.processes:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait_until_alone(self) -> list[str]:
        """Wait a while; return what is still there, and remove it, so that the next case begins clean."""
        # A killed process's end can't be waited for by who isn't its parent.
        wait_for(lambda: not self.left())
        left = self.left()
        self.kill()
        for path in set(self._files()) - self.files:
            os.unlink(path)
        return left


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "?"
