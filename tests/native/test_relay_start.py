# SPDX-License-Identifier: Apache-2.0
"""ch-join's part of the relay: the broker's start."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.engine import task_plan
from slurm_ch.plugin import tickets

from . import relay as stage
from .test_ch_join import end, join, namespaces, pair, sockets_closed

__all__ = ["namespaces", "sockets_closed"]


def issue(launcher_end: socket.socket, namespaces: list[int], plan: list[tuple[str, str]], place: str = "") -> None:
    """Hand out a ticket with a socket for the broker, bound to `place`."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if place:
        listener.bind(place)
        listener.listen()
    task_socket = tickets.TaskSocket(launcher_end.detach())
    task_socket.issue(namespaces[0], namespaces[1], task_plan.plan_file(task_plan.encode(plan)), listener.fileno())
    task_socket.close()
    listener.close()


REPORT = """#!/bin/bash
exec > {report}.new
echo "$@"
for n in {{0..100}}; do [ ! -e /proc/$$/fd/$n ] || readlink /proc/$$/fd/$n; done | sed 's/:.*//' | sort | uniq -c | sed 's/^ *//'
read -r _ _ _ _ _ session _ < /proc/$$/stat; [ $session = $$ ] && echo leader
echo $ONLY_HOST $INSIDE $PWD $(ulimit -n)
mv {report}.new {report}
"""


def ch_join_beside(relay: str, directory: Path, program: str | Path = paths.CH_JOIN) -> Path:
    """Return a copy of ch-join in a directory of its own, with a ch-relay of the given text ("" for none) beside it."""
    directory.mkdir()
    if relay:
        stage.write_script(directory / "ch-relay", relay)
    return Path(shutil.copy(program, directory / "ch-join"))


@pytest.mark.parametrize("lifetime", ["t", "s"])
def test_the_broker_s_start(namespaces: list[int], world_tmp: Path, lifetime: str) -> None:
    report = world_tmp / f"broker-{lifetime}"
    program = ch_join_beside(REPORT.format(report=report), world_tmp / f"broker-{lifetime}.d")
    tasks_end, launcher_end = pair()
    issue(launcher_end, namespaces, [("E", "INSIDE=1")])
    wait = f"until [ -e {report} ]; do :; done; echo $INSIDE"
    look = "for n in 0 1 2 3 4 5 6 7 8 9; do [ ! -e /proc/$$/fd/$n ] || echo $n; done"
    value = f"{tasks_end.fileno()}:{lifetime}srun,squeue"
    with open("/etc/hostname") as something:
        # The broker does not get what else the task has open.
        high = fcntl.fcntl(something, fcntl.F_DUPFD, 50)
        env = {"SLURM_LOCALID": "0", "ONLY_HOST": "1"}
        task = join(tasks_end, "sh", "-c", f"{wait}; {look}", value=value, program=program, more_fds=[high], **env)
        os.close(high)
    assert end(task) == (0, "1\n0\n1\n2\n", "")
    words, *lines = report.read_text().splitlines()
    assert words == "--serve srun,squeue"
    # The socket and the watched process; /dev/null; and what the stand-in itself has opened.
    opened = {"1 socket", "1 anon_inode", "2 /dev/null", f"1 {report}.new"}
    assert set(lines[:-1]) == {*opened, "leader"}
    assert lines[-1].split()[:2] == ["1", os.getcwd()]


def test_one_broker_per_node(namespaces: list[int], world_tmp: Path) -> None:
    """Had the second task started one as well, it would still have the socket."""
    program = ch_join_beside("#!/bin/sh\nexec sleep 5\n", world_tmp / "broker-that-stays")
    place = str(world_tmp / "broker-socket")
    tasks_end, launcher_end = pair()
    issue(launcher_end, namespaces, [], place)
    value = f"{tasks_end.fileno()}:tsrun"
    for _ in range(2):
        assert end(join(tasks_end, "true", value=value, program=program, SLURM_LOCALID="1")) == (0, "", "")
    tasks_end.close()  # the ticket in it
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock, pytest.raises(ConnectionRefusedError):
        sock.connect(place)


@pytest.mark.parametrize("way", ["", " echo", "+echo"])
def test_a_ticket_cannot_ask_for_a_broker(
    namespaces: list[int], ch_join_sanitized: Path, world_tmp: Path, way: str
) -> None:
    """Only the plugin allows a broker; a plan that names a program is refused."""
    started, named = world_tmp / f"started{way}", world_tmp / f"named-by-a-plan{way}"
    program = ch_join_beside(f"#!/bin/sh\ntouch '{started}'\n", world_tmp / f"no-broker{way}", ch_join_sanitized)
    tasks_end, launcher_end = pair()
    issue(launcher_end, namespaces, [])
    done = end(join(tasks_end, "echo", "ran", value=f"{tasks_end.fileno()}{way}", program=program))
    why = "the launcher offers a relay of Slurm's commands where the plugin knows of none"
    assert done == (31, "", f"slurm-ch: error: {why}\n")
    assert not started.exists()
    other = stage.write_script(world_tmp / "other-program", f"#!/bin/sh\ntouch '{named}'\n")
    tasks_end, launcher_end = pair()
    issue(launcher_end, namespaces, [("B", f"tsrun:{other}")])
    code, out, err = end(join(tasks_end, "echo", "ran", value=f"{tasks_end.fileno()}:tsrun{way}", program=program))
    assert (code, out) == (31, "")
    assert "different versions" in err
    assert not named.exists()


@pytest.mark.parametrize("relay", ["", "#!/nonexistent\n"])
def test_a_broker_that_can_t_start(namespaces: list[int], ch_join_sanitized: Path, world_tmp: Path, relay: str) -> None:
    tasks_end, launcher_end = pair()
    issue(launcher_end, namespaces, [])
    program = ch_join_beside(relay, world_tmp / f"no-relay-{len(relay)}", ch_join_sanitized)
    code, out, err = end(join(tasks_end, "echo", "ran", value=f"{tasks_end.fileno()}:tsrun", program=program))
    if relay:  # found out too late to tell; relays will
        assert (code, out) == (0, "ran\n")
        return
    assert (code, out) == (31, "")
    assert err.startswith("slurm-ch: error: can't start the relay of Slurm's commands: ")
    assert "Sanitizer" not in err


def test_what_a_relayed_srun_hands_to_its_step(namespaces: list[int], ch_join_sanitized: Path) -> None:
    relayed = {"PATH": "/usr/bin:/bin:/x", "LD_X": "1", "LD_Y": "", "PWD": "/usr", "": "x"}
    env = {f"SLURM_CH_RELAYED_{name}": value for name, value in relayed.items()} | {"LD_Y": "gone", "LD_Z": "kept"}
    tasks_end, launcher_end = pair()
    task_socket = tickets.TaskSocket(launcher_end.detach())
    plan = task_plan.encode([("X", "SEEN=$LD_X"), ("E", "LD_Z=ruled")])
    task_socket.issue(namespaces[0], namespaces[1], task_plan.plan_file(plan))
    task_socket.close()
    code, out, err = end(join(tasks_end, "sh", "-c", "pwd; env -0", program=ch_join_sanitized, **env))
    where, _, rest = out.partition("\n")
    found = dict(entry.split("=", 1) for entry in rest.split("\0") if entry)
    assert (code, where, err) == (0, "/usr", "")
    assert {name: value for name, value in found.items() if "RELAYED" in name} == {"SLURM_CH_RELAYED_": "x"}
    assert (found["PATH"], found["LD_X"], found["SEEN"], found["LD_Z"]) == ("/usr/bin:/bin:/x", "1", "1", "ruled")
    assert "LD_Y" not in found
    tasks_end, launcher_end = pair()
    task_socket = tickets.TaskSocket(launcher_end.detach())
    task_socket.issue(namespaces[0], namespaces[1], task_plan.plan_file(task_plan.encode([("C", "/bin")])))
    task_socket.close()
    assert end(join(tasks_end, "pwd", SLURM_CH_RELAYED_PWD="/usr"))[1] == f"{os.path.realpath('/bin')}\n"
