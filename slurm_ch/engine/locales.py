# SPDX-License-Identifier: Apache-2.0
"""Check whether the image has the locale that the environment names; reported with --verbose.

The host's locales are never bound: a program aborts if the file was written by a C library that it doesn't
know. glibc 2.31 to 2.43 read each other's files; static programs and those of glibc before 2.27 don't.
"""

from __future__ import annotations

from .. import log
from . import places
from .action import Action

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from .action import Build

_DIRECTORY = "/usr/lib/locale"
# In order of precedence.
_VARIABLES = ("LC_ALL", "LC_CTYPE", "LANG")
# Locales that every C library has, without a file.
_BUILT_IN = ("C", "POSIX", "C.utf8")


def wanted(env: Mapping[str, str]) -> tuple[str, str]:
    """Return the variable that chooses the locale, and the locale; two empty strings for a built-in one."""
    for variable in _VARIABLES:
        name = env.get(variable, "")
        if name:
            return ("", "") if _as_stored(name) in _BUILT_IN or "/" in name else (variable, name)
    return "", ""


def _as_stored(name: str) -> str:
    """Return the name as localedef stores it: en_US.UTF-8 is en_US.utf8."""
    base, dot, codeset = name.partition(".")
    codeset, at, modifier = codeset.partition("@")
    return base + dot + codeset.lower().replace("-", "") + at + modifier


class ReportMissingLocale(Action):
    """Report that the image lacks the environment's locale."""

    __slots__ = ("env", "option")

    def __init__(self, env: Mapping[str, str], option: str) -> None:
        self.env = env
        self.option = option

    def describe(self) -> str:
        return "look for the environment's locale in the image"

    def apply(self, build: Build) -> None:
        variable, name = wanted(self.env)
        if not name:
            return
        if any(places.exists(build, f"{_DIRECTORY}/{place}") for place in ("locale-archive", name, _as_stored(name))):
            return
        log.info(
            f"{variable}={name}: the image has no such locale; most programs use C instead"
            f" (C.UTF-8 is in most images: {self.option}={variable}=C.UTF-8)"
        )
