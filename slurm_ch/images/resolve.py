# SPDX-License-Identifier: Apache-2.0
"""Which image a reference means: looked up in the cache, in a layout, or asked of a registry."""

from __future__ import annotations

import time

from .. import log
from ..errors import ChError
from . import manifest
from .names import Known, now_text
from .progress import Progress
from .reference import DOCKER, OCI, Reference, allowed, parse
from .store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from . import fetch
    from .settings import Settings

# Ask for the digest and pull what is missing; also what is there; ask nobody; ask, but don't pull.
AUTO, ALWAYS, CACHED, NEVER = "auto", "always", "cached", "never"
MODES = (AUTO, ALWAYS, CACHED, NEVER)

_NICENESS = 10


class Resolved:
    """What a reference means: `digest` is what to pin, `manifest` that of the image for the platform."""

    __slots__ = ("blobs", "digest", "manifest", "platform", "raw", "reference")

    def __init__(self, reference: Reference, platform: str, digest: str, manifest_digest: str) -> None:
        self.reference = reference
        self.platform = platform
        self.digest = digest
        self.manifest = manifest_digest
        self.raw: bytes | None = None  # the manifest's bytes, where they are known
        self.blobs: str | None = None  # where a local layout's blobs are

    @property
    def pinned(self) -> str:
        """The reference with its digest: it means the same image for ever."""
        reference = self.reference
        if reference.scheme != DOCKER or reference.digest:
            return reference.text
        return f"{reference.text}@{self.digest}"


class Resolver:
    """What it takes to look up and to pull: the site's settings, the caller's environment, the cache."""

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
        self.option = "--pull"  # as the caller knows it
        self.platform = manifest.check_platform(platform) if platform else manifest.this_platform()
        self.any_platform = platform is None
        self.store = Store(settings.cache, settings.images)
        # Whoever waits for a node to start shouldn't be waited for.
        self.niceness = 0 if "SLURM_JOB_ID" in env else _NICENESS
        self.end = time.monotonic() + settings.pull_timeout if settings.pull_timeout else None

    def resolve(self, reference: Reference, mode: str = AUTO) -> Resolved:
        """Return what the reference means; asks the registry unless it is pinned and known, or `mode` is cached."""
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
            return self._chosen(reference, raw, blobs)
        job = _job(self.env)
        if job is None or reference.local or pinned:
            return self._asked(reference)
        asked: list[Resolved] = []

        def ask() -> Known:
            asked.append(self._asked(reference))
            return Known(asked[0].digest, asked[0].manifest, now_text())

        known = self.store.names.pinned(job, reference, self.platform, ask)
        return asked[0] if asked else Resolved(reference, self.platform, known.digest, known.manifest)

    def _asked(self, reference: Reference) -> Resolved:
        """Ask the registry, and where it can't be reached say what is there."""
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
        return self._chosen(reference, raw, None)

    def _chosen(self, reference: Reference, raw: bytes, blobs: str | None) -> Resolved:
        found = manifest.parse(raw, reference.text)
        digest = found.digest
        if isinstance(found, manifest.Index):
            chosen = manifest.choose(found, self.platform, reference.text).digest
            if blobs is not None:
                from . import layout

                raw = layout.layout_manifest(reference, chosen, blobs)
                return self._chosen_one(reference, digest, chosen, raw, blobs)
            return self._chosen_one(reference, digest, chosen, None, blobs)
        return self._chosen_one(reference, digest, digest, raw, blobs)

    def _chosen_one(
        self, reference: Reference, digest: str, chosen: str, raw: bytes | None, blobs: str | None
    ) -> Resolved:
        resolved = Resolved(reference, self.platform, digest, chosen)
        resolved.raw, resolved.blobs = raw, blobs
        return resolved

    def skopeo(self, scratch: str) -> fetch.Skopeo:
        """Return who asks registries; `scratch` is a directory of ours."""
        from . import fetch

        return fetch.Skopeo(self.env, scratch, self.niceness)

    def tick(self) -> None:
        """Show how far it is; ChError if the site gives no more time."""
        if self.end is not None and time.monotonic() > self.end:
            raise ChError(f"not done after {self.settings.pull_timeout:.0f} s (the site's pull_timeout)")
        self.progress.show()

    def find(self, resolved: Resolved) -> str | None:
        """Return the path of the image if it is in the cache, or the site's."""
        return self.store.find(resolved.manifest)

    def check_architecture(self, architecture: str, what: str) -> None:
        """Warn of an image for another kind of machine; ChError if one kind was asked for."""
        there, wanted = f"linux/{architecture}", self.platform
        if not architecture or (there + "/").startswith(wanted + "/") or (wanted + "/").startswith(there + "/"):
            return
        if self.any_platform:
            log.warning(f"{what}: the image says that it is for {there}, not for {wanted}")
        else:
            raise ChError(f"{what}: no image for {wanted}: there is one for {there} only")

    def pin(self, resolved: Resolved) -> None:
        """Note which image the pinned name is of, so that nobody has to ask again."""
        if resolved.digest != resolved.manifest:
            self.store.names.remember(parse(resolved.pinned), resolved.digest, resolved.platform, resolved.manifest)


def _job(env: Mapping[str, str]) -> str | None:
    """Return a name of the job that this runs in: within one, a name means one image."""
    number = env.get("SLURM_ARRAY_JOB_ID") or env.get("SLURM_HET_JOB_ID") or env.get("SLURM_JOB_ID", "")
    cluster = env.get("SLURM_CLUSTER_NAME", "")
    if not number.isdigit() or not (cluster.replace("-", "").replace("_", "").isalnum() or not cluster):
        return None
    return f"{cluster}-{number}" if cluster else number
