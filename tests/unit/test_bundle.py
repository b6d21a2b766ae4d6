# SPDX-License-Identifier: Apache-2.0
"""The launcher's modules in one file, which is loaded if it is as new as they are, and made by anyone who can write it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

import slurm_ch
from slurm_ch.agreement import DEFAULT_PYTHON, EXIT_USAGE
from slurm_ch.plugin import bundle

from .test_layers import LOADED

SOURCES = Path(slurm_ch.__file__).parent


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, with the bundle of the launcher's interpreter and no other bytecode."""
    copy = tmp_path / "slurm_ch"
    shutil.copytree(SOURCES, copy, ignore=shutil.ignore_patterns("__pycache__", "native"))
    (copy / "native").mkdir()  # on the launcher's path, as C has it
    subprocess.run([DEFAULT_PYTHON, "-I", "-B", copy / "plugin/bundle.py"], check=True)
    return copy


def bundle_of(package: Path) -> Path:
    (found,) = (package / "plugin/__pycache__").glob("launch.*.all.pyc")
    return found


def by_import(package: Path, *flags: str) -> set[str]:
    """Return which of our modules the launcher has found without the bundle; it must start in any case."""
    done = subprocess.run(
        [DEFAULT_PYTHON, "-I", "-S", *flags, "-X", "importtime", f"{package}/native/../plugin/launch.py"],
        check=False, capture_output=True, text=True, env={},
    )  # fmt: skip
    assert done.returncode == EXIT_USAGE, done.stderr
    return {name for name in done.stderr.replace("|", " ").split() if name.startswith("slurm_ch")}


def inside(package: Path, code: str) -> str:
    """Return what a program prints that has loaded the modules from the bundle."""
    load = (
        f"import marshal, sys; sys.path.append({str(package.parent)!r}); names = {{}};"
        f"file = open({str(bundle_of(package))!r}, 'rb'); head = file.read(8);"
        f"found = marshal.loads(file.read(int.from_bytes(head[4:], 'little'))); exec(found[0], names);"
        f"assert names['load']({str(package)!r}, found, file.fileno()); {code}"
    )
    done = subprocess.run([DEFAULT_PYTHON, "-I", "-S", "-B", "-c", load], check=True, capture_output=True, text=True)
    return done.stdout


def test_all_that_the_launcher_loads_is_in_it(package: Path) -> None:
    assert by_import(package) == set()
    found = inside(package, "print(*(name for name in sys.modules if name.startswith('slurm_ch')))").split()
    assert set(found) == {name for name in LOADED if name.startswith("slurm_ch")}


def test_a_module_has_the_same_names_as_from_its_source(package: Path) -> None:
    """What is taken away is what has no effect: annotations, docstrings, what only checkers read."""
    show = (
        "print({name: (module.__package__, module.__file__, getattr(module, '__path__', None),"
        " sorted(one for one in vars(module) if one not in ('annotations', 'TYPE_CHECKING', '__annotations__', '__conditional_annotations__')))"
        " for name, module in sys.modules.items() if name.startswith('slurm_ch')})"
    )
    code = f"import sys; sys.path.append({str(package.parent)!r}); import slurm_ch.plugin.launcher; {show}"
    plain = subprocess.run([DEFAULT_PYTHON, "-I", "-S", "-B", "-c", code], check=True, capture_output=True, text=True)
    bare, sources = eval(inside(package, show)), eval(plain.stdout)
    for name, (above, file, path, names) in sources.items():
        # Not those of the import machinery, which the bundle doesn't have.
        assert bare[name][:3] == (above, file, path)
        assert set(names) - set(bare[name][3]) <= {"__cached__", "__doc__"}, name


def test_what_is_loaded_on_demand_is_in_it(package: Path) -> None:
    show = "import slurm_ch.engine.squashfs as one; print(type(one.__spec__.loader).__name__, one.__file__, one.SERVER)"
    file = package / "engine/squashfs.py"
    server = package / "native/ch-squashfuse_ll"
    assert inside(package, show).split() == ["_OnDemandFinder", str(file), str(server)]
    os.utime(file, (1, 1))
    assert inside(package, show).split() == ["SourceFileLoader", str(file), str(server)]


def test_all_that_is_loaded_on_demand_loads_from_it_alone(package: Path) -> None:
    """Each module with all others that it needs: none is looked up elsewhere."""
    first = {name for name in LOADED if name.startswith("slurm_ch")}
    assert first.isdisjoint(bundle.LATER)
    show = (
        f"import importlib; [importlib.import_module(one) for one in {bundle.LATER}];"
        "print({name for name in sys.modules if name.startswith('slurm_ch')"
        " and type(getattr(sys.modules[name].__spec__, 'loader', None)).__name__ != '_OnDemandFinder'})"
    )
    assert eval(inside(package, show)) == first


def _older(package: Path) -> None:
    os.utime(package / "engine/root.py", (1, 1))


def _longer(package: Path) -> None:
    file = package / "request/site.py"
    status = file.stat()
    file.write_text(file.read_text() + "\n")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def _of_another_python(package: Path) -> None:
    found = bundle_of(package)
    found.write_bytes(b"\1\1\r\n" + found.read_bytes()[4:])


def _of_another_version(package: Path) -> None:
    """What an upgrade may leave: a loader that knows another launch.py, and trusts what it has."""
    found = bundle_of(package)
    code = (
        "import importlib.util, marshal, sys; loader = compile('def load(*given): return True', '', 'exec');"
        "data = marshal.dumps((loader, (), [], {}));"
        "sys.stdout.buffer.write(importlib.util.MAGIC_NUMBER + len(data).to_bytes(4, 'little') + data)"
    )
    found.write_bytes(subprocess.run([DEFAULT_PYTHON, "-I", "-c", code], check=True, capture_output=True).stdout)


def _cut_short(package: Path) -> None:
    found = bundle_of(package)
    found.write_bytes(found.read_bytes()[: found.stat().st_size // 2])


def _empty(package: Path) -> None:
    bundle_of(package).write_bytes(b"")


def _directory(package: Path) -> None:
    found = bundle_of(package)
    found.unlink()
    found.mkdir()


def _none(package: Path) -> None:
    bundle_of(package).unlink()


WRONG = [_older, _longer, _of_another_python, _of_another_version, _cut_short, _empty, _directory, _none]


@pytest.mark.parametrize("change", WRONG)
def test_without_a_good_one_the_sources_are_loaded(package: Path, change: Callable[[Path], None]) -> None:
    change(package)
    assert by_import(package, "-B") == {name for name in LOADED if name.startswith("slurm_ch")}


@pytest.mark.parametrize("change", [one for one in WRONG if one is not _directory])
def test_who_can_write_it_renews_it(package: Path, change: Callable[[Path], None]) -> None:
    change(package)
    assert "slurm_ch.plugin.bundle" in by_import(package)
    assert by_import(package) == set()
    assert len(list((package / "plugin/__pycache__").glob("*.all.pyc*"))) == 1


def test_a_release_dates_its_files_back(package: Path) -> None:
    """A package's build writes the times that its files will have, which are not theirs yet."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1000000000"}
    subprocess.run([DEFAULT_PYTHON, "-I", "-B", package / "plugin/bundle.py"], check=True, env=environment)
    assert by_import(package, "-B") != set()
    for path in package.rglob("*.py"):
        os.utime(path, (1000000000, 1000000000))
    assert by_import(package, "-B") == set()


def test_a_bundle_that_cannot_be_written_leaves_nothing(package: Path, mocker: MockerFixture) -> None:
    before = sorted((package / "plugin/__pycache__").iterdir())
    mocker.patch("os.rename", side_effect=OSError(28, "No space left on device"))
    bundle.renew(str(package))
    assert sorted((package / "plugin/__pycache__").iterdir()) == before
