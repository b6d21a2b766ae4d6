# SPDX-License-Identifier: Apache-2.0
"""Check that named containers can be kept on this node, if the site has turned on pyxis' options."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .. import agreement
from ..engine import named_containers
from ..errors import ChError, describe
from . import as_user
from .findings import OK, WARNING, Finding
from .installation import argument

if TYPE_CHECKING:
    import pwd
    from collections.abc import Iterator

    from ..slurm import plugstack

_ABOUT = "containers with a name"
KIND = "named"


def check(entry: plugstack.Entry, user: pwd.struct_passwd) -> Iterator[Finding]:
    """Make a named container's directory, as `user`, and mount an overlay of it."""
    if argument(entry, "pyxis") != "yes":
        return
    root = argument(entry, "containers")
    words = [argument(entry, "python") or agreement.DEFAULT_PYTHON, "-I", "-S", as_user.MAKE_CONTAINER, KIND]
    where = root or os.path.dirname(agreement.CONTAINERS_OWN)
    try:
        status, output = as_user.in_child(lambda: as_user.run([*words, *([root] if root else [])]), user)
        text = output.strip() if status else ""
    except ChError as error:
        text = describe(error)
    if text:
        remedy = "set containers= in plugstack.conf to a local directory like /var/tmp, on ext4, xfs, btrfs or tmpfs"
        yield Finding(WARNING, _ABOUT, f"can't be kept in {where}: {text}", remedy)
    else:
        yield Finding(OK, _ABOUT, f"can be kept in {where}")


def try_place(root: str | None) -> None:
    """Make a named container's directory, mount an overlay of it, and remove it; ChError on failure."""
    job = f"doctor-{os.getpid()}"
    kept = named_containers.NamedContainer(root, job, "here", "trial")
    kept.make_place()
    try:
        for name in ("upper", "work"):
            os.mkdir(f"{kept.directory}/{name}", 0o700)
        number = as_user.in_child(lambda: named_containers.try_overlay(kept.directory))
        if number:
            raise ChError(f"an overlay: {os.strerror(number)}")
    finally:
        named_containers.remove_job(root, job)
