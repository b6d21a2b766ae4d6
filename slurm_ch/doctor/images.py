# SPDX-License-Identifier: Apache-2.0
"""Check what a pull on this node needs: skopeo, a packer, and a writeable cache that nodes share."""

from __future__ import annotations

import os
import shutil
import stat
from typing import TYPE_CHECKING

from ..errors import ChError, describe
from ..images import pack, settings, store
from ..request import site
from . import as_user
from .findings import OK, WARNING, Finding

if TYPE_CHECKING:
    import pwd
    from collections.abc import Iterator

    from ..slurm import plugstack

_ABOUT = "images from registries"
_WHERE = "needed where users submit, and nowhere else"
# File systems that other nodes don't see.
_LOCAL = ("tmpfs", "ramfs", "overlay", "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs")
_PATH = "/usr/local/bin:/usr/bin:/bin"


def check(entry: plugstack.Entry, user: pwd.struct_passwd) -> Iterator[Finding]:
    """Check the programs and the cache for `user`'s pulls, and the site's images."""
    pairs = [word.partition("=")[::2] for word in entry.arguments]
    mine = [(key, value) for key, value in pairs if key in site.IMAGE_ARGUMENTS]
    try:
        found = settings.parse(mine, {"HOME": user.pw_dir}, user.pw_name)
    except ChError:
        return  # reported by installation.check
    if found.pull != settings.NO and found.importer is None:
        if shutil.which("skopeo", path=_PATH):
            yield Finding(OK, _ABOUT, "skopeo is installed")
        else:
            text = "skopeo is not installed: nothing can be pulled here"
            yield Finding(WARNING, _ABOUT, text, f"install skopeo: {_WHERE}")
        try:
            packer = pack.find(found.packer, _PATH)
            yield Finding(OK, _ABOUT, f"{packer.name} {packer.version} packs them")
        except ChError as error:
            yield Finding(WARNING, _ABOUT, describe(error), _WHERE)
    yield from _check_cache(found.cache, user, any(key == "cache" for key, _ in mine))
    for directory in found.images:
        yield from _check_site_images(directory)


def _check_cache(path: str, user: pwd.struct_passwd, by_site: bool) -> Iterator[Finding]:
    if not by_site and not os.path.isdir(user.pw_dir):
        yield Finding(OK, _ABOUT, f"{user.pw_name} has no home directory, and so no cache: --user names another user")
        return
    here = path
    while not os.path.exists(here):
        here = os.path.dirname(here)
    kind = store.file_system(here)
    try:
        writeable = as_user.in_child(lambda: os.access(here, os.W_OK | os.X_OK), user)
    except ChError as error:
        yield Finding(WARNING, _ABOUT, f"{path}: {describe(error)}")
        return
    if not writeable:
        remedy = "create it for each user with mode 0700, or set another directory by cache= in plugstack.conf"
        yield Finding(WARNING, _ABOUT, f"{path}: {user.pw_name} can't make a cache there", remedy)
    elif kind in _LOCAL and by_site:
        text = f"cache={path} is on {kind}, which no other node sees"
        yield Finding(WARNING, _ABOUT, text, "cache= must be on a file system that all nodes share")
    else:
        shared = f"; other nodes see it only if they share this {kind}" if kind in _LOCAL else ""
        yield Finding(OK, _ABOUT, f"{path} can be a cache, on {kind or 'an unknown file system'}{shared}")


def _check_site_images(directory: str) -> Iterator[Finding]:
    text, remedy = "", "it must be a directory of root's that nobody else can write to (docs/images.rst)"
    try:
        status = os.stat(directory)
        if status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or not stat.S_ISDIR(status.st_mode):
            text = "not root's, or others can write to it"
    except OSError as error:
        text = error.strerror or "can't be looked at"
    if text:
        yield Finding(WARNING, _ABOUT, f"images={directory}: {text}", remedy)
    else:
        yield Finding(OK, _ABOUT, f"images={directory}")
