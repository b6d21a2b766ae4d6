# SPDX-License-Identifier: Apache-2.0
"""Write the launcher's modules to one file of bytecode, the bundle.

Finding, opening and checking thirty modules takes as long as running them. The bundle
leaves out docstrings, annotations and line numbers, which the launcher doesn't use.
`bundled.py` loads it if it is as new as its sources; otherwise the launcher imports its
modules like any program. The bundle is written to __pycache__ when the package is built.
"""

from __future__ import annotations

import ast
import importlib.util
import marshal
import os
import sys
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# The bundle's own loader, the module that is always loaded, and those that may be; all with the modules they import.
LOADER = "slurm_ch.plugin.bundled"
FIRST = "slurm_ch.plugin.launcher"
LATER = (
    "slurm_ch.engine.compatibility", "slurm_ch.engine.image_environment", "slurm_ch.engine.image_requests",
    "slurm_ch.engine.implied_binds", "slurm_ch.engine.locales", "slurm_ch.engine.loopback", "slurm_ch.engine.pmix",
    "slurm_ch.engine.squashfs", "slurm_ch.plugin.command_launcher", "slurm_ch.request.anchor", "slurm_ch.request.pyxis",
    "slurm_ch.request.step",
)  # fmt: skip


def file_of(package: str, name: str) -> str:
    """Return the file of a module, relative to the package's directory."""
    path = os.path.join(*name.split(".")[1:], "") if "." in name else ""
    return f"{path}__init__.py" if os.path.isdir(os.path.join(package, path)) else f"{path[:-1]}.py"


def _imports(name: str, tree: ast.Module, package: str) -> Iterator[str]:
    """Yield the modules of this package that a module imports at its top level."""
    above = name.split(".") if file_of(package, name).endswith("__init__.py") else name.split(".")[:-1]
    for node in tree.body:
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = above[: len(above) - node.level + 1] + (node.module.split(".") if node.module else [])
        for alias in node.names:
            found = ".".join(base)
            below = f"{found}.{alias.name}"
            yield below if os.path.exists(os.path.join(package, file_of(package, below))) else found


class _WithoutAnnotations(ast.NodeTransformer):
    """Removes annotations, and code for type checkers only."""

    def visit(self, node: ast.AST) -> ast.AST | None:
        self.generic_visit(node)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            # An annotation without a value does nothing at run time.
            return ast.Assign([node.target], node.value) if node.value else ast.Pass()
        elif isinstance(node, ast.ImportFrom) and node.module == "__future__":
            return None
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node.orelse or ast.Pass()  # type: ignore[return-value]
        return node


def compiled(path: str) -> tuple[ast.Module, CodeType]:
    """Return a file's syntax tree, and its bytecode without docstrings, annotations and line numbers."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    tree = ast.parse(text)
    _WithoutAnnotations().visit(tree)
    ast.fix_missing_locations(tree)
    return ast.parse(text), _without_lines(compile(tree, os.path.basename(path), "exec", dont_inherit=True, optimize=2))


def _without_lines(code: CodeType) -> CodeType:
    inner = tuple(_without_lines(one) if isinstance(one, type(code)) else one for one in code.co_consts)
    table = "co_linetable" if sys.version_info >= (3, 10) else "co_lnotab"
    return code.replace(co_consts=inner, **{table: b""})  # type: ignore[arg-type]


def _stamp(package: str, name: str) -> tuple[str, int, int]:
    """Return a module's file, its modification time in seconds and its size: the values that Python checks too."""
    file = file_of(package, name)
    status = os.stat(os.path.join(package, file))
    # A distribution's package sets the time of newer files to this.
    newest = int(os.environ.get("SOURCE_DATE_EPOCH") or status.st_mtime)
    return file, min(int(status.st_mtime), newest), status.st_size


def contents(package: str) -> bytes:
    """Return the bundle's bytes, for the package in a directory."""
    codes: dict[str, CodeType] = {}
    first: list[str] = []
    later: list[str] = []

    def add(name: str, found: list[str]) -> None:
        if name in codes:
            return
        tree, codes[name] = compiled(os.path.join(package, file_of(package, name)))
        if "." in name:
            add(name.rpartition(".")[0], found)
        for other in _imports(name, tree, package):
            add(other, found)
        found.append(name)

    add(FIRST, first)
    for name in LATER:
        add(name, later)
    loader = compiled(os.path.join(package, file_of(package, LOADER)))[1]
    stamps = tuple(_stamp(package, name) for name in (*first, LOADER))
    modules = [(name, file_of(package, name), codes[name]) for name in first]
    tails = [marshal.dumps(codes[name]) for name in later]

    def head(begin: int) -> bytes:
        """Return the part that is always read; the code of the other modules follows at offset `begin`."""
        places = {}
        for name, code in zip(later, tails):
            places[name] = (_stamp(package, name), (begin, len(code)))
            begin += len(code)
        return marshal.dumps((loader, stamps, modules, places))

    # marshal writes small and large offsets in the same number of bytes.
    first_part = head(8 + len(head(0)))
    return importlib.util.MAGIC_NUMBER + len(first_part).to_bytes(4, "little") + first_part + b"".join(tails)


def path_of(package: str) -> str:
    """Return where the bundle of this interpreter is."""
    return os.path.join(package, "plugin", "__pycache__", f"launch.{sys.implementation.cache_tag}.all.pyc")


def write(package: str) -> None:
    """Write the bundle, atomically: others see a complete one or none. OSError on failure."""
    path = path_of(package)
    new = f"{path}.{os.getpid()}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    data = contents(package)
    try:
        with open(new, "wb") as file:
            # Readable for everyone who can read the sources, as Python's own cached bytecode.
            os.fchmod(file.fileno(), os.stat(os.path.join(package, file_of(package, LOADER))).st_mode & 0o666)
            file.write(data)
        os.rename(new, path)
    except OSError:
        with suppress(OSError):
            os.unlink(new)
        raise


def renew(package: str) -> None:
    """Write the bundle if possible; without it, the launcher only takes longer to start."""
    with suppress(OSError, ValueError):
        write(package)


if __name__ == "__main__":
    write(*sys.argv[1:] or [PACKAGE])
