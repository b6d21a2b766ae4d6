# SPDX-License-Identifier: Apache-2.0
"""Actions for the file system tree: the new root, mounts and files over it, and the pivot."""

from __future__ import annotations

import _stat as stat
import errno

from .. import lean_os as os
from .. import linux, log
from ..errors import ChError
from . import accounts, places
from .action import Action, Build
from .binds import BindMount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .image import Image

# Enough for passwd, group, and the directories of covers.
_STAGING = {"size": "4m", "mode": "0755"}
# Bytes of passwd or group. Even the users of a large site need less.
_ACCOUNTS_MAX = 1 << 20


class OpenDirectory(Action):
    """Use a directory of the host as the image."""

    __slots__ = ("image",)

    def __init__(self, image: Image) -> None:
        self.image = image

    def describe(self) -> str:
        return f"use directory {self.image.path} as image"

    def apply(self, build: Build) -> None:
        flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_RECURSIVE
        try:
            # By path: the descriptor in image.fd belongs to a mount of the previous mount namespace.
            build.image_fd = linux.open_tree(linux.AT_FDCWD, self.image.path, flags)
        except OSError as error:
            raise ChError(f"can't open image: {self.image.path}") from error
        if self.image.fd >= 0 and not os.path.samestat(os.fstat(build.image_fd), os.fstat(self.image.fd)):
            raise ChError(f"can't open image: {self.image.path}: another directory has taken its place")
        self.image.close()


class OpenSources(Action):
    """Open every bind's source while "/" is still the host's root.

    Later, a path that climbs above the root would lead to the staging tmpfs.
    """

    __slots__ = ("binds",)

    def __init__(self, binds: Sequence[BindMount]) -> None:
        self.binds = binds

    def describe(self) -> str:
        return f"open the sources of {len(self.binds)} binds"

    def apply(self, build: Build) -> None:
        del build
        for bind in self.binds:
            bind.open_source()


class MountStaging(Action):
    """Mount the staging tmpfs, and the image in it as the new root, with private propagation."""

    __slots__ = ("reference",)

    def __init__(self, reference: str) -> None:
        self.reference = reference

    def describe(self) -> str:
        return "mount new root in a private staging tmpfs"

    def apply(self, build: Build) -> None:
        staging = places.tmpfs(_STAGING)
        flags = linux.MOVE_MOUNT_F_EMPTY_PATH
        linux.move_mount(staging, "", linux.AT_FDCWD, "/", flags)
        # Absolute paths still lead to the host; only the working directory is in
        # the staging tmpfs.
        os.fchdir(staging)
        os.close(staging)
        os.mkdir("image", 0o755)
        os.mkdir(places.SCRATCH, 0o700)
        # Devices come with the host's /dev; device files of an image must not work.
        locked = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
        linux.mount_setattr(build.image_fd, 0, locked, linux.MS_PRIVATE)
        linux.move_mount(build.image_fd, "", linux.AT_FDCWD, "image", flags)
        os.close(build.image_fd)
        build.image_fd = -1
        take_root(build, "image")
        _wait_for_image(build, self.reference)


def _wait_for_image(build: Build, what: str) -> None:
    """Wait until the image's server answers; ChError with the server's error message if it fails."""
    try:
        os.stat(build.root, follow_symlinks=True)
    except OSError as error:
        words = ""
        if build.server_stderr >= 0:
            from .squashfs import server_errors  # already loaded: it has started the server

            words = server_errors(build, error)
        raise ChError(f"can't read image: {what}{words}") from error
    if build.server_stderr >= 0:
        os.close(build.server_stderr)
        build.server_stderr = -1


def take_root(build: Build, path: str) -> None:
    """Make `path`, relative to the staging directory, the new root."""
    if build.root_fd >= 0:
        os.close(build.root_fd)
    build.root = path
    build.root_fd = linux.openat2(linux.AT_FDCWD, path, os.O_PATH | os.O_DIRECTORY, 0)
    build.mounts.add(places.mount_id(build.root_fd))


class ReadOnlyRoot(Action):
    """Make the new root read-only and keep its other mount flags."""

    __slots__ = ()

    def describe(self) -> str:
        return "make new root read-only"

    def apply(self, build: Build) -> None:
        linux.mount_setattr(build.root_fd, 0, linux.MOUNT_ATTR_RDONLY)
        build.read_only = True


class WriteFake(Action):
    """Overlay the image with a tmpfs of limited size; `label` is the option that asked for it."""

    __slots__ = ("label", "size")

    def __init__(self, size: str, label: str) -> None:
        self.size = size
        self.label = label

    def describe(self) -> str:
        return f"overlay new root with a tmpfs of {self.size}"

    def apply(self, build: Build) -> None:
        os.mkdir("fake", 0o700)
        layer = places.tmpfs({"size": self.size, "mode": "0700"})
        linux.move_mount(layer, "", linux.AT_FDCWD, "fake", linux.MOVE_MOUNT_F_EMPTY_PATH)
        os.close(layer)
        for name in ("upper", "work", "merged"):
            os.mkdir(f"fake/{name}", 0o700)
        # The upper directory's mode becomes the merged root's.
        os.chmod("fake/upper", os.stat(build.root).st_mode & 0o7777)
        try:
            merged = places.overlay(build.root, "fake/upper", "fake/work")
        except OSError as error:
            raise ChError(f"{self.label}: can't overlay the image") from error
        linux.move_mount(merged, "", linux.AT_FDCWD, "fake/merged", linux.MOVE_MOUNT_F_EMPTY_PATH)
        os.close(merged)
        take_root(build, "fake/merged")
        build.in_memory = True
        build.read_only = False


class ReadOnlyCovers(Action):
    """Make the covers of a read-only image read-only: files written there would not be in the image."""

    __slots__ = ()

    def describe(self) -> str:
        return "make the overmounts read-only"

    def apply(self, build: Build) -> None:
        for cover in build.covers:
            linux.mount_setattr(cover, 0, linux.MOUNT_ATTR_RDONLY)
            os.close(cover)
        build.covers.clear()


class WriteFile(Action):
    """Put a file with the given text over one of the image's."""

    __slots__ = ("create", "path", "text")

    def __init__(self, path: str, text: str, create: bool = True) -> None:
        self.path = path
        self.text = text
        self.create = create  # whether it is created if the image has none

    def describe(self) -> str:
        return f"write {self.path}"

    def apply(self, build: Build) -> None:
        # In the staging tmpfs, so nothing is written to the host's disks.
        name = os.path.basename(self.path)
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        os.fchmod(fd, 0o644)
        os.write(fd, self.text.encode("utf-8", "surrogateescape"))
        os.close(fd)
        # Not unlinked: the mount of an unlinked file can't be moved again.
        BindMount(name, self.path, dst_create=self.create, follow=True).apply(build)


class BindWhereMissing(BindMount):
    """Bind a file of the host at its own path if the image has none there."""

    __slots__ = ()

    def __init__(self, path: str) -> None:
        super().__init__(path, path, src_optional=True, dst_create=True, readonly=True, follow=True)

    def describe(self) -> str:
        return f"bind {self.src} at {self.dst} (read-only, if the image has none)"

    def apply(self, build: Build) -> None:
        if not places.exists(build, self.dst):
            super().apply(build)
            return
        source = self.open_source()
        self._source = None
        if source >= 0:
            os.close(source)


class AddAccount(Action):
    """Add the container's user or group to the image's passwd or group.

    A file that is bound there is not changed. If the tree is writeable in memory, the file itself is
    rewritten, because useradd has to replace it, and can't replace a mount. Otherwise a changed copy
    is bound over it.
    """

    __slots__ = ("line", "path", "text", "whole")

    def __init__(self, path: str, line: Callable[[Build], str], whole: Callable[[str], str]) -> None:
        self.path = path
        self.line = line
        self.whole = whole
        self.text = ""

    def describe(self) -> str:
        return f"add the user to {self.path}"

    def apply(self, build: Build) -> None:
        line = self.line(build)
        try:
            fd = places.open_file(build, self.path)
        except OSError:
            old = ""
        else:
            # Unbuffered: otherwise Python checks for a terminal, which costs a request to the image's server.
            with open(fd, "rb", buffering=0) as file:
                if places.mount_id(fd) not in build.mounts:
                    return
                # Not from a FIFO or a device.
                regular = stat.S_ISREG(os.fstat(fd).st_mode)
                old = os.fsdecode(file.read(_ACCOUNTS_MAX + 1)) if regular else ""
            if len(old) > _ACCOUNTS_MAX:
                log.info(f"{self.path} is left as it is: larger than {_ACCOUNTS_MAX >> 20} MiB")
                return
        new = accounts.merged(old, line, self.whole(line))
        if new != old and not (build.in_memory and self._rewrite(build, new)):
            WriteFile(self.path, new).apply(build)

    def _rewrite(self, build: Build, text: str) -> bool:
        try:
            fd = places.open_file(build, self.path, os.O_WRONLY)
        except OSError:
            return False
        with open(fd, "wb") as file:
            # Checked again: the path may now lead to another file than the one that was read.
            if places.mount_id(fd) not in build.mounts or not stat.S_ISREG(os.fstat(fd).st_mode):
                return False
            file.truncate(0)
            file.write(os.fsencode(text))
        return True


class PrivateTmp(Action):
    """Mount a fresh tmpfs on a directory for temporary files; `optional`: only if the image has it."""

    __slots__ = ("optional", "path")

    def __init__(self, path: str = "/tmp", optional: bool = False) -> None:
        self.path = path
        self.optional = optional

    def describe(self) -> str:
        return f"mount a fresh tmpfs on {self.path}"

    def apply(self, build: Build) -> None:
        try:
            target = places.look_up(build, self.path, True)
        except OSError:
            if self.optional:
                log.info(f"no {self.path} in the image: none is shown")
                return
            target = places.create(build, self.path, True, True)
        if self.optional and places.mount_id(target) not in build.mounts:
            os.close(target)  # a link to /tmp
            return
        fresh = places.tmpfs({"mode": "1777"})
        flags = linux.MOVE_MOUNT_F_EMPTY_PATH | linux.MOVE_MOUNT_T_EMPTY_PATH
        linux.move_mount(fresh, "", target, "", flags)
        os.close(target)
        build.mounts.add(places.mount_id(fresh))
        os.close(fresh)


class ShowScript(Action):
    """Make a batch script visible at its own path, unless it is already."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    def describe(self) -> str:
        return f"bind batch script {self.path} at its own path, if it isn't visible"

    def apply(self, build: Build) -> None:
        script = os.stat(self.path)
        try:
            fd = places.look_up(build, self.path, True)
        except OSError:
            pass
        else:
            seen = os.fstat(fd)
            os.close(fd)
            if (seen.st_dev, seen.st_ino) == (script.st_dev, script.st_ino):
                return
        BindMount(self.path, self.path, dst_create=True, follow=True, label="batch script").apply(build)


class Pivot(Action):
    """Make the new root the root, and unmount the host's tree."""

    __slots__ = ()

    def describe(self) -> str:
        return "pivot into new root"

    def apply(self, build: Build) -> None:
        os.close(build.root_fd)
        build.root_fd = -1
        if build.uncovered_fd >= 0:
            os.close(build.uncovered_fd)
            build.uncovered_fd = -1
        staging = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        os.chdir(build.root)
        # With "." twice, the old root is mounted over the new one. So no path of the image is involved,
        # neither in the pivot nor in the unmount.
        try:
            linux.pivot_root(".", ".")
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _pivot_over_initramfs(build, staging)
        else:
            # On top of the host's root lies the staging tmpfs.
            linux.umount2(".", linux.MNT_DETACH)
            linux.umount2(".", linux.MNT_DETACH)
        os.close(staging)
        os.chdir("/")


def _pivot_over_initramfs(build: Build, staging: int) -> None:
    """Pivot on a host whose root is the initial ramfs: that can't be replaced, and stays mounted below."""
    os.fchdir(staging)
    os.chroot(".")
    os.chdir("/" + build.root)
    linux.pivot_root(".", ".")
    linux.umount2(".", linux.MNT_DETACH)
    os.chroot(".")
