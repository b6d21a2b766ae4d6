# SPDX-License-Identifier: Apache-2.0
"""Processes of ours on their way into a container: what a command that already runs there can do to them."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import slurm_ch
from slurm_ch import agreement, paths
from slurm_ch.engine import namespaces, task_plan
from slurm_ch.plugin import tickets
from slurm_ch.standalone import peers
from tests import leftovers
from tests.conftest import make_image

from .conftest import SLURM_CH, Run, settings

PACKAGE = Path(slurm_ch.__file__).parent


def wait_for(happened: Callable[[], bool], what: str) -> None:
    """Poll until it has happened; raise AssertionError if that takes too long."""
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline, f"waited for {what}"
        os.sched_yield()


class Installation:
    """A copy of slurm_ch that belongs to the user who runs it."""

    def __init__(self, root: Path, user: str) -> None:
        self.root = root
        self.user = user
        self.ch_join = root / "slurm_ch/native/ch-join"
        shutil.copytree(PACKAGE, root / "slurm_ch")
        subprocess.run(["chown", "-R", user, root], check=True)

    @property
    def settings(self) -> dict[str, object]:
        """Return subprocess's arguments for the user."""
        found = settings(self.user)
        found["env"] = {**found["env"], "PYTHONPATH": str(self.root)}  # type: ignore[dict-item]
        return found

    def run(self, *words: object) -> list[str]:
        """Return the command line of `slurm-ch run`."""
        start = "from slurm_ch.cli.main import main; main()"
        return [sys.executable, "-c", start, "run", *map(str, words)]


@pytest.fixture(params=["owner", "root"])
def installation(request: pytest.FixtureRequest, user: str, world_tmp: Path) -> Iterator[Installation]:
    """An installation that its caller may write: as its owner, and as root."""
    root = world_tmp / "installation"
    yield Installation(root, user if request.param == "owner" else "root")
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def overwrite(world_tmp: Path) -> Path:
    directory = world_tmp / "overwrite"
    directory.mkdir()
    source = Path(__file__).with_name("overwrite.c")
    flags = ["-std=gnu11", "-O", "-Wall", "-Wextra", "-Werror", "-static"]
    subprocess.run(["cc", *flags, "-o", directory / "overwrite", source], check=True)
    return directory


def full_pipe() -> tuple[int, int]:
    """Return a full pipe, which blocks every process that writes to it."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writer, True)
    return reader, writer


def by_pid(installation: Installation, holder: int, stderr: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        installation.run(f"--join-pid={holder}", "--", "/proc/self/exe"), stderr=stderr, **installation.settings
    )  # type: ignore[call-overload, no-any-return]


def by_ticket(installation: Installation, holder: int, stderr: int) -> subprocess.Popen[bytes]:
    fds = [os.open(f"/proc/{holder}/ns/{kind}", os.O_RDONLY) for kind in ("user", "mnt")]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    task_socket = tickets.TaskSocket(ours.detach())
    plan = task_plan.plan_file(task_plan.encode([]))
    task_socket.issue(*fds, plan)
    task_socket.close()
    words = [installation.ch_join, "/proc/self/exe"]
    env = {"PATH": "/bin", "SLURM_CH_JOIN": str(theirs.fileno())}
    process = subprocess.Popen(
        words, stderr=stderr, pass_fds=[theirs.fileno()], **{**installation.settings, "env": env}
    )  # type: ignore[call-overload]
    theirs.close()
    for fd in (*fds, plan):
        os.close(fd)
    return process  # type: ignore[no-any-return]


@pytest.mark.parametrize("ids", [(), ("-u0", "-g0")], ids=["user", "root inside"])
@pytest.mark.parametrize("enter", [by_pid, by_ticket])
def test_nobody_inside_can_overwrite_ch_join(
    installation: Installation,
    overwrite: Path,
    image_dir: Path,
    enter: Callable[[Installation, int, int], subprocess.Popen[bytes]],
    ids: tuple[str, ...],
) -> None:
    """A command that leads to ch-join itself keeps it in the container, blocked by its error message."""
    before, program = leftovers.Snapshot(1), installation.ch_join.read_bytes()
    attacker = subprocess.Popen(
        installation.run(*ids, "-b", f"{overwrite}:/mnt", image_dir, "--", "/mnt/overwrite"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **installation.settings,
    )  # type: ignore[call-overload]  # fmt: skip
    assert attacker.stdout.readline() == "ready\n"
    reader, writer = full_pipe()
    victim = enter(installation, attacker.pid, writer)
    os.close(writer)
    command = Path(f"/proc/{victim.pid}/cmdline")
    wait_for(lambda: command.read_bytes().startswith(b"/proc/self/exe\0"), "the command to be executed")
    attacker.stdin.write(f"{victim.pid}\n")
    attacker.stdin.flush()
    held = attacker.stdout.readline()
    os.close(reader)
    victim.wait(timeout=20)
    out, _ = attacker.communicate("\n", timeout=20)
    assert installation.ch_join.read_bytes() == program
    assert (held, out) == ("held\n", "write: Operation not permitted\n")
    before.wait_until_clean()


WITH_RELAY = """
import os, sys
from slurm_ch.request import options, parsers, spec
from slurm_ch.standalone import run
wanted = parsers.make(sys.argv[1], [options.Setting("relay", "yes", "--ch-relay"), *(
    options.Setting(name, value, name) for name, value in (word.split("=", 1) for word in sys.argv[2:]))])
wanted.relay_commands = ("srun",)
run.run(wanted, ["sh", "-c", "srun & echo $!; exec /mnt/overwrite"], os.environ)
"""


@pytest.mark.parametrize("ids", [(), ("uid=0", "gid=0")], ids=["user", "root inside"])
def test_nobody_inside_can_overwrite_ch_relay(
    installation: Installation, overwrite: Path, image_dir: Path, ids: tuple[str, ...]
) -> None:
    """It runs in the container, as srun: here it is blocked by its message, which nobody reads."""
    program = (installation.root / "slurm_ch/native/ch-relay").read_bytes()
    reader, writer = full_pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", WITH_RELAY, image_dir, f"bind={overwrite}:/mnt", *ids],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=writer, text=True, **installation.settings,
    )  # type: ignore[call-overload]  # fmt: skip
    os.close(writer)
    relay = process.stdout.readline().strip()
    assert process.stdout.readline() == "ready\n"
    command = Path(f"/proc/{relay}/exe")
    wait_for(lambda: command.readlink().name == "relay", "the relay to be executed")
    process.stdin.write(f"{relay}\n")
    process.stdin.flush()
    held = process.stdout.readline()
    os.close(reader)
    out, _ = process.communicate("\n", timeout=20)
    assert (installation.root / "slurm_ch/native/ch-relay").read_bytes() == program
    assert (held, out) == ("held\n", "open: Read-only file system\n")


@pytest.mark.parametrize("how", ["link", "script"])
def test_an_ldconfig_that_leads_to_whoever_starts_it(run: Run, image_dir: Path, world_tmp: Path, how: str) -> None:
    """It doesn't lead to the host's Python, which must be safe if root runs it."""
    root = make_image(world_tmp / f"self-{how}", "self")
    (root / "sbin").mkdir()
    if how == "link":
        (root / "sbin/ldconfig").symlink_to("/proc/self/exe")
    else:
        (root / "sbin/ldconfig").write_text("#!/proc/self/exe\n")
        (root / "sbin/ldconfig").chmod(0o755)
    update = {"hookName": "createContainer", "path": "/usr/bin/nvidia-cdi-hook",
              "args": ["nvidia-cdi-hook", "update-ldcache", "--folder", "/usr/lib"]}  # fmt: skip
    spec = world_tmp / f"self-{how}.json"
    devices = [{"name": "0", "containerEdits": {"env": ["FAKE=0"]}}]
    edits = {"hooks": [update]}
    spec.write_text(
        json.dumps({"cdiVersion": "0.6.0", "kind": "fake.test/gpu", "devices": devices, "containerEdits": edits})
    )
    done = run("--device", spec, root, "--", "true")
    assert done.returncode == 31
    assert "ch-join is started by Slurm's plugin, not by hand" in done.stderr


def test_nothing_of_the_hosts_is_reached_through_a_winner(run: Run, user: str, image_dir: Path) -> None:
    """A winner waits for the others in the container, with the host's /dev/shm open; root inside looks at it."""
    words = ["-u0", "-g0", "--join-tag=reach", "--join-ct=2"]
    # As where sockets are refused.
    command = [sys.executable, "-I", paths.COMMAND, agreement.SLURM_CH, agreement.MEET_BY_NAME, "run", *words]
    winner = subprocess.Popen([*command, str(image_dir), "true"], **settings(user))  # type: ignore[call-overload]
    segment = Path(f"/dev/shm/slurm_ch-{pwd.getpwnam(user).pw_uid}-reach")

    def published() -> bool:
        header = segment.read_bytes()[:8] if segment.exists() else b""
        return len(header) == 8 and struct.unpack("=II", header)[1] == peers._PUBLISHED

    wait_for(published, "the winner to publish")
    # A second peer that opens the namespaces, and never enters: all other peers may have, and run their commands.
    peer = os.fork()
    if peer == 0:
        os.setgid(pwd.getpwnam(user).pw_gid)
        os.setuid(pwd.getpwnam(user).pw_uid)
        loser = peers.Peer("reach", 2)
        loser.arrive()
        fds = loser.wait_for_winner()
        namespaces.enter(*fds, "the winner")
        found = [name for name in ("fd", "root", "cwd", "exe", "mem", "maps") if readable(f"/proc/{winner.pid}/{name}")]
        loser.done()
        os._exit(len(found))
    assert os.waitstatus_to_exitcode(os.waitpid(peer, 0)[1]) == 0
    assert winner.wait(timeout=20) == 0


def readable(path: str) -> bool:
    """Whether what is in a process's directory in /proc can be read."""
    try:
        if path.endswith("/fd"):
            return bool(os.listdir(path))
        if path.endswith(("root", "cwd", "exe")):
            return bool(os.readlink(path))
        os.close(os.open(path, os.O_RDONLY))
        return True
    except PermissionError:
        return False


def test_a_root_that_cant_be_replaced(run: Run, user: str, image_dir: Path) -> None:
    """As on the initial ramfs: pivot_root fails with EINVAL."""
    words = ["-f", "-qq", "-o", "/dev/null", "-e", "trace=pivot_root", "-e", "inject=pivot_root:error=EINVAL:when=1"]
    program = [SLURM_CH, "run", str(image_dir), "--", "sh", "-c", "cat /marker; ls -d /usr/share"]
    done = subprocess.run(
        ["strace", *words, *program], check=False, capture_output=True, text=True, timeout=30, **settings(user)
    )  # type: ignore[call-overload]
    assert done.stdout == "one\n", done


@pytest.mark.parametrize("ids", [(), ("-u0", "-g0")], ids=["user", "root"])
def test_user_namespaces_work_if_asked_for(run: Run, image_dir: Path, ids: tuple[str, ...]) -> None:
    """The real bubblewrap, with a /proc of its own."""
    host = ["-b", "/usr:/usr", "-b", "/lib:/lib", "-b", "/lib64:/lib64", "-W"]
    command = ["/usr/bin/bwrap", "--unshare-all", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    done = run("--userns", *ids, *host, image_dir, "--", *command, "/bin/sh", "-c", "cat /marker; ls -d /proc/[0-9]*")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:2] == ["one", "/proc/1"]


@pytest.mark.parametrize("ids", [(), ("-u0", "-g0")], ids=["user", "root"])
def test_user_namespaces_are_refused_otherwise(run: Run, image_dir: Path, ids: tuple[str, ...]) -> None:
    limit = "echo 9 2> /dev/null > /proc/sys/user/max_user_namespaces"
    done = run(*ids, image_dir, "--", "sh", "-c", f"({limit}) 2> /dev/null; unshare -U true")
    assert (done.returncode, done.stdout) == (1, "")
    assert "No space left on device" in done.stderr
