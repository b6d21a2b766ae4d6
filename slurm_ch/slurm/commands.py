# SPDX-License-Identifier: Apache-2.0
"""Run Slurm's commands; list the running jobs and steps, by pyslurm if it can be used, otherwise by squeue.

pyslurm exits the process if it finds no slurm.conf, hangs if slurmctld doesn't answer,
and works only with its own release of Slurm. So it is loaded in a child process, and
only if the installed release is the right one. If the child dies or is too slow, squeue
is used instead.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import select
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any, TypeVar

from .. import log
from ..errors import ChError
from . import records

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .records import Job

COMMAND_SECONDS = 30
PYSLURM_SECONDS = 15
_CHUNK = 1 << 16

_T = TypeVar("_T")


def run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands; ChError if it isn't installed or doesn't end within COMMAND_SECONDS."""
    try:
        return subprocess.run(
            argv, check=False, capture_output=True, text=True, errors="replace", timeout=COMMAND_SECONDS,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError as error:
        raise ChError(f"can't run {argv[0]}: is Slurm installed, and in PATH?") from error
    except subprocess.TimeoutExpired:
        raise ChError(f"{argv[0]}: no answer within {COMMAND_SECONDS} s") from None


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line of a failed command's messages, or its status if there are none."""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"status {done.returncode}"


def parse_version(text: str) -> tuple[int, ...]:
    """Return (22, 5, 8) for `slurm-wlm 22.05.8`, or () if there is no version in `text`."""
    found = re.search(r"\b(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part) for part in found.groups() if part) if found else ()


def running_jobs(user: str | None) -> list[Job]:
    """Return the running jobs with their steps, of one user or with None of all; ChError if Slurm doesn't answer."""
    found = _from_pyslurm()
    if found is None:
        log.info("asking Slurm's commands for the running jobs")
        found = _from_commands(user)
    return [job for job in found if user is None or job.user == user]


# --- Slurm's commands ---------------------------------------------------------


def _from_commands(user: str | None) -> list[Job]:
    mine = [f"--user={user}"] if user else []
    try:
        jobs = _parsed(records.jobs_from_json, ["squeue", "--json", *mine])
        if jobs is None:
            fields = records.format_option(records.JOB_FIELDS)
            jobs = records.jobs_from_text(_text(["squeue", "--noheader", f"--Format={fields}", *mine]))
        steps = _parsed(records.steps_from_json, ["squeue", "--steps", "--json", *mine])
        if steps is None:
            fields = records.format_option(records.STEP_FIELDS)
            steps = records.steps_from_text(_text(["squeue", "--steps", "--noheader", f"--Format={fields}", *mine]))
    except ValueError as error:
        raise ChError(f"can't read squeue's output: {error}") from None
    return records.attach_steps(jobs, steps)


def _parsed(parse: Callable[[Any], _T | None], argv: Sequence[str]) -> _T | None:
    """Return what `parse` makes of a command's JSON.

    None if the command can't write JSON (the plugins for it may be a separate package), or in an
    unknown format.
    """
    done = run(argv)
    try:
        return parse(json.loads(done.stdout)) if done.returncode == 0 else None
    except ValueError:
        return None


def _text(argv: Sequence[str]) -> str:
    done = run(argv)
    if done.returncode != 0:
        raise ChError(f"{argv[0]} failed: {last_line(done)}")
    return done.stdout


def why_not_running(job: str, user: str) -> str:
    """Return a message that says why `job` is not among the user's running jobs."""
    done = run(["squeue", "--noheader", "--format=%u %T", f"--jobs={job}"])
    if done.returncode == 0 and done.stdout.strip():
        owner, state = done.stdout.split(maxsplit=2)[:2]
        return (
            f"job {job}: belongs to {owner}, not to you"
            if owner != user
            else f"job {job}: {state.lower()}, not running"
        )
    return f"job {job}: no such job"


def host_names(nodes: str) -> list[str]:
    """Return the nodes of a list of Slurm's like `n[1-2]`, in order."""
    return [nodes] if "[" not in nodes and "," not in nodes else _text(["scontrol", "show", "hostnames", nodes]).split()


# --- pyslurm ------------------------------------------------------------------


def _from_pyslurm() -> list[Job] | None:
    """Return all users' running jobs from pyslurm, or None if it can't be used."""
    if importlib.util.find_spec("pyslurm") is None:
        return None
    fits, release = _installed_pyslurm()
    if not fits:
        log.info(f"pyslurm can't be used: {release}")
        return None
    try:
        answer = json.loads(_in_child(ask_pyslurm))
    except TimeoutError:
        log.info(f"pyslurm can't be used: no answer within {PYSLURM_SECONDS} s")
        return None
    except ValueError:
        log.info("pyslurm can't be used: it ended without an answer")
        return None
    if isinstance(answer, str):
        log.info(f"pyslurm can't be used: {answer}")
        return None
    log.info(f"asked pyslurm {release} for the running jobs")
    jobs = {job["id"]: records.Job(**job) for job in answer["jobs"]}
    return records.attach_steps(jobs, [(str(job), records.Step(**step)) for job, step in answer["steps"]])


def _installed_pyslurm() -> tuple[bool, str]:
    """Return whether the installed pyslurm fits this Slurm, and its release or the reason. Doesn't load pyslurm."""
    import importlib.metadata

    try:
        release = importlib.metadata.version("pyslurm")
    except importlib.metadata.PackageNotFoundError:
        return False, "its release is unknown: not installed as a package"
    running = parse_version(run(["squeue", "--version"]).stdout)[:2]
    if not running or parse_version(release)[:2] != running:
        return False, f"it is for Slurm {release}"
    return True, release


def _in_child(ask: Callable[[], Any]) -> bytes:
    """Call `ask` in a child, and return its result as JSON; b"" if the child dies, TimeoutError if it is too slow."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            # Slurm's library writes messages to the standard streams.
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            os.close(reader)
            with open(writer, "w") as pipe:
                json.dump(ask(), pipe)
        finally:
            os._exit(0)
    os.close(writer)
    try:
        return _read_all(reader, time.monotonic() + PYSLURM_SECONDS)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _read_all(fd: int, deadline: float) -> bytes:
    """Read to the end of the pipe; TimeoutError if that isn't reached by `deadline` (time.monotonic)."""
    found = b""
    while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(fd, _CHUNK)
        if not chunk:
            return found
        found += chunk
    raise TimeoutError


def ask_pyslurm() -> dict[str, Any] | str:
    """Return jobs and steps as plain values, or a text why pyslurm failed. Loads pyslurm."""
    try:
        import pyslurm

        return {
            "jobs": [_job(job) for job in pyslurm.Jobs.load().values() if job.state == "RUNNING"],
            "steps": [
                (int(job), _step(step)) for job, steps in pyslurm.JobSteps.load_all().items() for step in steps.values()
            ],
        }
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _job(job: Any) -> dict[str, Any]:
    # pyslurm has None for 0. In an array, a running job is always an element; None means the element 0.
    task = job.array_task_id or 0
    name = records.label(job.id, job.array_id, task, job.heterogeneous_id, job.heterogeneous_offset)
    return {
        "id": job.id,
        "label": name,
        "user": job.user_name,
        "nodes": job.allocated_nodes or "",
        "node_count": job.num_nodes or 0,
    }


def _step(step: Any) -> dict[str, Any]:
    nodes = step.allocated_nodes or ""
    return {
        "id": str(step.id),
        "name": step.name or "",
        # pyslurm splits n[1,3] at its comma.
        "nodes": nodes if isinstance(nodes, str) else ",".join(nodes),
        "tasks": step.ntasks or 0,
        "seconds": int(step.run_time or 0),
    }
