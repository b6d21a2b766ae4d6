# SPDX-License-Identifier: Apache-2.0
"""An image that several servers can serve: one of them is enough, and the image ends with the last."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_ch import linux
from tests import leftovers
from tests.command import SLURM_CH
from tests.small_images import make_image, squash

from .conftest import settings
from .test_entering import wait_for

START = """
import os, sys
sys.path.insert(0, sys.argv[1])
from slurm_ch.engine import standby_server
print(standby_server.start(os.open(f"/proc/{sys.argv[2]}/ns/user", os.O_RDONLY)))
"""
# A kernel that asks again for what a server leaves unanswered.
RESENDS = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (6, 9)
TOP = str(Path(__file__).parents[2])
# It reads a file for each line, and says what of it is there; all that it needs for that is read before.
COMMAND = 'read x < /marker; echo $$; while read file; do x=; read x < $file; echo "$x."; done'


@pytest.fixture(scope="module")
def image(world_tmp: Path) -> Path:
    root = make_image(world_tmp / "second-server", "one")
    for name in ("second", "third", "fourth"):
        (root / "etc" / name).write_text(f"{name} of the image\n")
    return squash(root, world_tmp / "second-server.sqfs")


def servers() -> set[int]:
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "comm").read_text().startswith("ch-squashfuse"):
                found.add(int(path.name))
        except OSError:
            pass
    return found


class Reader:
    """A command in a container that reads files on request."""

    def __init__(self, image: Path, user: str) -> None:
        before = servers()
        self.process = subprocess.Popen(
            [SLURM_CH, "run", str(image), "--", "sh", "-c", COMMAND],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings(user),  # type: ignore[call-overload]
        )  # fmt: skip
        self.pid = int(self.process.stdout.readline())
        self.servers = servers() - before

    def ask(self, file: str) -> None:
        self.process.stdin.write(file + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        return str(self.process.stdout.readline())

    def read(self, file: str) -> str:
        self.ask(file)
        return self.answer()


def start_another(user: str, pid: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", START, TOP, str(pid)], check=False, capture_output=True, text=True, **settings(user)  # type: ignore[call-overload]
    )  # fmt: skip


def kill(pid: int) -> None:
    """Kill a process that isn't our child, and wait for its end."""
    process = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([process], [], [], 20)[0]
    os.close(process)


def stop(pid: int) -> None:
    """Stop all threads of a process."""
    os.kill(pid, signal.SIGSTOP)
    states = list(Path(f"/proc/{pid}/task").glob("*/stat"))
    wait_for(lambda: all(path.read_text().rpartition(")")[2].split()[0] == "T" for path in states), "its stop")


@pytest.fixture
def reader(image: Path, user: str) -> Iterator[Reader]:
    before = leftovers.Snapshot(1)
    reader = Reader(image, user)
    yield reader
    reader.process.communicate("", timeout=20)
    before.wait_until_clean()


def test_whoever_ends_first(reader: Reader, user: str) -> None:
    """Three servers end one after another; the image ends only with the last."""
    order = list(reader.servers)
    for _ in range(2):
        done = start_another(user, reader.pid)
        assert (done.stdout, done.stderr) == ("True\n", "")
        order += servers() - set(order)
    assert len(order) == 3
    # The second is waiting, and the third for both: it is the third's turn.
    kill(order[1])
    assert reader.read("/etc/second") == "second of the image.\n"
    kill(order[0])
    assert reader.read("/etc/third") == "third of the image.\n"
    kill(order[2])
    assert reader.read("/etc/fourth") in (".\n", "")  # an error, or the shell has its bus error


def test_what_was_asked_meanwhile(reader: Reader, user: str) -> None:
    """Requests that the server had read when it was killed, and others."""
    (first,) = reader.servers
    assert start_another(user, reader.pid).stdout == "True\n"
    stop(first)
    process = os.pidfd_open(first)
    fuse = Path(f"/proc/{first}/cmdline").read_text().split("\0")[-2]
    device = linux.pidfd_getfd(process, int(fuse.rpartition("/")[2]))
    reader.ask("/etc/second")
    assert select.select([device], [], [], 20)[0]
    if RESENDS:
        assert os.read(device, 1 << 17)
    os.close(device)
    kill(first)
    assert reader.answer() == "second of the image.\n"


def test_a_directory_has_none(image_dir: Path, user: str) -> None:
    reader = Reader(image_dir, user)
    assert start_another(user, reader.pid).stdout == "False\n"
    reader.process.communicate("", timeout=20)


def test_somebody_elses(reader: Reader) -> None:
    """Root could enter it, and doesn't."""
    done = start_another("root", reader.pid)
    assert "can't join the container: its namespaces belong to uid" in done.stderr
    assert servers() == reader.servers
