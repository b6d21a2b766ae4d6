# SPDX-License-Identifier: Apache-2.0
"""The report, as Markdown: samples and facts in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import launcher, server, suites
from .stats import Samples, Spread, ratio, slope

_PEER_OF = {
    suites.OURS_DIR: suites.PEER_DIR,
    suites.OURS_SQFS: suites.PEER_SQFS,
    suites.OURS_NEW: suites.PEER_SQFS,
    suites.JOIN_DIR: suites.PEER_DIR,
    suites.JOIN_SQFS: suites.PEER_SQFS,
}
# Ours / ch-run --join, of the added wall time.
TARGETS = {
    (64, suites.OURS_DIR): 0.35, (64, suites.OURS_SQFS): 0.45,
    (8, suites.OURS_DIR): 0.8, (8, suites.OURS_SQFS): 0.8,
    (1, suites.OURS_DIR): 1.2, (1, suites.OURS_SQFS): 1.0,
    (64, suites.JOIN_DIR): 0.35, (64, suites.JOIN_SQFS): 0.35,
    (8, suites.JOIN_DIR): 1.1, (8, suites.JOIN_SQFS): 0.75,
    (1, suites.JOIN_DIR): 3.2, (1, suites.JOIN_SQFS): 0.85,
}  # fmt: skip
# One command without Slurm, and the launcher's CPU to its end: ours / the bare interpreter.
ALONE = 2.2
LAUNCHER_CPU = 1.3
CPU_PER_TASK_MS = 0.7
CPU_PER_TASK_WITHOUT_MS = 1.0
SERVER_MIB = 8.0
READING = 1.0
# Of the launcher with all that it loads, whole program, the interpreter's own 20 included.
INSTRUCTIONS_MILLION = 44.0


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are figures."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def milliseconds(value: Spread | None, digits: int = 1) -> str:
    """Return `median (quartile to quartile)` in ms."""
    if value is None:
        return "-"
    low, median, high = (f"{x * 1000:.{digits}f}" for x in (value.low, value.median, value.high))
    return f"{median} ({low} to {high})"


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def verdict(value: float | None, limit: float) -> str:
    """Return the value beside its limit, and whether it is met."""
    if value is None:
        return "-"
    return f"{value:.2f} <= {limit:.2f}: {'yes' if value <= limit else '**no**'}"


def bad(samples: Samples, suite: str, case: str, variant: str) -> str:
    failed, hung = samples.bad(suite, case, variant)
    return f"{failed} / {hung}"


def report(samples: Samples, facts: Mapping[str, Any]) -> str:
    """Return the whole report."""
    parts = [
        "# Benchmarks\n",
        _machine(facts),
        "Times in ms: median (lower to upper quartile). *Added*: less bare srun without the plugin, each round "
        "against its own. CPU: user and system of everything on the node until the last process of the step is gone. "
        "*Failed / hung* rounds are counted, and not in the medians.\n",
        "## Targets\n",
        _targets(samples, facts),
        "## A step of N tasks (`sleep 0.3`) on one node\n",
        _steps(samples),
        "## Memory while 8 tasks run\n",
        _memory(facts),
        f"## {suites.TASKS_PER_NODE} tasks on each of 1 to 16 virtual nodes, all on this machine\n",
        _nodes(samples),
        "## Time inside the container\n",
        _reading(samples),
        "## Without Slurm: `true` in a container\n",
        _alone(samples),
        "## The launcher by itself\n",
        _launcher(samples, facts),
        "## The SquashFS server by itself\n",
        _server(samples, facts),
        "## Trouble\n",
        "\n".join(f"- {line}" for line in facts.get("trouble", ())) or "None.",
    ]
    return "\n".join(parts) + "\n"


def _machine(facts: Mapping[str, Any]) -> str:
    return table(("", ""), facts.get("machine", {}).items()).replace("---:|", "---|")


def _added_ratio(samples: Samples, tasks: int, variant: str) -> float | None:
    case = f"N={tasks}"
    ours = samples.added("steps", case, variant, suites.BARE)
    return ratio(ours, samples.added("steps", case, _PEER_OF[variant], suites.BARE))


def cpu_per_task(samples: Samples, variant: str) -> float | None:
    """Return the CPU seconds that one more task costs, over a bare step's."""
    points = []
    for tasks in suites.TASKS:
        found = samples.added("steps", f"N={tasks}", variant, suites.BARE, "cpu")
        if found:
            points.append((float(tasks), found.median))
    return slope(points)


def server_mib(facts: Mapping[str, Any], variant: str) -> float | None:
    """Return the FUSE server's resident set in MiB."""
    found = [size for name, (_, size) in facts.get("memory", {}).get(variant, {}).items() if "fuse" in name.lower()]
    return sum(found) / 2**20 if found else None


def _targets(samples: Samples, facts: Mapping[str, Any]) -> str:
    rows = [
        (
            f"added time, ours / ch-run --join, N={tasks}, {variant}",
            verdict(_added_ratio(samples, tasks, variant), limit),
        )
        for (tasks, variant), limit in TARGETS.items()
    ]
    for case in ("directory", "SquashFS"):
        ours, bare = (
            samples.values("alone", case, variant, "wall")
            for variant in (suites.COMMAND_ALONE, suites.INTERPRETER_ALONE)
        )
        rows.append((f"single command / bare interpreter, wall: {case}", verdict(ratio(ours, bare), ALONE)))
    for variant in (launcher.DIRECTORY, launcher.SQUASHFS):
        ours, bare = (samples.values("launcher", "alone", one, "cpu") for one in (variant, launcher.BARE))
        rows.append((f"launcher / bare interpreter, total CPU: {variant}", verdict(ratio(ours, bare), LAUNCHER_CPU)))
    for variant in (
        suites.OURS_DIR, suites.OURS_SQFS, suites.JOIN_DIR, suites.JOIN_SQFS, suites.PEER_DIR, suites.PEER_SQFS,
    ):  # fmt: skip
        per_task = cpu_per_task(samples, variant)
        text = number(None if per_task is None else per_task * 1000)
        if variant in _PEER_OF:
            limit = CPU_PER_TASK_WITHOUT_MS if variant in (suites.JOIN_DIR, suites.JOIN_SQFS) else CPU_PER_TASK_MS
            text = verdict(None if per_task is None else per_task * 1000, limit)
        rows.append((f"CPU for one more task, ms: {variant}", text))
    for tasks in suites.TASKS:
        added = samples.added("steps", f"N={tasks}", suites.UNUSED, suites.BARE)
        rows.append((f"plugin unused, N={tasks}: added ms", milliseconds(added)))
    for variant in (suites.OURS_SQFS, suites.OURS_NEW):
        rows.append((f"FUSE server, MiB: {variant}", verdict(server_mib(facts, variant), SERVER_MIB)))
    python = [name for programs in facts.get("memory", {}).values() for name in programs if "python" in name]
    measured = "none" if facts.get("memory") else "-"
    rows.append(("Python resident after set-up", "**yes**" if python else measured))
    for case in samples.cases("reading"):
        for variant in (suites.OURS_SQFS, suites.OURS_NEW):
            value = ratio(samples.values("reading", case, variant, "wall"),
                          samples.values("reading", case, suites.PEER_SQFS, "wall"))  # fmt: skip
            rows.append((f"reading / ch-run's, {case}: {variant}", verdict(value, READING)))
    for case, limit in (*server.TARGETS.items(), *server.WALL_TARGETS.items()):
        what = "wall" if case in server.WALL_TARGETS else "cpu"
        rows.append(
            (f"SquashFS server, ours / before, {what}: {case}", verdict(_server_ratio(samples, case, what), limit))
        )
    imports = facts.get("instructions", {}).get(launcher.IMPORTS, "").partition(" ")[0]
    count = float(imports) if imports.replace(".", "").isdigit() else None
    rows.append(("launcher with imports, million instructions", verdict(count, INSTRUCTIONS_MILLION)))
    return table(("target", "measured"), rows)


def _server_ratio(samples: Samples, case: str, what: str) -> float | None:
    ours, before = (samples.values("server", case, variant, what) for variant in (server.OURS, server.BEFORE))
    return ratio(ours, before)


def _server(samples: Samples, facts: Mapping[str, Any]) -> str:
    rows = []
    for case in samples.cases("server"):
        for variant in samples.variants("server", case):
            base = variant == server.BEFORE
            size = facts.get("server_bytes", {}).get(case, {}).get(variant)
            rows.append((
                f"{case}: {variant}",
                milliseconds(samples.values("server", case, variant, "wall")),
                "" if base else number(_server_ratio(samples, case, "wall")),
                milliseconds(samples.values("server", case, variant, "cpu")),
                "" if base else number(_server_ratio(samples, case, "cpu")),
                number(size / 2**20 if size else None, 1),
            ))  # fmt: skip
    head = ("what: variant", "wall", "/ before", "server's CPU", "/ before", "its memory, MiB")
    return table(head, rows)


def _steps(samples: Samples) -> str:
    rows = []
    for case in samples.cases("steps"):
        tasks = int(case.removeprefix("N="))
        for variant in (suites.BARE, suites.UNUSED, *_PEER_OF, *dict.fromkeys(_PEER_OF.values())):
            own_ratio = _added_ratio(samples, tasks, variant) if variant in _PEER_OF else None
            base = variant == suites.BARE
            rows.append((
                f"{case}: {variant}",
                milliseconds(samples.values("steps", case, variant, "wall")),
                "" if base else milliseconds(samples.added("steps", case, variant, suites.BARE)),
                number(own_ratio) if variant in _PEER_OF else "",
                milliseconds(samples.values("steps", case, variant, "cpu")),
                "" if base else milliseconds(samples.added("steps", case, variant, suites.BARE, "cpu")),
                bad(samples, "steps", case, variant),
            ))  # fmt: skip
    head = ("N: variant", "wall", "added", "ours / ch-run", "CPU", "CPU added", "failed / hung")
    return table(head, rows)


def _memory(facts: Mapping[str, Any]) -> str:
    rows = []
    for variant, programs in facts.get("memory", {}).items():
        text = "; ".join(f"{name} x {count}: {size / 2**20:.1f}" for name, (count, size) in sorted(programs.items()))
        rows.append((variant, text or "not measured"))
    return "MiB by program: proportional share (PSS), but for FUSE servers, whose resident set it is.\n\n" + table(
        ("variant", "programs"), rows
    )


def _nodes(samples: Samples) -> str:
    rows = []
    for case in samples.cases("nodes"):
        count = int(case.removeprefix("nodes="))
        for variant in samples.variants("nodes", case):
            if variant == suites.BARE:
                continue
            wall = samples.added("nodes", case, variant, suites.BARE)
            cpu = samples.added("nodes", case, variant, suites.BARE, "cpu")
            rows.append((
                f"{case}: {variant}",
                milliseconds(wall),
                number(wall.median / count * 1000 if wall else None, 1),
                number(cpu.median / count * 1000 if cpu else None, 1),
                bad(samples, "nodes", case, variant),
            ))  # fmt: skip
    return table(("nodes: variant", "added", "added per node", "CPU added per node", "failed / hung"), rows)


def _reading(samples: Samples) -> str:
    rows = []
    for case in samples.cases("reading"):
        peer = samples.values("reading", case, suites.PEER_SQFS, "wall")
        bare = samples.values("reading", case, suites.BARE, "wall")
        for variant in samples.variants("reading", case):
            value = samples.values("reading", case, variant, "wall")
            rows.append((
                f"{case}: {'bare directory' if variant == suites.BARE else variant}",
                milliseconds(value, 0),
                number(ratio(value, bare)),
                number(ratio(value, peer)),
                milliseconds(samples.values("reading", case, variant, "cpu"), 0),
                bad(samples, "reading", case, variant),
            ))  # fmt: skip
    head = (
        "what: variant",
        "time",
        "/ bare directory",
        "/ ch-run, SquashFS",
        "CPU of step and both passes",
        "failed / hung",
    )
    return table(head, rows)


def _alone(samples: Samples) -> str:
    rows = []
    for case in samples.cases("alone"):
        for variant in samples.variants("alone", case):
            rows.append((
                f"{case}: {variant}",
                milliseconds(samples.values("alone", case, variant, "wall")),
                milliseconds(samples.added("alone", case, variant, "nothing", "cpu")),
                bad(samples, "alone", case, variant),
            ))  # fmt: skip
    return table(("image: variant", "wall", "CPU added", "failed / hung"), rows)


def _launcher(samples: Samples, facts: Mapping[str, Any]) -> str:
    counts = facts.get("instructions", {})
    rows = []
    for variant in (launcher.BARE, launcher.IMPORTS, launcher.DIRECTORY, launcher.SQUASHFS):
        rows.append((
            variant,
            milliseconds(samples.values("launcher", "alone", variant, "wall")),
            milliseconds(samples.values("launcher", "alone", variant, "cpu")),
            counts.get(variant, "-"),
            bad(samples, "launcher", "alone", variant),
        ))  # fmt: skip
    head = ("launcher", "to the ticket (or the end)", "CPU to its end", "instructions (callgrind)", "failed / hung")
    return table(head, rows) + f"\nperf stat, bare interpreter: {facts.get('perf', '-')}\n"
