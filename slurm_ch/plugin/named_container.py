# SPDX-License-Identifier: Apache-2.0
"""Named containers: a step joins the container if it runs on this node, otherwise it is made from its kept files.

Loaded only for these. Containers are removed by processes of their user: at a job's end (job_end.py), by a later
step's launcher, or by `slurm-ch rm`.
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
from .background import in_child, slurm_environment

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

# A container that has just been made has no process until its first task enters it. After the last task has ended,
# the kernel needs a moment to unmount it. Nothing signals the end of either state, so it is polled.
_POLL_SECONDS = 0.02
_WARN_AFTER_SECONDS = 2.0
_WAIT_SECONDS = 60.0

# The name of a batch script's step, which outlives all others.
_BATCH = "batch"

# In the path of an image in the cache; and the time after which its last use is recorded again.
_CACHED = "/images/sha256-"
_USED_SECONDS = 86400

# How often, at most, Slurm is asked which jobs have ended; the file whose time says when; squeue's time limit.
_SWEEP_SECONDS = 600
_SWEPT = ".swept"
_SQUEUE_SECONDS = 20


def join_or_prepare(facts: Facts, wanted: Spec, here: Site, caller: Caller, task_socket: TaskSocket) -> bool:
    """If the container runs, let the tasks join it and return True. Otherwise complete `wanted` to make the container.

    ChError if neither is possible. This process keeps the container locked until it ends.
    """
    asked = wanted.compatibility.container_name if wanted.compatibility else None
    if asked is None:
        return False
    process = _lock_and_find(wanted, asked, here, caller, facts.job)
    if process is not None:
        _check_save(wanted, here, caller)
        user_fd, mount_fd, more, build = _join(wanted, asked, process, caller)
        build.records.append((agreement.PLAN_AS_SRUN, ""))
        task_socket.issue(user_fd, mount_fd, task_plan.plan_file(task_plan.encode(build.records)), more=more)
    return process is not None


def _check_save(wanted: Spec, here: Site, caller: Caller) -> None:
    """Raise ChError if it is already known that the container can't be saved at the end."""
    if wanted.save is not None:
        from ..engine.container import Container
        from . import save

        save.check(Container(wanted, caller, joining=True), here, caller.environment, caller.script is not None)


def _lock_and_find(
    wanted: Spec, asked: ContainerName, here: Site, caller: Caller, job: str
) -> named_containers.Process | None:
    """Lock the container; return a process that runs in it, or None after completing `wanted` for making it."""
    env = caller.environment
    unnamed = _process_of_step(asked, env.get("SLURM_JOB_ID", ""))
    if unnamed is not None:
        _start_standby_server(asked.label, unnamed, asked.name.partition(".")[2], None, here)
        return unnamed
    root = pyxis_site.containers(here.pyxis_arguments)
    kept = named_containers.NamedContainer(
        root, job if asked.of_job else None, env.get("SLURMD_NODENAME", "node"), asked.name
    )
    try:
        kept.make_place()
        _sweep(root, job, env)
        # The descriptor stays open, so the lock is held until this process ends.
        if kept.lock(wait=False) is None:
            log.info(f"{asked.label}: waiting for another step of yours that makes it")
            kept.lock(wait=True)
    except OSError as error:
        raise ChError(f"{asked.label}: can't use {kept.directory}") from error
    image = kept.image()
    process = _find_running(kept, asked) if image is not None else None
    if image is None and (asked.how == EXEC or not wanted.image):
        remedy = "it does not run" if asked.how == EXEC else "and without --container-image it can't be made"
        raise ChError(f"{asked.label}: no such container on this node, {remedy}")
    if image is not None:
        _use_original_image(wanted, asked.label, kept, image, process is not None)
    if process is not None:
        _start_standby_server(asked.label, process, kept.maker() or "", image, here)
    if process is None:
        log.info(f"{asked.label}: {'made' if image is None else 'there already, kept'} in {kept.directory}")
        asked.mark = kept.new_mark(_BATCH if caller.script is not None else env.get("SLURM_STEP_ID", ""))
        wanted.overlay = kept.directory
    return process


def _start_standby_server(
    label: str, process: named_containers.Process, maker: str, image: str | None, here: Site
) -> None:
    """Start a server in this step that takes over when the step that made the container ends.

    Needed where Slurm kills that step's server. A failure is a warning; ChError if the image is a file that no
    server serves any more.
    """
    from ..engine import standby_server

    # The batch script's server lives until the job ends.
    if maker == _BATCH or not standby_server.is_needed():
        return
    is_file = image is not None and os.path.isfile(image)
    why = ""
    if here.squashfuse:
        why = f"squashfuse={here.squashfuse}" if is_file else ""
    else:
        try:
            if not standby_server.start(process.user_fd) and is_file:
                raise ChError(f"{label}: step {maker} has ended, and with it the server of the image; see slurm-ch ps")
        except standby_server.CantStart as error:
            why = describe(error)
    if why:
        log.warning(
            f"{label}: step {maker} serves its image, and tasks that have joined it can't go on without that step"
            f" ({why})"
        )


def _process_of_step(asked: ContainerName, job: str) -> named_containers.Process | None:
    """If the name is JOB.STEP, which means a step's unnamed container, return a process of it; None for other names."""
    of, dot, step = asked.name.partition(".")
    if not dot or of != job or not step.isdigit() or asked.how not in (AUTO, EXEC):
        return None
    process = named_containers.find_step(of, step)
    if process is None:
        raise ChError(f"{asked.label}: step {asked.name} has no container on this node")
    return process


def _use_original_image(
    wanted: Spec, label: str, kept: named_containers.NamedContainer, image: str, runs: bool
) -> None:
    """Set `wanted`'s image to the one that the container was made from, which its kept changes belong to.

    ChError if that image is missing, the user names none, and the container doesn't run.
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
        # The cache removes the images that were used least recently (store.py).
        try:
            os.utime(image)
        except OSError as error:
            log.info(f"{image}: {error.strerror}")


def _find_running(kept: named_containers.NamedContainer, asked: ContainerName) -> named_containers.Process | None:
    """Return a process that runs in an existing container, or None if it doesn't run; waits while that is changing.

    ChError if that contradicts the user's flag (create, exec, no_exec).
    """
    if asked.how == CREATE:
        raise ChError(f"{asked.label}: a container of this name exists already")
    start = time.monotonic()
    warned = False
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
        if waited > _WAIT_SECONDS:
            raise ChError(f"{asked.label}: it is in use on this node by a process that can't be joined")
        if waited > _WARN_AFTER_SECONDS and not warned:
            warned = True
            log.warning(f"{asked.label}: waiting for a step that is about to start in it, or to leave it")
        time.sleep(_POLL_SECONDS)
    if asked.how == EXEC:
        raise ChError(f"{asked.label}: it does not run on this node")
    return None


def _join(
    wanted: Spec, asked: ContainerName, process: named_containers.Process, caller: Caller
) -> tuple[int, int, list[int], Build]:
    """Enter the container; return its user, mount and further namespaces, and a build with the tasks' environment."""
    log.info(f"{asked.label}: joining pid {process.pid}; its image, mounts and devices are not changed")
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


# ---- Containers that ended jobs have left ----


def _sweep(root: str | None, own_job: str, env: Mapping[str, str]) -> None:
    """From time to time, remove in a child the containers of jobs that have ended, as those of a node that crashed."""
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

    own = slurm_environment(env)
    asked = subprocess.run(
        ["squeue", "--noheader", f"--user={os.geteuid()}", "--format=%A"],
        check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=own, timeout=_SQUEUE_SECONDS,
    )  # fmt: skip
    if asked.returncode == 0:
        for job in set(jobs) - set(asked.stdout.split()):
            named_containers.remove_job(root, job)
        named_containers.sweep(root)
