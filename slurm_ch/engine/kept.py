# SPDX-License-Identifier: Apache-2.0
"""What is written over an image, kept in a directory of the user's and laid over it again by later containers.

    DIR/upper   the changes, as overlayfs keeps them     DIR/image   the image's path
    DIR/work    overlayfs's own
Loaded only where that is asked for.
"""

from __future__ import annotations

import errno
import os

from .. import linux
from ..errors import ChError, UsageError
from . import places, root
from .action import Action

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .action import Build
    from .image import Image

_CAN = "ext4, xfs, btrfs and tmpfs can, NFS and Lustre can't"


class LayKept(Action):
    """Lay the changes in a directory over the image, and have new ones written there."""

    __slots__ = ("image", "label", "path")

    def __init__(self, path: str, image: Image, label: str) -> None:
        self.path = path
        self.image = image
        self.label = label

    def describe(self) -> str:
        return f"overlay new root with what is kept in {self.path}"

    def apply(self, build: Build) -> None:
        fd = self._open()
        # By descriptor: overlayfs takes a path with a comma or a backslash apart.
        upper, work = (f"/proc/self/fd/{fd}/{name}" for name in ("upper", "work"))
        try:
            # Before the first time, and never again: later its mode is the root's that the user has changed.
            if os.stat(upper).st_mode & 0o7777 == 0:
                os.chmod(upper, os.stat(build.root).st_mode & 0o7777)
            self._check_attributes(upper)
            self._check_in_use(upper, work)
            try:
                merged = places.overlay(build.root, upper, work, index=False, volatile=False)
            except OSError as error:
                raise ChError(
                    f"{self.label}: can't overlay the image with what is in it: on this file system? ({_CAN})"
                ) from error
            self._note(fd)
        finally:
            os.close(fd)
        os.mkdir("kept", 0o700)
        linux.move_mount(merged, "", linux.AT_FDCWD, "kept", linux.MOVE_MOUNT_F_EMPTY_PATH)
        os.close(merged)
        root.take_root(build, "kept")
        build.read_only = False

    def _open(self) -> int:
        """Return a descriptor of the directory, with in it what must be there; ChError if it isn't the user's."""
        try:
            for path, mode in ((self.path, 0o700), (f"{self.path}/upper", 0), (f"{self.path}/work", 0o700)):
                try:
                    os.mkdir(path)
                    os.chmod(path, mode)
                except FileExistsError:
                    pass
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            owners = {os.stat(name, dir_fd=fd, follow_symlinks=False).st_uid for name in (".", "upper", "work")}
        except OSError as error:
            raise ChError(f"{self.label}: can't use the directory") from error
        # In this namespace we are root, and nobody else is anybody.
        if owners != {0}:
            os.close(fd)
            raise UsageError(f"{self.label}: the directory, or one in it, belongs to somebody else")
        return fd

    def _check_attributes(self, upper: str) -> None:
        """Raise ChError if the file system can't keep what overlayfs notes of a directory."""
        try:
            os.setxattr(upper, "user.slurm_ch", b"")
            os.removexattr(upper, "user.slurm_ch")
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                raise ChError(f"{self.label}: can't write there") from error
            raise ChError(f"{self.label}: its file system has no extended attributes for users: {_CAN}") from None

    def _check_in_use(self, upper: str, work: str) -> None:
        """Raise ChError if another container here writes there: the kernel says so only if asked for an index."""
        os.mkdir("probe", 0o700)
        try:
            os.close(places.overlay("probe", upper, work, volatile=False))
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise ChError(f"{self.label}: another container on this node is using it") from None
        finally:
            os.rmdir("probe")

    def _note(self, fd: int) -> None:
        """Note which image the changes are of."""
        try:
            note = os.open("image", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=fd)
            os.write(note, os.fsencode(self.image.path + "\n"))
            os.close(note)
        except OSError as error:
            raise ChError(f"{self.label}: can't write there") from error
