# SPDX-License-Identifier: Apache-2.0
"""Read an image with the changes that --overlay keeps, as one tree for packing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .. import log
from ..engine.caller import Caller
from ..engine.container import Container
from ..errors import ChError
from ..images import directory
from ..request import spec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..images.merge import Tree


def is_kept(path: str) -> bool:
    """Whether `path` is a directory of --overlay."""
    return all(os.path.isdir(os.path.join(path, name)) for name in ("upper", "work")) and os.path.isfile(
        os.path.join(path, "image")
    )


def read(path: str, env: Mapping[str, str]) -> Tree:
    """Return the tree of the image with the changes in the directory `path`; ChError on failure.

    Leaves this process in new namespaces, with another umask and working directory: call it in a child.
    """
    with open(os.path.join(path, "image")) as file:
        image = file.read().removesuffix("\n")
    wanted = spec.Spec(image)
    wanted.overlay = os.path.abspath(path)
    container = Container(wanted, Caller(env))
    os.umask(0o022)
    for action in container.plan_of_tree():
        log.debug(action.describe())
        try:
            action.apply(container.build)
        except OSError as error:
            raise ChError(f"can't {action.describe()}") from error
    return directory.read(container.build.root)
