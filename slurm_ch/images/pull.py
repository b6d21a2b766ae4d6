# SPDX-License-Identifier: Apache-2.0
"""Pull an image: resolve the reference, look into the cache, fetch, merge, pack, and put the file into the cache."""

from __future__ import annotations

import os
import time

from .. import log
from ..errors import ChError
from . import settings as site
from .progress import size
from .reference import Reference, parse
from .resolve import ALWAYS, AUTO, CACHED, NEVER, Resolved, Resolver


class Puller(Resolver):
    """A resolver that also pulls."""

    def get(self, reference: Reference, mode: str = AUTO) -> tuple[Resolved, str]:
        """Resolve a reference; return the result and the image's path in the cache. Pull the image if necessary."""
        resolved = self.resolve(reference, mode)
        return resolved, self.fetch(resolved, mode)

    def fetch(self, resolved: Resolved, mode: str = AUTO) -> str:
        """Return the path of a resolved image; pull it if it is missing, or `mode` is ALWAYS.

        ChError if it is missing and `mode` or the site allows no pull.
        """
        path = self.find(resolved)
        what = resolved.reference.text
        if mode == ALWAYS and path is not None and not path.startswith(self.store.directory + "/"):
            mode = AUTO  # an image of the site's is not replaced
        if path is None and mode in (CACHED, NEVER):
            raise ChError(f"{what} ({resolved.manifest[:19]}): not in {self.store.directory}: `slurm-ch pull {what}`")
        if path is None and self.settings.pull == site.NO:
            raise ChError(f"{what}: this site allows no pulls, only its own images ({':'.join(self.settings.images)})")
        if path is not None and not self.any_platform:
            # The digest of a single-platform image says nothing about its platform.
            self.check_architecture(str(self.store.info(path).get("architecture", "")), what)
        if path is None or mode == ALWAYS:
            path = self._pull(resolved, mode == ALWAYS)
        self._remember(resolved)
        return path

    def _remember(self, resolved: Resolved) -> None:
        """Record what the name means. Record also the pinned name if its digest is an index's, which names no file."""
        for one in {resolved.reference.text, resolved.pinned}:
            if one == resolved.reference.text or resolved.digest != resolved.manifest:
                self.store.names.remember(parse(one), resolved.digest, resolved.platform, resolved.manifest)

    def _pull(self, resolved: Resolved, again: bool) -> str:
        from . import assemble

        self.store.prepare()
        self.store.sweep()
        with self.store.making(resolved.manifest, self._waiting, again) as lock:
            if lock is None:
                path = self.find(resolved)
                assert path is not None
                self.progress.end()
                return path

            def beat() -> None:
                self.tick()
                lock.beat(self.progress.text)

            with self.store.scratch() as scratch:
                out = os.path.join(scratch, "image.sqfs")
                info = assemble.make(self, resolved, out, scratch, beat)
                path = self.store.publish(out, resolved.manifest, info, again)
        self.progress.end()
        took = self.progress.seconds()
        self.progress.line(f"pulled in {took:.0f} s, {size(os.path.getsize(path))}: {path}")
        if self.settings.cache_max is not None:
            for one in self.store.prune(limit=self.settings.cache_max, spare=(path,)):
                log.info(f"removed {one.path}: the cache is limited to {size(self.settings.cache_max)}")
        return path

    def _waiting(self, holder: str) -> None:
        if self.end is not None and time.monotonic() > self.end:
            raise ChError(f"waited {self.settings.pull_timeout:.0f} s for the same pull on {holder}")
        self.progress.wait(holder)

    def to_file(self, reference: Reference, out: str, mode: str = AUTO) -> Resolved:
        """Pull an image into the file `out`, which is replaced atomically. The cache is used if it has the image."""
        from . import assemble, pack_file

        resolved = self.resolve(reference, mode)
        there = self.find(resolved)
        self.store.prepare()
        self.store.sweep()
        with pack_file.replaced(out) as private:
            if there is not None and mode != ALWAYS:
                assemble.copy(there, private)
            else:
                with self.store.scratch() as scratch:
                    assemble.make(self, resolved, private, scratch, self.tick)
        self.progress.end()
        took = self.progress.seconds()
        self.progress.line(f"pulled in {took:.0f} s, {size(os.path.getsize(out))}: {out}")
        self._remember(resolved)
        return resolved
