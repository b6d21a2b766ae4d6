# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch pack`: a SquashFS file from a directory, a running container, or an image with its changes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from slurm_ch import log
from slurm_ch.attach import to_node
from slurm_ch.images import container_tree, directory, pack_file
from slurm_ch.images.flat import Flat
from slurm_ch.slurm import records
from slurm_ch.standalone import overlay_tree

from . import pulling

if TYPE_CHECKING:
    from slurm_ch.images.pack import Source


@click.command()
@click.option("--node", metavar="NODE", help="Of a job: which of the step's nodes [default: the first].")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
@click.option("-v", "--verbose", count=True, help="Report what is done.")
@click.argument("source", type=click.Path(), metavar="DIR|JOBID[.STEP]|OVERLAY")
@click.argument("file", type=click.Path(), metavar="FILE")
def pack(*, node: str | None, quiet: bool, verbose: int, source: str, file: str) -> None:
    """Make the SquashFS image FILE.

    From the directory DIR; or from a running container of yours, with what was
    written there (JOBID[.STEP], as for slurm-ch enter; what is bound is left out); or
    from OVERLAY, a directory of --ch-overlay, with the image that it was used with.
    A directory whose name is a number is ./NUMBER here.

    Everything in it belongs to root and can be read by whoever runs it, as in an
    image that was pulled; the places that a container mounts at are added.
    """
    log.configure(level=log.NO_WARNINGS if quiet else verbose)
    env = dict(os.environ)
    one = pulling.puller(env, quiet=quiet)
    found: Source
    if records.is_reference(source):
        found = to_node.pack_source(source, node)
    elif overlay_tree.is_kept(source):
        found = container_tree.FromChild(lambda: overlay_tree.read(source, env))
    else:
        real = os.path.realpath(source)
        found = Flat(directory.read(source if real == os.path.abspath(source) else real))
    pack_file.write_from(found, file, one.settings, one.progress)
    click.echo(file)
