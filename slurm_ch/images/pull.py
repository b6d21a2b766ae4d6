# SPDX-License-Identifier: Apache-2.0
"""From a reference to a SquashFS file: resolved, looked up, fetched, merged, packed, published."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from .. import log
from ..errors import ChError
from . import credentials, fetch, layout, manifest, pack
from . import settings as site
from .names import Known, now_text
from .progress import Progress, size
from .reference import DOCKER, OCI, Reference, allowed, parse
from .store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from . import inject, merge
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


class Puller:
    """What it takes to pull: the site's settings, the caller's environment, the cache."""

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
        self._any_platform = platform is None
        self.store = Store(settings.cache, settings.images)
        # Whoever waits for a node to start shouldn't be waited for.
        self._niceness = 0 if "SLURM_JOB_ID" in env else _NICENESS
        self._end = time.monotonic() + settings.pull_timeout if settings.pull_timeout else None

    # Which image it is.

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
        try:
            return self._ask(reference)
        except fetch.Unreachable as error:
            known = self.store.names.recall(reference, self.platform)
            if known is not None and self.store.find(known.manifest) is not None:
                raise fetch.Unreachable(f"{error}; {self.option}=cached uses the image of {known.when}") from None
            raise

    def _ask(self, reference: Reference) -> Resolved:
        credentials.warn_of_open_auth_files(self.env)
        self.store.prepare()
        with self.store.scratch(large=False) as scratch:
            raw = self._skopeo(scratch).manifest(reference, tick=self._tick)
        return self._chosen(reference, raw, None)

    def _chosen(self, reference: Reference, raw: bytes, blobs: str | None) -> Resolved:
        found = manifest.parse(raw, reference.text)
        digest = found.digest
        if isinstance(found, manifest.Index):
            chosen = manifest.choose(found, self.platform, reference.text).digest
            if blobs is not None:
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

    def _skopeo(self, scratch: str) -> fetch.Skopeo:
        return fetch.Skopeo(self.env, scratch, self._niceness)

    def _tick(self) -> None:
        if self._end is not None and time.monotonic() > self._end:
            raise ChError(f"not done after {self.settings.pull_timeout:.0f} s (the site's pull_timeout)")
        self.progress.show()

    # Getting it.

    def find(self, resolved: Resolved) -> str | None:
        """Return the path of the image if it is in the cache, or the site's."""
        return self.store.find(resolved.manifest)

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
        if path is not None and not self._any_platform:
            # Of an image for one kind of machine only, the digest is the same for all who ask.
            self._check_architecture(str(self.store.info(path).get("architecture", "")), what)
        if path is None or mode == ALWAYS:
            path = self._pull(resolved, mode == ALWAYS)
        self._remember(resolved)
        return path

    def pin(self, resolved: Resolved) -> None:
        """Note which image the pinned name is of, so that nobody has to ask again."""
        if resolved.digest != resolved.manifest:
            self.store.names.remember(parse(resolved.pinned), resolved.digest, resolved.platform, resolved.manifest)

    def _remember(self, resolved: Resolved) -> None:
        """Note what the name means; and its digest, where that is an index's and so no file's name."""
        for one in {resolved.reference.text, resolved.pinned}:
            if one == resolved.reference.text or resolved.digest != resolved.manifest:
                self.store.names.remember(parse(one), resolved.digest, resolved.platform, resolved.manifest)

    def _pull(self, resolved: Resolved, again: bool) -> str:
        self.store.prepare()
        self.store.sweep()
        with self.store.making(resolved.manifest, self._waiting, again) as lock:
            if lock is None:
                path = self.find(resolved)
                assert path is not None
                self.progress.end()
                return path

            def beat() -> None:
                self._tick()
                lock.beat(self.progress.text)

            with self.store.scratch() as scratch:
                out = os.path.join(scratch, "image.sqfs")
                info = self.make(resolved, out, scratch, beat)
                path = self.store.publish(out, resolved.manifest, info, again)
        self.progress.end()
        took = self.progress.seconds()
        self.progress.line(f"pulled in {took:.0f} s, {size(os.path.getsize(path))}: {path}")
        if self.settings.cache_max is not None:
            for one in self.store.prune(limit=self.settings.cache_max, spare=(path,)):
                log.info(f"removed {one.path}: the cache may have {size(self.settings.cache_max)}")
        return path

    def _waiting(self, holder: str) -> None:
        if self._end is not None and time.monotonic() > self._end:
            raise ChError(f"waited {self.settings.pull_timeout:.0f} s for the same pull on {holder}")
        self.progress.wait(holder)

    def to_file(self, reference: Reference, out: str, mode: str = AUTO) -> Resolved:
        """Make a file of its own of an image, which doesn't go through the cache; `out` is replaced as a whole."""
        from . import pack_file

        resolved = self.resolve(reference, mode)
        there = self.find(resolved)
        self.store.prepare()
        self.store.sweep()
        with pack_file.replaced(out) as private:
            if there is not None and mode != ALWAYS:
                _copy(there, private)
            else:
                with self.store.scratch() as scratch:
                    self.make(resolved, private, scratch, self._tick)
        self.progress.end()
        took = self.progress.seconds()
        self.progress.line(f"pulled in {took:.0f} s, {size(os.path.getsize(out))}: {out}")
        self._remember(resolved)
        return resolved

    def make(self, resolved: Resolved, out: str, scratch: str, tick: Callable[[], None]) -> dict[str, Any]:
        """Fetch, merge and pack an image into `out`; return what is to be known of it."""
        # What packs isn't loaded where there is nothing to pack.
        from . import inject, merge

        reference, what = resolved.reference, resolved.reference.text
        if self.settings.pull_timeout and self._end is None:
            self._end = time.monotonic() + self.settings.pull_timeout
        with ExitStack() as stack:
            if resolved.raw is None and reference.scheme == DOCKER:
                resolved.raw = self._skopeo(scratch).manifest(reference, resolved.manifest, tick)
            wanted = manifest.parse(resolved.raw, what) if resolved.raw is not None else None
            if isinstance(wanted, manifest.Index):
                raise ChError(f"{what}: an index within an index")
            if wanted is None or not wanted.squashfs:
                # Not after the download.
                packer = pack.find(self.settings.packer, self.env.get("PATH"))
            self.progress.line(_announcement(resolved, wanted))
            if resolved.blobs is not None:
                blobs, verified, found = resolved.blobs, False, wanted
            else:
                place = self._place_for_blobs(stack, scratch, out, wanted)
                blobs, found = self._download(resolved, wanted, place, tick)
                verified = True
            assert found is not None
            source = wanted or found
            tree_layers = [
                merge.Layer(
                    layout.blob_path(blobs, layer.digest),
                    f"{what}: layer {number} of {len(found.layers)}",
                    None if verified else layer.digest,
                )
                for number, layer in enumerate(found.layers, 1)
            ]
            info = {
                "reference": what,
                "digest": resolved.digest,
                "manifest": resolved.manifest,
                "platform": resolved.platform,
                "created": now_text(),
                "fetched": source.size,
            }
            if found.squashfs or (len(tree_layers) == 1 and _begins(tree_layers[0].path, pack.MAGIC)):
                return {**info, "squashfs": True, "size": _as_it_is(tree_layers[0], out)}
            config = inject.parse(self._config(found, blobs, verified, what), what)
            info["architecture"] = config.architecture
            self._check_architecture(config.architecture, what)
            return self._merge(tree_layers, config, info, packer=packer, out=out, tick=tick)

    def _config(self, found: manifest.Manifest, blobs: str, verified: bool, what: str) -> bytes:
        raw = _read(layout.blob_path(blobs, found.config.digest), what)
        if not verified and manifest.digest_of(raw) != found.config.digest:
            raise ChError(f"{what}: damaged: the configuration is not {found.config.digest}")
        return raw

    def _merge(
        self,
        tree_layers: list[merge.Layer],
        config: inject.Config,
        info: dict[str, Any],
        *,
        packer: pack.Packer,
        out: str,
        tick: Callable[[], None],
    ) -> dict[str, Any]:
        from . import inject, merge
        from .flat import Flat

        tree = merge.Tree(self.settings.pull_max or merge.BYTES_MAX, tick)
        for layer in tree_layers:
            tree.add(layer)
        inject.add(tree, config, {name: str(info[name]) for name in ("reference", "digest", "manifest", "platform")})
        if config.user:
            log.info(f"{info['reference']}: its user {config.user} is ignored: you stay yourself")
        flat = Flat(tree)
        self.progress.to_pack = flat.bytes

        def packed(count: int) -> None:
            self.progress.packed = count
            tick()

        threads, niceness = self.settings.pull_threads, self._niceness
        info["size"] = pack.pack(flat, out, packer, threads=threads, niceness=niceness, tick=packed)
        info.update(inodes=flat.inodes, unpacked=flat.bytes, packer=f"{packer.name} {packer.version}")
        return info

    def _check_architecture(self, architecture: str, what: str) -> None:
        there, wanted = f"linux/{architecture}", self.platform
        if not architecture or (there + "/").startswith(wanted + "/") or (wanted + "/").startswith(there + "/"):
            return
        if self._any_platform:
            log.warning(f"{what}: the image says that it is for {there}, not for {wanted}")
        else:
            raise ChError(f"{what}: no image for {wanted}: there is one for {there} only")

    def _place_for_blobs(self, stack: ExitStack, scratch: str, out: str, wanted: manifest.Manifest | None) -> str:
        """Return where the blobs are to be: on the local disk that TMPDIR names, or beside the result."""
        need = wanted.size if wanted is not None else 0
        local = self.env.get("TMPDIR")
        if local and os.path.isdir(local) and _free(local) > need + need // 10:
            self.store.sweep(local)
            try:
                place: str = stack.enter_context(self.store.scratch(local))
            except ChError as error:
                log.debug(f"TMPDIR={local}: {error}")
            else:
                if _free(os.path.dirname(out)) < need:
                    raise pack.disk_full(os.path.dirname(out))
                return os.path.join(place, "oci")
        if _free(scratch) < 2 * need:
            raise pack.disk_full(os.path.dirname(scratch))
        return os.path.join(scratch, "oci")

    def _download(
        self, resolved: Resolved, wanted: manifest.Manifest | None, place: str, tick: Callable[[], None]
    ) -> tuple[str, manifest.Manifest]:
        reference = resolved.reference
        self.progress.begin(wanted.size if wanted is not None else 0)

        def fetched() -> None:
            self.progress.fetched = fetch.tree_size(place)
            tick()

        platform = self.platform if reference.scheme != DOCKER else None
        self._skopeo(os.path.dirname(place)).copy(reference, resolved.manifest, place, fetched, platform)
        self.progress.fetched = self.progress.to_fetch
        copied = Reference(OCI, place)
        copied.path, copied.text = place, reference.text
        raw, blobs = layout.local_layout(copied, self.platform)
        found = manifest.parse(raw, reference.text)
        if isinstance(found, manifest.Index):
            raise ChError(f"{reference.text}: an index within an index")
        # The copy may have another form, and so another digest. Its layers may not, where their digests were pinned.
        pinned = wanted if wanted is not None and reference.scheme == DOCKER else found
        if [one.digest for one in found.layers] != [one.digest for one in pinned.layers]:
            raise ChError(f"{reference.text}: the fetched image has other layers than {resolved.manifest} lists")
        return blobs, found


def _job(env: Mapping[str, str]) -> str | None:
    """Return a name of the job that this runs in: within one, a name means one image."""
    number = env.get("SLURM_ARRAY_JOB_ID") or env.get("SLURM_HET_JOB_ID") or env.get("SLURM_JOB_ID", "")
    cluster = env.get("SLURM_CLUSTER_NAME", "")
    if not number.isdigit() or not (cluster.replace("-", "").replace("_", "").isalnum() or not cluster):
        return None
    return f"{cluster}-{number}" if cluster else number


def _announcement(resolved: Resolved, wanted: manifest.Manifest | None) -> str:
    amount = f", {size(wanted.size)}" if wanted is not None else ""
    return f"{resolved.reference.text} is {resolved.digest[:19]}...{amount}; pulling"


def _free(path: str) -> int:
    try:
        found = os.statvfs(path)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def _begins(path: str, magic: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False


def _read(path: str, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(manifest.BYTES_MAX)
    except OSError as error:
        raise ChError(f"{what}: can't read {path}") from error


def _as_it_is(layer: merge.Layer, out: str) -> int:
    """Take a layer that is a SquashFS file for the image."""
    if layer.digest is None:
        os.rename(layer.path, out) if _same_device(layer.path, out) else _copy(layer.path, out)
    else:
        _copy(layer.path, out)
        if _file_digest(out) != layer.digest:
            raise ChError(f"{layer.what}: damaged: its digest is not {layer.digest}")
    return pack.check(out)


def _same_device(path: str, out: str) -> bool:
    return os.stat(path).st_dev == os.stat(os.path.dirname(out)).st_dev


def _file_digest(path: str) -> str:
    import hashlib

    found = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            found.update(data)
    return "sha256:" + found.hexdigest()


def _copy(source: str, to: str) -> None:
    import shutil

    try:
        shutil.copyfile(source, to)
    except OSError as error:
        raise pack.write_error(error, to) from error


# Sites that have an importer for pyxis: `PROG get URI` prints a path, `PROG release` gives it back.
