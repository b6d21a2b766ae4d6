# SPDX-License-Identifier: Apache-2.0
"""What else `enroot import` leaves in an image: /etc/fstab, its volumes, and /etc/rc.local, a script to be sourced.

Loaded only for images that have something there. An image says what of its own is mounted, never what of the host's.
"""

from __future__ import annotations

import os
import stat

from .. import linux, log
from ..errors import ChError, describe
from ..request.options import DEFAULT_WRITE_FAKE
from . import entrypoint, places
from .image_environment import is_enroots

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .action import Build

FSTAB = "/etc/fstab"
START_FILE = "/etc/rc.local"
_SOURCE_IT = f". {START_FILE} || exit; {entrypoint.SHOW[-1]}"
_READ_BYTES = 1 << 16

# How enroot writes that a line's source is in the image.
_OWN = ("${ENROOT_ROOTFS}", "$ENROOT_ROOTFS")
_TMPFS_OPTIONS = ("size", "mode", "nr_inodes")
_ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\134", "\\"))


def text_of(build: Build, path: str) -> str:
    """Return the beginning of a file of the image; "" where there is none that is a file."""
    try:
        fd = places.open_file(build, path)
    except OSError:
        return ""
    try:
        return os.fsdecode(os.read(fd, _READ_BYTES)) if stat.S_ISREG(os.fstat(fd).st_mode) else ""
    finally:
        os.close(fd)


def is_image(build: Build) -> bool:
    """Whether it is one of enroot's."""
    return is_enroots(text_of(build, "/etc/rc"))


def start(env: Mapping[str, str], *, speaks: bool, directory: bool) -> entrypoint.RunEntrypoint:
    """Return what sources /etc/rc.local, once per node: what it exports, and where it goes, is every task's."""
    label = f"{START_FILE} of the image"
    return entrypoint.RunEntrypoint(label, env, speaks=speaks, directory=directory, argv=("/bin/sh", "-c", _SOURCE_IT))


def mount(build: Build) -> None:
    """Mount what /etc/fstab says, as far as it is the image's own; a warning for all else."""
    for number, (source, place, kind, options) in enumerate(_lines(text_of(build, FSTAB))):
        own = next((source[len(begin) :] or "/" for begin in _OWN if source.startswith(begin)), None)
        what = f"{FSTAB} of the image: {place}"
        try:
            if "tmpfs" in (source, kind):
                found = dict(word.split("=", 1) for word in options if word.partition("=")[0] in _TMPFS_OPTIONS)
                _put(build, places.tmpfs({"mode": "0755", **found}), place)
            elif own is None:
                log.warning(f"{what}: {source} is the host's, and not the image's to show; --container-mounts does")
            elif os.path.normpath(own) != os.path.normpath(place):
                _put(build, _clone(build, own), place)
            else:
                _volume(build, place, f"volume-{number}")
        except (ChError, OSError) as error:
            log.warning(f"{what}: left out: {describe(error)}")


def _lines(text: str) -> Iterator[tuple[str, str, str, list[str]]]:
    for line in text.splitlines():
        fields = line.partition("#")[0].split()
        if len(fields) < 2:
            continue
        for written, meant in _ESCAPES:
            fields = [field.replace(written, meant) for field in fields]
        source, place, kind, options = (*fields, "none", "")[:4] if len(fields) < 4 else fields[:4]
        if place.startswith("/") and place.strip("/."):
            yield source, place, kind, options.split(",")


def _place(build: Build, path: str) -> int:
    try:
        return places.look_up(build, path, True)
    except (FileNotFoundError, NotADirectoryError):
        return places.create(build, path, True, True)


def _put(build: Build, fresh: int, path: str) -> None:
    target = _place(build, path)
    linux.move_mount(fresh, "", target, "", linux.MOVE_MOUNT_F_EMPTY_PATH | linux.MOVE_MOUNT_T_EMPTY_PATH)
    os.close(target)
    build.mounts.add(places.mount_id(fresh))
    os.close(fresh)


def _clone(build: Build, path: str) -> int:
    source = places.look_up(build, path, True)
    try:
        return linux.open_tree(
            source, "", linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_EMPTY_PATH | linux.AT_RECURSIVE
        )
    finally:
        os.close(source)


def _volume(build: Build, path: str, layers: str) -> None:
    """Let the container write to a directory of its image, which is lost at its end; in a writeable one it can."""
    try:
        target = places.look_up(build, path, True)
    except (FileNotFoundError, NotADirectoryError):
        if build.read_only:
            _put(build, places.tmpfs({"size": DEFAULT_WRITE_FAKE, "mode": "0755"}), path)
        else:
            os.close(places.create(build, path, True, True))
        return
    try:
        if not build.read_only or places.mount_id(target) not in build.mounts:
            return
        memory = places.tmpfs({"size": DEFAULT_WRITE_FAKE, "mode": "0700"})
        os.mkdir(layers, 0o700)
        linux.move_mount(memory, "", linux.AT_FDCWD, layers, linux.MOVE_MOUNT_F_EMPTY_PATH)
        os.close(memory)
        os.mkdir(f"{layers}/work", 0o700)
        os.mkdir(f"{layers}/upper", 0o700)
        os.chmod(f"{layers}/upper", os.fstat(target).st_mode & 0o7777)
        cover = places.overlay_of(build, target, path, layers)
        places.lay_over(build, target, cover)
        os.close(cover)
    finally:
        os.close(target)
