# SPDX-License-Identifier: Apache-2.0
"""Explain why a reference is not an image, and name the command that makes one. Loaded only for that error."""

from __future__ import annotations

import os
import stat

from ..agreement import REFERENCE_BEGINNINGS
from ..errors import ChError

# Endings of files that are images.
ENDINGS = (".sqfs", ".sqsh", ".squashfs", ".sif", ".simg", ".img")
_APPTAINERS = ("library://", "shub://", "oras://")
_URLS = ("http://", "https://", "ftp://", "file://", "s3://")

# The endings of image files' names.
ENDINGS = (".sqfs", ".sqsh", ".squashfs", ".sif", ".simg", ".img")

_COMPRESSED = ((b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2"))
# Offset and bytes of a file's magic, and what to call the file.
_OTHERS = (
    (0, b"sqsh", "SquashFS of the other byte order"),
    (0, b"hsqt", "SquashFS of an unknown kind"),
    (0, b"\x7fELF", "a program"),
    (0, b"QFI\xfb", "a virtual machine's disk"),
    (1024, b"\xe2\xe1\xf5\xe0", "an EROFS file system"),
    (1080, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (0, b"FROM ", "a recipe for an image, not built yet"),
    (0, b"Bootstrap:", "a recipe for an image, not built yet"),
)
_HEAD = 2048
_TAR_MAGIC, _TAR_BLOCK, _TAR_MEMBERS = (257, b"ustar"), 512, 50


def pulled(reference: str) -> str:
    """Return the message for a `reference` that names an image to be pulled or downloaded first; "" for others."""
    if reference.startswith(REFERENCE_BEGINNINGS):
        return f"{reference} has to be pulled first: `slurm-ch pull {reference} FILE.sqfs`, then name the file"
    if reference.startswith(_APPTAINERS):
        return f"{reference} is Apptainer's: `apptainer build --sandbox DIR {reference}`, then name the directory"
    if reference.startswith(_URLS):
        return f"{reference}: an image is a file or a directory here: download it, then name the file"
    scheme, mark, name = reference.partition("://")
    if mark and scheme.isascii() and scheme.replace("-", "").replace("+", "").isalnum():
        meant = f"docker-daemon:{name}" if scheme.lower() == "dockerd" else f"docker://{name}"
        return f"{reference}: {scheme}:// is not known here (of a registry: docker://NAME). Perhaps {meant}"
    return ""


def missing(reference: str, path: str, storage: str | None) -> str:
    """Return the message for a `reference` that is neither a file nor an image in the storage."""
    text = f"can't stat image: {reference}"
    if reference[:1] in ("~", "$"):
        return f"{text} ({reference.partition('/')[0]} is not expanded in quotes: write the whole path)"
    if reference.startswith("/"):
        return text + where_it_ends(path)
    text += f" (looked for {os.path.normpath(path)}" + (f", and in {storage}" if storage else "") + ")"
    name = reference.replace("#", "/")
    if not reference.startswith(".") and not reference.endswith(ENDINGS):
        text += f" (from a registry: docker://{name})"
    return text


def where_it_ends(path: str) -> str:
    """Return, in brackets, which directory above `path` is missing; "" if only the last part is."""
    if not path.startswith("/"):
        return ""
    here = "/"
    for part in path.split("/"):
        here = os.path.join(here, part)
        if not os.path.lexists(here):
            return f" (there is no {here} on this node)" if here != os.path.normpath(path) else ""
    return ""


def check_directory(reference: str, path: str) -> None:
    """Raise ChError if a directory without programs is recognised as something other than an image."""
    try:
        names = set(os.listdir(path))
    except OSError:
        return  # opening it will fail, with its own message
    what = ""
    if not names:
        what = "an empty directory"
    elif "oci-layout" in names:
        what = f"an OCI layout: `slurm-ch pull oci:{reference} FILE.sqfs`, then name the file"
    elif {"rootfs", "config.json"} <= names:
        what = f"an OCI bundle: the image is {reference.rstrip('/')}/rootfs"
    elif {"manifest.json", "version"} <= names:
        what = f"an image's layers: `slurm-ch pull dir:{reference} FILE.sqfs`, then name the file"
    elif {"img", "version"} <= names:
        what = f"ch-image's storage: name an image in it, with --ch-storage={reference}"
    if what:
        raise ChError(f"not an image: {reference}: {what}")


def kind(reference: str, path: str) -> str:
    """Return ": ", what the file is, and what to do with it; "" if it isn't recognised."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        head = os.pread(fd, _HEAD, 0)
        what = _archive(fd, head, reference) or _other(head)
    except OSError:
        what = ""
    finally:
        os.close(fd)
    return f": {what}" if what else ""


def _at(data: bytes, place: tuple[int, bytes]) -> bool:
    return data[place[0] : place[0] + len(place[1])] == place[1]


def _archive(fd: int, head: bytes, reference: str) -> str:
    unpack = f"`mkdir DIR; tar -xf {reference} -C DIR`, then name the directory"
    for magic, name in _COMPRESSED:
        if head.startswith(magic):
            return (
                f"compressed by {name}. An archive of a root directory: {unpack}. Of `docker save`:"
                f" `slurm-ch pull docker-archive:{reference} FILE.sqfs`, then name the file"
            )
    if head.startswith(b"PK\3\4"):
        return "a zip archive: unpack it into a directory, then name that"
    if not _at(head, _TAR_MAGIC):
        return ""
    names = _tar_names(fd)
    for name, scheme in (("oci-layout", "oci-archive"), ("manifest.json", "docker-archive")):
        if name in names:
            return (
                f"an archive of an image's layers: `slurm-ch pull {scheme}:{reference} FILE.sqfs`, then name the file"
            )
    return f"an archive: {unpack}"


def _tar_names(fd: int) -> set[str]:
    """Return the first names in a tar archive, as far as they are short."""
    names = set()
    at = 0
    for _ in range(_TAR_MEMBERS):
        block = os.pread(fd, _TAR_BLOCK, at)
        if not _at(block, _TAR_MAGIC):
            break
        names.add(block[:100].split(b"\0")[0].decode("utf-8", "replace").removeprefix("./"))
        digits = block[124:136].strip(b"\0 ")
        size = int(digits, 8) if digits.isdigit() and not digits.strip(b"01234567") else 0
        at += _TAR_BLOCK + (size + _TAR_BLOCK - 1) // _TAR_BLOCK * _TAR_BLOCK
    return names


def _other(head: bytes) -> str:
    return next((what for at, magic, what in _OTHERS if _at(head, (at, magic))), "")
