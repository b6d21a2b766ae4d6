"""Imports point down only, and the launcher loads what it must and nothing else."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import slurm_ch

PACKAGE = Path(slurm_ch.__file__).parent

# A module may import from lower layers only; never from a peer.
LAYERS = (
    {"cli"},
    {"launch", "inside", "attempt"},
    {"check"},
    {"launcher", "runner", "cluster", "attach", "doctor"},
    {"installation"},
    {"trial"},
    {"container", "containers"},
    {"features", "relay", "tree", "inject", "handover", "controller", "pmix"},
    {"join", "tickets", "mounts", "squashfs", "namespaces", "passwd", "site", "devices"},
    {"actions", "spec", "image", "environment", "step", "cdi", "jobs", "plugstack"},
    {"linux", "log", "options", "paths", "cdinames", "findings"},
    {"errors"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# What the launcher adds to a bare `python3 -I -S`. Each costs every step of every node.
LOADED = {
    "__future__", "_ctypes", "_socket", "errno", "fcntl", "grp", "pwd",
    "slurm_ch", "slurm_ch.actions", "slurm_ch.container", "slurm_ch.environment", "slurm_ch.errors", "slurm_ch.image",
    "slurm_ch.launcher", "slurm_ch.linux", "slurm_ch.log", "slurm_ch.mounts", "slurm_ch.namespaces", "slurm_ch.options", "slurm_ch.passwd",
    "slurm_ch.site", "slurm_ch.spec", "slurm_ch.squashfs", "slurm_ch.step", "slurm_ch.tickets", "slurm_ch.tree",
}  # fmt: skip

# What a bare interpreter loads anyway, or not, with its version.
_BARE = {
    "_abc", "_collections_abc", "_stat", "_types", "abc", "collections.abc", "genericpath", "os", "os.path", "posixpath",
    "stat",
}  # fmt: skip


def imported(path: Path) -> set[str]:
    """Return the modules of ours that a file imports, by their first name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("slurm_ch")):
            module = (node.module or "").removeprefix("slurm_ch").lstrip(".")
            found |= {module.split(".")[0]} if module else {alias.name for alias in node.names}
    return found


def test_imports_point_down() -> None:
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        here = parts[0]
        for name in imported(path) & set(LEVEL):
            assert name == here or LEVEL[name] > LEVEL[here], f"{path.name} imports {name}"
            assert len(parts) > 1 or name != here


def test_every_module_has_its_layer() -> None:
    names = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert names == set(LEVEL)


def loaded(code: str) -> set[str]:
    script = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); {code}; print(*sys.modules)"
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", "-c", script], check=True, capture_output=True, text=True, env={}
    )
    return set(done.stdout.split())


def test_what_the_launcher_loads() -> None:
    found = loaded("import slurm_ch.launcher") - loaded("pass") - _BARE
    assert {name for name in found if name.startswith("slurm_ch")} == {
        name for name in LOADED if name.startswith("slurm_ch")
    }
    assert found == LOADED


def test_what_the_named_join_adds() -> None:
    site = Path(__import__("posix_ipc").__file__).parent
    more = loaded(f"sys.path.append({str(site)!r}); import slurm_ch.runner") - loaded("import slurm_ch.launcher")
    assert more - _BARE <= {"slurm_ch.handover", "slurm_ch.join", "slurm_ch.paths", "slurm_ch.runner", "mmap", "posix_ipc", "signal", "time", "enum", "_signal",
                    "functools", "_functools", "collections", "_collections", "operator", "_operator", "keyword", "reprlib", "itertools", "struct", "_struct",
                    "types"}  # fmt: skip
