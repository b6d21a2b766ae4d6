# SPDX-License-Identifier: Apache-2.0
"""pyxis' options where a user submits: only if the site enables them, and with pyxis' rules for variables."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from slurm_ch.request import pyxis

from .conftest import Fake, variables
from .test_submit import request

YES = {"FAKE_SITE": "pyxis=yes\npython=/nonexistent"}
IMAGE = "--container-image=./i.sqsh"


def test_every_option_and_its_line(fake: Fake) -> None:
    words = [f"--{one.name}" + ("" if one.bare else "=./v") for one in pyxis.OPTIONS]
    expected = [f"{one.name.removeprefix('no-')}={one.bare or './v'}" for one in pyxis.OPTIONS]
    assert request(fake("submit", *words, **YES)) == expected


@pytest.mark.parametrize("site", ["", "pyxis=no", "pyxis=yes\npyxis=no"])
def test_none_of_it_is_there_by_default(fake: Fake, site: str) -> None:
    # The fake ends by a signal if there is no such option.
    assert fake("submit", IMAGE, FAKE_SITE=site).returncode < 0
    env = {f"PYXIS_CONTAINER_{one.variable}": "1" for one in pyxis.OPTIONS}
    assert request(fake("submit", "--ch-image=i", FAKE_SITE=site, **env)) == ["image=i"]


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("ubuntu:22.04", "docker://ubuntu:22.04"),
        ("nvcr.io#nvidia/pytorch:24.01", "docker://nvcr.io#nvidia/pytorch:24.01"),
        ("docker://u@h#i", "docker://u@h#i"),
        ("dockerd://i", "dockerd://i"),
        ("/a/b.sqsh", "/a/b.sqsh"),
        ("./b", "./b"),
        ("../b", "../b"),
        ("b.sqsh", "docker://b.sqsh"),
    ],
)
def test_a_path_begins_with_a_slash_or_a_dot(fake: Fake, value: str, meant: str) -> None:
    expected = [f"container-image={meant}"]
    assert request(fake("submit", f"--container-image={value}", **YES)) == expected
    assert request(fake("submit", PYXIS_CONTAINER_IMAGE=value, **YES)) == expected


@pytest.mark.parametrize("name", ["srun", "sbatch", "salloc"])
def test_a_variable_counts_where_its_option_is_unset(fake: Fake, name: str) -> None:
    env = {
        "PYXIS_CONTAINER_IMAGE": "./e",
        "PYXIS_CONTAINER_MOUNTS": "/e:/e,/f",
        "PYXIS_CONTAINER_WORKDIR": "/e",
        "PYXIS_CONTAINER_MOUNT_HOME": "true",
        "PYXIS_CONTAINER_WRITABLE": "1",
        "PYXIS_CONTAINER_ENV": "",
        **YES,
    }
    every = ["image=./e", "mounts=/e:/e,/f", "workdir=/e", "mount-home=true", "writable=1"]
    assert request(fake("submit", name=name, **env)) == [f"container-{one}" for one in every]
    words = ["--container-mounts=/a", "--container-mounts=/b", "--no-container-mount-home", "--container-readonly"]
    assert request(fake("submit", *words, name=name, **env)) == [
        "container-image=./e",
        "container-workdir=/e",
        "container-mounts=/a",
        "container-mounts=/b",
        "container-mount-home=no",
        "container-readonly=yes",
    ]


def test_an_allocations_options_are_its_steps_defaults(fake: Fake) -> None:
    words = [IMAGE, "--container-mounts=/a", "--container-mounts=/b:/c", "--no-container-mount-home"]
    words += ["--container-writable"]
    env = {"PYXIS_CONTAINER_MOUNTS": "/old", "PYXIS_CONTAINER_READONLY": "1", "SLURM_CH_IMAGE": "old", **YES}
    found = variables(fake("submit", *words, name="sbatch", FAKE_CONTEXT="allocator", **env).stdout)
    del found["SLURM_CH_REQUEST"]
    assert {name: value for name, value in found.items() if value} == {
        "PYXIS_CONTAINER_IMAGE": "./i.sqsh",
        "PYXIS_CONTAINER_MOUNTS": "/a,/b:/c",
        "PYXIS_CONTAINER_MOUNT_HOME": "no",
        "PYXIS_CONTAINER_WRITABLE": "yes",
    }
    # From these variables a step makes the same container.
    again = request(fake("submit", **{**found, **YES}))
    assert again[:2] == ["container-image=./i.sqsh", "container-mounts=/a,/b:/c"]


def test_one_familys_image_overrules_the_others_defaults(fake: Fake) -> None:
    env = {
        "PYXIS_CONTAINER_IMAGE": "./p",
        "PYXIS_CONTAINER_WORKDIR": "/p",
        "SLURM_CH_IMAGE": "o",
        "SLURM_CH_BIND": "/o",
    }
    assert request(fake("submit", "--ch-image=i", **env, **YES)) == ["bind=/o", "image=i"]
    assert request(fake("submit", IMAGE, **env, **YES)) == [
        "bind=/o",
        "container-workdir=/p",
        "container-image=./i.sqsh",
    ]
    found = variables(fake("submit", "--ch-image=i", name="sbatch", FAKE_CONTEXT="allocator", **env, **YES).stdout)
    assert "PYXIS_CONTAINER_IMAGE" not in found


def test_an_option_without_an_image(fake: Fake) -> None:
    done = fake("submit", "--container-mounts=/a", **YES)
    assert (done.returncode, done.stdout) == (64, "")
    assert "slurm_ch: --container-mounts: --container-image is missing" in done.stderr
    # A variable alone requests no container.
    assert fake("submit", PYXIS_CONTAINER_MOUNTS="/a", **YES).returncode == 0


def test_beside_a_loaded_pyxis(fake: Fake, world_tmp: Path) -> None:
    plugin = world_tmp / "spank_pyxis.so"
    source = world_tmp / "pyxis.c"
    source.write_text('const char plugin_name[] = "pyxis";\n')
    subprocess.run(["cc", "-shared", "-fPIC", "-o", plugin, source], check=True)
    done = fake("submit", "--ch-image=i", FAKE_LOAD=str(plugin), **YES)
    assert request(done) == ["image=i"]
    assert f"slurm_ch: plugstack.conf: pyxis=yes is ignored: {plugin} is loaded too" in done.stderr
    assert fake("submit", IMAGE, FAKE_LOAD=str(plugin), **YES).returncode < 0


@pytest.mark.parametrize("option", [IMAGE, "--container-name=x"])
def test_slurms_own_container_beside_them(fake: Fake, option: str) -> None:
    """The message has the option's name as it was typed."""
    done = fake("submit", option, SLURM_CONTAINER="bundle", **YES)
    words = f"{option.partition('=')[0]} and SLURM_CONTAINER: each makes a container; give one of them"
    assert (done.returncode, words in done.stderr) == (64, True)


def test_a_name_is_enough(fake: Fake) -> None:
    """Without an image, that of the container is used, and so the variable has none."""
    assert request(fake("submit", "--container-name=x", **YES)) == ["container-name=x"]
    assert request(fake("submit", PYXIS_CONTAINER_NAME="x:exec", **YES)) == ["container-name=x:exec"]
