# SPDX-License-Identifier: Apache-2.0
"""Load the launcher's modules from the bundle that `bundle.py` has written; this is a part of it, for `launch.py`.

Each module is run after all that it imports. What is loaded on demand is found
here too, where `import` looks first. A module whose source has changed since is not.
"""

from __future__ import annotations

import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import Any

    Stamp = tuple[str, int, int]
    Place = tuple[int, int]
    Bundle = tuple[CodeType, tuple[Stamp, ...], list[tuple[str, str, CodeType]], dict[str, tuple[Stamp, Place]]]


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
