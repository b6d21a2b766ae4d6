# SPDX-License-Identifier: Apache-2.0
"""References in srun, sbatch and salloc: resolved and pulled once, and what was pinned is what runs."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.sandbox.cluster import Cluster
from tests.command import SLURM_CH

from .craft import Layout, busybox, item, layer
from .registry import PASSWORD, Registry, Slow, auth_file
from .users import TIMEOUT, User, finished, image, pulls


def test_srun_pulls_before_there_is_a_step(me: User, plain: Registry, layout: Layout) -> None:
    ref = plain.push(layout, "slurm/first")
    done = me.sh(f"srun -N2 --ch-image={ref} cat /marker")
    assert (done.returncode, done.stdout) == (0, "from the registry\n" * 2), done.stderr
    first, second = done.stderr.splitlines()
    assert first.startswith(f"slurm-ch: {ref}:latest is sha256:")
    assert second.startswith("slurm-ch: pulled in ") and second.endswith(f"{me.cache}/images/{me.images()[0]}")
    asked = len(plain.requests())
    again = me.sh(f"srun --ch-image={ref} --ch-no-passwd cat /marker")
    assert (again.stdout, again.stderr) == ("from the registry\n", "")
    assert [one.split()[1] for one in plain.requests()[asked:]] == ["/v2/", "/v2/slurm/first/manifests/latest"]
    asked = len(plain.requests())
    assert me.good(f"srun --ch-image={ref} --ch-pull=cached cat /marker") == "from the registry\n"
    assert plain.requests()[asked:] == []


def test_pyxis_names_of_images(me: User, plain: Registry, layout: Layout) -> None:
    """REGISTRY#NAME and docker:// in --container-image: pulled before there is a step, pinned for a job."""
    ref = plain.push(layout, "slurm/pyxis").removeprefix("docker://")
    host, _, name = ref.partition("/")
    with Cluster(nodes=2, cpus=8, plugstack_lines=[f"required {paths.PLUGIN} pyxis=yes"]) as own:
        mine = User(own, me.name, me.home, plain)
        done = mine.sh(f"srun -N2 --container-image={host}#{name} cat /marker")
        assert (done.returncode, done.stdout) == (0, "from the registry\n" * 2), done.stderr
        assert done.stderr.count("slurm-ch: pulled in ") == 1
        asked = len(pulls(plain, "slurm/pyxis"))
        assert mine.good(f"srun --container-image=docker://someone@{host}#{name} cat /marker") == "from the registry\n"
        script = me.home / "pyxis.sh"
        script.write_text(
            f"#!/bin/sh\n#SBATCH --container-image='{host}#{name}'\n#SBATCH -o pyxis.txt\n"  # bare, a # ends the line
            "cat /marker; echo $PYXIS_CONTAINER_IMAGE; srun cat /marker\n"
        )
        mine.good("sbatch-wait pyxis.sh")
        first, pinned, second = (me.home / "pyxis.txt").read_text().splitlines()
        assert (first, second) == ("from the registry", "from the registry")
        assert pinned.startswith(f"docker://{ref}") and "@sha256:" in pinned
        assert len(pulls(plain, "slurm/pyxis")) == asked
        done = mine.sh(f"srun --container-image={host}#slurm/nothing true")
        assert done.returncode != 0
        assert "slurm/nothing" in done.stderr


def test_the_image_of_a_container_with_a_name(me: User, plain: Registry, layout: Layout, world_tmp: Path) -> None:
    """It is noted as used, and `prune` leaves it; once it is gone, the error has the words that bring it back."""
    ref = plain.push(layout, "slurm/named")
    place = world_tmp / "containers-of-images"
    place.mkdir(mode=0o1777)
    place.chmod(0o1777)
    site = f"required {paths.PLUGIN} pyxis=yes container_scope=global containers={place}"
    with Cluster(nodes=1, cpus=4, plugstack_lines=[site]) as own:
        mine = User(own, me.name, me.home, plain)
        mine.good(f"srun --container-image={ref} --container-name=c sh -c 'echo changed > /kept'")
        (image,) = (mine.cache / "images").glob("*.sqfs")
        os.utime(image, (1, 1))
        assert mine.good("srun --container-name=c cat /kept") == "changed\n"
        assert image.stat().st_mtime > 1
        os.utime(image, (1, 1))
        for how in ("--older 1d", "--max 1k", ""):
            # In a step: prune asks for the node's containers where they are.
            assert mine.good(f"srun {SLURM_CH} prune {how}") == ""
        fifos = "mkfifo up go; trap 'rm up go' EXIT"
        first = 'srun --overlap --container-name=c --container-mounts=$PWD sh -c "echo up > $PWD/up; read x < $PWD/go"'
        second = f"read x < up; {SLURM_CH} rm {ref} > /dev/null; srun --overlap --container-name=c cat /kept; echo > go; wait"
        # Who joins it needs no file.
        assert mine.good(f"{fifos}; {first} & {second}") == "changed\n"
        done = mine.sh("srun --container-name=c cat /kept")
        assert (done.returncode, done.stdout) == (31, "")
        (said,) = (line for line in done.stderr.splitlines() if not line.startswith("srun: "))
        assert f"c: name its image again with --container-image={ref}:latest@sha256:" in said
        assert said.endswith(f"; gone: {image}: No such file or directory")
        again = said.partition("again with ")[2].partition(";")[0]
        assert mine.good(f"srun --container-name=c {again} cat /kept 2> /dev/null") == "changed\n"
        assert mine.good("srun --container-name=c cat /kept") == "changed\n"
        mine.good(f"{SLURM_CH} rm --container c")
        os.utime(next((mine.cache / "images").glob("*.sqfs")), (1, 1))
        assert mine.good(f"{SLURM_CH} prune --older 1d").count(".sqfs\n") == 1


@pytest.mark.row("F15")
def test_nodes_get_a_path_and_look_nothing_up(me: User, plain: Registry, layout: Layout) -> None:
    ref = plain.push(layout, "slurm/path")
    me.good(f"srun --ch-image={ref} true")
    # A launcher that imported what pulls would find none of it.
    hidden = me.home / "lib/slurm_ch"
    me.good(
        f"mkdir lib; cp -r {Path(paths.__file__).parent} {hidden}; rm -r {hidden}/images {hidden}/plugin/references.py"
    )
    lines = [f"required {paths.PLUGIN} launcher={hidden}/plugin/launch.py"]
    with Cluster(nodes=1, plugstack_of={"n1": lines}) as own:
        mine = User(own, me.name, me.home, plain)
        assert mine.good(f"srun --ch-image={ref} cat /marker") == "from the registry\n"


def test_what_was_pinned_runs_though_the_tag_has_moved(me: User, plain: Registry, tmp_path: Path) -> None:
    ref = plain.push(image(tmp_path, "old"), "slurm/moving:1")
    script = me.home / "job.sh"
    script.write_text(
        f"#!/bin/sh\n#SBATCH --ch-image={ref}\n#SBATCH --array=0-1\n#SBATCH -o %a.txt\n"
        "read line < /marker; echo batch $line; srun cat /marker; srun cat /marker\n"
    )
    me.good("sbatch --hold --parsable job.sh > job")
    (me.home / "het.sh").write_text("#!/bin/sh\nsrun --het-group=0,1 cat /marker\n")
    het = me.good(f"sbatch --hold --parsable -o het.txt -n1 --ch-image={ref} : -n1 het.sh").strip()
    assert me.images() == []  # sbatch only asks
    plain.push(image(tmp_path, "new"), "slurm/moving:1")
    asked = len(plain.requests())
    me.good(f"scontrol release $(cat job); scontrol release {het}")
    finished(me)
    for task in (0, 1):
        assert (me.home / f"{task}.txt").read_text().splitlines()[-3:] == ["batch old", "old", "old"]
    assert (me.home / "het.txt").read_text().splitlines()[-2:] == ["old", "old"]
    assert len(pulls(plain, "slurm/moving", asked)) == 3  # two layers and a configuration, once
    assert me.good(f"srun --ch-image={ref} cat /marker") == "new\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.row("F9")
def test_a_pull_that_is_interrupted_leaves_nothing(me: User, slow: Slow, number: int) -> None:
    process = me.popen(f"exec srun --ch-image={slow.reference('slurm/slow')} true", start_new_session=True)
    slow.wait_until_busy()
    assert me.in_progress()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=TIMEOUT)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert said.splitlines()[-1] == "slurm-ch: error: interrupted"
    else:
        assert process.returncode == -signal.SIGTERM
    deadline = time.monotonic() + 10
    while me.in_progress():
        assert time.monotonic() < deadline, me.in_progress()
        time.sleep(0.02)
    assert list((me.cache / "lock").iterdir()) == [] and me.images() == []
    assert me.good("squeue -h --me") == ""


@pytest.mark.row("F9")
def test_scancel_while_a_batch_step_pulls(me: User, slow: Slow) -> None:
    job = me.good(f"sbatch --parsable -o out --ch-image={slow.reference('slurm/slow')} --wrap=true").strip()
    slow.wait_until_busy()
    me.good(f"scancel {job}")
    finished(me)
    deadline = time.monotonic() + 10
    while me.in_progress():
        assert time.monotonic() < deadline, me.in_progress()
        time.sleep(0.02)
    assert list((me.cache / "lock").iterdir()) == [] and me.images() == []


@pytest.mark.row("F16")
def test_an_image_that_is_gone_is_pulled_again(me: User, plain: Registry, layout: Layout) -> None:
    ref = plain.push(layout, "slurm/gone")
    me.good(f"srun --ch-image={ref} true")
    me.good(f"sbatch --hold --parsable -o out --ch-image={ref} --wrap='cat /marker; srun cat /marker' > job")
    me.good("rm -f $SLURM_CH_CACHE/images/*; scontrol release $(cat job)")
    finished(me)
    assert (me.home / "out").read_text().splitlines()[-2:] == ["from the registry"] * 2


@pytest.mark.row("F15")
def test_a_node_that_does_not_see_the_cache_says_so(me: User, plain: Registry, layout: Layout) -> None:
    ref = plain.push(layout, "slurm/unseen")
    # The launcher gets the location that another host would have published.
    prolog = me.home / "prolog"
    prolog.write_text(f"#!/bin/sh\nmv {me.cache} {me.home}/elsewhere\n")
    prolog.chmod(0o755)
    done = me.sh(f"srun --prolog={prolog} --ch-image={ref} true")
    assert done.returncode == 31
    assert "which n1 doesn't see: the cache must be on a shared file system" in done.stderr


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("--ch-image={host}/nothing/here", 31, "not there, or you may not read it"),
        ("--ch-image={ref} --ch-pull=never", 31, "not in "),
        ("--ch-image={ref} --ch-pull=cached", 31, "never pulled here"),
        ("--ch-image={ref} --ch-pull=soon", 64, "not one of auto, always, cached, never"),
        ("--ch-image={ref} --ch-write", 64, "a SquashFS image can't be written to"),
        ("--ch-image=docker://me:pw@host/x", 64, "no user and no password"),
        ("--ch-image=oci:/not/here", 31, "can't read /not/here/index.json"),
    ],
)
@pytest.mark.parametrize("command", ["srun {} true", "sbatch {} --wrap=true", "salloc -Q {} true"])
@pytest.mark.row("F5")
def test_refused_before_there_is_a_job(
    me: User, plain: Registry, layout: Layout, command: str, options: str, code: int, words: str
) -> None:
    ref = plain.push(layout, "slurm/refused")
    done = me.sh(command.format(options.format(host=f"docker://{plain.host}", ref=ref)))
    assert (done.returncode, done.stdout) == (code, "")
    error = done.stderr.splitlines()[-1]
    assert error.startswith("slurm-ch: error: ") and words in error
    assert "pw" not in done.stderr
    assert me.good("squeue -h --me") == ""


@pytest.mark.row("F8")
def test_another_kind_of_machine(me: User, plain: Registry, layout: Layout) -> None:
    done = me.sh(f"srun --ch-image={plain.push(layout, 'slurm/kind')} --ch-platform=linux/s390x true")
    assert done.returncode == 31 and "no image for linux/s390x" in done.stderr


def test_an_archive_is_pulled_where_it_is(me: User, layout: Layout) -> None:
    command = ["skopeo", "--insecure-policy", "copy", "-q", f"{layout}:image", f"oci-archive:{me.home}/app.tar:x"]
    subprocess.run(command, check=True)
    shutil.copytree(layout.path, me.home / "layout")
    (me.home / "app.tar").chmod(0o644)
    out = me.good("sbatch-wait -o out --ch-image=oci-archive:app.tar --wrap='cat /marker; srun cat /marker'; cat out")
    assert out.splitlines()[1:] == ["from the registry"] * 2
    assert me.good("srun --ch-image=oci:layout:image -N2 cat /marker") == "from the registry\n" * 2
    assert len(me.images()) == 1


@pytest.mark.row("F12")
def test_one_pull_for_sixteen_jobs_at_once(me: User, plain: Registry, tmp_path: Path) -> None:
    ref = plain.push(image(tmp_path, "many"), "slurm/many")
    asked = len(plain.requests())
    with Cluster(nodes=16, cpus=4) as own:
        mine = User(own, me.name, me.home, plain)
        done = mine.good(f"for i in 1 2 3 4; do srun -N16 --ch-image={ref} cat /marker & done; wait")
    assert done == "many\n" * 64
    assert len(pulls(plain, "slurm/many", asked)) == 3


def test_a_first_node_that_pulls(me: User, plain: Registry, layout: Layout) -> None:
    ref = plain.push(layout, "slurm/node")
    with Cluster(nodes=4, plugstack_lines=[f"required {paths.PLUGIN} pull=node cache={me.cache}"]) as own:
        mine = User(own, me.name, me.home, plain)
        asked = len(plain.requests())
        done = mine.sh(f"srun -N4 --ch-image={ref} cat /marker", SLURM_CH_CACHE="/nonexistent")
        assert (done.returncode, done.stdout) == (0, "from the registry\n" * 4), done.stderr
        assert "slurm-ch: n1: pulled in" in done.stderr
        assert len(pulls(plain, "slurm/node", asked)) == 3


def test_what_the_site_says(me: User, plain: Registry, layout: Layout) -> None:
    ref = plain.push(layout, "slurm/site")
    importer = me.home / "importer"
    importer.write_text(f"#!/bin/sh\necho $1 $2 >> {me.home}/asked\necho {me.home}/imported.sqfs\n")
    importer.chmod(0o755)
    me.good(f"{Path(sys.executable).with_name('slurm-ch')} pull -q {ref} imported.sqfs")
    lines = {
        "pull=no": (31, "this site allows no pulls"),
        "registries=ghcr.io,docker.io": (31, "not one of this site's registries"),
        "pull=submit": (0, ""),
        f"importer={importer}": (0, ""),
    }
    for line, (code, words) in lines.items():
        with Cluster(nodes=1, plugstack_lines=[f"required {paths.PLUGIN} {line}"]) as own:
            mine = User(own, me.name, me.home, plain)
            done = mine.sh(f"sbatch-wait -o out --ch-image={ref} --wrap='cat /marker'")
            assert done.returncode == code and words in done.stderr, done
            if line == "pull=submit":
                assert "pulled in" in done.stderr
            if not code:
                assert (me.home / "out").read_text() == "from the registry\n"
    assert (me.home / "asked").read_text() == f"get {ref}:latest\n"


def test_a_running_container_is_packed(me: User, plain: Registry, layout: Layout) -> None:
    ref = plain.push(layout, "slurm/packed")
    process = me.popen(
        f"exec srun -N2 -w n1,n2 --ch-image={ref} --ch-write-fake sh -c "
        "'echo $SLURMD_NODENAME > /new; rm /marker; echo $SLURM_JOB_ID; read x'",
        stdin=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdin is not None
    job = process.stdout.readline().strip()
    assert process.stdout.readline().strip() == job
    pack = Path(sys.executable).with_name("slurm-ch")
    assert me.good(f"{pack} pack -q --node=n2 {job}.0 new.sqfs") == "new.sqfs\n"
    failed = me.sh(f"{pack} pack -q --node=n3 {job} other.sqfs")
    assert failed.returncode == 31 and "--node=n3" in failed.stderr
    process.communicate("\n", timeout=TIMEOUT)
    out = me.good(
        "srun -Q --ch-image=new.sqfs sh -c 'exec 2>&1; cat /new; ls /marker; test -s /etc/hosts; ls /proc/1/stat'"
    )
    assert out.splitlines() == ["n2", "ls: /marker: No such file or directory", "/proc/1/stat"]
    gone = me.sh(f"{pack} pack -q {job} other.sqfs")
    assert gone.returncode == 31 and not (me.home / "other.sqfs").exists()


def test_a_requeued_job_runs_what_was_pinned(me: User, plain: Registry, tmp_path: Path) -> None:
    ref = plain.push(image(tmp_path, "old"), "slurm/again:1")
    job = me.good(
        f"sbatch-wait --parsable --requeue -o out --ch-image={ref} --wrap='cat /marker; srun cat /marker'"
    ).strip()
    plain.push(image(tmp_path, "new"), "slurm/again:1")
    # A job that starts in the second in which it ended is killed by Slurm: its credential is revoked.
    another_second = "now=$(date +%s); while [ $(date +%s) = $now ]; do sleep 0.1; done"
    update = f"scontrol update JobId={job} StartTime=now"
    me.good(f"rm -rf $SLURM_CH_CACHE out; scontrol requeue {job}; {another_second}; {update}")
    me.good("until [ $(grep -cxs -e old -e new out) = 2 ]; do sleep 0.1; done")
    finished(me)
    assert (me.home / "out").read_text().splitlines()[-2:] == ["old", "old"]


@pytest.mark.row("F1")
def test_without_skopeo_what_is_there_still_runs(me: User, plain: Registry, layout: Layout) -> None:
    ref = plain.push(layout, "slurm/bare")
    me.good(f"srun --ch-image={ref} true")
    done = me.sh(f"PATH=/nonexistent /usr/bin/srun --ch-image={ref} true")
    assert done.returncode == 31 and "install the package skopeo" in done.stderr
    done = me.sh(f"PATH=/nonexistent /usr/bin/srun --ch-pull=cached --ch-image={ref} /bin/cat /marker")
    assert (done.returncode, done.stdout) == (0, "from the registry\n"), done


def test_an_index_is_pinned_as_a_whole(me: User, plain: Registry, tmp_path: Path) -> None:
    made = Layout(tmp_path / "index")
    platforms = ({"os": "linux", "architecture": "arm64"}, {"os": "linux", "architecture": "amd64"})
    for platform in platforms:
        marker = layer([item("marker", platform["architecture"] + "\n")])
        made.image([busybox(), marker], architecture=platform["architecture"], name=None, platform=platform)
    digest = made.index()
    ref = plain.push(made, "slurm/index:1", "index")
    job = me.good(f"sbatch --hold --parsable -o out --ch-image={ref} --wrap='cat /marker; srun cat /marker'").strip()
    plain.push(image(tmp_path, "new"), "slurm/index:1")
    assert me.good(f"srun -v --ch-pull=always --ch-image={ref} cat /marker") == "new\n"
    me.good(f"scontrol release {job}")
    finished(me)
    said = (me.home / "out").read_text()
    assert said.splitlines()[-2:] == ["amd64", "amd64"]
    assert f"{ref}@{digest} is {digest[:19]}" in said
    done = me.sh(f"srun --ch-platform=linux/arm64 --ch-image={ref}@{digest} cat /marker")
    assert done.stdout == "" or "arm64" in done.stdout
    assert len(me.images()) == 3


def test_no_secret_gets_into_a_job(me: User, closed: Registry, ca: Path, layout: Layout) -> None:
    me.env["SSL_CERT_FILE"] = str(me.home / "ca.crt")
    shutil.copy(ca / "ca.crt", me.home / "ca.crt")
    ref = closed.push(layout, "slurm/closed")
    done = me.sh(f"srun --ch-image={ref} true")
    assert done.returncode == 31 and "`slurm-ch login 127.0.0.1:" in done.stderr
    auth = auth_file(me.home / ".config/containers/auth.json", closed.host)
    for path in (auth, auth.parent, auth.parent.parent):
        os.chown(path, me.home.stat().st_uid, me.home.stat().st_gid)
    line = "env; cat /marker; srun sh -c env"
    said = me.good(f"sbatch-wait -o out --ch-verbose=2 --ch-image={ref} --wrap='{line}'; cat out; scontrol show job")
    assert "from the registry" in said
    secret = PASSWORD.encode()
    logs = [
        path.read_bytes() for path in Path(me.cluster.directory).rglob("*") if path.is_file() and not path.is_symlink()
    ]
    cached = [path.read_bytes() for path in me.cache.rglob("*") if path.is_file()]
    for text in (said.encode(), *logs, *cached):
        assert secret not in text and base64.b64encode(b"someone:" + secret) not in text


def test_what_runs_is_shown_by_its_name(me: User, plain: Registry, layout: Layout) -> None:
    """`ps`, -v and the job's record have the name that was typed, with the digest that runs."""
    ref = plain.push(layout, "slurm/shown:1")
    slurm_ch = Path(sys.executable).with_name("slurm-ch")
    with Cluster(nodes=1, plugstack_lines=[f"required {paths.PLUGIN} record=comment"]) as own:
        mine = User(own, me.name, me.home, plain)
        line = "echo $SLURM_JOB_ID $CH_RUNNING; read x"
        process = mine.popen(f"exec srun -Q --ch-image={ref} sh -c '{line}'", stdin=subprocess.PIPE)
        assert process.stdout is not None
        job, name = process.stdout.readline().split()
        assert name.startswith(f"{ref}@sha256:")
        (shown,) = [json.loads(one) for one in mine.good(f"{slurm_ch} ps --json {job}").splitlines()]
        assert shown["image"] == name
        (file,) = mine.images()
        wanted = f"ch-image={name} {mine.cache}/images/{file} 20"
        deadline = time.monotonic() + TIMEOUT
        while wanted not in (found := mine.good(f"squeue -h -j {job} -o %k")):
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        process.communicate("\n", timeout=TIMEOUT)
        assert process.returncode == 0
