# SPDX-License-Identifier: Apache-2.0
"""What plugstack.conf says about images, in steps: where they may come from, and what the cache keeps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.sandbox.cluster import Cluster

from .craft import Layout
from .registry import Registry
from .users import User, finished, image, pulls

SLURM_CH = Path(sys.executable).with_name("slurm-ch")


@contextmanager
def site(me: User, plain: Registry, *arguments: str, nodes: int = 2) -> Iterator[User]:
    """The same user in a cluster whose plugin has these arguments."""
    with Cluster(nodes=nodes, cpus=8, plugstack_lines=[f"required {paths.PLUGIN} {' '.join(arguments)}"]) as own:
        yield User(own, me.name, me.home, plain)


def test_the_site_s_own_images(me: User, plain: Registry, layout: Layout, world_tmp: Path) -> None:
    """Looked at first, with the registry's word and without; ignored where others could have put them there."""
    ref = plain.push(layout, "site/images:1")
    place = world_tmp / "site-images-in-slurm"
    place.mkdir(mode=0o755)
    env = {
        **os.environ,
        "SLURM_CH_CACHE": str(place),
        "CONTAINERS_REGISTRIES_CONF": me.env["CONTAINERS_REGISTRIES_CONF"],
    }
    made = Path(
        subprocess.run(
            [SLURM_CH, "pull", "-q", ref], check=True, capture_output=True, text=True, env=env
        ).stdout.strip()
    )
    asked = len(pulls(plain, "site/images"))
    with site(me, plain, f"images=/nonexistent:{place}") as mine:
        done = mine.sh(f"srun -N2 --ch-verbose --ch-image={ref} cat /marker")
        assert (done.returncode, done.stdout) == (0, "from the registry\n" * 2), done.stderr
        assert f"ch-image={ref}@sha256:" in done.stderr and f" {made} " in done.stderr
        assert mine.good(f"srun --ch-pull=cached --ch-image={ref} cat /marker") == "from the registry\n"
        script = "cat /marker; srun cat /marker"
        assert mine.good(f"sbatch-wait -o out --ch-image={ref} --wrap='{script}'; cat out").endswith(
            "from the registry\n" * 2
        )
        assert mine.images() == [] and len(pulls(plain, "site/images")) == asked
        os.chmod(made, 0o666)
        done = mine.sh(f"srun --ch-image={ref} cat /marker")
        assert (done.returncode, done.stdout) == (0, "from the registry\n")
        assert (
            f"warning: ignoring {made}: the site's images are root's files, which nobody else can write to"
            in done.stderr
        )
        assert len(mine.images()) == 1 and len(pulls(plain, "site/images")) > asked
    os.chmod(made, 0o444)
    with site(me, plain, f"images={place}", "pull=no", nodes=1) as mine:
        mine.good("rm -rf $SLURM_CH_CACHE")
        assert mine.good(f"srun --ch-image={ref} cat /marker") == "from the registry\n"


def test_what_the_cache_may_have(me: User, plain: Registry, tmp_path: Path) -> None:
    """The least recently used goes after a pull, but not under a step that runs."""
    refs = [plain.push(image(tmp_path, f"max{number}"), f"site/max{number}:1") for number in range(3)]
    with site(me, plain, "cache_max=2M", nodes=1) as mine:
        first = mine.popen(
            f"exec srun -Q --ch-image={refs[0]} sh -c 'echo began; read x; cat /marker'", stdin=subprocess.PIPE
        )
        assert first.stdout is not None and first.stdout.readline() == "began\n"
        (oldest,) = mine.images()
        assert (mine.cache / "images" / oldest).stat().st_size < 2 << 20
        said = mine.sh(f"srun -v --ch-verbose --ch-image={refs[1]} cat /marker").stderr
        said += mine.sh(f"srun --ch-verbose --ch-image={refs[2]} cat /marker").stderr
        assert oldest not in mine.images()
        assert f"removed {mine.cache}/images/{oldest}: the cache is limited to 2 MB" in said
        assert sum((mine.cache / "images" / name).stat().st_size for name in mine.images()) <= 2 << 20
        assert first.communicate("\n", timeout=60)[0] == "max0\n"
        assert mine.good(f"srun -Q --ch-image={refs[0]} cat /marker") == "max0\n"


@pytest.mark.parametrize(
    "command",
    ["srun {} cat /marker", "sbatch-wait -o out {} --wrap='cat /marker'; cat out", "salloc -Q {} srun cat /marker"],
)
def test_registries_that_the_site_allows(
    me: User, plain: Registry, layout: Layout, allowing: User, command: str
) -> None:
    ours, other = plain.push(layout, "site/allowed:1"), plain.push(layout, "elsewhere/app:1")
    assert allowing.good(command.format(f"--ch-image={ours}")).endswith("from the registry\n")
    done = allowing.sh(command.format(f"--ch-image={other}").split(";")[0])
    assert (done.returncode, done.stdout) == (31, "")
    assert done.stderr.splitlines()[-1] == (
        f"slurm-ch: error: {other}: not one of this site's registries: ghcr.io, {plain.host}/site"
    )
    assert allowing.good("squeue -h --me") == ""


@pytest.fixture(scope="module")
def allowing_cluster(plain: Registry) -> Iterator[Cluster]:
    line = f"required {paths.PLUGIN} registries=ghcr.io,{plain.host}/site"
    with Cluster(nodes=1, plugstack_lines=[line]) as own:
        yield own


@pytest.fixture
def allowing(allowing_cluster: Cluster, me: User, plain: Registry) -> User:
    return User(allowing_cluster, me.name, me.home, plain)


def test_an_image_from_this_host_is_of_no_registry(allowing: User, layout: Layout) -> None:
    subprocess.run(["cp", "-r", layout.path, allowing.home / "layout"], check=True)
    assert allowing.good("srun -Q --ch-image=oci:layout:image cat /marker") == "from the registry\n"


@pytest.mark.row("F18")
def test_the_site_s_importer(me: User, plain: Registry, layout: Layout) -> None:
    """Asked by srun for all nodes, and by a batch script's node; what it says in distress is passed on."""
    ref = plain.push(layout, "site/importer:1")
    program, there = me.home / "importer", me.home / "imported.sqfs"
    me.good(f"{SLURM_CH} pull -q {ref} {there}")
    program.write_text(f'#!/bin/sh\necho "$1 $2 ${{SLURM_JOB_ID:+in a job}}" >> {me.home}/asked\necho {there}\n')
    program.chmod(0o755)
    asked = me.home / "asked"
    with site(me, plain, f"importer={program}") as mine:
        assert mine.good(f"srun -N2 --ch-image={ref} cat /marker") == "from the registry\n" * 2
        assert asked.read_text() == f"get {ref} \n"
        asked.unlink()
        mine.good(f"sbatch-wait -o out --ch-image={ref} --wrap='cat /marker; srun cat /marker'")
        assert (me.home / "out").read_text() == "from the registry\n" * 2
        assert asked.read_text() == f"get {ref} in a job\n" * 2
        assert mine.images() == []
        for script, words in (
            ("echo no such thing >&2; exit 3", "failed with status 3: no such thing"),
            ("echo nowhere", "printed no path of an image: 'nowhere'"),
            ("kill -9 $$", "failed with status -9: it gives no reason"),
        ):
            program.write_text(f"#!/bin/sh\n{script}\n")
            done = mine.sh(f"srun --ch-image={ref} true")
            assert (done.returncode, done.stderr) == (
                31, f"slurm-ch: error: {ref}: the site's importer {program} {words}\n"
            )  # fmt: skip
        job = mine.good(f"sbatch --parsable -o out --ch-image={ref} --wrap=true").strip()
        finished(mine)
        assert "ExitCode=31:0" in mine.good(f"scontrol show job {job}")
        assert "failed with status -9: it gives no reason" in (me.home / "out").read_text()
    with site(me, plain, "importer=/nonexistent/importer", nodes=1) as mine:
        done = mine.sh(f"srun --ch-image={ref} true")
        assert done.returncode == 31 and "can't run /nonexistent/importer: No such file" in done.stderr
