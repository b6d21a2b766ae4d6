# SPDX-License-Identifier: Apache-2.0
"""Push a SquashFS file to a registry.

Either its contents are pushed as one ordinary layer, which every tool can run. Or the
file itself is pushed, which slurm_ch doesn't have to pack again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from typing import TYPE_CHECKING, Any

from .. import agreement
from ..errors import ChError, UsageError
from . import additions, children, credentials, fetch, layout, manifest, pack
from .reference import DOCKER, Reference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .progress import Progress
    from .store import Store

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
# When an image is pulled, every media type with "squashfs" in it is recognised.
_SQUASHFS = "application/vnd.slurm-ch.image.layer.v1.squashfs"
_CHUNK = 1 << 20
_SIF_MAGIC = b"SIF_MAGIC\0"


class LayoutWriter:
    """An OCI layout that is being written."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._blobs = os.path.join(path, "blobs", "sha256")
        os.makedirs(self._blobs)
        with open(os.path.join(path, "oci-layout"), "w") as file:
            file.write('{"imageLayoutVersion": "1.0.0"}')

    def place(self, digest: str) -> str:
        """Return the path for a blob."""
        return layout.blob_path(self._blobs, digest)

    def json(self, value: Any) -> dict[str, Any]:
        """Add a value as a JSON blob; return its digest and size."""
        data = json.dumps(value, sort_keys=True).encode()
        digest = manifest.digest_of(data)
        with open(self.place(digest), "wb") as file:
            file.write(data)
        return {"digest": digest, "size": len(data)}

    def finish(self, config: dict[str, Any], layer: dict[str, Any], diff_id: str) -> None:
        """Write configuration, manifest and index for an image with one layer."""
        whole = {
            "architecture": manifest.this_platform().split("/")[1],
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }
        value = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": {"mediaType": _CONFIG, **self.json(whole)},
            "layers": [layer],
        }
        described = {"mediaType": _MANIFEST, **self.json(value)}
        described["annotations"] = {"org.opencontainers.image.ref.name": "image"}
        with open(os.path.join(self.path, "index.json"), "w") as file:
            json.dump({"schemaVersion": 2, "manifests": [described]}, file)


def push(
    path: str, to: Reference, store: Store, env: Mapping[str, str], progress: Progress, *, as_squashfs: bool = False
) -> None:
    """Push the SquashFS file at `path` to the reference `to`; ChError on failure.

    The configuration comes from the image's /ch. `as_squashfs` pushes the file itself, not a layer.
    """
    if to.scheme != DOCKER or to.digest is not None:
        raise UsageError(f"{to.text}: not where an image can be pushed to: docker://HOST/NAME[:TAG]")
    size = _check(path)
    store.prepare()
    store.sweep()
    with store.scratch() as scratch:
        layout = LayoutWriter(os.path.join(scratch, "oci"))
        config = additions.from_metadata(_metadata(path, env))
        progress.to_pack = size
        if as_squashfs:
            digest = _digest(path)
            os.symlink(os.path.abspath(path), layout.place(digest))
            layer = {"mediaType": _SQUASHFS, "digest": digest, "size": size}
            layout.finish(config, layer, digest)
        else:
            layout.finish(config, *_as_layer(path, layout, env, progress.show))
        credentials.warn_of_open_auth_files(env)
        fetch.Skopeo(env, scratch).push(layout.path, to, progress.show)
    progress.end()


def _check(path: str) -> int:
    """Return the size of a SquashFS file; ChError if it isn't one."""
    try:
        return pack.check(path)
    except ChError as error:
        if not isinstance(error.__cause__, OSError) and _is_sif(path):
            raise ChError(
                f"{path}: an image of Apptainer's (SIF): "
                f"`srun --ch-image={path} --ch-save=FILE.sqfs CMD` makes a SquashFS file of it"
            ) from None
        raise


def _is_sif(path: str) -> bool:
    with open(path, "rb") as file:
        return _SIF_MAGIC in file.read(64)


def _digest(path: str) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(_CHUNK):
            found.update(data)
    return "sha256:" + found.hexdigest()


def _program(name: str, env: Mapping[str, str]) -> str:
    found = shutil.which(name, path=env.get("PATH"))
    if found is None:
        raise ChError(f"{name}, which reads SquashFS files, is not installed: install squashfs-tools-ng")
    return found


def _metadata(path: str, env: Mapping[str, str]) -> bytes | None:
    """Return the image's /ch/metadata.json; None if it has none, or rdsquashfs is missing."""
    program = shutil.which("rdsquashfs", path=env.get("PATH"))
    if program is None:
        return None
    with children.memory_file() as out:
        child = children.start([program, "-c", agreement.IMAGE_METADATA, path], {"LC_ALL": "C"}, stdout=out)
        try:
            status = child.wait()
        finally:
            children.stop(child)
        out.seek(0)
        return out.read(additions.METADATA_MAX) if status == 0 else None


def _as_layer(
    path: str, layout: LayoutWriter, env: Mapping[str, str], tick: Callable[[], None]
) -> tuple[dict[str, Any], str]:
    """Write the image's files as a compressed layer; return its description, and the uncompressed archive's digest."""
    private = os.path.join(layout.path, "layer")
    inner, outer, size = hashlib.sha256(), hashlib.sha256(), 0
    gzip = zlib.compressobj(1, zlib.DEFLATED, 31)
    with children.memory_file() as messages, open(private, "wb") as out:
        reader, writer = os.pipe()
        try:
            child = children.start([_program("sqfs2tar", env), path], {"LC_ALL": "C"}, stdout=writer, stderr=messages)
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        try:
            with open(reader, "rb", buffering=0) as archive:
                while data := archive.read(_CHUNK):
                    inner.update(data)
                    size += _write(out, outer, gzip.compress(data))
                    tick()
            size += _write(out, outer, gzip.flush())
            if child.wait():
                reason = (children.last_words(messages).splitlines() or ["no reason given"])[-1]
                raise ChError(f"{path}: can't be read: {reason}")
        finally:
            children.stop(child)
    digest = "sha256:" + outer.hexdigest()
    os.rename(private, layout.place(digest))
    return {"mediaType": _LAYER, "digest": digest, "size": size}, "sha256:" + inner.hexdigest()


def _write(out: Any, digest: Any, data: bytes) -> int:
    out.write(data)
    digest.update(data)
    return len(data)
