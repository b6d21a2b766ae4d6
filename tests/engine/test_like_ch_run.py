# SPDX-License-Identifier: Apache-2.0
"""The same command line with Debian's ch-run and with ours: what the command sees.

DIFFERENCES has all that is not the same; each is argued in docs/internals/parity.rst.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_images import squash

from .conftest import settings

THEIRS = ["/usr/bin/ch-run"]
OURS = [sys.executable, "-c", "from slurm_ch.cli.main import ch_run; ch_run()"]

# A section for each thing that a command can see of its container.
LOOK = """
section() { printf '\\001%s\\n' "$1"; }
section cwd; pwd
section ids; id -u; id -g; grep -E '^(Uid|Gid|Groups|NoNewPrivs|Seccomp):' /proc/self/status
section umask; umask
section passwd; cat /etc/passwd
section group; cat /etc/group
section root; ls -a / | grep -v '^\\.*$'
section home; ls -d "$HOME"
section descriptors; for fd in /proc/$$/fd/*; do echo ${fd##*/}; done
section writeable; for d in / /dev/shm /proc /sys /tmp /mnt /home; do test -w $d && echo $d; done
section mounts; cat /proc/self/mountinfo
section environment; env -0 | tr '\\n\\0' ' \\n'
"""


@pytest.fixture(scope="module")
def images(world_tmp: Path, image_dir: Path) -> dict[str, Path]:
    """An image of our own to write to, and the same as SquashFS."""
    directory = world_tmp / "like"
    subprocess.run(["cp", "-a", image_dir, directory], check=True)
    (directory / "ch").mkdir()
    (directory / "ch/environment").write_text("IMAGES=own\nPATH=$PATH:/opt/bin\n")
    storage = world_tmp / "like-storage"
    (storage / "img").mkdir(parents=True)
    subprocess.run(["cp", "-a", directory, storage / "img/named+1"], check=True)
    return {"directory": directory, "SquashFS": squash(directory, world_tmp / "like.sqfs")}


def see(command: list[str], words: list[str], user: str, world_tmp: Path) -> dict[str, dict[str, str]]:
    """Return what a command sees, by section and by what each line is about."""
    env = {**settings(user)["env"], "KEEP": "1", "DROP": "1", "CH_RUN_TEST": "x"}  # type: ignore[dict-item]
    done = subprocess.run(
        [*command, *words, "--", "sh", "-c", LOOK], check=False, capture_output=True, text=True, timeout=30,
        stdin=subprocess.DEVNULL, **{**settings(user), "env": env, "cwd": world_tmp},  # type: ignore[call-overload]
    )  # fmt: skip
    assert done.returncode == 0, (done.args, done.stderr)
    seen: dict[str, dict[str, str]] = {"errors": {"text": done.stderr}}
    for part in done.stdout.split("\1")[1:]:
        name, _, text = part.partition("\n")
        lines = text.splitlines()
        if name == "mounts":
            seen[name] = mounts(lines)
        elif name == "environment":
            seen[name] = dict(line.partition("=")[::2] for line in lines)
        else:
            seen[name] = {name: "\n".join(lines)}
    return seen


def mounts(lines: list[str]) -> dict[str, str]:
    """Return each mount point's own options and what is mounted, without irrelevant fields."""
    found = {}
    for line in lines:
        fields = line.split()
        dash = fields.index("-")
        options = set(fields[5].split(",")) - {"relatime"}
        found[fields[4]] = f"{' '.join(sorted(options))} {fields[dash + 1]}"
    return found


def see_both(user: str, world_tmp: Path, words: list[str]) -> set[str]:
    """Return the differences, as `section what: theirs / ours`."""
    theirs, ours = (see(command, words, user, world_tmp) for command in (THEIRS, OURS))
    found = set()
    for section in theirs:
        for what in set(theirs[section]) | set(ours[section]):
            values = [seen[section].get(what) for seen in (theirs, ours)]
            if values[0] != values[1]:
                found.add(f"{section} {what}: {values[0]} / {values[1]}".replace("\n", " "))
    return found


def version() -> tuple[int, int]:
    """Return Debian's ch-run's version; it asks for USER whatever it is asked."""
    done = subprocess.run([*THEIRS, "--version"], check=True, capture_output=True, text=True, env={"USER": "x"})
    major, minor = (re.findall(r"\d+", done.stdout + done.stderr))[:2]
    return int(major), int(minor)


# What is not the same: since which version of ch-run, on which images, what.
# docs/internals/parity.rst says why, by the words in brackets.
NEVER, EVER = (0, 0), (99, 0)
BOTH = ("directory", "SquashFS")
DIFFERENCES = (
    # [The caller's directory]
    (NEVER, EVER, BOTH, r"cwd cwd: / / TMP"),
    (NEVER, EVER, BOTH, r"environment PWD: / / TMP"),
    # [No leaks]
    (NEVER, EVER, ("SquashFS",), r"descriptors descriptors: 0 1 2 3 4 / 0 1 2 3"),
    # [Read-only binds]
    (NEVER, EVER, BOTH, r"mounts (/dev|/sys|/etc/hosts|/etc/machine-id|/etc/resolv\.conf): rw (\S+) / ro \2"),
    (NEVER, EVER, BOTH, r"mounts /proc: ((?:nodev noexec nosuid )?)rw proc / \1ro proc"),
    # [Nothing on the host's /tmp]
    (NEVER, EVER, BOTH, r"mounts /etc/(passwd|group): rw \S+ / nodev nosuid rw tmpfs"),
    (NEVER, EVER, BOTH, r"mounts /tmp: rw tmpfs / nodev nosuid rw tmpfs"),
    (NEVER, EVER, ("directory",), r"mounts TMP(/like.*)?: .* / None"),
    # [No setuid, no devices]
    (NEVER, EVER, ("directory",), r"mounts /: (ro|rw) (\S+) / nodev nosuid \1 \2"),
    # [Our server]
    (NEVER, EVER, ("SquashFS",), r"mounts /: nodev nosuid ro fuse / nodev nosuid ro fuse\.slurm_ch"),
    # What ch-run itself does otherwise since.
    (NEVER, (0, 38), BOTH, r"environment HOME: \S+ / /root"),
    (NEVER, (0, 38), BOTH, r"home home:  / /root"),
    (NEVER, (0, 38), BOTH, r"errors text: ls: \S+ No such file or directory  / "),
    (NEVER, (0, 38), BOTH, r"mounts /: .*ro \S+ / rw overlay"),
    (NEVER, (0, 38), BOTH, r"mounts /home: rw tmpfs / None"),
)  # fmt: skip

CASES = (
    [], ["-t", "-c", "/srv"], ["-b", "/usr/share:/mnt", "-b", "/opt"], ["-u", "0", "-g", "0"], ["-u7", "-g8", "--no-passwd"], ["--home"],
    ["--set-env=A=$KEEP:$NOPE:x", "--unset-env=D*", "--set-env=B='q'", "--set-env"], ["--env-no-expand", "--set-env=A=$KEEP"],
    ["--unset-env=*", "--cd=mnt"],
)  # fmt: skip


@pytest.mark.parametrize("kind", BOTH)
def test_a_command_sees_the_same(images: dict[str, Path], kind: str, user: str, world_tmp: Path) -> None:
    cases = [[*words, str(images[kind])] for words in CASES]
    if kind == "directory":
        # Options after the image, an image by name, and one that is written to.
        cases += [
            ["-s", f"{world_tmp}/like-storage", "named:1", "-t"],
            ["-w", "-b", "/usr/share:/made/here", str(images[kind])],
        ]
    found = set().union(*(see_both(user, world_tmp, words) for words in cases))
    found = {line.replace(str(world_tmp), "TMP") for line in found}
    known = [text for since, until, kinds, text in DIFFERENCES if since <= version() < until and kind in kinds]
    assert {line for line in found if not any(re.fullmatch(text, line) for text in known)} == set()
    # What has become the same has no place in the list.
    assert {text for text in known if not any(re.fullmatch(text, line) for line in found)} == set()


# The exit status: of 0.31, of 0.45, of ours. [Exit codes]
STATUS = [
    (["IMG", "--", "true"], 0, 0, 0),
    (["IMG", "--", "sh", "-c", "exit 42"], 42, 42, 42),
    (["IMG", "--", "sh", "-c", "kill -9 $$"], -9, -9, -9),
    (["SQFS", "--", "sh", "-c", "exit 42"], 42, 42, 42),
    (["SQFS", "--", "sh", "-c", "kill -9 $$"], 1, 137, -9),
    (["IMG", "--", "nothing"], 1, 49, 49),
    (["IMG", "--", "/etc"], 1, 49, 49),
    (["IMG"], 1, 31, 31),
    (["/nonexistent", "--", "true"], 1, 31, 31),
    (["-c", "/nonexistent", "IMG", "--", "true"], 1, 31, 31),
    (["-b", "/nonexistent:/mnt", "IMG", "--", "true"], 1, 31, 31),
    (["-b", "/usr:/no/where", "IMG", "--", "true"], 1, 31, 31),
    (["-b", ":/mnt", "IMG", "--", "true"], 1, 31, 31),
    (["-u", "x", "IMG", "--", "true"], 1, 31, 31),
    (["--set-env=/nonexistent", "IMG", "--", "true"], 1, 31, 31),
    (["--set-env==x", "IMG", "--", "true"], 1, 31, 31),
    (["--unset-env=", "IMG", "--", "true"], 1, 31, 31),
    (["--no-such-option", "IMG", "--", "true"], 64, 64, 64),
    (["-m", "/nonexistent", "SQFS", "--", "true"], 1, 31, 31),
    (["IMG", "-t", "--", "true"], 0, 0, 0),
    (["IMG", "true"], 0, 0, 0),
    (["--unset=A", "--env", "IMG", "--", "true"], 0, 0, 0),
]


def test_exit_status(images: dict[str, Path], user: str) -> None:
    column = {(0, 31): 1, (0, 45): 2}.get(version())
    paths = {"IMG": str(images["directory"]), "SQFS": str(images["SquashFS"])}
    for row in STATUS:
        words = [paths.get(word, word) for word in row[0]]
        status = []
        for command in (THEIRS, OURS):
            done = subprocess.run(
                [*command, *words], check=False, capture_output=True, text=True, timeout=30, **settings(user)
            )  # type: ignore[call-overload]
            status.append(done.returncode)
            assert "Traceback" not in done.stderr
        assert status[1] == row[3], row
        assert column is None or status[0] == row[column], row


def test_an_unset_path_and_the_versions_form(images: dict[str, Path], user: str) -> None:
    env = {name: text for name, text in settings(user)["env"].items() if name != "PATH"}  # type: ignore[attr-defined]
    show = ["--", "/bin/sh", "-c", "tr '\\0' '\\n' < /proc/$$/environ | grep -c ^PATH="]
    for command in (THEIRS, OURS):
        done = subprocess.run(
            [*command, str(images["directory"]), *show], check=False, capture_output=True, text=True, timeout=30,
            **{**settings(user), "env": env},  # type: ignore[arg-type, call-overload]
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (1, "0\n"), done
        done = subprocess.run(
            [*command, "--version"], check=True, capture_output=True, text=True, timeout=30, **settings(user)
        )  # type: ignore[call-overload]
        assert re.fullmatch(r"\d+(\.\w+)+[\w.+~-]*\n", done.stdout + done.stderr), done
