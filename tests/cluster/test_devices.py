# SPDX-License-Identifier: Apache-2.0
"""Devices by CDI specs in steps: through the plugin, and with the named join."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.command import SLURM_CH

from .conftest import Run

Good = Callable[..., str]


# YAML: the launcher, without a virtual environment, must find PyYAML.
SPEC = """\
cdiVersion: 0.5.0
kind: fake.test/gpu
devices:
- name: 0
  containerEdits: {{env: [GPU=0, SLURM_FAKE=$SLURM_PROCID]}}
- name: 1
  containerEdits: {{env: [OTHER=1]}}
containerEdits:
  env: [FROM=spec]
  mounts:
  - {{hostPath: {source}, containerPath: /opt/fake/lib.so, options: [ro]}}
  hooks:
  - {{hookName: createContainer, path: /usr/bin/nvidia-cdi-hook, args: [nvidia-cdi-hook, frobnicate]}}
"""
SHOW = "'echo $SLURM_PROCID $FROM $GPU $OTHER $NIC $(cat /opt/fake/lib.so) $(grep -c /opt/fake/lib.so /proc/self/mountinfo)'"


@pytest.fixture(scope="module")
def place(world_tmp: Path) -> Iterator[Path]:
    """A directory with the specs of two kinds."""
    root = world_tmp / "e2e-cdi"
    root.mkdir()
    source = root / "lib.so"
    source.write_text("library\n")
    (root / "fake.yaml").write_text(SPEC.format(source=source))
    nic = {
        "cdiVersion": "0.5.0",
        "kind": "fake.test/nic",
        "devices": [{"name": "0", "containerEdits": {"env": ["NIC=0"]}}],
    }
    (root / "nic.json").write_text(json.dumps(nic))
    yield root


@pytest.mark.row("--device")
def test_every_task_of_every_node_has_the_devices(sh: Run, place: Path) -> None:
    done = sh(
        f"srun --overcommit -N2 -n6 --ch-image=$IMG --ch-cdi-dirs={place}"
        f" --ch-device=fake.test/gpu=0,fake.test/gpu=1 --ch-device=fake.test/nic sh -c {SHOW}"
    )
    assert sorted(done.stdout.splitlines()) == [f"{rank} spec 0 1 0 library 1" for rank in range(6)], done
    # What isn't done is reported once per node.
    assert sorted(line.split(": ")[1] for line in done.stderr.splitlines() if "frobnicate" in line) == ["n1", "n2"]


def test_every_device_there_is(good: Good, place: Path) -> None:
    out = good(f"srun --ch-image=$IMG --ch-cdi-dirs={place} --ch-device=all sh -c {SHOW} 2>/dev/null")
    assert out == "0 spec 0 1 0 library 1\n"
    # Where there are none, that is all there are.
    assert good("srun --ch-image=$IMG --ch-cdi-dirs=/nonexistent --ch-device=all cat /marker 2>&1") == "one\n"


def test_devices_by_the_environments_defaults(good: Good, place: Path) -> None:
    out = good(
        f"export SLURM_CH_IMAGE=$IMG SLURM_CH_DEVICE=fake.test/gpu=0 CH_RUN_CDI_DIRS={place}; srun sh -c {SHOW} 2>/dev/null"
    )
    assert out == "0 spec 0 library 1\n"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--ch-device=gpu", 64, "--ch-device=gpu: neither a device (VENDOR/CLASS, VENDOR/CLASS=NAME, all) nor a file"),
        ("--ch-device=fake.test/gpu=7", 64, "--ch-device=fake.test/gpu=7: no such device, only 0, 1"),
        ("--ch-device=fake.test/fpga", 64, "--ch-device=fake.test/fpga: no devices of this kind in "),
        ("--ch-device={place}/lib.so", 64, "--ch-device: {place}/lib.so: not an object"),
        ("--ch-device={place}/none.json", 64, "--ch-device={place}/none.json: can't read the device spec: No such file"),
        ("--ch-device=fake.test/gpu --ch-write", 64, "--ch-write=yes: contradicts --ch-device, which implies write-fake"),
    ],
)  # fmt: skip
def test_refusals(sh: Run, place: Path, options: str, code: int, message: str) -> None:
    line = f"srun -N1 --overcommit -n4 --ch-image=$IMG --ch-cdi-dirs={place} {options.format(place=place)} touch {place}/ran"
    done = sh(line)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.count(message.format(place=place)) == 1, done.stderr
    assert not (place / "ran").exists()


def test_a_malformed_file_is_refused_before_the_queue(sh: Run, place: Path) -> None:
    done = sh(f"sbatch --ch-image=$IMG --ch-device={place}/lib.so --wrap=true")
    assert done.returncode != 0
    assert f"--ch-device: {place}/lib.so: not an object" in done.stderr
    assert "Submitted" not in done.stdout


def test_devices_in_a_named_join(sh: Run, place: Path) -> None:
    run = f"{SLURM_CH} run --join --cdi-dirs={place} -d fake.test/gpu=0 $IMG -- sh -c {SHOW}"
    done = sh(f"srun -N1 --overcommit -n4 {run}")
    assert sorted(done.stdout.splitlines()) == [f"{rank} spec 0 library 1" for rank in range(4)], done
    assert done.stderr.count("frobnicate") == 1
