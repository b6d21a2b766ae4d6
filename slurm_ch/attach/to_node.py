# SPDX-License-Identifier: Apache-2.0
"""The parts of `slurm-ch enter`, `ps`, `pack` and `rm` that run where the user is, and reach the nodes of a job.

A node is reached by a step of the job itself, `srun --overlap`. That needs no daemon and no
port, and the site's rules for access to nodes apply. The step runs `on_node.py` with the same
interpreter and from the same path as here.
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

# The time in which a job's nodes have to list their containers.
LIST_SECONDS = 60

# Variables that srun must not get: they describe the job in which this process runs, or are
# defaults for options. Those in _KEPT say how to reach Slurm.
_FOREIGN = ("SLURM_", "SLURMD_", "SRUN_", "SPANK_", "_SLURM_", "PMI_", "PMIX_")
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")


def user_name() -> str:
    """Return the caller's user name, as Slurm knows it."""
    return accounts.user_name(os.geteuid())


def clean_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return `env` without the variables that would change what srun does."""
    return {name: value for name, value in env.items() if name in _KEPT or not name.startswith(_FOREIGN)}


def srun(job: Job, nodes: Sequence[str], *words: str) -> list[str]:
    """Return the command line of an srun that runs `words` once on each of `nodes`, or on all if `nodes` is empty."""
    count = len(nodes) or job.node_count or 1
    where = [f"--nodelist={','.join(nodes)}"] if nodes else []
    # Share the job's resources with its other steps.
    shared = ["--overlap", "--overcommit", "--mem=0", "--mpi=none", "--chdir=/", "--quiet"]
    size = [f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1"]
    # A component of a het job is reached by the leader's id.
    leader, het, part = job.label.partition("+")
    which = [f"--jobid={leader}", f"--het-group={part}"] if het else [f"--jobid={job.id}"]
    return ["srun", *which, *where, *size, *shared, *words]


def _program(*words: str) -> list[str]:
    return [sys.executable, "-I", "-S", ON_NODE, *words]


def find(reference: str, node: str | None) -> tuple[Job, Step | None, str]:
    """Return the job, the step if one is named, and the node; ChError if one of them doesn't exist."""
    name, step_name = parse_reference(reference)
    user = user_name()
    try:
        job = find_job(commands.running_jobs(user), name, user)
    except NoSuchJob:
        raise ChError(commands.why_not_running(name, user)) from None
    step = find_step(job, step_name) if step_name else None
    nodes = commands.host_names(step.nodes if step else job.nodes)
    if node is None:
        # Without a step, take a node of the first numbered one: most often, the user means that, not the batch script.
        numbered = [one for one in job.steps if one.id.isdigit()]
        node = nodes[0] if step or not numbered else commands.host_names(numbered[0].nodes)[0]
    elif node not in nodes:
        raise ChError(f"--node={node}: {reference} is on {step.nodes if step else job.nodes}")
    return job, step, node


def enter(reference: str, node: str | None, argv: Sequence[str], extra: Sequence[str], terminal: bool) -> NoReturn:
    """Replace this process by an srun that runs `argv`, or a shell, in a container of the job.

    `extra` are further options of srun, `terminal` gives the command a pseudoterminal. ChError if there is no such job.
    """
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
    """Return a source for packing that reads a running container by a step of its job."""
    job, step, node = find(reference, node)
    program = _program("pack", str(job.id), job.label, step.id if step else "-")
    return container_tree.FromProgram(srun(job, [node], *program), clean_environment(os.environ))


def remove(reference: str, names: Sequence[str]) -> NoReturn:
    """Replace this process by an srun that removes a job's named containers on all its nodes; ChError."""
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
    # Other lines are what a TaskProlog prints.
    records = [line.removeprefix(here.MARK) for line in done.stdout.splitlines() if line.startswith(here.MARK)]
    return [{"job": job.label, **json.loads(record)} for record in records]
