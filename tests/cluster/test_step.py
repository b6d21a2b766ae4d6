# SPDX-License-Identifier: Apache-2.0
"""A step in a container, on a real Slurm."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm_ch.sandbox.cluster import Cluster
from tests import leftovers

from .conftest import Run

Good = Callable[..., str]

NAMESPACES = "'echo $SLURMD_NODENAME $SLURM_PROCID $(readlink /proc/self/ns/user) $(readlink /proc/self/ns/mnt)'"


def namespaces(output: str) -> dict[tuple[str, int], tuple[str, str]]:
    """Return (user, mount) namespaces by (node, rank)."""
    found = {}
    for line in output.splitlines():
        node, rank, user_ns, mount_ns = line.split()
        found[node, int(rank)] = (user_ns, mount_ns)
    return found


@pytest.mark.row("J1")
def test_tasks_of_a_node_share_one_pair_of_namespaces(good: Good) -> None:
    tasks = namespaces(good(f"srun -N1 --overcommit -n4 --ch-image=$IMG sh -c {NAMESPACES}"))
    assert len(tasks) == 4
    assert len(set(tasks.values())) == 1
    user_ns, mount_ns = next(iter(tasks.values()))
    assert user_ns != os.readlink("/proc/self/ns/user")
    assert mount_ns != os.readlink("/proc/self/ns/mnt")


def test_command_runs_in_the_image_as_the_user(good: Good, user: str) -> None:
    out = good(
        "srun --ch-image=$IMG sh -c 'cat /marker; id -un; echo $CH_RUNNING; test -e /usr/bin/srun || echo no srun'"
    )
    assert out.splitlines() == ["one", user, out.splitlines()[2], "no srun"]
    assert out.splitlines()[2].endswith("image.sqfs")


def test_directory_image(good: Good, image_dir: Path) -> None:
    assert good(f"srun --ch-image={image_dir} cat /marker") == "one\n"


def test_image_by_name(good: Good, world_tmp: Path, image_dir: Path) -> None:
    storage = world_tmp / "storage"
    (storage / "img").mkdir(parents=True)
    (storage / "img" / "a%b+1").symlink_to(image_dir)
    assert good(f"srun --ch-storage={storage} --ch-image=a/b:1 cat /marker") == "one\n"
    assert good(f"CH_IMAGE_STORAGE={storage} srun --ch-image=a/b:1 cat /marker") == "one\n"


@pytest.mark.row("I1a")
def test_relative_image_path(good: Good, world_tmp: Path) -> None:
    assert good(f"cd {world_tmp}; srun --ch-image=image.sqfs cat /marker") == "one\n"


@pytest.mark.parametrize("how", ["-N2 -n3", "-N2 -n4 -m cyclic"])
def test_steps_over_two_nodes(good: Good, how: str) -> None:
    tasks = namespaces(good(f"srun --overcommit {how} --ch-image=$IMG sh -c {NAMESPACES}"))
    assert {node for node, _ in tasks} == {"n1", "n2"}
    for node in ("n1", "n2"):
        assert len({pair for (where, _), pair in tasks.items() if where == node}) == 1
    assert len(set(tasks.values())) == 2


@pytest.mark.parametrize("count", [200, 600])
def test_many_tasks_on_one_node(good: Good, count: int) -> None:
    out = good(
        f"ulimit -n 1024; srun -N1 --overcommit -n{count} --ch-image=$IMG readlink /proc/self/ns/mnt", timeout=120
    )
    assert len(out.splitlines()) == count
    assert len(set(out.splitlines())) == 1


@pytest.mark.row("J4")
def test_a_command_that_ends_at_once_strands_nobody(good: Good) -> None:
    assert good("srun -N1 --overcommit -n64 --ch-image=$IMG true") == ""


@pytest.mark.row("R2a")
def test_values_that_differ_per_task_stay_the_tasks(good: Good) -> None:
    out = good("srun -N1 --overcommit -n8 --ch-image=$IMG sh -c 'echo $SLURM_PROCID $SLURM_LOCALID $SLURM_TASK_PID'")
    ranks = sorted(tuple(map(int, line.split())) for line in out.splitlines())
    assert [(rank, local) for rank, local, _ in ranks] == [(n, n) for n in range(8)]
    assert len({pid for _, _, pid in ranks}) == 8


def test_nothing_of_ours_is_in_the_command(good: Good) -> None:
    bare = good("srun sh -c 'for f in /proc/$$/fd/*; do echo $(basename $f); done; env'").splitlines()
    inside = good("srun --ch-image=$IMG sh -c 'for f in /proc/$$/fd/*; do echo ${f##*/}; done; env'").splitlines()
    assert [line for line in inside if line.isdigit()] == [line for line in bare if line.isdigit()]
    names = {line.partition("=")[0] for line in inside if "=" in line}
    assert {name for name in names if "CH_" in name and "LAUNCH_" not in name and not name.startswith("PIP_")} == {
        "CH_RUNNING"
    }


def test_no_python_stays_and_the_server_stands_apart(cluster: Cluster, user: str, sh: Run, image_sqfs: Path) -> None:
    """While a command runs, what is ours is one server, in a session of its own."""
    srun = cluster.popen(
        ["srun", "-w", "n1", "--overcommit", "-n4", f"--ch-image={image_sqfs}", "sh", "-c", "echo up $$; cat"],
        user=user,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert srun.stdout is not None
    tasks = [int(srun.stdout.readline().split()[1]) for _ in range(4)]
    assert cluster._supervisor is not None
    below = leftovers.descendants(cluster._supervisor.pid)
    assert not [line for line in below.values() if "launch.py" in line or "ch-join" in line]
    (server,) = [pid for pid, line in below.items() if "squashfuse_ll" in line]
    assert os.getsid(server) == server
    assert leftovers.parents()[server] not in {*tasks, *(leftovers.parents()[task] for task in tasks)}
    srun.communicate("", timeout=60)
    assert srun.returncode == 0


def test_exit_status_and_signals_pass(sh: Run) -> None:
    assert sh("srun --ch-image=$IMG sh -c 'exit 7'").returncode == 7
    for number in ("KILL", "SEGV", "TERM"):
        bare = sh(f"srun sh -c 'kill -{number} $$'")
        inside = sh(f"srun --ch-image=$IMG sh -c 'kill -{number} $$'")
        assert inside.returncode == bare.returncode != 0


def test_scancel_reaches_the_command(sh: Run) -> None:
    done = sh(
        """
        srun --ch-image=$IMG sh -c 'trap "echo told; cat /marker; exit 3" TERM; echo ready; while :; do sleep 0.1; done' |
        while read word; do
            echo $word
            [ $word != ready ] || scancel -s TERM $(squeue -h -o %i)
        done
        exit ${PIPESTATUS[0]}
        """
    )
    # The image is still served when the signal's handler reads from it.
    assert done.stdout.split() == ["ready", "told", "one"]
    assert done.returncode == 3


def test_interrupt_reaches_the_command(cluster: Cluster, user: str, sh: Run, image_sqfs: Path) -> None:
    script = 'trap "echo interrupted; cat /marker; exit 5" INT; echo $SLURM_JOB_ID; while :; do sleep 0.1; done'
    srun = cluster.popen(
        ["srun", f"--ch-image={image_sqfs}", "sh", "-c", script],
        user=user,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert srun.stdout is not None
    job = srun.stdout.readline().strip()
    # Not by Ctrl-C: with the second srun also kills the step, and what comes first is anybody's guess.
    assert cluster.run(["scancel", "--signal=INT", f"{job}.0"], user=user).returncode == 0
    out, err = srun.communicate(timeout=60)
    assert out == "interrupted\none\n", err
    assert srun.returncode == 5


def test_pty_is_a_working_terminal(sh: Run) -> None:
    line = "srun --pty --ch-image=$IMG sh -c 'tty; test -t 0 && test -t 1 && test -t 2 && echo terminal; echo x > /dev/tty'"
    done = sh(f'script -qec "{line}" /dev/null'.replace("$IMG", "'$IMG'").replace("'$IMG'", "$IMG"))
    assert done.returncode == 0, done
    # script(1) passes the end of its input on, and the terminal may echo it.
    words = done.stdout.replace("\r", "").replace("\0", "").replace("^@", "").replace("^D", "").split()
    assert words[0].startswith("/dev/pts/")
    assert words[1:] == ["terminal", "x"]


@pytest.mark.parametrize("where", ["--task-prolog", "TaskProlog"])
def test_prologs_run_on_the_host(world_tmp: Path, user: str, where: str, good: Good, image_sqfs: Path) -> None:
    script = world_tmp / "prolog.sh"
    script.write_text('#!/bin/bash\necho "export FROM_PROLOG=$(test -e /marker || echo host)"\necho print prolog\n')
    script.chmod(0o755)
    command = "sh -c 'echo $FROM_PROLOG; cat /marker'"
    if where == "--task-prolog":
        assert good(f"srun --task-prolog={script} --ch-image=$IMG {command}").split() == ["prolog", "host", "one"]
        return
    with Cluster(nodes=1, slurm_conf_extra=f"TaskProlog={script}") as own:
        done = own.run(["bash", "-c", f"srun --ch-image={image_sqfs} {command}"], user=user)
        assert done.stdout.split() == ["prolog", "host", "one"], done.stderr


def test_a_prolog_gets_no_descriptor_of_ours(good: Good, world_tmp: Path) -> None:
    """A process that it left running would keep the ticket, and so the container and its server."""
    script, seen = world_tmp / "looks.sh", world_tmp / "seen"
    seen.touch()
    seen.chmod(0o666)
    script.write_text(f"#!/bin/sh\nls -l /proc/self/fd > {seen}\n")
    script.chmod(0o755)
    assert good(f"srun --task-prolog={script} --ch-image=$IMG cat /marker") == "one\n"
    assert "/proc/" in seen.read_text()
    assert "socket:" not in seen.read_text()


def test_hostile_environment_reaches_the_command_only(good: Good, world_tmp: Path) -> None:
    evil = world_tmp / "evil"
    evil.mkdir()
    source = evil / "evil.c"
    source.write_text(
        '#include <unistd.h>\n__attribute__((constructor)) void f(void) { write(2, "PRELOADED\\n", 10); }\n'
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", evil / "evil.so", source], check=True)
    (evil / "python3").write_text("#!/bin/sh\necho EVIL PYTHON >&2\nexit 1\n")
    (evil / "python3").chmod(0o755)
    (evil / "os.py").write_text("raise SystemExit('EVIL MODULE')\n")
    settings = {
        "LD_PRELOAD": str(evil / "evil.so"),
        "LD_LIBRARY_PATH": str(evil),
        "PYTHONHOME": str(evil),
        "PYTHONPATH": str(evil),
        "PYTHONSTARTUP": str(evil / "os.py"),
    }
    exports = " ".join(f"{name}={value}" for name, value in settings.items())
    line = f"cd {evil}; env {exports} PATH={evil}:$PATH srun --ch-image=$IMG --input=none sh -c 'env; echo PATH is $PATH' 2>$HOME/err <&-; cat $HOME/err >&2; ! grep EVIL $HOME/err"
    out = good(line)
    for name, value in settings.items():
        assert f"{name}={value}" in out.splitlines()
    assert f"PATH is {evil}:" in out


def test_multi_prog(sh: Run, cluster: Cluster, world_tmp: Path) -> None:
    conf = world_tmp / "multi.conf"
    conf.write_text(
        "# comment\n\n 0,2\tcat /marker\n   # another\n1 sh -c 'echo $0 in $(cat /marker)' %t\n3 /bin/echo %t"
    )
    done = sh(f"srun -N1 --overcommit -n4 --ch-image=$IMG --multi-prog {conf}")
    assert (done.returncode, sorted(done.stdout.splitlines())) == (0, ["1 in one", "3", "one", "one"]), done.stderr
    conf.write_text("0 /bin/cat \\\n/marker\n")
    done = sh(f"srun --ch-image=$IMG --multi-prog {conf}")
    if cluster.version >= (23, 2, 5):
        assert (done.returncode, done.stdout) == (0, "one\n"), done.stderr
    else:
        assert (done.returncode, done.stdout) == (64, "")
        assert "--multi-prog with a backslash at a line's end need Slurm 23.02.5" in done.stderr
    # The plugin takes no other command for one.
    assert sh("srun --ch-image=$IMG echo '0 x' --multi-prog-not").returncode == 0
