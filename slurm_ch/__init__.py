# SPDX-License-Identifier: Apache-2.0
"""slurm_ch: Slurm job steps in unprivileged containers.

The names in `__all__` are the library's interface (docs/library.rst). Each is loaded
when it is first used, because the launcher needs none of them.
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

# The module that defines each public name.
_MODULES = {
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
__all__ = ("__version__", *_MODULES)  # noqa: PLE0604 (a checker wants them spelled out; a test compares)


# Not for type checkers, which know the names above, and report others.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module 'slurm_ch' has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(f"slurm_ch.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted((*globals(), *_MODULES))
