# SPDX-License-Identifier: Apache-2.0
"""CDI specs of any shape: the only errors are ours, of one line that names the file."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_ch.devices import reader
from slurm_ch.devices.edits import Injection, apply
from slurm_ch.engine import device_edits
from slurm_ch.errors import ChError

from .test_parsers import FULL, one_line

CASES = settings(max_examples=15000 if FULL else 100, deadline=None)

KEYS = (
    *reader._SPEC_FIELDS,
    *reader._DEVICE_FIELDS,
    *reader._EDIT_FIELDS,
    *reader._NODE_FIELDS,
    *reader._MOUNT_FIELDS,
    *reader._HOOK_FIELDS,
)
WORDS = (
    "0.5.0", "1.1.0", "v.com/c", "0", "all", "A=1", "/dev/null", "/usr/bin/nvidia-ctk", "createContainer",
    "update-ldcache", "create-symlinks", "--link", "--folder", "a::/b", "hook", "ro", "c",
)  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.sampled_from(WORDS) | st.text(max_size=8)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


def survive(data: bytes, name: str) -> None:
    """Parse and apply; the only errors are ours, of one line."""
    try:
        document = reader.parse(data, name)
        injection = Injection()
        apply(injection, [(document, each) for each in document.devices], set())
        extra = device_edits.actions(injection, [])
        assert all(action.describe() for action in (*extra.before_binds, *extra.in_tree, *extra.inside))
    except ChError as error:
        one_line(error)
        assert name in str(error)


def device(edits: object) -> dict[str, object]:
    return {"cdiVersion": "1.1.0", "kind": "v.com/c", "devices": [{"name": "0", "containerEdits": edits}]}


# Mostly valid, so that many specs get past the parser.
PATHS = st.text(alphabet="ab/. \x1b:,é", max_size=8).map("/".__add__) | st.just("/usr/lib/x.so.1")
TEXTS = st.sampled_from(WORDS) | st.text(max_size=8)
MOUNT = st.fixed_dictionaries(
    {"hostPath": PATHS, "containerPath": PATHS},
    optional={"options": st.lists(TEXTS, max_size=2), "type": st.sampled_from(["bind", "none", "tmpfs", ""])},
)
HOOK = st.fixed_dictionaries(
    {"hookName": st.just("createContainer"), "path": st.sampled_from(["/bin/nvidia-ctk", "/x/y-cdi-hook", "/z"])},
    optional={"args": st.lists(TEXTS, max_size=6), "timeout": st.integers(-1, 9), "env": st.lists(TEXTS, max_size=1)},
)
NODE = st.fixed_dictionaries(
    {"path": PATHS},
    optional={"hostPath": PATHS, "major": st.integers(-1, 9), "minor": SCALARS, "type": st.sampled_from("bcupx")},
)
EDITED = st.fixed_dictionaries(
    {},
    optional={
        "env": st.lists(st.text(max_size=4).map("A=".__add__) | SCALARS, max_size=3),
        "additionalGids": st.lists(st.integers(-1, 2**32), max_size=2),
        "mounts": st.lists(MOUNT, max_size=2),
        "hooks": st.lists(HOOK, max_size=2),
        "deviceNodes": st.lists(NODE, max_size=2),
    },
)


@CASES
@given(TREES | EDITED.map(device))
def test_json_of_any_shape(tree: object) -> None:
    survive(json.dumps(tree).encode(), "s.json")
    # JSON is also YAML.
    survive(json.dumps(tree).encode(), "s.yaml")


@CASES
@given(st.binary(max_size=60), st.sampled_from(["s.json", "s.yaml"]))
def test_specs_of_any_bytes(data: bytes, name: str) -> None:
    survive(data, name)


@CASES
@given(st.text(alphabet="ab:-?&*!|>'\"{}[],#%@`~\n\t <=", max_size=40))
def test_yaml_of_any_text(text: str) -> None:
    survive(text.encode(), "s.yaml")
