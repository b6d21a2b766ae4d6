# SPDX-License-Identifier: Apache-2.0
"""Measure the SquashFS server alone, against our last one with libsquashfuse: look-ups, listings, reading."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from slurm_ch.engine import squashfs

from .stats import Sample

ROOT = Path(__file__).resolve().parent.parent
OURS, BEFORE = "ours", "libsquashfuse's"
# The last commit whose server uses libsquashfuse.
LAST_BEFORE = "84a6b03"
WIDE, DEEP, LOOKUPS, STARTS = 100_000, 100, 5000, 10
# Targets: the server's CPU time, ours / before.
TARGETS = {
    "look-up among 100,000": 0.6,
    "look-up in two levels": 0.3,
    "look-up among 100,000, zstd": 0.4,
    "look-up in two levels, zstd": 0.4,
    "listing of 100,000": 0.8,
    "reading 200 MB, gzip": 1.0,
    "reading 200 MB, zstd": 1.0,
}
WALL_TARGETS = {"start to the first answer": 1.0, "start of a Python program": 0.9}


def before(work: Path) -> Path | None:
    """Build that commit's server; return None without git's history or libsquashfuse."""
    tree = work / "before"
    tree.mkdir()
    archive = subprocess.run(["git", "-C", ROOT, "archive", LAST_BEFORE], check=False, capture_output=True)
    if archive.returncode:
        return None
    subprocess.run(["tar", "-x", "-C", tree], check=True, input=archive.stdout)
    server = tree / "ch-squashfuse_ll"
    subprocess.run(["make", "-s", "-C", tree / "spank", f"OUT={tree}", str(server)], check=False, capture_output=True)
    return server if server.exists() else None


@dataclass
class Served:
    """A mounted image: its root's descriptor and, after its end, what its server has used."""

    root: int
    cpu: float = 0.0
    resident: int = 0


@contextmanager
def served(server: Path, image: Path) -> Iterator[Served]:
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    mount = squashfs._mount_fuse(fuse, str(image))
    with open(image, "rb") as file:
        fds = (file.fileno(), fuse)
        child = subprocess.Popen([server, "-f", *(f"/dev/fd/{fd}" for fd in fds)], pass_fds=fds)
    os.close(fuse)
    here = Served(os.open(f"/proc/self/fd/{mount}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        yield here
    finally:
        # Not ru_maxrss, which includes this process's memory from before the server's exec.
        lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
        here.resident = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
        os.close(here.root)
        os.close(mount)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        here.cpu = usage.ru_utime + usage.ru_stime


def make(work: Path) -> dict[str, Path]:
    """Make the images: many names in one directory and in two levels, and 200 MB of data."""
    trees = work / "server-trees"
    for number in range(DEEP):
        (trees / f"deep/d{number:03}").mkdir(parents=True)
        for below in range(DEEP):
            (trees / f"deep/d{number:03}/f{below:03}").touch()
    (trees / "wide").mkdir()
    for number in range(WIDE):
        (trees / f"wide/file{number:06}").touch()
    (trees / "data").mkdir()
    dice = random.Random(3)
    for number in range(20):
        words = [dice.randbytes(dice.randint(2, 9)) for _ in range(3000)]
        text = b" ".join(dice.choices(words, k=2_000_000))[: 10 << 20]
        (trees / f"data/{number}").write_bytes(text)
    images = {}
    for tree in ("wide", "deep", "data"):
        for compression in ("gzip", "zstd"):
            images[f"{tree}-{compression}"] = to = work / f"{tree}-{compression}.sqfs"
            command = ["mksquashfs", trees / tree, to, "-comp", compression, "-quiet", "-no-progress"]
            subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(trees)
    return images


def _look_up(names: list[str]) -> Callable[[Served], None]:
    def run(here: Served) -> None:
        for name in names:
            os.stat(name, dir_fd=here.root)

    return run


def _list(here: Served) -> None:
    with os.scandir(here.root) as entries:
        assert sum(entry.stat().st_size == 0 for entry in entries) == WIDE


def _read(here: Served) -> None:
    for name in os.listdir(here.root):
        fd = os.open(name, os.O_RDONLY, dir_fd=here.root)
        while os.read(fd, 1 << 20):
            pass
        os.close(fd)


def _start(here: Served) -> None:
    os.stat("usr", dir_fd=here.root)


def _import(here: Served) -> None:
    def enter() -> None:
        os.fchdir(here.root)
        os.chroot(".")

    command = ["/usr/bin/python3", "-I", "-B", "/imports.py"]
    subprocess.run(command, check=True, preexec_fn=enter, stdin=subprocess.DEVNULL, env={})


def cases(images: dict[str, Path], python: Path) -> list[tuple[str, Path, Callable[[Served], None], int]]:
    """Return name, image, what is done, and how many times (each with a new server)."""
    dice = random.Random(5)
    wide = dice.sample([f"file{number:06}" for number in range(WIDE)], LOOKUPS)
    deep = [f"d{number // DEEP:03}/f{number % DEEP:03}" for number in range(DEEP * DEEP)]
    dice.shuffle(deep)
    return [
        ("look-up among 100,000", images["wide-gzip"], _look_up(wide), 1),
        ("look-up in two levels", images["deep-gzip"], _look_up(deep), 1),
        ("look-up among 100,000, zstd", images["wide-zstd"], _look_up(wide), 1),
        ("look-up in two levels, zstd", images["deep-zstd"], _look_up(deep), 1),
        ("listing of 100,000", images["wide-gzip"], _list, 1),
        ("reading 200 MB, gzip", images["data-gzip"], _read, 1),
        ("reading 200 MB, zstd", images["data-zstd"], _read, 1),
        ("start to the first answer", python, _start, STARTS),
        ("start of a Python program", python, _import, 1),
    ]


def rounds(work: Path, python: Path, count: int) -> tuple[list[Sample], dict[str, dict[str, int]]]:
    """Return samples (CPU: the server's), and by case and variant the most memory that a server had."""
    found: list[Sample] = []
    resident: dict[str, dict[str, int]] = {}
    old = before(work)
    servers = {OURS: Path(squashfs.SERVER), **({BEFORE: old} if old else {})}
    dice = random.Random(1)
    for case, image, run, times in cases(make(work), python):
        begin = time.monotonic()
        for number in range(-1, count):
            for variant in dice.sample(sorted(servers), len(servers)):
                wall = cpu = 0.0
                for _ in range(times):
                    start = time.perf_counter()
                    with served(servers[variant], image) as here:
                        run(here)
                        wall += time.perf_counter() - start
                    cpu += here.cpu
                    most = resident.setdefault(case, {})
                    most[variant] = max(most.get(variant, 0), here.resident)
                if number >= 0:  # the first is to warm up
                    found.append(Sample("server", case, variant, number, wall / times, cpu / times))
        print(f"server, {case}: {count} rounds, {time.monotonic() - begin:.0f} s", flush=True)
    return found, resident
