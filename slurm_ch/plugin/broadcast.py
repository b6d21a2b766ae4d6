# SPDX-License-Identifier: Apache-2.0
"""`--ch-broadcast`: Slurm's sbcast copies the image to the disks of a job's nodes, before the first step that uses it.

srun's plugin runs this as the user: inside a job before the step is created, otherwise after the allocation and
before the first task. A note in the cache tells the job's other steps where the copy is; steps that start at the
same time wait for it. Part of the copy's name is random, and sbcast replaces no file, so nobody can prepare one.
The plugin removes the copy at the job's end (spank/plugin/broadcast.c).
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from typing import TYPE_CHECKING

from .. import agreement, log
from ..engine import image
from ..engine.caller import Caller
from ..errors import ChError, UsageError
from ..images import children
from ..images import settings as site_settings
from ..images.progress import Progress, size
from ..images.store import Store
from ..request import parsers
from . import references

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..request.site import Site
    from ..request.spec import Spec
    from .facts import Facts


def refuse_all_but_files(wanted: Spec, kind: str) -> None:
    """Raise UsageError if the image is not a file; `kind` is its kind."""
    if kind != image.SQUASHFS:
        raise UsageError(
            f"{wanted.label('broadcast')}: {wanted.image}: a directory; `slurm-ch pack` makes a file of it"
        )


def to_nodes(facts: Facts, wanted: Spec, here: Site) -> str:
    """Copy the image to the job's nodes, unless another step has done so; return the answer for the plugin.

    ChError or UsageError on failure. Waits while another step of the job copies it.
    """
    log.configure(level=wanted.verbosity)
    caller = Caller(facts.environment)
    what = wanted.label("broadcast")
    source, status = _source(facts, wanted, caller, what)
    settings = site_settings.parse(here.pulling, facts.environment, caller.user)
    assert facts.broadcast is not None and wanted.broadcast is not None
    usual, _, begin = agreement.BROADCAST_FILE.rpartition("/")
    usual = here.broadcast or usual
    place = wanted.broadcast or usual
    if not usual.startswith("/"):
        raise UsageError(f"plugstack.conf: broadcast={usual}: not an absolute path")
    prefix = f"{begin}{os.geteuid()}-{facts.broadcast}-"

    def copy(beat: Callable[[], None]) -> str:
        unique = os.urandom(8).hex()
        path = os.path.join(place, f"{prefix}{unique}.sqfs")
        if place != usual:
            # The note goes first: without it, the job's end would not remove the copy.
            note = os.path.join(usual, f"{prefix}{unique}{agreement.BROADCAST_NOTE}")
            with tempfile.NamedTemporaryFile() as file:
                file.write(os.fsencode(path))
                file.flush()
                _sbcast(what, facts, file.name, note, beat)
        progress = Progress(*log.target())
        _sbcast(what, facts, source, path, beat)
        how = f"in {progress.seconds():.0f} s, {size(status.st_size)}"
        progress.line(f"copied to the nodes of job {facts.broadcast} {how}: {path}")
        return path

    key = (
        f"{place}\0{source}\0{status.st_size}\0{status.st_mtime_ns}\0{facts.environment.get('SLURM_RESTART_COUNT', '')}"
    )
    name = f"broadcast-{hashlib.sha256(os.fsencode(key)).hexdigest()[:32]}"
    with references.interruptible("copying"):
        path = Store(settings.cache, settings.images).names.once(_job(facts), name, copy)
    if not path.isprintable():
        raise ChError(f"{what}={place}: the path can't be passed on")
    return f"{agreement.BROADCAST_WORD}{path}\n"


def _source(facts: Facts, wanted: Spec, caller: Caller, what: str) -> tuple[str, os.stat_result]:
    """Return the path and status of the image's file on this host."""
    found = parsers.located(facts.request)
    if found is not None:
        path = found[1]
    elif wanted.image.startswith(agreement.REFERENCE_BEGINNINGS):
        raise ChError(f"{what}: {wanted.image}: not pulled yet; with pull=node there is nothing to copy from here")
    else:
        storage = image.storage_directory(wanted.storage, facts.environment, caller.user)
        path = image.resolve(wanted.image, storage, wanted.image_directory or caller.cwd).path
    try:
        status = os.stat(path)
    except OSError as error:
        raise ChError(f"{what}: can't read {path} here") from error
    if not stat.S_ISREG(status.st_mode):
        raise ChError(f"{what}: {path}: not a file; `slurm-ch pack` makes one of a directory")
    return path, status


def _job(facts: Facts) -> str:
    cluster = facts.environment.get("SLURM_CLUSTER_NAME", "")
    return (
        f"{cluster}-{facts.broadcast}" if cluster.replace("-", "").replace("_", "").isalnum() else str(facts.broadcast)
    )


def _sbcast(what: str, facts: Facts, source: str, path: str, beat: Callable[[], None]) -> None:
    """Copy a file to the job's nodes; ChError with sbcast's message on failure."""
    with children.memory_file() as errors:
        argv = ["sbcast", f"--jobid={facts.broadcast}", source, path]
        child = children.start(argv, _environment(facts), stderr=errors)
        try:
            status = children.wait(child, beat)
        finally:
            children.stop(child)
        lines = [
            line.removeprefix("sbcast: ").removeprefix("error: ") for line in children.last_words(errors).splitlines()
        ]
    if status:
        reason = "; ".join(lines[-2:]) or f"status {status}"
        if "Unspecified error" in reason:
            # slurmd reports no more than this of a failed write.
            reason += " (no room on the node's disk? slurmd's log there has the reason)"
        elif "File exists" in reason:
            # The name is unique, so the existing file is another node's copy.
            reason += " (the nodes share this directory? It has to be on each node's own disk)"
        raise ChError(f"{what}: sbcast can't copy the image to {path}: {reason}")


def _environment(facts: Facts) -> Mapping[str, str]:
    # Never overwrite a file, even if that is the user's default.
    return {name: value for name, value in facts.environment.items() if name != "SBCAST_FORCE"}
