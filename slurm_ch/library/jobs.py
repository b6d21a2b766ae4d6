# SPDX-License-Identifier: Apache-2.0
"""Variables that make a job run in a container, for jobs that are submitted without `sbatch`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..agreement import REQUEST_VARIABLE
from ..errors import UsageError
from ..plugin import submit_check
from ..plugin.facts import Facts
from ..request import options, site
from .arguments import path
from .settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..request.spec import Bind


def job_environment(
    image: str | os.PathLike[str], *, bind: Iterable[Bind | str] = (), **more: object
) -> dict[str, str]:
    """Return the variables that make a job and its steps run in a container, as `sbatch --ch-image` does.

    They are added to the job's own variables, in pyslurm's JobSubmitDescription(environment=...), by
    slurmrestd, or by another program that submits jobs. The keyword arguments are the options of sbatch
    without `--ch-`, with "_" for "-". ChError if sbatch would refuse them. A relative path of the image
    starts at the job's directory, and is not checked.
    """
    given = settings({"image": path("image", image), "bind": bind, **more}, options.PLUGIN)
    for setting in given:
        if "\n" in setting.value:
            raise UsageError(f"{setting.label}={setting.value!r}: has a newline in it")
        if setting.name in ("bind", "device"):
            # Each value is one bind or device; sbatch would split it at commas.
            setting.value = setting.value.replace(",", "\\,")
    facts = Facts()
    facts.request = "".join(f"{setting.name}={setting.value}\n" for setting in given)
    facts.environment = dict(os.environ)
    submit_check.check(facts, ["sbatch", "--chdir"])
    return {REQUEST_VARIABLE: facts.request, **site.as_defaults(given)}
