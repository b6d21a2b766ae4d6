# SPDX-License-Identifier: Apache-2.0
"""Records of running jobs and steps, parsers for squeue's output, and look-up by the user's name for a job.

Strings in, values out. The formats are `squeue --json` and `squeue --steps --json` of
Slurm 22.05 (which has no JSON for steps) to 26.05, and lines of `squeue --Format`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ChError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

JOB_FIELDS = ("JobID", "JobArrayID", "HetJobID", "HetJobOffset", "UserName", "NodeList", "NumNodes", "State")
STEP_FIELDS = ("StepID", "StepName", "Nodes", "NumTasks", "TimeUsed")

_REFERENCE = re.compile(r"(\d+(?:_\d+|\+\d+)?)(?:\.(\d+|batch|interactive))?", re.ASCII)
# Steps of Slurm's own, in which no command of the user's runs.
_SLURM_STEPS = ("extern", "pending")


class NoSuchJob(ChError):
    """No running job has this name."""


@dataclass(frozen=True)
class Step:
    """A running step: `id` is the one within the job (`0`, `batch`), `seconds` the time since its start."""

    id: str
    name: str
    nodes: str  # as Slurm writes it: n[1-2]
    tasks: int
    seconds: int


@dataclass
class Job:
    """A running job: Slurm's own id, and the label that users see (`12_3`, `12+1`)."""

    id: int
    label: str
    user: str
    nodes: str
    node_count: int
    steps: list[Step] = field(default_factory=list)


def label(job: int, array: int | None, task: int | None, het: int | None, offset: int | None) -> str:
    """Return a job's name in Slurm's commands: its id, or that of an array's element or a het component."""
    if array and task is not None:
        return f"{array}_{task}"
    return f"{het}+{offset or 0}" if het else str(job)


def number(value: Any) -> int | None:
    """Return a number of Slurm's JSON: a number, null, or since 23.11 an object with `set` and `infinite`."""
    if isinstance(value, dict):
        return int(value.get("number", 0)) if value.get("set") else None
    return value if isinstance(value, int) else None


def _states(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def jobs_from_json(document: Any) -> dict[int, Job]:
    """Return the running jobs of `squeue --json` by their number; ValueError if it is something else."""
    found = {}
    try:
        for entry in document["jobs"]:
            if "RUNNING" not in _states(entry["job_state"]):
                continue
            keys = ("array_job_id", "array_task_id", "het_job_id", "het_job_offset")
            array, task, het, offset = (number(entry.get(key)) for key in keys)
            count = number(entry.get("node_count")) or 0
            name = label(entry["job_id"], array, task, het, offset)
            found[entry["job_id"]] = Job(entry["job_id"], name, entry["user_name"], entry["nodes"], count)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not squeue's JSON") from error
    return found


def steps_from_json(document: Any) -> list[tuple[str, Step]] | None:
    """Return (job, step) of `squeue --steps --json`; None when this Slurm has no JSON for steps."""
    if not isinstance(document, dict) or "steps" not in document:
        return None
    found = []
    try:
        for entry in document["steps"]:
            job, _, step = entry["id"].partition(".")
            seconds = number(entry["time"]["running"]) or 0
            tasks = number(entry["number_tasks"]) or 0
            found.append((job, Step(step, entry["name"], entry["nodes"], tasks, seconds)))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not squeue's JSON") from error
    return found


def format_option(fields: Iterable[str]) -> str:
    """Return squeue's --Format for `fields`, each ended by a bar."""
    return ",".join(f"{name}:|" for name in fields)


def _rows(text: str, fields: tuple[str, ...]) -> Iterable[list[str]]:
    for line in text.splitlines():
        # Only a name, which is the second field, can contain a bar: additional parts belong to it.
        first, *rest = line.removesuffix("|").split("|")
        if len(rest) < len(fields) - 1:
            raise ValueError(f"not squeue's --Format: {line}")
        extra = len(rest) - (len(fields) - 1)
        yield [first, "|".join(rest[: extra + 1]), *rest[extra + 1 :]]


def jobs_from_text(text: str) -> dict[int, Job]:
    """Return the running jobs of `squeue --Format` with JOB_FIELDS by their number."""
    found = {}
    for job, name, het, offset, user, nodes, count, state in _rows(text, JOB_FIELDS):
        if state == "RUNNING":
            shown = f"{het}+{offset}" if het.isdigit() and het != "0" else name
            found[int(job)] = Job(int(job), shown, user, nodes, int(count))
    return found


def steps_from_text(text: str) -> list[tuple[str, Step]]:
    """Return (job, step) of `squeue --steps --Format` with STEP_FIELDS; the job as its label or number."""
    found = []
    for name, title, nodes, tasks, used in _rows(text, STEP_FIELDS):
        job, _, step = name.partition(".")
        found.append((job, Step(step, title, nodes, int(tasks), seconds_of(used))))
    return found


def seconds_of(text: str) -> int:
    """Return the seconds of Slurm's [DAYS-][[HOURS:]MINUTES:]SECONDS; 0 for words like INVALID."""
    days, _, clock = text.rpartition("-")
    total = 0
    for part in clock.split(":"):
        if not (part.isascii() and part.isdigit()):
            return 0
        total = total * 60 + int(part)
    return total + (int(days) * 86400 if days.isascii() and days.isdigit() else 0)


def clock(seconds: int) -> str:
    """Return seconds as Slurm writes them: [DAYS-][HOURS:]MINUTES:SECONDS."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}-{hours:02}:{minutes:02}:{seconds:02}"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def attach_steps(jobs: dict[int, Job], steps: Iterable[tuple[str, Step]]) -> list[Job]:
    """Add to each job its steps, without Slurm's own; return the jobs."""
    by_name = {str(job.id): job for job in jobs.values()} | {job.label: job for job in jobs.values()}
    for name, step in steps:
        if name in by_name and not step.id.lower().startswith(_SLURM_STEPS):
            by_name[name].steps.append(step)
    return list(jobs.values())


def is_reference(text: str) -> bool:
    """Whether `text` has the form of a job or a step of one."""
    return _REFERENCE.fullmatch(text) is not None


def parse_reference(text: str) -> tuple[str, str | None]:
    """Return job and step of `JOB[.STEP]`; UsageError if it has another form."""
    match = _REFERENCE.fullmatch(text)
    if not match:
        raise UsageError(f"{text}: not JOBID[.STEP], such as 12, 12.0, 12_3.batch or 12+1.0")
    return match[1], match[2]


def find_job(jobs: Iterable[Job], name: str, user: str) -> Job:
    """Return the job with this name; NoSuchJob if there is none, ChError if there are several, or it isn't `user`'s."""
    jobs = list(jobs)
    found = [job for job in jobs if job.label == name]
    if not found:
        # The id of an array or a het job means its only running part; a part's own id means that part.
        found = [job for job in jobs if re.split(r"[_+]", job.label)[0] == name]
        found = found or [job for job in jobs if str(job.id) == name]
    if not found:
        raise NoSuchJob(f"job {name}: not running")
    if len(found) > 1:
        raise ChError(f"job {name} has several running parts; choose one: {', '.join(job.label for job in found)}")
    if found[0].user != user:
        raise ChError(f"job {name}: belongs to {found[0].user}, not to you")
    return found[0]


def find_step(job: Job, name: str) -> Step:
    """Return the job's step with this name; if there is none, ChError lists the running steps."""
    for step in job.steps:
        if step.id == name:
            return step
    raise ChError(f"step {job.label}.{name}: not running; {running_steps(job)}")


def running_steps(job: Job) -> str:
    """Return the part of a message that lists a job's running steps."""
    if not job.steps:
        return f"job {job.label} has no running step"
    return "running: " + ", ".join(f"{job.label}.{step.id} ({step.name}) on {step.nodes}" for step in job.steps)
