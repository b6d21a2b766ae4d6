# SPDX-License-Identifier: Apache-2.0
"""Find the image that a reference names: a directory, a SquashFS or SIF file, or the host itself.

Changes nothing.
"""

from __future__ import annotations

import _stat as stat

from .. import agreement, log
from .. import lean_os as os
from ..errors import ChError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DIRECTORY = "directory"
SQUASHFS = "SquashFS"
HOST = "host"
JOINED = "joined"  # not looked up: another process made the container

_STORAGE_PARENT = "/var/tmp"


class Image:
    """An image that exists: the reference, its kind, its absolute path, and an open descriptor.

    The descriptor is of the file that was checked; the path may lead to another file later. A file's
    descriptor can be read, a directory's is O_PATH, -1 means none. The object owns it.
    """

    __slots__ = ("fd", "kind", "offset", "path", "reference")

    def __init__(self, reference: str, kind: str, path: str, fd: int = -1) -> None:
        self.reference = reference
        self.kind = kind
        self.path = path
        self.fd = fd
        self.offset = 0  # in bytes, of the SquashFS in its file

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()


def storage_directory(option: str | None, environment: Mapping[str, str], user: str) -> str | None:
    """Return ch-image's storage directory: the `option`, CH_IMAGE_STORAGE, or /var/tmp/USER.ch.

    Return None instead of the default if it isn't the caller's own or others can write to it:
    anybody can create a directory of that name, and put an image in it under a name that this
    user means.
    """
    chosen = option or environment.get("CH_IMAGE_STORAGE")
    if chosen:
        return chosen
    default = f"{_STORAGE_PARENT}/{user}.ch"
    for path in (default, f"{default}/img"):
        try:
            # Both owners: a link may belong to the user, and its target to somebody else.
            link, status = os.lstat(path), os.stat(path)
        except (OSError, ValueError):
            return None if path == default else default
        for owner in (link.st_uid, status.st_uid):
            if owner not in (0, os.geteuid()):
                log.warning(f"ignoring {default}: {path} belongs to uid {owner}")
                return None
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            log.warning(f"ignoring {default}: others can write to {path} (chmod go-w {path})")
            return None
    return default


def name_to_path(name: str, storage: str) -> str:
    """Return the directory in `storage` that holds the image called `name`."""
    return os.path.join(storage, "img", name.replace("/", "%").replace(":", "+"))


def is_host(reference: str) -> bool:
    """Whether the reference is "/", the host's own root directory."""
    return reference.startswith("/") and not os.path.normpath(reference).strip("/")


def resolve(reference: str, storage: str | None, cwd: str) -> Image:
    """Return the image that `reference` names; relative paths start at `cwd`.

    A name in the storage counts before a path. ChError if there is no image, with the path and the reason.
    """
    if is_host(reference):
        return Image(reference, HOST, "/")
    # Not "." and "..": these exist in every directory, so in the storage too.
    if storage is not None and reference.strip("."):
        named = name_to_path(reference, storage)
        try:
            return Image(reference, DIRECTORY, named, _open_directory(named))
        except (OSError, ValueError):
            pass
    path = os.path.join(cwd, reference)
    try:
        found = Image(reference, SQUASHFS, path, os.open(path, os.O_PATH | os.O_CLOEXEC))
        mode = os.fstat(found.fd).st_mode
        if stat.S_ISDIR(mode):
            found = Image(reference, DIRECTORY, path, _open_directory(path))
            _check_directory(found)
            return found
    except (OSError, ValueError) as error:
        from . import not_an_image

        pulled = not_an_image.pulled(reference)
        if pulled:
            raise ChError(pulled) from None
        raise ChError(not_an_image.missing(reference, path, storage)) from error
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise ChError(f"unknown image type: {reference}")
    _open_file(found)
    return found


def _open_directory(path: str) -> int:
    # "/." has an automounter mount the directory.
    return os.open(path + "/.", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _check_directory(image: Image) -> None:
    """Raise ChError if a directory without `bin` and `usr` is recognised as something other than an image."""
    for name in ("bin", "usr"):
        try:
            os.stat(name, dir_fd=image.fd, follow_symlinks=False)
            return
        except OSError:
            pass
    from . import not_an_image

    not_an_image.check_directory(image.reference, image.path)


def in_storage(image: Image, storage: str) -> bool:
    """Whether the image is in ch-image's storage, whether it was given by name or by path."""
    path = os.readlink(f"/proc/self/fd/{image.fd}") if image.fd >= 0 else os.path.realpath(image.path)
    return path.startswith(os.path.realpath(storage) + "/img/")


def _open_file(image: Image) -> None:
    """Replace the image's O_PATH descriptor by a readable one; ChError if the file is neither SquashFS nor SIF."""
    reference = image.reference
    try:
        fd = os.open(f"/proc/self/fd/{image.fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        error.filename = image.path
        raise ChError(f"can't open image: {reference}") from error
    image.close()
    image.fd = fd
    try:
        magic = os.pread(fd, 4, 0)
    except OSError as error:
        raise ChError(f"can't read image: {reference}") from error
    if len(magic) < 4:
        raise ChError(f"can't read image: {reference}: shorter than 4 bytes")
    if magic != agreement.SQUASHFS_MAGIC.encode():
        if magic[:2] == b"#!":
            from . import sif

            begin = sif.offset(fd, reference)
            if begin is not None:
                image.offset = begin
                return
        from . import not_an_image

        raise ChError(f"unknown image type: {reference}{not_an_image.kind(reference, image.path)}")
