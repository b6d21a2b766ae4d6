# SPDX-License-Identifier: Apache-2.0
"""Fetch an image, merge its layers, and pack them. Loaded only if an image has to be pulled."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import ExitStack

from .. import log
from ..errors import ChError
from . import additions, fetch, layout, manifest, merge, pack
from .flat import Flat
from .names import now_text
from .progress import size
from .reference import DOCKER, OCI, Reference

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .resolve import Resolved, Resolver


def make(resolver: Resolver, resolved: Resolved, out: str, scratch: str, tick: Callable[[], None]) -> dict[str, Any]:
    """Fetch, merge and pack an image into the file `out`; return its record for the cache.

    `scratch` is a private directory next to the result, `tick` is called often. ChError on failure.
    """
    reference, what = resolved.reference, resolved.reference.text
    with ExitStack() as stack:
        if resolved.raw is None and reference.scheme == DOCKER:
            resolved.raw = resolver.skopeo(scratch).manifest(reference, resolved.manifest, tick)
        wanted = manifest.parse(resolved.raw, what) if resolved.raw is not None else None
        if isinstance(wanted, manifest.Index):
            raise ChError(f"{what}: an index within an index")
        if wanted is None or not wanted.squashfs:
            # Before the download, so that a missing program is reported early.
            packer = pack.find(resolver.settings.packer, resolver.env.get("PATH"))
        resolver.progress.line(_announcement(resolved, wanted))
        if resolved.blobs is not None:
            blobs, verified, found = resolved.blobs, False, wanted
        else:
            place = _place_for_blobs(resolver, stack, scratch, out, wanted)
            blobs, found = _download(resolver, resolved, wanted, place, tick)
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
            return {**info, "squashfs": True, "size": _copy_squashfs(tree_layers[0], out)}
        config = additions.parse(_config(found, blobs, verified, what), what)
        info["architecture"] = config.architecture
        resolver.check_architecture(config.architecture, what)
        return _merge(resolver, tree_layers, config, info, packer=packer, out=out, tick=tick)


def _config(found: manifest.Manifest, blobs: str, verified: bool, what: str) -> bytes:
    raw = _read(layout.blob_path(blobs, found.config.digest), what)
    if not verified and manifest.digest_of(raw) != found.config.digest:
        raise ChError(f"{what}: damaged: the configuration is not {found.config.digest}")
    return raw


def _merge(
    resolver: Resolver,
    tree_layers: list[merge.Layer],
    config: additions.Config,
    info: dict[str, Any],
    *,
    packer: pack.Packer,
    out: str,
    tick: Callable[[], None],
) -> dict[str, Any]:
    tree = merge.Tree(resolver.settings.pull_max or merge.BYTES_MAX, tick)
    for layer in tree_layers:
        tree.add(layer)
    additions.add(tree, config, {name: str(info[name]) for name in ("reference", "digest", "manifest", "platform")})
    if config.user:
        log.info(f"{info['reference']}: its user {config.user} is ignored: commands run as you")
    flat = Flat(tree)
    resolver.progress.to_pack = flat.bytes

    def packed(count: int) -> None:
        resolver.progress.packed = count
        tick()

    threads, niceness = resolver.settings.pull_threads, resolver.niceness
    info["size"] = pack.pack(flat, out, packer, threads=threads, niceness=niceness, tick=packed)
    info.update(inodes=flat.inodes, unpacked=flat.bytes, packer=f"{packer.name} {packer.version}")
    return info


def _place_for_blobs(
    resolver: Resolver, stack: ExitStack, scratch: str, out: str, wanted: manifest.Manifest | None
) -> str:
    """Return the directory for the blobs: on the disk that TMPDIR names, if it has room, else in `scratch`."""
    need = wanted.size if wanted is not None else 0
    local = resolver.env.get("TMPDIR")
    if local and os.path.isdir(local) and _free(local) > need + need // 10:
        resolver.store.sweep(local)
        try:
            place: str = stack.enter_context(resolver.store.scratch(local))
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
    resolver: Resolver, resolved: Resolved, wanted: manifest.Manifest | None, place: str, tick: Callable[[], None]
) -> tuple[str, manifest.Manifest]:
    reference = resolved.reference
    resolver.progress.begin(wanted.size if wanted is not None else 0)

    def fetched() -> None:
        resolver.progress.fetched = fetch.tree_size(place)
        tick()

    platform = resolver.platform if reference.scheme != DOCKER else None
    resolver.skopeo(os.path.dirname(place)).copy(reference, resolved.manifest, place, fetched, platform)
    resolver.progress.fetched = resolver.progress.to_fetch
    copied = Reference(OCI, place)
    copied.path, copied.text = place, reference.text
    raw, blobs = layout.local_layout(copied, resolver.platform)
    found = manifest.parse(raw, reference.text)
    if isinstance(found, manifest.Index):
        raise ChError(f"{reference.text}: an index within an index")
    # skopeo may convert the manifest to another format, with another digest. The layers must be the pinned ones.
    pinned = wanted if wanted is not None and reference.scheme == DOCKER else found
    if [one.digest for one in found.layers] != [one.digest for one in pinned.layers]:
        raise ChError(f"{reference.text}: the fetched image has other layers than {resolved.manifest} lists")
    return blobs, found


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


def _copy_squashfs(layer: merge.Layer, out: str) -> int:
    """Use a layer that is a SquashFS file as the image; return its size."""
    if layer.digest is None:
        os.rename(layer.path, out) if _same_device(layer.path, out) else copy(layer.path, out)
    else:
        copy(layer.path, out)
        if _file_digest(out) != layer.digest:
            raise ChError(f"{layer.what}: damaged: its digest is not {layer.digest}")
    return pack.check(out)


def _same_device(path: str, out: str) -> bool:
    return os.stat(path).st_dev == os.stat(os.path.dirname(out)).st_dev


def _file_digest(path: str) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            found.update(data)
    return "sha256:" + found.hexdigest()


def copy(source: str, to: str) -> None:
    """Copy a file; ChError on failure."""
    try:
        shutil.copyfile(source, to)
    except OSError as error:
        raise pack.write_error(error, to) from error
