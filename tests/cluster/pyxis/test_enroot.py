# SPDX-License-Identifier: Apache-2.0
"""What `enroot import` adds to an image in addition to its environment: /etc/fstab, /etc/rc.local, NVIDIA's variables."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.small_images import make_image, squash

from .conftest import RC, Good, Run

Make = Callable[..., Path]

FSTAB = """\
# UNCONFIGURED
${ENROOT_ROOTFS}/data /data none x-create=dir,bind,rw,nosuid,nodev
${ENROOT_ROOTFS}/new/volume /new/volume none x-create=dir,bind,rw,nosuid,nodev
${ENROOT_ROOTFS}/opt /with\\040blank none x-create=dir,bind
tmpfs /fresh tmpfs x-create=dir,size=1M,mode=0711
"""


@pytest.fixture
def make(world_tmp: Path) -> Make:
    """Make a SquashFS file of enroot's, or a directory, with what is given in /etc."""

    def make(*, packed: bool = True, **files: str) -> Path:
        root = make_image(Path(tempfile.mkdtemp(prefix="enroot-", dir=world_tmp)), "enroot's")
        root.chmod(0o755)
        for name, text in {"environment": "A=image\n", "rc": RC, "rc.local": "", "fstab": "", **files}.items():
            (root / "etc" / name.replace("_", ".")).write_text(text)
        for name in ("workspace", "data"):
            (root / name).mkdir(exist_ok=True)
        (root / "data/in").write_text("of the image\n")
        (root / "opt/tool").write_text("a tool\n")
        return squash(root, root.with_suffix(".sqfs")) if packed else root

    return make


@pytest.mark.parametrize("option", ["", "--container-writable", "--container-name=v"])
def test_volumes_and_mounts_of_the_image(good: Good, make: Make, option: str) -> None:
    """Volumes can be written to in a read-only container too; what is written goes with it."""
    show = (
        "cat /data/in; echo x > /data/out && cat /data/out; echo y > /new/volume/y && cat /new/volume/*;"
        ' cat "/with blank/tool"; stat -c %a /fresh; stat -f -c %T /fresh; touch /elsewhere 2> /dev/null || echo ro'
    )
    line = f"srun --container-image={make(fstab=FSTAB)} {option} sh -c '{show}'"
    out = good(line).splitlines()
    assert out == ["of the image", "x", "y", "a tool", "711", "tmpfs", *([] if option else ["ro"])]
    kept = good(f"srun --container-image={make(fstab=FSTAB)} {option} sh -c 'ls /data'").split()
    assert kept == ["in"]


def test_an_image_shows_nothing_of_the_hosts(sh: Run, make: Make, work: Path) -> None:
    (work / "secret").write_text("precious\n")
    fstab = f"{work} /data none bind\n${{ENROOT_ROOTFS}}/../../../../etc /host none bind\n"
    done = sh(f"srun --container-image={make(fstab=fstab)} sh -c 'cat /data/*; ls /host'")
    assert (done.returncode, done.stdout.split()[:3]) == (0, ["of", "the", "image"]), done
    assert "shadow" not in done.stdout
    words = f"/etc/fstab of the image: /data: {work} is on the host, which an image can't show"
    assert done.stderr.count(words) == 1


def test_a_user_mount_counts_more(good: Good, make: Make, work: Path) -> None:
    (work / "mine").write_text("mine\n")
    line = (
        f"srun --container-image={make(fstab=FSTAB)} --container-mounts=$PWD:/data sh -c 'cat /data/mine; ls /data/in'"
    )
    assert good(f"{line} 2> /dev/null || :") == "mine\n"


def test_the_start_file(good: Good, sh: Run, make: Make) -> None:
    """Sourced once per node, with and without the entrypoint; what it exports, and where it goes, is every task's."""
    image = make(rc_local='echo said\nexport BY=local A="$A+local" SLURM_PROCID=9\ncd /opt\n')
    show = "sh -c 'echo $SLURM_PROCID $BY $A $PWD'"
    assert good(f"srun -n2 --container-image={image} {show} | sort") == (
        "0 local image+local /opt\n1 local image+local /opt\n"
    )
    assert good(f"srun --container-image={image} --container-workdir=/ {show}") == "0 local image+local /\n"
    done = sh(f"srun -n2 --container-image={image} --container-entrypoint-log true")
    assert (done.returncode, done.stderr.count("said")) == (0, 1)
    done = sh(f"srun --container-image={make(rc_local='echo sorry; exit 7')} echo ran")
    assert (done.returncode, done.stdout) == (31, "")
    assert "/etc/rc.local of the image ended with status 7: sorry" in done.stderr


def test_what_is_not_enroots_is_left_alone(good: Good, make: Make) -> None:
    """Most distributions have an /etc/fstab, and some an rc.local."""
    image = make(rc="#!/bin/sh\n", fstab=FSTAB, rc_local="export BY=local")
    assert good(f"srun --container-image={image} sh -c 'ls -d /fresh 2>&1; echo $BY'") == (
        "ls: /fresh: No such file or directory\n\n"
    )


@pytest.mark.parametrize("packed", [True, False])
def test_the_image_may_want_no_gpus(sh: Run, make: Make, world_tmp: Path, packed: bool) -> None:
    """Its NVIDIA_VISIBLE_DEVICES counts where the job has none, as with enroot's hook."""
    specs = world_tmp / f"image-cdi-{packed}"
    specs.mkdir()
    (specs / "nvidia.yaml").write_text(
        "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- {name: all, containerEdits: {env: [GPU=all], mounts:"
        " [{hostPath: /etc/hosts, containerPath: /gpu/hosts}]}}\n"
    )
    line = "{} srun --container-image={} --ch-cdi-dirs=" + str(specs) + " sh -c 'echo GPU=$GPU; ls /gpu 2> /dev/null'"
    for value, given, gpu in (
        ("void", "", "GPU=\n"),
        ("none", "", "GPU=\n"),
        ("all", "", "GPU=all\nhosts\n"),
        ("void", "NVIDIA_VISIBLE_DEVICES=all", "GPU=all\nhosts\n"),
    ):
        image = make(environment=f"NVIDIA_VISIBLE_DEVICES={value}\n", packed=packed)
        assert sh(line.format(given, image)).stdout == gpu, (value, given)
    done = sh(f"MELLANOX_VISIBLE_DEVICES=all srun -n2 --container-image={image} true")
    assert done.stderr.count("MELLANOX_VISIBLE_DEVICES=all: the node's InfiniBand devices are in the container") == 1
    assert sh(f"MELLANOX_VISIBLE_DEVICES=void srun --container-image={image} true").stderr == ""
