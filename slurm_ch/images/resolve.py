# SPDX-License-Identifier: Apache-2.0
"""Resolve a reference to an image's digest, by the cache, an OCI layout, or the registry."""

from __future__ import annotations

import time

from .. import log
from ..errors import ChError
from . import manifest
from .names import KnownDigests, now_text
from .progress import Progress
from .reference import DOCKER, OCI, Reference, allowed, parse
from .store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from . import fetch
    from .settings import Settings

# When to pull: AUTO asks the registry for the digest and pulls a missing image. ALWAYS pulls even if it is cached.
# CACHED doesn't ask the registry, and uses the digest from the last time. NEVER asks, but doesn't pull.
AUTO, ALWAYS, CACHED, NEVER = "auto", "always", "cached", "never"
MODES = (AUTO, ALWAYS, CACHED, NEVER)

_NICENESS = 10


class Resolved:
    """A resolved reference: `digest` identifies it for pinning, `manifest` is the digest of the platform's manifest."""

    __slots__ = ("blobs", "digest", "manifest", "platform", "raw", "reference")

    def __init__(self, reference: Reference, platform: str, digest: str, manifest_digest: str) -> None:
        self.reference = reference
        self.platform = platform
        self.digest = digest
        self.manifest = manifest_digest
        self.raw: bytes | None = None  # the manifest's bytes, if they are known
        self.blobs: str | None = None  # the directory of a local layout's blobs

    @property
    def pinned(self) -> str:
        """The reference with its digest, which always means the same image."""
        reference = self.reference
        if reference.scheme != DOCKER or reference.digest:
            return reference.text
        return f"{reference.text}@{self.digest}"


class Resolver:
    """Resolves references, with the site's settings, the caller's environment and the cache.

    `platform`: OS/ARCHITECTURE[/VARIANT]; None for this machine's. Its time limit, if the site sets one, starts now.
    """

    def __init__(
        self,
        settings: Settings,
        env: Mapping[str, str],
        progress: Progress | None = None,
        platform: str | None = None,
    ) -> None:
        self.settings = settings
        self.env = env
        self.progress = progress or Progress()
        self.option = "--pull"  # the option's name for messages
        self.platform = manifest.check_platform(platform) if platform else manifest.this_platform()
        self.any_platform = platform is None
        self.store = Store(settings.cache, settings.images)
        # In a job, the nodes wait for the pull: don't lower its priority.
        self.niceness = 0 if "SLURM_JOB_ID" in env else _NICENESS
        self.end = time.monotonic() + settings.pull_timeout if settings.pull_timeout else None

    def resolve(self, reference: Reference, mode: str = AUTO) -> Resolved:
        """Resolve a reference; ChError if that fails or the site doesn't allow the registry.

        Asks the registry, unless the reference has a digest that is known, or `mode` is CACHED. In a job, the same
        reference always means the same image.
        """
        if not allowed(reference, self.settings.registries):
            raise ChError(f"{reference.text}: not one of this site's registries: {', '.join(self.settings.registries)}")
        pinned = reference.digest is not None
        if mode == CACHED or pinned:
            known = self.store.names.recall(reference, self.platform)
            if known is not None:
                return Resolved(reference, self.platform, known.digest, known.manifest)
            if reference.digest is not None and self.store.find(reference.digest) is not None:
                return Resolved(reference, self.platform, reference.digest, reference.digest)
            if mode == CACHED:
                raise ChError(
                    f"{reference.text}: never pulled here (into {self.store.directory}): `slurm-ch pull` does"
                )
        if reference.scheme == OCI:
            from . import layout

            raw, blobs = layout.local_layout(reference, self.platform)
            return self._choose_manifest(reference, raw, blobs)
        job = _job(self.env)
        if job is None or reference.local or pinned:
            return self._ask_or_suggest_cached(reference)
        asked: list[Resolved] = []

        def ask() -> KnownDigests:
            asked.append(self._ask_or_suggest_cached(reference))
            return KnownDigests(asked[0].digest, asked[0].manifest, now_text())

        known = self.store.names.pinned(job, reference, self.platform, ask)
        return asked[0] if asked else Resolved(reference, self.platform, known.digest, known.manifest)

    def _ask_or_suggest_cached(self, reference: Reference) -> Resolved:
        """Ask the registry. If it can't be reached, the error mentions a cached image."""
        from . import fetch

        try:
            return self._ask(reference)
        except fetch.Unreachable as error:
            known = self.store.names.recall(reference, self.platform)
            if known is not None and self.store.find(known.manifest) is not None:
                raise fetch.Unreachable(f"{error}; {self.option}=cached uses the image of {known.when}") from None
            raise

    def _ask(self, reference: Reference) -> Resolved:
        from . import credentials

        credentials.warn_of_open_auth_files(self.env)
        self.store.prepare()
        with self.store.scratch(large=False) as scratch:
            raw = self.skopeo(scratch).manifest(reference, tick=self.tick)
        return self._choose_manifest(reference, raw, None)

    def _choose_manifest(self, reference: Reference, raw: bytes, blobs: str | None) -> Resolved:
        found = manifest.parse(raw, reference.text)
        digest = found.digest
        if isinstance(found, manifest.Index):
            chosen = manifest.choose(found, self.platform, reference.text).digest
            if blobs is not None:
                from . import layout

                raw = layout.layout_manifest(reference, chosen, blobs)
                return self._resolved(reference, digest, chosen, raw, blobs)
            return self._resolved(reference, digest, chosen, None, blobs)
        return self._resolved(reference, digest, digest, raw, blobs)

    def _resolved(
        self, reference: Reference, digest: str, chosen: str, raw: bytes | None, blobs: str | None
    ) -> Resolved:
        resolved = Resolved(reference, self.platform, digest, chosen)
        resolved.raw, resolved.blobs = raw, blobs
        return resolved

    def skopeo(self, scratch: str) -> fetch.Skopeo:
        """Return an object that runs skopeo; `scratch` is a private directory for its files."""
        from . import fetch

        return fetch.Skopeo(self.env, scratch, self.niceness)

    def tick(self) -> None:
        """Show the progress; ChError if the site's time limit has passed."""
        if self.end is not None and time.monotonic() > self.end:
            raise ChError(f"not done after {self.settings.pull_timeout:.0f} s (the site's pull_timeout)")
        self.progress.show()

    def find(self, resolved: Resolved) -> str | None:
        """Return the path of the image in the cache or the site's, or None."""
        return self.store.find(resolved.manifest)

    def check_architecture(self, architecture: str, what: str) -> None:
        """Warn if the image is for another platform; ChError if the user has named a platform."""
        there, wanted = f"linux/{architecture}", self.platform
        if not architecture or (there + "/").startswith(wanted + "/") or (wanted + "/").startswith(there + "/"):
            return
        if self.any_platform:
            log.warning(f"{what}: the image says that it is for {there}, not for {wanted}")
        else:
            raise ChError(f"{what}: no image for {wanted}: there is one for {there} only")

    def pin(self, resolved: Resolved) -> None:
        """Record the manifest of the pinned name, so that nobody has to ask the registry again."""
        if resolved.digest != resolved.manifest:
            self.store.names.remember(parse(resolved.pinned), resolved.digest, resolved.platform, resolved.manifest)


def _job(env: Mapping[str, str]) -> str | None:
    """Return a name for the job in which this process runs, unique among clusters; None outside a job."""
    number = env.get("SLURM_ARRAY_JOB_ID") or env.get("SLURM_HET_JOB_ID") or env.get("SLURM_JOB_ID", "")
    cluster = env.get("SLURM_CLUSTER_NAME", "")
    if not number.isdigit() or not (cluster.replace("-", "").replace("_", "").isalnum() or not cluster):
        return None
    return f"{cluster}-{number}" if cluster else number
