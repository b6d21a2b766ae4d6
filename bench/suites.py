# SPDX-License-Identifier: Apache-2.0
"""The suites: steps, nodes, readers, and commands without Slurm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from slurm_ch.sandbox.cluster import Cluster

from .images import Images
from .measure import Bench, Run, memory
from .peer import Peer

# ch-run's join fails if a command ends before all of its peers have joined.
COMMAND = ("sleep", "0.3")
TASKS = (1, 8, 64)
NODES = (1, 2, 4, 8, 16)
TASKS_PER_NODE = 4
READERS = (1, 2, 8)

BARE = "bare srun"
UNUSED = "plugin unused"
OURS_DIR, OURS_SQFS, OURS_NEW = "slurm_ch, directory", "slurm_ch, SquashFS", "slurm_ch, SquashFS, ch-run's squashfuse"
JOIN_DIR, JOIN_SQFS = "without the plugin, directory", "without the plugin, SquashFS"
# Without Slurm.
COMMAND_ALONE, INTERPRETER_ALONE = "slurm-ch run", "python3 -I -S"
PEER_DIR, PEER_SQFS = "ch-run --join, directory", "ch-run --join, SquashFS"


class Place:
    """Clusters without our plugin, with it, and with it and the newer release of squashfuse."""

    def __init__(self, plain: Cluster, ours: Cluster, newer: Cluster, peer: Peer, slurm_ch: str) -> None:
        self.plain = plain
        self.ours = ours
        self.newer = newer
        self.peer = peer
        self.slurm_ch = slurm_ch

    def bare(self, options: Sequence[str], command: Sequence[str] = COMMAND) -> Run:
        return Run(BARE, self.plain, lambda _: ["srun", *options, *command])

    def with_plugin(
        self, variant: str, options: Sequence[str], image: Path | None, command: Sequence[str] = COMMAND
    ) -> Run:
        cluster = self.newer if variant == OURS_NEW else self.ours
        container = [f"--ch-image={image}"] if image else []
        return Run(variant, cluster, lambda _: ["srun", *options, *container, *command])

    def without_plugin(
        self, variant: str, options: Sequence[str], image: Path, command: Sequence[str] = COMMAND
    ) -> Run:
        words = ["srun", *options, self.slurm_ch, "run", "--join", str(image), "--", *command]
        return Run(variant, self.plain, lambda _: words)

    def with_peer(self, variant: str, options: Sequence[str], image: Path, command: Sequence[str] = COMMAND) -> Run:
        ch_run = self.peer.ch_run

        def argv(unique: str) -> list[str]:
            return ["srun", *options, *ch_run, "--join", f"--join-tag={unique}", str(image), "--", *command]

        return Run(variant, self.plain, argv)


def steps(bench: Bench, place: Place, images: Images, rounds: int) -> None:
    """Run a step of 1, 8 and 64 tasks on one node."""
    for tasks in TASKS:
        bench.rounds("steps", f"N={tasks}", _step_runs(place, images, tasks), rounds)


def _step_runs(place: Place, images: Images, tasks: int, command: Sequence[str] = COMMAND) -> list[Run]:
    options = ["--overcommit", f"-n{tasks}"]
    return [
        place.bare(options, command),
        place.with_plugin(UNUSED, options, None, command),
        place.with_plugin(OURS_DIR, options, images.small, command),
        place.with_plugin(OURS_SQFS, options, images.small_sqfs, command),
        place.with_plugin(OURS_NEW, options, images.small_sqfs, command),
        place.without_plugin(JOIN_DIR, options, images.small, command),
        place.without_plugin(JOIN_SQFS, options, images.small_sqfs, command),
        place.with_peer(PEER_DIR, options, images.small, command),
        place.with_peer(PEER_SQFS, options, images.small_sqfs, command),
    ]


def nodes(bench: Bench, place: Place, images: Images, rounds: int) -> None:
    """Run a step of 4 tasks on each of 1 to 16 virtual nodes.

    Without ch-run: its tag is the same on all nodes, and so is this machine's /dev/shm.
    """
    for count in NODES:
        options = ["--overcommit", f"-N{count}", f"--ntasks-per-node={TASKS_PER_NODE}"]
        runs = [
            place.bare(options),
            place.with_plugin(OURS_DIR, options, images.small),
            place.with_plugin(OURS_SQFS, options, images.small_sqfs),
        ]
        bench.rounds("nodes", f"nodes={count}", runs, rounds, warm_up=1)


def reading(bench: Bench, place: Place, images: Images, rounds: int) -> None:
    """Measure time in the container: several readers read all files of a tree, or import a program's modules."""
    options = ["--overcommit", "-n1"]
    for what in ("tree", "imports"):
        for readers in READERS:
            inside = ["/usr/bin/python3", "-I", "/reader.py", what, str(readers), "", "/usr/bin/python3"]
            outside = ["/usr/bin/python3", "-I", f"{images.big}/reader.py", what, str(readers), str(images.big)]
            outside.append("/usr/bin/python3")
            runs = [
                place.bare(options, outside),
                place.with_plugin(OURS_DIR, options, images.big, inside),
                place.with_plugin(OURS_SQFS, options, images.big_sqfs, inside),
                place.with_plugin(OURS_NEW, options, images.big_sqfs, inside),
                place.with_peer(PEER_SQFS, options, images.big_sqfs, inside),
            ]
            inner = [Run(run.variant, run.cluster, run.argv, timed_inside=True) for run in runs]
            bench.rounds("reading", f"{what}, {readers} at once", inner, rounds, warm_up=0)


def alone(bench: Bench, place: Place, images: Images, rounds: int) -> None:
    """Run `true` in a container without Slurm, by each command line."""
    for case, image in (("directory", images.small), ("SquashFS", images.small_sqfs)):
        runs = [
            Run("nothing", place.plain, lambda _: ["true"]),
            Run(INTERPRETER_ALONE, place.plain, _words("/usr/bin/python3", "-I", "-S", "-c", "pass")),
            Run(COMMAND_ALONE, place.plain, _words(place.slurm_ch, "run", str(image), "--", "true")),
            Run("ch-run", place.plain, _words(*place.peer.ch_run, str(image), "--", "true")),
        ]
        bench.rounds("alone", case, runs, rounds)


def _words(*words: str) -> Callable[[str], Sequence[str]]:
    return lambda _: list(words)


def memories(bench: Bench, place: Place, images: Images) -> dict[str, dict[str, tuple[int, int]]]:
    """Return the memory in use by variant and program while 8 tasks run."""
    command = ("sleep", "1.5")
    runs = _step_runs(place, images, 8, command)
    return {run.variant: memory(run, bench.user, command, bench.account, 8) for run in runs}
