# SPDX-License-Identifier: Apache-2.0
"""slurm_ch: Slurm job steps in unprivileged containers.

As a library (docs/library.rst) it has the names in `__all__`, each loaded when it
is first used: the launcher, which needs none of them, pays for none.
"""

from __future__ import annotations

__version__ = "0.2.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .engine.action import Hooks as Hooks
    from .engine.container import Container as Container
    from .errors import ChError as ChError
    from .errors import JoinError as JoinError
    from .errors import UsageError as UsageError
    from .library.containers import containerize as containerize
    from .library.containers import explain as explain
    from .library.containers import run as run
    from .library.jobs import job_environment as job_environment
    from .request.spec import Bind as Bind
    from .request.spec import Spec as Spec
    from .sandbox.cluster import Cluster as Cluster

_HOMES = {
    "Bind": "request.spec",
    "ChError": "errors",
    "Cluster": "sandbox.cluster",
    "Container": "engine.container",
    "Hooks": "engine.action",
    "JoinError": "errors",
    "Spec": "request.spec",
    "UsageError": "errors",
    "containerize": "library.containers",
    "explain": "library.containers",
    "job_environment": "library.jobs",
    "run": "library.containers",
}
__all__ = ("__version__", *_HOMES)  # noqa: PLE0604 (a checker wants them spelled out; a test compares)


# Who checks types has seen all names above, and refuses others.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'slurm_ch' has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(f"slurm_ch.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted((*globals(), *_HOMES))
