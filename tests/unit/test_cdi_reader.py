# SPDX-License-Identifier: Apache-2.0
"""CDI specs that are malformed, and what is in them that cannot be done; no container is made."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pytest_mock import MockerFixture

from slurm_ch.devices import names as cdinames
from slurm_ch.devices import reader
from slurm_ch.devices.records import Malformed
from slurm_ch.errors import ChError

from .test_cdi import find, place, spec

__all__ = ["place"]


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
