# SPDX-License-Identifier: Apache-2.0
"""The man pages, the HTML pages and the shells' completion are made from what the programs know."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from slurm_ch import agreement
from slurm_ch.cli import main
from slurm_ch.request import options, pyxis_site, site

ROOT = Path(__file__).parents[2]
SLURM_CH = str(Path(sys.executable).parent / "slurm-ch")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every man page, made by rst2man, which must have nothing to complain of."""
    out = tmp_path_factory.mktemp("man")
    subprocess.run([sys.executable, ROOT / "docs/man/make_pages.py", out / "source"], check=True)
    found = {}
    for source in sorted((out / "source").iterdir()):
        done = subprocess.run(["rst2man", "--halt=2", source], check=True, capture_output=True, text=True)
        found[source.name.removesuffix(".rst")] = done.stdout.replace("\\-", "-").replace("\\", "")
    return found


def test_each_command_has_a_page(pages: dict[str, str]) -> None:
    assert set(pages) == {"slurm-ch.1", "slurm_ch.8", "slurm_ch-plugstack.conf.5"} | {
        f"slurm-ch-{name}.1" for name in main.COMMANDS
    }


def test_pages_have_every_option(pages: dict[str, str]) -> None:
    for option in options.OPTIONS:
        if option.where & options.PLUGIN:
            assert f"--ch-{option.name}" in pages["slurm_ch.8"]
        if option.where & options.COMMAND:
            assert f"--{option.name}" in pages["slurm-ch-run.1"]


def test_users_page_has_every_option() -> None:
    text = (ROOT / "docs/users.rst").read_text()
    table = text[text.index("\nOptions\n-------") : text.index("\nsbatch and salloc\n")]
    for option in options.OPTIONS:
        if option.where & options.PLUGIN:
            assert re.search(f"``--ch-{option.name}[=\\[`]", table), option.name


def test_pages_have_every_exit_code(pages: dict[str, str]) -> None:
    codes = {str(value) for name, value in vars(agreement).items() if name.startswith("EXIT_")}
    codes.remove(str(agreement.EXIT_CH_RUN_COMMAND))  # parity.rst has what is so for ch-run's name only
    users = (ROOT / "docs/users.rst").read_text()
    assert set(re.findall(r"^(\d+) +\S", users[users.index("\nstatus ") :], re.M)) == {"2", *codes}  # 2 is Slurm's
    status = pages["slurm-ch-run.1"].partition("EXIT STATUS")[2]
    assert set(re.findall(r"^\.B fB(\d+)fP$", status, re.M)) == codes


# Of troubleshooting's messages, those of Slurm, the kernel, and other programs.
OTHERS = (
    "execve():",
    "srun: fatal",
    "Read-only file system",
    "Invalid cross-device",
    "File too large",
    "nobody",
    "not found",
    "Permission denied",
)


def test_troubleshooting_has_messages_that_there_are() -> None:
    """Each message that it explains is in the sources, but for the names, paths and numbers in it."""
    files = [*ROOT.glob("slurm_ch/**/*.py"), *ROOT.glob("spank/**/*.[ch]")]
    sources = re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text() for file in files))
    terms = re.findall(r"^\S.*(?=\n    )", (ROOT / "docs/troubleshooting.rst").read_text(), re.M)
    messages = [one for term in terms for one in re.findall(r"(?<!`)\*([^*]+)\*", term) if not one.startswith(OTHERS)]
    assert len(messages) > 15
    for message in messages:
        variable = r"/\S+|[A-Z]{4,}\S*|\.\.\.|app:.*|aarch64|x86_64|finds and pulls"
        for part in re.split(variable, message):
            words = part.strip(" ,:=")
            assert words in sources, (message, words)


def test_plugstack_page_has_every_argument(pages: dict[str, str]) -> None:
    commented = [line for line in (ROOT / "etc/plugstack.conf.in").read_text().splitlines() if line[:4] == "#   "]
    names = {line.split("=")[0].strip("# ") for line in commented if "=" in line.split()[1]}
    # What is refused by name is on the page about pyxis.
    mine = {name for name in site.PYXIS_ARGUMENTS if name not in pyxis_site._REFUSED}
    assert {"python", "bind", "forbid", "relay", "pyxis", *mine, *site.IMAGE_ARGUMENTS} <= names
    for name in names:
        assert f"{name}=" in pages["slurm_ch-plugstack.conf.5"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("slurm-ch ru", "plain,run"),
        ("slurm-ch run --write-", "plain,--write-fake"),
        ("slurm-ch run fo", "file,fo"),
        ("slurm-ch sandbox --no", "plain,--nodes"),
    ],
)
def test_completion(words: str, expected: str) -> None:
    env = {
        **os.environ,
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
        "_SLURM_CH_COMPLETE": "bash_complete",
    }
    done = subprocess.run([SLURM_CH], env=env, check=False, capture_output=True, text=True)
    assert done.stdout.splitlines() == [expected]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "etc/completion.py"],
        env={**os.environ, "_SLURM_CH_COMPLETE": f"{shell}_source"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert "_SLURM_CH_COMPLETE" in done.stdout


def test_a_mistyped_command() -> None:
    done = subprocess.run([SLURM_CH, "explane"], check=False, capture_output=True, text=True)
    assert done.returncode == 64
    assert done.stderr == "slurm-ch: error: No such command 'explane'. Did you mean explain? (see slurm-ch --help)\n"


# What of a page Sphinx knows and docutils doesn't, taken for nothing; any other complaint is an error.
PARSE = """
import sys
from docutils import core, nodes
from docutils.parsers.rst import Directive, directives, roles

class Nothing(Directive):
    has_content, optional_arguments, final_argument_whitespace = True, 9, True
    option_spec = type("Any", (dict,), {"__getitem__": lambda *_: str, "__bool__": lambda _: True})()
    run = lambda self: []

for name in ("toctree", "graphviz", "automodule", "autoclass", "autofunction", "autoexception", "autodata", "module", "currentmodule"):
    directives.register_directive(name, Nothing)
for name in ("doc", "ref", "func", "class", "mod", "exc", "meth", "attr"):
    roles.register_generic_role(name, nodes.inline)
for page in sys.argv[1:]:
    print(page, file=sys.stderr)
    core.publish_doctree(open(page).read(), page, settings_overrides={"halt_level": 2, "report_level": 2})
"""


def test_every_page_is_well_formed() -> None:
    """What `make docs` would find, in two seconds and without Sphinx: tables, headings, links within a page."""
    found = [*ROOT.glob("*.rst"), *ROOT.glob("docs/*.rst"), *ROOT.glob("docs/internals/*.rst")]
    assert len(found) > 12
    done = subprocess.run(["/usr/bin/python3", "-c", PARSE, *found], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]
