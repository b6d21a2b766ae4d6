# SPDX-License-Identifier: Apache-2.0
"""Load the launcher's modules from the bundle that `bundle.py` has written; this is a part of it, for `launch.py`.

Each module is run after all that it imports. What is loaded on demand is found
here too, where `import` looks first. A module whose source has changed since is not.
Without a good bundle, `launch.py` executes this file itself.
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
    """Return what the command line names, with its modules loaded, from the package whose folder `plugin` is `here`.

    None if the bundle, of which this is a part, is older than its sources: then it is theirs to say what is to be done.
    Where a step is submitted, the plugin has `--check FACTS_FD`; at a step's end, ch-join has
    `--save 1 2 NODE USER_FD MOUNT_FD ...`: what it writes in distress goes where a launcher's does.
    """
    above = here.rpartition("/slurm_ch/")[0]
    package = f"{above}/slurm_ch"
    # Behind the interpreter's own: nothing else is looked for there.
    sys.path.append(above)
    try:
        if bundle and not load(package, bundle, fd):
            sys.path.pop()
            return None
        # As with all cached bytecode: who can write it makes it.
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
    """Say that the modules can't be loaded, and end."""
    # Neither log.py nor tickets.py may have been found. Where even the agreement is missing, no
    # ticket comes, and ch-join has words for that. A check's descriptors are its own to spoil.
    words = " ".join(str(error).split()) or type(error).__name__
    node = "".join(f"{name}: " for name in sys.argv[4:5] if name)
    posix.write(int(sys.argv[:4][-1]), f"slurm-ch: {node}error: can't load the launcher: {words}\n".encode())
    # A directory that could not be looked at once counts as missing, and is not looked at again.
    sys.path_importer_cache.clear()
    from slurm_ch.agreement import EXIT_SETUP, TICKET_MAGIC

    posix.write(int(sys.argv[2]), TICKET_MAGIC.encode() + EXIT_SETUP.to_bytes(4, "little"))
    posix._exit(EXIT_SETUP)


def load(package: str, bundle: Bundle, fd: int) -> bool:
    """Load the modules of the package in a directory, if all are as they were; whether they are.

    `fd` is the file that the bundle is the beginning of: what is loaded on demand is read then.
    """
    _, stamps, modules, later = bundle
    for stamp in stamps:
        if not _is_same(package, *stamp):
            return False
    kind: Any = type(sys)
    sys.meta_path.insert(0, _Later(package, later, fd))
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
    """Whether a source is what the bundle was made of: by time and size, as Python has it for its own bytecode."""
    try:
        status = posix.stat(f"{package}/{file}")
    except OSError:
        return False
    # By place: the time in whole seconds.
    return status[8] == seconds and status[6] == size


class _Later:
    """Finds and loads what is not loaded in any case."""

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
        """Leave that to whoever asks."""

    def exec_module(self, module: ModuleType) -> None:
        offset, size = self._modules[module.__name__][1]
        code = marshal.loads(posix.pread(self._fd, size, offset))  # noqa: S302 (as trusted as the sources)
        exec(code, module.__dict__)  # noqa: S102 (what `import` does)
