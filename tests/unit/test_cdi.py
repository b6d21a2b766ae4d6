# SPDX-License-Identifier: Apache-2.0
"""CDI specs: what they say, what is wrong with them, and which devices are meant."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from slurm_ch import errors
from slurm_ch.devices import library
from slurm_ch.devices.edits import Injection
from slurm_ch.devices.records import Malformed
from slurm_ch.engine import environment
from slurm_ch.errors import ChError, UsageError
from slurm_ch.request import parsers, site
from slurm_ch.request import spec as spec_
from slurm_ch.request.options import COMMAND, PLUGIN, Setting

# As nvidia-ctk writes them, in short: hooks of both spellings, a device for all.
NVIDIA = """\
---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
containerEdits:
  deviceNodes:
  - path: /dev/nvidia-modeset
  - path: /dev/nvidiactl
    hostPath: /dev/nvidiactl
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  hooks:
  - args:
    - nvidia-cdi-hook
    - create-symlinks
    - --link
    - libcuda.so.1::/usr/lib64/libcuda.so
    - --link
    - ../libGLX.so.0::/usr/lib64/deep/libGLX.so
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  - args: [nvidia-ctk, hook, update-ldcache, --folder, /usr/lib64, --folder=/usr/lib64/vdpau]
    hookName: createContainer
    path: /usr/bin/nvidia-ctk
    timeout: 9
  - args: [nvidia-cdi-hook, enable-cuda-compat, --host-driver-version=535.7]
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  - args: [nvidia-cdi-hook, disable-device-node-modification]
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  mounts:
  - containerPath: /usr/bin/nvidia-smi
    hostPath: /usr/bin/nvidia-smi
    options: [ro, nosuid, nodev, bind]
  - containerPath: /run/nvidia-persistenced/socket
    hostPath: /run/nvidia-persistenced/socket
    options: [ro, nosuid, nodev, bind, noexec]
devices:
- name: 0
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
      major: 195
      fileMode: 0666
      permissions: rw
    hooks:
    - args: [nvidia-ctk, hook, chmod, --mode, "755", --path, /dev/dri]
      hookName: createContainer
      path: /usr/bin/nvidia-ctk
- name: GPU-5f6c
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
- name: all
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
    - path: /dev/nvidia1
"""


def spec(kind: str = "v.com/c", version: str = "0.5.0", names: tuple[str, ...] = ("0",), **edits: object) -> str:
    common = {"containerEdits": edits} if edits else {}
    listed = [{"name": name, "containerEdits": {"env": [f"DEVICE={name}"]}} for name in names]
    return json.dumps({"cdiVersion": version, "kind": kind, "devices": listed, **common})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two directories of specs, the NVIDIA-like one in the first."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    (tmp_path / "first/nvidia.yaml").write_text(NVIDIA)
    return tmp_path


ENVIRONMENT = {"SLURM_PROCID": "3", "CUDA_VISIBLE_DEVICES": "1", "MINE": "1"}


def find(place: Path, *requests: str) -> Injection:
    return library.find([(text, "--device") for text in requests], ["first", "second"], str(place), ENVIRONMENT)


def test_a_whole_spec(place: Path) -> None:
    found = find(place, "nvidia.com/gpu=0")
    assert found.env == [["NVIDIA_VISIBLE_DEVICES=void"]]
    assert list(found.nodes) == ["/dev/nvidia-modeset", "/dev/nvidiactl", "/dev/nvidia0"]
    assert (found.nodes["/dev/nvidia0"].major, found.nodes["/dev/nvidia0"].minor) == (195, None)
    assert found.mounts["/usr/bin/nvidia-smi"].options == ("ro", "nosuid", "nodev", "bind")
    assert found.links == {"/usr/lib64/libcuda.so": "libcuda.so.1", "/usr/lib64/deep/libGLX.so": "../libGLX.so.0"}
    assert (found.folders, found.timeout) == (["/usr/lib64", "/usr/lib64/vdpau"], 9)
    file = place / "first/nvidia.yaml"
    assert found.remarks == []
    assert found.cuda_compat == "535.7"
    assert found.notes[0].startswith(
        f"{file}: containerEdits.hooks[3]: createContainer hook /usr/bin/nvidia-cdi-hook dis"
    )
    assert [note.rpartition(": ")[0].partition("hook ")[2] for note in found.notes] == [
        "/usr/bin/nvidia-cdi-hook disable-device-node-modification",
        "/usr/bin/nvidia-ctk chmod: not needed",
    ]


@pytest.mark.parametrize(
    ("request_", "nodes"),
    [
        ("nvidia.com/gpu", ["/dev/nvidia0", "/dev/nvidia1"]),
        ("nvidia.com/gpu=all", ["/dev/nvidia0", "/dev/nvidia1"]),
        ("nvidia.com/gpu=GPU-5f6c", ["/dev/nvidia0"]),
        ("./first/nvidia.yaml", ["/dev/nvidia0", "/dev/nvidia1"]),
    ],
)
def test_which_devices_are_meant(place: Path, request_: str, nodes: list[str]) -> None:
    assert list(find(place, request_).nodes)[2:] == nodes


def test_every_device_of_every_kind(place: Path) -> None:
    (place / "first/v.json").write_text(spec(names=("a", "b")))
    (place / "second/broken.json").write_text(spec(kind="w.com/c", names=()))
    found = find(place, "all")
    assert found.env == [["NVIDIA_VISIBLE_DEVICES=void", "DEVICE=a", "DEVICE=b"]]
    assert list(found.nodes)[2:] == ["/dev/nvidia0", "/dev/nvidia1"]
    # Nobody knows whether it was meant.
    assert found.remarks == [f"device spec skipped: {place}/second/broken.json: devices: there are none"]
    with pytest.raises(Malformed, match="broken"):
        find(place, "all", "w.com/c")
    (place / "second/v.json").write_text(spec(names=("a",)))
    (place / "second/w.json").write_text(spec(names=("a",)))
    with pytest.raises(ChError, match=r"^v\.com/c=a is in two specs"):
        find(place, "all")
    nothing = library.find([("all", "--device")], ["none"], str(place), {})
    assert (nothing.env, nothing.remarks, nothing.notes) == ([[]], [], ["no devices in none"])


def test_libraries_count_as_if_a_hook_named_their_directories(place: Path) -> None:
    names = (
        "/usr/lib/a/libx.so.1.2",
        "/usr/lib/b/../c/liby.so",
        "/usr/lib/d/libz.so.conf.txt",
        "/usr/lib/e/lib.sox",
        "/f/so",
    )
    mounts = [{"hostPath": "/x", "containerPath": name} for name in names]
    (place / "second/v.json").write_text(spec(mounts=mounts))
    found = find(place, "v.com/c")
    assert (found.cache, found.folders) == (True, ["/usr/lib/a", "/usr/lib/c", "/usr/lib/d"])
    (place / "second/v.json").write_text(spec(mounts=mounts[3:]))
    assert not find(place, "v.com/c").cache


def test_all_is_every_device_where_the_spec_has_none_of_that_name(place: Path) -> None:
    path = place / "second/v.json"
    path.write_text(spec(names=("b", "a", "7")))
    for request in ("v.com/c", "v.com/c=all", str(path)):
        assert find(place, request).env == [["DEVICE=b", "DEVICE=a", "DEVICE=7"]]


def test_common_edits_once_but_the_environment_with_each_request(place: Path) -> None:
    mount = {"hostPath": "/mine", "containerPath": "/usr/bin/nvidia-smi"}
    (place / "second/v.json").write_text(spec(names=("a", "b"), env=["A=1"], mounts=[mount]))
    found = find(place, "v.com/c=b", "nvidia.com/gpu=0", "v.com/c=a")
    # The last one wins, and a spec's common edits are made where it is first asked for.
    assert found.mounts["/usr/bin/nvidia-smi"].source == "/usr/bin/nvidia-smi"
    assert found.env == [["A=1", "DEVICE=b"], ["NVIDIA_VISIBLE_DEVICES=void"], ["A=1", "DEVICE=a"]]


def test_what_each_task_has_of_its_own_is_not_set(place: Path) -> None:
    words = ["SLURM_PROCID=0", "MINE=2", "CUDA_VISIBLE_DEVICES=all", "ROCR_VISIBLE_DEVICES=0"]
    (place / "second/v.json").write_text(spec(names=("a",), env=words))
    found = find(place, "v.com/c")
    assert found.env == [["MINE=2", "ROCR_VISIBLE_DEVICES=0", "DEVICE=a"]]
    assert found.remarks == [
        "v.com/c: CUDA_VISIBLE_DEVICES is each task's own, not set to all",
        "v.com/c: SLURM_PROCID is each task's own, not set to 0",
    ]


def test_the_last_directory_counts(place: Path) -> None:
    (place / "first/v.json").write_text(spec(names=("a", "b"), env=["FROM=first"]))
    (place / "second/w.json").write_text(spec(names=("b", "c"), env=["FROM=second"]))
    assert find(place, "v.com/c=a").env == [["FROM=first", "DEVICE=a"]]
    assert find(place, "v.com/c=b").env == [["FROM=second", "DEVICE=b"]]
    assert find(place, "v.com/c").env == [["FROM=first", "DEVICE=a", "FROM=second", "DEVICE=b", "DEVICE=c"]]


def test_twice_in_one_directory_is_an_error_for_who_asks_for_it(place: Path) -> None:
    (place / "first/v.json").write_text(spec(names=("a", "b")))
    (place / "first/w.json").write_text(spec(names=("b",)))
    assert find(place, "v.com/c=a").env == [["DEVICE=a"]]
    for request in ("v.com/c=b", "v.com/c"):
        with pytest.raises(ChError, match=r"^v.com/c=b is in two specs: .*/first/v.json and .*/first/w.json"):
            find(place, request)
    # A later directory settles it.
    (place / "second/x.json").write_text(spec(names=("b",), env=["FROM=second"]))
    assert find(place, "v.com/c=b").env == [["FROM=second", "DEVICE=b"]]


def test_no_such_device(place: Path) -> None:
    with pytest.raises(UsageError) as caught:
        find(place, "nvidia.com/gpu=7")
    assert str(caught.value) == "--device=nvidia.com/gpu=7: no such device, only 0, GPU-5f6c, all"
    with pytest.raises(UsageError) as caught:
        find(place, "v.com/c")
    assert str(caught.value) == "--device=v.com/c: no devices of this kind in first:second"


def test_a_broken_spec_of_another_kind_stops_nobody(place: Path) -> None:
    (place / "first/v.json").write_text(spec(names=("a", "a")))
    found = find(place, "nvidia.com/gpu=0")
    assert found.notes[0].startswith(f"device spec skipped: {place}/first/v.json: devices[1].name: is there twice: a")
    with pytest.raises(Malformed, match=r"v\.json: devices\[1\]\.name"):
        find(place, "v.com/c")


def test_a_broken_spec_of_who_knows_what_is_said(place: Path) -> None:
    (place / "first/a.json").write_text("{")
    (place / "first/b.json").mkdir()
    (place / "first/c.txt").write_text("{")
    remarks = [r for r in find(place, "nvidia.com/gpu=0").remarks if r.startswith("device spec skipped")]
    assert remarks[0].startswith(f"device spec skipped: {place}/first/a.json: not JSON: ")
    assert remarks[1] == f"device spec skipped: {place}/first/b.json: not a regular file"
    assert len(remarks) == 2
    with pytest.raises(UsageError, match=r"no devices of this kind in first:second; device spec skipped: .*a\.json"):
        find(place, "v.com/c")


def test_a_file_that_is_none(place: Path) -> None:
    with pytest.raises(UsageError) as caught:
        find(place, "./nothing.json")
    assert errors.describe(caught.value) == (
        "--device=./nothing.json: can't read the device spec: No such file or directory"
    )
    os.mkfifo(place / "fifo.json")
    with pytest.raises(UsageError, match=r"--device: .*/fifo\.json: not a regular file"):
        find(place, "./fifo.json")


@pytest.mark.row("--cdi-dirs")
def test_directories() -> None:
    assert library.directories("/a:/b", {"CH_RUN_CDI_DIRS": "/c"}) == ["/a", "/b"]
    assert library.directories(None, {"CH_RUN_CDI_DIRS": "/c::/d"}) == ["/c", "/d"]
    assert library.directories(None, {"CH_RUN_CDI_DIRS": ""}) == ["/etc/cdi", "/var/run/cdi"]


# ---- The options ----


def made(*words: str, label: str = "--ch-") -> spec_.Spec:
    pairs = [word.partition("=") for word in words]
    return parsers.make(
        "img",
        [Setting(name, value, f"{label}{name}", PLUGIN if label == "--ch-" else COMMAND) for name, _, value in pairs],
    )


def test_device_option() -> None:
    wanted = made("device=v.com/c=0", "set-env=A=1", "device=./x.json")
    assert wanted.devices == [("v.com/c=0", "--ch-device"), ("./x.json", "--ch-device")]
    assert wanted.env_rules == [("device", "v.com/c=0"), ("set", "A=1"), ("device", "./x.json")]
    assert wanted.write_fake == "12%"
    assert made("write-fake=1G", "device=v.com/c").write_fake == "1g"
    # Commas separate in the plugin's option, and belong to the name on a command line.
    assert [text for text, _ in made("device=v.com/c,/a\\,b").devices] == ["v.com/c", "/a,b"]
    assert [text for text, _ in made("device=/a,b", label="--").devices] == ["/a,b"]
    assert [text for text, _ in made("device=all,a b.json,c.yaml").devices] == ["all", "a b.json", "c.yaml"]
    assert made("cdi-dirs=/a:/b").cdi_dirs == "/a:/b"


def test_devices_as_the_sites_default() -> None:
    here = site.parse(["default=device=v.com/c", "default=cdi-dirs=/opt/cdi", "forbid=write"])
    met = site.combine(here, parsers.parse_request("image=i\n"))
    assert (met.devices, met.cdi_dirs) == ([("v.com/c", "plugstack.conf: default=device")], "/opt/cdi")
    assert [text for text, _ in site.combine(here, parsers.parse_request("image=i\ndevice=v.com/d\n")).devices] == [
        "v.com/d"
    ]
    assert site.combine(
        site.parse(["default=device=all"]), parsers.parse_request("image=i\ndevice=none\nwrite=1\n")
    ).write
    with pytest.raises(UsageError, match="not allowed at this site"):
        site.combine(site.parse(["forbid=device"]), parsers.parse_request("image=i\ndevice=v.com/d\n"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["device=gpu"], "--ch-device=gpu: neither a device (VENDOR/CLASS, VENDOR/CLASS=NAME, all) nor a file (begins"),
        (["device="], "--ch-device=: neither a device"),
        (["device=v.com/c,"], "--ch-device=v.com/c,: neither a device"),
        (["cdi-dirs="], "--ch-cdi-dirs=: names no directory"),
        (["cdi-dirs=::"], "--ch-cdi-dirs=::: names no directory"),
        (["write=1", "device=v.com/c"], "--ch-write=1: contradicts --ch-device, which implies write-fake"),
        (["join-pid=7", "device=v.com/c"], "--ch-join-pid=7: contradicts --ch-device: that container is already made"),
    ],
)
def test_wrong_options(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        made(*words)
    assert str(caught.value).startswith(message)


def test_device_environment_among_the_rules() -> None:
    rules = made("set-env=A=1", "device=v.com/c=0", "unset-env=B", "device=/f").env_rules
    records = environment.rule_records(rules, "X", lambda _, f: [], [["X=$A"], ["Y=2", "Z=3"]])
    # What a spec says is taken as it is.
    assert records == [("X", "A=1"), ("E", "X=$A"), ("U", "B"), ("E", "Y=2"), ("E", "Z=3")]
