# SPDX-License-Identifier: Apache-2.0
"""--ch-save: the container of a step that has ended well becomes a file."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.sandbox.cluster import Cluster

from .conftest import TIMEOUT, Run

Good = Callable[..., str]

IN = "--ch-image=$IMG --ch-write-fake --ch-save=new.sqfs"
SRUN = f"srun --quiet {IN}"
READ = "srun --quiet --ch-image=new.sqfs --ch-private-tmp"


@pytest.fixture
def place(world_tmp: Path, user: str, request: pytest.FixtureRequest) -> Path:
    """The user's directory, in which the steps start."""
    path = world_tmp / f"save-{abs(hash(request.node.name))}"
    path.mkdir()
    account = pwd.getpwnam(user)
    os.chown(path, account.pw_uid, account.pw_gid)
    return path


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def started(
    cluster: Cluster, user: str, image_sqfs: Path, place: Path
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a line of shell in the user's directory."""
    running = []

    def start(line: str, on: Cluster = cluster) -> subprocess.Popen[str]:
        env = {**on.environ(user), "IMG": str(image_sqfs), "PATH": "/usr/bin:/bin"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(on.popen(["bash", "-c", line], user=user, cwd=place, env=env, **pipes))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_what_was_written_is_in_the_file(sh: Run, good: Good, place: Path, user: str) -> None:
    script = 'echo new > /new; rm /marker; echo to a bind > bound; ls /proc/self/fd | wc -l; echo "$SLURM_CH_SAVER"'
    usual = good("srun --quiet --ch-image=$IMG sh -c 'ls /proc/self/fd | wc -l'")
    done = sh(f"{SRUN} sh -c '{script}'", cwd=place)
    assert (done.returncode, done.stdout) == (0, f"{usual}\n"), done.stderr
    line = done.stderr.strip()
    assert line.startswith("slurm-ch: n1: saved in ") and line.endswith("B: new.sqfs"), line
    assert names(place) == ["bound", "new.sqfs"]
    assert (place / "new.sqfs").owner() == user
    read = "cat /new; ls /marker bound 2>&1"
    assert good(f"{READ} --ch-cd=/ sh -c '{read}; true'", cwd=place).splitlines() == [
        "new",
        "ls: /marker: No such file or directory",
        "ls: bound: No such file or directory",
    ]


def test_the_last_of_all_tasks_saves(sh: Run, good: Good, place: Path) -> None:
    """Which one is last, nobody knows before: here task 0, which waits for the others' files."""
    script = (
        "[ $SLURM_PROCID = 0 ] && while [ ! -e /1 ] || [ ! -e /2 ] || [ ! -e /3 ]; do sleep 0.01; done; "
        "touch /$SLURM_PROCID"
    )
    for line in (f"{SRUN} -n4 -O --ntasks-per-node=4 -N1", f"{SRUN} -n4 -O -N1 --ch-overlay=$PWD/kept"):
        (place / "new.sqfs").unlink(missing_ok=True)
        done = sh(f"{line} sh -c '{script}'", cwd=place)
        assert done.returncode == 0 and done.stderr.count("saved in") == 1, done.stderr
        assert good(f"{READ} sh -c 'cd /; echo [0-9]'", cwd=place) == "0 1 2 3\n"


def test_nothing_is_saved_where_a_task_failed(sh: Run, place: Path) -> None:
    (place / "new.sqfs").write_text("precious")
    failing = "[ $SLURM_PROCID = 0 ] || exit 3"
    done = sh(f"{SRUN} -n4 -O -N1 sh -c '{failing}'", cwd=place)
    assert done.returncode == 3
    assert done.stderr.count("slurm-ch: n1: warning: --ch-save=new.sqfs: not saved: a task failed\n") == 1
    done = sh(f"srun {IN} sh -c 'kill -USR2 $$'", cwd=place)
    assert done.returncode == 128 + signal.SIGUSR2 and "User defined signal 2" in done.stderr
    done = sh(f"{SRUN} no-such-command", cwd=place)
    assert done.returncode == 127 and "no-such-command: No such file or directory\n" in done.stderr
    assert names(place) == ["new.sqfs"] and (place / "new.sqfs").read_text() == "precious"


@pytest.mark.parametrize("script", ["sleep 100", "trap 'exit 0' TERM; sleep 100 & wait"])
def test_a_cancelled_step_is_not_saved(
    sh: Run, started: Callable[..., subprocess.Popen[str]], place: Path, script: str
) -> None:
    one = started(f'{SRUN} sh -c "echo \\$SLURM_JOB_ID; {script}"')
    assert one.stdout
    sh(f"scancel {one.stdout.readline()}")
    one.communicate(timeout=TIMEOUT)
    assert names(place) == []


def test_signals_come_once(sh: Run, started: Callable[..., subprocess.Popen[str]], place: Path) -> None:
    """Slurm's to all processes of a step; those for a batch script alone come by the process that waits for it."""
    # Short naps: a shell handles what comes just before it starts a command when that has ended.
    script = "trap 'echo signal' USR1; trap 'stop=1' USR2; echo $SLURM_JOB_ID; while [ -z $stop ]; do sleep 0.1; done; exit 0"
    (place / "job.sh").write_text(f"#!/bin/sh\n{script}\n")
    one = started(f"{SRUN} --ch-cd=$PWD sh job.sh")
    assert one.stdout
    job = one.stdout.readline().strip()
    for name in ("USR1", "USR2"):
        sh(f"scancel -s {name} {job}")
        if name == "USR1":
            assert one.stdout.readline() == "signal\n"
    out, err = one.communicate(timeout=TIMEOUT)
    assert (out, "new.sqfs" in names(place)) == ("", True), err


@pytest.mark.parametrize("name", ["HUP", "USR1", "USR2", "ALRM"])
def test_a_signal_that_the_command_has_obeyed_does_not_end_the_saver(sh: Run, place: Path, name: str) -> None:
    """The command may end before Slurm has signalled the process that becomes the saver."""
    late = f"while [ -e /proc/$PPID ]; do grep -qs -e --save /proc/$PPID/cmdline && kill -{name} $PPID && break; done"
    done = sh(f"{SRUN} --ch-cd=$PWD sh -c '({late}; : > sent-{name}) > /dev/null 2>&1 & exit 0'", cwd=place)
    assert (done.returncode, names(place)) == (0, ["new.sqfs", f"sent-{name}"]), done


def test_a_batch_script_is_saved_and_its_steps_are_not(sh: Run, good: Good, place: Path) -> None:
    (place / "job.sh").write_text(
        "#!/bin/sh\n#SBATCH --ch-image=$IMG\n".replace("$IMG", good("echo $IMG").strip())
        + "#SBATCH --ch-save=new.sqfs --ch-write-fake -o out.txt\n"
        "trap 'echo signal >> /new' USR1\necho $SLURM_CH_SAVE >> /new\n"
        "srun --ch-no-passwd touch /step\nscancel --batch -s USR1 $SLURM_JOB_ID\n"
        "while [ $(wc -l < /new) = 1 ]; do sleep 0.05; done\n"
    )
    good("sbatch-wait job.sh", cwd=place)
    assert (place / "out.txt").read_text().count("saved in") == 1
    assert good(f"{READ} sh -c 'cat /new; ls /step 2>&1; true'", cwd=place) == (
        "\nsignal\nls: /step: No such file or directory\n"
    )


def test_refused_before_the_command_runs(sh: Run, place: Path) -> None:
    (place / "closed").mkdir()  # root's
    said = {
        "--ch-save=no/such/new.sqfs": (31, "no/such/new.sqfs: can't use its directory: No such file or directory"),
        "--ch-save=closed/new.sqfs": (31, "closed/new.sqfs: you can't write to its directory"),
        "--ch-save=closed": (64, "closed: it is a directory"),
        "--ch-save=closed/": (64, "closed/: not the name of a file"),
        "--ch-save=new.sqfs --ch-image=/": (64, "new.sqfs: the host as image is not saved"),
    }
    for words, (code, text) in said.items():
        done = sh(f"srun --quiet --ch-image=$IMG {words} touch {place}/run", cwd=place)
        assert done.returncode == code and f"error: --ch-save={text}" in done.stderr, (words, done.stderr)
    done = sh(f"{SRUN} touch {place}/run", cwd=place, env=None)
    assert names(place) == ["closed"]
    done = sh("salloc --ch-image=$IMG --ch-save=new.sqfs true", cwd=place)
    assert done.returncode == 64 and "salloc runs nothing in a container: give it to srun" in done.stderr


SEVERAL = "--ch-save=new.sqfs: the step has 2 nodes, and each has a container of its own: use a step of one node (-N1)"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (f"{SRUN} -N2 touch run", SEVERAL),
        ("SLURM_CH_SAVE=new.sqfs srun -N2 --ch-image=$IMG touch run", SEVERAL),
        (f"salloc -Q -N2 {SRUN} touch run", SEVERAL),
        (f"sbatch -a 1-2 {IN} --wrap='touch run'", "--ch-save=new.sqfs: each task of the array would replace it: "),
        ("sbatch array.sh", "--ch-save=new.sqfs: each task of the array would replace it: "),
        (f"{SRUN} -n1 touch run : -n1 touch run", "--ch-save=new.sqfs: an srun of several components is not saved: "),
        (f"srun -n1 --ch-image=$IMG touch run : -n1 {IN} touch run", "an srun of several components is not saved: "),
    ],
)
def test_one_file_for_several_containers_is_refused_at_submission(sh: Run, place: Path, line: str, text: str) -> None:
    (place / "array.sh").write_text(
        "#!/bin/sh\n#SBATCH -o out --array=1-2 --ch-image=x --ch-save=new.sqfs\ntouch run\n"
    )
    submitted = int(sh("sbatch --hold --parsable --wrap=true").stdout)
    done = sh(line, cwd=place)
    later = int(sh("sbatch --hold --parsable --wrap=true").stdout)
    sh(f"scancel {submitted} {later}")
    assert done.returncode == 64 and text in done.stderr and "slurm-ch: n" not in done.stderr, done.stderr
    # salloc's job was there before.
    assert later == submitted + 1 + line.startswith("salloc")
    assert names(place) == ["array.sh"]


def test_what_only_the_node_knows_is_refused_there(sh: Run, good: Good, place: Path) -> None:
    """How many nodes Slurm chooses, and what a script says that comes from standard input."""
    done = sh(f"{SRUN} -n2 --ntasks-per-node=1 touch run", cwd=place)
    assert done.returncode == 64 and f"slurm-ch: n1: error: {SEVERAL}" in done.stderr
    words = IN.replace("$IMG", good("echo $IMG").strip())
    (place / "array.sh").write_text(f"#!/bin/sh\n#SBATCH -o out-%a --array=1-2 {words}\ntouch run\n")
    assert sh("sbatch-wait < array.sh", cwd=place).returncode == 64
    assert "--ch-save=new.sqfs: each task of the array would replace it: " in (place / "out-1").read_text()
    assert names(place) == ["array.sh", "out-1", "out-2"]


def test_no_room(sh: Run, place: Path) -> None:
    full = place / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=1777", "full", full], check=True)
    try:
        (full / "new.sqfs").write_text("precious")
        (full / "new.sqfs").chmod(0o666)
        done = sh(f"{SRUN} --ch-save=full/new.sqfs dd if=/dev/urandom of=/big bs=1M count=1", cwd=place)
        assert done.returncode == 31
        assert "--ch-save=full/new.sqfs: not saved: " in done.stderr and "disk or quota full" in done.stderr
        assert names(full) == ["new.sqfs"] and (full / "new.sqfs").read_text() == "precious"
    finally:
        subprocess.run(["umount", full], check=True)


def test_cancelled_while_it_is_saved(
    sh: Run, good: Good, started: Callable[..., subprocess.Popen[str]], place: Path
) -> None:
    """With the site's packer, one that waits. What even SIGKILL leaves, the next one removes."""
    packer = place / "tar2sqfs"
    packer.write_text(
        "#!/bin/sh\n[ $1 = --version ] && echo tar2sqfs 1.2.0 && exit\n"
        f"for out; do :; done; touch $out; echo $SLURM_JOB_ID > {place}/fifo; exec sleep 100\n"
    )
    packer.chmod(0o755)
    os.mkfifo(place / "fifo")
    (place / "fifo").chmod(0o666)
    with Cluster(nodes=1, plugstack_lines=[f"required {paths.PLUGIN} packer={packer}"]) as own:
        for how in ("TERM", "KILL"):
            one = started(f"srun {IN} sh -c 'echo $SLURM_JOB_ID'", own)
            assert one.stdout
            job = one.stdout.readline().strip()
            (place / "fifo").read_text()
            assert len(names(place)) == 3
            subprocess.run(["scancel", "-s", how, job], check=True, env=own.environ("root"))
            _, said = one.communicate(timeout=TIMEOUT)
            if how == "TERM":
                until(lambda: names(place) == ["fifo", "tar2sqfs"])
                assert one.returncode == 130 and "--ch-save=new.sqfs: not saved: ended while saving" in said
    good(f"{SRUN} true", cwd=place)
    assert names(place) == ["fifo", "new.sqfs", "tar2sqfs"]


def test_who_ends_the_keeper_ends_the_command(started: Callable[..., subprocess.Popen[str]], place: Path) -> None:
    one = started(f"srun {IN} sh -c 'echo $$ $PPID; exec sleep 100'")
    assert one.stdout
    command, keeper = map(int, one.stdout.readline().split())
    watched = os.pidfd_open(command)
    os.kill(keeper, signal.SIGKILL)
    one.communicate(timeout=TIMEOUT)
    assert one.returncode == 128 + signal.SIGKILL
    os.close(watched)
    assert names(place) == []


def test_only_the_option_counts(good: Good, place: Path) -> None:
    good("SLURM_CH_SAVER=$'1\\n--ch-save\\nnew.sqfs' srun --quiet --ch-image=$IMG true", cwd=place)
    assert names(place) == []
    good("SLURM_CH_SAVE=new.sqfs srun --quiet --ch-image=$IMG true", cwd=place)
    assert names(place) == ["new.sqfs"]
