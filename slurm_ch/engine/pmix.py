# SPDX-License-Identifier: Apache-2.0
"""The directories that a task's PMIx library needs in the container.

Slurm's PMIx plugin names them in the task's environment: directories below slurmd's
spool with the memory segments that library and server share, and a directory for the
library's sockets and session files. Without them, PMIx works partly or not at all.
"""

from __future__ import annotations

from .. import lean_os as os
from .. import log
from ..errors import ChError
from .action import Action, Build

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_VARIABLES = (
    "PMIX_SERVER_TMPDIR",
    "PMIX_SYSTEM_TMPDIR",
    "PMIX_DSTORE_21_BASE_PATH",
    "PMIX_DSTORE_ESH_BASE_PATH",
)
# The directory of munged's socket, by default.
MUNGE = "/run/munge"


def directories(env: Mapping[str, str], munge: bool = False) -> list[str]:
    """Return the directories to show: absolute paths, without duplicates and subdirectories of others.

    Never /tmp itself: a user who asks for a private /tmp should have one. Munge's socket
    only if `munge` allows it: a process that can reach it can submit jobs as the user.
    """
    named = [*(env.get(name, "") for name in _VARIABLES), _session_directory(env)]
    # lstrip, because normpath keeps two leading slashes.
    found = [os.path.normpath("/" + path.lstrip("/")) for path in named if path.startswith("/")]
    if munge and "munge" in _security_modes(env):
        found.append(MUNGE)
    found = [path for path in dict.fromkeys(found) if path not in ("/", "/tmp")]
    return [path for path in found if not any(path.startswith(other + "/") for other in found)]


def _security_modes(env: Mapping[str, str]) -> list[str]:
    """Return the authentication methods that PMIx's server accepts; the library uses the first that works."""
    return [mode for mode in env.get("PMIX_SECURITY_MODE", "").split(",") if mode]


def needs_munge(env: Mapping[str, str]) -> bool:
    """Whether the server accepts only munge."""
    return _security_modes(env) == ["munge"]


def _session_directory(env: Mapping[str, str]) -> str:
    """Return the directory for session files, which Slurm's plugin names like this."""
    names = (env.get("SLURM_JOB_UID"), env.get("SLURM_JOB_ID"), env.get("SLURM_STEP_ID"))
    if None in names:
        return ""
    name = "/spmix_appdir_{}_{}.{}".format(*names)
    base = env.get("SLURM_PMIX_TMPDIR")
    if not base:
        base = "/tmp" if os.path.isdir("/tmp" + name) else _site_directory(env)
    return base + name


def _site_directory(env: Mapping[str, str]) -> str:
    """Return the site's directory for session files: mpi.conf's setting, else slurm.conf's TmpFS, else /tmp."""
    from .. import slurm_conf

    try:
        conf = slurm_conf.path(env)
        if conf is None:
            return "/tmp"
        mpi = os.path.join(os.path.dirname(conf), "mpi.conf")
        base = slurm_conf.settings(mpi).get("pmixclitmpdirbase", "") if os.path.exists(mpi) else ""
        base = base or slurm_conf.settings(conf).get("tmpfs", "/tmp")
    except ChError as error:
        log.info(f"PMIx's session files may not be seen: {error}")
        return "/tmp"
    node = env.get("SLURMD_NODENAME", "")
    return base.replace("%n", node).replace("%h", node)


class ReportMunge(Action):
    """Warn that PMIx won't work without munge, with the option that shows munge's socket."""

    __slots__ = ()

    def describe(self) -> str:
        return f"don't show {MUNGE}, which PMIx wants"

    def apply(self, build: Build) -> None:
        del build
        log.warning(
            f"PMIx may not work: it wants munge, and {MUNGE} is not in the container, because an image that reaches"
            f" it can submit jobs as you; --ch-bind={MUNGE} shows it"
        )
