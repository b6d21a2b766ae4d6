# SPDX-License-Identifier: Apache-2.0
"""Write the man pages' sources: `python3 docs/man/make_pages.py DIRECTORY`.

What the pages list is what the programs know: the option table, click's
commands, the exit codes, and the comment of plugstack.conf's fragment. Only
the text around it is written here. Needs click; the pages are reStructuredText
for rst2man and for the HTML documentation alike.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

import click  # noqa: E402

from slurm_ch import __version__, agreement  # noqa: E402
from slurm_ch.cli import main  # noqa: E402
from slurm_ch.request import options  # noqa: E402

EXIT_CODES = (
    ("any", "the exit status of the command; 128+N if signal N killed the command"),
    (str(agreement.EXIT_SETUP), "the container can't be set up: the image, a bind, the namespaces, ..."),
    (
        str(agreement.EXIT_JOIN),
        "--join: the container was not ready in time, the process that makes it was killed, or another user has its"
        " name",
    ),
    (
        str(agreement.EXIT_LAUNCHER_DIED),
        "the process that makes the container, or pulls its image, was killed, perhaps for lack of memory",
    ),
    (str(agreement.EXIT_USAGE), "an option, a variable or an argument in plugstack.conf is wrong"),
    (str(agreement.EXIT_NO_FEATURE), "the feature that --feature asks for is not available here"),
    (str(agreement.EXIT_CANNOT_EXECUTE), "the command can't be executed"),
    (
        str(agreement.EXIT_NOT_FOUND),
        "the command, or an interpreter or loader that it needs, was not found in the container",
    ),
)
# Of the commands that run no command of the user's.
OTHER_EXIT_CODES = (
    ("0", "success"),
    (str(agreement.EXIT_SETUP), "failure; a line on standard error gives the reason"),
    (str(agreement.EXIT_USAGE), "an option, an argument or a variable is wrong"),
)
# Each command that has other codes than these.
_COMMANDS_EXIT_CODES = {
    "run": EXIT_CODES,
    "enter": (*EXIT_CODES[:2], EXIT_CODES[4], *EXIT_CODES[6:]),
    "sandbox": (
        EXIT_CODES[0],
        (str(agreement.EXIT_SETUP), "the cluster can't be started"),
        EXIT_CODES[4],
        *EXIT_CODES[6:],
    ),
    "doctor": (
        ("0", "nothing would make a step fail; there may be warnings"),
        ("1", "something would make a step fail"),
        (str(agreement.EXIT_USAGE), "an option is wrong"),
    ),
}


def heading(text: str, line: str = "-") -> list[str]:
    """Return a heading with its underline."""
    return [text, line * len(text), ""]


def titled(text: str, line: str) -> list[str]:
    """Return a heading between two lines: the page's name, and what it is about."""
    return [line * len(text), text, line * len(text), ""]


def page(name: str, section: int, what: str) -> list[str]:
    """Return the head of a man page, as rst2man wants it."""
    return [
        *titled(name, "="),
        *titled(what, "-"),
        f":Manual section: {section}",
        ":Manual group: slurm_ch",
        f":Version: {__version__}",
        "",
    ]


def escaped(text: str) -> str:
    """Return `text` with what reStructuredText would read as markup escaped."""
    return re.sub(r"([\\*`|_])", r"\\\1", text)


def definitions(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Return a definition list."""
    for term, text in rows:
        yield f"**{escaped(term)}**"
        yield "    " + escaped(text)
        yield ""


def exit_status(codes: Iterable[tuple[str, str]] = EXIT_CODES) -> list[str]:
    """Return the section of exit codes."""
    return [*heading("EXIT STATUS"), *definitions(codes)]


def see_also(*names: str) -> list[str]:
    """Return the section of related pages."""
    return [*heading("SEE ALSO"), ", ".join(f"**{name}**\\ ({number})" for name, _, number in
                                            (n.rpartition(".") for n in names)), ""]  # fmt: skip


def option_rows(command: click.Command, context: click.Context) -> list[tuple[str, str]]:
    """Return each option's names and help, in the order of --help."""
    options_ = [param for param in command.get_params(context) if isinstance(param, click.Option)]
    records = [param.get_help_record(context) for param in options_]
    return [record for record in records if record]


def command_page(name: str) -> list[str]:
    """Return the page of one of slurm-ch's commands."""
    command = main.slurm_ch.get_command(click.Context(main.slurm_ch), name)
    assert command is not None
    # With the group's names of --help, as when it is called.
    parent = click.Context(main.slurm_ch, **main.slurm_ch.context_settings)
    context = click.Context(command, parent, f"slurm-ch {name}", **command.context_settings)
    usage = " ".join(command.collect_usage_pieces(context))
    lines = page(f"slurm-ch-{name}", 1, summary(name))
    lines += [*heading("SYNOPSIS"), f"**slurm-ch {name}** {escaped(usage)}", ""]
    lines += heading("DESCRIPTION")
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith("\b\n"):
            lines += ["::", "", *(f"    {line}" for line in paragraph.splitlines()[1:]), ""]
        else:
            lines += [escaped(" ".join(paragraph.split())), ""]
    lines += [*heading("OPTIONS"), *definitions(option_rows(command, context))]
    codes = _COMMANDS_EXIT_CODES.get(name, OTHER_EXIT_CODES)
    return [*lines, *exit_status(codes), *see_also("slurm-ch.1", "slurm_ch.8")]


def summary(name: str) -> str:
    """Return a command's one line, as a man page's: no capital, no full stop."""
    text = main.COMMANDS[name].rstrip(".")
    return text[0].lower() + text[1:]


def top_page() -> list[str]:
    """Return slurm-ch(1)."""
    lines = page("slurm-ch", 1, "run Slurm job steps in unprivileged containers")
    lines += [*heading("SYNOPSIS"), "**slurm-ch** [*OPTIONS*] *COMMAND* [*ARGS*]...", ""]
    lines += heading("DESCRIPTION")
    lines += [
        "Where the site has installed the plugin, **srun --ch-image=**\\ *IMAGE* *COMMAND* runs a step in a container;",
        "see **slurm_ch**\\ (8). **slurm-ch** does everything else: it runs commands in containers without the plugin,",
        "lists and enters running containers, manages images, and finds what would make a step fail on a node.",
        "",
    ]
    lines += [*heading("COMMANDS"), *definitions((f"slurm-ch {name}", main.COMMANDS[name]) for name in main.COMMANDS)]
    lines += exit_status()
    return [*lines, *see_also(*(f"slurm-ch-{name}.1" for name in main.COMMANDS), "slurm_ch.8",
                              "slurm_ch-plugstack.conf.5")]  # fmt: skip


def plugin_page() -> list[str]:
    """Return slurm_ch(8): the options of srun, sbatch and salloc."""
    lines = page("slurm_ch", 8, "Slurm job steps in unprivileged containers")
    lines += heading("SYNOPSIS")
    for name in ("srun", "sbatch", "salloc"):
        lines += [f"**{name}** **--ch-image=**\\ *IMAGE* [**--ch-**\\ *OPTION*]... *ARGS*...", ""]
    lines += heading("DESCRIPTION")
    lines += [
        "The Slurm plugin of slurm_ch runs a step, or a batch script, in a container. All tasks of a step on a node",
        "share one container. If the container can't be made, the step fails with one line that gives the reason.",
        "",
        "Options of **sbatch** and **salloc** are the defaults of the steps in the job; options of **srun** override",
        "them. Options without a value also accept **=no**. Several binds, devices or namespaces are separated by",
        "commas, or the option is repeated.",
        "",
    ]
    rows = []
    for option in options.OPTIONS:
        if option.where & options.PLUGIN:
            value = {options.FLAG: "", options.OPTIONAL: f"[={option.arg}]"}.get(option.kind, f"={option.arg}")
            rows.append((f"--ch-{option.name}{value}", option.help + "."))
    lines += [*heading("OPTIONS"), *definitions(rows)]
    lines += heading("ENVIRONMENT")
    lines += [
        "The default of each option can be set in the environment: **SLURM_CH_**\\ *OPTION* for **srun**,",
        "**SBATCH_CH_**\\ *OPTION* for **sbatch**, **SALLOC_CH_**\\ *OPTION* for **salloc**. *OPTION* is the",
        "option's name in capitals, with underscores for hyphens. If the option can be repeated, its",
        "variable has one value per line.",
        "",
    ]
    return [*lines, *exit_status(), *see_also("slurm-ch.1", "slurm_ch-plugstack.conf.5", "srun.1")]


def fragment() -> list[str]:
    """Return the comment of plugstack.conf's fragment, line by line without its marks."""
    with open(os.path.join(ROOT, "etc", "plugstack.conf.in")) as file:
        return [line[2:].rstrip() if line[:2] == "# " else line[1:].rstrip() for line in file if line[:1] == "#"]


def arguments() -> list[tuple[str, str]]:
    """Return plugstack.conf's arguments and what they mean, from the fragment."""
    rows: list[list[str]] = []
    for line in fragment():
        start = re.match(r"  ([a-z_]+=\S+)(\s+(.*))?$", line)
        if start:
            rows.append([start[1], start[3] or ""])
        elif rows and line.startswith("          "):
            rows[-1][1] += " " + line.strip()
        elif rows:
            break
    return [(name, " ".join(text.split())) for name, text in rows]


def plugstack_page() -> list[str]:
    """Return the page about the plugin's line in plugstack.conf."""
    lines = page("slurm_ch-plugstack.conf", 5, "the line of slurm_ch in Slurm's plugstack.conf")
    lines += [*heading("SYNOPSIS"), "**required** *PATH*\\ **/slurm_ch.so** [*NAME*\\ **=**\\ *VALUE*]...", ""]
    lines += heading("DESCRIPTION")
    lines += [
        "The line loads the plugin into **srun**, **sbatch**, **salloc** and, on each node, **slurmd** and",
        "**slurmstepd**. The line must be the same on all nodes, submission hosts included. Arguments contain no white",
        "space. If an argument is wrong, the steps with **--ch-image** fail, and no others.",
        "",
    ]
    return [*lines, *heading("ARGUMENTS"), *definitions(arguments()), *see_also("slurm_ch.8", "slurm-ch-doctor.1")]


def pages() -> dict[str, list[str]]:
    """Return every page's lines by the file's name without its ending."""
    found = {
        "slurm-ch.1": top_page(),
        "slurm_ch.8": plugin_page(),
        "slurm_ch-plugstack.conf.5": plugstack_page(),
    }
    for name in main.COMMANDS:
        found[f"slurm-ch-{name}.1"] = command_page(name)
    return found


def write(directory: str) -> list[str]:
    """Write all pages below `directory` and return their names."""
    os.makedirs(directory, exist_ok=True)
    found = pages()
    for name, lines in found.items():
        with open(os.path.join(directory, name + ".rst"), "w") as file:
            file.write("\n".join(lines))
    return sorted(found)


if __name__ == "__main__":
    write(sys.argv[1])
