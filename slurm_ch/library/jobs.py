# SPDX-License-Identifier: Apache-2.0
"""Jobs that are submitted without our `sbatch`: the variables that have them run in a container."""

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
    """Return the variables that make a job, and the steps in it, run in a container, as `sbatch --ch-image` does.

    For pyslurm's JobSubmitDescription(environment=...), slurmrestd and whatever else
    submits jobs; they go beside the job's own variables. The keyword arguments are
    the options of sbatch without `--ch-`, with "_" for "-". ChError where sbatch would
    refuse them; a relative path as image is the job's directory's, and not looked at.
    """
    given = settings({"image": path("image", image), "bind": bind, **more}, options.PLUGIN)
    for setting in given:
        if "\n" in setting.value:
            raise UsageError(f"{setting.label}={setting.value!r}: has a newline in it")
        if setting.name in ("bind", "device"):
            # Here each is one; sbatch separates them by commas.
            setting.value = setting.value.replace(",", "\\,")
    facts = Facts()
    facts.request = "".join(f"{setting.name}={setting.value}\n" for setting in given)
    facts.environment = dict(os.environ)
    submit_check.check(facts, ["sbatch", "--chdir"])
    return {REQUEST_VARIABLE: facts.request, **site.as_defaults(given)}
