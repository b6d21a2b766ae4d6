# SPDX-License-Identifier: Apache-2.0
"""CDI specs: what they say, what is wrong with them, and which devices are meant."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pytest_mock import MockerFixture

from slurm_ch import errors
from slurm_ch.devices import library, reader
from slurm_ch.devices import names as cdinames
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


HUGE = '{"a": ' + "9" * 5000 + "}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON: Expecting value: line 1 column 1"),
        ("[]", "not an object"),
        ("{}", "cdiVersion: is missing"),
        ('{"cdiVersion": 1}', "cdiVersion: not a string"),
        ('{"cdiVersion": "1"}', "cdiVersion: not a version: 1"),
        ('{"cdiVersion": "1.2.0"}', "cdiVersion: 1.2.0 is not known, only versions up to 1.1.0"),
        ('{"cdiVersion": "0.5.0"}', "kind: is missing"),
        ('{"cdiVersion": "0.5.0", "kind": "vendor"}', "kind: not VENDOR/CLASS: vendor"),
        ('{"cdiVersion": "0.5.0", "kind": "v.com/c"}', "devices: there are none"),
        ('{"cdiVersion": "0.5.0", "kind": "v.com/c", "devices": {}}', "devices: not a list"),
        ('{"cdiVersion": "0.5.0", "kind": "v.com/c", "devices": [{}]}', "devices[0].name: is missing"),
        ('{"cdiVersion": "0.5.0", "kind": "v.com/c", "devices": [{"name": "-"}]}', "devices[0].name: not a device's name: -"),
        ('{"cdiVersion": "0.5.0", "kind": "v.com/c", "kind": "v.com/d"}', "the key 'kind' is there twice"),
        ('{"cdiVersion": "0.5.0", "knid": "v.com/c"}', "knid: unknown field"),
        ('{"cdiVersion": "0.5.0", "kind": "v.com/c", "annotations": {"a": 1}}', "annotations: not a string"),
        ('{"cdiVersion": NaN}', "NaN is not JSON"),
        (HUGE, "not JSON: a number too long, or nested too deep"),
        ("[" * 100000, "not JSON: a number too long, or nested too deep"),
    ],
)  # fmt: skip
def test_malformed(text: str, message: str) -> None:
    with pytest.raises(Malformed) as caught:
        reader.parse(text.encode(), "/x/s.json")
    assert str(caught.value).startswith(f"/x/s.json: {message}")
    assert caught.value.code == 31


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([], ": not an object"),
        ({"envs": []}, "envs: unknown field"),
        ({"env": ["A"]}, "env[0]: not NAME=VALUE: A"),
        ({"env": ["A=1", "=2"]}, "env[1]: not NAME=VALUE: =2"),
        ({"env": ["A=\0"]}, "env[0]: has a NUL or half a character in it"),
        ({"env": ["A=\ud800"]}, "env[0]: has a NUL or half a character in it"),
        ({"mounts": [{"hostPath": "/a"}]}, "mounts[0].containerPath: is missing"),
        ({"mounts": [{"hostPath": "a"}]}, "mounts[0].hostPath: not an absolute path: a"),
        ({"mounts": [{"hostPath": "/a", "containerPath": "/b/.."}]}, "mounts[0].containerPath: is the root: /b/.."),
        ({"mounts": [{"hostPath": "/a", "containerPath": "/b", "options": "ro"}]}, "mounts[0].options: not a list"),
        ({"mounts": [{"hostPath": "/a\nb"}]}, "mounts[0].hostPath: has a newline in it"),
        ({"deviceNodes": [{"path": "/a", "type": "x"}]}, "deviceNodes[0].type: not one of b, c, u, p: x"),
        ({"deviceNodes": [{"path": "/a", "major": "1"}]}, "deviceNodes[0].major: not a whole number from 0 to 9223372036854775807"),
        ({"deviceNodes": [{"path": "/a", "permissions": "x"}]}, "deviceNodes[0].permissions: not made of r, w, m: x"),
        ({"hooks": [{"path": "/a"}]}, "hooks[0].hookName: is missing"),
        ({"hooks": [{"hookName": "x", "path": "/a"}]}, "hooks[0].hookName: not a hook's name: x"),
        ({"hooks": [{"hookName": "poststop", "path": "/a", "timeout": 0}]}, "hooks[0].timeout: not a whole number from 1 to 2147483648"),
        ({"hooks": [{"hookName": "poststop", "path": "/a", "args": [1]}]}, "hooks[0].args[0]: not a string"),
        ({"additionalGids": [True]}, "additionalGids[0]: not a whole number from 0 to 4294967295"),
        ({"netDevices": [{"name": "a"}]}, "netDevices[0].hostInterfaceName: is missing"),
        ({"intelRdt": {"closId": "a"}}, "intelRdt.closId: unknown field"),
    ],
)  # fmt: skip
def test_malformed_edits(edits: object, message: str) -> None:
    tree = {"cdiVersion": "1.1.0", "kind": "v.com/c", "devices": [{"name": "a"}], "containerEdits": edits}
    with pytest.raises(Malformed) as caught:
        reader.parse(json.dumps(tree).encode(), "/x/s.json")
    assert str(caught.value) == f"/x/s.json: containerEdits{'' if message[0] == ':' else '.'}{message}"
    tree |= {"containerEdits": {}, "devices": [{"name": "a", "containerEdits": edits}]}
    with pytest.raises(Malformed, match=r"^/x/s.json: devices\[0\]\.containerEdits"):
        reader.parse(json.dumps(tree).encode(), "/x/s.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not an object"),
        ("a: [", "not YAML: did not find expected node content: line 2 column 1"),
        ("a: 1\nb: 2\na: 3", "the key 'a' is there twice: line 3"),
        ("a: 1\n---\nb: 2", "not YAML: but found another document: line 2 column 1"),
        ("? [a]\n: 1", "not YAML: found unhashable key: line 1 column 3"),
        ("- " * 100000, "not YAML: exceeded maximum nesting depth"),
        ("a: *b", "not YAML: found undefined alias: line 1 column 4"),
        ("a: \x07", "not YAML: "),
        ("&a a: *a", "a: unknown field"),
    ],
)
def test_malformed_yaml(text: str, message: str) -> None:
    with pytest.raises(Malformed) as caught:
        reader.parse(text.encode(), "/x/s.yaml")
    assert str(caught.value).startswith(f"/x/s.yaml: {message}")


@pytest.mark.parametrize(
    ("version", "edits"),
    [
        ("0.4.0", {"mounts": [{"hostPath": "/a", "containerPath": "/b", "type": "bind"}]}),
        ("0.5.0", {"deviceNodes": [{"path": "/dev/a", "hostPath": "/dev/b"}]}),
        ("0.7.0", {"intelRdt": {"closID": "x", "enableCMT": True}}),
        ("0.7.0", {"additionalGids": [7]}),
        ("1.1.0", {"intelRdt": {"schemata": ["MB:0=1"], "enableMonitoring": True}}),
        ("1.1.0", {"netDevices": [{"hostInterfaceName": "eth0", "name": "net0"}]}),
    ],
)
def test_each_field_needs_its_version(version: str, edits: dict[str, object]) -> None:
    def text(at: tuple[int, int]) -> bytes:
        return spec(version=f"{at[0]}.{at[1]}.0", names=("a",), **edits).encode()

    index = next(i for i, known in enumerate(reader.VERSIONS) if version == f"{known[0]}.{known[1]}.0")
    assert reader.parse(text(reader.VERSIONS[index]), "s.json").kind == "v.com/c"
    with pytest.raises(Malformed, match=f"needs cdiVersion {version}, but this is"):
        reader.parse(text(reader.VERSIONS[index - 1]), "s.json")


def test_names_need_their_version() -> None:
    with pytest.raises(Malformed, match=r"devices\[0\]\.name: needs cdiVersion 0\.5\.0"):
        reader.parse(spec(version="0.4.0", names=("0",)).encode(), "s.json")
    with pytest.raises(Malformed, match=r"kind: needs cdiVersion 0\.6\.0"):
        reader.parse(spec(kind="v.com/c.d").encode(), "s.json")


def test_yaml_without_its_library_in_c(place: Path, mocker: MockerFixture) -> None:
    mocker.patch.object(yaml, "CBaseLoader", yaml.BaseLoader)
    assert list(find(place, "nvidia.com/gpu=0").nodes) == ["/dev/nvidia-modeset", "/dev/nvidiactl", "/dev/nvidia0"]
    for text, message in (
        ("a: 1\na: 3", "the key 'a' is there twice: line 2"),
        ("[" * 2000, "not YAML: exceeded maximum nesting depth"),
    ):
        with pytest.raises(Malformed, match=f"^s.yaml: {message}"):
            reader.parse(text.encode(), "s.yaml")


def test_no_pyyaml(place: Path, mocker: MockerFixture) -> None:
    mocker.patch.dict(sys.modules, {"yaml": None})
    before = list(sys.path)
    with pytest.raises(ChError, match=r"nvidia\.yaml: reading YAML needs PyYAML, which is not installed"):
        find(place, "nvidia.com/gpu=0")
    assert sys.path == before
    (place / "second/v.json").write_text(spec())
    assert find(place, "./second/v.json").env == [["DEVICE=0"]]


@pytest.mark.parametrize(
    "where", ["vendor", f".venv/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"]
)
def test_pyyaml_beside_the_package(tmp_path: Path, where: str) -> None:
    """As installed and as in a checkout, for an interpreter that sees nothing but the package's parent."""
    package = Path(reader.__file__).parents[1]
    shutil.copytree(package, tmp_path / "slurm_ch", ignore=shutil.ignore_patterns("native", "__pycache__"))
    shutil.copytree(Path(yaml.__file__).parent, tmp_path / where / "yaml")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from slurm_ch.devices import text; print(text.import_yaml('x').__file__)"
    command = [sys.executable, "-I", "-S", "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={})
    assert done.stdout == f"{tmp_path}/{where}/yaml/__init__.py\n"


@pytest.mark.parametrize("text", ["0666", "0o666", "438"])
def test_numbers_of_yaml(text: str) -> None:
    # Three ways to write the same mode; of what isn't a number the key is named.
    data = f"{{cdiVersion: 0.5.0, kind: v.com/c, devices: [{{name: a}}], containerEdits: {{deviceNodes: [{{path: /a, major: {text}}}]}}}}"
    assert reader.parse(data.encode(), "s.yaml").edits.nodes[0].major == 438
    with pytest.raises(Malformed, match=r"containerEdits\.deviceNodes\[0\]\.major: not a whole number"):
        reader.parse(data.replace(text, "0x10").encode(), "s.yaml")


def remarks(place: Path, **edits: object) -> list[str]:
    (place / "second/v.json").write_text(spec(version="1.1.0", **edits))
    found = find(place, "v.com/c")
    return [text.removeprefix(f"{place}/second/v.json: ") for text in found.remarks]


def test_what_cannot_be_done_is_said(place: Path) -> None:
    mount = {"hostPath": "/a", "containerPath": "/b", "options": ["rslave", "rw", "rbind", "size=1"]}
    assert remarks(place, mounts=[mount]) == [
        "containerEdits.mounts[0]: option ignored: rslave: /b",
        "containerEdits.mounts[0]: option ignored: size=1: /b",
    ]
    assert remarks(place, intelRdt={"closID": "x"}) == ["intelRdt: can't be set without privileges"]
    names = [{"hostInterfaceName": "eth0", "name": "net0"}, {"hostInterfaceName": "ib0", "name": "ib0"}]
    assert remarks(place, netDevices=names) == ["netDevices: eth0 keeps its name in the container, it isn't net0"]


@pytest.mark.parametrize(
    ("args", "remark"),
    [
        (["nvidia-ctk", "hook", "chmod", "--path", "/opt/x"], "nvidia-ctk chmod: not done: /opt/x"),
        (["nvidia-ctk", "hook", "create-symlinks", "--link", "a:/b"], "create-symlinks: not TARGET::LINK: a:/b"),
        (["nvidia-ctk", "hook", "create-symlinks", "--link", "a::b"], "create-symlinks: not TARGET::LINK: a::b"),
        (["nvidia-ctk", "hook", "create-symlinks", "--csv-filename", "f"], "--csv-filename is not known, not done"),
        (["nvidia-ctk", "hook", "enable-cuda-frobs"], "nvidia-ctk enable-cuda-frobs: not known, not run"),
        (["nvidia-ctk", "hook", "frobnicate"], "nvidia-ctk frobnicate: not known, not run"),
        ([], "createContainer hook /usr/bin/nvidia-ctk: not known, not run"),
    ],
)  # fmt: skip
def test_hooks_that_are_not_run_are_said(place: Path, args: list[str], remark: str) -> None:
    hook = {"hookName": "createContainer", "path": "/usr/bin/nvidia-ctk", "args": args}
    said = remarks(place, hooks=[hook])
    assert len(said) == 1
    assert said[0].startswith("containerEdits.hooks[0]: createContainer hook /usr/bin/nvidia-ctk")
    assert said[0].endswith(remark)


def test_a_program_that_is_not_known(place: Path) -> None:
    hook = {"hookName": "poststop", "path": "/opt/bin/reset", "args": ["reset", "update-ldcache"]}
    assert remarks(place, hooks=[hook]) == [
        "containerEdits.hooks[0]: poststop hook /opt/bin/reset reset: not known, not run"
    ]


def test_a_mount_that_is_no_bind_is_an_error(place: Path) -> None:
    with pytest.raises(ChError, match=r"containerEdits\.mounts\[0\]: only binds can be made, not the type tmpfs: /b"):
        remarks(place, mounts=[{"hostPath": "/a", "containerPath": "/b", "type": "tmpfs"}])
    assert remarks(place, mounts=[{"hostPath": "/a", "containerPath": "/b", "type": "x", "options": ["rbind"]}]) == []


@pytest.mark.parametrize("text", ["v.com/c", "a/b", "v_1-x.com/c", "v/c=0", "v/c=a.b:c-d_e", "v/c.d=all"])
def test_names(text: str) -> None:
    kind, name = cdinames.split(text)
    assert text == kind + (f"={name}" if name else "")


@pytest.mark.parametrize(
    "text",
    ["", "v", "v/", "/c", "1v/c", "v/1c", "v/c=", "v/c=-a", "v/c=a/b", "v/c/d", "v/c.", "v com/c", "v/é", "v/c=é"],
)
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}$"):
        cdinames.split(text)


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
