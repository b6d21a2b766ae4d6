# SPDX-License-Identifier: Apache-2.0
"""Bind mounts into the new root, and making the places where they go.

All look-ups inside the image go through openat2(2), confined by the kernel to
the new root, and what it returns is a descriptor that is mounted on: a
symbolic link or a rename in the image can't redirect a mount.
"""

from __future__ import annotations

import errno
import os
import stat

from .. import linux, log
from ..errors import ChError
from .action import Action, Build

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_BENEATH = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_MAGICLINKS
_IN_ROOT = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS

# In the staging directory: the layers of overmounts, and the image without them.
SCRATCH = "scratch"
UNCOVERED = "uncovered"
MERGE_POINT = "/mnt"


def mount_id(fd: int) -> int:
    """Return the id of the mount that `fd` is in, as in /proc/self/mountinfo."""
    info = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(info, 4096)
    finally:
        os.close(info)
    for line in text.split(b"\n"):
        if line.startswith(b"mnt_id:"):
            return int(line[7:])
    raise ChError(f"no mnt_id in /proc/self/fdinfo/{fd}")


class Bind(Action):
    """Bind a file or directory of the host, recursively, at a place in the new root."""

    __slots__ = (
        "_source", "attributes", "cover", "dst", "dst_create", "dst_merge", "dst_optional", "follow", "label", "src",
        "src_optional",
    )  # fmt: skip

    def __init__(
        self,
        src: str,
        dst: str,
        *,
        src_optional: bool = False,
        dst_optional: bool = False,
        dst_create: bool = False,
        dst_merge: bool = False,
        readonly: bool = False,
        attributes: int = 0,
        follow: bool = False,
        cover: bool = True,
        label: str = "",
    ) -> None:
        """Describe a bind; ChError on a combination that makes no sense.

        `attributes` are the kernel's MOUNT_ATTR_*, added to what the source has.
        `follow` lets the image's absolute symbolic links point within the
        image, for places that we choose; for the user's, they are an escape.
        `cover`: a destination is made in an unwriteable directory too, over it;
        what a command then writes there is not in the image.
        """
        if not src or not dst:
            raise ChError(f"can't bind: empty source or destination: {src}:{dst}")
        if not dst.startswith("/"):
            raise ChError(f"can't bind: destination is not absolute: {dst}")
        if dst_optional and dst_create:
            raise ChError(f"can't bind: destination both optional and created: {dst}")
        self.src = src
        self.dst = dst
        self.src_optional = src_optional
        self.dst_optional = dst_optional
        self.dst_create = dst_create
        self.dst_merge = dst_merge
        self.attributes = attributes | (linux.MOUNT_ATTR_RDONLY if readonly else 0)
        self.follow = follow
        self.cover = cover
        self.label = label
        self._source: int | None = None  # a descriptor, or -1 for none

    def describe(self) -> str:
        notes = [
            word
            for word, true in (
                ("read-only", self.attributes & linux.MOUNT_ATTR_RDONLY),
                ("if there", self.src_optional or self.dst_optional),
                ("create destination", self.dst_create),
                ("merge", self.dst_merge),
            )
            if true
        ]
        return f"bind {self.src} at {self.dst}" + (f" ({', '.join(notes)})" if notes else "")

    def _why(self) -> str:
        return f"{self.label}: can't bind" if self.label else "can't bind"

    def apply(self, build: Build) -> None:
        source = self.open_source()
        self._source = None
        if source < 0:
            return
        try:
            if self.dst_merge:
                self._merge(build, source)
                return
            target = self._open_target(build, source)
            if target < 0:
                return
            try:
                if _same_place(target, build.root_fd):
                    raise ChError(f"{self._why()}: {self.dst} is the container's root")
                self._attach(source, target)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def open_source(self) -> int:
        """Return the source as a detached mount, opened once, or -1 when it may be missing and is."""
        if self._source is None:
            self._source = self._clone_source()
        return self._source

    def _clone_source(self) -> int:
        flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_RECURSIVE
        try:
            return linux.open_tree(linux.AT_FDCWD, self.src, flags)
        except (FileNotFoundError, NotADirectoryError):
            if self.src_optional:
                return -1
            raise ChError(f"{self._why()}: source not found: {self.src}") from None
        except OSError as error:
            if self.src_optional and error.errno == errno.EACCES:
                return -1
            raise ChError(f"{self._why()}: source {self.src}") from error

    def _open_target(self, build: Build, source: int) -> int:
        try:
            return look_up(build, self.dst, self.follow)
        except (FileNotFoundError, NotADirectoryError):
            if self.dst_optional:
                return -1
            if not self.dst_create:
                raise ChError(f"{self._why()}: destination not found: {self.dst}") from None
        except OSError as error:
            self._refuse(error)
        directory = stat.S_ISDIR(os.fstat(source).st_mode)
        try:
            return create(build, self.dst, directory, self.follow, self.cover)
        except ChError as error:
            raise ChError(f"{self._why()}: {error}") from error.__cause__

    def _refuse(self, error: OSError) -> NoReturn:
        if error.errno == errno.EXDEV:
            raise ChError(f"{self._why()}: {self.dst} not subdirectory of the image's root") from None
        raise ChError(f"{self._why()}: destination {self.dst}") from error

    def _attach(self, source: int, target: int) -> None:
        flags = linux.MOVE_MOUNT_F_EMPTY_PATH | linux.MOVE_MOUNT_T_EMPTY_PATH
        try:
            if self.attributes:
                # Only the mount itself: /dev/shm below /dev stays writeable.
                linux.mount_setattr(source, 0, self.attributes)
            linux.move_mount(source, "", target, "", flags)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.EINVAL) and _kinds_differ(source, target):
                raise ChError(f"{self._why()} {self.src} at {self.dst}: one is a directory, the other is not") from None
            raise ChError(f"{self._why()} {self.src} at {self.dst}") from error

    def _merge(self, build: Build, source: int) -> None:
        """Link the destination into one bind of the source's parent."""
        parent, name = os.path.split(os.path.normpath(self.src))
        point = f"{MERGE_POINT}/{parent.replace('/', '_')}"
        try:
            os.close(look_up(build, point, True))
        except FileNotFoundError:
            Bind(parent, point, dst_create=True, follow=True, label=self.label).apply(build)
        try:
            directory = create_parents(build, os.path.dirname(self.dst), self.follow)
        except OSError as error:
            self._refuse(error)
        last = os.path.basename(self.dst)
        try:
            directory = writeable(build, directory, self.dst)
            if not _exists_at(directory, last) and not self.dst_create:
                raise ChError(f"{self._why()}: destination not found: {self.dst}")
            if self._move_away(directory, last):
                os.symlink(f"{point}/{name}", last, dir_fd=directory)
            else:
                self._bind_plainly(build, source)
        except OSError as error:
            raise ChError(f"{self._why()}: can't link {self.dst}") from error
        finally:
            os.close(directory)

    def _move_away(self, directory: int, name: str) -> bool:
        """Give what is at `name` the name NAME.orig; return whether `name` is free now."""
        if not _exists_at(directory, name):
            return True
        try:
            os.rename(name, name + ".orig", src_dir_fd=directory, dst_dir_fd=directory)
        except OSError as error:
            # overlayfs can't rename a directory of its lower layer.
            if error.errno != errno.EXDEV:
                raise
            return False
        return True

    def _bind_plainly(self, build: Build, source: int) -> None:
        target = look_up(build, self.dst, self.follow)
        try:
            self._attach(source, target)
        finally:
            os.close(target)


def _kinds_differ(source: int, target: int) -> bool:
    modes = [stat.S_ISDIR(os.fstat(fd).st_mode) for fd in (source, target)]
    return modes[0] != modes[1]


def _exists_at(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def look_up(build: Build, path: str, follow: bool) -> int:
    """Return an O_PATH descriptor of `path` in the new root; OSError, EXDEV if it escapes."""
    return linux.openat2(build.root_fd, path.lstrip("/") or ".", os.O_PATH, _IN_ROOT if follow else _BENEATH)


def open_file(build: Build, path: str) -> int:
    """Return a file of the image, opened for reading; OSError if it can't be. Never waits, as a FIFO would."""
    return linux.openat2(build.root_fd, path.lstrip("/"), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, _IN_ROOT)


def create(build: Build, path: str, directory: bool, follow: bool = False, cover: bool = True) -> int:
    """Make a mount point at `path`, with the directories above it, and return it opened."""
    try:
        if directory:
            return create_parents(build, path, follow, cover)
        parent = create_parents(build, os.path.dirname(path), follow, cover)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise ChError(f"{path} not subdirectory of the image's root") from None
        raise ChError(f"can't create {path}") from error
    try:
        parent = writeable(build, parent, path, cover)
        name = os.path.basename(path)
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
        os.close(fd)
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError as error:
        raise ChError(f"can't create {path}") from error
    finally:
        os.close(parent)


def create_parents(build: Build, path: str, follow: bool = False, cover: bool = True) -> int:
    """Return the directory `path` opened, made with all above it where missing."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    here = look_up(build, "/", False)
    done = 0
    for index in range(len(parts)):
        try:
            deeper = look_up(build, "/".join(parts[: index + 1]), follow)
        except FileNotFoundError:
            break
        os.close(here)
        here = deeper
        done = index + 1
    for name in parts[done:]:
        if name == "..":
            os.close(here)
            raise ChError(f"can't create a directory below '..': {path}")
        here = writeable(build, here, path, cover)
        os.mkdir(name, 0o755, dir_fd=here)
        deeper = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
        os.close(here)
        here = deeper
    return here


def writeable(build: Build, directory: int, path: str, cover: bool = True) -> int:
    """Return `directory`, or a writeable overmount of it, in which a name can be made.

    Where it returns another descriptor, `directory` is closed. ChError when the
    directory is in a mount from the host: creating there would create on the host.
    OSError if it is not writeable, and not to be covered.
    """
    if mount_id(directory) not in build.mounts:
        where = os.readlink(f"/proc/self/fd/{directory}").removeprefix(f"/{build.root}") or "/"
        raise ChError(f"{path}: {where} is bound from the host; nothing is created there")
    if os.access(f"/proc/self/fd/{directory}", os.W_OK):
        return directory
    if not cover:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    over = _overmount(build, directory)
    os.close(directory)
    return over


def _overmount(build: Build, directory: int) -> int:
    """Cover a directory by an overlay of itself whose top layer is ours to write."""
    layers = f"{SCRATCH}/{build.overmounts}"
    build.overmounts += 1
    log.debug(f"overmounting {os.readlink(f'/proc/self/fd/{directory}')}")
    os.makedirs(f"{layers}/upper", 0o755)
    os.mkdir(f"{layers}/work", 0o700)
    lower = _uncovered(build, directory)
    cover = overlay(f"/proc/self/fd/{lower}", f"{layers}/upper", f"{layers}/work")
    os.close(lower)
    lay_over(build, directory, cover)
    return cover


def lay_over(build: Build, directory: int, cover: int) -> None:
    """Attach an overlay mount at the directory that it covers; what is mounted below stays."""
    below = [(name, linux.open_tree(directory, name, linux.OPEN_TREE_CLOEXEC)) for name in mounted_below(directory)]
    is_root = _same_place(directory, build.root_fd)
    flags = linux.MOVE_MOUNT_F_EMPTY_PATH | linux.MOVE_MOUNT_T_EMPTY_PATH
    linux.move_mount(cover, "", directory, "", flags)
    for name, fd in below:
        # The overlay has the places, but not what is mounted on them.
        place = linux.openat2(cover, name, os.O_PATH, _BENEATH | linux.RESOLVE_NO_SYMLINKS)
        linux.move_mount(fd, "", place, "", flags)
        os.close(place)
        os.close(fd)
    build.mounts.add(mount_id(cover))
    if is_root:
        # Look-ups begin in the cover from now on; nothing crosses to it from below.
        os.close(build.root_fd)
        build.root_fd = os.dup(cover)


def _same_place(one: int, other: int) -> bool:
    return os.path.samestat(os.fstat(one), os.fstat(other)) and mount_id(one) == mount_id(other)


def _uncovered(build: Build, directory: int) -> int:
    """Return `directory` as it is in the image, below any cover of ours.

    The kernel stacks two overlays, not three, and write-fake's is one already.
    Nothing is lost: what we make in a cover is ours to write, and never covered.
    """
    if build.uncovered_fd < 0:
        # Attached, because older kernels overlay nothing that isn't. With the
        # mounts in it, because some may not be left out.
        os.mkdir(UNCOVERED, 0o700)
        flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_RECURSIVE | linux.AT_EMPTY_PATH
        build.uncovered_fd = linux.open_tree(build.root_fd, "", flags)
        linux.move_mount(build.uncovered_fd, "", linux.AT_FDCWD, UNCOVERED, linux.MOVE_MOUNT_F_EMPTY_PATH)
    path = os.readlink(f"/proc/self/fd/{directory}").removeprefix(f"/{build.root}").lstrip("/")
    return linux.openat2(build.uncovered_fd, path or ".", os.O_PATH, _BENEATH | linux.RESOLVE_NO_SYMLINKS)


def mounted_below(directory: int) -> list[str]:
    """Return the places below `directory` on which there is a mount, as relative paths."""
    base, parent = os.fsencode(os.readlink(f"/proc/self/fd/{directory}")) + b"/", b"%d" % mount_id(directory)
    with open("/proc/self/mountinfo", "rb") as file:
        lines = [line.split(b" ", 5) for line in file]
    found = []
    for _, above, _, _, point, _ in lines:
        path = _unescape(point)
        if above == parent and path.startswith(base):
            found.append(os.fsdecode(path[len(base) :]))
    return found


def _unescape(field: bytes) -> bytes:
    """Return a path of mountinfo as it is: blanks, newlines and backslashes are octal there."""
    first, *rest = field.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def overlay(lower: str, upper: str, work: str) -> int:
    """Return a detached overlay mount of the three directories."""
    context = linux.fsopen("overlay")
    try:
        for key, value in (
            ("source", "slurm_ch"),
            ("lowerdir", lower),
            ("upperdir", upper),
            ("workdir", work),
            ("index", "on"),
        ):
            linux.fsconfig(context, linux.FSCONFIG_SET_STRING, key, value)
        linux.fsconfig(context, linux.FSCONFIG_SET_FLAG, "userxattr")
        linux.fsconfig(context, linux.FSCONFIG_SET_FLAG, "volatile")
        linux.fsconfig(context, linux.FSCONFIG_CMD_CREATE)
        return linux.fsmount(context, linux.FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)


def tmpfs(options: dict[str, str]) -> int:
    """Return a detached, empty tmpfs."""
    context = linux.fsopen("tmpfs")
    try:
        linux.fsconfig(context, linux.FSCONFIG_SET_STRING, "source", "slurm_ch")
        for key, value in options.items():
            linux.fsconfig(context, linux.FSCONFIG_SET_STRING, key, value)
        linux.fsconfig(context, linux.FSCONFIG_CMD_CREATE)
        return linux.fsmount(context, linux.FSMOUNT_CLOEXEC, linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV)
    finally:
        os.close(context)
