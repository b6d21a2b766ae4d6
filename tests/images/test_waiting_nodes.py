# SPDX-License-Identifier: Apache-2.0
"""pull=node: how long a node waits for the first one, by a clock of the test's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from slurm_ch.plugin import references


class Clock:
    """Time that goes only when somebody sleeps; `events` are what happens when, `looks` counts."""

    def __init__(self, events: dict[float, Any] | None = None) -> None:
        self.now = 0.0
        self.looks = 0
        self.events = events or {}

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def state(self) -> Any:
        """Return the latest event: when the lock was touched last, or a path, or None."""
        return next((self.events[at] for at in sorted(self.events, reverse=True) if at <= self.now), None)


def wait(monkeypatch: pytest.MonkeyPatch, clock: Clock, turn: int = 1, abandoned: bool = False) -> str | None:
    def find(_: object) -> str | None:
        clock.looks += 1
        found = clock.state()
        return found if isinstance(found, str) else None

    def beat(_: object) -> float | None:
        found = clock.state()
        return found if isinstance(found, float) else None

    store = SimpleNamespace(beat=beat, is_abandoned=lambda _: abandoned)
    monkeypatch.setattr(references, "time", clock)
    puller: Any = SimpleNamespace(find=find, store=store)
    return references._wait_for_image(puller, SimpleNamespace(manifest="sha256:1"), turn)  # type: ignore[arg-type]


@pytest.mark.row("F11")
def test_how_long_a_node_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    beats: dict[float, Any] = {at: at for at in (0.0, 10.0, 20.0, 30.0, 40.0)}
    for events, turn, abandoned, least, most in (
        ({}, 1, False, 25, 30),  # nobody has begun
        (beats, 1, False, 101, 108),  # the last sign of life was at 40
        (beats, 7, False, 107, 115),
        (beats, 1, True, 66, 71),  # somebody here can tell that they are gone
        ({**beats, 45.0: None}, 1, False, 71, 76),  # they gave up
        ({**beats, 100.5: 100.5, 110.5: 110.5, 120.0: "/image"}, 3, False, 120, 127),  # another has taken over
        ({**beats, 42.0: "/image"}, 1, False, 42, 45),
    ):
        clock = Clock(events)
        found = wait(monkeypatch, clock, turn, abandoned)
        assert found == ("/image" if "/image" in events.values() else None)
        assert least <= clock.now <= most, (events, clock.now)


def test_a_long_pull_is_looked_at_less_and_less(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock({**{float(at): float(at) for at in range(0, 3600, 10)}, 3600.0: "/image"})
    assert wait(monkeypatch, clock) == "/image"
    assert clock.now <= 3605 and clock.looks < 1000
