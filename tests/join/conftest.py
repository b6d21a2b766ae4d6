# SPDX-License-Identifier: Apache-2.0
"""Peers of a join without Slurm, run by the static program; and what must not be left of them."""

from __future__ import annotations

import os
import pwd
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from slurm_ch import paths
from tests.command import SLURM_CH
from tests.leftovers import descendants, holders

# Whoever waited for the join's own timeout, 30 s, fails here.
WATCHDOG_SECONDS = 20.0
PATIENCE_SECONDS = 5.0


class Peer:
    """A peer, whose output can be read line by line, and whose end can be awaited."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pid = process.pid
        self._text = b""

    def line(self) -> str:
        """Return the next line that it prints, "" at its end."""
        deadline = time.monotonic() + WATCHDOG_SECONDS
        assert self.process.stdout is not None
        while b"\n" not in self._text:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no word from {self.pid}"
            more = os.read(self.process.stdout.fileno(), 4096)
            if not more:
                return ""
            self._text += more
        line, _, self._text = self._text.partition(b"\n")
        return line.decode()

    def end(self) -> tuple[int, str, str]:
        """Return the exit status, the rest of the output, and the errors."""
        try:
            out, err = self.process.communicate(timeout=WATCHDOG_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"peer {self.pid} hangs") from None
        return self.process.returncode, (self._text + out).decode(), err.decode()

    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def go(self) -> None:
        """Let a command that reads a line go on."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.close()
        self.process.stdin = None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, and wait for the end."""
        os.kill(self.pid, number)
        self.process.communicate()


class Place:
    """Where a test's peers meet: by a tag, with an image, as a user."""

    def __init__(self, user: str, image: Path, tag: str) -> None:
        entry = pwd.getpwnam(user)
        self.uid = entry.pw_uid
        self.image = image
        self.tag = tag
        self.peers: list[Peer] = []
        self.program = SLURM_CH
        self.scratch = Path("/nonexistent")

    @property
    def name(self) -> str:
        """The name of the socket, if the tag isn't too long."""
        return f"\0slurm_ch-{self.uid}-{self.tag}"

    def command(
        self, *words: object, count: int = 2, image: object = None, command: Sequence[str] = ("cat", "/marker")
    ) -> list[str]:
        """Return the command line of a peer."""
        given = [f"--join-ct={count}", f"--join-tag={self.tag}", *map(str, words)]
        return [self.program, "run", *given, str(image or self.image), "--", *command]

    def start(self, *words: object, rank: int | None = None, wrap: Sequence[str] = (), **kw: object) -> Peer:
        """Start a peer of this place."""
        popen = {name: kw.pop(name) for name in ("preexec_fn", "env", "cwd") if name in kw}
        ranks = {} if rank is None else {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_SIZE": "1024"}
        env = {"PATH": "/usr/bin:/bin", "HOME": "/", "USER": "chuser", **ranks, **popen.pop("env", {})}  # type: ignore[dict-item]
        return self.execute([*wrap, *self.command(*words, **kw)], env=env, **popen)  # type: ignore[arg-type]

    def execute(self, command: Sequence[str], env: dict[str, str], **popen: object) -> Peer:
        """Start a command as the user."""
        who = {"user": self.uid, "group": self.uid, "extra_groups": [], "cwd": "/"}
        process = subprocess.Popen(  # type: ignore[call-overload]
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **{**who, **popen},
        )  # fmt: skip
        peer = Peer(process)
        self.peers.append(peer)
        return peer

    def holders(self) -> dict[str, int]:
        """Return the pids of holder and guard, by name."""
        return holders()

    def is_bound(self) -> bool:
        """Whether the name is in use."""
        return self.name.replace("\0", "@", 1) in Path("/proc/net/unix").read_text()

    def left(self) -> list[object]:
        """Return what a join has left."""
        words = ("squashfuse_ll", "launch.py", "slurm-ch", "ch-join")
        theirs = [line for pid, line in descendants(1).items() if owner(pid) == self.uid]
        processes = [line for line in theirs if any(word in line for word in words)]
        return [*processes, *self.holders(), *([self.name] if self.is_bound() else [])]

    def wait_until_clean(self) -> None:
        """Wait until nothing is left."""
        wait_for(lambda: not self.left(), lambda: f"left behind: {self.left()}")

    def wait_for_holder(self) -> dict[str, int]:
        """Wait for the holder and its guard, and return them."""
        wait_for(lambda: len(self.holders()) == 2 and self.is_bound(), lambda: f"no holder: {self.holders()}")
        return self.holders()


def owner(pid: int) -> int | None:
    """Return whose process it is; None if it has ended."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except FileNotFoundError:
        return None


def wait_for(ready: Callable[[], object], why: Callable[[], str], seconds: float = PATIENCE_SECONDS) -> None:
    """Poll until `ready()`; for events without a descriptor to wait at."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, why()
        os.sched_yield()


def installed(directory: Path, interpreter: Path) -> str:
    """Install the package in a directory that everybody can reach, with this interpreter; return the command."""
    shutil.copytree(paths.PACKAGE, directory / "slurm_ch")
    (directory / "slurm_ch/native/interpreter").write_text(f"{interpreter}\n")
    (directory / "slurm-ch").symlink_to(directory / "slurm_ch/native/ch-join")
    return str(directory / "slurm-ch")


@contextmanager
def meeting(user: str, image: Path, tag: str) -> Iterator[Place]:
    """A meeting place, of which nothing may be left."""
    one = Place(user, image, tag)
    yield one
    for peer in one.peers:
        if peer.process.poll() is None:
            peer.kill()
        for stream in (peer.process.stdin, peer.process.stdout, peer.process.stderr):
            if stream:
                stream.close()
    try:
        one.wait_until_clean()
    finally:
        for pid in one.holders().values():
            with suppress(ProcessLookupError):  # it may be about to end
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def place(user: str, image_dir: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    """A meeting place of the test's own."""
    tag = f"{request.node.name[:40].replace('[', '.').rstrip(']')}-{os.getpid()}".replace(" ", "_")
    with meeting(user, image_dir, tag) as one:
        yield one
