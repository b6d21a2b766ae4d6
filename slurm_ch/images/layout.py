# SPDX-License-Identifier: Apache-2.0
"""Read images in an OCI layout, a directory of this host as skopeo and similar programs write it."""

from __future__ import annotations

import json
import os

from . import manifest
from .fetch import FetchError, NotThere
from .reference import OCI, Reference


def local_layout(reference: Reference, platform: str) -> tuple[bytes, str]:
    """Return the manifest's bytes of an image in an OCI layout on this host, and the directory of its blobs.

    skopeo isn't used, because it would copy all blobs.
    """
    assert reference.scheme == OCI and reference.path is not None
    raw = _small_file(os.path.join(reference.path, "index.json"), reference)
    index = manifest.parse(raw, reference.text)
    if not isinstance(index, manifest.Index):
        raise FetchError(f"{reference.text}: not an OCI layout: its index.json is not an index")
    blobs = os.path.join(reference.path, "blobs", "sha256")
    named = _named(raw, reference.tag)
    if reference.tag and not named:
        raise NotThere(f"{reference.text}: no image of that name in the layout")
    wanted = [blob for _, blob in index.manifests if not reference.tag or blob.digest in named]
    chosen = wanted[0] if len(wanted) == 1 else manifest.choose(index, platform, reference.text)
    return _manifest_blob(blobs, chosen.digest, reference), blobs


def _named(raw: bytes, name: str) -> set[str]:
    found = set()
    for one in json.loads(raw)["manifests"]:
        notes = one.get("annotations") or {}
        if isinstance(notes, dict) and notes.get("org.opencontainers.image.ref.name") == name:
            found.add(one["digest"])
    return found


def _manifest_blob(blobs: str, digest: str, reference: Reference) -> bytes:
    raw = _small_file(blob_path(blobs, digest), reference)
    if manifest.digest_of(raw) != digest:
        raise FetchError(f"{reference.text}: damaged: the manifest is not {digest}")
    return raw


def layout_manifest(reference: Reference, digest: str, blobs: str) -> bytes:
    """Return the manifest with this digest from a layout's blobs."""
    return _manifest_blob(blobs, digest, reference)


def blob_path(blobs: str, digest: str) -> str:
    """Return the path of the blob with this digest in a layout."""
    return os.path.join(blobs, manifest.check_digest(digest, blobs).partition(":")[2])


def _small_file(path: str, reference: Reference) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(manifest.BYTES_MAX + 1)
    except OSError as error:
        raise NotThere(f"{reference.text}: can't read {path}") from error
    if len(data) > manifest.BYTES_MAX:
        raise FetchError(f"{reference.text}: {path} is too large")
    return data
