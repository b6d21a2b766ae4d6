# SPDX-License-Identifier: Apache-2.0
"""Devices among the rest: named joins, imports, hooks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .cdi import FOLDER, LIBRARY, Write, hook, library_mount, spec
from .conftest import SLURM_CH, Run, settings

Good = Callable[..., str]
Fails = Callable[..., str]


# ---- Named joins ----


def peers(user: str, count: int, *words: object) -> list[subprocess.CompletedProcess[str]]:
    command = [SLURM_CH, "run", f"--join-ct={count}", "--join-tag=devices", *map(str, words)]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings(user))  # type: ignore[call-overload]
        for _ in range(count)
    ]
    return [
        subprocess.CompletedProcess(command, peer.returncode, *ended)
        for peer in started
        for ended in [peer.communicate(timeout=30)]
    ]


def test_the_winner_mounts_and_all_get_the_environment(user: str, write: Write, glibc: Path, driver: Path) -> None:
    path = write(
        spec(
            {
                "env": ["FROM=spec"],
                "mounts": [library_mount(driver)],
                "hooks": [hook("nvidia-cdi-hook", "update-ldcache", "--folder", FOLDER), hook("x", "y")],
            }
        )
    )
    show = f"echo $FROM $FAKE $(grep -c {FOLDER}/{LIBRARY} /proc/self/mountinfo) $(readlink /proc/self/ns/mnt); program"
    done = peers(user, 4, "--device", path, glibc, "--", "sh", "-c", show)
    assert len({peer.stdout for peer in done}) == 1, done
    words = done[0].stdout.split()
    assert (words[:3], words[4:]) == (["spec", "0", "1"], ["answer", "42"])
    # Once a container, not once a peer.
    assert sorted(peer.stderr.count("not run") for peer in done) == [0, 0, 0, 1]


@pytest.mark.parametrize(("what", "code"), [("/none.json", 64), ("v.com/none", 64)])
def test_a_join_that_cannot_have_its_device_says_so_once(user: str, image_sqfs: Path, what: str, code: int) -> None:
    done = peers(user, 4, "--device", what, image_sqfs, "--", "true")
    assert {peer.returncode for peer in done} == {code}
    assert sorted(peer.stderr.count("error: ") for peer in done) == [0, 0, 0, 1]


# ---- Off the hot path, and all of it before the first namespace ----

IMPORTS = """
import os, sys
from slurm_ch import linux
from slurm_ch.engine import container as engine
from slurm_ch.engine.caller import Caller
from slurm_ch.request import options, parsers
seen = []
def unshare(flags, original=linux.unshare):
    seen.append(set(sys.modules))
    original(flags)
linux.unshare = unshare
settings = [options.Setting("device", path, "--device") for path in sys.argv[2:]]
box = engine.Container(parsers.make(sys.argv[1], settings), Caller(dict(os.environ)))
engine.containerize(box)
print(sorted(set(sys.modules) - seen[0]), sorted({"json", "yaml", "slurm_ch.devices.reader", "slurm_ch.engine.device_edits"} & seen[0]))
"""


def imports(user: str, *words: object) -> str:
    command = [sys.executable, "-c", IMPORTS, *map(str, words)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30, **settings(user))  # type: ignore[call-overload]
    return done.stdout.strip()


def test_nothing_is_imported_inside(user: str, write: Write, glibc_sqfs: Path, driver: Path) -> None:
    asked = [hook("nvidia-cdi-hook", "update-ldcache", "--folder", FOLDER)]
    plain = write(spec({"mounts": [library_mount(driver)], "hooks": asked, "deviceNodes": [{"path": "/dev/null"}]}))
    yaml = write("{cdiVersion: 0.5.0, kind: a.b/c, devices: [{name: a}]}", "a.yaml")
    assert imports(user, glibc_sqfs) == "[] []"
    assert imports(user, glibc_sqfs, plain) == "[] ['json', 'slurm_ch.devices.reader', 'slurm_ch.engine.device_edits']"
    assert (
        imports(user, glibc_sqfs, plain, yaml)
        == "[] ['json', 'slurm_ch.devices.reader', 'slurm_ch.engine.device_edits', 'yaml']"
    )


# ---- Hooks [H1] ----

HOOKS = """
import os, sys
from slurm_ch import errors
from slurm_ch.engine import container as engine
from slurm_ch.engine.caller import Caller
from slurm_ch.request import options, parsers
wanted = parsers.make(sys.argv[1], [options.Setting("device", sys.argv[2], "--device")])
box = engine.Container(wanted, Caller(dict(os.environ)))
def host(container, data):
    os.close(os.open("lib/bound", os.O_RDONLY, dir_fd=os.open(container.build.root, os.O_RDONLY)))
    print("host", flush=True)
def guest(container, data):
    print("guest", open("/etc/seen").read().strip(), flush=True)
box.hooks_host.add("look", host)
box.hooks_guest.add("look", guest)
try:
    engine.containerize(box)
except errors.ChError as error:
    print(errors.describe(error))
"""


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo updated > /etc/seen", ["host", "guest updated"]),
        ("exit 7", ["host", "the image's /sbin/ldconfig failed with status 7:"]),
    ],
)
def test_h1_hooks_see_what_devices_did(
    user: str, write: Write, with_ldconfig: Callable[[str], Path], driver: Path, script: str, said: list[str]
) -> None:
    """Host hooks after the mounts, guest hooks after the cache, and none after a failure."""
    mounts = [{"hostPath": str(driver / "library.c"), "containerPath": "/lib/bound"}]
    path = write(spec({"mounts": mounts, "hooks": [hook("nvidia-cdi-hook", "update-ldcache")]}))
    command = [sys.executable, "-c", HOOKS, str(with_ldconfig(f"#!/bin/sh\n{script}\n")), str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30, **settings(user))  # type: ignore[call-overload]
    assert [line.strip() for line in done.stdout.splitlines()] == said, done


def test_a_winner_whose_ldconfig_fails_takes_all_with_it(
    user: str, write: Write, with_ldconfig: Callable[[str], Path]
) -> None:
    path = write(spec({"hooks": [hook("nvidia-cdi-hook", "update-ldcache")]}))
    done = peers(user, 4, "--device", path, with_ldconfig("#!/bin/sh\nexit 7\n"), "--", "true")
    assert {peer.returncode for peer in done} == {31}
    assert sorted(peer.stderr.count("failed with status 7") for peer in done) == [0, 0, 0, 1]


def test_peers_that_see_another_spec_than_the_winner(
    user: str, write: Write, image_sqfs: Path, world_tmp: Path
) -> None:
    """Each peer works out its own environment: what is mounted is the winner's."""
    here, there = world_tmp / "here", world_tmp / "there"
    for place in (here, there):
        place.mkdir(exist_ok=True)
        (place / "own.json").write_text(json.dumps(spec({"env": [f"PLACE={place.name}"]})))
    command = [
        SLURM_CH,
        "run",
        "--join-ct=2",
        "--join-tag=places",
        "-d",
        "./own.json",
        image_sqfs,
        "--",
        "sh",
        "-c",
        "echo $PLACE",
    ]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **{**settings(user), "cwd": place})  # type: ignore[call-overload]
        for place in (here, there)
    ]
    assert [peer.communicate(timeout=30)[0] for peer in started] == ["here\n", "there\n"]


def test_a_mount_out_of_reach_is_said(run: Run, write: Write, image: Path, driver: Path, world_tmp: Path) -> None:
    """A socket in root's directory, which a vendor's tool has found as root: the rest is of use without."""
    closed = world_tmp / "closed"
    closed.mkdir(mode=0o700, exist_ok=True)
    (closed / "socket").touch()
    mounts = [
        {"hostPath": str(closed / "socket"), "containerPath": "/run/vendor/socket"},
        {"hostPath": str(closed / "deep/er"), "containerPath": "/run/vendor/deep"},
        {"hostPath": str(driver / LIBRARY), "containerPath": "/opt/data", "options": ["ro"]},
    ]
    path = write(spec({"mounts": mounts, "env": ["VENDOR=1"]}))
    done = run("--device", path, image, "--", "sh", "-c", "ls /opt/data /run/vendor/socket 2>/dev/null; echo $VENDOR")
    assert done.stdout == "/opt/data\n1\n"
    assert sorted(done.stderr.splitlines()) == [
        f"slurm-ch: warning: {path}: containerEdits.mounts[{index}]: {closed}/{name} is not mounted: you can't reach it: Permission denied"
        for index, name in enumerate(("socket", "deep/er"))
    ]
