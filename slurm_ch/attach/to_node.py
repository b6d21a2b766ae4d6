# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch enter`, `ps` and `pack` where the user is: from there to the nodes of a job.

A node is reached by a step of the job's own, `srun --overlap`: no daemon, no
port, and nothing that a site's rules for its nodes don't know. There, `on_node.py`
is run by the same interpreter, from the same place.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from .. import log
from ..engine import accounts
from ..errors import ChError
from ..images import container_tree
from ..slurm import commands
from ..slurm.records import Job, NoSuchJob, Step, find_job, find_step, parse_reference
from . import here

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

ON_NODE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "on_node.py")

# How long one job's nodes may take to list their running.
LIST_SECONDS = 60

# Of a job that we are in, and the defaults of our own options, nothing may
# reach the srun that goes into another job; how Slurm is reached may.
_FOREIGN = ("SLURM_", "SLURMD_", "SRUN_", "SPANK_", "_SLURM_", "PMI_", "PMIX_")
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")


def user_name() -> str:
    """Return the caller's name, as Slurm knows it."""
    return accounts.user_name(os.geteuid())


def clean_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return `env` without what would steer srun."""
    return {name: value for name, value in env.items() if name in _KEPT or not name.startswith(_FOREIGN)}


def srun(job: Job, nodes: Sequence[str], *words: str) -> list[str]:
    """Return the srun that runs on_node.py once on each of `nodes` (all, if none is named)."""
    count = len(nodes) or job.node_count or 1
    where = [f"--nodelist={','.join(nodes)}"] if nodes else []
    # Whatever the job has, shared with its steps.
    shared = ["--overlap", "--overcommit", "--mem=0", "--mpi=none", "--chdir=/", "--quiet"]
    size = [f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1"]
    # A part of a het job is reached through the job's leader.
    leader, het, part = job.label.partition("+")
    which = [f"--jobid={leader}", f"--het-group={part}"] if het else [f"--jobid={job.id}"]
    return ["srun", *which, *where, *size, *shared, *words]


def _program(*words: str) -> list[str]:
    return [sys.executable, "-I", "-S", ON_NODE, *words]


def find(reference: str, node: str | None) -> tuple[Job, Step | None, str]:
    """Return the job, the step if one is named, and the node to go to; ChError if there is none."""
    name, step_name = parse_reference(reference)
    user = user_name()
    try:
        job = find_job(commands.running_jobs(user), name, user)
    except NoSuchJob:
        raise ChError(commands.why_not(name, user)) from None
    step = find_step(job, step_name) if step_name else None
    nodes = commands.host_names(step.nodes if step else job.nodes)
    if node is None:
        # Most often one step runs beside the batch script, and is meant.
        numbered = [one for one in job.steps if one.id.isdigit()]
        node = nodes[0] if step or not numbered else commands.host_names(numbered[0].nodes)[0]
    elif node not in nodes:
        raise ChError(f"--node={node}: {reference} is on {step.nodes if step else job.nodes}")
    return job, step, node


def enter(reference: str, node: str | None, argv: Sequence[str], extra: Sequence[str], terminal: bool) -> NoReturn:
    """Become the srun that runs `argv`, or a shell, in a container of the job; ChError if there is none."""
    job, step, node = find(reference, node)
    words = [*(["--pty"] if terminal else []), *extra]
    program = _program("enter", str(job.id), job.label, step.id if step else "-", *argv)
    command = srun(job, [node], *words, *program)
    log.info(" ".join(command))
    try:
        os.execvpe("srun", command, clean_environment(os.environ))
    except OSError as error:
        raise ChError("can't execute srun") from error


def pack_source(reference: str, node: str | None) -> container_tree.FromProgram:
    """Return what gets the file system of a running container, by a step of its job."""
    job, step, node = find(reference, node)
    program = _program("pack", str(job.id), job.label, step.id if step else "-")
    return container_tree.FromProgram(srun(job, [node], *program), clean_environment(os.environ))


def remove(reference: str, names: Sequence[str]) -> NoReturn:
    """Become the srun that removes a job's containers of these names on all its nodes; ChError if there is no job."""
    job, _, _ = find(reference, None)
    command = srun(job, [], *_program("remove", str(job.id), *names))
    try:
        os.execvpe("srun", command, clean_environment(os.environ))
    except OSError as error:
        raise ChError("can't execute srun") from error


def list_job(job: Job) -> list[dict[str, object]]:
    """Return the job's containers on all its nodes; ChError if the nodes don't answer."""
    command = srun(job, [], *_program("list", str(job.id)))
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
            timeout=LIST_SECONDS, env=clean_environment(os.environ),
        )  # fmt: skip
    except OSError as error:
        raise ChError("can't execute srun") from error
    except subprocess.TimeoutExpired:
        raise ChError(f"job {job.label}: no answer from {job.nodes} within {LIST_SECONDS} s") from None
    if done.returncode != 0:
        raise ChError(f"job {job.label}: can't ask {job.nodes}: {commands.last_line(done)}")
    # What a TaskProlog prints arrives here too.
    records = [line.removeprefix(here.MARK) for line in done.stdout.splitlines() if line.startswith(here.MARK)]
    return [{"job": job.label, **json.loads(record)} for record in records]
