# SPDX-License-Identifier: Apache-2.0
"""Directories of the host that programs need: bound at their own paths, although the user didn't ask for them."""

from __future__ import annotations

from .. import lean_os as os
from .. import log
from ..errors import ChError, describe
from . import binds, places
from .action import Build


class ImpliedBind(binds.BindMount):
    """Bind a directory at its own path, unless the container already shows it.

    A failure is reported at `level`, and is not an error: many programs work without the directory.
    """

    __slots__ = ("level",)

    def __init__(self, path: str, label: str, level: int = log.WARNING) -> None:
        super().__init__(path, path, src_optional=True, dst_create=True, follow=True, label=label)
        self.level = level

    def apply(self, build: Build) -> None:
        source = self.open_source()
        if source >= 0 and self._is_there(build, source):
            self._source = None
            os.close(source)
            return
        try:
            super().apply(build)
        except (ChError, OSError) as error:
            (log.warning if self.level == log.WARNING else log.info)(describe(error))

    def _is_there(self, build: Build, source: int) -> bool:
        try:
            there = places.look_up(build, self.dst, True)
        except OSError:
            return False
        try:
            return os.path.samestat(os.fstat(there), os.fstat(source))
        finally:
            os.close(there)
