# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch images`, `rm` and `prune`: list and remove images of the cache; `rm` also removes named containers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from slurm_ch import log
from slurm_ch.errors import ChError, UsageError
from slurm_ch.images import reference, settings
from slurm_ch.images.progress import size
from slurm_ch.images.store import Store

from . import display, pulling

if TYPE_CHECKING:
    from slurm_ch.images.store import Cached


def _store() -> Store:
    found = pulling.settings(os.environ)
    return Store(found.cache, found.images)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line, with the size in bytes.")
def images(*, as_json: bool) -> None:
    """List the images in your cache and in the site's."""
    store = _store()
    names = store.names.by_digest()
    rows = [(one, names.get(one.digest) or [str(store.info(one.path).get("reference", ""))]) for one in store.images()]
    if as_json:
        for one, known in rows:
            click.echo(
                json.dumps(
                    {
                        "references": known,
                        "digest": one.digest,
                        "path": one.path,
                        "size": one.size,
                        "used": int(one.used),
                        "site": one.site,
                    }
                )
            )
        return
    cells = [("IMAGE", "DIGEST", "SIZE", "USED", "PATH")]
    for one, known in rows:
        used = "site" if one.site else time.strftime("%Y-%m-%d", time.localtime(one.used))
        for name in known:
            cells.append((log.printable(name), one.digest[7:19], size(one.size), used, one.path))
    for line in display.table(cells, right=(2,)):
        click.echo(line)


@click.command()
@click.option("--container", is_flag=True, help="Remove the containers (--container-name) NAME... on this node.")
@click.option("--job", metavar="JOBID", help="With --container: remove those of this job, on all its nodes.")
@click.argument("names", nargs=-1, required=True, metavar="REF|DIGEST|NAME...")
def rm(*, container: bool, job: str | None, names: Sequence[str]) -> None:
    """Remove images from your cache, or containers with a name.

    An image is named by its reference, or by the first six or more digits of its digest. If a running step
    uses the image, the step goes on if the cache is on a local disk or on Lustre; on NFS it may fail.
    """
    if job is not None and not container:
        raise UsageError("--job: only with --container")
    if container:
        _remove_containers(names, job)
        return
    store = _store()
    own = [one for one in store.images() if not one.site]
    known = store.names.by_digest()
    for name in names:
        found = _matching(name, own, known)
        if not found:
            raise ChError(f"{name}: not in the cache ({store.directory})")
        for one in found:
            store.remove(one)
            click.echo(one.path)


def _remove_containers(names: Sequence[str], job: str | None) -> None:
    if job is not None:
        from slurm_ch.attach import to_node

        to_node.remove(job, names)
    from slurm_ch.attach import kept_containers

    for path in kept_containers.remove(names, None, None):
        click.echo(path)


def _matching(name: str, own: Sequence[Cached], known: dict[str, list[str]]) -> list[Cached]:
    if reference.is_reference(name):
        text = reference.parse(name).text
        return [one for one in own if text in known.get(one.digest, ())]
    digest = name[len("sha256:") :] if name.startswith("sha256:") else name
    found = [one for one in own if len(digest) >= 6 and one.digest[len("sha256:") :].startswith(digest)]
    if len(found) > 1:
        raise ChError(f"{name}: the beginning of several digests: {', '.join(one.digest for one in found)}")
    return found


@click.command()
@click.option("--older", metavar="TIME", help="Remove the images that have not been used for TIME, such as 30d.")
@click.option(
    "--max",
    "limit",
    metavar="SIZE",
    help="Remove the least recently used images until at most SIZE is left, such as 200G.",
)
def prune(*, older: str | None, limit: str | None) -> None:
    """Remove unused images from your cache, and the files that killed pulls have left.

    Without options, an image is unused if no reference in the cache names it any more. Images that your
    containers with a name use on this node are never removed.
    """
    from slurm_ch.attach import kept_containers

    store = _store()
    store.prepare()
    store.sweep()
    seconds = settings.duration(older, "--older") if older is not None else None
    bytes_max = settings.size(limit, "--max") if limit is not None else None
    spare = kept_containers.images_in_use()
    if seconds is None and bytes_max is None:
        known = store.names.by_digest()
        unnamed = [one for one in store.images() if not one.site and one.digest not in known]
        removed = [one for one in unnamed if one.path not in spare]
        for one in removed:
            store.remove(one)
    else:
        removed = store.prune(seconds, bytes_max, spare)
    for one in removed:
        click.echo(one.path)
    freed = sum(one.size for one in removed)
    log.configure(level=log.INFO)
    log.info(f"removed {len(removed)} images, {size(freed)}")
