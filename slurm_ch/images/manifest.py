# SPDX-License-Identifier: Apache-2.0
"""Parse manifests, which list an image's parts by their digests, and choose one from an index by platform."""

from __future__ import annotations

import json
import os
import re

from ..errors import ChError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# The largest manifest that registries accept.
BYTES_MAX = 4 << 20

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_MACHINES = {
    "x86_64": "amd64", "aarch64": "arm64", "i686": "386", "i386": "386", "armv7l": "arm/v7", "armv6l": "arm/v6",
}  # fmt: skip


class ManifestError(ChError):
    """A manifest is invalid, or of an image that can't be used here."""


class Blob:
    """A manifest's description of a blob."""

    __slots__ = ("digest", "media_type", "size")

    def __init__(self, media_type: str, digest: str, size: int) -> None:
        self.media_type = media_type
        self.digest = digest
        self.size = size


class Manifest:
    """The manifest of an image for one platform."""

    __slots__ = ("config", "digest", "layers", "raw")

    def __init__(self, raw: bytes, config: Blob, layers: list[Blob]) -> None:
        self.raw = raw
        self.digest = digest_of(raw)
        self.config = config
        self.layers = layers

    @property
    def size(self) -> int:
        """The number of bytes to fetch."""
        return self.config.size + sum(layer.size for layer in self.layers)

    @property
    def squashfs(self) -> bool:
        """Whether the image is one SquashFS file, stored as an artifact."""
        return len(self.layers) == 1 and "squashfs" in self.layers[0].media_type.lower()


class Index:
    """The index of an image for several platforms: `manifests` are pairs of a platform and a blob."""

    __slots__ = ("digest", "manifests", "raw")

    def __init__(self, raw: bytes, manifests: list[tuple[str, Blob]]) -> None:
        self.raw = raw
        self.digest = digest_of(raw)
        self.manifests = manifests


def digest_of(data: bytes) -> str:
    """Return the digest of some bytes."""
    import hashlib

    return "sha256:" + hashlib.sha256(data).hexdigest()


def check_digest(digest: object, what: str) -> str:
    """Return `digest` if it is a valid sha256 digest, else ManifestError. It becomes part of a path."""
    if not isinstance(digest, str) or not _DIGEST.match(digest):
        raise ManifestError(f"{what}: a digest that is not `sha256:` and 64 hexadecimal digits: {str(digest)[:80]}")
    return digest


def _blob(value: Any, what: str) -> Blob:
    if not isinstance(value, dict):
        raise ManifestError(f"{what}: the manifest is wrong: no description of a blob: {str(value)[:80]}")
    size = value.get("size")
    if not isinstance(size, int) or size < 0:
        raise ManifestError(f"{what}: the manifest is wrong: a size of {str(size)[:80]}")
    return Blob(str(value.get("mediaType", "")), check_digest(value.get("digest"), what), size)


def parse(raw: bytes, what: str) -> Manifest | Index:
    """Parse a manifest or an index; ManifestError if it is invalid or not supported."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise ManifestError(f"{what}: not an image: its manifest is not JSON") from None
    if not isinstance(value, dict):
        raise ManifestError(f"{what}: not an image: its manifest is not a JSON object")
    if value.get("schemaVersion") == 1:
        raise ManifestError(
            f"{what}: an image in Docker's old format (schema 1), which is not supported: push it again"
        )
    if isinstance(value.get("manifests"), list):
        return Index(raw, [(_platform(one), _blob(one, what)) for one in value["manifests"]])
    if not isinstance(value.get("layers"), list) or "config" not in value:
        raise ManifestError(f"{what}: not an image: its manifest has no layers")
    layers = [_blob(one, what) for one in value["layers"]]
    for number, (layer, one) in enumerate(zip(layers, value["layers"]), 1):
        if "encrypted" in layer.media_type:
            raise ManifestError(f"{what}: layer {number} is encrypted, which is not supported")
        if "foreign" in layer.media_type or "nondistributable" in layer.media_type or one.get("urls"):
            raise ManifestError(f"{what}: layer {number} is not in the registry but elsewhere (a foreign layer)")
    return Manifest(raw, _blob(value["config"], what), layers)


def _platform(value: Any) -> str:
    platform = value.get("platform") if isinstance(value, dict) else None
    if not isinstance(platform, dict):
        return ""
    parts = [str(platform.get(key) or "") for key in ("os", "architecture", "variant")]
    return "/".join(parts).rstrip("/")


def this_platform() -> str:
    """Return this machine's platform, like linux/amd64."""
    machine = os.uname().machine
    return "linux/" + _MACHINES.get(machine, machine)


def check_platform(text: str) -> str:
    """Return `text` if it has the form of a platform, else UsageError."""
    if not re.fullmatch(r"[a-z0-9]+/[a-z0-9_]+(/[a-z0-9.]+)?", text):
        raise UsageError(f"{text}: not a platform, which is OS/ARCHITECTURE[/VARIANT], such as linux/arm64")
    return text


def choose(index: Index, platform: str, what: str) -> Blob:
    """Return the manifest for `platform`; if there is none, ManifestError lists those that there are."""
    for exact in (True, False):
        for there, blob in index.manifests:
            if there == platform or (not exact and (there + "/").startswith(platform + "/")):
                return blob
    # linux/arm64 means linux/arm64/v8, and linux/arm/v7 can run images for linux/arm.
    shorter = platform.rpartition("/")[0]
    for there, blob in index.manifests:
        if shorter.count("/") == 1 and there == shorter:
            return blob
    known = sorted({there for there, _ in index.manifests if there and "unknown" not in there})
    raise ManifestError(f"{what}: no image for {platform}; there are: {', '.join(known) or 'none'}")
