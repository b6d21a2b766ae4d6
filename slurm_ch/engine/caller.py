# SPDX-License-Identifier: Apache-2.0
"""The process that starts a container: its user, working directory and environment."""

from __future__ import annotations

from .. import lean_os as os
from ..errors import ChError
from . import accounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# Slurm starts a step here if the node doesn't have its working directory.
_FALLBACK = "/tmp"


class Caller:
    """The user, working directory and environment of the process that starts a container.

    `script` is the path of a batch script that must be visible in the container, or None.
    """

    __slots__ = ("cwd", "environment", "gid", "script", "uid", "user")

    def __init__(self, env: Mapping[str, str], cwd: str | None = None, script: str | None = None) -> None:
        self.uid = os.geteuid()
        self.gid = os.getegid()
        self.environment = env
        self.user = accounts.user_name(self.uid)
        self.cwd = cwd or _cwd()
        self.script = script

    def path(self, path: str) -> str:
        """Return `path` as an absolute path; ChError if another user may have put it there.

        Slurm starts a step in /tmp if the node doesn't have its working directory. Anybody can
        create a file in /tmp with the name that this user means.
        """
        if self.cwd == _FALLBACK and self.environment.get("PWD", _FALLBACK) != _FALLBACK and path[:1] != "/":
            self._check_owners(path)
        return os.path.join(self.cwd, path)

    def _check_owners(self, path: str) -> None:
        here = self.cwd
        for part in path.split("/"):
            here = os.path.join(here, part)
            try:
                owner = os.lstat(here).st_uid
            except (OSError, ValueError):
                return
            if owner not in (0, self.uid):
                raise ChError(f"{path}: the working directory is {_FALLBACK}, and {here} belongs to uid {owner}")

    def home_directory(self) -> str:
        """Return where the option `home` shows the user's home directory."""
        return "/home/" + (self.environment.get("USER") or self.user)


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "/"
