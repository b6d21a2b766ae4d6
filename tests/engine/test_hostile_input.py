# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch run`, ch-join and the launcher, called by a hostile user."""

from __future__ import annotations

import os
import re
import resource
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.engine import task_plan
from slurm_ch.plugin import tickets
from tests import leftovers

from .conftest import SLURM_CH, Run, settings

Good = Callable[..., str]
Fails = Callable[..., str]


@pytest.fixture
def container(image_sqfs: Path, user: str) -> Iterator[int]:
    """The pid of the command in a container of the user's."""
    before = leftovers.Snapshot(1)
    process = subprocess.Popen(
        [SLURM_CH, "run", str(image_sqfs), "--", "sh", "-c", "echo; read x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **settings(user),
    )  # type: ignore[call-overload]
    process.stdout.readline()
    yield process.pid
    process.communicate(b"\n", timeout=20)
    before.wait_until_clean()


def test_root_is_not_lured_into_a_users_container(container: int) -> None:
    """There the user decides everything, and for bound devices uid 0 is still uid 0."""
    done = subprocess.run(
        [SLURM_CH, "run", f"--join-pid={container}", "--", "id"], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (31, "")
    assert re.search(r"can't join pid \d+: its namespaces belong to uid \d+\n", done.stderr)


def test_another_user_stays_out(container: int) -> None:
    other = settings("daemon")
    done = subprocess.run(
        [SLURM_CH, "run", f"--join-pid={container}", "--", "id"], check=False, capture_output=True, text=True, **other
    )  # type: ignore[call-overload]
    assert (done.returncode, done.stdout) == (31, "")
    assert done.stderr == f"slurm-ch: error: join: can't open /proc/{container}/ns/user: Permission denied\n"


@pytest.mark.parametrize("pid", ["1", "2", "4194304", str(os.getpid())])
def test_processes_that_have_no_container(run: Run, pid: str) -> None:
    done = run(f"--join-pid={pid}", "--", "id")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (31, "", 1), done


def test_names_in_somebody_elses_storage(
    run: Run, image_sqfs: Path, image_dir: Path, other_sqfs: Path, user: str, world_tmp: Path
) -> None:
    storage = Path(f"/var/tmp/{user}.ch")
    # Debian's ch-run creates it too.
    shutil.rmtree(storage, ignore_errors=True)
    (storage / "img/image.sqfs").mkdir(parents=True)
    os.chown(storage, 1, 1)
    try:
        done = run("image.sqfs", "--", "cat", "/marker", cwd=world_tmp)
        assert (done.returncode, done.stdout) == (0, "one\n"), done
        assert done.stderr == f"slurm-ch: warning: ignoring {storage}: {storage} belongs to uid 1\n"
    finally:
        shutil.rmtree(storage)


@pytest.mark.parametrize("umask", [0, 0o77, 0o777])
def test_an_odd_umask(good: Good, image_sqfs: Path, umask: int) -> None:
    """Files that the set-up makes can be used, and the command has the caller's umask."""
    line = "umask; cat /etc/passwd > /dev/null && ls /x/y/z > /dev/null && cat /x/f > /dev/null && echo good"
    options = ("-W", "-b", "/etc:/x/y/z", "-b", "/etc/hostname:/x/f")
    assert good(*options, image_sqfs, "--", "sh", "-c", line, umask=umask) == f"{umask:04o}\ngood\n"


def test_a_hostile_working_directory(run: Run, image_sqfs: Path, world_tmp: Path, user: str) -> None:
    entry = settings(user)
    for spoil in ("rmdir {}", "chmod 0 {}", "rmdir {0}; touch {0}", "mkfifo {}/fifo; chmod 0 {}"):
        here = world_tmp / "own/here"
        here.mkdir(parents=True)
        for directory in (here, here.parent):
            os.chown(directory, entry["user"], entry["group"])  # type: ignore[arg-type]
        line = (
            f"cd {here}; {spoil.replace('{0}', '{}').replace('{}', str(here))}; exec {SLURM_CH} run {image_sqfs} -- pwd"
        )
        done = subprocess.run(["sh", "-c", line], check=False, capture_output=True, text=True, timeout=20, **entry)  # type: ignore[call-overload]
        # The working directory can't be looked up below the image: the root is as good.
        assert (done.returncode, done.stderr.count("\n")) in ((0, 0), (31, 1)), (spoil, done)
        subprocess.run(["rm", "-rf", str(here.parent)], check=True)


def test_limits_that_are_too_low(run: Run, image_sqfs: Path) -> None:
    """One line, no traceback; nothing is half done."""
    for limit, value in ((resource.RLIMIT_NOFILE, 6), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_AS, 30 << 20)):
        done = run(
            image_sqfs,
            "--",
            "true",
            preexec_fn=lambda limit=limit, value=value: resource.setrlimit(limit, (value, value)),
        )
        assert done.returncode in (0, 1, 31), done
        assert "slurm_ch/engine/container.py" not in done.stderr, done


# ---- Parts, by hand ----


def by_hand(*command: str, fds: tuple[int, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
        env={"PATH": "/usr/bin:/bin", **env},
        pass_fds=fds,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("what", ["/dev/null", "/etc/passwd", "/proc/self/ns/mnt", "/dev/zero", "/", "pipe"])
def test_ch_join_with_forged_descriptors(what: str) -> None:
    fd = os.pipe()[0] if what == "pipe" else os.open(what, os.O_RDONLY)
    try:
        if what != "pipe":
            done = by_hand(paths.CH_JOIN, "id", fds=(fd,), SLURM_CH_JOIN=str(fd))
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (31, "", 1), done
        done = by_hand(paths.CH_JOIN, f"--plan={fd}", "--", "id", fds=(fd,))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (31, "", 1), done
    finally:
        os.close(fd)


def test_a_forged_ticket_gives_nothing(user: str) -> None:
    """Namespaces that aren't namespaces, or the host's: the kernel refuses what the user can't enter anyway."""
    plan = task_plan.plan_file(task_plan.encode([]))
    for first, second in (
        ("/proc/self/ns/user", "/proc/self/ns/mnt"),
        ("/proc/self/ns/mnt", "/proc/self/ns/mnt"),
        ("/dev/null", "/dev/null"),
    ):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        forged = [os.open(path, os.O_RDONLY) for path in (first, second)]
        socket.send_fds(ours, [tickets.MAGIC + bytes(4)], [*forged, plan])
        done = subprocess.run(
            [paths.CH_JOIN, "ch-join", "id"], check=False, capture_output=True, text=True, timeout=20, pass_fds=[theirs.fileno()],
            **{**settings(user), "env": {"PATH": "/bin", "SLURM_CH_JOIN": str(theirs.fileno())}},
        )  # type: ignore[call-overload]  # fmt: skip
        assert (done.returncode, done.stdout) == (31, ""), done
        assert "can't join user namespace" in done.stderr
        for fd in forged:
            os.close(fd)
        ours.close()
        theirs.close()
    os.close(plan)


@pytest.mark.parametrize(
    "facts",
    [b"", b"\0", b"slurm_ch facts 1\0", b"slurm_ch facts 1\0t-1\0", b"slurm_ch facts 1\0rimage=\n\0", b"\xff" * 1000],
)
def test_the_launcher_with_forged_facts(facts: bytes) -> None:
    fd = task_plan.plan_file(facts)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    done = by_hand(
        "/usr/bin/python3", "-I", "-S", paths.LAUNCHER, str(fd), str(theirs.fileno()), "2", fds=(fd, theirs.fileno())
    )
    assert done.returncode in (31, 64), done
    assert done.stderr.count("\n") == 1, done
    theirs.close()
    assert ours.recv(64)[:8] == tickets.MAGIC
    ours.close()
    os.close(fd)


def test_nobody_traces_a_process_on_its_way_in(container: int, user: str) -> None:
    """Root in the container has power over who is in its user namespace: so that one is undumpable until it executes."""
    trace = ["strace", "-f", "-qq", "-e", "trace=prctl,setns,sendmsg,execve", "-e", "signal=none"]
    joined = subprocess.run(
        [*trace, SLURM_CH, "run", f"--join-pid={container}", "--", "true"],
        check=False,
        capture_output=True,
        text=True,
        **settings(user),
    )  # type: ignore[call-overload]
    fds = [os.open(f"/proc/{container}/ns/{kind}", os.O_RDONLY) for kind in ("user", "mnt")]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    task_socket = tickets.TaskSocket(ours.detach())
    task_socket.issue(*fds, task_plan.plan_file(task_plan.encode([])))
    variable = {"PATH": "/bin", "SLURM_CH_JOIN": str(theirs.fileno())}
    through = subprocess.run(
        [*trace, paths.CH_JOIN, "true"],
        check=False,
        capture_output=True,
        text=True,
        pass_fds=[theirs.fileno()],
        **{**settings(user), "env": variable},
    )  # type: ignore[call-overload]
    one = ["prctl(PR_SET_DUMPABLE, SUID_DUMP_DISABLE", "setns", "setns"]
    # With --join-pid the launcher enters first, to work out the rules there.
    for done, processes in ((joined, 2), (through, 1)):
        calls = re.findall(r"(prctl\(PR_SET_DUMPABLE, \w+|setns)\(?", done.stderr)
        assert calls == one * processes, done.stderr
    for fd in fds:
        os.close(fd)
    theirs.close()
