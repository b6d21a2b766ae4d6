# SPDX-License-Identifier: Apache-2.0
"""The cache of images.

    images/sha256-HEX.sqfs, .json   a finished image and its record, named by the digest of its manifest; never changed
    refs/NAME                       the digest that a name had when it was last resolved
    lock/sha256-HEX                 the process that makes the image at the moment
    tmp/HOST.PID.START.N/           files of a running pull

Locks only save work. Two pulls of one image don't disturb each other, because each writes
its own file, and the first one to link it to its final name wins. So a file system without
locks, or a server with another clock, does no harm.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import contextmanager

from .. import log
from .cache_directory import CacheDirectory
from .manifest import check_digest
from .names import Names
from .records import read_record, remove

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from typing import Any

    from .locks import Lock

# An image's last use is recorded at most this often: each time is a write to a shared file system.
_USED_SECONDS = 86400.0
# On NFS, images that were used within this time are not removed: a client loses an open file if another one removes it.
_NFS_KEPT_SECONDS = 7 * 86400.0

# Errors of link(2) on file systems without hard links.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK, errno.EACCES)


class Cached:
    """A finished image: `size` in bytes, `used` the time of its last use, `site` whether it is in a site's cache."""

    __slots__ = ("digest", "path", "site", "size", "used")

    def __init__(self, digest: str, path: str, status: os.stat_result, site: bool) -> None:
        self.digest = digest
        self.path = path
        self.size = status.st_size
        self.used = status.st_mtime
        self.site = site


class Store(CacheDirectory):
    """The user's cache in `directory`, and the site's caches, which only root writes to."""

    def __init__(self, directory: str, site: Sequence[str] = ()) -> None:
        super().__init__(directory)
        self._site = tuple(site)
        self.names = Names(self, self._site, lambda digest: self.find(digest) is not None)

    def find(self, digest: str) -> str | None:
        """Return the path of the image whose manifest has this digest, or None; the site's caches come first."""
        name = _file_name(digest)
        for directory in self._site:
            path = os.path.join(directory, "images", name)
            if _is_roots(path):
                return path
        path = os.path.join(self.directory, "images", name)
        if not self.is_trusted():
            return None
        try:
            status = os.stat(path)
        except OSError:
            return None
        if status.st_uid != os.geteuid():
            log.warning(f"ignoring {path}: it belongs to uid {status.st_uid}")
            return None
        if time.time() - status.st_mtime > _USED_SECONDS:
            try:
                os.utime(path)
            except OSError as error:
                log.debug(f"{path}: {error.strerror}")
        return path

    def info(self, path: str) -> dict[str, Any]:
        """Return the record of the image at `path`."""
        return read_record(path[: -len(".sqfs")] + ".json")

    def images(self) -> list[Cached]:
        """Return all finished images: the site's first, then the user's, most recently used first."""
        found = []
        for directory in self._site:
            found += [one for one in _list(directory, True) if _is_roots(one.path)]
        return found + sorted(_list(self.directory, False), key=lambda one: -one.used)

    @contextmanager
    def making(self, digest: str, waiting: Callable[[str], None], again: bool = False) -> Iterator[Lock | None]:
        """Wait for the lock of a missing image and yield it; yield None if another process has made the image.

        `waiting` is called from time to time with the other's host and progress. With `again`, yield the
        lock even if the image exists.
        """
        with self.locks.hold(_stem(digest), lambda: None if again else self.find(digest), waiting) as (_, lock):
            yield lock

    def beat(self, digest: str) -> float | None:
        """Return the last sign of life of the process that makes an image; None if nobody makes it."""
        return self.locks.beat(_stem(digest))

    def is_abandoned(self, digest: str) -> bool:
        """Whether the process that makes an image has certainly ended."""
        return self.locks.is_abandoned(_stem(digest))

    def publish(self, file: str, digest: str, info: dict[str, Any], replace: bool = False) -> str:
        """Move a finished file to its final path, and return that. If another process was faster, its file stays."""
        final = os.path.join(self.directory, "images", _file_name(digest))
        try:
            with open(file, "rb") as made:
                os.fchmod(made.fileno(), 0o444)
                os.fsync(made.fileno())
            self.write_record(final[: -len(".sqfs")] + ".json", info)
            if replace:
                os.rename(file, final)
            else:
                _link(file, final)
        except OSError as error:
            raise self.unusable(error) from error
        return final

    def remove(self, image: Cached) -> None:
        """Remove an image from the cache."""
        remove(image.path)
        remove(image.path[: -len(".sqfs")] + ".json")

    def prune(self, older: float | None = None, limit: int | None = None, spare: Collection[str] = ()) -> list[Cached]:
        """Remove images that were not used for `older` seconds, and the least recently used ones until `limit` bytes
        are left; return the removed ones.

        Images whose paths are in `spare` are kept, and on NFS those that were used within a week.
        """
        now = time.time()
        self.names.forget_jobs(now)
        kept = sorted(_list(self.directory, False), key=lambda one: one.used)
        total = sum(one.size for one in kept)
        youngest = now - (_NFS_KEPT_SECONDS if file_system(self.directory).startswith("nfs") else 0)
        removed = []
        for one in kept:
            if one.path in spare or one.used > youngest:
                continue
            if (older is not None and now - one.used > older) or (limit is not None and total > limit):
                self.remove(one)
                total -= one.size
                removed.append(one)
        return removed


def _link(file: str, final: str) -> None:
    try:
        os.link(file, final)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if not os.path.exists(final):
            os.rename(file, final)


def _stem(digest: str) -> str:
    """Return an image's file name without `.sqfs`.

    If a later version of slurm_ch makes other files from the same manifests, it has to use other names.
    """
    return check_digest(digest, "cache").replace(":", "-")


def _file_name(digest: str) -> str:
    return _stem(digest) + ".sqfs"


def _list(directory: str, site: bool) -> list[Cached]:
    place = os.path.join(directory, "images")
    found = []
    try:
        entries = os.listdir(place)
    except OSError:
        return []
    for entry in entries:
        if entry.startswith("sha256-") and entry.endswith(".sqfs"):
            path = os.path.join(place, entry)
            try:
                found.append(Cached(entry[: -len(".sqfs")].replace("-", ":", 1), path, os.stat(path), site))
            except OSError:
                continue
    return found


def _is_roots(path: str) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    if status.st_uid != 0 or not stat.S_ISREG(status.st_mode) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        log.warning(f"ignoring {path}: the site's images are root's files, which nobody else can write to")
        return False
    return True


def file_system(path: str) -> str:
    """Return the type of a directory's file system, as in mountinfo; "" if it can't be determined."""
    try:
        device = os.stat(path).st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        with open("/proc/self/mountinfo") as file:
            for line in file:
                left, _, right = line.partition(" - ")
                if left.split()[2] == wanted:
                    return right.split()[0]
    except (OSError, IndexError):
        pass
    return ""
