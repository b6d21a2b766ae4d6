# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' statistics and tables; nothing is run."""

from __future__ import annotations

import pytest

from bench import launcher, report, suites
from bench.stats import FAILED, HUNG, OK, Sample, Samples, Spread, ratio, slope, spread


def steps(tasks: int, variant: str, walls: list[float], cpu: float = 0.0) -> list[Sample]:
    return [Sample("steps", f"N={tasks}", variant, number, wall, cpu) for number, wall in enumerate(walls)]


def test_spread_is_median_and_quartiles() -> None:
    assert spread([]) is None
    assert spread([5.0]) == Spread(5.0, 5.0, 5.0, 1)
    assert spread([4, 1, 3, 2, 5]) == Spread(3, 2, 4, 5)


def test_added_is_paired_by_round() -> None:
    found = Samples([*steps(1, "a", [1.0, 20.0, 3.0]), *steps(1, "b", [1.5, 20.5, 3.5])]).added(
        "steps", "N=1", "b", "a"
    )
    assert found == Spread(0.5, 0.5, 0.5, 3)


def test_bad_rounds_are_counted_and_in_no_median() -> None:
    good = Sample("s", "c", "v", 0, 1.0, 0.1, OK)
    bad = [Sample("s", "c", "v", 1, 30.0, 9.0, HUNG), Sample("s", "c", "v", 2, 0.1, 9.0, FAILED)]
    samples = Samples([good, *bad, Sample("s", "c", "base", 1, 1.0, 0.1)])
    assert samples.bad("s", "c", "v") == (1, 1)
    assert samples.values("s", "c", "v", "wall") == Spread(1.0, 1.0, 1.0, 1)
    assert samples.added("s", "c", "v", "base") is None


def test_no_cpu_is_no_zero() -> None:
    assert Samples([Sample("s", "c", "v", 0, 1.0, None)]).values("s", "c", "v", "cpu") is None


def test_ratio_and_slope() -> None:
    assert ratio(Spread(1, 1, 1, 1), Spread(4, 4, 4, 1)) == 0.25
    assert ratio(None, Spread(4, 4, 4, 1)) is None
    assert ratio(Spread(1, 1, 1, 1), Spread(0, 0, 0, 1)) is None
    assert slope([(1, 10), (2, 12), (3, 14)]) == 2
    assert slope([(1, 10)]) is None


@pytest.mark.parametrize(("ours", "says"), [(1.02, "0.20 <= 0.35: yes"), (1.05, "0.50 <= 0.35: **no**")])
def test_the_report_says_whether_a_target_is_met(ours: float, says: str) -> None:
    samples = [
        *steps(64, suites.BARE, [1.0, 1.0]),
        *steps(64, suites.OURS_DIR, [ours, ours]),
        *steps(64, suites.PEER_DIR, [1.1, 1.1]),
    ]
    text = report.report(Samples(samples), {"machine": {"cores": "2"}, "trouble": ["a | b"]})
    line = next(line for line in text.splitlines() if "N=64, slurm_ch, directory" in line)
    assert says in line
    assert "| cores | 2 |" in text
    assert "- a | b" in text


def test_the_report_shows_failed_and_hung_rounds() -> None:
    samples = [*steps(1, suites.BARE, [1.0]), Sample("steps", "N=1", suites.PEER_DIR, 0, 30.0, 1.0, HUNG)]
    text = report.report(Samples(samples), {})
    assert any(suites.PEER_DIR in line and line.endswith("| 0 / 1 |") for line in text.splitlines())


def test_cpu_per_task_is_the_slope_over_bare() -> None:
    samples = []
    for tasks in suites.TASKS:
        samples += steps(tasks, suites.BARE, [1.0], cpu=0.1 * tasks)
        samples += steps(tasks, suites.OURS_DIR, [1.0], cpu=0.02 + 0.1005 * tasks)
    assert report.cpu_per_task(Samples(samples), suites.OURS_DIR) == pytest.approx(0.0005)


@pytest.mark.parametrize(("more", "says"), [(0.0, "yes"), (0.1, "**no**")])
def test_a_start_is_compared_with_the_interpreters_own(more: float, says: str) -> None:
    samples = []
    for case in ("directory", "SquashFS"):
        samples.append(Sample("alone", case, suites.INTERPRETER_ALONE, 0, 0.010, 0.0))
        samples.append(Sample("alone", case, suites.COMMAND_ALONE, 0, 0.022 * (1 + more), 0.0))
    ours = 0.013 * (1 + more)
    for variant, cpu in ((launcher.BARE, 0.010), (launcher.DIRECTORY, ours), (launcher.SQUASHFS, ours)):
        samples.append(Sample("launcher", "alone", variant, 0, 1.0, cpu))
    text = report.report(Samples(samples), {})
    found = [line for line in text.splitlines() if "/ bare interpreter," in line]
    assert len(found) == 4
    assert all(line.endswith(f": {says} |") for line in found)
    assert sum("single command" in line and "<= 2.20" in line for line in found) == 2
    assert sum("launcher" in line and "<= 1.30" in line for line in found) == 2
