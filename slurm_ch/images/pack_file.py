# SPDX-License-Identifier: Apache-2.0
"""A tree becomes a file of the user's, which replaces what is there as a whole or not at all."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from . import merge, pack
from .flat import Flat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .progress import Progress
    from .settings import Settings


@contextmanager
def replaced(out: str) -> Iterator[str]:
    """Give the name of a new file beside `out`, which takes its place at the end, if nothing was raised."""
    directory, name = os.path.split(os.path.abspath(out))
    prefix = f".{name}.{os.uname().nodename}."
    private = os.path.join(directory, f"{prefix}{os.getpid()}")
    try:
        _remove_abandoned(directory, prefix)
        yield private
        with open(private, "rb") as file:
            os.fsync(file.fileno())
        os.rename(private, out)
    except OSError as error:
        raise pack.write_error(error, out) from error
    finally:
        if os.path.lexists(private):
            os.unlink(private)


def _remove_abandoned(directory: str, prefix: str) -> None:
    """Remove what processes of this host left that were killed."""
    for name in os.listdir(directory):
        pid = name[len(prefix) :]
        if name.startswith(prefix) and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            os.unlink(os.path.join(directory, name))


def write(tree: merge.Tree, out: str, settings: Settings, progress: Progress) -> int:
    """Pack `tree` into the file `out` and return its size."""
    return write_from(Flat(tree), out, settings, progress)


def write_from(flat: pack.Source, out: str, settings: Settings, progress: Progress) -> int:
    """Pack what `flat` writes into the file `out` and return its size."""
    packer = pack.find(settings.packer)

    def packed(count: int) -> None:
        progress.to_pack, progress.packed = flat.bytes, count
        progress.show()

    with replaced(out) as private:
        size = pack.pack(flat, private, packer, threads=settings.pull_threads, tick=packed)
    progress.end()
    return size
