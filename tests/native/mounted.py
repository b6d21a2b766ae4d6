# SPDX-License-Identifier: Apache-2.0
"""A SquashFS image mounted twice, by our server and by the kernel's own SquashFS, and whether both show the same."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from slurm_ch import paths
from slurm_ch.engine import squashfs

SERVER = Path(paths.NATIVE) / "ch-squashfuse_ll"
WHOLE = 64 << 20  # longer files are looked at in places


@contextmanager
def served(image: Path, *words: str, server: Path = SERVER) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """Mount `image` by our server, attached nowhere; return a path through the mount's descriptor."""
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    mount = squashfs._mount_fuse(fuse, str(image))
    with open(image, "rb") as file:
        fds = (file.fileno(), fuse)
        command = [server, "-f", *words, *(f"/dev/fd/{fd}" for fd in fds)]
        process = subprocess.Popen(
            command,
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    os.close(fuse)
    try:
        yield Path(f"/proc/self/fd/{mount}"), process
    finally:
        os.close(mount)
        process.wait(20)
        if process.stderr:
            process.stderr.close()


@contextmanager
def by_kernel(image: Path, offset: int = 0) -> Iterator[Path]:
    """Mount `image` by the kernel, or unpack it where there is no loop device or no SquashFS."""
    place = image.with_name(image.name + ".kernel")
    place.mkdir()
    command = ["mount", "-t", "squashfs", "-o", f"ro,loop,offset={offset}", str(image), str(place)]
    mounted = subprocess.run(command, check=False, capture_output=True, timeout=60).returncode == 0
    if not mounted:
        subprocess.run(["unsquashfs", "-q", "-n", "-f", "-o", str(offset), "-d", place, image], check=True, timeout=60)
    try:
        yield place
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True, timeout=60)
            place.rmdir()
        else:
            subprocess.run(["rm", "-rf", str(place)], check=True, timeout=60)


def differences(ours: Path, theirs: Path, seed: int = 1) -> list[str]:
    """Send every request to both; return the answers that differ. `theirs` is the kernel's mount, or a directory."""
    comparison = _Comparison(ours, theirs, random.Random(seed))
    comparison.directory("")
    if comparison.entries < 2:
        comparison.found.append("there is nothing to compare")
    return comparison.found


class _Comparison:
    def __init__(self, ours: Path, theirs: Path, dice: random.Random) -> None:
        self.roots = (f"{ours}/", f"{theirs}/")
        self.is_squashfs = os.statvfs(theirs).f_flag & os.ST_RDONLY != 0
        self.dice = dice
        self.entries = 0
        self.found: list[str] = []

    def alike(self, what: str, path: str, ask: Callable[[str], object]) -> object:
        """Ask both; return the answer if it is the same."""
        answers = []
        for root in self.roots:
            try:
                answers.append(ask(root + path))
            except OSError as error:
                # If an image has no attributes, our server tells the kernel not to ask for any.
                number = errno.ENODATA if error.errno == errno.ENOTSUP else error.errno
                answers.append(errno.errorcode[number or 0])
        if answers[0] != answers[1]:
            self.found.append(f"{what} of {path}: {str(answers[0])[:300]} instead of {str(answers[1])[:300]}")
            return None
        return answers[0]

    def directory(self, path: str) -> None:
        self.entry(path, stat.S_IFDIR)
        listing = self.alike("names", path, self._names)
        if not isinstance(listing, list):
            return
        for name, _, kind in listing:
            below = f"{path}/{name}" if path else name
            if kind == stat.S_IFDIR:
                self.directory(below)
            else:
                self.entry(below, kind)
        for name in [name + "!" for name, _, _ in self.dice.sample(listing, min(5, len(listing)))] + ["!", "~~"]:
            self.alike("what isn't there", f"{path}/{name}", self._attributes)

    def entry(self, path: str, kind: int) -> None:
        self.entries += 1
        self.alike("attributes", path, self._attributes)
        names = self.alike("attributes' names", path, self._attribute_names)
        # The kernel lists trusted attributes to root only. Our server lists them to nobody, but returns their values.
        if isinstance(names, list):
            trusted = [name for name in _xattrs(self.roots[1] + path) if name not in names]
            for name in [*names, *trusted, "user.not-there"]:
                self.alike(f"attribute {name}", path, lambda p, name=name: os.getxattr(p, name, follow_symlinks=False))
        if kind == stat.S_IFLNK:
            self.alike("target", path, os.readlink)
        elif kind == stat.S_IFREG:
            self.contents(path)

    def contents(self, path: str) -> None:
        size = os.lstat(self.roots[0] + path).st_size
        if size <= WHOLE:
            self.alike("contents", path, lambda p: Path(p).read_bytes())
        places = [self.dice.randrange(size + 1) for _ in range(4 if size <= WHOLE else 60)] if size else []
        for place in sorted({*places, size - 5 if size > WHOLE else 0}, key=lambda _: self.dice.random()):
            self.alike(f"contents at {place}", path, lambda p, place=place: self._read(p, place, 70_000))

    @staticmethod
    def _attribute_names(path: str) -> list[str]:
        return sorted(name for name in _xattrs(path) if not name.startswith("trusted."))

    def _names(self, path: str) -> list[tuple[str, int, int]]:
        with os.scandir(path) as entries:
            return sorted(
                (entry.name, entry.inode() if self.is_squashfs else 0, self._kind(entry)) for entry in entries
            )

    @staticmethod
    def _kind(entry: os.DirEntry[str]) -> int:
        return (
            stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
            if not entry.is_dir(follow_symlinks=False)
            else stat.S_IFDIR
        )

    def _attributes(self, path: str) -> tuple[int, ...]:
        s = os.lstat(path)
        is_directory = stat.S_ISDIR(s.st_mode)
        common = (s.st_mode, s.st_uid, s.st_gid, int(s.st_mtime))
        if not self.is_squashfs:
            return (*common, 0 if is_directory else s.st_size)
        return (*common, s.st_size, s.st_nlink, s.st_ino, s.st_rdev)

    @staticmethod
    def _read(path: str, place: int, size: int) -> bytes:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            return os.pread(fd, size, place)
        finally:
            os.close(fd)


def _xattrs(path: str) -> list[str]:
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return []
        raise
