# SPDX-License-Identifier: Apache-2.0
"""proctrack/cgroup: all that a join without the plugin has started is in the step's cgroup, and ends with it;
so does what serves a container's image, and who has joined the container goes on.

Only in the whole campaign: it takes a machine that has the freezer of cgroup v1, and a Slurm that uses it.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.sandbox.cluster import Cluster
from tests import leftovers
from tests.command import SLURM_CH

from .conftest import FULL, Record
from .harness import USER, wait_for

CONF = "CgroupPlugin=cgroup/v1\nCgroupMountpoint={}\n"


@pytest.fixture
def groups(world_tmp: Path) -> Iterator[Path]:
    """A freezer of this run's own: nodes of other runs have the same names."""
    place = Path(tempfile.mkdtemp(prefix="cgroup-", dir=world_tmp))
    place.chmod(0o755)
    everybodys, own = place / "everybodys", place / "freezer"
    everybodys.mkdir()
    own.mkdir()
    subprocess.run(["mount", "-t", "cgroup", "-o", "freezer", "freezer", everybodys], check=True)
    group = Path(tempfile.mkdtemp(prefix="slurm_ch-chaos-", dir=everybodys))
    subprocess.run(["mount", "--bind", group, own], check=True)
    yield place
    for directory in sorted(group.rglob("*"), reverse=True):
        if directory.is_dir():
            directory.rmdir()
    subprocess.run(["umount", own], check=True)
    group.rmdir()
    subprocess.run(["umount", everybodys], check=True)


def members(groups: Path) -> dict[int, str]:
    """Return who is in the step's cgroup: pid and name."""
    found = {}
    for file in groups.glob("freezer/**/step_0/**/cgroup.procs"):
        for pid in map(int, file.read_text().split()):
            found[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
    return found


if FULL:

    @pytest.mark.parametrize("end", ["the tasks", "scancel"])
    @pytest.mark.row("D13")
    def test_a_join_s_holder_and_server_end_with_the_step(
        groups: Path, image_sqfs: Path, record: Record, end: str
    ) -> None:
        """Of two tasks one never joins, so the holder is there, and with it the container, until the step's end."""
        gate = groups / "gate"
        os.mkfifo(gate)
        gate.chmod(0o666)
        # Open at both ends, so that each task finds its line in it.
        end_of_gate = os.open(gate, os.O_RDWR | os.O_CLOEXEC)
        join = f"{SLURM_CH} run --join {image_sqfs} -- cat /marker"
        line = f"test $SLURM_PROCID = 1 || {join}; read x < {gate}"
        conf = {"cgroup.conf": CONF.format(groups)}
        with Cluster(nodes=1, cpus=4, slurm_conf_extra="ProctrackType=proctrack/cgroup", files=conf) as cluster:
            assert cluster._supervisor is not None
            daemons = set(leftovers.descendants(cluster._supervisor.pid))
            srun = cluster.popen(
                ["srun", "--overcommit", "-n2", "sh", "-c", line], user=USER, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env={**cluster.environ(USER), "PATH": "/usr/bin:/bin"},
            )  # fmt: skip
            assert srun.stdout is not None
            assert srun.stdout.readline() == "one\n"
            names = set(members(groups).values())
            assert {"slurm_ch holder", "slurm_ch guard", "sh"} <= names
            assert any(name.startswith("ch-squashfuse") for name in names), names
            if end == "scancel":
                cluster.run(["scancel", "--user", USER], user=USER)
            else:
                # Both tasks end: nobody waits for the holder.
                os.write(end_of_gate, b"x\nx\n")
            out, err = srun.communicate(timeout=60)
            assert wait_for(lambda: not set(leftovers.descendants(cluster._supervisor.pid)) - daemons), out + err
            assert not members(groups)
            assert (srun.returncode == 0) == (end != "scancel")
        os.close(end_of_gate)
        record(f"proctrack/cgroup, end by {end}", cases=1, problems=0)

    @pytest.mark.parametrize("name", ["c", "$SLURM_JOB_ID.0", ""], ids=["name", "step", "enter"])
    def test_who_joined_goes_on_without_the_step_that_made_the_container(
        groups: Path, image_sqfs: Path, name: str
    ) -> None:
        """What Slurm kills with that step served the image."""
        place = groups / "work"
        place.mkdir()
        place.chmod(0o777)
        join = f"srun -n1 --overlap --container-name={name}" if name else f"{SLURM_CH} enter $SLURM_JOB_ID.0 --"
        # Each waits at a FIFO that the container shows; one of two messages is open at both ends.
        script = f"""#!/bin/sh
mkfifo up go
exec 3<> up
first=$1
eval "$first" &
read x <&3
{join} sh -c "echo joined > {place}/up; read x < {place}/go; cat /marker" > out 2>&1 &
two=$!
read x <&3
echo > first
wait %1
{join} cat /marker > third 2>&1
echo > go
wait $two; echo $? >> out
"""
        (place / "job.sh").write_text(script)
        (place / "job.sh").chmod(0o755)
        os.mkfifo(place / "first")
        (place / "first").chmod(0o666)
        conf = {"cgroup.conf": CONF.format(groups)}
        site = [f"required {paths.PLUGIN} pyxis=yes"]
        named = "--container-name=c" if name == "c" else "--container-writable"
        made = f"srun -n1 --overlap --container-image={image_sqfs} {named} --container-mounts={place}"
        first = f"{made} sh -c 'echo up > {place}/up; read x < {place}/first'"
        with Cluster(
            nodes=1, cpus=4, slurm_conf_extra="ProctrackType=proctrack/cgroup", files=conf, plugstack_lines=site
        ) as cluster:
            env = {**cluster.environ(USER), "PATH": "/usr/bin:/bin"}
            cluster.run(["salloc", "-Q", "-n2", "./job.sh", first], user=USER, timeout=60, env=env, cwd=place)
        assert (place / "out").read_text() == "one\n0\n"
        if name == "c":
            # Found by its mounts, not by whose step it was.
            assert (place / "third").read_text() == "one\n"
