# SPDX-License-Identifier: Apache-2.0
"""Image references: what a string that names an image refers to.

Only looks, never changes anything.
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
JOINED = "joined"  # somebody else has looked it up

_STORAGE_PARENT = "/var/tmp"


class Image:
    """An image that exists: as it was called, its kind, its absolute path, and a descriptor of it.

    The path may lead elsewhere by the time that the container is made: the descriptor is what was looked at.
    A file's can be read; a directory's is a place only. -1: there is none.
    """

    __slots__ = ("fd", "kind", "offset", "path", "reference")

    def __init__(self, reference: str, kind: str, path: str, fd: int = -1) -> None:
        self.reference = reference
        self.kind = kind
        self.path = path
        self.fd = fd
        self.offset = 0  # where in its file a SquashFS begins

    def close(self) -> None:
        """Let go of the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()


def storage_directory(option: str | None, environment: Mapping[str, str], user: str) -> str | None:
    """Return where images by name are: the option, CH_IMAGE_STORAGE, or /var/tmp/USER.ch.

    The last only if it is the caller's own and nobody else can write to it, else
    None: anybody can make a directory of that name, and who can write to one can
    put an image in it that is called like another.
    """
    chosen = option or environment.get("CH_IMAGE_STORAGE")
    if chosen:
        return chosen
    default = f"{_STORAGE_PARENT}/{user}.ch"
    for path in (default, f"{default}/img"):
        try:
            # A link may be one's own, and where it leads somebody else's.
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
    """Whether the reference is the host's own root directory."""
    return reference.startswith("/") and not os.path.normpath(reference).strip("/")


def resolve(reference: str, storage: str | None, cwd: str) -> Image:
    """Return the image that `reference` names, relative paths taken from `cwd`.

    Raises ChError when there is none, with the path and the reason.
    """
    if is_host(reference):
        return Image(reference, HOST, "/")
    # "." and ".." are directories everywhere, in the storage too.
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
    # With the dot what is mounted there on demand is mounted.
    return os.open(path + "/.", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _check_directory(image: Image) -> None:
    """Raise ChError where a directory that has no programs is known to be no image."""
    for name in ("bin", "usr"):
        try:
            os.stat(name, dir_fd=image.fd, follow_symlinks=False)
            return
        except OSError:
            pass
    from . import not_an_image

    not_an_image.check_directory(image.reference, image.path)


def in_storage(image: Image, storage: str) -> bool:
    """Whether the image belongs to `ch-image`, by name or by path."""
    path = os.readlink(f"/proc/self/fd/{image.fd}") if image.fd >= 0 else os.path.realpath(image.path)
    return path.startswith(os.path.realpath(storage) + "/img/")


def _open_file(image: Image) -> None:
    """Have the image's descriptor be one that can be read, and see that it is SquashFS; ChError if it isn't."""
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
