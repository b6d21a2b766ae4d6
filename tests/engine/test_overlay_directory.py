# SPDX-License-Identifier: Apache-2.0
"""What is written over an image is kept in a directory of the user's, and is there again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import SLURM_CH, settings

Good = Callable[..., str]
Fails = Callable[..., str]


@pytest.fixture
def place(world_tmp: Path, user: str, request: pytest.FixtureRequest) -> Path:
    path = world_tmp / f"kept-{abs(hash(request.node.name))}"
    path.mkdir()
    subprocess.run(["chown", f"{user}:", path], check=True)
    return path / "over,lay"


def test_it_is_there_again(good: Good, image: Path, other_sqfs: Path, place: Path) -> None:
    words = (f"--overlay={place}", image, "--")
    script = "echo new > /new; rm /marker; mkdir -p /opt/a; echo x > /opt/a/b; chmod 750 /opt; ln /new /same"
    good(*words, "sh", "-c", script)
    assert good(*words, "sh", "-c", "cat /new /same /opt/a/b; ls /marker 2>&1; stat -c %a /opt /") == (
        "new\nnew\nx\nls: /marker: No such file or directory\n750\n755\n"
    )
    # Over another image too, as far as that makes sense; and a replaced directory shows nothing of the image's.
    good(*words, "sh", "-c", "rm -r /opt; mkdir /opt")
    assert good(f"--overlay={place}", other_sqfs, "--", "sh", "-c", "cat /new; ls /opt") == "new\n"
    # What we show to a container is not what the user wrote.
    assert {path.name for path in (place / "upper").iterdir()} <= {"new", "same", "marker", "opt"}
    assert (place / "image").read_text() == f"{other_sqfs}\n"


def test_two_at_once_are_refused(good: Good, fails: Fails, user: str, image_sqfs: Path, place: Path) -> None:
    command = [
        SLURM_CH,
        "run",
        f"--overlay={place}",
        str(image_sqfs),
        "--",
        "sh",
        "-c",
        "echo ready; read x; echo $x > /n",
    ]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **settings(user))  # type: ignore[call-overload]
    assert first.stdin and first.stdout
    assert first.stdout.readline() == "ready\n"
    line = fails(31, f"--overlay={place}", image_sqfs, "--", "true")
    assert line == f"--overlay={place}: another container on this node is using it"
    first.communicate("said\n", timeout=30)
    assert good(f"--overlay={place}", image_sqfs, "--", "cat", "/n") == "said\n"


def test_refused_in_words(fails: Fails, image_sqfs: Path, image_dir: Path, place: Path) -> None:
    place.mkdir()
    for name in ("", "upper", "work"):
        (place / name).mkdir(exist_ok=True, mode=0o777)
        (place / name).chmod(0o777)
    assert "belongs to somebody else" in fails(64, f"--overlay={place}", image_sqfs, "--", "true")
    line = fails(31, "--overlay=/no/such/place", image_sqfs, "--", "true")
    assert line == "--overlay=/no/such/place: can't use the directory: No such file or directory"
    line = fails(31, f"--overlay=/proc/{os.getpid()}", image_sqfs, "--", "true")
    assert line.startswith(f"--overlay=/proc/{os.getpid()}: can't use the directory")
    line = fails(64, f"--overlay={place}", "-w", image_dir, "--", "true")
    assert line == "--write=yes: contradicts --overlay, which implies write-fake"


def test_packed_with_its_image(good: Good, user: str, image: Path, place: Path) -> None:
    good(f"--overlay={place}", image, "--", "sh", "-c", "echo new > /new; rm -r /marker /opt; ln /new /same")
    out = place.parent / "packed.sqfs"
    done = subprocess.run(
        [SLURM_CH, "pack", "-q", place, out], check=False, capture_output=True, text=True, **settings(user)
    )  # type: ignore[call-overload]
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done
    assert good(out, "--", "sh", "-c", "cat /new /same; ls /marker /opt 2>&1; busybox true") == (
        "new\nnew\nls: /marker: No such file or directory\nls: /opt: No such file or directory\n"
    )
    assert not [path for path in place.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["upper", "work", "image"])
def test_links_in_it_lead_nowhere(fails: Fails, user: str, image_sqfs: Path, place: Path, name: str) -> None:
    """A command that sees the directory puts a link there: nothing of the host's is shown, or changed."""
    theirs = place.with_name("theirs")
    for directory in (place, theirs, *(place / one for one in ("upper", "work") if one != name)):
        directory.mkdir()
    (theirs / "secret").write_text("precious")
    (place / name).symlink_to(theirs if name != "image" else theirs / "secret")
    subprocess.run(["chown", "-hR", f"{user}:", place, theirs], check=True)
    line = fails(31, f"--overlay={place}", image_sqfs, "--", "cat", "/secret")
    assert "Too many levels of symbolic links" in line
    assert [path.name for path in theirs.iterdir()] == ["secret"]
    assert (theirs / "secret").read_text() == "precious"


def test_a_fifo_in_it_is_not_waited_for(fails: Fails, user: str, image_sqfs: Path, place: Path) -> None:
    place.mkdir()
    os.mkfifo(place / "image")
    subprocess.run(["chown", "-hR", f"{user}:", place], check=True)
    assert "can't write there" in fails(31, f"--overlay={place}", image_sqfs, "--", "true")
