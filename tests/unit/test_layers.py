# SPDX-License-Identifier: Apache-2.0
"""Imports point down only, and the launcher loads what it must and nothing else."""

from __future__ import annotations

import ast
import concurrent.futures
import graphlib
import re
import subprocess
from pathlib import Path

import pytest

import slurm_ch

PACKAGE = Path(slurm_ch.__file__).parent

# What else a folder may import: folders, or single modules of them. "." is the ground.
MAY = {
    "devices": {"."}, "slurm": {"."}, "images": {"."},
    "request": {".", "devices/names"},
    "engine": {".", "request", "devices"},
}  # fmt: skip
BELOW = {".", "devices", "slurm", "images", "request", "engine"}
MAY |= {name: BELOW for name in ("plugin", "standalone", "attach", "doctor", "sandbox")}
MAY["library"] = BELOW | {"plugin", "standalone"}
MAY["cli"] = {".", *MAY}
# The ground's own modules may import these of it.
LOWEST = {"./agreement", "./errors", "./lean_os"}

# What the launcher adds to a bare `python3 -I -S`. Each costs every step of every node.
LOADED = {
    "__future__", "_ctypes", "errno", "fcntl", "grp", "pwd",
    "slurm_ch", "slurm_ch.agreement", "slurm_ch.errors", "slurm_ch.lean_os", "slurm_ch.linux", "slurm_ch.log",
    "slurm_ch.engine", "slurm_ch.engine.accounts", "slurm_ch.engine.action", "slurm_ch.engine.binds", "slurm_ch.engine.caller",
    "slurm_ch.engine.container", "slurm_ch.engine.environment", "slurm_ch.engine.environment_files", "slurm_ch.engine.image", "slurm_ch.engine.namespaces",
    "slurm_ch.engine.places", "slurm_ch.engine.root", "slurm_ch.engine.task_plan", "slurm_ch.engine.user_directories",
    "slurm_ch.plugin", "slurm_ch.plugin.facts", "slurm_ch.plugin.launcher", "slurm_ch.plugin.tickets",
    "slurm_ch.request", "slurm_ch.request.options", "slurm_ch.request.parsers", "slurm_ch.request.site", "slurm_ch.request.spec",
}  # fmt: skip

# What a bare interpreter loads anyway, or not, with its version.
_BARE = {
    "_abc", "_collections_abc", "_stat", "_types", "abc", "collections.abc", "genericpath", "os", "os.path", "posixpath",
    "stat",
}  # fmt: skip


def imported(path: Path) -> set[Path]:
    """Return the files of ours that a file imports, at its top, in a function, or by a name as text."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ("slurm_ch", *path.relative_to(PACKAGE).parts[: -node.level]) if node.level else ()
            base = ".".join([*package, *filter(None, [node.module])])
            whole = {base} if at(base).with_suffix(".py").exists() else set()
            names |= whole | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            names |= {str(one.value) for one in node.args if isinstance(one, ast.Constant)}
    places = [at(name) for name in names if name.startswith("slurm_ch.")]
    files = {place / "__init__.py" if place.is_dir() else place.with_suffix(".py") for place in places}
    return {file for file in files if file.exists()}


def at(name: str) -> Path:
    """Return where the module is; a name that the library gives is at home elsewhere."""
    name = name.removeprefix("slurm_ch.")
    return PACKAGE.joinpath(*slurm_ch._MODULES.get(name, name).split("."))


def allowed(path: Path, other: Path) -> bool:
    here, there = (one.relative_to(PACKAGE).parent.as_posix() for one in (path, other))
    module = f"{there}/{other.stem}"
    return (here == there != ".") or not {there, module}.isdisjoint(MAY.get(here, LOWEST))


def test_imports_point_down() -> None:
    files = {path: imported(path) for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"}
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {other.relative_to(PACKAGE)}"
        for path, others in files.items()
        for other in others
        if not allowed(path, other)
    ]
    assert wrong == []
    # CycleError names the circle.
    list(graphlib.TopologicalSorter(files).static_order())


@pytest.mark.parametrize("package", ["engine", "images", "plugin", "request"])
def test_each_module_is_in_the_packages_list(package: str) -> None:
    """A folder of more modules than one takes in at a glance says in its docstring what each is for."""
    text = ast.get_docstring(ast.parse((PACKAGE / package / "__init__.py").read_text()), clean=False) or ""
    lists = re.findall(r"^ {4}(\S.*?)(?: {2,}|$)", text, re.MULTILINE)
    assert {word for line in lists for word in line.split()} == {
        path.stem for path in (PACKAGE / package).glob("*.py") if path.stem != "__init__"
    }


def loaded(code: str) -> set[str]:
    script = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); {code}; print(*sys.modules)"
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", "-c", script], check=True, capture_output=True, text=True, env={}
    )
    return set(done.stdout.split())


def test_what_the_launcher_loads() -> None:
    found = loaded("import slurm_ch.plugin.launcher") - loaded("pass") - _BARE
    assert {name for name in found if name.startswith("slurm_ch")} == {
        name for name in LOADED if name.startswith("slurm_ch")
    }
    assert found == LOADED


def test_what_the_named_join_adds() -> None:
    site = Path(__import__("posix_ipc").__file__).parent
    more = loaded(
        f"sys.path.append({str(site)!r}); import slurm_ch.standalone.run, slurm_ch.standalone.peers"
    ) - loaded("import slurm_ch.plugin.launcher")
    assert more - _BARE <= {"slurm_ch.engine.ch_join", "slurm_ch.paths", "slurm_ch.request.step", "slurm_ch.slurm", "slurm_ch.slurm.siblings", "slurm_ch.standalone", "slurm_ch.standalone.meeting",
                    "slurm_ch.standalone.peers", "slurm_ch.standalone.run", "mmap", "posix_ipc", "signal", "time", "enum", "_signal",
                    "functools", "_functools", "collections", "_collections", "operator", "_operator", "keyword", "reprlib", "itertools", "struct", "_struct",
                    "types", "heapq", "_heapq"}  # fmt: skip


def test_what_runs_in_a_container_opens_files_as_bytes() -> None:
    """Text may need a codec of the caller's locale, which can't be loaded in there: Python 3.9 in the C locale."""
    more = (PACKAGE / "slurm/siblings.py", *(PACKAGE / f"standalone/{name}.py" for name in ("meeting", "peers", "run")))
    for path in (*PACKAGE.glob("engine/*.py"), *more):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
                mode = node.args[1].value if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) else "r"
                assert "b" in mode, (path.name, node.lineno)


# ---- The same for C: spank/'s folders ----

SPANK = PACKAGE.parent / "spank"
# What all programs may include; between two programs nothing else is shared.
SHARED = {"../agreement.h", *(f"../common/{path.name}" for path in SPANK.glob("common/*.h"))}


def test_includes_point_down() -> None:
    for path in SPANK.glob("*/*.[ch]"):
        others = {name for name in re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE) if "/" in name}
        assert others <= SHARED, path


def symbols(path: Path, to: Path) -> tuple[set[str], set[str]]:
    """Return what a C file defines for others, and what it takes from them."""
    subprocess.run(["cc", "-std=gnu11", "-O0", "-w", "-c", "-o", to, path], check=True)
    lines = subprocess.run(["nm", "-g", to], check=True, capture_output=True, text=True).stdout.splitlines()
    kinds = [line.split()[-2:] for line in lines]
    return {name for kind, name in kinds if kind not in "Uw"}, {name for kind, name in kinds if kind in "Uw"}


@pytest.mark.parametrize("name", sorted(path.name for path in SPANK.iterdir() if path.is_dir() and path.name[0] != "."))
def test_no_circle_of_c_files(name: str, tmp_path: Path) -> None:
    files = sorted((SPANK / name).glob("*.c"))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = dict(zip(files, pool.map(lambda path: symbols(path, tmp_path / f"{path.stem}.o"), files)))
    homes = {symbol: path.name for path, (defined, _) in found.items() for symbol in defined}
    uses = {
        path.name: {homes[one] for one in taken if one in homes} - {path.name} for path, (_, taken) in found.items()
    }
    list(graphlib.TopologicalSorter(uses).static_order())
