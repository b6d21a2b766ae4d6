# SPDX-License-Identifier: Apache-2.0
"""Steps on a machine that runs out of a resource; images that are truncated, swapped, deleted, or on a hanging server."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from .conftest import FULL, Record
from .harness import HANG_SECONDS, LOOK, Bystanders, Lab, Outcome, wait_for

TASKS = 2
# Root's command lines that run the words after them in a world that lacks something.
SHELL = ("unshare", "--mount", "sh", "-ec")


def judge(record: Record, fault: str, ends: Sequence[tuple[object, Outcome]], voices: int = 1) -> None:
    """Record a row of cases, and fail with what went wrong in them."""
    problems = [f"{what}: {p}: {end!r}" for what, end in ends if (p := end.problem(TASKS, TASKS, voices))]
    failed = [end.seconds for _, end in ends if end.status]
    record(
        fault,
        cases=len(ends),
        failed=len(failed),
        problems=len(problems),
        slowest=round(max(failed, default=0), 2) or None,
    )
    assert not problems, "\n".join(problems[:10])


def few(values: Sequence[int], count: int) -> Sequence[int]:
    """Return all of `values` in the full form, about `count` of them in the short one."""
    return values if FULL else values[:: max(1, len(values) // count)]


@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_memory_limit(lab: Lab, record: Record, kind: str) -> None:
    limit = getattr(resource, kind)
    ends = []
    # Below 2 MiB the kernel itself ends whatever is executed, a static program too, before it can say a word.
    for mib in few([*range(2, 24), *range(24, 100, 4)], 8):
        done = lab.step(tasks=TASKS, before=lambda mib=mib: resource.setrlimit(limit, (mib << 20, mib << 20)))  # type: ignore[misc]
        ends.append((f"{mib} MiB", done))
    # The command has the limit too; it may say so in its own words.
    ends = [(what, end) for what, end in ends if not (end.lines and not end.lines[0].startswith("slurm-ch"))]
    judge(record, f"{kind} from 2 to 99 MiB", ends, TASKS)
    assert any(end.status == 0 for _, end in ends) and any(end.status for _, end in ends)


if FULL:

    def test_memory_of_a_cgroup(lab: Lab, record: Record) -> None:
        """The kernel kills any process of the step."""
        root = Path("/sys/fs/cgroup")
        old = (root / "memory").is_dir()
        group = Path(tempfile.mkdtemp(prefix="slurm_ch-chaos-", dir=root / "memory" if old else root))
        ends = []
        try:
            for kib in range(512, 24 << 10, 512):
                (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(kib << 10))
                enter = f'echo $$ > {group}/cgroup.procs; exec "$@"'
                end = lab.step(tasks=TASKS, wrap=["sh", "-ec", enter, "sh"])
                # Where the kernel's choice is who stands for slurmstepd, there is nobody to say so.
                if end.status != -signal.SIGKILL or end.left:
                    ends.append((f"{kib} KiB", end))
        finally:
            wait_for(lambda: not (group / "cgroup.procs").read_text())
            group.rmdir()
        judge(record, "memory of a cgroup, 0.5 to 24 MiB", ends, TASKS)
        assert any(end.status == 0 for _, end in ends) and any(end.status for _, end in ends)


def test_open_files_limit(lab: Lab, record: Record) -> None:
    ends = []
    for count in few(range(4, 64), 8):
        done = lab.step(
            tasks=TASKS, before=lambda count=count: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))
        )  # type: ignore[misc]
        if not done.err.startswith("slurmstepd:"):
            ends.append((f"{count} descriptors", done))
    judge(record, "RLIMIT_NOFILE from 4 to 63", ends, TASKS)
    assert any(end.status == 0 for _, end in ends) and any(end.status for _, end in ends)


def test_too_many_descriptors_in_flight(lab: Lab, record: Record) -> None:
    """ETOOMANYREFS: the user's other programs have more descriptors in flight than the launcher's limit."""
    reader, writer = os.pipe()
    hoarder = os.fork()
    if hoarder == 0:
        os.setgid(lab.uid)
        os.setuid(lab.uid)
        ends = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(4)]
        for one, _ in ends:
            socket.send_fds(one, [b"x"], [0] * 100)
        os.write(writer, b"x")
        signal.pause()
        os._exit(0)
    assert os.read(reader, 1) == b"x"
    try:
        done = lab.step(tasks=TASKS, before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)))
    finally:
        os.kill(hoarder, signal.SIGKILL)
        os.waitpid(hoarder, 0)
        os.close(reader)
        os.close(writer)
    judge(record, "ETOOMANYREFS: 400 descriptors in flight, limit 256", [("", done)])
    assert done.status and os.strerror(errno.ETOOMANYREFS) in done.err, done


@pytest.mark.parametrize("count", [0, 1])
def test_no_user_namespaces_left(lab: Lab, record: Record, count: int) -> None:
    """The limit only holds in a user namespace of the test."""
    limit = f'echo {count} > /proc/sys/user/max_user_namespaces; exec "$@"'
    done = lab.step(tasks=TASKS, inside=["unshare", "--user", "--map-root-user", "sh", "-ec", limit, "sh"])
    judge(record, f"user.max_user_namespaces={count}", [("", done)])
    assert done.status == 31 and "user.max_user_namespaces" in done.err, done


@pytest.mark.parametrize("what", ["missing", "not for users", "no driver"])
def test_dev_fuse(lab: Lab, record: Record, what: str) -> None:
    do = {
        "missing": "mkdir /tmp/dev.$$; mount --rbind /dev /tmp/dev.$$; mount -t tmpfs dev /dev; cd /tmp/dev.$$;"
        " for n in null zero urandom shm pts; do if [ -d $n ]; then mkdir /dev/$n; else : > /dev/$n; fi;"
        " mount --rbind $n /dev/$n; done; cd /; umount -l /tmp/dev.$$; rmdir /tmp/dev.$$",
        "not for users": "mount -t tmpfs -o mode=755 x /mnt; mknod -m 600 /mnt/fuse c 10 229; mount --bind /mnt/fuse /dev/fuse",
        "no driver": "mount -t tmpfs -o mode=755 x /mnt; mknod -m 666 /mnt/fuse c 10 4; mount --bind /mnt/fuse /dev/fuse",
    }[what]
    done = lab.step(tasks=TASKS, wrap=[*SHELL, do + '; exec "$@"', "sh"])
    judge(record, f"/dev/fuse {what}", [("", done)])
    assert done.status == 31 and "/dev/fuse" in done.err, done


def test_truncated_image(lab: Lab, record: Record, world_tmp: Path) -> None:
    whole = lab.image.read_bytes()
    cut = world_tmp / "cut.sqfs"
    size = len(whole)
    lengths = {0, 1, 3, 4, 5, 95, 96, 97, 128, 4096, size - 1, size - 97, size - 4096}
    lengths |= {size * part // (64 if FULL else 6) for part in range(64 if FULL else 6)}
    ends = []
    for length in sorted(lengths):
        cut.write_bytes(whole[:length])
        ends.append((f"{length} of {size} bytes", lab.step(tasks=TASKS, image=cut, command=("/bin/cat", "/marker"))))
    # What is damaged only far inside fails when it is read, in each task.
    judge(record, "image truncated", ends, TASKS)
    assert all(end.status for _, end in ends[:10])


def holding(lab: Lab, image: Path, change: str) -> Outcome:
    """Run a step that reads the image after `change` was done to it."""
    fifo = lab.place / "go"
    os.mkfifo(fifo)
    fifo.chmod(0o666)

    def meanwhile(step: subprocess.Popen[bytes]) -> None:
        del step
        # A task reads it: the container is there.
        ends: list[int] = []
        assert wait_for(lambda: opened_for_writing(fifo, ends))
        if change == "deleted":
            image.unlink()
        elif change == "replaced":
            other = image.with_suffix(".new")
            other.write_bytes(b"hsqs" + b"\0" * 8192)
            other.rename(image)
        else:
            os.truncate(image, 0)
        os.write(ends[0], b"go\n")
        os.close(ends[0])

    script = f"head -n1 {fifo} > /dev/null; cat /marker && cat /bin/busybox > /dev/null"
    return lab.step(tasks=1, image=image, command=("/bin/sh", "-c", script), meanwhile=meanwhile)


def opened_for_writing(fifo: Path, ends: list[int]) -> bool:
    """Open the FIFO when a process reads it, and add the descriptor to `ends`."""
    try:
        ends.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("change", ["deleted", "replaced", "emptied"])
def test_image_changed_while_running(lab: Lab, record: Record, world_tmp: Path, change: str) -> None:
    image = world_tmp / "mine.sqfs"
    shutil.copy(lab.image, image)
    done = holding(lab, image, change)
    image.unlink(missing_ok=True)
    record(f"image {change} while running", cases=1, failed=int(bool(done.status)), problems=int(bool(done.left)))
    assert not done.left, done
    if change == "emptied":
        # The file is the user's own; what is gone is gone, but the step ends.
        assert done.status is not None
    else:
        assert (done.status, done.markers, done.lines) == (0, 1, [])


@pytest.fixture
def hanging(
    lab: Lab, world_tmp: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """An image on a file server that stops answering at an operation."""
    point = world_tmp / f"hang-{request.param}"
    point.mkdir()
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.hangfs", point, lab.image, request.param],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    yield point / "image.sqfs", server
    end(server)
    point.rmdir()


def end(server: subprocess.Popen[bytes]) -> None:
    """End the file server, so that all processes that wait for it get an error."""
    assert server.stdin is not None and server.stdout is not None
    server.stdin.close()
    server.wait(HANG_SECONDS)
    server.stdout.close()


@pytest.mark.parametrize("hanging", ["lookup", "open", "read"], indirect=True)
def test_image_on_a_server_that_hangs(
    lab: Lab, record: Record, hanging: tuple[Path, subprocess.Popen[bytes]], request: pytest.FixtureRequest
) -> None:
    """A step waits for the server, as any program would; when it is cancelled, it ends immediately."""
    image, server = hanging
    operation = request.node.callspec.params["hanging"]
    tasks_gone: list[bool] = []
    left: list[int] = []
    # A bare srun of an earlier test, killed in the middle, may still be waiting.
    before = set(Bystanders(lab.uid).processes)

    def others() -> list[int]:
        return [pid for pid in Bystanders(lab.uid).processes if pid not in before]

    def meanwhile(step: subprocess.Popen[bytes]) -> None:
        assert server.stdout is not None
        assert server.stdout.readline() == b"hanging\n"
        children = Path(f"/proc/{step.pid}/task/{step.pid}/children").read_text().split()
        for pid in children:
            os.kill(int(pid), signal.SIGTERM)
        tasks_gone.append(wait_for(lambda: step.poll() is not None))
        # The kernel holds a process whose request the server has taken; all other processes have ended.
        wait_for(lambda: len(others()) <= 1)
        left.extend(others())
        end(server)

    done = lab.step(tasks=TASKS, image=image, command=LOOK, meanwhile=meanwhile)
    record(
        f"image's server hangs in {operation}; cancelled",
        cases=1,
        failed=int(bool(done.status)),
        problems=len(done.left),
    )
    assert tasks_gone == [True]
    assert len(left) <= 1, left
    assert done.status
    assert not done.left, done
