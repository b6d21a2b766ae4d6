# SPDX-License-Identifier: Apache-2.0
"""The digests that images' names had when they were last resolved (the cache's refs/), and those pinned for a job."""

from __future__ import annotations

import os
import time

from .. import log
from .locks import CacheError
from .manifest import check_digest, digest_of
from .records import read_record, remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .cache_directory import CacheDirectory
    from .reference import Reference

# A job's pinned names are removed after this time.
_JOB_SECONDS = 60 * 86400.0


class KnownDigests:
    """The digests that a name had when it was last resolved, and the time."""

    __slots__ = ("digest", "manifest", "when")

    def __init__(self, digest: str, manifest: str, when: str) -> None:
        self.digest = digest
        self.manifest = manifest
        self.when = when


def now_text() -> str:
    """Return the current time in ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


class Names:
    """The names recorded in `cache` and in the site's caches.

    `is_there` returns whether an image with a digest is cached.
    """

    def __init__(self, cache: CacheDirectory, site: Sequence[str], is_there: Callable[[str], bool]) -> None:
        self._cache = cache
        self._site = site
        self._is_there = is_there

    def recall(self, reference: Reference, platform: str) -> KnownDigests | None:
        """Return what a name meant last, for a platform, or None; the user's own cache counts before the site's."""
        found = None
        for directory in (*([self._cache.directory] if self._cache.is_trusted() else []), *self._site):
            known = _from_record(read_record(os.path.join(directory, "refs", _name(reference))), reference, platform)
            if known is not None and self._is_there(known.manifest):
                return known
            found = found or known
        return found

    def remember(self, reference: Reference, digest: str, platform: str, manifest: str) -> None:
        """Record what a name means now. It is not an error if the cache can't be written."""
        path = os.path.join(self._cache.directory, "refs", _name(reference))
        record = read_record(path)
        manifests = record.get("manifests")
        if record.get("digest") != digest or not isinstance(manifests, dict):
            manifests = {}
        if manifests.get(platform) == manifest and record.get("when", "")[:10] == now_text()[:10]:
            return
        self._write_record(os.path.join("refs", _name(reference)), reference, digest, {**manifests, platform: manifest})

    def pinned(self, job: str, reference: Reference, platform: str, ask: Callable[[], KnownDigests]) -> KnownDigests:
        """Return what a name means in a job: the first process of the job calls `ask`, and others wait for its answer.

        If the cache can't be written, each process calls `ask`.
        """
        place = os.path.join("refs", f"job-{job}")
        name = _name(reference)
        known = self._read_pin(place, name, reference, platform) if self._cache.is_trusted() else None
        if known is not None:
            return known
        try:
            self._cache.prepare()
            os.makedirs(os.path.join(self._cache.directory, place), mode=0o700, exist_ok=True)
        except (OSError, CacheError) as error:
            log.debug(f"{self._cache.directory}: {error}")
            return ask()
        pin = f"job-{job}-{name}"
        with self._cache.locks.hold(pin, lambda: self._read_pin(place, name, reference, platform)) as (noted, _):
            if noted is not None:
                return noted
            found = ask()
            record = read_record(os.path.join(self._cache.directory, place, name))
            manifests = record.get("manifests") if record.get("digest") == found.digest else None
            self._write_record(
                os.path.join(place, name), reference, found.digest, {**(manifests or {}), platform: found.manifest}
            )
            return found

    def _read_pin(self, place: str, name: str, reference: Reference, platform: str) -> KnownDigests | None:
        return _from_record(read_record(os.path.join(self._cache.directory, place, name)), reference, platform)

    def once(self, job: str, name: str, make: Callable[[Callable[[], None]], str]) -> str:
        """Return the result of `make`: the job's first process calls it for `name`, and others wait for the result.

        `make` has to call its argument often, to keep the lock. If the cache can't be written, every process calls it.
        """
        place = os.path.join(self._cache.directory, "refs", f"job-{job}")
        path = os.path.join(place, name)
        try:
            self._cache.prepare()
            os.makedirs(place, mode=0o700, exist_ok=True)
        except (OSError, CacheError) as error:
            log.debug(f"{self._cache.directory}: {error}")
            return make(lambda: None)
        with self._cache.locks.hold(f"job-{job}-{name}", lambda: read_record(path).get("made")) as (found, lock):
            if found is not None:
                return str(found)
            assert lock is not None
            made = make(lambda: lock.beat(""))
            self._cache.write_record(path, {"made": made})
            return made

    def _write_record(self, name: str, reference: Reference, digest: str, manifests: dict[str, str]) -> None:
        record = {"reference": reference.text, "digest": digest, "manifests": manifests, "when": now_text()}
        try:
            self._cache.prepare()
            self._cache.write_record(os.path.join(self._cache.directory, name), record)
        except (OSError, CacheError) as error:
            log.debug(f"{self._cache.directory}: {error}")

    def by_digest(self) -> dict[str, list[str]]:
        """Return, for each manifest's digest, the references that meant it last."""
        found: dict[str, list[str]] = {}
        for directory in (self._cache.directory, *self._site):
            place = os.path.join(directory, "refs")
            try:
                entries = sorted(os.listdir(place))
            except OSError:
                continue
            for entry in entries:
                record = read_record(os.path.join(place, entry))
                manifests = record.get("manifests")
                for digest in manifests.values() if isinstance(manifests, dict) else ():
                    found.setdefault(str(digest), [])
                    if record.get("reference") not in found[str(digest)]:
                        found[str(digest)].append(str(record.get("reference")))
        return found

    def forget_jobs(self, now: float) -> None:
        """Remove the pinned names of jobs that ended long ago."""
        place = os.path.join(self._cache.directory, "refs")
        try:
            entries = [entry for entry in os.listdir(place) if entry.startswith("job-")]
        except OSError:
            return
        for entry in entries:
            path = os.path.join(place, entry)
            try:
                if now - os.stat(path).st_mtime > _JOB_SECONDS:
                    remove_tree(path)
            except OSError:
                continue


def _name(reference: Reference) -> str:
    """Return a reference's file name, with a hash in place of the end if it is too long."""
    key = reference.key()
    if len(key) <= 200:
        return key
    return key[:120] + "+" + digest_of(key.encode())[7:39]


def _from_record(record: dict[str, Any], reference: Reference, platform: str) -> KnownDigests | None:
    manifests, digest, when = record.get("manifests"), record.get("digest"), record.get("when")
    if not isinstance(manifests, dict) or not isinstance(digest, str) or not isinstance(when, str):
        return None
    wanted = manifests.get(platform)
    if not isinstance(wanted, str):
        return None
    return KnownDigests(check_digest(digest, reference.text), check_digest(wanted, reference.text), when)
