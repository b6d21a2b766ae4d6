# SPDX-License-Identifier: Apache-2.0
"""Measure the launcher alone: its start, its imports and its work, in time and in instructions."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from slurm_ch.agreement import (
    DEFAULT_LAUNCHER,
    DEFAULT_PYTHON,
    EXIT_USAGE,
    FACT_REQUEST,
    FACT_TASKS,
    FACT_VARIABLE,
    FACTS_MAGIC,
)

from .stats import FAILED, OK, Sample

_FLAGS = ("-I", "-S")
_ENVIRONMENT = ("SLURM_JOB_ID=1", "SLURM_STEP_ID=0", "SLURM_GTIDS=0", "SLURMD_NODENAME=n1", "PATH=/usr/bin:/bin")

BARE, IMPORTS, DIRECTORY, SQUASHFS = "bare interpreter", "with imports", "directory", "SquashFS"


class Launcher:
    """An installed launcher, started as the plugin does it."""

    def __init__(self, library: Path, user: str, image: Path, sqfs: Path) -> None:
        self.library = library
        self.entry = pwd.getpwnam(user)
        self.images = {DIRECTORY: image, SQUASHFS: sqfs}
        self.nowhere = os.open(os.devnull, os.O_WRONLY)

    def argv(self, variant: str) -> list[str]:
        """Return the command line for a variant; descriptors 3 to 5 are facts, socket and errors."""
        if variant == BARE:
            return [DEFAULT_PYTHON, *_FLAGS, "-c", ""]
        return [
            DEFAULT_PYTHON,
            *_FLAGS,
            os.path.normpath(self.library / "slurm_ch/native" / DEFAULT_LAUNCHER),
            # Without descriptors the launcher loads its modules, reports its usage and ends.
            *([] if variant == IMPORTS else ["3", "4", "5"]),
        ]

    def start(self, variant: str, before: Sequence[str] = (), stderr: int = 2) -> tuple[int, socket.socket]:
        """Start it with `before` in front; return its pid and the tasks' end of the socket."""
        tasks, launcher = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        facts = os.memfd_create("facts")
        records = [FACTS_MAGIC, f"{FACT_REQUEST}image={self.images.get(variant, '')}\n", f"{FACT_TASKS}8"]
        records += [f"{FACT_VARIABLE}{line}" for line in _ENVIRONMENT]
        os.write(facts, "".join(record + "\0" for record in records).encode())
        argv = [*before, *self.argv(variant)]
        child = os.fork()
        if child == 0:
            try:
                ends = (facts, launcher.fileno(), stderr, stderr)
                high = [os.dup2(fd, 100 + index) for index, fd in enumerate(ends)]
                for fd, wanted in zip(high, (3, 4, 5, 2)):
                    os.dup2(fd, wanted)
                os.closerange(6, 200)
                os.setgroups([])
                os.setgid(self.entry.pw_gid)
                os.setuid(self.entry.pw_uid)
                os.chdir("/")
                os.execve(shutil.which(argv[0]) or argv[0], argv, {})
            finally:
                os._exit(1)
        os.close(facts)
        launcher.close()
        return child, tasks

    def once(self, variant: str, number: int) -> list[Sample]:
        """Return the time to the ticket, or without one to the end, and the CPU time until the end."""
        begin = time.perf_counter()
        child, tasks = self.start(variant, stderr=self.nowhere if variant == IMPORTS else 2)
        ticket = bool(tasks.recv(100))
        wall = time.perf_counter() - begin
        _, status, used = os.wait4(child, 0)
        tasks.close()
        good = _is_good(variant, status) and ticket == (variant in self.images)
        cpu = used.ru_utime + used.ru_stime
        return [Sample("launcher", "alone", variant, number, wall, cpu, OK if good else FAILED)]

    def rounds(self, count: int) -> list[Sample]:
        """Return the samples of all variants, interleaved."""
        variants = (BARE, IMPORTS, DIRECTORY, SQUASHFS)
        found = [sample for number in range(-2, count) for variant in variants for sample in self.once(variant, number)]
        print(f"launcher, alone: {count} rounds of {len(variants)}", flush=True)
        return [sample for sample in found if sample.round >= 0]

    def instructions(self) -> dict[str, str]:
        """Return callgrind's counts by variant, or why there is none."""
        valgrind = shutil.which("valgrind")
        if valgrind is None:
            return {"all": "valgrind is not installed"}
        before = (valgrind, "--tool=callgrind", "--callgrind-out-file=/dev/null")
        return {variant: self._count(variant, before) for variant in (BARE, IMPORTS, DIRECTORY)}

    def _count(self, variant: str, before: Sequence[str]) -> str:
        log = os.memfd_create("log")
        child, tasks = self.start(variant, before, stderr=log)
        status = os.waitpid(child, 0)[1]
        tasks.close()
        text = os.pread(log, 1 << 20, 0).decode("utf-8", "replace")
        os.close(log)
        found = re.search(r"Collected : (\d+)", text)
        if not found:
            return "no count"
        count = f"{int(found[1]) / 1e6:.1f} million"
        return count if _is_good(variant, status) else f"{count}, up to a system call that valgrind doesn't know"


def _is_good(variant: str, status: int) -> bool:
    return os.waitstatus_to_exitcode(status) == (EXIT_USAGE if variant == IMPORTS else 0)


def perf_instructions(argv: Sequence[str]) -> str:
    """Return how many instructions `perf stat` counts for a command, or why it can't."""
    perf = shutil.which("perf")
    if perf is None:
        return "perf is not installed"
    done = subprocess.run(
        [perf, "stat", "-x,", "-e", "instructions:u", *argv], check=False, capture_output=True, text=True, timeout=60
    )
    count = done.stderr.strip().split(",")[0]
    return f"{int(count) / 1e6:.1f} million" if count.isdigit() else "not supported on this machine"
