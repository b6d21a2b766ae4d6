# SPDX-License-Identifier: Apache-2.0
"""Values that C and Python share are defined once, in slurm_ch/agreement.py."""

from __future__ import annotations

import ast
import itertools
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_ch import agreement
from slurm_ch.devices.names import DEFAULT_DIRECTORIES
from slurm_ch.request.options import BY_NAME

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "slurm_ch/agreement.py"
HEADER = ROOT / "spank/agreement.h"
PYTHON = [*ROOT.glob("slurm_ch/**/*.py"), *ROOT.glob("spank/**/*.py"), ROOT / "bench/launcher.py"]
C = [*ROOT.glob("spank/*/*.[ch]")]
MAKE = [ROOT / "Makefile", *ROOT.glob("spank/Makefile"), ROOT / "tests/fuzz/Makefile"]

CONSTANTS = {name: value for name, value in vars(agreement).items() if name.isupper()}
KINDS = {value: name for name, value in CONSTANTS.items() if name.startswith(("FACT_", "PLAN_")) and len(value) == 1}
# Each is distinct from any other text; the command prefixes are parts of the variables' names.
# Words of every day can't.
EVERYDAY = {"SLURM_CH", "INTERPRETER_FILE", "CH_RUN", "IF_TERMINAL", "MEET_BY_SOCKET", "MEET_BY_NAME"}
TEXTS = {
    value for name, value in CONSTANTS.items() if isinstance(value, str) and len(value) > 1 and name not in EVERYDAY
}
TEXTS |= {value.rpartition("/")[2] for value in TEXTS if value.startswith("../")}
# Lists of which an item alone is an everyday word.
LISTS = {name: set(value) for name, value in CONSTANTS.items() if isinstance(value, tuple)}
CODES = {value for name, value in CONSTANTS.items() if name.startswith("EXIT_")}

_C_TOKEN = re.compile(r'/\*.*?\*/|"((?:[^"\\]|\\.)*)"', re.DOTALL)


def python_texts(path: Path) -> Iterator[str]:
    """Yield the strings of a file that aren't documentation."""
    tree = ast.parse(path.read_text())
    notes = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in notes:
            yield node.value.decode("latin-1") if isinstance(node.value, bytes) else str(node.value)


def texts(path: Path) -> Iterator[str]:
    if path.suffix == ".py":
        yield from python_texts(path)
    elif path.suffix in (".c", ".h"):
        yield from (found[1] for found in _C_TOKEN.finditer(path.read_text()) if found[1] is not None)
    else:
        yield path.read_text()


def test_the_header_is_the_module() -> None:
    defined = dict(re.findall(r"^#define (\w+) (.*?)(?: /\*.*)?$", HEADER.read_text(), re.MULTILINE))
    assert defined.keys() == CONSTANTS.keys()
    for name, value in CONSTANTS.items():
        words = value if isinstance(value, tuple) else (value,)
        assert tuple(ast.literal_eval(f"[{defined[name]}]")) == words


def test_the_compiler_takes_the_header(tmp_path: Path) -> None:
    lines = [f"{'int' if isinstance(value, int) else 'char'} x_{name}{'[]' if len(str(value)) > 1 and isinstance(value, str) else ''} = {name};"
             for name, value in CONSTANTS.items() if not isinstance(value, tuple)]  # fmt: skip
    (tmp_path / "use.c").write_text(
        f'#include "{HEADER}"\n' + "\n".join(lines) + "\nconst char *no[] = { NO_WORDS };\n"
    )
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "-c", "-o", "/dev/null", tmp_path / "use.c"], check=True)


def test_no_kind_of_record_stands_for_two() -> None:
    for table in ("FACT_", "PLAN_"):
        kinds = [value for name, value in CONSTANTS.items() if name.startswith(table) and len(value) == 1]
        assert len(kinds) == len(set(kinds)) > 1
    assert all(f'{name} = "{kind}"  # ' in SOURCE.read_text() for kind, name in KINDS.items())


@pytest.mark.parametrize("path", [*PYTHON, *C, *MAKE], ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_agreed_on_stands_elsewhere(path: Path) -> None:
    if path == SOURCE:
        return
    found = {text for one in texts(path) for text in TEXTS if text in one and not _is_other(one, text)}
    assert not found


def _is_other(whole: str, text: str) -> bool:
    """Whether `text` in `whole` is part of something else: SLURM_CH_COMPLETE is no option's default."""
    if text == agreement.SRUN_PREFIX:
        return not re.search(text + "(?![A-Z])", whole)
    return text in (agreement.CHECK_OPTION, agreement.ENROOT_START) and whole != text


def test_kinds_and_codes_have_names_in_c() -> None:
    code = "(?:{})".format("|".join(map(str, CODES)))
    kind = "'[{}]'".format("".join(KINDS))
    wrong = [
        rf"facts_record\([^,;]+, '|\bcase {kind}|\[0\] [!=]= {kind}",
        rf"(?:_?exit|die)\({code}\b|\breturn {code};|(?:code|status)\w* *[!=]?= *{code}\b",
        *(r'\{ *(?:"(?:' + "|".join(map(re.escape, words)) + r')",? *){2,}' for words in LISTS.values()),
    ]
    for path in C:
        found = [match[0] for one in wrong for match in re.finditer(one, path.read_text())] if path != HEADER else []
        assert not found, path


def _unnamed(node: ast.AST) -> Iterator[object]:
    """Yield what a part of a module has of exit codes, kinds of records and lists that have names."""
    values: list[ast.AST | None] = []
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        items = [one.value for one in node.elts if isinstance(one, ast.Constant)]
        yield from items[:1] if len(node.elts) == 2 and items[:1] and items[0] in KINDS else ()
        yield from (name for name, words in LISTS.items() if words <= {*items})
    elif isinstance(node, ast.Compare):
        values = [node.left, *node.comparators]
        yield from (
            one.value
            for one in values
            if "kind" in ast.unparse(node) and isinstance(one, ast.Constant) and one.value in KINDS
        )
        values = values if re.search("code|status", ast.unparse(node)) else []
    elif isinstance(node, ast.Return):
        values = [node.value]
    elif isinstance(node, ast.Assign):
        values = [node.value] if re.search("code|status", ast.unparse(node.targets[0])) else []
    elif isinstance(node, ast.Call):
        values = [*node.args] if re.search(r"\b_?[Ee]xit$", ast.unparse(node.func)) else []
    yield from (
        one.value for one in values if isinstance(one, ast.Constant) and type(one.value) is int and one.value in CODES
    )


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_kinds_and_codes_have_names(path: Path) -> None:
    if path != SOURCE:
        assert [*itertools.chain(*map(_unnamed, ast.walk(ast.parse(path.read_text()))))] == []


def test_what_can_import_nothing_has_the_same_names() -> None:
    """A shell script, a fragment to be edited, the Makefile, the project's own file."""
    assert f"${{{agreement.REQUEST_VARIABLE}:-}}" in (ROOT / "etc/task-prolog").read_text()
    assert agreement.DEFAULT_LAUNCHER.removeprefix("../") in (ROOT / "etc/plugstack.conf.in").read_text()
    assert f'\n{agreement.PYTHON_COMMAND} = "' in (ROOT / "pyproject.toml").read_text()
    assert f"/native/{agreement.INTERPRETER_FILE}\n" in (ROOT / "Makefile").read_text()
    assert BY_NAME["cdi-dirs"].help.endswith(f" [{DEFAULT_DIRECTORIES}]")  # no module more on the hot path


@pytest.mark.parametrize(
    ("missing", "ticket"),
    [("log.py", agreement.TICKET_MAGIC.encode() + agreement.EXIT_SETUP.to_bytes(4, "little")), ("agreement.py", b"")],
)
def test_a_launcher_without_one_of_its_modules_says_so(tmp_path: Path, missing: str, ticket: bytes) -> None:
    shutil.copytree(ROOT / "slurm_ch", tmp_path / "slurm_ch", ignore=shutil.ignore_patterns("__pycache__", missing))
    tasks, launcher = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    out = os.memfd_create("out")
    words = ["/dev/null", str(launcher.fileno()), str(out), "n7"]
    with tasks, launcher:
        done = subprocess.run(
            [agreement.DEFAULT_PYTHON, "-I", "-S", tmp_path / "slurm_ch/plugin/launch.py", *words],
            check=False, stderr=subprocess.DEVNULL, pass_fds=[launcher.fileno(), out],
        )  # fmt: skip
        launcher.close()
        assert tasks.recv(64) == ticket
    assert done.returncode == (agreement.EXIT_SETUP if ticket else 1)
    with open(out, closefd=True) as file:
        file.seek(0)
        assert re.fullmatch(f"slurm-ch: n7: error: can't load the launcher: .*{missing[:-3]}.*\n", file.read())


def test_a_launcher_whose_package_could_not_be_looked_at_once() -> None:
    """The answer is kept by Python: without a second look, no ticket came, and a second line from ch-join."""
    tasks, launcher = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    out = os.memfd_create("out")
    program = str(ROOT / "slurm_ch/plugin/launch.py")
    words = ["/dev/null", str(launcher.fileno()), str(out), "n7"]
    # With no bundle for this Python, in which it would find all.
    code = (
        f"import sys; sys.argv = [{program!r}, *sys.argv[1:]]; sys.path_importer_cache[{str(ROOT)!r}] = None;"
        f"sys.implementation.cache_tag = 'none';"
        f"exec(open({program!r}).read(), {{'__file__': {program!r}, '__name__': '__main__'}})"
    )
    with tasks, launcher:
        done = subprocess.run(
            [agreement.DEFAULT_PYTHON, "-I", "-S", "-B", "-c", code, *words],
            check=False, stderr=subprocess.DEVNULL, pass_fds=[launcher.fileno(), out],
        )  # fmt: skip
        launcher.close()
        assert tasks.recv(64) == agreement.TICKET_MAGIC.encode() + agreement.EXIT_SETUP.to_bytes(4, "little")
    assert done.returncode == agreement.EXIT_SETUP
    with open(out, closefd=True) as file:
        file.seek(0)
        assert file.read() == "slurm-ch: n7: error: can't load the launcher: No module named 'slurm_ch'\n"
