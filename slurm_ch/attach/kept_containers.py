# SPDX-License-Identifier: Apache-2.0
"""List the named containers that no step uses at the moment, for `slurm-ch ps`, and remove them, for `slurm-ch rm`."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from ..engine import named_containers
from ..errors import ChError
from ..request import pyxis_site
from ..slurm import plugstack

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


def _root() -> str | None:
    """Return the site's directory for named containers, or None for the default."""
    pairs = [word.partition("=")[::2] for word in plugstack.arguments(os.environ)]
    return pyxis_site.containers([(key, value) for key, value in pairs if key == "containers"])


def containers_on_node(job: str, node: str) -> dict[str, named_containers.NamedContainer]:
    """Return a job's containers on this node and those that outlive their jobs, by the source name of the overlay."""
    try:
        root = _root()
    except ChError:
        return {}
    return {
        one.mark() or one.directory: one for scope in (job, None) for one in named_containers.all_of(root, scope, node)
    }


def images_in_use() -> set[str]:
    """Return the images from which the caller's containers on this node were made."""
    try:
        root = _root()
    except ChError:
        return set()
    found = set()
    for scope in (None, *named_containers.jobs(root)):
        for one in _named_containers(root, scope, None):
            found.add(one.image() or "")
    return found


def ps_row(one: named_containers.NamedContainer, node: str) -> Mapping[str, object]:
    """Return the row of `slurm-ch ps` for a container that doesn't run; its age is the time since its last use."""
    seconds = max(0, int(time.time() - one.used()))
    record = {"step": "-", "node": node, "image": one.image(), "tasks": 0, "seconds": seconds, "name": one.name}
    return record if one.job is not None else {**record, "job": "-"}


def remove(names: Sequence[str], job: str | None, node: str | None) -> Iterator[str]:
    """Remove containers by their names, and yield their directories; ChError if one is in use or doesn't exist.

    Without `job`, look among those that outlive their jobs and the current job's; without `node`, among all nodes'
    that are in the directory.
    """
    root = _root()
    job = job or os.environ.get("SLURM_JOB_ID")
    for name in names:
        found = [one for one in _named_containers(root, job, node) if one.name == name]
        if not found:
            raise ChError(f"{name}: no container of yours has that name here")
        for one in found:
            lock = one.lock(wait=False)
            mark = one.mark()
            if (
                lock is None
                or (mark is not None and named_containers.find(mark) is not None)
                or named_containers.is_busy(one.directory)
            ):
                raise ChError(f"{name}: a step uses it; see slurm-ch ps")
            one.remove()
            os.close(lock)
            yield one.directory


def _named_containers(root: str | None, job: str | None, node: str | None) -> Iterator[named_containers.NamedContainer]:
    for scope in dict.fromkeys((job, None)):
        for one in [node] if node is not None else named_containers.nodes(root, scope):
            yield from named_containers.all_of(root, scope, one)
