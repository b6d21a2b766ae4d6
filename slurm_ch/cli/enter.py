# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch enter`: a shell, or a command, in a container of a running job."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from slurm_ch import log
from slurm_ch.attach import to_node


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--node", metavar="NODE", help="The node of the step [default: the first].")
@click.option(
    "--srun",
    "extra",
    multiple=True,
    metavar="OPTION",
    help="Pass OPTION to srun, such as --gres=gpu:1; repeatable.",
)
@click.option("-v", "--verbose", count=True, help="Report what is done.")
@click.argument("job", metavar="JOBID[.STEP]")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]")
def enter(*, node: str | None, extra: Sequence[str], verbose: int, job: str, command: Sequence[str]) -> None:
    """Run CMD, or a shell, in a running container of one of your jobs.

    JOBID may be a task of an array (12_3) or a component of a heterogeneous job (12+1).
    STEP is a number or `batch`. CMD runs as a step of the job, on the job's resources, and ends
    with the job at the latest. CMD has the environment and the working directory of the
    container's first task. The exit status is CMD's.
    """
    log.configure(level=verbose)
    # Only if both are terminals: a pseudoterminal would write its line ends into a file or pipe.
    terminal = os.isatty(0) and os.isatty(1)
    words = command[1:] if command[:1] == ("--",) else command
    to_node.enter(job, node, words, extra, terminal)
