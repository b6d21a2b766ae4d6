# SPDX-License-Identifier: Apache-2.0
"""Bind mounts into the new root."""

from __future__ import annotations

import _stat as stat
import errno

from .. import lean_os as os
from .. import linux, log
from ..errors import ChError
from . import places
from .action import Action, Build

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

MERGE_POINT = "/mnt"

# Mount options, as in mount(8), and their attributes for mount_setattr(2).
ATTRIBUTES = {
    "ro": linux.MOUNT_ATTR_RDONLY,
    "nosuid": linux.MOUNT_ATTR_NOSUID,
    "nodev": linux.MOUNT_ATTR_NODEV,
    "noexec": linux.MOUNT_ATTR_NOEXEC,
}


def attributes_of(words: Iterable[str]) -> int:
    """Return the attributes for these mount options; words that are not in ATTRIBUTES are ignored."""
    found = 0
    for word in words:
        found |= ATTRIBUTES.get(word, 0)
    return found


class BindMount(Action):
    """Bind a file or directory of the host, recursively, at a place in the new root."""

    __slots__ = (
        "_source", "attributes", "cover", "dst", "dst_create", "dst_merge", "dst_optional", "follow", "label",
        "recursive", "src", "src_optional",
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
        recursive: bool = False,
        label: str = "",
    ) -> None:
        """Describe a bind; ChError on contradictory arguments.

        `attributes` are the kernel's MOUNT_ATTR_*. They are added to the source's own; if `recursive`,
        to those of the mounts below it too.
        Absolute symbolic links of the image are resolved inside the image. A destination that climbs
        above the root is an error; with `follow`, for destinations that slurm_ch chooses, it stays at the root.
        `cover`: if the destination's directory is not writeable, mount a writeable copy over the
        directory and create the destination there. What a command writes there doesn't reach the image.
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
        self.recursive = recursive
        self.label = label
        self._source: int | None = None  # a descriptor; -1: the source is missing; None: not opened yet

    def notes(self) -> list[str]:
        """Return the bind's options in words, for `describe`."""
        return [
            word
            for word, true in (
                ("read-only", self.attributes & linux.MOUNT_ATTR_RDONLY),
                *((word, self.attributes & ATTRIBUTES[word]) for word in ("nosuid", "nodev", "noexec")),
                ("if there", self.src_optional or self.dst_optional),
                ("merge", self.dst_merge),
            )
            if true
        ]

    def describe(self) -> str:
        notes = self.notes()
        return f"bind {self.src} at {self.dst}" + (f" ({', '.join(notes)})" if notes else "")

    def left_out(self) -> str:
        """Return why this bind will be skipped, or "" if it won't be. Needs no namespace."""
        if not self.src_optional or os.path.exists(self.src):
            return ""
        return f"left out: {self.src}: not on this node"

    def _prefix(self) -> str:
        return f"{self.label}: can't bind" if self.label else "can't bind"

    def apply(self, build: Build) -> None:
        source = self.open_source()
        self._source = None
        if source < 0:
            log.info(f"left out: {self.src}: not on this node")
            return
        try:
            if self.dst_merge:
                self._merge(build, source)
                return
            target = self._open_target(build, source)
            if target < 0:
                log.info(f"left out: {self.src}: the image has no {self.dst}")
                return
            try:
                if places.same_place(target, build.root_fd):
                    raise ChError(f"{self._prefix()}: {self.dst} is the container's root")
                self._attach(source, target)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def open_source(self) -> int:
        """Return the source as a detached mount, or -1 if it is optional and missing. Opens it only once."""
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
            from . import not_an_image

            raise ChError(
                f"{self._prefix()}: source not found: {self.src}{not_an_image.where_it_ends(self.src)}"
            ) from None
        except OSError as error:
            if self.src_optional and error.errno == errno.EACCES:
                return -1
            raise ChError(f"{self._prefix()}: source {self.src}") from error

    def _open_target(self, build: Build, source: int) -> int:
        try:
            return places.look_up(build, self.dst, self.follow)
        except (FileNotFoundError, NotADirectoryError):
            if self.dst_optional:
                return -1
            if not self.dst_create:
                raise ChError(f"{self._prefix()}: destination not found: {self.dst}") from None
        except OSError as error:
            self._refuse(error)
        directory = stat.S_ISDIR(os.fstat(source).st_mode)
        try:
            return places.create(build, self.dst, directory, self.follow, self.cover)
        except ChError as error:
            remedy = ""
            if isinstance(error, places.BoundError) and not self.follow:
                remedy = ": make it there yourself, or choose another destination"
            elif not self.cover and isinstance(error.__cause__, OSError):
                remedy = " (make it in the image yourself, or ask for write-fake instead of write)"
            raise ChError(f"{self._prefix()}: {error}{remedy}") from error.__cause__

    def _refuse(self, error: OSError) -> NoReturn:
        if error.errno == errno.EXDEV:
            raise ChError(f"{self._prefix()}: {self.dst} not subdirectory of the image's root") from None
        raise ChError(f"{self._prefix()}: destination {self.dst}") from error

    def _attach(self, source: int, target: int) -> None:
        flags = linux.MOVE_MOUNT_F_EMPTY_PATH | linux.MOVE_MOUNT_T_EMPTY_PATH
        try:
            if self.attributes:
                # Not recursive for slurm_ch's own binds: /dev/shm below /dev stays writeable.
                linux.mount_setattr(source, linux.AT_RECURSIVE if self.recursive else 0, self.attributes)
            linux.move_mount(source, "", target, "", flags)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.EINVAL) and _kinds_differ(source, target):
                raise ChError(
                    f"{self._prefix()} {self.src} at {self.dst}: one is a directory, the other is not"
                ) from None
            raise ChError(f"{self._prefix()} {self.src} at {self.dst}") from error

    def _merge(self, build: Build, source: int) -> None:
        """Bind the source's parent once, and make the destination a symbolic link into that bind."""
        parent, name = os.path.split(os.path.normpath(self.src))
        point = f"{MERGE_POINT}/{parent.replace('/', '_')}"
        try:
            os.close(places.look_up(build, point, True))
        except FileNotFoundError:
            BindMount(parent, point, dst_create=True, follow=True, label=self.label).apply(build)
        try:
            directory = places.create_parents(build, os.path.dirname(self.dst), self.follow)
        except OSError as error:
            self._refuse(error)
        last = os.path.basename(self.dst)
        try:
            directory = places.writeable(build, directory, self.dst)
            if not _exists_at(directory, last) and not self.dst_create:
                raise ChError(f"{self._prefix()}: destination not found: {self.dst}")
            if self._move_away(directory, last):
                os.symlink(f"{point}/{name}", last, dir_fd=directory)
            else:
                self._bind_plainly(build, source)
        except OSError as error:
            raise ChError(f"{self._prefix()}: can't link {self.dst}") from error
        finally:
            os.close(directory)

    def _move_away(self, directory: int, name: str) -> bool:
        """Rename `name` to NAME.orig; return whether `name` is free now."""
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
        target = places.look_up(build, self.dst, self.follow)
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
