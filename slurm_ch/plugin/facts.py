# SPDX-License-Identifier: Apache-2.0
"""The facts: what the plugin passes to the launcher and to the check of a submission."""

from __future__ import annotations

from .. import agreement
from .. import lean_os as os
from ..errors import ChError
from ..request import parsers, site

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..request import spec


class Facts:
    """What the plugin knows about the step, or `slurm-ch run` about its call."""

    __slots__ = (
        "broadcast", "command", "environment", "job", "local_tasks", "located", "name", "request", "script", "site",
        "words",
    )  # fmt: skip

    def __init__(self) -> None:
        self.site: list[str] = []  # plugstack.conf's arguments
        self.request = ""  # the options, one per line
        self.environment: dict[str, str] = {}
        self.local_tasks: int | None = None  # on this node; None if Slurm doesn't tell
        self.script: str | None = None  # path of the batch script, in a batch step
        self.job = ""
        self.command: str | None = None  # srun, sbatch or salloc, at submission
        self.broadcast: str | None = None  # the job whose nodes should get a copy of the image
        self.name = ""  # of the command, for `slurm-ch run`
        self.located: str | None = None  # the image's file, for `slurm-ch run` with a reference
        self.words: list[str] = []  # arguments of `slurm-ch run`, instead of site and request


_TEXTS = {
    agreement.FACT_REQUEST: "request",
    agreement.FACT_SCRIPT: "script",
    agreement.FACT_NAME: "name",
    agreement.FACT_LOCATED: "located",
    agreement.FACT_COMMAND: "command",
    agreement.FACT_JOB: "job",
    agreement.FACT_BROADCAST: "broadcast",
}


def read_facts(fd: int) -> Facts:
    """Return the facts that the plugin wrote to `fd`; ChError if they are malformed."""
    try:
        data = os.pread(fd, os.fstat(fd).st_size, 0)
    except OSError as error:
        raise ChError("can't read the plugin's facts about the step") from error
    records = os.fsdecode(data).split("\0")
    if records[0] != agreement.FACTS_MAGIC or records[-1] != "":
        raise ChError("the plugin and the launcher are of different versions")
    facts = Facts()
    for record in records[1:-1]:
        kind, text = record[:1], record[1:]
        if kind == agreement.FACT_VARIABLE:
            name, _, value = text.partition("=")
            facts.environment[name] = value
        elif kind == agreement.FACT_ARGUMENT:
            facts.site.append(text)
        elif kind == agreement.FACT_TASKS and text.isascii() and text.isdigit() and len(text) <= 10:
            facts.local_tasks = int(text)
        elif kind == agreement.FACT_WORD:
            facts.words.append(text)
        elif kind in _TEXTS:
            setattr(facts, _TEXTS[kind], text)
        else:
            raise ChError("the plugin and the launcher are of different versions")
    return facts


def site_and_request(facts: Facts) -> tuple[site.Site, spec.Spec]:
    """Return the site's settings, and the request of site and user combined; UsageError if it is invalid."""
    ours = site.parse(facts.site)
    if facts.request.startswith("container-") or "\ncontainer-" in facts.request:
        from ..request import pyxis

        wanted = pyxis.combine(ours, facts.request, facts.environment)
    else:
        wanted = site.combine(ours, parsers.parse_request(facts.request))
    wanted.color = False  # Slurm collects a step's messages, perhaps in a file
    return ours, wanted


def task_count(facts: Facts) -> int:
    """Return the number of tasks on this node: Slurm's own number, or one computed from the environment."""
    if facts.local_tasks is not None:
        return facts.local_tasks
    from ..request import step

    return 1 if facts.script is not None else step.local_task_count(facts.environment)
