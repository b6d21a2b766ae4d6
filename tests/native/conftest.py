# SPDX-License-Identifier: Apache-2.0
"""The unmodified plugin, built into a fake Slurm with sanitizers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import relay as broker_stage
from .made import SANITIZE, SPANK
from .relay import Relay

SOURCES = sorted(str(path) for folder in ("plugin", "common") for path in (SPANK / folder).glob("*.c"))
CH_JOIN_SOURCES = sorted(str(path) for folder in ("ch-join", "common") for path in (SPANK / folder).glob("*.c"))

Fake = Callable[..., "subprocess.CompletedProcess[str]"]


def build(to: Path, *flags: str) -> Path:
    """Build the fake Slurm at `to`."""
    command = [
        "cc",
        *SANITIZE,
        *flags,
        "-rdynamic",
        f"-I{SPANK}/plugin",
        "-o",
        str(to),
        str(Path(__file__).parent / "fake.c"),
        *SOURCES,
        "-ldl",
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return to


@pytest.fixture(scope="session")
def fakes(world_tmp: Path) -> dict[str, Path]:
    """Both ways of putting ch-join in front: Slurm's function for it, and the first word replaced."""
    return {"argv0": build(world_tmp / "fake"), "api": build(world_tmp / "fake-api", "-DWITH_API")}


@pytest.fixture
def fake(fakes: dict[str, Path]) -> Fake:
    """Run the fake Slurm, with no other environment than the given one."""

    def run(*words: object, way: str = "argv0", name: str = "srun", **env: str) -> subprocess.CompletedProcess[str]:
        command = [name, *map(str, words)]
        environment = {"ASAN_OPTIONS": "detect_leaks=1", "PATH": "/usr/bin:/bin", **env}
        return subprocess.run(
            command, executable=fakes[way], check=False, capture_output=True, text=True, timeout=60, env=environment,
            stdin=subprocess.DEVNULL, errors="replace",
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def ch_join_sanitized(world_tmp: Path) -> Path:
    """ch-join with sanitizers, to test how its parsers take nonsense."""
    to = world_tmp / "ch-join-sanitized"
    subprocess.run(["cc", *SANITIZE, "-o", to, *CH_JOIN_SOURCES], check=True, capture_output=True)
    return to


def variables(output: str) -> dict[str, str]:
    """Return the NUL-separated variables that `fake submit` prints."""
    return dict(entry.split("=", 1) for entry in output.split("\0") if "=" in entry)


@pytest.fixture(scope="session")
def relay_program(world_tmp: Path) -> Path:
    """ch-relay with sanitizers."""
    return broker_stage.build(world_tmp / "ch-relay-sanitized")


@pytest.fixture
def relay(relay_program: Path, world_tmp: Path, request: pytest.FixtureRequest) -> Iterator[Relay]:
    """A broker that knows the stand-ins; ends with the process that it watches."""
    place = world_tmp / f"relay-{abs(hash(request.node.name))}"
    place.mkdir(mode=0o755)
    broker_stage.make_room(relay_program, place / "room")
    host = broker_stage.make_host(place / "host")
    # Entries that are no absolute paths on the host don't count.
    path = f":.:relative:{host}:/usr/bin:/bin"
    running = Relay(
        relay_program, place / "room", path, {**broker_stage.ASAN, **broker_stage.HOST}, ",".join(broker_stage.COMMANDS)
    )
    yield running
    running.stop()
