# SPDX-License-Identifier: Apache-2.0
"""Pull the image that a job or step names by a reference: at submission if possible, else on the step's first node.

    srun            resolves and pulls before the step is created; the nodes get a path
    sbatch, salloc  resolve, and pin the digest; an srun in the job pulls, or the batch step's launcher
    pull=node       a step's first node pulls, and the others wait for the file

Loaded only if a reference has to be resolved: a node that gets a path doesn't need it.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from contextlib import contextmanager

from .. import agreement, log
from ..engine import container, image
from ..errors import ChError
from ..images import pull, reference, resolve
from ..images import settings as site_settings
from ..images.locks import STALE_SECONDS
from ..images.progress import Progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..engine.caller import Caller
    from ..images.settings import Settings
    from ..request.site import Site
    from ..request.spec import Spec

# A shell's status for a command that Ctrl-C ended.
EXIT_INTERRUPTED = 130

# SIGIO tells the launcher that all its tasks have ended.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGIO)

# Within this time, a file server should show one client the file that another has written.
_SEEN_SECONDS = 5.0
_POLL_SECONDS = 0.25
_POLL_MOST_SECONDS = 5.0
# If the first node has shown no activity for this time, a bit more than two heartbeats of its lock, the next node may
# take over; each further node waits for _TURN_SECONDS more.
_IDLE_SECONDS = 25.0
_TURN_SECONDS = 1.0

# Variables that name the job in which a command runs.
_JOB = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_HET_JOB_ID")


class Interrupted(ChError):
    """The user or Slurm has interrupted the work by a signal."""

    code = EXIT_INTERRUPTED


@contextmanager
def interruptible(doing: str = "pulling") -> Iterator[None]:
    """Turn signals that would end this process into the exception Interrupted, so that temporary files are removed.

    Signals that are ignored stay ignored; the handlers are restored at the end.
    """

    def end(number: int, _frame: object) -> None:
        for one in _ENDING:
            signal.signal(one, signal.SIG_IGN)
        raise Interrupted("interrupted" if number == signal.SIGINT else f"ended while {doing}")

    before = {number: signal.getsignal(number) for number in _ENDING}
    for number, was in before.items():
        if was != signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


def _puller(settings: Settings, wanted: Spec, env: Mapping[str, str]) -> pull.Puller:
    fd, prefix = log.target()
    one = pull.Puller(settings, env, Progress(fd, prefix), wanted.platform)
    one.option = "--ch-pull"
    return one


def _fetch(one: pull.Puller, resolved: resolve.Resolved, mode: str) -> str:
    """Return the image's path; pull it if it is missing.

    For a pull, turn on the garbage collector and site-packages, without which the launcher starts.
    """
    if mode == resolve.ALWAYS or one.find(resolved) is None:
        import site

        gc.enable()
        site.addsitepackages(set())
    return one.fetch(resolved, mode)


def answer(text: str, path: str | None) -> str:
    """Return the answer for the plugin: the reference or path to use for the image, and its file on this host."""
    located = f"{os.uname().nodename}:{path}" if path is not None else ""
    if not (text + located).isprintable():
        raise ChError(f"{text}: the cache's path can't be passed on: {path!r}")
    return f"{agreement.PIN_WORD}{text}\n{located}\n"


def at_submission(command: str, wanted: Spec, here: Site, caller: Caller) -> str:
    """Resolve the reference, and pull the image if the command and the settings want it now; return the answer."""
    container.check_image(wanted, image.Image(wanted.image, image.SQUASHFS, ""), None)
    log.configure(level=wanted.verbosity)
    env = caller.environment
    settings = site_settings.parse(here.pulling, env, caller.user)
    name = reference.parse(wanted.image, caller.cwd)
    if command != "srun":
        # sbatch and salloc submit a new job.
        env = {key: value for key, value in env.items() if key not in _JOB}
    mode = wanted.pull or resolve.AUTO
    with interruptible():
        one = _puller(settings, wanted, env)
        if settings.importer is not None and not name.local:
            return _from_importer(settings.importer, command, one, name)
        try:
            resolved = one.resolve(name, mode)
        except ChError as error:
            from ..images import fetch

            unsure = isinstance(error, fetch.FetchError) and not isinstance(error, fetch.NotThere)
            if settings.pull != site_settings.NODE or not unsure or name.local:
                raise
            log.info(f"{error}; the step's first node will ask")
            return answer(name.text, None)
        path = one.find(resolved)
        if name.local:
            # Only this host has a local image, and its name may mean another image later.
            path = _fetch(one, resolved, mode)
            return answer(path, path)
        early = command == "srun" and settings.pull != site_settings.NODE
        if early or mode != resolve.AUTO or settings.pull in (site_settings.SUBMIT, site_settings.NO):
            path = _fetch(one, resolved, mode)
        if path is None:
            one.pin(resolved)
    log.info(f"{resolved.pinned}: {path or 'to be pulled in the job'}")
    return answer(resolved.pinned, path)


def _from_importer(program: str, command: str, one: pull.Puller, name: reference.Reference) -> str:
    """Get a step's image from the site's importer. A job's image is imported when the job runs."""
    if command != "srun":
        return answer(name.text, None)
    from ..images import importer

    return answer(name.text, importer.get(program, name, one.env))


def wait_for_file(host: str, path: str, wanted: Spec, env: Mapping[str, str]) -> None:
    """Wait up to 5 s for a file that another host has written; ChError if it doesn't appear."""
    end = time.monotonic() + _SEEN_SECONDS
    while not os.path.exists(path):
        if time.monotonic() > end:
            node = env.get("SLURMD_NODENAME") or os.uname().nodename
            raise ChError(
                f"{wanted.image}: pulled to {path} on {host}, which {node} doesn't see: "
                f"the cache must be on a shared file system ({site_settings.CACHE_VARIABLE}, or the site's cache=)"
            )
        time.sleep(_POLL_SECONDS)


def on_node(wanted: Spec, here: Site, caller: Caller) -> str:
    """Return the path of a reference's image. The step's first node pulls it, and the others wait for it."""
    env = caller.environment
    settings = site_settings.parse(here.pulling, env, caller.user)
    name = reference.parse(wanted.image, caller.cwd)
    mode = wanted.pull or resolve.AUTO
    with interruptible():
        one = _puller(settings, wanted, env)
        if settings.importer is not None and not name.local:
            from ..images import importer

            return importer.get(settings.importer, name, env)
        resolved = one.resolve(name, mode)
        node = env.get("SLURM_NODEID", "0")
        if node != "0":
            path = _wait_for_image(one, resolved, int(node))
            if path is not None:
                return path
            mode = resolve.AUTO if mode == resolve.ALWAYS else mode
        return _fetch(one, resolved, mode)


def _wait_for_image(one: pull.Puller, resolved: resolve.Resolved, turn: int) -> str | None:
    """Return the image's path as soon as it exists; None if nobody pulls it any more, and it is this node's turn to.

    The wait only reads, and polls less and less often: a thousand nodes that wrote to the cache would slow down
    the pull. The nodes take over one after the other, so that only one of them does if the first node died.
    """
    begin = since = time.monotonic()
    beat = None
    while True:
        path = one.find(resolved)
        if path is not None:
            return path
        now, before = time.monotonic(), beat
        beat = one.store.beat(resolved.manifest)
        if beat != before:
            since = now
        silent = now - since - turn * _TURN_SECONDS
        if silent > (_IDLE_SECONDS if beat is None else STALE_SECONDS):
            return None
        if beat is not None and silent > _IDLE_SECONDS and one.store.is_abandoned(resolved.manifest):
            return None
        time.sleep(min(_POLL_MOST_SECONDS, max(_POLL_SECONDS, (now - begin) / 20)))
