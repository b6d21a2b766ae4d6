# SPDX-License-Identifier: Apache-2.0
"""Helpers of the sandbox's tests: the command, on a terminal too, and what a cluster has left."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm_ch.sandbox.supervisor import descendants

NEEDS_SLURM = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("slurmctld", path="/usr/sbin:/usr/bin") is None,
    reason="needs root and Slurm",
)

ROOT = Path(__file__).resolve().parents[2]
RUNNER = """
import sys
from slurm_ch.cli.sandbox import sandbox
from slurm_ch import errors
try:
    sandbox()
except errors.ChError as error:
    print(errors.describe(error), file=sys.stderr)
    sys.exit(errors.exit_code(error))
"""
COMMAND = [sys.executable, "-c", RUNNER]
# No plugin: it may not be built, and these tests are about the cluster.
BARE = ["--plugstack", "# none"]


def processes_of(place: Path | str) -> list[str]:
    """Return the processes that have `place` in their arguments or environment."""
    needle = os.fsencode(place)
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
            if entry.name.isdigit() and needle in command + (entry / "environ").read_bytes():
                found.append(f"{entry.name} {command!r}")
        except OSError:
            continue
    return found


def sandbox(*arguments: str, cwd: str = "/", **kw: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        COMMAND + BARE + list(arguments),
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **kw},
    )


class Terminal:
    """A sandbox on a terminal of its own, as a person would have it."""

    def __init__(
        self, *arguments: str, before: str = "", after: str = "", redirect: str = "", **environment: str
    ) -> None:
        """`before` and `after` are what root's shell does there."""
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.environ.update(environment, PYTHONPATH=str(ROOT))
            os.chdir("/")
            command = COMMAND + BARE + list(arguments)
            if before or after:
                os.execv("/bin/bash", ["bash", "-c", f"{before}\n{shlex.join(command)} {redirect}\n{after}"])
            os.execv(COMMAND[0], command)
        self.output = ""

    def expect(self, pattern: str, seconds: float = 30) -> re.Match[str]:
        """Read until `pattern` appears."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.output)):
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self.master], [], [], left)[0], self.output
            try:
                self.output += os.read(self.master, 4096).decode(errors="replace")
            except OSError:
                pytest.fail(f"{pattern} did not appear:\n{self.output}")
        return found

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def status(self) -> int:
        """Wait for the end; return the status."""
        while True:
            try:
                if not (data := os.read(self.master, 4096)):
                    break
                self.output += data.decode(errors="replace")
            except OSError:
                break
        os.close(self.master)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def directories_beneath(pid: int) -> set[str]:
    """Return the directories of the clusters that `pid` has started."""
    found = set()
    for child in descendants(pid):
        try:
            arguments = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        except OSError:
            continue
        found |= {arguments[n + 1] for n, x in enumerate(arguments) if x.endswith("/supervisor.py")}
    return found


def assert_gone(directory: str) -> None:
    assert processes_of(directory) == []
    assert not os.path.exists(directory)
