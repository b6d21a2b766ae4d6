# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch ps`: list the containers of the caller's running jobs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import click

from slurm_ch import log
from slurm_ch.agreement import EXIT_SETUP
from slurm_ch.attach import to_node
from slurm_ch.errors import ChError, describe
from slurm_ch.slurm import commands, records

from . import display

COLUMNS = ("job", "step", "node", "image", "tasks", "age")

# Jobs that are asked at the same time, each by an srun: more would be a burden for slurmctld.
PARALLEL = 4


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line, with the age in seconds.")
@click.option("-v", "--verbose", count=True, help="Report what is done.")
@click.argument("names", nargs=-1, metavar="[JOBID...]")
def ps(*, as_json: bool, verbose: int, names: Sequence[str]) -> None:
    """List the containers of your running jobs, or of the jobs JOBID..., on all their nodes.

    The list comes from one short step (srun) in each job. TASKS is the number of
    the step's tasks in the container; it is 0 for a container that a script has started with
    slurm-ch run. A container with a NAME that no step uses at the moment has no STEP, and its AGE
    is the time since its last step.
    """
    log.configure(level=verbose)
    user = to_node.user_name()
    running = commands.running_jobs(user)
    if names:
        running = [records.find_job(running, name, user) for name in names]
    else:
        # A job without a step has no running container. Its kept ones are shown if the user names the job.
        running = [job for job in running if job.steps]
    rows: list[dict[str, object]] = []
    failed = False
    with ThreadPoolExecutor(PARALLEL) as pool:
        for answer in pool.map(_ask, running):
            if isinstance(answer, ChError):
                failed = True
                log.error(describe(answer))
            else:
                rows += sorted(answer, key=lambda row: (str(row["step"]), str(row["node"])))
    # A container that outlives its job is listed by each job on its node.
    rows = [row for n, row in enumerate(rows) if row["job"] != "-" or row not in rows[:n]]
    for line in _lines(rows, as_json):
        click.echo(line)
    if failed:
        sys.exit(EXIT_SETUP)


def _ask(job: records.Job) -> list[dict[str, object]] | ChError:
    try:
        return to_node.list_job(job)
    except ChError as error:
        return error


def _lines(rows: list[dict[str, object]], as_json: bool) -> list[str]:
    if as_json:
        return [json.dumps(row) for row in rows]
    last = ("name",) if any("name" in row for row in rows) else ()
    cells = [[name.upper() for name in (*COLUMNS, *last)]]
    # Processes in a container can change the name of its image, so it is escaped.
    cells += [
        [
            *(log.printable(str(row[name])) for name in COLUMNS[:-1]),
            records.clock(int(str(row["seconds"]))),
            *(log.printable(str(row.get(name, ""))) for name in last),
        ]
        for row in rows
    ]
    return display.table(cells, right=(COLUMNS.index("tasks"), COLUMNS.index("age")))
