# SPDX-License-Identifier: Apache-2.0
"""Two files that `enroot import` leaves in an image: /etc/fstab with its volumes, and /etc/rc.local, which is sourced.

Loaded only for images that have them. An image's fstab can mount parts of the image, never of the host.
"""

from __future__ import annotations

import os
import stat

from .. import linux, log
from ..agreement import ENROOT_START
from ..errors import ChError, describe
from ..request.options import DEFAULT_WRITE_FAKE
from . import entrypoint, places
from .image_environment import is_enroot_rc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .action import Build

FSTAB = "/etc/fstab"
START_FILE = "/etc/rc.local"
_SOURCE_IT = f". {START_FILE} || exit; {entrypoint.SHOW[-1]}"
_READ_BYTES = 1 << 16

# With these, enroot marks a source that is in the image.
_IMAGE_ROOT = ("${ENROOT_ROOTFS}", "$ENROOT_ROOTFS")
_TMPFS_OPTIONS = ("size", "mode", "nr_inodes")
_ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\134", "\\"))


def text_of(build: Build, path: str) -> str:
    """Return the first 64 KiB of a file of the image; "" if it is missing or not a regular file."""
    try:
        fd = places.open_file(build, path)
    except OSError:
        return ""
    try:
        return os.fsdecode(os.read(fd, _READ_BYTES)) if stat.S_ISREG(os.fstat(fd).st_mode) else ""
    finally:
        os.close(fd)


def is_image(build: Build) -> bool:
    """Whether enroot made the image."""
    return is_enroot_rc(text_of(build, ENROOT_START))


def start(env: Mapping[str, str], *, speaks: bool, directory: bool) -> entrypoint.RunEntrypoint:
    """Return the action that sources /etc/rc.local, once per node; all tasks get its variables and directory."""
    label = f"{START_FILE} of the image"
    return entrypoint.RunEntrypoint(label, env, speaks=speaks, directory=directory, argv=("/bin/sh", "-c", _SOURCE_IT))


def mount(build: Build) -> None:
    """Mount the lines of /etc/fstab whose source is in the image, or a tmpfs; warn about all others."""
    for number, (source, place, kind, options) in enumerate(_lines(text_of(build, FSTAB))):
        own = next((source[len(begin) :] or "/" for begin in _IMAGE_ROOT if source.startswith(begin)), None)
        what = f"{FSTAB} of the image: {place}"
        try:
            if "tmpfs" in (source, kind):
                found = dict(word.split("=", 1) for word in options if word.partition("=")[0] in _TMPFS_OPTIONS)
                _mount_at(build, places.tmpfs({"mode": "0755", **found}), place)
            elif own is None:
                log.warning(f"{what}: {source} is on the host, which an image can't show; --container-mounts can")
            elif os.path.normpath(own) != os.path.normpath(place):
                _mount_at(build, _clone(build, own), place)
            else:
                _mount_volume(build, place, f"volume-{number}")
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


def _open_mount_point(build: Build, path: str) -> int:
    try:
        return places.look_up(build, path, True)
    except (FileNotFoundError, NotADirectoryError):
        return places.create(build, path, True, True)


def _mount_at(build: Build, fresh: int, path: str) -> None:
    target = _open_mount_point(build, path)
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


def _mount_volume(build: Build, path: str, layers: str) -> None:
    """Make a directory of a read-only image writeable in memory. The changes are lost when the container ends."""
    try:
        target = places.look_up(build, path, True)
    except (FileNotFoundError, NotADirectoryError):
        if build.read_only:
            _mount_at(build, places.tmpfs({"size": DEFAULT_WRITE_FAKE, "mode": "0755"}), path)
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
