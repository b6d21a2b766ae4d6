# SPDX-License-Identifier: Apache-2.0
"""Find the user's home and working directory in the new root.

They are recognised by device and inode: the same path may be another directory in the image.
"""

from __future__ import annotations

from .. import agreement
from .. import lean_os as os
from . import places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..request.spec import Spec
    from .action import Build
    from .caller import Caller

TEMPORARY = ("/tmp", "/var/tmp")
_CONTAINERS_ROOT = "/"
# A path with one of these characters needs quotes in a shell.
_SHELLS = " \t\n\\'\"$`&|;<>()[]{}*?!#~"


class UserDirectories:
    """The caller's home and working directory: noted on the host, and then found again in the new root."""

    __slots__ = ("_caller", "_here", "_home", "_spec")

    def __init__(self, spec: Spec, caller: Caller) -> None:
        self._spec = spec
        self._caller = caller
        self._here = _status(caller.cwd) if spec.cd is None else None
        home = caller.environment.get("HOME", "")
        self._home = _status(home) if home.startswith("/") and not spec.like_ch_run else None

    def home(self, build: Build) -> str:
        """Return HOME: the user's own home if the container shows it, else the image's /root, else /."""
        own = self._caller.environment.get("HOME", "")
        if self._home is not None and _is_same_directory(build, own, self._home):
            return own
        if self._spec.home:
            return self._caller.home_directory()
        return "/root" if _is_directory(build, "/root") else "/"

    def directory(self, build: Build) -> tuple[str, str]:
        """Return the directory that the command starts in; and a warning, or "" if it is the caller's directory."""
        cwd = self._caller.cwd
        relayed = self._caller.environment.get(agreement.RELAYED_PREFIX + "PWD", "")
        if relayed and _is_directory(build, relayed):
            return relayed, ""  # the directory of a script in a container, from which the step was started
        if self._here is not None:
            for path in self._candidates():
                if _is_same_directory(build, path, self._here):
                    return path, ""
        start = cwd if _is_directory(build, cwd) else _CONTAINERS_ROOT
        if cwd == _CONTAINERS_ROOT or (self._spec.private_tmp and cwd in TEMPORARY):
            return start, ""
        return start, f"the working directory {cwd} is not in the container; {self._remedy()} shows it"

    def _candidates(self) -> Iterator[str]:
        """Yield paths that may lead to the working directory inside: $PWD, the kernel's path, and below each bind."""
        caller, spec = self._caller, self._spec
        logical = caller.environment.get("PWD", "")
        if logical.startswith("/"):
            yield logical
        yield caller.cwd
        parts = caller.cwd.split("/")
        places_shown = [bind.dst for bind in spec.binds[::-1]]
        if spec.home:
            places_shown += [caller.home_directory(), caller.environment.get("HOME", "")]
        for place in places_shown:
            for first in range(len(parts), 0, -1):
                yield "/".join([place.rstrip("/"), *parts[first:]])

    def _remedy(self) -> str:
        caller, spec = self._caller, self._spec
        home = caller.environment.get("HOME", "")
        at_home = len(home) > 1 and (os.path.realpath(caller.cwd) + "/").startswith(os.path.realpath(home) + "/")
        return spec.option("home") if at_home and not spec.home else _as_typed(f"{spec.option('bind')}=", caller.cwd)


def _as_typed(option: str, path: str) -> str:
    """Return an option with a path as a user has to type it: escaped for the option, and quoted for the shell."""
    for letter in ":,$":
        path = path.replace(letter, "\\" + letter)
    if not any(letter in path for letter in _SHELLS):
        return option + path
    return "'" + (option + path).replace("'", "'\\''") + "'"


def temporary_directories(caller: Caller) -> list[str]:
    """Return the directories that the caller's variables for temporary files name, without those shown anyway."""
    named = [caller.environment.get(name, "") for name in agreement.TEMPORARY_VARIABLES]
    found = [os.path.normpath("/" + path.lstrip("/")) for path in named if path.startswith("/")]
    return [
        path
        for path in dict.fromkeys(found)
        if path != "/" and not (_is_shown(path) and _is_shown(os.path.realpath(path)))
    ]


def _is_shown(path: str) -> bool:
    """Whether the path is in /tmp or /var/tmp."""
    return any((path + "/").startswith(shown + "/") for shown in TEMPORARY)


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def _is_same_directory(build: Build, path: str, wanted: os.stat_result) -> bool:
    try:
        fd = places.look_up(build, path, True)
    except (OSError, ValueError):
        return False
    try:
        return os.path.samestat(os.fstat(fd), wanted)
    finally:
        os.close(fd)


def _is_directory(build: Build, path: str) -> bool:
    return places.exists(build, path.rstrip("/") + "/.")
