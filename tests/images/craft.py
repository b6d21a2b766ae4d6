# SPDX-License-Identifier: Apache-2.0
"""Images made by hand: layers of any headers, OCI layouts, archives."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"

Item = tuple[tarfile.TarInfo, bytes]


def item(name: str, data: bytes | str = b"", **fields: Any) -> Item:
    """Return one entry of a layer: a file, unless `type` or a trailing slash says otherwise."""
    info = tarfile.TarInfo(name.rstrip("/") if name.strip("/") else name)
    content = data.encode() if isinstance(data, str) else data
    info.mtime = 1_700_000_000
    if name.endswith("/"):
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    for key, value in fields.items():
        setattr(info, key, value)
    if info.isreg():
        info.size = len(content)
    return info, content


def link(name: str, target: str, **fields: Any) -> Item:
    """Return a hard link."""
    return item(name, type=tarfile.LNKTYPE, linkname=target, **fields)


def symlink(name: str, target: str, **fields: Any) -> Item:
    """Return a symbolic link."""
    return item(name, type=tarfile.SYMTYPE, linkname=target, mode=0o777, **fields)


def layer(items: Iterable[Item], format: int = tarfile.PAX_FORMAT) -> bytes:
    """Return the archive with these entries, not compressed."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for info, data in items:
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return out.getvalue()


def busybox() -> bytes:
    """Return a base layer in which a shell runs."""
    program = Path("/bin/busybox").read_bytes()
    names = ("sh", "cat", "ls", "env", "true", "pwd", "id", "echo", "test", "sleep", "printf", "hostname")
    items = [item("bin/"), item("bin/busybox", program, mode=0o755)]
    items += [symlink(f"bin/{name}", "busybox") for name in names]
    return layer(items)


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _gzip(data: bytes) -> tuple[bytes, str]:
    return gzip.compress(data, 1, mtime=0), "+gzip"


def _zstd(data: bytes) -> tuple[bytes, str]:
    return subprocess.run(["zstd", "-cq1"], input=data, check=True, capture_output=True).stdout, "+zstd"


def _plain(data: bytes) -> tuple[bytes, str]:
    return data, ""


COMPRESSIONS: dict[str, Callable[[bytes], tuple[bytes, str]]] = {"gzip": _gzip, "zstd": _zstd, "plain": _plain}


class Layout:
    """An OCI layout on disk, to which blobs and images are added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifests: list[dict[str, Any]] = []
        (path / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data: bytes) -> dict[str, Any]:
        name = digest(data)
        (self.path / "blobs/sha256" / name[7:]).write_bytes(data)
        return {"digest": name, "size": len(data)}

    def json(self, value: Any) -> dict[str, Any]:
        return self.blob(json.dumps(value).encode())

    def image(
        self,
        layers: Iterable[bytes],
        config: dict[str, Any] | None = None,
        *,
        compression: str | list[str] = "gzip",
        architecture: str = "amd64",
        name: str | None = "image",
        platform: dict[str, str] | None = None,
    ) -> str:
        """Add an image of uncompressed layers and return its manifest's digest."""
        layers = list(layers)
        hows = [compression] * len(layers) if isinstance(compression, str) else compression
        described = []
        for data, how in zip(layers, hows):
            packed, suffix = COMPRESSIONS[how](data)
            described.append({"mediaType": LAYER + suffix, **self.blob(packed)})
        whole = {
            "architecture": architecture,
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [digest(data) for data in layers]},
        }
        return self.manifest({"mediaType": CONFIG, **self.json(whole)}, described, name, platform)

    def manifest(
        self,
        config: dict[str, Any],
        layers: list[dict[str, Any]],
        name: str | None = "image",
        platform: dict[str, str] | None = None,
        **more: Any,
    ) -> str:
        value = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers, **more}
        return self.add({"mediaType": MANIFEST, **self.json(value)}, name, platform)

    def add(self, descriptor: dict[str, Any], name: str | None, platform: dict[str, str] | None = None) -> str:
        if platform:
            descriptor["platform"] = platform
        if name is not None:
            descriptor["annotations"] = {"org.opencontainers.image.ref.name": name}
        self.manifests.append(descriptor)
        (self.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": self.manifests}))
        found: str = descriptor["digest"]
        return found

    def index(self, name: str = "index") -> str:
        """Make an index of all images so far, and return its digest."""
        value = {"schemaVersion": 2, "mediaType": INDEX, "manifests": self.manifests}
        self.manifests = []
        return self.add({"mediaType": INDEX, **self.json(value)}, name)

    def __str__(self) -> str:
        return f"oci:{self.path}"
