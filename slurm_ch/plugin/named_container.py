# SPDX-License-Identifier: Apache-2.0
"""A step in a container with a name: joined if it runs on this node, else made from what is kept of it.

Loaded for these only. Whatever is removed is removed by a process of the user's: at a job's end (job_end.py), by a
later step's launcher, or by `slurm-ch rm`.
"""

from __future__ import annotations

import os
import time

from .. import agreement, log
from ..engine import named_containers, namespaces, task_plan
from ..engine.environment import Environment, apply_inside, load_readers
from ..errors import ChError, UsageError, describe
from ..request import pyxis_site
from ..request.compatibility import AUTO, CREATE, EXEC, NO_EXEC
from .background import in_child, slurms_environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..engine.action import Build
    from ..engine.caller import Caller
    from ..request.compatibility import ContainerName
    from ..request.site import Site
    from ..request.spec import Spec
    from .facts import Facts
    from .tickets import TaskSocket

# Between a container that is made and the first of its tasks in it, and between the last one's end and the
# kernel's last look at its mounts, nobody is in it; and there is nothing to wait at.
_LOOK_SECONDS = 0.02
_TELL_SECONDS = 2.0
_LONGEST_SECONDS = 60.0

# What a batch script's step is called: it outlives all others.
_BATCH = "batch"

# An image in a cache, and how long its last use may be back before it is noted anew.
_CACHED = "/images/sha256-"
_USED_SECONDS = 86400

# Slurm is asked about jobs that are over at most so often.
_SWEEP_SECONDS = 600
_SWEPT = ".swept"
_ASK_SECONDS = 20


def is_joined(facts: Facts, wanted: Spec, here: Site, caller: Caller, task_socket: TaskSocket) -> bool:
    """Have the tasks join the container if it runs; else change `wanted` to what is to be made of it.

    ChError if it can't be had. Until this process ends, it is no other step's turn.
    """
    asked = wanted.compatibility.container_name if wanted.compatibility else None
    if asked is None:
        return False
    process = _take_turn(wanted, asked, here, caller, facts.job)
    if process is not None:
        _check_save(wanted, here, caller)
        user_fd, mount_fd, more, build = _join(wanted, asked, process, caller)
        build.records.append((agreement.PLAN_AS_SRUN, ""))
        task_socket.issue(user_fd, mount_fd, task_plan.plan_file(task_plan.encode(build.records)), more=more)
    return process is not None


def _check_save(wanted: Spec, here: Site, caller: Caller) -> None:
    """Raise ChError if the container can't be saved at the end, as far as that can be known."""
    if wanted.save is not None:
        from ..engine.container import Container
        from . import save

        save.check(Container(wanted, caller, joining=True), here, caller.environment, caller.script is not None)


def _take_turn(
    wanted: Spec, asked: ContainerName, here: Site, caller: Caller, job: str
) -> named_containers.Process | None:
    """Return a process that runs in the container, or None, with `wanted` as it is to be made."""
    env = caller.environment
    unnamed = _of_a_step(asked, env.get("SLURM_JOB_ID", ""))
    if unnamed is not None:
        _keep_served(asked.label, unnamed, asked.name.partition(".")[2], None, here)
        return unnamed
    root = pyxis_site.containers(here.pyxis_arguments)
    kept = named_containers.NamedContainer(
        root, job if asked.of_job else None, env.get("SLURMD_NODENAME", "node"), asked.name
    )
    try:
        kept.make_place()
        _sweep(root, job, env)
        # Kept open, which this process's end ends.
        if kept.lock(wait=False) is None:
            log.info(f"{asked.label}: waiting for another step of yours that makes it")
            kept.lock(wait=True)
    except OSError as error:
        raise ChError(f"{asked.label}: can't use {kept.directory}") from error
    image = kept.image()
    process = _meet(kept, asked) if image is not None else None
    if image is None and (asked.how == EXEC or not wanted.image):
        remedy = "it does not run" if asked.how == EXEC else "and without --container-image it can't be made"
        raise ChError(f"{asked.label}: no such container on this node, {remedy}")
    if image is not None:
        _use(wanted, asked.label, kept, image, process is not None)
    if process is not None:
        _keep_served(asked.label, process, kept.maker() or "", image, here)
    if process is None:
        log.info(f"{asked.label}: {'made' if image is None else 'there already, kept'} in {kept.directory}")
        asked.mark = kept.new_mark(_BATCH if caller.script is not None else env.get("SLURM_STEP_ID", ""))
        wanted.overlay = kept.directory
    return process


def _keep_served(label: str, process: named_containers.Process, maker: str, image: str | None, here: Site) -> None:
    """Have this step serve the container's image when the step that made it has ended, where Slurm kills its server.

    A warning says where that can't be done. ChError if nobody serves the image, which is known to be a file.
    """
    from ..engine import standby_server

    # A batch script outlives all steps.
    if maker == _BATCH or not standby_server.is_needed():
        return
    is_file = image is not None and os.path.isfile(image)
    why = ""
    if here.squashfuse:
        why = f"squashfuse={here.squashfuse}" if is_file else ""
    else:
        try:
            if not standby_server.start(process.user_fd) and is_file:
                raise ChError(f"{label}: step {maker} has ended, and with it what served the image; see slurm-ch ps")
        except standby_server.CantStart as error:
            why = describe(error)
    if why:
        log.warning(f"{label}: step {maker} serves its image, and who joined can't go on without that step ({why})")


def _of_a_step(asked: ContainerName, job: str) -> named_containers.Process | None:
    """Return a process of an unnamed container, whose name is JOB.STEP; None if the name is none of these."""
    of, dot, step = asked.name.partition(".")
    if not dot or of != job or not step.isdigit() or asked.how not in (AUTO, EXEC):
        return None
    process = named_containers.find_step(of, step)
    if process is None:
        raise ChError(f"{asked.label}: step {asked.name} has no container on this node")
    return process


def _use(wanted: Spec, label: str, kept: named_containers.NamedContainer, image: str, runs: bool) -> None:
    """Have the image that the container was made of; another one is of no use to what is kept.

    ChError if it is gone, the user names none, and the container doesn't run.
    """
    try:
        status = os.stat(image)
    except OSError as error:
        if not wanted.image and not runs:
            name = kept.reference() or "IMAGE"
            raise ChError(f"{label}: name its image again with --container-image={name}; gone: {image}") from error
        wanted.image = wanted.image or image
        return
    wanted.image = wanted.image or kept.reference() or image
    wanted.located = image
    wanted.image_directory = None
    if _CACHED in image and status.st_uid == os.geteuid() and time.time() - status.st_mtime > _USED_SECONDS:
        # The cache goes by that when it needs room (store.py).
        try:
            os.utime(image)
        except OSError as error:
            log.info(f"{image}: {error.strerror}")


def _meet(kept: named_containers.NamedContainer, asked: ContainerName) -> named_containers.Process | None:
    """Return a process in the container; None where it is there but doesn't run. ChError if the user wants another."""
    if asked.how == CREATE:
        raise ChError(f"{asked.label}: there is such a container already")
    start = time.monotonic()
    told = False
    while True:
        mark = kept.mark()
        process = named_containers.find(mark) if mark else None
        if process is not None and asked.how == NO_EXEC:
            raise ChError(f"{asked.label}: it runs (pid {process.pid}); without no_exec, it is joined")
        if process is not None:
            return process
        if not named_containers.is_busy(kept.directory):
            break
        waited = time.monotonic() - start
        if waited > _LONGEST_SECONDS:
            raise ChError(f"{asked.label}: it is in use on this node by a process that can't be joined")
        if waited > _TELL_SECONDS and not told:
            told = True
            log.warning(f"{asked.label}: waiting for a step that is about to start in it, or to leave it")
        time.sleep(_LOOK_SECONDS)
    if asked.how == EXEC:
        raise ChError(f"{asked.label}: it does not run on this node")
    return None


def _join(
    wanted: Spec, asked: ContainerName, process: named_containers.Process, caller: Caller
) -> tuple[int, int, list[int], Build]:
    """Enter the container; return descriptors of its namespaces, and what its tasks' environment is to be."""
    log.info(f"{asked.label}: joining pid {process.pid}; its image, mounts and devices are as they are")
    lacking = [kind for kind in wanted.unshare if kind not in process.further]
    if lacking:
        raise UsageError(f"{wanted.label('unshare')}={','.join(lacking)}: {asked.name} runs without")
    wanted.env_rules = [one for one in wanted.env_rules if one[0] != "device"]
    wanted.image = wanted.image or caller.environment.get("SLURM_JOB_ID", "") + "/" + asked.name
    environment = Environment(wanted, caller, None, joining=True)
    load_readers()
    trees: Mapping[str, int] = {}
    if "PMIX_NAMESPACE" in caller.environment:
        from ..engine import late_binds, pmix

        trees = late_binds.copies(pmix.directories(caller.environment), "PMIx")
    namespaces.enter(process.user_fd, process.mount_fd, f"{asked.label} (pid {process.pid})")
    if trees:
        late_binds.attach(trees, "PMIx")
    return process.user_fd, process.mount_fd, list(process.further.values()), apply_inside(environment)


# ---- What jobs that are over have left ----


def _sweep(root: str | None, own_job: str, env: Mapping[str, str]) -> None:
    """Have a child look, now and then, for containers of jobs that are over: a node that died had no end of them."""
    left = [job for job in named_containers.jobs(root) if job != own_job]
    swept = f"{named_containers.own_directory(root)}/{_SWEPT}"
    failure = "can't look for containers of jobs that are over"
    try:
        if not left or time.time() - os.stat(swept).st_mtime < _SWEEP_SECONDS:
            return
    except OSError:
        pass
    try:
        os.close(os.open(swept, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.utime(swept)
    except OSError as error:
        log.info(f"{failure}: {error.strerror}")
        return
    in_child(lambda: _remove_of_others(root, left, env), failure)


def _remove_of_others(root: str | None, jobs: Sequence[str], env: Mapping[str, str]) -> None:
    import subprocess

    own = slurms_environment(env)
    asked = subprocess.run(
        ["squeue", "--noheader", f"--user={os.geteuid()}", "--format=%A"],
        check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=own, timeout=_ASK_SECONDS,
    )  # fmt: skip
    if asked.returncode == 0:
        for job in set(jobs) - set(asked.stdout.split()):
            named_containers.remove_job(root, job)
        named_containers.sweep(root)
