# SPDX-License-Identifier: Apache-2.0
"""Statistics over samples: pure functions, from which all tables are made."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

OK = "ok"
FAILED = "failed"  # a status other than 0
HUNG = "hung"  # killed at its time limit


@dataclass(frozen=True)
class Sample:
    """One run of one variant: seconds of wall time and of CPU (user and system, everything on the node)."""

    suite: str
    case: str
    variant: str
    round: int
    wall: float
    cpu: float | None
    status: str = OK

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles of `count` values."""

    median: float
    low: float
    high: float
    count: int


def spread(values: Iterable[float]) -> Spread | None:
    """Return median and quartiles, or None of no values at all."""
    found = sorted(values)
    if not found:
        return None
    if len(found) == 1:
        return Spread(found[0], found[0], found[0], 1)
    low, median, high = statistics.quantiles(found, n=4, method="inclusive")
    return Spread(median, low, high, len(found))


class Samples:
    """All samples of a run."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self.all = list(samples)

    def of(self, suite: str, case: str, variant: str) -> dict[int, Sample]:
        """Return the good samples of one variant by their round."""
        return {
            s.round: s
            for s in self.all
            if (s.suite, s.case, s.variant, s.status) == (suite, case, variant, OK)
        }  # fmt: skip

    def bad(self, suite: str, case: str, variant: str) -> tuple[int, int]:
        """Return how many rounds failed and how many hung."""
        states = [s.status for s in self.all if (s.suite, s.case, s.variant) == (suite, case, variant)]
        return states.count(FAILED), states.count(HUNG)

    def cases(self, suite: str) -> list[str]:
        return list(dict.fromkeys(s.case for s in self.all if s.suite == suite))

    def variants(self, suite: str, case: str) -> list[str]:
        return sorted({s.variant for s in self.all if (s.suite, s.case) == (suite, case)})

    def values(self, suite: str, case: str, variant: str, what: str) -> Spread | None:
        """Return the spread of `what` ("wall" or "cpu"), in seconds."""
        found = self.of(suite, case, variant).values()
        return spread(v for s in found if (v := getattr(s, what)) is not None)

    def added(self, suite: str, case: str, variant: str, base: str, what: str = "wall") -> Spread | None:
        """Return the spread of `variant` minus `base`, taken within each round."""
        theirs, ours = self.of(suite, case, base), self.of(suite, case, variant)
        return spread(differences(ours, theirs, lambda s: getattr(s, what)))


def differences(
    ours: Mapping[int, Sample], theirs: Mapping[int, Sample], value: Callable[[Sample], float | None]
) -> list[float]:
    """Return our value minus theirs for each round that both have."""
    found = []
    for number in sorted(ours.keys() & theirs.keys()):
        mine, other = value(ours[number]), value(theirs[number])
        if mine is not None and other is not None:
            found.append(mine - other)
    return found


def ratio(ours: Spread | None, theirs: Spread | None) -> float | None:
    """Return the ratio of the medians, ours / theirs; None if one is missing or theirs is 0."""
    if ours is None or theirs is None or theirs.median <= 0:
        return None
    return ours.median / theirs.median


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the least-squares slope through (x, y), or None for fewer than two x."""
    if len({x for x, _ in points}) < 2:
        return None
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope
