# SPDX-License-Identifier: Apache-2.0
"""--container-name: a container that is there again, joined while it runs, and gone when its job is."""

from __future__ import annotations

import json
import os
import pwd
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.sandbox.cluster import Cluster
from tests.small_images import make_image

from .conftest import Good, Run

SLURM_CH = Path(sys.executable).parent / "slurm-ch"
NAMED = "srun -n1 --overlap --container-name={}"


@pytest.fixture
def kept(user: str) -> Path:
    return Path(f"/var/tmp/slurm_ch.containers-{pwd.getpwnam(user).pw_uid}")


@pytest.fixture
def go(work: Path) -> Iterator[Path]:
    """A FIFO in the user's directory, to wait at for a step to be there, and for it to wait at."""
    path = work / "go"
    os.mkfifo(path)
    path.chmod(0o666)
    yield path
    path.unlink()


def gone(path: Path) -> bool:
    """Whether there is nothing, as soon as Slurm is through with the job."""
    end = time.monotonic() + 30
    while path.exists() and time.monotonic() < end:
        time.sleep(0.05)
    return not path.exists()


def in_job(lines: str) -> str:
    """Return a line that runs others in one allocation of a node; srun is the step in the container named c."""
    text = lines.replace("NAMED", NAMED.format("c")).replace("'", "'\\''")
    return f"salloc -Q -N1 -w n1 bash -c '{text}'"


def test_what_is_written_is_there_for_the_jobs_later_steps(good: Good, kept: Path) -> None:
    """Preload, then run: the second step needs no image, and unpacks nothing."""
    out = good(
        in_job("""
        NAMED --container-image=$IMG sh -c 'echo kept > /new; rm /marker; echo $FOO $PWD'
        NAMED sh -c 'cat /new; ls /marker 2>&1; echo $FOO $PWD; touch /new2'
        PYXIS_CONTAINER_NAME=c srun -n1 sh -c 'ls /new2'
        NAMED --container-image=$IMG --container-workdir=/opt sh -c 'cat /new; pwd'
        ls -d $(echo /var/tmp/slurm_ch.containers-*/of-job-$SLURM_JOB_ID/n1/c/image) | wc -l
        """)
    )
    assert out.splitlines() == [
        "image /workspace", "kept", "ls: /marker: No such file or directory", "image /workspace", "/new2", "kept",
        "/opt", "1",
    ]  # fmt: skip
    assert all(gone(path) for path in kept.glob("of-job-*"))
    assert all(gone(path) for path in kept.glob(".gone-*"))


def test_each_job_has_its_own(good: Good, sh: Run) -> None:
    good(in_job("NAMED --container-image=$IMG true"))
    done = sh(in_job("NAMED echo host"))
    assert (done.returncode, done.stdout) == (31, "")
    words = "--container-name=c: no such container on this node, and without --container-image it can't be made"
    assert done.stderr.count(words) == 1


def test_a_running_one_is_joined(good: Good, go: Path) -> None:
    """The same namespaces, for all further steps; mounts of who joins count for nothing, the environment does."""
    out = good(
        in_job("""
        NAMED --container-image=$IMG --container-mounts=$PWD --container-unshare=uts \\
            sh -c "readlink /proc/self/ns/mnt; readlink /proc/self/ns/uts; touch /running; echo started > $PWD/go; read x < $PWD/go" > first &
        read x < go
        NAMED sh -c 'readlink /proc/self/ns/mnt; readlink /proc/self/ns/uts; ls /running; echo $FOO; pwd' > second
        srun -n1 --overlap --container-name=c:exec --container-workdir=/opt --container-env=FOO \\
            sh -c 'echo $FOO; pwd; echo $SLURM_STEP_ID'
        srun -n1 --overlap --container-name=c --container-save=$PWD/joined.sqsh touch /by-joiner 2> /dev/null
        srun -n1 --overlap --container-image=$PWD/joined.sqsh ls /running /by-joiner
        srun -n1 --overlap --container-name=c:no_exec true 2>&1 | grep -o 'c: it runs'
        srun -n1 --overlap --container-name=c:create --container-image=$IMG true 2>&1 | grep -o 'a container of this .*'
        srun -n1 --overlap --container-name=c --container-unshare=net true 2>&1 | grep -o 'net: c runs without'
        echo > go
        wait
        cat first second
        srun -n1 --container-name=c:exec true 2>&1 | grep -o 'does not run on this node'
        srun -n1 --container-name=c:no_exec ls /running
        """)
    )
    lines = out.splitlines()
    assert lines[:8] == [
        "job", "/opt", "2", "/by-joiner", "/running", "c: it runs", "a container of this name exists already", "net: c runs without",
    ]  # fmt: skip
    first, second = lines[8:10], lines[10:12]
    assert first == second
    assert first[0] != os.readlink("/proc/self/ns/mnt")
    assert first[1] != os.readlink("/proc/self/ns/uts")
    assert lines[12:] == ["/running", "image", "/workspace", "does not run on this node", "/running"]


def test_an_unnamed_one_is_joined_by_its_step(good: Good, go: Path) -> None:
    out = good(
        in_job("""
        srun -n1 --overlap --container-image=$IMG --container-writable --container-mounts=$PWD \\
            sh -c "touch /here; echo started > $PWD/go; read x < $PWD/go" &
        read x < go
        srun -n1 --overlap --container-name=$SLURM_JOB_ID.0 ls /here
        echo > go
        wait
        """)
    )
    assert out == "/here\n"


def test_many_at_once_make_one(good: Good) -> None:
    out = good(
        in_job("""
        for n in 1 2 3 4 5 6; do
            NAMED --container-image=$IMG sh -c "echo x >> /log; cat /marker" &
        done
        wait
        NAMED sh -c 'wc -l < /log'
        """)
    )
    assert out.splitlines() == [*["enroot's"] * 6, "6"]


def test_each_node_has_its_own(good: Good) -> None:
    out = good(
        'salloc -Q -N2 --ntasks-per-node=2 bash -c \'srun -n2 --container-image=$IMG --container-name=c sh -c "echo \\$SLURMD_NODENAME > /node";'
        ' srun -n4 --container-name=c sh -c "echo \\$SLURMD_NODENAME \\$(cat /node)" | sort\''
    )
    assert out.splitlines() == ["n1 n1", "n1 n1", "n2 n2", "n2 n2"]


def test_read_only_and_root(good: Good) -> None:
    out = good(
        in_job("""
        NAMED --container-image=$IMG touch /new
        NAMED --container-readonly sh -c 'ls /new; touch /newer 2> /dev/null || echo ro; touch /tmp/x'
        srun -n1 --container-image=$IMG --container-name=fresh --container-readonly sh -c 'touch /etc/newer 2> /dev/null || echo ro'
        NAMED --container-remap-root --container-writable sh -c 'id -u; mkdir -p /var/lib/apt; chown 5 /var/lib/apt; touch /etc/apt'
        NAMED sh -c 'ls /etc/apt /newer 2> /dev/null; [ $(id -u) != 0 ] && echo me; ls /tmp'
        """)
    )
    assert out.splitlines() == ["/new", "ro", "ro", "0", "/etc/apt", "me"]


def test_a_batch_scripts_name_is_its_steps(good: Good, sh: Run) -> None:
    out = good(
        "echo '#!/bin/sh\ntouch /by-script; srun -n1 ls /by-script' > name.sh;"
        " sbatch-wait -o out.txt --container-image=$IMG --container-name=b name.sh > /dev/null; cat out.txt"
    )
    assert out == "/by-script\n"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (":", "an empty flag is not one of auto, create, exec, no_exec"),
        (":auto", "a container's name has 1 to 255 bytes"),
        ("a/b", "no / in it"),
        ("..", "no . at its beginning"),
        ("x" * 2048, "a container's name has 1 to 255 bytes"),
        ("a:", "an empty flag is not one of auto, create, exec, no_exec"),
        ("a:never", "never is not one of"),
        ("a:auto:exec", "auto:exec is not one of"),
        ("a:create", "--container-image is missing"),
    ],
)
def test_refused_before_there_is_a_job(sh: Run, value: str, why: str) -> None:
    done = sh(
        f"srun --container-name={value} echo host; srun --container-image=$IMG --container-name={value} echo host"
    )
    if value != "a:create":
        assert "host" not in done.stdout
    assert why in done.stderr
    done = sh("srun --ch-image=$IMG --container-name=a echo host")
    assert (done.returncode, done.stdout) == (64, "")
    assert "--container-name and --ch-image: give one of them" in done.stderr


def test_nothing_is_left_after_scancel_or_by_a_node_that_failed(good: Good, kept: Path, work: Path, go: Path) -> None:
    (work / "long.sh").write_text("#!/bin/sh\necho there > /kept\necho started > go\nsleep 600\n")
    job = good(
        "job=$(sbatch --parsable --container-image=$IMG --container-mounts=$PWD --container-workdir=$PWD --container-name=b"
        " -o /dev/null long.sh); read x < go; ls -d /var/tmp/slurm_ch.containers-*/of-job-$job/*/b > /dev/null && echo $job"
    ).strip()
    good(f"scancel {job}")
    assert gone(kept / f"of-job-{job}")
    # Of a job that nobody knows any more: the next step of the user's with a name finds it.
    left = kept / "of-job-999999/n1/c/upper/deep"
    good(f"mkdir -p {left}; touch {left}/x; chmod 0 {left}; touch -d yesterday {kept}/.swept; chmod 700 {kept}")
    good(in_job("NAMED --container-image=$IMG true"))
    assert gone(kept / "of-job-999999")
    assert all(gone(path) for path in kept.glob(".gone-*"))


def test_places_that_are_not_the_users_own(sh: Run, kept: Path, tmp_path: Path) -> None:
    # What a job's end doesn't find stays.
    assert all(gone(path) for path in kept.glob("of-job-*"))
    moved = kept.rename(kept.with_suffix(".moved")) if kept.exists() else None
    try:
        for make, what in (
            (lambda: kept.mkdir(mode=0o777), "not a directory that is yours alone"),
            (lambda: kept.symlink_to(tmp_path), "not a directory that is yours alone"),
        ):
            make()
            done = sh(in_job("NAMED --container-image=$IMG echo host"))
            assert (done.returncode, done.stdout) == (31, "")
            assert what in done.stderr
            kept.unlink() if kept.is_symlink() else kept.rmdir()
    finally:
        if moved is not None:
            moved.rename(kept)


def test_global_ones_outlive_their_job(user: str, enroots: Path, world_tmp: Path, work: Path, cluster: Cluster) -> None:
    """container_scope=global, as pyxis has it by default; below the site's own directory."""
    place = world_tmp / "containers"
    place.mkdir(mode=0o1777)
    place.chmod(0o1777)
    site = f"required {paths.PLUGIN} pyxis=yes container_scope=global containers={place} execute_entrypoint=1"
    with Cluster(nodes=1, cpus=4, plugstack_lines=[site]) as other:

        def good(line: str) -> str:
            env = {**other.environ(user), "IMG": str(enroots), "PATH": "/usr/bin:/bin"}
            done = other.run(["bash", "-c", line], user=user, timeout=60, env=env)
            assert done.returncode == 0, done
            return str(done.stdout)

        # The entrypoint is run by the site's choice.
        assert good("srun --container-image=$IMG --container-name=g sh -c 'echo 1 > /n; echo $BY_ENTRY'") == "yes\n"
        assert good("srun --container-name=g cat /n") == "1\n"
        directory = place / f"slurm_ch.containers-{pwd.getpwnam(user).pw_uid}"
        assert (directory / "global/n1/g/image").read_text() == f"{enroots}\n"
        line = f"salloc -Q bash -c 'srun true; {SLURM_CH} ps $SLURM_JOB_ID' | sed 's/  */ /g' | cut -d' ' -f1,2,3,7"
        assert good(line) == "JOB STEP NODE NAME\n- - n1 g\n"
        assert good(f"{SLURM_CH} rm --container g") == f"{directory}/global/n1/g\n"
        assert not list((directory / "global/n1").iterdir())


def test_steps_in_quick_succession(good: Good) -> None:
    """Between two steps nobody may be seen in it while the kernel still has it mounted: no error."""
    lines = ["NAMED --container-image=$IMG true"] + ["NAMED true; NAMED sh -c 'exit 0'"] * 5
    assert good(in_job("\n".join(lines))) == ""


def test_ps_enter_and_rm_know_them(good: Good, go: Path) -> None:
    """A kept one is listed by its name, and one that runs can be entered with all its namespaces, but not removed."""
    out = good(
        in_job(f"""
        srun -n1 --overlap --container-image=$IMG --container-name=waits true
        NAMED --container-image=$IMG --container-mounts=$PWD --container-unshare=net,ipc,uts \\
            sh -c "readlink /proc/self/ns/net; readlink /proc/self/ns/uts; echo started > $PWD/go; read x < $PWD/go" &
        read x < go
        {SLURM_CH} enter $SLURM_JOB_ID.1 -- sh -c 'readlink /proc/self/ns/net; readlink /proc/self/ns/uts'
        {SLURM_CH} ps $SLURM_JOB_ID | sed 's/  */ /g' | cut -d' ' -f2,3,5,7
        {SLURM_CH} ps --json $SLURM_JOB_ID | grep -c '"name": "waits"'
        {SLURM_CH} rm --container c 2>&1
        {SLURM_CH} rm --container --job=$SLURM_JOB_ID waits | sed 's#.*/of-job-[0-9]*/##'
        echo > go
        wait
        {SLURM_CH} rm --container c | sed 's#.*/of-job-[0-9]*/##'
        {SLURM_CH} rm --container c 2>&1
        NAMED true 2>&1 | grep -o 'no such container'
        """)
    )
    lines = out.splitlines()
    assert lines[0:2] == lines[2:4]
    assert os.readlink("/proc/self/ns/net") not in lines[:2]
    assert lines[4:] == [
        "STEP NODE TASKS NAME", "- n1 0 waits", "1 n1 1 c", "1", "slurm-ch: error: c: a step uses it; see slurm-ch ps",
        "n1/waits", "n1/c", "slurm-ch: error: c: no container of yours has that name here", "no such container",
    ]  # fmt: skip


def test_a_part_of_a_het_job_has_its_own(good: Good, work: Path, kept: Path) -> None:
    """Slurm ends each part by its own number: there is nothing left on any part's nodes."""
    (work / "het.sh").write_text("""\
#!/bin/bash
#SBATCH -n1 -w n1
#SBATCH hetjob
#SBATCH -n1 -w n2
for part in 0 1; do
    srun --het-group=$part --container-image=$IMG --container-name=h sh -c "echo $part > /part"
done
srun --het-group=1 --container-name=h cat /part
ls -d /var/tmp/slurm_ch.containers-*/of-job-$SLURM_JOB_ID_HET_GROUP_1/n2/h | wc -l
""")
    assert good("sbatch-wait -o out.txt het.sh > /dev/null; cat out.txt").splitlines() == ["1", "1"]
    assert all(gone(path) for path in kept.glob("of-job-*"))


def test_what_a_killed_launcher_left_is_no_container(good: Good, sh: Run) -> None:
    """It is there when its image is noted; before that, it is made anew, and whatever is there of it is used."""
    out = good(
        in_job("""
        own=/var/tmp/slurm_ch.containers-$(id -u)
        mkdir -p $own/of-job-$SLURM_JOB_ID/n1/c/upper; chmod 700 $own; chmod 0 $own/of-job-$SLURM_JOB_ID/n1/c/upper
        NAMED true 2>&1 | grep -o 'no such container'
        NAMED --container-image=$IMG sh -c 'touch /new; stat -c %a /'
        NAMED ls /new
        """)
    )
    assert out == "no such container\n755\n/new\n"


def test_who_joins_imports_nothing_of_the_image(good: Good, go: Path, world_tmp: Path) -> None:
    """A working directory with a backslash is read by a module that is loaded for it; an image may have one like it."""
    image = make_image(world_tmp / "named-evil", "evil")
    directory = "/a\\b"
    for path in ("ch", directory.lstrip("/"), json.__file__.rpartition("/")[0].lstrip("/")):
        (image / path).mkdir(parents=True)
    (image / "ch/metadata.json").write_text(json.dumps({"cwd": directory}, indent=2) + "\n")
    evil = "import os\nos.write(2, b'imported from the image')\nfrom time import *\n"
    for path in ("__init__.py", "decoder.py"):
        (image / json.__file__.lstrip("/")).with_name(path).write_text(evil)
    out = good(
        in_job(f"""
        NAMED --container-image={image} --container-mounts=$PWD sh -c "pwd > $PWD/go; read x < $PWD/go" &
        read x < go
        echo "$x"
        NAMED pwd
        echo > go
        wait
        """).replace("read x < go", "read -r x < go")
    )
    assert out.splitlines() == [directory, "/"]
