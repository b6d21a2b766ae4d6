# SPDX-License-Identifier: Apache-2.0
"""What a task's PMIx library must see in the container, by the names in its environment.

Slurm's PMIx plugin puts them there: directories below slurmd's spool with the
segments that the library shares with the server, and the library's own place
for sockets and session files. Without them it works half, or not at all.
"""

from __future__ import annotations

from .. import lean_os as os
from .. import log
from ..errors import ChError
from .action import Action, Build

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# PMIx's own, and Slurm's for the directory of a step's session files.
_VARIABLES = (
    "PMIX_SERVER_TMPDIR",
    "PMIX_SYSTEM_TMPDIR",
    "PMIX_DSTORE_21_BASE_PATH",
    "PMIX_DSTORE_ESH_BASE_PATH",
)
# Where munged listens unless told otherwise.
MUNGE = "/run/munge"


def directories(env: Mapping[str, str], munge: bool = False) -> list[str]:
    """Return what to show: absolute, each once, none below another.

    Not the whole of /tmp: whoever asks for one of their own means it. Munge's
    socket only where `munge` allows it: what reaches that can submit jobs.
    """
    named = [*(env.get(name, "") for name in _VARIABLES), _session(env)]
    # normpath keeps two slashes, which POSIX lets mean something else.
    found = [os.path.normpath("/" + path.lstrip("/")) for path in named if path.startswith("/")]
    if munge and "munge" in _security_modes(env):
        found.append(MUNGE)
    found = [path for path in dict.fromkeys(found) if path not in ("/", "/tmp")]
    return [path for path in found if not any(path.startswith(other + "/") for other in found)]


def _security_modes(env: Mapping[str, str]) -> list[str]:
    """Return the ways in which PMIx's server lets a client say who it is; the library takes the first that works."""
    return [mode for mode in env.get("PMIX_SECURITY_MODE", "").split(",") if mode]


def needs_munge(env: Mapping[str, str]) -> bool:
    """Return whether the server knows no way but munge."""
    return _security_modes(env) == ["munge"]


def _session(env: Mapping[str, str]) -> str:
    """Return the directory for session files, as Slurm's plugin makes its name."""
    names = (env.get("SLURM_JOB_UID"), env.get("SLURM_JOB_ID"), env.get("SLURM_STEP_ID"))
    if None in names:
        return ""
    name = "/spmix_appdir_{}_{}.{}".format(*names)
    base = env.get("SLURM_PMIX_TMPDIR")
    if not base:
        base = "/tmp" if os.path.isdir("/tmp" + name) else _configured(env)
    return base + name


def _configured(env: Mapping[str, str]) -> str:
    """Return where the site has such directories; mpi.conf counts before slurm.conf's TmpFS, as for Slurm."""
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
    """Tell the user why PMIx won't work, and what would let it."""

    __slots__ = ()

    def describe(self) -> str:
        return f"don't show {MUNGE}, which PMIx wants"

    def apply(self, build: Build) -> None:
        del build
        log.warning(
            f"PMIx may not work: it wants munge, and {MUNGE} is not in the container, because an image that reaches"
            f" it can submit jobs as you; --ch-bind={MUNGE} shows it"
        )
