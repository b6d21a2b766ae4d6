# SPDX-License-Identifier: Apache-2.0
"""Load the launcher's modules from the bundle that `bundle.py` has written. This file's code is part of the bundle.

Each module is executed after those that it imports. Modules that are needed only
sometimes are loaded from the bundle by an import hook, unless their source has
changed since. Without a valid bundle, `launch.py` executes this file itself.
"""

from __future__ import annotations

import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, ModuleType
    from typing import Any, NoReturn

    Stamp = tuple[str, int, int]
    Place = tuple[int, int]
    Bundle = tuple[CodeType, tuple[Stamp, ...], list[tuple[str, str, CodeType]], dict[str, tuple[Stamp, Place]]]


def program(here: str, bundle: Bundle | tuple[()], fd: int) -> Callable[[], None] | None:
    """Load the modules of the program that the command line names, and return its function.

    `here` is the package's directory `plugin`, `fd` the bundle's open file. Return None if the bundle is older than
    its sources: this code is part of the bundle, so it may be outdated too.
    Without an option, the program is the launcher. The plugin gives `--check FACTS_FD` where a step is submitted.
    At a step's end, ch-join gives `--save 1 2 NODE USER_FD MOUNT_FD ...`: 2 is in the place of the launcher's
    ERRORS_FD, for _refuse.
    """
    above = here.rpartition("/slurm_ch/")[0]
    package = f"{above}/slurm_ch"
    # Last, so that no module in this directory hides one of Python's own.
    sys.path.append(above)
    try:
        if bundle and not load(package, bundle, fd):
            sys.path.pop()
            return None
        # As with Python's own cached bytecode, a user who can write the bundle does.
        if not bundle and posix.access(f"{here}/__pycache__", posix.W_OK) and not sys.dont_write_bytecode:
            from slurm_ch.plugin.bundle import renew

            renew(package)
        from slurm_ch.agreement import CHECK_OPTION, JOB_END_OPTION, SAVE_OPTION

        chosen = sys.argv[1:2]
        if chosen == [CHECK_OPTION]:
            from slurm_ch.plugin import submit_check

            return submit_check.run
        if chosen == [JOB_END_OPTION]:
            from slurm_ch.plugin import job_end

            return job_end.run
        if chosen == [SAVE_OPTION]:
            from slurm_ch.plugin import save

            return save.run
        from slurm_ch.plugin import launcher

        return launcher.run
    except Exception as error:
        _refuse(error)


def _refuse(error: Exception) -> NoReturn:
    """Report that the modules can't be loaded, refuse the tasks' ticket, and exit."""
    # Without log.py and tickets.py, which may be missing. If even agreement.py is missing, no ticket is sent, and
    # ch-join reports that. A check has other descriptors in these places, and writing to them does no harm.
    words = " ".join(str(error).split()) or type(error).__name__
    node = "".join(f"{name}: " for name in sys.argv[4:5] if name)
    posix.write(int(sys.argv[:4][-1]), f"slurm-ch: {node}error: can't load the launcher: {words}\n".encode())
    # Otherwise import would not look again at a directory that it couldn't read before.
    sys.path_importer_cache.clear()
    from slurm_ch.agreement import EXIT_SETUP, TICKET_MAGIC

    posix.write(int(sys.argv[2]), TICKET_MAGIC.encode() + EXIT_SETUP.to_bytes(4, "little"))
    posix._exit(EXIT_SETUP)


def load(package: str, bundle: Bundle, fd: int) -> bool:
    """Load the bundle's modules; return False, and load nothing, if one of the sources in `package` has changed.

    `fd` is the bundle's open file: the modules that are loaded on demand are read from it.
    """
    _, stamps, modules, later = bundle
    for stamp in stamps:
        if not _is_same(package, *stamp):
            return False
    kind: Any = type(sys)
    sys.meta_path.insert(0, _OnDemandFinder(package, later, fd))
    for name, file, code in modules:
        module = sys.modules[name] = kind(name)
        module.__file__ = f"{package}/{file}"
        above, _, last = name.rpartition(".")
        if file.endswith("__init__.py"):
            module.__path__ = [module.__file__[:-12]]
            module.__package__ = name
        else:
            module.__package__ = above
        exec(code, module.__dict__)  # noqa: S102 (what `import` does)
        if above:
            setattr(sys.modules[above], last, module)
    return True


def _is_same(package: str, file: str, seconds: int, size: int) -> bool:
    """Whether a source is the one that the bundle was made from, by time and size, as Python checks its bytecode."""
    try:
        status = posix.stat(f"{package}/{file}")
    except OSError:
        return False
    # By index, for the modification time in whole seconds.
    return status[8] == seconds and status[6] == size


class _OnDemandFinder:
    """An import hook for the modules that are loaded on demand."""

    __slots__ = ("_fd", "_modules", "_package")

    def __init__(self, package: str, modules: dict[str, tuple[Stamp, Place]], fd: int) -> None:
        self._package = package
        self._modules = modules
        self._fd = fd

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        del path, target
        if name not in self._modules or not _is_same(self._package, *self._modules[name][0]):
            return None
        kind: Any = type(sys.__spec__)
        spec = kind(name, self, origin=f"{self._package}/{self._modules[name][0][0]}")
        spec.has_location = True
        if spec.origin.endswith("__init__.py"):
            spec.submodule_search_locations = [spec.origin[:-12]]
        return spec

    def create_module(self, spec: object) -> None:
        """Return None: import creates the module."""

    def exec_module(self, module: ModuleType) -> None:
        offset, size = self._modules[module.__name__][1]
        code = marshal.loads(posix.pread(self._fd, size, offset))  # noqa: S302 (as trusted as the sources)
        exec(code, module.__dict__)  # noqa: S102 (what `import` does)
