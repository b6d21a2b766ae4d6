# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/internals/reliability.rst from the campaign's figures: `python -m tests.chaos.report [RESULTS]`.

Without an argument, from docs/internals/reliability.json; with one, that becomes docs/internals/reliability.json first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs/internals"
FIGURES, PAGE = DOCS / "reliability.json", DOCS / "reliability.rst"
BEGIN, END = ".. begin figures\n", ".. end figures\n"

PEER = "ch-run: "

# (what is done, the rows of results it is the sum of, ch-run's row)
FAULTS = [
    ("launcher killed, at each system call", ["kill launcher"], None),
    ("a task's ch-join killed, at each system call", ["kill ch-join"], "a peer killed at a call"),
    ("FUSE server killed, at each system call", ["kill server"], "server killed"),
    ("launcher's calls fail, each plausible errno", ["errno launcher"], None),
    ("ch-join's calls fail, each plausible errno", ["errno ch-join"], None),
    ("server's calls fail, each plausible errno", ["errno server"], None),
    ("srun: launcher, ch-join, server killed", [f"srun, kill {part}" for part in ("launcher", "ch-join", "server")], None),
    *(
        (f"srun: {event} while launcher or ch-join is at a call", [f"srun, {event}, {part} held" for part in ("launcher", "ch-join")], None)
        for event in ("task 0 killed", "task 1 killed", "server killed", "slurmstepd killed", "srun killed", "scancel", "interrupt")
    ),
    ("srun --kill-on-bad-exit, while a task enters", ["srun, --kill-on-bad-exit"], None),
    ("srun --time=1, launcher held", ["srun, time limit"], None),
    ("memory limits (RLIMIT_AS, RLIMIT_DATA, cgroup)", ["RLIMIT_AS from 2 to 99 MiB", "RLIMIT_DATA from 2 to 99 MiB", "memory of a cgroup, 0.5 to 24 MiB"], None),
    ("descriptors (RLIMIT_NOFILE 4 to 63)", ["RLIMIT_NOFILE from 4 to 63"], None),
    ("descriptors in flight (ETOOMANYREFS)", ["ETOOMANYREFS: 400 descriptors in flight, limit 256"], None),
    ("no user namespace left, or only one", ["user.max_user_namespaces=0", "user.max_user_namespaces=1"], None),
    ("/dev/fuse missing, 0600, without a driver", ["/dev/fuse missing", "/dev/fuse not for users", "/dev/fuse no driver"], None),
    ("image truncated to 70 lengths", ["image truncated"], None),
    ("image deleted, replaced, emptied while running", [f"image {what} while running" for what in ("deleted", "replaced", "emptied")], None),
    ("image's file server hangs; step cancelled", [f"image's server hangs in {what}; cancelled" for what in ("lookup", "open", "read")], None),
    ("FUSE server stopped after it took a request; cancelled (``image_timeout=``)", ["FUSE server stopped with a request in its hand, no cgroup"], None),
    ("named join: the first peer killed at a call", ["named join, first peer killed"], "a peer killed at a call"),
    ("named join: any peer killed at a call", ["named join, any peer killed"], "a peer killed at a call"),
    ("named join: its holder killed, at each system call", ["join, holder killed"], None),
    ("named join: its holder's calls fail, each plausible errno", ["join, errno holder"], None),
    ("named join: the holder's guard, or the process that starts it, killed, at each system call", ["join, guard killed", "join, starter killed"], None),
    ("named join: launcher killed, at each system call", ["join, launcher killed"], None),
    ("named join under proctrack/cgroup: a task never comes; step ends, or is cancelled", [f"proctrack/cgroup, end by {end}" for end in ("the tasks", "scancel")], None),
]  # fmt: skip

LOADS = [
    ("{steps} steps of two tasks, one after the other, images alternating", "consecutive steps", None),
    ("{steps} steps at once on one node", "steps at once on one node", None),
    ("{tasks} tasks on {nodes} nodes", "all nodes", None),
    ("{tasks} tasks on one node", "tasks on one node", "command that ends at once, 64 tasks"),
    (
        "{jobs} jobs of two users at once, all in their step 0",
        "jobs of two users at one step id",
        "two jobs at one step id",
    ),
]


def table(title: str, head: list[str], rows: list[list[str]]) -> str:
    """Return a list table."""
    lines = [f".. list-table:: {title}", "   :header-rows: 1", ""]
    for row in [head, *rows]:
        lines += [f"   {'*' if not index else ' '} - {cell}".rstrip() for index, cell in enumerate(row)]
    return "\n".join(lines) + "\n\n"


def peers(figures: dict[str, Any], name: str | None) -> str:
    """Return what the same fault did to ch-run."""
    row = figures.get(PEER + name) if name else None
    if row is None:
        return ""
    words = [f"{row['cases']} {'case' if row['cases'] == 1 else 'cases'}"]
    names = {
        "failed": "failed",
        "hang": "hung",
        "left": "left something",
        "tasks_lost": "tasks lost",
        "wrong_image": "in the wrong image",
    }
    words += [f"{row[key]} {word}" for key, word in names.items() if row.get(key)]
    return ", ".join(words)


def render(figures: dict[str, Any]) -> str:
    """Return the page's tables for `figures`."""
    rows = []
    for what, names, peer in FAULTS:
        found = [figures[name] for name in names if name in figures]
        slowest = max((row.get("slowest") or 0 for row in found), default=0)
        failed = [row["failed"] for row in found if "failed" in row]
        rows.append(
            [
                what,
                str(sum(row["cases"] for row in found)),
                str(sum(failed)) if failed else "",
                str(sum(row["problems"] for row in found)),
                f"{slowest:.2f} s" if slowest else "",
                peers(figures, peer),
            ]
        )
    head = ["Fault", "Cases", "Steps that failed", "Broken promises", "Slowest end", "``ch-run --join``"]
    text = table("Faults", head, rows)
    rows = []
    for what, name, peer in LOADS:
        row = figures[name]
        notes = [f"{key.replace('_', ' ')} {value}" for key, value in row.items() if key.startswith("slurm")]
        rows.append(
            [
                what.format(**row),
                str(row["wrong_image"]),
                str(row["failures"]),
                str(row["left"]),
                "; ".join(notes),
                peers(figures, peer),
            ]
        )
    head = ["Load", "In the wrong image", "Failures", "Left behind", "Memory and descriptors", "``ch-run --join``"]
    return text + table("Load", head, rows)


def split(page: str) -> tuple[str, str, str]:
    """Return the page before, between and after its marks."""
    before, _, rest = page.partition(BEGIN)
    between, _, after = rest.partition(END)
    return before, between, after


def main(arguments: list[str]) -> None:
    """Bring the page up to date."""
    if arguments:
        FIGURES.write_text(Path(arguments[0]).read_text())
    before, _, after = split(PAGE.read_text())
    PAGE.write_text(before + BEGIN + "\n" + render(json.loads(FIGURES.read_text())) + END + after)


if __name__ == "__main__":
    main(sys.argv[1:])
