# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch enter` and `slurm-ch ps`: into the containers of jobs that run."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from slurm_ch.attach import running as containers
from slurm_ch.errors import ChError
from slurm_ch.sandbox.cluster import Cluster
from tests.command import SLURM_CH

from .conftest import TIMEOUT

SHARED = "srun --overlap --overcommit --mem=0"

Enter = Callable[..., "subprocess.CompletedProcess[str]"]


class Running:
    """Jobs that run as long as this module's tests do."""

    def __init__(self, cluster: Cluster, user: str, directory: Path) -> None:
        self.cluster = cluster
        self.user = user
        self.directory = directory
        self.namespaces: dict[str, str] = {}
        for name in ("ready", "go"):
            os.mkfifo(directory / name)
            (directory / name).chmod(0o666)
        # Both ends are ours: no end of file between two writers, no wait for a reader.
        self.ready, self.gate = (os.open(directory / name, os.O_RDWR) for name in ("ready", "go"))
        self.said = b""
        self.hold = directory / "hold"
        self.hold.write_text(
            f"echo $1.$SLURM_PROCID $(readlink /proc/self/ns/mnt) > {directory}/ready\nexec sleep 1000\n"
        )
        self.job = self.array = self.het = ""

    def sh(self, line: str, **kw: object) -> subprocess.CompletedProcess[str]:
        env = {**self.cluster.environ(self.user), "PATH": "/usr/bin:/bin"}
        return self.cluster.run(["bash", "-c", line], user=self.user, timeout=TIMEOUT, **{"env": env, **kw})

    def submit(self, line: str) -> str:
        done = self.sh(f"sbatch --parsable -o /dev/null {line}")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def wait(self, count: int) -> None:
        """Wait for `count` more tasks that run."""
        while self.said.count(b"\n") < count:
            if not select.select([self.ready], [], [], TIMEOUT)[0]:
                pytest.fail(self.sh("squeue; squeue --steps").stdout + self.cluster.logs("slurmctld")[-3000:])
            self.said += os.read(self.ready, 4096)
        *lines, self.said = self.said.split(b"\n", count)
        self.namespaces |= dict(line.decode().split() for line in lines)

    def go(self) -> None:
        os.write(self.gate, b"\n")


@pytest.fixture(scope="module")
def running(cluster: Cluster, user: str, world_tmp: Path, image_sqfs: Path, image_dir: Path) -> Iterator[Running]:
    directory = world_tmp / "attach"
    directory.mkdir()
    directory.chmod(0o777)
    it = Running(cluster, user, directory)
    hold, go = it.hold, f"read < {directory}/go"
    # Steps 0 and 2 in containers, 1 on the host; all on n1, 0 on n2 too.
    script = directory / "batch"
    script.write_text(f"""#!/bin/bash
{SHARED} -N2 -n3 -J app --ch-image={image_sqfs} --ch-set-env=FOO=bar --ch-set-env=PMI_RANK=0 --ch-cd=/usr sh {hold} app &
{go}
{SHARED} -N1 -n1 -w n1 -J host sh {hold} host &
{go}
{SHARED} -N1 -n1 -w n1 -J bare --ch-image={image_dir} env -i /bin/sh {hold} bare &
wait
""")
    it.job = it.submit(f"-N2 -n2 {script}")
    it.wait(3)
    it.go()
    it.wait(1)
    it.go()
    it.wait(1)
    it.array = it.submit(f"-N1 -a 3 --ch-image={image_sqfs} --wrap='sh {hold} array'")
    parts = [f"-N1 -n1 -w {node} --overcommit --ch-image={image_sqfs} sh {hold} {node}" for node in ("n1", "n2")]
    cluster.popen(
        ["bash", "-c", f"exec srun {parts[0]} : {parts[1]}"],
        user=user,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    it.wait(3)
    it.het = it.sh("squeue -u $USER -h -O HetJobID").stdout.replace("N/A", "").split()[0]
    yield it
    os.close(it.ready)
    os.close(it.gate)
    assert it.sh("scancel -u $USER").returncode == 0


@pytest.fixture
def enter(running: Running) -> Enter:
    def run(words: str, **kw: object) -> subprocess.CompletedProcess[str]:
        return running.sh(f"{SLURM_CH} enter {words}", **kw)

    return run


def test_the_container_of_a_step(running: Running, enter: Enter) -> None:
    done = enter(
        f"{running.job}.0 -- sh -c 'cat /marker; echo $FOO$PMI_RANK $PWD $SLURM_PROCID; id -u; readlink /proc/self/ns/mnt'"
    )
    uid = running.sh("id -u").stdout
    assert done.stdout == f"one\nbar /usr 0\n{uid}{running.namespaces['app.0']}\n", done
    assert (done.returncode, done.stderr) == (0, "")


def test_another_node_of_it(running: Running, enter: Enter) -> None:
    done = enter(
        f"--node=n2 {running.job}.0 -- sh -c 'echo $SLURMD_NODENAME $SLURM_PROCID; readlink /proc/self/ns/mnt'"
    )
    assert done.stdout == f"n2 2\n{running.namespaces['app.2']}\n", done


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("sh -c 'exit 7'", 7, ""),
        ("sh -c 'kill -9 $$'", 137, ""),
        ("nonsuch", 127, "n1: error: can't execute nonsuch: No such file or directory"),
        ("/etc", 126, "n1: error: can't execute /etc: Permission denied"),
    ],
)
def test_exit_status(running: Running, enter: Enter, command: str, code: int, message: str) -> None:
    done = enter(f"{running.job}.0 -- {command}")
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr


def test_a_shell_that_reads_its_input(running: Running, enter: Enter) -> None:
    done = enter(f"{running.job}.0", input="cat /marker\nexit 3\n")
    assert (done.returncode, done.stdout) == (3, "one\n")


def test_a_terminal(running: Running) -> None:
    master, slave = pty.openpty()
    line = f"{SLURM_CH} enter {running.job}.0 -- sh -c 'tty; echo $TERM; test -t 2; exit 5'"
    process = running.cluster.popen(
        ["bash", "-c", line], user=running.user, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        env={**running.cluster.environ(running.user), "TERM": "vt52"},
    )  # fmt: skip
    os.close(slave)
    said = b""
    try:
        while data := os.read(master, 4096):
            said += data
    except OSError:
        pass  # the terminal's other end is closed
    os.close(master)
    assert process.wait(TIMEOUT) == 5
    assert re.search(rb"/dev/pts/\d+\r\nvt52\r\n", said), said


def test_a_container_that_forgot_its_environment(running: Running, enter: Enter) -> None:
    # Its command ran under `env -i`: the mounts tell that it is one of ours.
    done = enter(f"{running.job}.2 -- sh -c 'cat /marker; readlink /proc/self/ns/mnt; echo $HOME'")
    assert done.stdout == f"one\n{running.namespaces['bare.']}\n/\n", done


@pytest.mark.parametrize("name", ["{array}_3", "{array}", "{array}_3.batch"])
def test_an_array_and_a_batch_step(running: Running, enter: Enter, name: str) -> None:
    done = enter(name.format(array=running.array) + " -- readlink /proc/self/ns/mnt")
    assert done.stdout == running.namespaces["array.0"] + "\n", done


def test_the_parts_of_a_het_job(running: Running, enter: Enter) -> None:
    for part, node in enumerate(("n1", "n2")):
        done = enter(f"{running.het}+{part} -- sh -c 'echo $SLURMD_NODENAME; readlink /proc/self/ns/mnt'")
        where, namespace = done.stdout.split()
        assert where == node
        assert namespace in [value for name, value in running.namespaces.items() if name.startswith(node)]
    done = enter(f"{running.het} -- true")
    assert f"has several running parts; choose one: {running.het}+0, {running.het}+1" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("{job} -- true", 31, "job {job}: several containers run here; choose one: {job}.0 (.*image.sqfs), {job}.2 (.*)"),
        ("{job}.1 -- true", 31, "{job}.1: no container of yours runs here; see slurm-ch ps"),
        ("{job}.batch -- true", 31, "{job}.batch: no container of yours runs here"),
        ("{job}.9 -- true", 31, "step {job}.9: not running; running: .*{job}.0 (app) on n[1-2]"),
        ("--node=n2 {job}.2 -- true", 31, "--node=n2: {job}.2 is on n1"),
        ("9999 -- true", 31, "job 9999: no such job"),
        ("x -- true", 64, "x: not JOBID[.STEP]"),
    ],
)  # fmt: skip
def test_what_can_not_be_entered(running: Running, enter: Enter, words: str, code: int, message: str) -> None:
    done = enter(words.format(job=running.job))
    assert (done.returncode, done.stdout) == (code, "")
    pattern = ".*".join(re.escape(part) for part in message.format(job=running.job).split(".*"))
    lines = [line for line in done.stderr.splitlines() if line.startswith("slurm-ch: ")]
    assert len(lines) == 1
    assert re.search(pattern, lines[0]), lines


def test_somebody_elses_job_and_one_that_waits(running: Running, enter: Enter) -> None:
    held = running.submit("--hold --wrap=true")
    assert f"job {held}: pending, not running" in enter(f"{held} -- true").stderr
    done = running.cluster.run(["sbatch", "--parsable", "--hold", "-o/dev/null", "--wrap=true"], user="root")
    theirs = done.stdout.strip()
    assert f"job {theirs}: belongs to root, not to you" in enter(f"{theirs} -- true").stderr
    running.cluster.run(["scancel", theirs, held], user="root")


def test_from_within_another_job(running: Running) -> None:
    # Neither its variables nor its defaults for steps may count.
    line = f"srun --overlap --overcommit -n1 --jobid={running.het} --het-group=0 {SLURM_CH} enter {running.job}.0 -- cat /marker"
    done = running.sh(
        f"export SLURM_CH_IMAGE=/nonexistent SLURM_NTASKS=3; {SLURM_CH} enter {running.job}.0 -- cat /marker"
    )
    assert (done.returncode, done.stdout) == (0, "one\n"), done
    done = running.sh(line)
    assert (done.returncode, done.stdout) == (0, "one\n"), done


def test_ps(running: Running, image_sqfs: Path) -> None:
    done = running.sh(f"{SLURM_CH} ps --json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    found = {(row["job"], row["step"], row["node"]): (row["image"], row["tasks"]) for row in rows}
    bare = found.pop((running.job, "2", "n1"))
    assert bare[1] == 1
    assert found == {
        (running.job, "0", "n1"): (str(image_sqfs), 2),
        (running.job, "0", "n2"): (str(image_sqfs), 1),
        (f"{running.array}_3", "batch", "n1"): (str(image_sqfs), 1),
        (f"{running.het}+0", "0", "n1"): (str(image_sqfs), 1),
        (f"{running.het}+1", "0", "n2"): (str(image_sqfs), 1),
    }
    assert all(0 <= row["seconds"] < 600 for row in rows)


def test_ps_of_one_job_as_a_table(running: Running, image_sqfs: Path) -> None:
    done = running.sh(f"{SLURM_CH} ps {running.array}_3")
    head, row = (line.split() for line in done.stdout.splitlines())
    assert head == ["JOB", "STEP", "NODE", "IMAGE", "TASKS", "AGE"]
    assert row[:5] == [f"{running.array}_3", "batch", "n1", str(image_sqfs), "1"]
    assert re.fullmatch(r"\d+:\d\d", row[5])


def test_ps_of_nodes_that_do_not_answer(running: Running, world_tmp: Path) -> None:
    bin_ = world_tmp / "no-srun"
    bin_.mkdir()
    (bin_ / "srun").write_text("#!/bin/sh\necho srun: error: nodes are down >&2\nexit 1\n")
    (bin_ / "srun").chmod(0o755)
    env = {**running.cluster.environ(running.user), "PATH": f"{bin_}:/usr/bin:/bin"}
    done = running.sh(f"{SLURM_CH} ps {running.job}", env=env)
    assert done.returncode == 31
    assert done.stderr == f"slurm-ch: error: job {running.job}: can't ask n[1-2]: srun: error: nodes are down\n"


def test_ps_where_a_task_prolog_talks(running: Running, world_tmp: Path) -> None:
    bin_ = world_tmp / "talking-srun"
    bin_.mkdir()
    prolog = world_tmp / "prolog"
    prolog.write_text("#!/bin/sh\necho 'print welcome to this node'\n")
    (bin_ / "srun").write_text(f'#!/bin/sh\nexec /usr/bin/srun --task-prolog={prolog} "$@"\n')
    for path in (prolog, bin_ / "srun"):
        path.chmod(0o755)
    env = {**running.cluster.environ(running.user), "PATH": f"{bin_}:/usr/bin:/bin"}
    done = running.sh(f"{SLURM_CH} ps {running.array}_3", env=env)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2), done


# --- the hold on a process ----------------------------------------------------


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a user namespace of its own that says it is in an image."""
    command = ["unshare", "-Ur", "env", "CH_RUNNING=x", "sh", "-c", "echo; read x"]
    # No exec after the word: /proc tells nothing of a process in the middle of one.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_process_that_is_no_longer_listed_is_not_entered(
    mocker: MockerFixture, other: subprocess.Popen[bytes]
) -> None:
    one = containers.StepProcess(other.pid, "0", 0)
    mocker.patch.object(containers, "list_processes", return_value=[one])
    (found,) = containers.find(1, None, "n1")
    assert (found.image, found.tasks) == ("x", 1)
    before = set(os.listdir("/proc/self/fd"))
    # Listed when we opened it, and not after: its number may mean another by now.
    mocker.patch.object(containers, "list_processes", side_effect=[[one], []])
    assert containers.find(1, None, "n1") == []
    assert set(os.listdir("/proc/self/fd")) == before
    other.kill()
    other.wait()
    with pytest.raises(ChError, match=f"can't open /proc/{other.pid}/ns/user$"):
        found.open_namespaces()
    mocker.patch.object(containers, "list_processes", return_value=[one])
    assert containers.find(1, None, "n1") == []


def test_listpids() -> None:
    text = """PID      JOBID    STEPID   LOCALID GLOBALID
141      2        batch    -       -
137      2        batch    0       0
12       2        0        1       5
11       2        0        0       4
There are no steps for job 0 on node n1.
"""
    found = containers.parse_listpids(text)
    assert [(one.pid, one.step, one.local_id) for one in found] == [
        (11, "0", 0),
        (12, "0", 1),
        (137, "batch", 0),
        (141, "batch", None),
    ]
