# SPDX-License-Identifier: Apache-2.0
"""The cache's directory: create it, check that it is safe to use, and clean up its tmp/."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import time
from contextlib import contextmanager

from .. import log
from .locks import CacheError, Locks, identity, is_alive, is_dead, process_name
from .records import read_record, remove, remove_tree
from .settings import CACHE_VARIABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ..errors import ChError

# Files of another host's pull are abandoned if they haven't changed for this time.
_ABANDONED_SECONDS = 86400.0

# Names of a pull's files in tmp/. Other files are not touched: the user's directory may have had a tmp/ before.
_OURS = re.compile(r".+\.\d+\.\d*\.\d+(\.json)?")


class CacheDirectory:
    """A user's cache as a directory, without its images."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.locks = Locks(os.path.join(directory, "lock"))
        self._serial = 0
        self._distrusted = False

    def prepare(self) -> None:
        """Create the cache's directories; CacheError if they can't be written to, or aren't safe to use."""
        umask = os.umask(0o077)
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            status = os.stat(self.directory)
            self._check_owner(status)
            shared = status.st_mode & 0o755
            for name in ("images", "refs", "lock", "tmp"):
                path = os.path.join(self.directory, name)
                if not os.path.isdir(path):
                    os.makedirs(path, mode=0o700, exist_ok=True)
                    if name in ("images", "refs"):
                        # If the user has opened the cache for others, they mean its images.
                        os.chmod(path, shared)
        except OSError as error:
            raise self.unusable(error) from error
        finally:
            os.umask(umask)

    def _check_owner(self, status: os.stat_result) -> None:
        """Raise CacheError if another user owns the cache's directory, or a link to it, or can write to it."""
        link = os.lstat(self.directory)
        if stat.S_ISLNK(link.st_mode) and link.st_uid not in (0, os.geteuid()):
            raise CacheError(f"{self.directory}: a link of uid {link.st_uid}, not yours; the cache isn't used")
        if status.st_uid != os.geteuid():
            raise CacheError(f"{self.directory}: the cache belongs to uid {status.st_uid}, not to you")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise CacheError(f"{self.directory}: others can write to the cache: chmod go-w {self.directory}")

    def is_trusted(self) -> bool:
        """Whether the cache's contents are the user's own, and so its names, digests and images can be trusted."""
        try:
            self._check_owner(os.stat(self.directory))
        except CacheError as error:
            if not self._distrusted:
                log.warning(str(error))
            self._distrusted = True
            return False
        except OSError:
            pass  # it doesn't exist
        return True

    def unusable(self, error: OSError) -> ChError:
        """Return the exception for an error while writing to the cache."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            from . import pack

            return pack.disk_full(self.directory)
        return CacheError(f"can't write to the cache {self.directory} ({CACHE_VARIABLE}=DIR puts it elsewhere)")

    def write_record(self, path: str, record: dict[str, Any]) -> None:
        """Write a record's file atomically; OSError on failure."""
        self._serial += 1
        private = os.path.join(self.directory, "tmp", f"{process_name()}.{self._serial}.json")
        fd = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            with open(fd, "w") as file:
                json.dump(record, file, indent=1)
            os.chmod(private, 0o644)
            os.rename(private, path)
        except BaseException:
            remove(private)
            raise

    @contextmanager
    def scratch(self, within: str | None = None, large: bool = True) -> Iterator[str]:
        """Create a private directory in the cache, or `within` another one; remove it at the end.

        If this process is killed, another one removes a `large` directory soon, others after a day.
        """
        self._serial += 1
        place = within or os.path.join(self.directory, "tmp")
        path = os.path.join(place, f"{'slurm_ch.' if within else ''}{process_name()}.{self._serial}")
        try:
            os.mkdir(path, 0o700)
            if large:
                with open(os.path.join(path, "owner"), "w") as file:
                    json.dump(identity(), file)
        except OSError as error:
            raise self.unusable(error) from error
        try:
            yield path
        finally:
            remove_tree(path)

    def sweep(self, within: str | None = None) -> None:
        """Remove the files of pulls that were killed: those of this host immediately, others after a day."""
        place = within or os.path.join(self.directory, "tmp")
        try:
            entries = os.listdir(place)
        except OSError:
            return
        for entry in entries:
            if not _OURS.fullmatch(entry) or (within is not None and not entry.startswith("slurm_ch.")):
                continue
            path = os.path.join(place, entry)
            try:
                status = os.lstat(path)
            except OSError:
                continue
            if status.st_uid != os.geteuid():
                continue
            owner = read_record(os.path.join(path, "owner")) if stat.S_ISDIR(status.st_mode) else {}
            old = time.time() - status.st_mtime > _ABANDONED_SECONDS
            if is_dead(owner) or (old and not is_alive(owner)):
                log.debug(f"removing {path}, which a pull left")
                if stat.S_ISDIR(status.st_mode):
                    remove_tree(path)
                else:
                    remove(path)
