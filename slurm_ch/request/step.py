# SPDX-License-Identifier: Apache-2.0
"""Read the environment variables by which Slurm, or mpirun, describes the step: its tag and its task counts."""

from __future__ import annotations

from .. import agreement
from .. import lean_os as os
from ..errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Slurm's reserved step ids (slurm.h).
_STEP_WORDS = {"4294967291": "batch", "4294967290": "interactive", "4294967292": "extern"}

HYDRA_COUNT = agreement.HYDRA_COUNT

# More tasks on one node than Slurm can be configured for.
MAX_TASKS = 1 << 20

_SAFE = agreement.TAG_LETTERS.encode()


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 12


def _number(env: Mapping[str, str], name: str) -> int:
    text = env.get(name)
    if text is None:
        raise UsageError(f"{name}: not set")
    if not _digits(text):
        raise UsageError(f"{name}={text}: not a number")
    return int(text)


def tag(env: Mapping[str, str], ppid: int | None = None) -> str:
    """Return a name for this node's part of this step that is unique in the cluster.

    It consists of job, step, het component, node and restart count. Het components that share
    a node differ in their first global task id. A batch script may run several mpirun: the ranks
    of Open MPI's are recognised by PMIx's name for their job, those of MPICH's by their parent,
    `ppid`. Outside Slurm and MPI, the tag is made from the parent's pid.
    UsageError names a variable that is missing or wrong.
    """
    started_by = ""
    if "OMPI_COMM_WORLD_LOCAL_SIZE" in env and env.get("PMIX_NAMESPACE"):
        started_by = "mpirun-" + _safe(env["PMIX_NAMESPACE"])
    elif HYDRA_COUNT in env and ppid is not None:
        started_by = f"hydra-{ppid}"
    if "SLURM_JOB_ID" not in env:
        if ppid is None:
            raise UsageError("--join-tag: required outside Slurm")
        return started_by or f"parent-{ppid}"
    job = _number(env, "SLURM_JOB_ID")
    step = _step_id(env.get("SLURM_STEP_ID", "4294967291"))
    component = env.get("SLURM_HET_JOB_OFFSET") or env.get("SLURM_GTIDS", "0").partition(",")[0]
    if not _digits(component):
        raise UsageError(f"SLURM_GTIDS={env.get('SLURM_GTIDS')}: not task ids")
    parts = [str(job), _STEP_WORDS.get(step, step), component, _safe(env.get("SLURMD_NODENAME") or "node")]
    restarts = env.get("SLURM_RESTART_COUNT", "0")
    if restarts != "0":
        parts.append(_safe(restarts))
    if started_by:
        parts.append(started_by)
    return ".".join(parts)


def _step_id(text: str) -> str:
    """Return a step id as an unsigned number; newer versions of Slurm write -5 for 4294967291."""
    if not _digits(text.removeprefix("-")):
        raise UsageError(f"SLURM_STEP_ID={text}: not a number")
    return str(int(text) % 2**32)


def _safe(text: str) -> str:
    data = os.fsencode(text)
    return "".join(chr(byte) if byte in _SAFE else "_" for byte in data)[:64]


def parse_tasks_per_node(text: str) -> Iterator[tuple[int, int]]:
    """Yield (tasks, nodes) for each item of a list like `4(x2),3`; ValueError if it isn't one."""
    for item in text.split(","):
        count, _, repeat = item.partition("(x")
        if repeat:
            if not repeat.endswith(")"):
                raise ValueError(item)
            repeat = repeat[:-1]
        elif "(" in item:
            raise ValueError(item)
        else:
            repeat = "1"
        if not _digits(count) or not _digits(repeat) or int(repeat) == 0:
            raise ValueError(item)
        yield int(count), int(repeat)


def _slurm_count(env: Mapping[str, str]) -> int:
    text = env["SLURM_STEP_TASKS_PER_NODE"]
    node = _number(env, "SLURM_NODEID")
    left = node
    try:
        for count, repeat in parse_tasks_per_node(text):
            if left < repeat:
                return count
            left -= repeat
    except ValueError:
        raise UsageError(f"SLURM_STEP_TASKS_PER_NODE={text}: not a list of task counts") from None
    raise UsageError(f"SLURM_NODEID={node}: not among the nodes of SLURM_STEP_TASKS_PER_NODE={text}")


def local_task_count(env: Mapping[str, str]) -> int:
    """Return the number of tasks on this node; UsageError names a variable that is missing or wrong."""
    if "OMPI_COMM_WORLD_LOCAL_SIZE" in env:
        name, count = "OMPI_COMM_WORLD_LOCAL_SIZE", _number(env, "OMPI_COMM_WORLD_LOCAL_SIZE")
    elif HYDRA_COUNT in env:
        name, count = HYDRA_COUNT, _number(env, HYDRA_COUNT)
    elif "SLURM_STEP_TASKS_PER_NODE" in env:
        name, count = "SLURM_STEP_TASKS_PER_NODE", _slurm_count(env)
    elif "SLURM_CPUS_ON_NODE" in env:
        name, count = "SLURM_CPUS_ON_NODE", _number(env, "SLURM_CPUS_ON_NODE")
    else:
        raise UsageError("--join-ct: required outside Slurm")
    if not 0 < count <= MAX_TASKS:
        raise UsageError(f"{name}={env[name]}: not a number of tasks from 1 to {MAX_TASKS}")
    return count


def task_name(env: Mapping[str, str]) -> str:
    """Return this task's name for messages."""
    rank = env.get("SLURM_PROCID") or env.get("OMPI_COMM_WORLD_RANK") or env.get("PMI_RANK")
    return f"task {rank}" if rank else "peer"


def check_join(tag: str, count: int) -> None:
    """Raise UsageError for an invalid tag or count."""
    if not 0 < len(tag) <= agreement.TAG_MAX or not set(agreement.TAG_LETTERS).issuperset(tag):
        raise UsageError(f"--join-tag={tag}: not 1 to {agreement.TAG_MAX} of letters, digits, '_', '.' and '-'")
    if not 0 < count <= agreement.JOIN_MAX:
        raise UsageError(f"--join-ct={count}: not a whole number from 1 to {agreement.JOIN_MAX}")
