# SPDX-License-Identifier: Apache-2.0
"""Two runs of the tests on one machine don't see each other."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import own_view

ROOT = Path(__file__).parents[2]
INNER = "tests/unit/inner_view.py"


def run(test: str) -> subprocess.Popen[str]:
    """Start one of the inner tests as a run of its own."""
    env = {name: value for name, value in os.environ.items() if name != own_view.ENTERED}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-s", f"{INNER}::{test}"]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def litter() -> Iterator[Path]:
    """What another run could take for its own leftovers: a process, and a file in shared memory."""
    path = Path(f"/dev/shm/slurm_ch-stranger-{os.getpid()}")
    path.touch()
    process = subprocess.Popen(["cat"], executable="/bin/cat", stdin=subprocess.PIPE)
    yield path
    process.communicate()
    path.unlink()


def test_a_run_sees_its_own(litter: Path) -> None:
    assert litter.exists()
    inner = run("test_sees_nobody")
    out, _ = inner.communicate(timeout=60)
    assert (inner.returncode, "1 passed" in out) == (0, True), out


def test_the_users_home_is_the_runs(user: str) -> None:
    """Tests write there: what a developer's user has is neither seen nor changed."""
    file = Path(pwd.getpwnam(user).pw_dir, "of-another-run")
    file.touch()
    inner = run("test_home_is_empty")
    out, _ = inner.communicate(timeout=60)
    file.unlink()
    assert inner.returncode == 0, out


def test_two_runs_have_one_socket_each() -> None:
    """Of the same name: the peers of two runs don't meet."""
    inner = [run("test_has_a_socket") for _ in range(2)]
    ready = [any("waiting" in line for line in one.stdout or ()) for one in inner]
    for one in inner:
        one.communicate("\n", timeout=60)
    assert (ready, [one.returncode for one in inner]) == ([True, True], [0, 0])


def test_what_is_to_be_fetched_goes_by_the_machines_network() -> None:
    out, _ = run("test_networks").communicate(timeout=60)
    own, machines = out.partition("networks ")[2].split()[:2]
    assert machines == os.readlink("/proc/self/ns/net") != own


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_as_ever(number: int) -> None:
    inner = run("test_waits")
    assert inner.stdout is not None
    for line in inner.stdout:
        if "waiting" in line:
            break
    inner.send_signal(number)
    # Its standard input stays open until then: it ends for no other reason.
    assert inner.wait(timeout=60) == {signal.SIGINT: 2, signal.SIGTERM: 128 + 15}[signal.Signals(number)]
    inner.communicate()
