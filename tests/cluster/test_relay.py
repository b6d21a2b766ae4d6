# SPDX-License-Identifier: Apache-2.0
"""Slurm's commands called inside a container whose image has none of them."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.sandbox.cluster import Cluster
from slurm_ch.sandbox.machine import user_entry
from tests.small_images import make_image, squash

from .conftest import Run

Batch = Callable[..., list[str]]
TIMEOUT = 60


def submit(
    cluster: Cluster,
    user: str,
    place: Path,
    script: str,
    options: str,
    path: str = "/usr/bin:/bin",
    shell: str = "/bin/sh",
) -> list[str]:
    """Run `script` as a job and return its output's lines.

    Its output is a FIFO: end of file comes with the end of the job, sooner than sbatch's own waiting.
    """
    place.mkdir(exist_ok=True)
    place.chmod(0o777)
    job, fifo = place / "job.sh", place / "fifo"
    job.write_text(f"#!{shell}\nexport SLURM_OVERLAP=1\n{script}\n")
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        line = f"cd {place}; sbatch -Q -o {fifo} {options} {job} first"
        done = cluster.run(
            ["bash", "-c", line], user=user, timeout=TIMEOUT, env={**cluster.environ(user), "PATH": path}
        )
        if done.returncode:
            return done.stderr.splitlines()
        text = done.stdout + done.stderr + read_all(reader)
    finally:
        os.close(reader)
    assert "Traceback" not in text
    return text.splitlines()


def read_all(reader: int) -> str:
    text = b""
    while select.select([reader], [], [], TIMEOUT)[0]:
        try:
            if not (data := os.read(reader, 65536)):
                return text.decode()
        except BlockingIOError:
            continue
        text += data
    raise AssertionError(f"no end after {text!r}")


@pytest.fixture
def batch(sh: Run, cluster: Cluster, user: str, world_tmp: Path, image_sqfs: Path) -> Batch:
    """Run a script in the image; `sh` checks that nothing is left."""

    def run(script: str, options: str = "", image: Path | None = None, path: str = "/usr/bin:/bin") -> list[str]:
        options = f"--ch-image={image or image_sqfs} {options}"
        return submit(cluster, user, world_tmp / "relay", script, options, path)

    return run


def test_a_step_from_inside(batch: Batch) -> None:
    """Streams, exit status, signals, environment, umask, limits, directory; in the same image."""
    out = batch(
        """
        cat /marker; test -e /usr/sbin/slurmd || echo no Slurm
        srun -N2 -n2 -l cat /marker | sort
        echo through | srun -n1 -N1 sh -c 'cat; echo err >&2' 2>&1
        srun -n1 -N1 sh -c 'exit 7' 2>/dev/null; echo status $?
        srun -n1 -N1 sh -c 'kill -TERM $$' 2>/dev/null; echo status $?
        export MINE="a  b" PATH=/mnt:$PATH LD_LIBRARY_PATH=/mnt/lib; umask 027; ulimit -n 555
        cd /tmp
        srun -n1 -N1 sh -c 'echo "$MINE" $PATH $LD_LIBRARY_PATH $(umask) $(ulimit -n) $(pwd) $HOME ${TMPDIR-none}; env' > env
        head -n1 env; grep -c RELAYED env; grep CH_RUNNING env; rm env
        """,
        "-N2 -n2",
    )
    assert out[:-1] == [
        "one", "no Slurm", "0: one", "1: one", "through", "err", "status 7", "status 143",
        "a  b /mnt:/usr/bin:/bin /mnt/lib 0027 555 /tmp /root /tmp", "0",
    ]  # fmt: skip
    assert out[-1].endswith("image.sqfs")


def test_a_directory_for_temporary_files_that_the_script_has_chosen(batch: Batch, world_tmp: Path, user: str) -> None:
    """It is its steps' too, as without a container, unless a TaskProlog says otherwise."""
    place = world_tmp / "chosen"
    (place / "job").mkdir(parents=True, exist_ok=True)
    shutil.chown(place / "job", user)
    prolog = place / "prolog"
    prolog.write_text('#!/bin/sh\necho "export TMPDIR=/var/tmp"\n')
    prolog.chmod(0o755)
    show = "sh -c 'echo $TMPDIR; ! env | grep RELAYED'"
    out = batch(
        f"""
        export TMPDIR=/mnt/job; srun -n1 -N1 {show}
        srun -n1 -N1 --task-prolog={prolog} {show}
        srun -n1 -N1 --ch-image=/ {show}
        export TMPDIR=/no/such; srun -n1 -N1 {show} 2>&1
        unset TMPDIR; srun -n1 -N1 {show}
        """,
        f"--ch-bind={place}:/mnt",
    )
    warning = "slurm-ch: n1: warning: TMPDIR=/no/such: no such directory in the container; using /tmp"
    assert out == ["/mnt/job", "/var/tmp", "/tmp", warning, "/tmp", "/tmp"]


def test_a_directory_that_only_the_image_has(batch: Batch, world_tmp: Path) -> None:
    image = make_image(world_tmp / "with-app", "app")
    (image / "opt/app").mkdir()
    (image / "opt/app/run").write_text("#!/bin/sh\npwd\n")
    (image / "opt/app/run").chmod(0o755)
    out = batch("cd /opt/app; srun -n1 -N1 ./run; squeue -h -o %j", image=squash(image, world_tmp / "with-app.sqfs"))
    assert out == ["/opt/app", "job.sh"]


def test_other_commands(batch: Batch, world_tmp: Path) -> None:
    out = batch(
        f"""
        squeue -h -j $SLURM_JOB_ID -o '%j %T'
        sinfo -h -o %D
        scontrol show job $SLURM_JOB_ID | grep -o JobState=RUNNING
        sbcast -f $0 {world_tmp}/relay/copy && cmp $0 {world_tmp}/relay/copy && echo copied
        sacct; echo $?
        scontrol no-such-thing; echo $?
        # Only once it runs: Slurm 22.05's srun may end with 0 when cancelled before.
        : > /tmp/up-$$
        srun -n1 sh -c 'echo up; sleep 1000' > /tmp/up-$$ 2>/dev/null &
        until grep -q up /tmp/up-$$; do :; done
        scancel $SLURM_JOB_ID.0; wait $!; echo cancelled $?; rm /tmp/up-$$
        salloc; echo $?
        """,
        "-N1",
    )
    assert out[:4] == ["job.sh RUNNING", "2", "JobState=RUNNING", "copied"]
    assert out[4:6] == ["Slurm accounting storage is disabled", "1"]
    assert out[6:8] == ["invalid keyword: no-such-thing", "1"]
    # Not offered: what salloc starts would be on the host.
    assert out[8:] == ["cancelled 137", out[9], "127"]
    assert "salloc: not found" in out[9]


def test_an_srun_that_is_signalled(batch: Batch) -> None:
    out = batch(
        r"""
        run() { srun -n1 -N1 sh -c 'trap "echo told; exit 5" TERM USR1; echo ready; while :; do sleep 0.1; done' > /tmp/out-$$ & }
        for s in USR1 TERM KILL; do
            run; pid=$!
            until grep -q ready /tmp/out-$$ 2>/dev/null; do :; done
            kill -$s $pid; wait $pid; echo $s $?; cat /tmp/out-$$; rm /tmp/out-$$
        done 2>/dev/null
        srun -n1 -N1 echo and the next
        """
    )
    assert out[:3] == ["USR1 5", "ready", "told"]
    assert out[3].startswith("TERM ")
    assert out[3] != "TERM 0"
    assert "KILL 137" in out
    assert out[-1] == "and the next"


def test_big_arguments_and_environment(batch: Batch) -> None:
    out = batch(
        """
        a=$(head -c 100000 /dev/zero | tr '\\0' a); export BIG=$a BIG2=$a
        srun -n1 -N1 sh -c 'echo ${#1} ${#2} ${#BIG} ${#BIG2}' sh "$a" "$a"
        """
    )
    assert out == ["100000 100000 100000 100000"]


def test_fifty_at_once(batch: Batch) -> None:
    out = batch("for i in $(seq 50); do scontrol show hostnames n$i & done; wait")
    assert sorted(out) == sorted(f"n{i}" for i in range(1, 51))


def test_steps_in_another_image(batch: Batch, other_sqfs: Path) -> None:
    assert batch(f"srun -n1 -N1 --ch-image={other_sqfs} cat /marker; srun -n1 -N1 cat /marker") == ["two", "one"]


@pytest.mark.parametrize("options", ["--export=NONE --ch-uid=0 --ch-gid=0 --ch-private-tmp", "--ch-home"])
def test_with_other_options(batch: Batch, options: str) -> None:
    # With a private /tmp, the script's directory is lost.
    assert "one" in batch("srun -n1 -N1 cat /marker; id -u", options)[:2]


def test_wrapped_arrays_and_heterogeneous_jobs(sh: Run, world_tmp: Path) -> None:
    place = world_tmp / "relay"
    place.mkdir(exist_ok=True)
    place.chmod(0o777)
    array = "cat /marker; srun -n1 -N1 sh -c 'echo \\$SLURM_ARRAY_TASK_ID; cat /marker'"
    het = "srun --het-group=0,1 -l cat /marker | sort"
    done = sh(
        f"""
        sbatch-wait -a 1-2 -o {place}/a%a.txt --ch-image=$IMG --wrap="{array}" & one=$!
        sbatch-wait -o {place}/het.txt --ch-image=$IMG -N1 -n1 : -N1 -n1 --ch-image=$IMG --wrap="{het}" & two=$!
        wait $one && wait $two
        """
    )
    assert done.returncode == 0, done
    for number in (1, 2):
        assert (place / f"a{number}.txt").read_text().split() == ["one", str(number), "one"]
    assert (place / "het.txt").read_text().splitlines() == ["0: one", "1: one"]


def test_ours_win_but_for_what_the_user_binds(batch: Batch, world_tmp: Path) -> None:
    image = make_image(world_tmp / "own-srun", "own")
    (image / "usr/local/bin").mkdir(parents=True)
    for name in ("usr/bin/srun", "usr/local/bin/squeue", "usr/bin/mine"):
        (image / name).write_text("#!/bin/sh\necho the image\\'s\n")
        (image / name).chmod(0o755)
    own = world_tmp / "own-sinfo"
    own.write_text("#!/bin/sh\necho bound\n")
    own.chmod(0o755)
    image_file = squash(image, world_tmp / "own-srun.sqfs")
    (image / "usr/bin/sinfo").touch()
    script = "srun -n1 cat /marker; /usr/bin/srun -n1 cat /marker; squeue -h -o %j; mine; sinfo -h -o %D; ls -d /usr/local/bin/srun"
    path = "/usr/local/bin:/usr/bin:/bin"
    assert batch(script, image=image_file, path=path) == [
        "own",
        "own",
        "job.sh",
        "the image's",
        "2",
        "/usr/local/bin/srun",
    ]
    found = batch(f"/usr/bin/sinfo -h -o %D; {script}", f"--ch-bind={own}:/usr/bin/sinfo", image=image, path=path)
    assert found[:3] == ["bound", "own", "own"]


def test_a_writeable_image(batch: Batch, world_tmp: Path, user: str, image_dir: Path) -> None:
    """With write-fake all stays writeable; with write nothing is changed unless asked for."""
    script = "echo x > /usr/bin/new && cat /usr/bin/new; srun -n1 cat /marker || echo no srun; rm -f /usr/bin/new"
    assert batch(script, "--ch-write-fake") == ["x", "one"]
    found = batch(script, "--ch-write", image=image_dir)
    assert found[0] == "x"
    assert found[-1] == "no srun"
    found = batch(script + " 2>/dev/null", "--ch-write --ch-relay", image=image_dir)
    assert "Read-only file system" in found[0]
    assert "one" in found
    assert not [name for name in os.listdir(image_dir / "usr/bin") if name != "busybox"]


def test_an_image_without_a_place(sh: Run, cluster: Cluster, user: str, world_tmp: Path) -> None:
    del sh
    image = make_image(world_tmp / "no-place", "bare")
    (image / "usr/bin").rmdir()
    (image / "bin").rename(image / "tools")
    (image / "bin").write_text("")
    image_file = squash(image, world_tmp / "no-place.sqfs")
    found = [
        submit(
            cluster,
            user,
            world_tmp / "relay",
            "/tools/cat /marker",
            f"--ch-image={image_file} {more}",
            shell="/tools/sh",
        )
        for more in ("", "--ch-relay")
    ]
    why = "srun and similar commands won't work in this container: the image has none of /usr/local/bin, /usr/bin, /bin"
    assert found[0] == [f"slurm-ch: n1: warning: {why}", "bare"]
    assert len(found[1]) == 1
    assert "error: --ch-relay: can't pass srun, " in found[1][0]


WHICH = "srun -n1 true; echo $?; squeue >/dev/null; echo $?"


def test_switched_off_by_the_user(batch: Batch) -> None:
    assert [line for line in batch(WHICH, "--ch-relay=no") if line.isdigit()] == ["127", "127"]


@pytest.mark.parametrize(
    ("argument", "expected", "insisting"),
    [
        ("relay=no", ["127", "127"], "--ch-relay: not available at this site"),
        ("relay=squeue,scancel", ["127", "0"], None),
        ("relay=sh", [], "plugstack.conf: relay=sh: neither yes nor no, nor commands of Slurm's: sh"),
    ],
)
def test_switched_off_by_the_site(
    user: str, world_tmp: Path, image_sqfs: Path, argument: str, expected: list[str], insisting: str | None
) -> None:
    with Cluster(nodes=1, plugstack_lines=[f"required {paths.PLUGIN} {argument}"]) as own:
        option = f"--ch-image={image_sqfs}"
        found = submit(own, user, world_tmp / "relay", WHICH, option)
        assert [line for line in found if line.isdigit()] == expected
        if insisting:
            (line,) = submit(own, user, world_tmp / "relay", WHICH, f"{option} --ch-relay")
            assert line.endswith(f"error: {insisting}")


def test_a_command_of_a_site_s_list_can_t_be_steered(user: str, world_tmp: Path, image_sqfs: Path) -> None:
    """The host's squeue is a script in bash, as some sites have it; the caller sets what bash and Slurm look at."""
    place, host = world_tmp / "relay", world_tmp / "steered"
    host.mkdir()
    (host / "squeue").write_text(
        '#!/bin/bash\necho "$PWD ${SLURM_CONF##*/} ${PERL5OPT-} ${SQUEUE_FORMAT-}"; exec /usr/bin/squeue -h\n'
    )
    (host / "squeue").chmod(0o755)
    script = (
        "mkdir -p /tmp/steering; echo 'echo STEERED' > /tmp/steering/env; echo PluginDir=/tmp/steering > /tmp/steering/slurm.conf\n"
        "export BASH_ENV=/tmp/steering/env ENV=/tmp/steering/env SLURM_CONF=/tmp/steering/slurm.conf PERL5OPT=-M/tmp/x SQUEUE_FORMAT=%T\n"
        "cd /tmp/steering && squeue; rm -r /tmp/steering"
    )
    with Cluster(nodes=1, plugstack_lines=[f"required {paths.PLUGIN} relay=squeue"]) as own:
        options = f"--ch-image={image_sqfs} --ch-verbose"
        found = submit(own, user, place, script, options, path=f"{host}:/usr/bin:/bin")
    told = [line for line in found if "the relay is on: code in this container can run squeue on the host" in line]
    assert len(told) == 1
    assert [line for line in found if not line.startswith("slurm-ch: ")] == [f"{place} slurm.conf  %T", "RUNNING"]


def test_ordinary_steps_where_asked_for(good: Callable[..., str], sh: Run) -> None:
    script = "squeue -h -o %T; echo $SLURM_PROCID >&2"
    assert good(f"srun -N2 -n4 --ch-relay --ch-image=$IMG sh -c '{script}'") == "RUNNING\n" * 4
    done = sh(f"srun -n1 --ch-image=$IMG sh -c '{script}'")
    assert "squeue: not found" in done.stderr
    # A task that ends before the others takes nothing away from them.
    first = "if [ $SLURM_LOCALID = 0 ]; then echo $$ > /tmp/first; exit; fi; until [ -s /tmp/first ]; do :; done"
    script = f"{first}; while kill -0 $(cat /tmp/first); do :; done 2>/dev/null; rm /tmp/first; squeue -h -o %T"
    assert good(f"rm -f /tmp/first; srun -N1 -n2 --ch-relay --ch-image=$IMG sh -c '{script}'") == "RUNNING\n"


def test_nobody_else_can_call(batch: Batch, cluster: Cluster, world_tmp: Path) -> None:
    out = batch(
        f"ls -ld /usr/bin/.slurm-ch /usr/bin/.slurm-ch/socket; mkdir {world_tmp}/relay/x; grep -c slurm /proc/net/unix"
    )
    assert out[0].startswith("drwx------")
    assert out[1].startswith("srw-------")
    (world_tmp / "relay/x").rmdir()


def test_a_terminal_inside(cluster: Cluster, user: str, image_sqfs: Path, sh: Run) -> None:
    """An interactive shell in a container, an srun --pty from there, its size, and ^C."""
    entry = user_entry(user)
    pid, master = pty.fork()
    if pid == 0:
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
        env = {**cluster.environ(user), "PATH": "/usr/bin:/bin", "PS1": "> "}
        os.execvpe("srun", ["srun", "-n1", "--pty", "--ch-relay", f"--ch-image={image_sqfs}", "sh"], env)
    text = b""

    def until(pattern: bytes) -> bytes:
        nonlocal text
        while not (found := re.search(pattern, text)):
            assert select.select([master], [], [], 30)[0], text
            text += os.read(master, 1000)
        text = text[found.end() :]
        return found[0]

    until(b"> ")
    os.write(master, b"stty cols 91 rows 27; srun -Q --overlap --pty sh -c 'stty size; cat /marker; tty'\n")
    until(rb"\r27 91\r\none\r\n/dev/pts/|\n27 91\r\none\r\n/dev/pts/")
    until(b"> ")
    os.write(master, b"srun --overlap sh -c 'trap \"echo got it; exit 3\" INT; echo up; while :; do sleep 0.1; done'\n")
    until(b"\nup")
    os.write(master, b"\x03")
    # The second one must come within a second of the first, which a busy machine may miss.
    while until(b"got it|one more within 1 sec") != b"got it":
        os.write(master, b"\x03")
    until(b"> ")
    os.write(master, b"echo status $?; exit 4\n")
    until(b"\nstatus 3")
    while True:
        try:
            if not os.read(master, 1000):
                break
        except OSError:
            break
    os.close(master)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4


def test_the_end_of_the_script_is_the_end(batch: Batch, cluster: Cluster) -> None:
    """Processes that it has left running end, the broker ends, and the node is free: `sh` checks that."""
    assert batch("srun -n1 -N1 sleep 1000 & srun -n1 -N1 echo done") == ["done"]
    assert set(cluster.node_states().values()) <= {"idle", "completing"}


def test_a_cancelled_job_leaves_nothing(
    sh: Run, cluster: Cluster, user: str, world_tmp: Path, image_sqfs: Path
) -> None:
    place = world_tmp / "relay"
    place.mkdir(exist_ok=True)
    place.chmod(0o777)
    line = f"""
    job=$(sbatch --parsable -o {place}/c.txt --ch-image=$IMG --wrap='srun -n1 -N1 sh -c "echo up; sleep 1000"')
    until grep -q up {place}/c.txt 2>/dev/null; do :; done
    scancel $job
    while squeue -h -j $job 2>/dev/null | grep -q .; do :; done
    """
    assert sh(line).returncode == 0
