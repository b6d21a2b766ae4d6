# SPDX-License-Identifier: Apache-2.0
"""From a reference to a SquashFS file: resolved, looked up, fetched, merged, packed, published."""

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
    """Gets what it has looked up."""

    def get(self, reference: Reference, mode: str = AUTO) -> tuple[Resolved, str]:
        """Return the image's path in the cache, pulled if it has to be."""
        resolved = self.resolve(reference, mode)
        return resolved, self.fetch(resolved, mode)

    def fetch(self, resolved: Resolved, mode: str = AUTO) -> str:
        """Return the path of an image that is resolved; pull it if it isn't there and `mode` allows it."""
        path = self.find(resolved)
        what = resolved.reference.text
        if mode == ALWAYS and path is not None and not path.startswith(self.store.directory + "/"):
            mode = AUTO  # the site's is not ours to replace
        if path is None and mode in (CACHED, NEVER):
            raise ChError(f"{what} ({resolved.manifest[:19]}): not in {self.store.directory}: `slurm-ch pull {what}`")
        if path is None and self.settings.pull == site.NO:
            raise ChError(f"{what}: this site allows no pulls, only its own images ({':'.join(self.settings.images)})")
        if path is not None and not self.any_platform:
            # Of an image for one kind of machine only, the digest is the same for all who ask.
            self.check_architecture(str(self.store.info(path).get("architecture", "")), what)
        if path is None or mode == ALWAYS:
            path = self._pull(resolved, mode == ALWAYS)
        self._remember(resolved)
        return path

    def _remember(self, resolved: Resolved) -> None:
        """Note what the name means; and its digest, where that is an index's and so no file's name."""
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
                log.info(f"removed {one.path}: the cache may have {size(self.settings.cache_max)}")
        return path

    def _waiting(self, holder: str) -> None:
        if self.end is not None and time.monotonic() > self.end:
            raise ChError(f"waited {self.settings.pull_timeout:.0f} s for the same pull on {holder}")
        self.progress.wait(holder)

    def to_file(self, reference: Reference, out: str, mode: str = AUTO) -> Resolved:
        """Make a file of its own of an image, which doesn't go through the cache; `out` is replaced as a whole."""
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
