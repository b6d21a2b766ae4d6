# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch doctor`: find what on this node would stop a step."""

from __future__ import annotations

import json
import os
import pwd
import sys
from itertools import chain
from typing import Any

import click

from slurm_ch import errors
from slurm_ch.doctor import installation, node
from slurm_ch.doctor.findings import OK, PROBLEM, WARNING

from . import display

_STYLES: dict[str, dict[str, Any]] = {
    OK: {"fg": "green"},
    WARNING: {"fg": "yellow"},
    PROBLEM: {"fg": "red", "bold": True},
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.option("-q", "--quiet", is_flag=True, help="Print warnings and problems only.")
@click.option(
    "--user",
    metavar="USER",
    default="nobody",
    show_default=True,
    help="The ordinary user for the tests, if root runs doctor.",
)
@click.option(
    "--plugstack", metavar="FILE", help="Examine this plugstack.conf [default: the one that slurm.conf names]."
)
@click.option("--cluster", is_flag=True, help="Ask the controller which nodes run another Slurm release.")
def doctor(*, as_json: bool, quiet: bool, user: str, plugstack: str | None, cluster: bool) -> None:
    """Find what would make a step fail on this node, and suggest remedies.

    The doctor makes containers as an ordinary user: as you, or as --user if root runs it.

    The exit status, for a health check, is 0 if steps would work (there may be warnings),
    1 if something would make them fail, and 64 for a wrong option.
    """
    worst = 0
    more = installation.check_cluster() if cluster else ()
    for finding in chain(node.examine(_entry(user), os.environ, plugstack), more):
        worst |= finding.grade == PROBLEM
        if quiet and finding.grade == OK:
            continue
        if as_json:
            click.echo(json.dumps(finding.as_dict()))
        else:
            first, *remedy = finding.lines()
            click.echo(display.paint(finding.grade, **_STYLES[finding.grade]) + first[len(finding.grade) :])
            for line in remedy:
                click.echo(line)
    sys.exit(worst)


def _entry(user: str) -> pwd.struct_passwd:
    try:
        entry = pwd.getpwnam(user) if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    except KeyError:
        raise errors.UsageError(f"--user={user}: no such user") from None
    if entry.pw_uid == 0:
        raise errors.UsageError(f"--user={user}: must be an ordinary user")
    return entry
