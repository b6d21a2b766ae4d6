# SPDX-License-Identifier: Apache-2.0
"""The facts: what the plugin tells the launcher and the submission's checker."""

from __future__ import annotations

from .. import agreement
from .. import lean_os as os
from ..errors import ChError
from ..request import parsers, site

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..request import spec


class Facts:
    """What the plugin knows of the step, or `slurm-ch run` of its call: strings as they were on the node."""

    __slots__ = (
        "broadcast", "command", "environment", "job", "local_tasks", "located", "name", "request", "script", "site",
        "words",
    )  # fmt: skip

    def __init__(self) -> None:
        self.site: list[str] = []
        self.request = ""
        self.environment: dict[str, str] = {}
        self.local_tasks: int | None = None
        self.script: str | None = None
        self.job = ""
        self.command: str | None = None  # where the user submits
        self.broadcast: str | None = None  # the job whose nodes are to have the image
        self.name = ""
        self.located: str | None = None
        self.words: list[str] = []  # of `slurm-ch run`, in place of site and request


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
        raise ChError("can't read what the plugin knows of the step") from error
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


def asked_for(facts: Facts) -> tuple[site.Site, spec.Spec]:
    """Return what the site says, and what site and user together ask for; UsageError if it is wrong."""
    ours = site.parse(facts.site)
    if facts.request.startswith("container-") or "\ncontainer-" in facts.request:
        from ..request import pyxis

        wanted = pyxis.combine(ours, facts.request, facts.environment)
    else:
        wanted = site.combine(ours, parsers.parse_request(facts.request))
    wanted.color = False  # what a step says, Slurm collects
    return ours, wanted


def task_count(facts: Facts) -> int:
    """Return this node's task count: Slurm's own word, else worked out from the environment."""
    if facts.local_tasks is not None:
        return facts.local_tasks
    from ..request import step

    return 1 if facts.script is not None else step.local_task_count(facts.environment)
