# SPDX-License-Identifier: Apache-2.0
"""Keep the changes to an image in a directory of the user's; later containers overlay the image with it again.

    DIR/upper   the changes, in overlayfs's format       DIR/image   the image's path, and the reference that
    DIR/work    for overlayfs                                        it was pulled by
Loaded only if it is requested.
"""

from __future__ import annotations

import _stat as stat
import errno

from .. import agreement, linux
from .. import lean_os as os
from ..errors import ChError, UsageError
from . import places, root
from .action import HOOK_SKIP, Action

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..request.spec import Spec
    from .action import Build, Hooks
    from .image import Image

_PLAIN = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS

_SUPPORTED = "ext4, xfs, btrfs and tmpfs can, NFS and Lustre can't"


def actions(spec: Spec, path: str, image: Image, at_last: Hooks) -> list[Action]:
    """Return the actions that overlay the image with the changes in `path`."""
    named = spec.compatibility.container_name if spec.compatibility else None
    if named is None:
        return [LayOverlay(path, image, f"{spec.label('overlay')}={spec.overlay}", spec.image)]
    lay = LayOverlay(path, image, named.label, spec.image, named.mark)
    if not named.read_only:
        return [lay]
    # Mount points are created later: read-only covers keep what commands write there from being lost.
    at_last.add("read-only covers", _cover_read_only, duplicate=HOOK_SKIP)
    return [lay, root.ReadOnlyRoot()]


def _cover_read_only(container: Any, _data: object) -> None:
    root.ReadOnlyCovers().apply(container.build)


class LayOverlay(Action):
    """Overlay the image with the changes in a directory; new changes are written there.

    `reference`: the image as the user named it. `source`: the mount's name in /proc/PID/mountinfo.
    """

    __slots__ = ("image", "label", "path", "reference", "source")

    def __init__(self, path: str, image: Image, label: str, reference: str, source: str = places.SOURCE) -> None:
        self.path = path
        self.image = image
        self.label = label
        self.reference = reference
        self.source = source

    def describe(self) -> str:
        return f"overlay new root with the changes kept in {self.path}"

    def apply(self, build: Build) -> None:
        fd, *inside = self._open()
        # By descriptor: overlayfs splits a path at commas and backslashes.
        upper, work = (f"/proc/self/fd/{one}" for one in inside)
        try:
            # Mode 0 marks a new directory. Later, its mode is the root directory's, which the user may have changed.
            if os.stat(upper).st_mode & 0o7777 == 0:
                os.chmod(upper, os.stat(build.root).st_mode & 0o7777)
            self._check_attributes(upper)
            if self.source == places.SOURCE:
                # For a named container, named_containers.py has checked this, and holds the lock.
                self._check_in_use(upper, work)
            try:
                merged = places.overlay(build.root, upper, work, index=False, volatile=False, source=self.source)
            except OSError as error:
                raise ChError(
                    f"{self.label}: can't overlay the image with this directory; its file system has to support it"
                    f" ({_SUPPORTED})"
                ) from error
            self._write_image_path(fd)
        finally:
            for one in (fd, *inside):
                os.close(one)
        os.mkdir("kept", 0o700)
        linux.move_mount(merged, "", linux.AT_FDCWD, "kept", linux.MOVE_MOUNT_F_EMPTY_PATH)
        os.close(merged)
        root.take_root(build, "kept")
        build.read_only = False

    def _open(self) -> tuple[int, int, int]:
        """Return descriptors of the directory, `upper` and `work`, which are created if they are missing.

        UsageError if one of them isn't the user's. No symbolic link in the directory is followed: a command that
        sees the directory could put one there, to anywhere on the host.
        """
        found = []
        try:
            try:
                os.mkdir(self.path, 0o700)
            except FileExistsError:
                pass
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            for name, mode in (("upper", 0), ("work", 0o700)):
                found.append(_directory(fd, name, mode))
            owners = {os.fstat(one).st_uid for one in (fd, *found)}
        except OSError as error:
            raise ChError(f"{self.label}: can't use the directory") from error
        # In this namespace, the user's id is 0, and all other ids are shown as nobody's.
        if owners != {0}:
            raise UsageError(f"{self.label}: the directory, or one in it, belongs to somebody else")
        return fd, found[0], found[1]

    def _check_attributes(self, upper: str) -> None:
        """Raise ChError if the file system has no user extended attributes, which overlayfs needs."""
        try:
            os.setxattr(upper, "user.slurm_ch", b"")
            os.removexattr(upper, "user.slurm_ch")
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                raise ChError(f"{self.label}: can't write there") from error
            raise ChError(f"{self.label}: its file system has no extended attributes for users: {_SUPPORTED}") from None

    def _check_in_use(self, upper: str, work: str) -> None:
        """Raise ChError if another container on this node uses the directory: the kernel checks it with an index."""
        os.mkdir("probe", 0o700)
        try:
            os.close(places.overlay("probe", upper, work, volatile=False))
        except OSError as error:
            if error.errno == errno.EBUSY:
                # sbatch's options are the defaults of the steps in its script.
                script = ", perhaps this job's script: give the option to srun only" if "--ch-" in self.label else ""
                raise ChError(f"{self.label}: another container on this node is using it{script}") from None
        finally:
            os.rmdir("probe")

    def _write_image_path(self, fd: int) -> None:
        """Write down which image the changes belong to."""
        try:
            how = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW
            note = linux.openat2(fd, "image", how, _PLAIN, 0o600)
            if not stat.S_ISREG(os.fstat(note).st_mode):
                raise ChError(f"{self.label}: {self.path}/image is not a file")
            os.ftruncate(note, 0)
            lines = [self.image.path]
            if self.reference.startswith(agreement.REFERENCE_BEGINNINGS):
                lines.append(self.reference)
            os.write(note, os.fsencode("".join(f"{line}\n" for line in lines)))
            os.close(note)
        except OSError as error:
            raise ChError(f"{self.label}: can't write there") from error


def _directory(fd: int, name: str, mode: int) -> int:
    """Return a descriptor of the directory `name` in `fd`; if it is missing, create it with the mode."""
    try:
        os.mkdir(name, mode, dir_fd=fd)
        is_new = True
    except FileExistsError:
        is_new = False
    found = linux.openat2(fd, name, os.O_PATH | os.O_DIRECTORY, _PLAIN)
    if is_new:
        os.chmod(f"/proc/self/fd/{found}", mode)
    return found
