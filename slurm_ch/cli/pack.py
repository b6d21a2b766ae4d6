# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch pack`: make a SquashFS file from a directory, a running container, or an image with its kept changes."""

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
@click.option("--node", metavar="NODE", help="With JOBID: the node of the step [default: the first].")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", count=True, help="Report what is done.")
@click.argument("source", type=click.Path(), metavar="DIR|JOBID[.STEP]|OVERLAY")
@click.argument("file", type=click.Path(), metavar="FILE")
def pack(*, node: str | None, quiet: bool, verbose: int, source: str, file: str) -> None:
    """Make the SquashFS image FILE from a directory or a container.

    The source is one of these:

    \b
    DIR           a directory; if its name is a number, write ./NUMBER
    JOBID[.STEP]  a running container of yours (see slurm-ch enter),
                  with its changes and without what is bound in it
    OVERLAY       the DIR of --ch-overlay=DIR: the image that was used
                  with it, and the changes

    As in a pulled image, all files belong to root, their owner can read them, and the
    places where a container mounts something are added.
    """  # noqa: D301 (click's mark)
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
