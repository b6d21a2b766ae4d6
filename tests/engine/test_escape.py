# SPDX-License-Identifier: Apache-2.0
"""A command that tries to escape: as the user, as root in the container, with its own user namespace."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leftovers

from .conftest import SLURM_CH, settings


@pytest.fixture(scope="module")
def escape(world_tmp: Path) -> Path:
    """A directory with the program in it."""
    directory = world_tmp / "ways-out"
    directory.mkdir()
    source = Path(__file__).with_name("escape.c")
    command = ["cc", "-std=gnu11", "-O", "-Wall", "-Wextra", "-Werror", "-Wno-unused-result", "-static"]
    subprocess.run([*command, "-o", str(directory / "escape"), str(source)], check=True)
    return directory


@pytest.fixture
def outside(user: str) -> Iterator[int]:
    """The pid of a process of the same user on the host."""
    process = subprocess.Popen(["sleep", "60"], **{k: v for k, v in settings(user).items() if k != "extra_groups"})  # type: ignore[call-overload]
    yield process.pid
    process.kill()
    process.wait()


def test_the_tries_can_work(escape: Path, outside: int, user: str) -> None:
    done = subprocess.run(
        [str(escape / "escape"), "--control", str(outside)],
        check=True,
        capture_output=True,
        text=True,
        **settings(user),
    )  # type: ignore[call-overload]
    found = {line.split(":")[0] for line in done.stdout.splitlines()}
    assert {"ptrace", "process_vm_readv", "mem", "root/", "fd/0", "ns/user", "ns/mnt"} <= found


@pytest.mark.parametrize("ids", [(), ("-u0", "-g0")], ids=["user", "root"])
@pytest.mark.parametrize("options", [(), ("-W",), ("--userns",)], ids=["read-only", "write-fake", "user-namespaces"])
def test_no_way_out(
    escape: Path, outside: int, image: Path, ids: tuple[str, ...], options: tuple[str, ...], user: str
) -> None:
    before = leftovers.Snapshot(1)
    command = [SLURM_CH, "run", *ids, *options, "-b", f"{escape}:/mnt", str(image), "--"]
    shell = "read pids; /mnt/escape /sys/kernel/uevent_helper $pids 2>&1"
    process = subprocess.Popen(
        [*command, "sh", "-c", f"echo ready; {shell}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **settings(user),
    )  # type: ignore[call-overload]
    assert process.stdout.readline() == "ready\n"
    servers = [pid for pid, line in leftovers.ours(1).items() if "squashfuse" in line and pid not in before.processes]
    assert len(servers) == (image.suffix == ".sqfs")
    out, _ = process.communicate(f"{outside} 1 {' '.join(map(str, servers))}\n", timeout=60)
    found = out.splitlines()
    assert found.pop() == "done"
    expected = {
        (): set(),
        ("-W",): {"create:/escape", "create:/etc/escape"},
        ("--userns",): {"userns:", "fresh:proc", "write:/proc/self"},
    }[options]
    assert {line.removeprefix("nested-") for line in found} <= expected
    assert ("userns:" in found) == (options == ("--userns",))
    before.wait_until_clean()


def test_the_server_has_no_capabilities(image_sqfs: Path, user: str) -> None:
    """A server that an image controls has no more rights than the user."""
    before = leftovers.Snapshot(1)
    process = subprocess.Popen(
        [SLURM_CH, "run", str(image_sqfs), "--", "sh", "-c", "echo; read x"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **settings(user),
    )  # type: ignore[call-overload]  # fmt: skip
    process.stdout.readline()
    (server,) = [pid for pid, line in leftovers.ours(1).items() if "squashfuse" in line and pid not in before.processes]
    status = dict(line.split(":\t") for line in Path(f"/proc/{server}/status").read_text().splitlines())
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Amb")} == {0}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    process.communicate("\n", timeout=20)
    before.wait_until_clean()
