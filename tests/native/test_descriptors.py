# SPDX-License-Identifier: Apache-2.0
"""Which descriptors a container's helpers get, and that they can't influence the tasks.

With the plugin under a fake Slurm, the real launcher and an image that means
harm: its ldconfig, which CDI specs ask for, runs before any command.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from slurm_ch import agreement, paths
from tests import leftovers
from tests.command import SLURM_CH
from tests.small_images import make_image, squash

from .made import write_script

SECRET = "what-the-image-must-not-read"
STREAMS = {"0", "1", "2"}

Step = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def place(world_tmp: Path, user: str) -> Path:
    """A directory of the user, which containers see in /tmp."""
    directory = world_tmp / "forging"
    directory.mkdir()
    os.chown(directory, pwd.getpwnam(user).pw_uid, -1)
    return directory


@pytest.fixture(scope="module")
def forging(world_tmp: Path, place: Path) -> Path:
    """An image whose ldconfig forges tickets."""
    root = make_image(world_tmp / "forger", "forger")
    (root / "sbin").mkdir()
    program = write_script(place / "program", f"#!/bin/sh\ntouch {place}/escaped\n")
    words = ["cc", "-std=gnu11", "-O", "-Wall", "-Wextra", "-Werror", "-static"]
    words += [f'-DREPORT="{place}/report"', f'-DPROGRAM="{program}"']
    source = Path(__file__).with_name("forge.c")
    subprocess.run([*words, "-o", str(root / "sbin/ldconfig"), str(source)], check=True)
    return squash(root, world_tmp / "forger.sqfs")


@pytest.fixture(scope="module")
def specs(world_tmp: Path) -> Path:
    """A directory with the CDI spec of a device whose hook brings the linker's cache up to date."""
    directory = world_tmp / "forging-cdi"
    directory.mkdir()
    hook = {
        "hookName": "createContainer",
        "path": "/usr/bin/nvidia-cdi-hook",
        "args": ["nvidia-cdi-hook", "update-ldcache", "--folder", "/lib"],
    }
    edits = {"hooks": [hook]}
    devices = [{"name": "0", "containerEdits": edits}]
    spec = {"cdiVersion": "0.6.0", "kind": "fake.test/gpu", "devices": devices}
    (directory / "fake.json").write_text(json.dumps(spec))
    return directory


@pytest.fixture(scope="module")
def keys(world_tmp: Path) -> Path:
    """A program that holds a key in its session keyring, or looks for it."""
    program = world_tmp / "keys"
    words = ["cc", "-O", "-Wall", "-Wextra", "-Werror", "-static", "-o", str(program)]
    subprocess.run([*words, str(Path(__file__).with_name("keys.c"))], check=True)
    return program


@pytest.fixture
def step(fakes: dict[str, Path], user: str, keys: Path) -> Step:
    """Start a step of one task under the fake Slurm, with the real launcher, as an ordinary user."""
    entry = pwd.getpwnam(user)

    def start(
        request: str, *command: str, path: str = "/usr/bin:/bin", keep: Sequence[int] = (), tasks: int = 1
    ) -> subprocess.Popen[str]:
        site = f"python={agreement.DEFAULT_PYTHON}\nlauncher={paths.LAUNCHER}\nch_join={paths.CH_JOIN}"
        environment = {
            "ASAN_OPTIONS": "detect_leaks=0", "PATH": path, "SLURM_LOCALID": "0", "SLURM_JOB_ID": "1",
            "SLURM_STEP_ID": "0", "SECRET": SECRET, "FAKE_SITE": site, "SLURM_CH_REQUEST": request,
        }  # fmt: skip
        return subprocess.Popen(
            [keys, "hold", fakes["api"], "remote", str(tasks), "0", *command], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd="/",
            user=entry.pw_uid, group=entry.pw_gid, extra_groups=[], pass_fds=keep,
        )  # fmt: skip

    return start


def end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return the rest of the output; not by communicate, which loses what readline has buffered."""
    with process:
        return process.stdout.read(), process.stderr.read()  # type: ignore[union-attr]


def reported(place: Path) -> tuple[dict[str, str], str]:
    """Return the descriptors that ldconfig had, by number, and the whole report."""
    text = (place / "report").read_text()
    return dict(re.findall(r"^(\d+) (.*)$", text, re.MULTILINE)), text


@pytest.mark.parametrize("more", ["", "relay=no\n", "relay=yes\n", "uid=0\ngid=0\n"])
def test_an_image_s_ldconfig_has_nothing_to_forge_with(
    step: Step, forging: Path, specs: Path, place: Path, more: str
) -> None:
    """A hook once had the tasks' socket: a ticket that it forged ran a program on the host."""
    (place / "report").unlink(missing_ok=True)
    request = f"image={forging}\ndevice=fake.test/gpu\ncdi-dirs={specs}\nunset-env=*\n{more}"
    before = leftovers.Snapshot(1)
    out, err = end(step(request, "/bin/sh", "-c", "echo ${FORGED-good}; cat /marker"))
    before.wait_until_clean()
    assert (not (place / "escaped").exists(), out, err) == (True, "good\nforger\ntask: 0\n", "")
    descriptors, text = reported(place)
    assert set(descriptors) == STREAMS, text
    assert descriptors["0"] == "/dev/null"
    assert {descriptors[n].partition(":")[0] for n in "12"} == {"/memfd"}
    assert SECRET not in text
    assert "key found" not in text
    # The launcher waits for the hook, in the same user namespace.
    assert "parent" not in text


def test_a_step_ends_with_its_streams(step: Step, forging: Path) -> None:
    """The server once had task 0's standard error, so that a background process kept the step from ending."""
    before = leftovers.Snapshot(1)
    process = step(f"image={forging}\n", "/bin/sh", "-c", "sleep 30 > /dev/null 2>&1 & echo $!")
    pid = int(process.stdout.readline())  # type: ignore[union-attr]
    try:
        assert end(process) == ("task: 0\n", "")
        assert only("squashfuse", before)
    finally:
        os.kill(pid, signal.SIGKILL)
    before.wait_until_clean()


def only(pattern: str, before: leftovers.Snapshot) -> int:
    """Return the pid of the one new process that has `pattern` in its command line."""
    (pid,) = [pid for pid, line in leftovers.ours(1).items() if pattern in line and pid not in before.processes]
    return pid


def descriptors(pid: int) -> list[str]:
    """Return what the descriptors of a process are, sorted."""
    directory = f"/proc/{pid}/fd"
    return sorted(os.readlink(f"{directory}/{entry}").partition(":[")[0] for entry in os.listdir(directory))


def listed(text: str) -> set[str]:
    """Return the descriptors in the output of `ls -l /proc/self/fd`, without that of ls itself."""
    return {number for number, to in re.findall(r" (\d+) -> (\S+)", text) if not re.fullmatch(r"/proc/\d+/fd", to)}


def lines_to_blank(process: subprocess.Popen[str]) -> str:
    return "".join(iter(process.stdout.readline, "\n"))  # type: ignore[union-attr]


@pytest.fixture
def opened() -> Iterator[dict[str, int]]:
    """What a caller may have open: a directory, a file, a pipe, a socket; none of them close-on-exec."""
    reader, writer = os.pipe()
    one, other = socket.socketpair()
    given = [os.open("/etc", os.O_RDONLY), os.open("/etc/hostname", os.O_RDONLY), reader, one.detach()]
    high = {what: fcntl.fcntl(fd, fcntl.F_DUPFD, 60) for what, fd in zip(KINDS, given)}
    yield high
    for fd in (*given, *high.values(), writer):
        os.close(fd)
    other.close()


KINDS = ("directory", "file", "pipe", "socket")


def check_helpers(before: leftovers.Snapshot, image: Path) -> None:
    """The server has its image, /dev/fuse, streams to /dev/null, and what it has opened itself."""
    found = descriptors(only("squashfuse", before))
    assert [kind for kind in found if kind != "anon_inode"] == sorted(
        ["/dev/fuse", "/dev/null", "/dev/null", str(image), "pipe"]
    )


def test_what_each_process_has_with_the_plugin(
    step: Step, forging: Path, place: Path, opened: dict[str, int], user: str
) -> None:
    """Only the command gets the task's own descriptors."""
    before = leftovers.Snapshot(1)
    commands = place / "commands"
    commands.mkdir()
    write_script(commands / "squeue", "#!/bin/sh\nls -l /proc/self/fd; echo; exec sleep 1000\n")
    command = "echo $$; ls -l /proc/self/fd; echo; exec squeue"
    request = f"image={forging}\nrelay=yes\nprivate-tmp=yes\n"
    process = step(request, "/bin/sh", "-c", command, path=f"{commands}:/usr/bin:/bin", keep=list(opened.values()))
    pid = int(process.stdout.readline())  # type: ignore[union-attr]
    assert listed(lines_to_blank(process)) == STREAMS | set(map(str, opened.values()))
    # The relayed command, on the host, has its caller's streams.
    assert listed(lines_to_blank(process)) == STREAMS
    check_helpers(before, forging)
    broker = only("--serve", before)
    # The broker has its listening socket, a caller's socket, a pidfd of the watched process, and a signalfd.
    assert descriptors(broker) == ["/dev/null"] * 3 + ["anon_inode"] * 2 + ["socket"] * 2
    # The caller was executed as the command: it has the task's descriptors and its own.
    theirs = [os.readlink(f"/proc/self/fd/{fd}").partition(":[")[0] for fd in opened.values()]
    assert set(descriptors(pid)) == {*theirs, "/dev/null", "pipe", "anon_inode", "socket"}
    os.kill(pid, signal.SIGKILL)
    end(process)
    before.wait_until_clean()


@pytest.mark.parametrize("device", [False, True])
def test_what_each_process_has_with_slurm_ch_run(
    forging: Path, specs: Path, place: Path, opened: dict[str, int], user: str, device: bool
) -> None:
    """A directory that the shell had open leads out of the container; pipes and sockets don't."""
    before = leftovers.Snapshot(1)
    (place / "report").unlink(missing_ok=True)
    entry = pwd.getpwnam(user)
    keywords = {
        "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "user": entry.pw_uid, "group": entry.pw_gid,
        "extra_groups": [], "cwd": "/", "env": {"PATH": "/usr/bin:/bin", "USER": user}, "pass_fds": list(opened.values()),
    }  # fmt: skip
    devices = ["--cdi-dirs", str(specs), "--device", "fake.test/gpu"] if device else []
    command = "echo $$; ls -l /proc/self/fd; echo; read x"
    process = subprocess.Popen([SLURM_CH, "run", *devices, str(forging), "--", "sh", "-c", command], **keywords)  # type: ignore[call-overload]
    pid = process.stdout.readline().strip()
    passed = STREAMS | {str(opened["pipe"]), str(opened["socket"])}
    assert listed(lines_to_blank(process)) == passed
    check_helpers(before, forging)
    joined = [SLURM_CH, "run", f"--join-pid={pid}", str(forging), "--", "ls", "-l", "/proc/self/fd"]
    done = subprocess.run(joined, check=True, **{**keywords, "stdin": subprocess.DEVNULL})  # type: ignore[call-overload]
    assert listed(done.stdout) == passed
    if device:
        found, text = reported(place)
        assert set(found) == STREAMS, text
    process.communicate("\n", timeout=20)
    before.wait_until_clean()


def test_the_session_keyring_is_the_container_s_own(step: Step, forging: Path, keys: Path) -> None:
    """The image can't reach what Kerberos and AFS keep there. All tasks have one keyring, because keys are few."""
    before = leftovers.Snapshot(1)
    assert (
        subprocess.run([keys, "hold", keys, "look"], check=True, capture_output=True, text=True).stdout[:5] == "found"
    )
    seen = keys.with_name("keyrings-seen")
    seen.mkdir(exist_ok=True)
    seen.chmod(0o777)
    # The keyring ends with its last holder, so all stay until the last has looked.
    stay = f"{keys} look; : > {seen}/$$; until set -- {seen}/*; [ $# = 5 ]; do :; done"
    for _ in range(16):
        for trace in seen.iterdir():
            trace.unlink()
        out, err = end(step(f"image={forging}\n", "/bin/sh", "-c", stay, tasks=5))
        assert err == ""
        found = [line for line in out.splitlines() if "task" not in line]
        assert len(found) == 5
        assert {line.split()[0] for line in found} == {"none"}
        assert len(set(found)) == 1
    out, err = end(step(f"image={forging}\nkeep-keyring=yes\n", str(keys), "look", tasks=2))
    assert [line.split()[0] for line in out.splitlines() if "task" not in line] == ["found"] * 2, err
    before.wait_until_clean()


def test_the_session_keyring_with_slurm_ch_run(forging: Path, keys: Path, user: str) -> None:
    entry = pwd.getpwnam(user)
    for options, expected in (([], "none"), (["--keep-keyring"], "found")):
        command = [keys, "hold", SLURM_CH, "run", *options, forging, "--", keys, "look"]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, user=entry.pw_uid, group=entry.pw_gid, extra_groups=[], cwd="/",
            env={"PATH": "/usr/bin:/bin", "USER": user},
        )  # fmt: skip
        assert done.stdout.split()[0] == expected
