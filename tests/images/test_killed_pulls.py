# SPDX-License-Identifier: Apache-2.0
"""A pull is killed, as when memory runs out: one message reports it and the remedy, and others go on."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from slurm_ch import agreement, paths
from slurm_ch.sandbox.cluster import Cluster

from .registry import Registry, Slow, registries_conf
from .users import TIMEOUT, User, finished

REMEDY = "(killed, or no Python could start): if memory ran out, ask for more, or pull the image before the job (`slurm-ch pull`)"


def programs(*words: str) -> list[int]:
    """Return the processes of this test's clusters that have words with all these ends."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if all(any(one.endswith(word.encode()) for one in line) for word in words):
            found.append(int(path.parent.name))
    return found


def kill(*words: str) -> None:
    """Kill the one process that has such words."""
    (pid,) = programs(*words)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.row("F10")
def test_srun_whose_puller_is_killed(me: User, slow: Slow) -> None:
    process = me.popen(f"srun --ch-image={slow.reference('killed/srun')} cat /marker")
    slow.wait_until_busy()
    kill(agreement.CHECK_OPTION, "/launch.py")
    out, said = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out) == (33, "")
    assert said.splitlines()[1:] == [f"srun: error: slurm_ch: what finds and pulls the image died {REMEDY}"]
    assert me.good("squeue -h --me") == ""
    # Nobody waits for the dead, and what they left goes.
    assert me.in_progress() and list((me.cache / "lock").iterdir())
    slow.go_on()
    assert me.good(f"srun -Q --ch-image={slow.reference('killed/srun')} cat /marker") == "from the registry\n"
    assert me.in_progress() == [] and list((me.cache / "lock").iterdir()) == []


@pytest.mark.row("F10")
def test_a_batch_script_whose_puller_is_killed(me: User, slow: Slow) -> None:
    job = me.good(f"sbatch --parsable -o out --ch-image={slow.reference('killed/batch')} --wrap='echo began'").strip()
    slow.wait_until_busy()
    kill("/launch.py", "n1")
    finished(me)
    text = (me.home / "out").read_text()
    assert text.count(f"error: the launcher died before the container was ready {REMEDY}") == 1
    assert "began" not in text
    assert "ExitCode=33:0" in me.good(f"scontrol show job {job}")


@pytest.mark.row("F10")
def test_skopeo_is_killed(me: User, slow: Slow) -> None:
    process = me.popen(f"srun --ch-image={slow.reference('killed/skopeo')} true")
    slow.wait_until_busy()
    kill("skopeo", "copy")
    _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 31
    assert said.splitlines()[-1].endswith(f"skopeo was killed by signal 9: {REMEDY.partition(': ')[2]}")
    assert me.in_progress() == [] and list((me.cache / "lock").iterdir()) == []


@pytest.fixture
def impatient(open_tmp: Path) -> Path:
    """A launcher that waits 5 s, not 25, for one that is gone; how long it waits, test_waiting_nodes.py has."""
    package = shutil.copytree(paths.PACKAGE, open_tmp / "slurm_ch", ignore=shutil.ignore_patterns("__pycache__"))
    source = package / "plugin/references.py"
    text = source.read_text()
    assert "\n_IDLE_SECONDS = 25.0\n" in text
    source.write_text(text.replace("_IDLE_SECONDS = 25.0", "_IDLE_SECONDS = 5.0"))
    return package / "plugin/launch.py"


@pytest.mark.row("F11")
def test_the_other_nodes_go_on_when_the_first_dies(me: User, slow: Slow, plain: Registry, impatient: Path) -> None:
    """With pull=node: one of those that waited pulls, and only the tasks of the dead node's launcher fail."""
    with Cluster(
        nodes=4, plugstack_lines=[f"required {paths.PLUGIN} launcher={impatient} pull=node cache={me.cache}"]
    ) as own:
        mine = User(own, me.name, me.home, plain)
        registries_conf(Path(mine.env["CONTAINERS_REGISTRIES_CONF"]), plain.host, slow.host)
        process = mine.popen(
            f"srun -N4 --ch-image={slow.reference('killed/node')} sh -c 'cat /marker; echo $SLURMD_NODENAME'"
        )
        slow.wait_until_busy()
        deadline = time.monotonic() + TIMEOUT
        while len([node for node in ("n2", "n3", "n4") if programs("/launch.py", node)]) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        kill("/launch.py", "n1")
        slow.go_on()
        out, said = process.communicate(timeout=2 * TIMEOUT)
    assert process.returncode == 33, said
    assert sorted(out.splitlines()) == ["from the registry"] * 3 + ["n2", "n3", "n4"]
    assert said.count(f"slurm-ch: n1: error: the launcher died before the container was ready {REMEDY}") == 1
    assert said.count("pulled in ") == 1
    assert mine.in_progress() == [] and list((mine.cache / "lock").iterdir()) == []
