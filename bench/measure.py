# SPDX-License-Identifier: Apache-2.0
"""Run commands and measure them: wall time, CPU time of all processes that were started, memory."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from slurm_ch.sandbox.cluster import Cluster

from .stats import FAILED, HUNG, OK, Sample

TIMEOUT = 30.0
SETTLE_SECONDS = 3.0
PASSES = ("first", "again")


class Account:
    """CPU seconds (user and system) of this process's cgroup less this process itself.

    Everything that is started from here on is in the cgroup, whoever it
    belongs to and whoever its parent is: daemons, tasks, launchers, FUSE
    servers, the living and the dead.
    """

    def __init__(self) -> None:
        self.group: Path | None = None
        self.how = "not measured: no cgroup could be made"
        for parent, usage, scale in (
            ("/sys/fs/cgroup", "cpu.stat", 1e-6),
            ("/sys/fs/cgroup/unified", "cpu.stat", 1e-6),
            ("/sys/fs/cgroup/cpuacct", "cpuacct.usage", 1e-9),
        ):
            group = Path(parent) / f"slurm-ch-bench-{time.time_ns()}"
            if not (Path(parent) / "cgroup.procs").exists():
                continue
            try:
                group.mkdir()
                (group / "cgroup.procs").write_text(str(os.getpid()))
                self._usage, self._scale = group / usage, scale
                self.group = group
                self.now()
            except OSError:
                self.close()
                continue
            self.how = f"cgroup, {usage}"
            break

    def now(self) -> float | None:
        """Return the CPU seconds used so far."""
        if self.group is None:
            return None
        text = self._usage.read_text().split()
        return float(text[1] if len(text) > 1 else text[0]) * self._scale - time.process_time()

    def members(self) -> set[str]:
        """Return the pids of all running processes."""
        return set((self.group / "cgroup.procs").read_text().split()) if self.group else set()

    def close(self) -> None:
        """Leave the cgroup and remove it."""
        group, self.group = self.group, None
        if group is not None and group.exists():
            with suppress(OSError):
                (group.parent / "cgroup.procs").write_text(str(os.getpid()))
                group.rmdir()


@dataclass(frozen=True)
class Run:
    """A command in one of the clusters or, without srun in front, outside of it."""

    variant: str
    cluster: Cluster
    argv: Callable[[str], Sequence[str]]  # from a word that is unique to the run
    timed_inside: bool = False  # the command prints seconds, one number for each part


class Bench:
    """What all suites share: the user, the account, the samples so far."""

    def __init__(self, user: str, account: Account) -> None:
        self.user = user
        self.account = account
        self.samples: list[Sample] = []
        self.trouble: list[str] = []
        self._serial = 0
        self._dice = random.Random(1)

    def rounds(self, suite: str, case: str, runs: Sequence[Run], count: int, warm_up: int = 2) -> None:
        """Run every one of `runs` in each round, in an order that changes from round to round."""
        begin = time.monotonic()
        for number in range(-warm_up, count):
            for run in self._dice.sample(runs, len(runs)):
                samples = self.once(suite, case, run, number)
                if number >= 0:
                    self.samples += samples
        print(f"{suite}, {case}: {count} rounds of {len(runs)}, {time.monotonic() - begin:.0f} s", flush=True)

    def once(self, suite: str, case: str, run: Run, number: int) -> list[Sample]:
        """Run one variant once; return several samples if the command times its own parts."""
        self._serial += 1
        argv = run.argv(f"bench{os.getpid()}n{self._serial}")
        before, cpu = self.account.members(), self.account.now()
        begin = time.perf_counter()
        status, text = OK, ""
        try:
            done = run.cluster.run(argv, user=self.user, timeout=TIMEOUT)
            if done.returncode:
                status, text = FAILED, done.stderr
        except subprocess.TimeoutExpired as error:
            status, text = HUNG, str(error.stderr or "")
        wall = time.perf_counter() - begin
        if not self._settle(before):
            self.trouble.append(f"{suite}, {case}, {run.variant}, round {number}: processes stayed")
        after = self.account.now()
        used = after - cpu if after is not None and cpu is not None else None
        if status != OK:
            self.trouble.append(f"{suite}, {case}, {run.variant}, round {number}: {status}: {text.strip()[:300]}")
            print("  " + self.trouble[-1], flush=True)
        if run.timed_inside:
            passes = [float(word) for word in done.stdout.split()] if status == OK else [wall, wall]
            return [
                Sample(suite, f"{case}, {name}", run.variant, number, seconds, used, status)
                for name, seconds in zip(PASSES, passes)
            ]
        return [Sample(suite, case, run.variant, number, wall, used, status)]

    def _settle(self, before: set[str]) -> bool:
        """Wait until slurmstepd, FUSE servers and similar processes have ended; return whether they have."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while self.account.members() - before:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True


@contextmanager
def measured(user: str) -> Iterator[Bench]:
    """Give a Bench, and remove its cgroup at the end."""
    account = Account()
    try:
        yield Bench(user, account)
    finally:
        account.close()


def memory(run: Run, user: str, words: Sequence[str], account: Account, tasks: int) -> dict[str, tuple[int, int]]:
    """Return (processes, bytes) by program while the step's `tasks` run; its command must last a second.

    The bytes are proportional shares (PSS) but for a FUSE server, whose resident set is given.
    """
    before = account.members()
    process = run.cluster.popen(run.argv(f"memory{time.time_ns()}"), user=user, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + TIMEOUT
        while sum(_name(pid) == words[0] for pid in account.members() - before) < tasks:
            if time.monotonic() > deadline or process.poll() is not None:
                return {}
            time.sleep(0.01)
        # Processes of the set-up have ended when the tasks run, or stay as long as they do.
        time.sleep(0.3)
        found: dict[str, tuple[int, int]] = {}
        for pid in account.members() - before:
            name = _name(pid)
            size = _kib(pid, "status", "VmRSS:") if "fuse" in name else _kib(pid, "smaps_rollup", "Pss:")
            if name and size:
                count, total = found.get(name, (0, 0))
                found[name] = (count + 1, total + size * 1024)
        return found
    finally:
        process.wait(TIMEOUT)


def _name(pid: str) -> str:
    """Return a program's name; a ch-run that isn't the task is the server."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    name = os.path.basename(words[0].decode())
    if name.startswith("ld-linux"):
        name = os.path.basename(words[3].decode())
        return "ch-run (FUSE server)" if name == "ch-run" else name
    return "slurmstepd" if name.startswith("slurmstepd") else name


def _kib(pid: str, file: str, key: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(key)), 0)
