# SPDX-License-Identifier: Apache-2.0
"""The cache: finished images under the digests of their manifests, and who is making one.

    images/sha256-HEX.sqfs, .json   finished, never changed
    refs/NAME                       which digest a name had when it was last asked for
    lock/sha256-HEX                 who makes it just now
    tmp/HOST.PID.START.N/           what is being made

A lock only saves work. What makes two pulls of one image right is that each
writes a file of its own and the first to link it to its place wins: so a file
system without locks, or a server with another clock, does no harm.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .. import log
from ..errors import ChError
from . import pack
from .making import STALE_SECONDS, CacheError, Lock, identity, is_alive, is_dead, me
from .manifest import check_digest
from .reference import Reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeVar

    _Found = TypeVar("_Found")

_POLL_SECONDS = 0.5
_QUICK_SECONDS = 0.02
# What a job pinned is of no use to anybody long after its end.
_JOB_SECONDS = 60 * 86400.0
# What was being made, on another host, and hasn't been written to for so long.
_ABANDONED_SECONDS = 86400.0
# An image counts as used at this granularity: each note is a write to a shared file system.
_USED_SECONDS = 86400.0
# An NFS server forgets an open file when another client removes it.
_NFS_KEPT_SECONDS = 7 * 86400.0
_RECORD_MAX = 1 << 20

# What pulls leave in tmp/ when they are killed. A directory that somebody chose for a cache may have had a tmp/.
_OURS = re.compile(r".+\.\d+\.\d*\.\d+(\.json)?")

# Where there are no hard links.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK, errno.EACCES)


class Known:
    """What a name meant when it was last asked for."""

    __slots__ = ("digest", "manifest", "when")

    def __init__(self, digest: str, manifest: str, when: str) -> None:
        self.digest = digest
        self.manifest = manifest
        self.when = when


class Cached:
    """A finished image."""

    __slots__ = ("digest", "path", "site", "size", "used")

    def __init__(self, digest: str, path: str, status: os.stat_result, site: bool) -> None:
        self.digest = digest
        self.path = path
        self.size = status.st_size
        self.used = status.st_mtime
        self.site = site


def now_text() -> str:
    """Return the time as people and programs can read it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


class Store:
    """The cache in `directory`, and the site's, which nobody but root writes to."""

    def __init__(self, directory: str, site: Sequence[str] = ()) -> None:
        self.directory = directory
        self._site = tuple(site)
        self._serial = 0
        self._distrusted = False

    # Looking.

    def find(self, digest: str) -> str | None:
        """Return the path of the image whose manifest has that digest, or None; the site's come first."""
        name = _file_name(digest)
        for directory in self._site:
            path = os.path.join(directory, "images", name)
            if _is_roots(path):
                return path
        path = os.path.join(self.directory, "images", name)
        if not self._is_trusted():
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
        """Return what is known of the image at `path`."""
        return _read_record(path[: -len(".sqfs")] + ".json")

    def recall(self, reference: Reference, platform: str) -> Known | None:
        """Return what a name meant last, for a platform; the site's word counts where we have none."""
        found = None
        for directory in (*([self.directory] if self._is_trusted() else []), *self._site):
            known = _known(_read_record(os.path.join(directory, "refs", _name(reference))), reference, platform)
            if known is not None and self.find(known.manifest) is not None:
                return known
            found = found or known
        return found

    def pinned(self, job: str, reference: Reference, platform: str, ask: Callable[[], Known]) -> Known:
        """Return what a name means in a job: what it meant when the job first asked, which others wait for.

        A cache that can't be written to remembers nothing: each asks for itself.
        """
        place = os.path.join("refs", f"job-{job}")
        name = _name(reference)
        found = self._pin(place, name, reference, platform) if self._is_trusted() else None
        if found is not None:
            return found
        try:
            self.prepare()
            os.makedirs(os.path.join(self.directory, place), mode=0o700, exist_ok=True)
        except (OSError, CacheError) as error:
            log.debug(f"{self.directory}: {error}")
            return ask()
        with self._locked(f"job-{job}-{name}", lambda: self._pin(place, name, reference, platform)) as (known, _):
            found = known
            if found is None:
                found = ask()
                record = _read_record(os.path.join(self.directory, place, name))
                manifests = record.get("manifests") if record.get("digest") == found.digest else None
                self._note(
                    os.path.join(place, name), reference, found.digest, {**(manifests or {}), platform: found.manifest}
                )
            return found

    def _pin(self, place: str, name: str, reference: Reference, platform: str) -> Known | None:
        return _known(_read_record(os.path.join(self.directory, place, name)), reference, platform)

    def once(self, job: str, name: str, make: Callable[[Callable[[], None]], str]) -> str:
        """Return what `make` returned when the job first asked for `name`, which others wait for.

        `make` is to call its argument often. A cache that can't be written to remembers nothing: each makes its own.
        """
        place = os.path.join(self.directory, "refs", f"job-{job}")
        path = os.path.join(place, name)
        try:
            self.prepare()
            os.makedirs(place, mode=0o700, exist_ok=True)
        except (OSError, CacheError) as error:
            log.debug(f"{self.directory}: {error}")
            return make(lambda: None)
        with self._locked(f"job-{job}-{name}", lambda: _read_record(path).get("made")) as (found, lock):
            if found is not None:
                return str(found)
            assert lock is not None
            made = make(lambda: lock.beat(""))
            self._write_record(path, {"made": made})
            return made

    @contextmanager
    def _locked(self, name: str, done: Callable[[], _Found | None]) -> Iterator[tuple[_Found | None, Lock | None]]:
        """Hold the lock `name`, or give what `done` says as soon as it says something."""
        path = os.path.join(self.directory, "lock", name[:200])
        while True:
            lock = Lock.create(path)
            found = done()
            if lock is not None:
                try:
                    yield found, lock
                finally:
                    lock.release()
                return
            if found is not None:
                yield found, None
                return
            if self._holder(path) is not None:
                time.sleep(_QUICK_SECONDS)

    def images(self) -> list[Cached]:
        """Return all finished images, the site's first, the others by their last use."""
        found = []
        for directory in self._site:
            found += [one for one in _list(directory, True) if _is_roots(one.path)]
        return found + sorted(_list(self.directory, False), key=lambda one: -one.used)

    def names(self) -> dict[str, list[str]]:
        """Return the references by the digest of the manifest that each meant last."""
        found: dict[str, list[str]] = {}
        for directory in (self.directory, *self._site):
            place = os.path.join(directory, "refs")
            try:
                entries = sorted(os.listdir(place))
            except OSError:
                continue
            for entry in entries:
                record = _read_record(os.path.join(place, entry))
                manifests = record.get("manifests")
                for digest in manifests.values() if isinstance(manifests, dict) else ():
                    found.setdefault(str(digest), [])
                    if record.get("reference") not in found[str(digest)]:
                        found[str(digest)].append(str(record.get("reference")))
        return found

    # Writing.

    def prepare(self) -> None:
        """Make the cache's directories; CacheError if it can't be used, or isn't safe to."""
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
                        # Who opened the cache for others means its images.
                        os.chmod(path, shared)
        except OSError as error:
            raise self._unusable(error) from error
        finally:
            os.umask(umask)

    def _check_owner(self, status: os.stat_result) -> None:
        """Raise CacheError where the cache's directory, or a link in its place, is in another user's hands."""
        link = os.lstat(self.directory)
        if stat.S_ISLNK(link.st_mode) and link.st_uid not in (0, os.geteuid()):
            raise CacheError(f"{self.directory}: a link of uid {link.st_uid}, not yours; the cache isn't used")
        if status.st_uid != os.geteuid():
            raise CacheError(f"{self.directory}: the cache belongs to uid {status.st_uid}, not to you")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise CacheError(f"{self.directory}: others can write to the cache: chmod go-w {self.directory}")

    def _is_trusted(self) -> bool:
        """Whether what lies in the cache is its user's own: names, digests and images are believed."""
        try:
            self._check_owner(os.stat(self.directory))
        except CacheError as error:
            if not self._distrusted:
                log.warning(str(error))
            self._distrusted = True
            return False
        except OSError:
            pass  # nothing is there
        return True

    def _unusable(self, error: OSError) -> ChError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return pack.disk_full(self.directory)
        return CacheError(f"can't write to the cache {self.directory} (SLURM_CH_CACHE=DIR puts it elsewhere)")

    def remember(self, reference: Reference, digest: str, platform: str, manifest: str) -> None:
        """Note what a name means now. A cache that can't be written to is no error here."""
        path = os.path.join(self.directory, "refs", _name(reference))
        record = _read_record(path)
        manifests = record.get("manifests")
        if record.get("digest") != digest or not isinstance(manifests, dict):
            manifests = {}
        if manifests.get(platform) == manifest and record.get("when", "")[:10] == now_text()[:10]:
            return
        self._note(os.path.join("refs", _name(reference)), reference, digest, {**manifests, platform: manifest})

    def _note(self, name: str, reference: Reference, digest: str, manifests: dict[str, str]) -> None:
        record = {"reference": reference.text, "digest": digest, "manifests": manifests, "when": now_text()}
        try:
            self.prepare()
            self._write_record(os.path.join(self.directory, name), record)
        except (OSError, CacheError) as error:
            log.debug(f"{self.directory}: {error}")

    def _write_record(self, path: str, record: dict[str, Any]) -> None:
        self._serial += 1
        private = os.path.join(self.directory, "tmp", f"{me()}.{self._serial}.json")
        fd = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            with open(fd, "w") as file:
                json.dump(record, file, indent=1)
            os.chmod(private, 0o644)
            os.rename(private, path)
        except BaseException:
            _remove(private)
            raise

    @contextmanager
    def scratch(self, within: str | None = None, large: bool = True) -> Iterator[str]:
        """Make a private directory in the cache, or `within` another one, and remove it with all that is in it.

        What is not `large` may stay for a day if we are killed.
        """
        self._serial += 1
        place = within or os.path.join(self.directory, "tmp")
        path = os.path.join(place, f"{'slurm_ch.' if within else ''}{me()}.{self._serial}")
        try:
            os.mkdir(path, 0o700)
            if large:
                with open(os.path.join(path, "owner"), "w") as file:
                    json.dump(identity(), file)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def sweep(self, within: str | None = None) -> None:
        """Remove what pulls left that were killed: those of this host at once, others after a day."""
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
            owner = _read_record(os.path.join(path, "owner")) if stat.S_ISDIR(status.st_mode) else {}
            old = time.time() - status.st_mtime > _ABANDONED_SECONDS
            if is_dead(owner) or (old and not is_alive(owner)):
                log.debug(f"removing {path}, which a pull left")
                if stat.S_ISDIR(status.st_mode):
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    _remove(path)

    def publish(self, file: str, digest: str, info: dict[str, Any], replace: bool = False) -> str:
        """Give a finished file its place and return that; where somebody was faster, theirs stays."""
        final = os.path.join(self.directory, "images", _file_name(digest))
        try:
            with open(file, "rb") as made:
                os.fchmod(made.fileno(), 0o444)
                os.fsync(made.fileno())
            self._write_record(final[: -len(".sqfs")] + ".json", info)
            if replace:
                os.rename(file, final)
            else:
                _link(file, final)
        except OSError as error:
            raise self._unusable(error) from error
        return final

    def remove(self, image: Cached) -> None:
        """Remove an image of the cache."""
        _remove(image.path)
        _remove(image.path[: -len(".sqfs")] + ".json")

    def prune(self, older: float | None = None, limit: int | None = None, spare: str | None = None) -> list[Cached]:
        """Remove images not used for `older` seconds, and the least recently used above `limit` bytes; return them.

        On NFS nothing that was used within a week goes: a client loses an open
        file that another one removes.
        """
        now = time.time()
        self._forget_jobs(now)
        kept = sorted(_list(self.directory, False), key=lambda one: one.used)
        total = sum(one.size for one in kept)
        youngest = now - (_NFS_KEPT_SECONDS if file_system(self.directory).startswith("nfs") else 0)
        gone = []
        for one in kept:
            if one.path == spare or one.used > youngest:
                continue
            if (older is not None and now - one.used > older) or (limit is not None and total > limit):
                self.remove(one)
                total -= one.size
                gone.append(one)
        return gone

    def _forget_jobs(self, now: float) -> None:
        place = os.path.join(self.directory, "refs")
        try:
            entries = [entry for entry in os.listdir(place) if entry.startswith("job-")]
        except OSError:
            return
        for entry in entries:
            path = os.path.join(place, entry)
            try:
                if now - os.stat(path).st_mtime > _JOB_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
            except OSError:
                continue

    # Who makes it.

    @contextmanager
    def making(self, digest: str, waiting: Callable[[str], None], again: bool = False) -> Iterator[Lock | None]:
        """Give the lock of an image that isn't there, or None when somebody else has made it meanwhile.

        `waiting` hears from time to time who makes it and how far they are.
        With `again` an image that is there is no reason to stop.
        """
        path = os.path.join(self.directory, "lock", _file_name(digest)[: -len(".sqfs")])
        lock = None
        while lock is None:
            lock = Lock.create(path)
            if not again and self.find(digest) is not None:
                if lock is not None:
                    lock.release()
                yield None
                return
            if lock is None:
                holder = self._holder(path)
                if holder is not None:
                    waiting(holder)
                    time.sleep(_POLL_SECONDS)
        try:
            yield lock
        finally:
            lock.release()

    def is_being_made(self, digest: str) -> bool:
        """Whether somebody has the lock of an image, or has had it until now."""
        return os.path.exists(os.path.join(self.directory, "lock", _file_name(digest)[: -len(".sqfs")]))

    def _holder(self, path: str) -> str | None:
        """Return who has the lock at `path`; None where nobody has, any more."""
        age = self._age(path)
        if age is None:
            return None
        record = _read_record(path)
        if age < STALE_SECONDS and not is_dead(record):
            return f"{record.get('host', 'another host')}: {record.get('progress') or 'has begun'}"
        # Of several that see it stale, one gets it; and what it gets may be new.
        private = f"{path}.{me()}"
        try:
            os.rename(path, private)
        except OSError:
            return None
        age = self._age(private)
        if age is not None and age < STALE_SECONDS and not is_dead(_read_record(private)):
            try:
                os.link(private, path)
            except OSError as error:
                log.debug(f"{path}: {error.strerror}")
        else:
            log.debug(f"{path}: its holder is gone")
        _remove(private)
        return None

    def _age(self, path: str) -> float | None:
        """Return how old a file is by its server's clock, which is not ours."""
        probe = os.path.join(self.directory, "lock", f".now.{me()}")
        try:
            with open(probe, "w") as file:
                file.write(".")
            now = os.stat(probe).st_mtime
            return now - os.stat(path).st_mtime
        except OSError:
            return None
        finally:
            _remove(probe)


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


def _file_name(digest: str) -> str:
    """Return an image's file name; a new version of what we make of a manifest will have another one."""
    return check_digest(digest, "cache").replace(":", "-") + ".sqfs"


def _name(reference: Reference) -> str:
    """Return a reference's file name, cut where it is too long for one."""
    key = reference.key()
    if len(key) <= 200:
        return key
    from .manifest import digest_of

    return key[:120] + "+" + digest_of(key.encode())[7:39]


def _known(record: dict[str, Any], reference: Reference, platform: str) -> Known | None:
    manifests, digest, when = record.get("manifests"), record.get("digest"), record.get("when")
    if not isinstance(manifests, dict) or not isinstance(digest, str) or not isinstance(when, str):
        return None
    wanted = manifests.get(platform)
    if not isinstance(wanted, str):
        return None
    return Known(check_digest(digest, reference.text), check_digest(wanted, reference.text), when)


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


def _read_record(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(_RECORD_MAX))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError as error:
        if error.errno != errno.ENOENT:
            log.debug(f"{path}: {error.strerror}")


def file_system(path: str) -> str:
    """Return the type of the file system that a directory is on."""
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
