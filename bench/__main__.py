# SPDX-License-Identifier: Apache-2.0
"""`make bench`: everything in one run, results in bench/results/."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slurm_ch.engine import squashfs
from slurm_ch.sandbox.cluster import Cluster

from . import images as image_module
from . import launcher, peer, plot, pull, report, server, suites
from .measure import Bench, measured
from .stats import Sample, Samples

ROOT = Path(__file__).resolve().parent.parent
SUITES = ("steps", "memory", "nodes", "reading", "alone", "launcher", "server", "pull")


def main() -> None:
    """Run the suites that the command line names (all), and write the report."""
    options = _options()
    begin = time.monotonic()
    if options.again:
        _write(options.results, json.loads((options.results / "bench.json").read_text()))
        return
    options.results.mkdir(parents=True, exist_ok=True)
    if "pull" in options.suites:
        pull.write(options.results, pull.suite(options.user, max(1, options.rounds // 8)))
        if options.suites == ["pull"]:
            return
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-ch-bench-")))
        work.chmod(0o755)
        theirs = peer.fetch(work)
        installed = _install(work / "installed")
        images = image_module.make(work)
        print(f"prepared in {time.monotonic() - begin:.0f} s", flush=True)
        bench = stack.enter_context(measured(options.user))
        facts = _facts(bench, theirs)
        plugin = installed / "lib/slurm_ch/slurm_ch/native/slurm_ch.so"
        try:
            _run(bench, facts, options, _Material(work, theirs, installed, str(plugin), images))
        except (Exception, KeyboardInterrupt) as error:
            # Write the results so far: they have taken minutes.
            bench.trouble.append(f"stopped: {error!r}")
    facts["trouble"] = bench.trouble
    facts["machine"]["duration"] = f"{time.monotonic() - begin:.0f} s"
    facts["samples"] = [sample.as_dict() for sample in bench.samples]
    (options.results / "bench.json").write_text(json.dumps(facts, indent=0) + "\n")
    _write(options.results, facts)
    if any(line.startswith("stopped") for line in bench.trouble):
        raise SystemExit(bench.trouble[-1])


class _Material:
    """The images, programs and clusters of the suites."""

    def __init__(
        self, work: Path, theirs: peer.Peer, installed: Path, plugin: str, images: image_module.Images
    ) -> None:
        self.work = work
        self.peer = theirs
        self.installed = installed
        self.plugin = plugin
        self.images = images


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Measure, and write bench/results/.")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)} [all]")
    parser.add_argument("--user", default="chuser", help="who runs the steps")
    parser.add_argument("--rounds", type=int, default=24, help="rounds of the steps; other suites take a part of it")
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results")
    parser.add_argument("--again", action="store_true", help="only the report, from the last run's samples")
    options = parser.parse_args()
    unknown = set(options.suites) - set(SUITES)
    if unknown:
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    options.suites = options.suites or list(SUITES)
    return options


def _run(bench: Bench, facts: dict[str, Any], options: argparse.Namespace, material: _Material) -> None:
    images, rounds, wanted = material.images, options.rounds, options.suites
    line = f"required {material.plugin}"
    slurm_ch = str(material.installed / "bin/slurm-ch")
    if "server" in wanted:
        samples, facts["server_bytes"] = server.rounds(material.work, images.big_sqfs, max(1, rounds // 3))
        bench.samples += samples
    if "launcher" in wanted:
        alone = launcher.Launcher(material.installed / "lib/slurm_ch", options.user, images.small, images.small_sqfs)
        bench.samples += alone.rounds(rounds)
        facts["instructions"] = alone.instructions()
        facts["perf"] = launcher.perf_instructions(alone.argv(launcher.BARE))
    if not {"steps", "memory", "reading", "alone", "nodes"} & set(wanted):
        return
    with (
        Cluster(1, 4, []) as plain,
        Cluster(1, 4, [line]) as ours,
        Cluster(1, 4, [f"{line} squashfuse={material.peer.squashfuse}"]) as newer,
    ):
        place = suites.Place(plain, ours, newer, material.peer, slurm_ch)
        facts["machine"]["Slurm"] = ".".join(map(str, plain.version))
        if "steps" in wanted:
            suites.steps(bench, place, images, rounds)
        if "memory" in wanted:
            facts["memory"] = suites.memories(bench, place, images)
        if "reading" in wanted:
            suites.reading(bench, place, images, max(1, rounds // 5))
        if "alone" in wanted:
            suites.alone(bench, place, images, rounds)
    if "nodes" in wanted:
        with Cluster(max(suites.NODES), 4, []) as plain, Cluster(max(suites.NODES), 4, [line]) as ours:
            place = suites.Place(plain, ours, ours, material.peer, slurm_ch)
            suites.nodes(bench, place, images, max(1, rounds // 3))


def _install(prefix: Path) -> Path:
    """Install the checkout, so that what is measured is what users get."""
    command = ["make", "--no-print-directory", "-C", ROOT, "install", f"prefix={prefix}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)
    return prefix


def _facts(bench: Bench, theirs: peer.Peer) -> dict[str, Any]:
    banner = subprocess.run([squashfs.SERVER], check=False, capture_output=True, text=True, timeout=10).stderr
    commit = subprocess.run(
        ["git", "-C", ROOT, "describe", "--always", "--dirty"], check=False, capture_output=True, text=True
    ).stdout.strip()
    with open("/etc/os-release") as file:
        system = next(line.split("=", 1)[1].strip().strip('"') for line in file if line.startswith("PRETTY_NAME="))
    load = " ".join(f"{x:.1f}" for x in os.getloadavg())
    return {
        "machine": {
            "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "slurm_ch": commit or "unknown",
            "cores": str(len(os.sched_getaffinity(0))),
            "kernel": platform.release(),
            "system": system,
            "Python (launcher)": platform.python_version(),
            "SquashFS server": "our own: " + banner.rpartition(":")[2].strip(),
            "ch-run": f"{theirs.version}, with {theirs.squashfuse_version}",
            "CPU accounting": bench.account.how,
            "load average at the start": load,
        }
    }


def _write(results: Path, facts: dict[str, Any]) -> None:
    samples = Samples(Sample(**sample) for sample in facts["samples"])
    text = report.report(samples, facts)
    (results / "bench.md").write_text(text)
    plot.plot(samples, results / "bench.png")
    print(text[text.index("## Targets") : text.index("## Memory")])
    print(f"written: {results}/bench.md, bench.png; the samples are in bench.json there")


if __name__ == "__main__":
    main()
