# SPDX-License-Identifier: Apache-2.0
"""Pack a tree into a file of the user's, which is replaced atomically."""

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
    """Yield the name of a new file in the same directory, and rename it to `out` at the end; remove it on failure.

    OSError becomes ChError.
    """
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
    """Remove the files of processes of this host that were killed."""
    for name in os.listdir(directory):
        pid = name[len(prefix) :]
        if name.startswith(prefix) and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            os.unlink(os.path.join(directory, name))


def write(tree: merge.Tree, out: str, settings: Settings, progress: Progress) -> int:
    """Pack `tree` into the file `out` and return its size in bytes; ChError on failure."""
    return write_from(Flat(tree), out, settings, progress)


def write_from(flat: pack.Source, out: str, settings: Settings, progress: Progress) -> int:
    """Pack the archive of `flat` into the file `out` and return its size in bytes; ChError on failure."""
    packer = pack.find(settings.packer)

    def packed(count: int) -> None:
        progress.to_pack, progress.packed = flat.bytes, count
        progress.show()

    with replaced(out) as private:
        size = pack.pack(flat, private, packer, threads=settings.pull_threads, tick=packed)
    progress.end()
    return size
