"""Image references: what a string that names an image refers to.

Only looks, never changes anything.
"""

from __future__ import annotations

import os
import stat

from .errors import ChError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DIRECTORY = "directory"
SQUASHFS = "SquashFS"
HOST = "host"
JOINED = "joined"  # somebody else has looked it up

# https://dr-emann.github.io/squashfs/ : the superblock's magic, little-endian.
_SQUASHFS_MAGIC = b"hsqs"


class Image:
    """An image that exists: as it was called, its kind, and its absolute path."""

    __slots__ = ("kind", "path", "reference")

    def __init__(self, reference: str, kind: str, path: str) -> None:
        self.reference = reference
        self.kind = kind
        self.path = path


def storage_directory(option: str | None, environment: Mapping[str, str], user: str) -> str:
    """Return where images by name are: the option, CH_IMAGE_STORAGE, or /var/tmp/USER.ch."""
    return option or environment.get("CH_IMAGE_STORAGE") or f"/var/tmp/{user}.ch"


def name_to_path(name: str, storage: str) -> str:
    """Return the directory in `storage` that holds the image called `name`."""
    return os.path.join(storage, "img", name.replace("/", "%").replace(":", "+"))


def is_host(reference: str) -> bool:
    """Whether the reference is the host's own root directory."""
    return reference.startswith("/") and not os.path.normpath(reference).strip("/")


def resolve(reference: str, storage: str, cwd: str) -> Image:
    """Return the image that `reference` names, relative paths taken from `cwd`.

    Raises ChError when there is none, with the path and the reason.
    """
    if is_host(reference):
        return Image(reference, HOST, "/")
    named = name_to_path(reference, storage)
    if os.path.isdir(named):
        return Image(reference, DIRECTORY, named)
    path = os.path.join(cwd, reference)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise ChError(f"can't stat image: {reference}") from error
    if stat.S_ISDIR(mode):
        return Image(reference, DIRECTORY, path)
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise ChError(f"unknown image type: {reference}")
    _check_magic(reference, path)
    return Image(reference, SQUASHFS, path)


def in_storage(image: Image, storage: str) -> bool:
    """Whether the image belongs to `ch-image`, by name or by path."""
    return os.path.realpath(image.path).startswith(os.path.realpath(storage) + "/img/")


def _check_magic(reference: str, path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ChError(f"can't open image: {reference}") from error
    try:
        magic = os.read(fd, 4)
    except OSError as error:
        raise ChError(f"can't read image: {reference}") from error
    finally:
        os.close(fd)
    if len(magic) < 4:
        raise ChError(f"can't read image: {reference}: shorter than 4 bytes")
    if magic != _SQUASHFS_MAGIC:
        raise ChError(f"unknown image type: {reference}")
