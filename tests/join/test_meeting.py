# SPDX-License-Identifier: Apache-2.0
"""The peers of a join: one container for all, even if peers are late, missing or killed [J2, J4, J5]."""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.command import IN_PYTHON, SLURM_CH

from .conftest import Peer, Place

NAMESPACE = ("readlink", "/proc/self/ns/mnt")
# Prints where it is, and stays until it reads a line.
STAY = ("sh", "-c", "readlink /proc/self/ns/mnt; read x")


def together(peers: list[Peer]) -> str:
    """Return the namespace that all peers are in; they stay until all have reported theirs."""
    found = {peer.line() for peer in peers}
    for peer in peers:
        peer.go()
    assert [peer.end() for peer in peers] == [(0, "", "")] * len(peers)
    assert len(found) == 1
    return found.pop()


@pytest.mark.row("J2", "J4")
def test_all_are_in_one_container(place: Place) -> None:
    assert together([place.start(count=32, command=STAY) for _ in range(32)]) != os.readlink("/proc/self/ns/mnt")


@pytest.mark.row("J4")
def test_commands_that_end_at_once(place: Place) -> None:
    for _ in range(10):
        peers = [place.start(count=8) for _ in range(8)]
        assert [peer.end() for peer in peers] == [(0, "one\n", "")] * 8


def test_alone(place: Place) -> None:
    assert place.start(count=1).end() == (0, "one\n", "")


def test_the_only_task_of_a_step_meets_nobody(place: Place) -> None:
    """So it needs no socket, whose name is taken here; but a number from the command line may be wrong."""
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NODEID": "0", "SLURM_PROCID": "0"}
    place.tag = "7.0.0.node"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as squatter:
        squatter.bind(place.name.encode())
        for tasks, words, code in (("1", (), 0), ("2", (), 32), ("1", ("--join-ct=1",), 32)):
            env = {"PATH": "/usr/bin:/bin", "SLURM_STEP_TASKS_PER_NODE": tasks, **step}
            join = [SLURM_CH, "run", "--join", "--join-timeout=1", *words, str(place.image), "--", "true"]
            assert place.execute(join, env=env).end()[0] == code


def test_of_a_squashfs_image(place: Place, image_sqfs: Path) -> None:
    together([place.start(count=4, image=image_sqfs, command=STAY) for _ in range(4)])


@pytest.mark.row("L1")
def test_who_comes_late_gets_in(place: Place) -> None:
    """It joins a container in which no process is left."""
    assert place.start(count=3).end() == (0, "one\n", "")
    first = place.start(count=3, command=STAY)
    assert first.line()
    first.kill()
    assert place.start(count=3).end() == (0, "one\n", "")


@pytest.mark.row("J2", "D12")
def test_who_never_comes_costs_nobody_anything(place: Place) -> None:
    """The holder ends when the timeout has passed after the last peer's arrival."""
    assert place.start("--join-timeout=1", count=5).end() == (0, "one\n", "")
    assert place.start("--join-timeout=1", count=5).end() == (0, "one\n", "")
    place.wait_until_clean()
    assert place.start(count=1).end() == (0, "one\n", "")


@pytest.mark.row("D12")
def test_the_holder_ends_with_slurmstepd(place: Place, open_tmp: Path) -> None:
    """Not before that: a late task of a step may come at any time."""
    step = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_NODEID": "0",
        "SLURM_PROCID": "0",
    }
    stepd = open_tmp / "slurmstepd"
    stepd.symlink_to("/bin/bash")
    place.tag = "7.0.0.node"
    line = f"{SLURM_CH} run --join --join-timeout=1 {place.image} -- cat /marker; echo; read x"
    fake = place.execute([str(stepd), "-c", line], env={"PATH": "/usr/bin:/bin", **step})
    assert (fake.line(), fake.line()) == ("one", "")
    holder = os.pidfd_open(place.wait_for_holder()["holder"])
    # Longer than a timeout that it doesn't have.
    assert not _ended(holder, 1.5)
    fake.go()
    fake.end()
    assert _ended(holder, 5.0)
    os.close(holder)


def _ended(pidfd: int, seconds: float) -> bool:
    return bool(select.select([pidfd], [], [], seconds)[0])


@pytest.mark.row("L3")
def test_counts_that_contradict(place: Place) -> None:
    assert place.start(count=3).end()[0] == 0
    code, out, err = place.start(count=2).end()
    assert (code, out) == (64, "")
    assert err == f"slurm-ch: error: --join-ct=2: other peers of {place.tag} say 3\n"
    for _ in range(2):
        assert place.start(count=3).end()[0] == 0


@pytest.mark.row("L1")
def test_one_too_many_is_the_first_of_the_next(place: Place) -> None:
    peers = [place.start("--join-timeout=2", count=2, command=STAY) for _ in range(3)]
    namespaces = [peer.line() for peer in peers]
    assert len(set(namespaces)) == 2
    for peer in peers:
        peer.go()
    assert [peer.end()[0] for peer in peers] == [0] * 3


@pytest.mark.row("J1", "L2")
def test_joins_in_a_row_by_rank(place: Place) -> None:
    """Four tasks with five joins each, and no task waits for another: the n-th joins of all tasks are together."""
    line = "; ".join(
        f"{' '.join(place.command(count=4, command=('sh', '-c', 'readlink_/proc/self/ns/mnt;_exec_sleep_0.0$RANDOM')))}"
        for _ in range(5)
    )
    line = line.replace(
        "readlink_/proc/self/ns/mnt;_exec_sleep_0.0$RANDOM",
        "'readlink /proc/self/ns/mnt; exec sleep 0.0'$((RANDOM % 7))",
    )
    env = {"PATH": "/usr/bin:/bin", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
    tasks = [place.execute(["bash", "-c", line], env={**env, "OMPI_COMM_WORLD_RANK": str(rank)}) for rank in range(4)]
    ends = [task.end() for task in tasks]
    assert [(code, err) for code, _, err in ends] == [(0, "")] * 4
    assert len({tuple(out.split()) for _, out, _ in ends}) == 1, ends
    assert len(ends[0][1].split()) == 5


@pytest.mark.row("L3")
def test_other_images_are_other_joins(place: Place, other_sqfs: Path) -> None:
    """Also if each rank starts two at the same time, in another order."""
    images = [place.image, other_sqfs]
    peers = [
        (image, place.start(count=2, rank=rank, image=image))
        for rank in (0, 1)
        for image in (images if rank else images[::-1])
    ]
    for image, peer in peers:
        assert peer.end() == (0, "one\n" if image == place.image else "two\n", "")


def test_an_image_by_another_path_from_elsewhere(place: Place) -> None:
    """A relative name refers to each peer's own directory."""
    here = place.start(count=2, image=place.image.name, cwd=place.image.parent, command=STAY)
    there = place.start(count=2, image=place.image.name, cwd=place.image.parent, command=STAY)
    together([here, there])
    lost = place.start("--join-timeout=1", count=2, image=place.image.name, cwd="/").end()
    assert lost[0] == 31
    assert "can't stat image" in lost[2]


@pytest.mark.row("L3")
def test_each_peer_has_its_own_rules(place: Place) -> None:
    """In the same container: variables, directory, messages."""
    show = ("sh", "-c", "readlink /proc/self/ns/mnt; read x; echo $A $PWD")
    peers = [
        place.start(*words, count=4, command=show)
        for words in (["--set-env=A=0"], ["--set-env=A=1"], ["-c", "/usr"], ["-v"])
    ]
    assert len({peer.line() for peer in peers}) == 1
    for peer in peers:
        peer.go()
    ends = [peer.end() for peer in peers]
    assert [(code, out) for code, out, _ in ends] == [(0, "0 /\n"), (0, "1 /\n"), (0, "/usr\n"), (0, "/\n")]
    assert ["executing" in err for _, _, err in ends] == [False, False, False, True]


@pytest.mark.row("L3")
def test_a_peer_whose_rules_are_wrong(place: Place) -> None:
    """It reports an error, and the others go on."""
    good = place.start(count=3)
    assert good.end() == (0, "one\n", "")
    code, out, err = place.start("--set-env=/nonexistent-file", count=3).end()
    assert (code, out, err.count("\n")) == (31, "", 1)
    assert "--set-env=/nonexistent-file: can't read environment file" in err
    assert place.start(count=3).end() == (0, "one\n", "")


@pytest.mark.row("D5")
def test_an_image_that_is_none_is_said_once(place: Place) -> None:
    peers = [place.start(count=5, image="/nonexistent") for _ in range(4)]
    ends = [peer.end() for peer in peers] + [place.start(count=5, image="/nonexistent").end()]
    assert [(code, out) for code, out, _ in ends] == [(31, "")] * 5
    said = [err for _, _, err in ends if err]
    assert said == ["slurm-ch: error: can't stat image: /nonexistent: No such file or directory\n"]


@pytest.mark.row("D5")
def test_an_option_that_is_wrong_is_said_once(place: Place) -> None:
    ends = [peer.end() for peer in [place.start("--bind=x", count=3) for _ in range(3)]]
    assert [code for code, _, _ in ends] == [64] * 3
    assert [err for _, _, err in ends if err] == ["slurm-ch: error: --bind=x: a relative source needs a destination\n"]


def test_peers_through_python(place: Place) -> None:
    """An editable install's command checks the words, and is the same peer."""
    words = place.command("-vv", count=3, command=STAY)
    mixed = [place.execute([IN_PYTHON, *words[1:]], env={"PATH": "/usr/bin:/bin"}) for _ in range(2)]
    mixed.append(place.start("-vv", count=3, command=STAY))
    assert len({peer.line() for peer in mixed}) == 1
    for peer in mixed:
        peer.go()
    assert [peer.end()[0] for peer in mixed] == [0] * 3


def test_a_shells_pipe_as_a_file_of_variables(place: Place) -> None:
    """Only the called process can open such a file: then peers meet in Python."""
    line = " ".join(place.command("--set-env=<(echo A=$RANK)", count=2, command=("sh", "-c", "'echo $A'")))
    peers = [place.execute(["bash", "-c", line], env={"PATH": "/usr/bin:/bin", "RANK": str(rank)}) for rank in range(2)]
    assert [peer.end() for peer in peers] == [(0, "0\n", ""), (0, "1\n", "")]


@pytest.mark.row("L3")
def test_long_tags(place: Place) -> None:
    """Tags longer than a socket's name may be, and equal up to that length."""
    for tag in ("x" * 200, "x" * 199 + "y"):
        place.tag = tag
        together([place.start(count=2, command=STAY) for _ in range(2)])


@pytest.mark.row("L4")
def test_closed_streams(place: Place) -> None:
    """No descriptor of ours becomes a stream, and closed streams stay closed."""
    marker = "sh -c 'ls -l /proc/self/fd | wc -l; read x || cat /marker' 1>&3 3>&-"
    line = f"exec 3>&1; {' '.join(place.command(count=2, command=()))} {marker} <&- 2>&-"
    ends = [
        peer.end() for peer in [place.execute(["bash", "-c", line], env={"PATH": "/usr/bin:/bin"}) for _ in range(2)]
    ]
    assert [code for code, _, _ in ends] == [0, 0]
    assert len({out for _, out, _ in ends}) == 1
    assert ends[0][1].endswith("one\n")


@pytest.mark.row("L4")
def test_who_ignores_the_end_of_children(place: Place) -> None:
    ignore = lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # noqa: E731
    together([place.start(count=3, command=STAY, preexec_fn=ignore) for _ in range(3)])
    together([place.start("--set-env=A=1", count=1, command=STAY, preexec_fn=ignore)])


@pytest.mark.parametrize(("count", "files"), [(200, 24), (600, 64)])
@pytest.mark.row("L4")
def test_many_peers_with_few_descriptors(place: Place, count: int, files: int) -> None:
    few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))  # noqa: E731
    peers = [place.start(count=count, preexec_fn=few) for _ in range(count)]
    assert {peer.end() for peer in peers} == {(0, "one\n", "")}


@pytest.mark.row("L4")
def test_no_process_to_be_had(place: Place) -> None:
    """The user can start no further process: an error, and the name is free again."""
    none = lambda: resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))  # noqa: E731
    ends = [peer.end() for peer in [place.start(count=2, preexec_fn=none) for _ in range(2)]]
    for code, out, err in ends:
        assert (code, out, err.count("\n")) == (31, "", 1), ends
        assert "Resource temporarily unavailable" in err
    assert not place.is_bound()


@pytest.mark.row("L4")
def test_few_processes_to_be_had(place: Place) -> None:
    """Each peer joins, or reports why it can't, wherever the limit is reached. The user has no other processes."""
    place.uid = 64100
    for limit in range(2, 12):
        few = lambda: resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))  # noqa: B023, E731
        ends = [peer.end() for peer in [place.start("--join-timeout=2", count=2, preexec_fn=few) for _ in range(2)]]
        for code, out, err in ends:
            assert (code, out, err) == (0, "one\n", "") or (code in (31, 32, 33) and out == ""), (limit, ends)
        said = [err for _, _, err in ends if err]
        assert all(err.startswith("slurm-ch: error: ") and err.count("\n") == 1 for err in said), (limit, ends)
        assert bool(said) == any(code for code, _, _ in ends), (limit, ends)
        place.wait_until_clean()
    assert [code for code, _, _ in ends] == [0, 0]


@pytest.mark.row("L4")
def test_private_directories(place: Place) -> None:
    """Each task has mounts of its own, as with job_container: the tasks have no directory in common."""
    own = 'mount -t tmpfs none /dev/shm; mount -t tmpfs none /var/tmp; exec setpriv --reuid=$UID --regid=$UID --clear-groups "$@"'
    wrap = ["unshare", "--mount", "sh", "-c", own.replace("$UID", str(place.uid)), "sh"]
    as_root = {"user": None, "group": None, "extra_groups": None}
    env = {"PATH": "/usr/bin:/bin"}
    together([place.execute([*wrap, *place.command(count=2, command=STAY)], env=env, **as_root) for _ in range(2)])


@pytest.mark.parametrize("count", [0, 16385])
def test_counts_that_cant_be(place: Place, count: int) -> None:
    code, _, err = place.start(count=count).end()
    assert code == 64
    assert f"--join-ct={count}: " in err


def test_nothing_of_pythons_is_resident(place: Place) -> None:
    def processes() -> dict[str, str]:
        ps = ["ps", "-o", "pid=,comm=", "-u", str(place.uid)]
        # Its status is 1 where the user has no process.
        lines = subprocess.run(ps, check=False, capture_output=True, text=True).stdout.splitlines()
        return dict(line.strip().split(None, 1) for line in lines if "defunct" not in line)

    before = processes()
    first = place.start(count=2, command=STAY)
    assert first.line()
    place.wait_for_holder()
    # What is there: the command, the holder and its guard.
    names = [name for pid, name in processes().items() if pid not in before]
    assert sorted(names) == ["sh", "slurm_ch guard", "slurm_ch holder"]
    for name, pid in place.holders().items():
        status = Path(f"/proc/{pid}/status").read_text()
        assert int(status.split("VmRSS:")[1].split()[0]) < 1500, name
        assert os.getsid(pid) == pid or name == "holder"
        streams = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)}
        assert streams == {"/dev/null"}
    first.go()
    first.end()
    assert place.start(count=2).end() == (0, "one\n", "")
