# SPDX-License-Identifier: Apache-2.0
"""A whole Slurm cluster comes up, works, and goes without a trace."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from slurm_ch.sandbox import config, machine
from slurm_ch.sandbox.cluster import Cluster
from slurm_ch.sandbox.machine import ClusterError
from slurm_ch.slurm import commands

from .stage import (
    NEEDS_SLURM,
    assert_gone,
    processes_of,
    wait_until,
)

pytestmark = NEEDS_SLURM


def test_no_other_cluster_of_the_machine_has_its_jobs_numbers(cluster: Cluster) -> None:
    done = cluster.run(["srun", "-N1", "printenv", "SLURM_JOB_ID"], user="root")
    assert int(done.stdout) // 1000 == cluster._port


def test_all_nodes_are_idle(cluster: Cluster) -> None:
    assert cluster.node_names == ["n1", "n2"]
    assert set(cluster.node_states()) == {"n1", "n2"}
    assert set(cluster.node_states().values()) <= {"idle", "mixed"}
    assert cluster.version > (20,)


def test_a_slurm_with_one_slurmd_per_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Slurm as other distributions than Debian build it."""
    real = shutil.which("slurmctld", path="/usr/sbin:/usr/bin")
    said = "slurmctld: error: Duplicated NodeHostName localhost in the config file"
    other = tmp_path / "slurmctld"
    other.write_text(f'#!/bin/sh\n[ "$1" != -V ] || exec {real} -V\necho "{said}" >&2\nexit 1\n')
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ClusterError) as caught:
        Cluster(nodes=2, plugstack_lines=[]).start()
    assert str(caught.value) == (
        "2 nodes on one machine need a Slurm that was built with --enable-multiple-slurmd, which this isn't: "
        "start one node (--nodes 1)"
    )
    # With one node, what it says is no explanation.
    with pytest.raises(ClusterError, match="slurmctld did not start"):
        Cluster(nodes=1, plugstack_lines=[]).start()


@pytest.mark.parametrize("nodes", [1, 2])
def test_srun_on_nodes(cluster: Cluster, user: str, nodes: int) -> None:
    done = cluster.run(["srun", f"-N{nodes}", "sh", "-c", "echo $SLURMD_NODENAME"], user=user, timeout=20)
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.split())) == nodes


def test_run_is_the_user_with_their_groups(cluster: Cluster, user: str) -> None:
    entry = pwd.getpwnam(user)
    for prefix in ([], ["srun"]):
        done = cluster.run([*prefix, "sh", "-c", "id -u; id -g; id -G"], user=user, timeout=20)
        uid, gid, groups = done.stdout.splitlines()
        assert (int(uid), int(gid)) == (entry.pw_uid, entry.pw_gid)
        assert set(map(int, groups.split())) == set(os.getgrouplist(user, entry.pw_gid))


def test_environment_is_the_users(cluster: Cluster, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("TERM", "vt100")
    environ = cluster.environ(user)
    assert environ["SLURM_CONF"] == cluster.conf
    assert environ["USER"] == environ["LOGNAME"] == user
    assert environ["HOME"] == pwd.getpwnam(user).pw_dir
    assert environ["TERM"] == "vt100"
    assert [name for name in environ if name.startswith("SLURM_")] == ["SLURM_CONF"]


def test_jobs_share_the_nodes(cluster: Cluster, user: str) -> None:
    """Jobs that request all CPUs run at the same time."""
    command = ["srun", "-Jpair", "-N2", "--overcommit", "-n64", "sleep", "60"]
    jobs = [cluster.popen(command, user=user, stderr=subprocess.DEVNULL) for _ in range(2)]

    def running() -> int:
        listed = cluster.run(["squeue", "--noheader", "--name=pair", "--states=running"], user=user)
        return len(listed.stdout.splitlines())

    wait_until(lambda: running() == len(jobs))
    cluster.run(["scancel", "--name=pair"], user=user)
    for job in jobs:
        job.wait(timeout=30)


def test_run_timeout_ends_the_job(cluster: Cluster, user: str) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        cluster.run(["sh", "-c", "srun -Jlate sleep 600; :"], user=user, timeout=1)
    left = cluster.run(["squeue", "--noheader", "--name=late", "--states=running"], user=user)
    assert left.stdout == ""


def test_two_clusters_at_once(cluster: Cluster, user: str) -> None:
    with Cluster(nodes=1, plugstack_lines=[]) as other:
        assert other.directory != cluster.directory
        for each in (other, cluster, other):
            done = each.run(["srun", "sh", "-c", "echo $SLURM_CONF"], user=user, timeout=20)
            assert done.stdout.strip() == each.conf
        directory = other.directory
    assert_gone(directory)
    assert cluster.run(["srun", "true"], user=user, timeout=20).returncode == 0


@pytest.mark.parametrize("kind", ["srun", "sbatch"])
def test_stop_lets_jobs_clean_up(parent: Path, user: str, kind: str) -> None:
    mark = parent / "mark"
    os.mkfifo(fifo := parent / "fifo")
    for path in (mark, fifo):
        path.touch()
        path.chmod(0o666)
    script = f"trap 'echo term > {mark}; exit' TERM; echo > {fifo}; while :; do sleep 0.1; done"
    with Cluster(plugstack_lines=[], directory_parent=str(parent)) as one:
        if kind == "srun":
            one.popen(["srun", "-u", "sh", "-c", script], user=user)
        else:
            batch = f"#!/bin/sh\nsrun sh -c {shlex.quote(script)}\n"
            one.run(["sbatch", "--output=/dev/null"], user=user, input=batch)
        assert fifo.read_text() == "\n"
    assert mark.read_text() == "term\n"
    mark.unlink()
    fifo.unlink()


def test_stop_ends_clients(user: str) -> None:
    with Cluster(plugstack_lines=[]) as one:
        client = one.popen(["srun", "sleep", "600"], user=user)
    assert client.returncode is not None


def test_stop_ends_what_left_its_job(parent: Path, user: str) -> None:
    """A daemon of a job that is over belongs to nobody but the supervisor."""
    with Cluster(plugstack_lines=[], directory_parent=str(parent)) as one:
        done = one.run(["srun", "sh", "-c", "setsid -f sleep 600 >/dev/null 2>&1"], user=user, timeout=20)
        assert done.returncode == 0
        assert any("sleep" in line for line in processes_of(parent))


def test_exception_leaves_nothing(parent: Path) -> None:
    one = Cluster(plugstack_lines=[], directory_parent=str(parent))
    with pytest.raises(ZeroDivisionError), one:
        raise ZeroDivisionError


@pytest.mark.parametrize("who", ["guard", "supervisor"])
def test_nothing_outlives_a_kill_while_a_job_runs(parent: Path, user: str, who: str) -> None:
    """A slurmstepd is in no group, session or parent's care of anybody that was killed."""
    with Cluster(plugstack_lines=[], directory_parent=str(parent)) as one:
        assert one._supervisor is not None
        guard = one._supervisor.pid
        job = one.popen(["srun", "sh", "-c", "echo up; exec sleep 600"], user=user, stdout=subprocess.PIPE, text=True)
        assert job.stdout is not None
        assert job.stdout.readline() == "up\n"
        (supervisor,) = Path(f"/proc/{guard}/task/{guard}/children").read_text().split()
        os.kill(guard if who == "guard" else int(supervisor), signal.SIGKILL)
        # Srun's second process as well: without a munged it tries for 10 s to cancel the step.
        os.killpg(job.pid, signal.SIGKILL)
        job.communicate()
        wait_until(lambda: processes_of(parent) == [] and list(parent.iterdir()) == [])


def test_killed_supervisor_takes_the_daemons_along(parent: Path) -> None:
    with Cluster(nodes=2, plugstack_lines=[], directory_parent=str(parent)) as one:
        assert one._supervisor is not None
        one._supervisor.kill()
        wait_until(lambda: processes_of(parent) == [])


def test_unrelated_children_survive() -> None:
    with subprocess.Popen(["sleep", "600"]) as bystander:
        with Cluster(plugstack_lines=[]):
            pass
        assert bystander.poll() is None
        bystander.kill()


def test_a_daemon_that_fails_is_named(parent: Path) -> None:
    with pytest.raises(ClusterError, match=r"slurmctld did not start \(status 1\)") as caught:
        Cluster(plugstack_lines=[], slurm_conf_extra="Nonsense=yes", directory_parent=str(parent)).start()
    assert "Nonsense" in str(caught.value)


def test_a_node_that_fails_is_named(parent: Path) -> None:
    with pytest.raises(ClusterError, match=r"(?s)n1 did not start.*no-such-plugin"):
        Cluster(
            plugstack_lines=["required /no-such-plugin.so"],
            directory_parent=str(parent),
        ).start()


def test_taken_port_is_retried(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = machine.free_ports(2)
    with Cluster(plugstack_lines=[]) as first:
        ports = iter([first._port, first._port - 1, wanted])
        monkeypatch.setattr(machine, "free_ports", lambda _count: next(ports))
        with Cluster(plugstack_lines=[], directory_parent=str(parent)) as second:
            assert second._port == wanted


def test_cluster_outlives_the_thread_that_started_it(user: str) -> None:
    one = Cluster(plugstack_lines=[])
    starter = threading.Thread(target=one.start)
    starter.start()
    starter.join()
    try:
        assert one.run(["srun", "true"], user=user, timeout=20).returncode == 0
    finally:
        one.stop()
    assert_gone(one.directory)


def test_unknown_user_is_an_error(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match="nobody-at-all: no such user"):
        cluster.run(["true"], user="nobody-at-all")


@pytest.mark.parametrize(
    ("text", "version"),
    [("slurm-wlm 22.05.8", (22, 5, 8)), ("slurm 26.05.5-1", (26, 5, 5)), ("what?", ())],
)
def test_version(text: str, version: tuple[int, ...]) -> None:
    assert commands.parse_version(text) == version


def test_cgroups_are_disabled_where_slurm_knows_the_word() -> None:
    assert config.cgroup_conf((22, 5, 8)) is None
    assert config.cgroup_conf((24, 11, 5)) == "CgroupPlugin=disabled\n"
