# SPDX-License-Identifier: Apache-2.0
"""Hooks and merge binds [H1, B6], with the engine called from Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import settings

SCRIPT = """
import os, sys
from slurm_ch import errors
from slurm_ch.engine import binds, container as engine
from slurm_ch.engine.caller import Caller
from slurm_ch.request import options, parsers
image, *words = sys.argv[1:]
wanted = parsers.make(image, [options.Setting("write-fake", "yes", "--write-fake")])
box = engine.Container(wanted, Caller(dict(os.environ)))
def say(container, data):
    print(data, container.image.kind, os.path.exists("/marker"), flush=True)
box.hooks_host.add("say", say, "host")
box.hooks_guest.add("say", say, "guest")
box.hooks_all.add("say", say, "all")
for word in words:
    src, dst = word.split(":")
    bind = binds.BindMount(src, dst, dst_create=True, dst_merge=True)
    box.hooks_host.add(word, lambda c, b: b.apply(c.build), bind)
try:
    engine.containerize(box)
except errors.ChError as error:
    print("error", errors.describe(error))
    sys.exit(31)
os.execv("/bin/sh", ["sh", "-c", os.environ["SHOW"]])
"""


def run(user: str, image: Path, *binds: str, show: str = "true") -> subprocess.CompletedProcess[str]:
    keywords = settings(user)
    keywords["env"] = {**keywords["env"], "SHOW": show}  # type: ignore[dict-item]
    command = [sys.executable, "-c", SCRIPT, str(image), *binds]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=30, **keywords)  # type: ignore[call-overload, no-any-return]


@pytest.mark.row("H1")
def test_h1_hooks_run_where_they_should(user: str, image_sqfs: Path) -> None:
    done = run(user, image_sqfs)
    assert done.stdout.splitlines() == ["host SquashFS False", "guest SquashFS True", "all SquashFS True"], done.stderr


@pytest.mark.row("B6")
def test_b6_one_bind_a_parent_then_links(user: str, image_sqfs: Path, world_tmp: Path) -> None:
    parent = world_tmp / "libraries"
    parent.mkdir()
    for name in ("a", "b"):
        (parent / name).write_text(f"host's {name}\n")
    show = "cat /lib/a /new/deep/b /lib/a.orig; readlink /lib/a; grep -c libraries /proc/self/mountinfo"
    setup = world_tmp / "merge"
    subprocess.run(["cp", "-a", world_tmp / "image", setup], check=True)
    (setup / "lib/a").write_text("image's\n")
    subprocess.run(["chown", "-hR", f"{user}:", setup], check=True)
    done = run(user, setup, f"{parent}/a:/lib/a", f"{parent}/b:/new/deep/b", show=show)
    out = done.stdout.splitlines()[3:]
    point = f"/mnt/{str(parent).replace('/', '_')}/a"
    assert out == ["host's a", "host's b", "image's", point, "1"], done


def test_b6_missing_source(user: str, image_sqfs: Path) -> None:
    done = run(user, image_sqfs, "/nonexistent/a:/lib/a")
    assert (
        done.stdout.splitlines()[-1]
        == "error can't bind: source not found: /nonexistent/a (there is no /nonexistent on this node)"
    )


@pytest.mark.row("B6")
def test_b6_a_directory_of_the_image_is_covered(user: str, image_sqfs: Path, world_tmp: Path) -> None:
    """An overlay can't rename a directory of its lower layer, so the bind is an ordinary one."""
    done = run(
        user,
        image_sqfs,
        "/usr/share/doc:/opt",
        show="ls -d /opt/bash /usr/share 2>/dev/null; test -L /opt || echo no link",
    )
    assert done.stdout.splitlines()[3:] == ["/opt/bash", "no link"], done


PEER = """
import os, sys
from slurm_ch.request import options, parsers
from slurm_ch.standalone import run as runner
tag = options.Setting("join-tag", "hooks", "--join-tag")
wanted = parsers.make(sys.argv[1], [options.Setting("join-ct", "3", "--join-ct"), tag])
def add(container):
    for hooks in (container.hooks_host, container.hooks_guest, container.hooks_all):
        hooks.add("say", lambda c, when: print(when, flush=True), hooks.when)
runner.run(wanted, ["cat", "/marker"], dict(os.environ), add)
"""


@pytest.mark.row("H1")
def test_h1_hooks_of_peers_that_join(user: str, image_sqfs: Path) -> None:
    """Host and guest hooks run in the winner only, the hooks for all in every peer."""
    command = [sys.executable, "-c", PEER, str(image_sqfs)]
    peers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **settings(user)) for _ in range(3)]  # type: ignore[call-overload]
    said = sorted(peer.communicate(timeout=30)[0].split() for peer in peers)
    assert said == [["all", "one"], ["all", "one"], ["host", "guest", "all", "one"]]
