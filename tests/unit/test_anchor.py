# SPDX-License-Identifier: Apache-2.0
"""Relative paths that become defaults of steps."""

from __future__ import annotations

import pytest

from slurm_ch.request import anchor, parsers
from slurm_ch.request.options import BY_NAME, OPTIONS, Setting

# The option, what was given, and what it is for a step that starts elsewhere. tests/cluster/test_place.py
# has salloc and sbatch do the same.
VECTORS = [
    ("image", "foo.sqfs", "/d/./foo.sqfs"),
    ("image", "../foo.sqfs", "/d/./../foo.sqfs"),
    ("image", "/a/foo.sqfs", "/a/foo.sqfs"),
    ("image", "docker://foo", "docker://foo"),
    ("storage", "s", "/d/s"),
    ("overlay", "over", "/d/over"),
    ("save", "a,b.sqfs", "/d/a,b.sqfs"),
    ("storage", "~/s", "~/s"),
    ("cdi-dirs", "a:/b:./c", "/d/a:/b:/d/./c"),
    ("bind", "./x:/y,/z,w:/v", "/d/./x:/y,/z,/d/w:/v"),
    ("bind", "a\\,b:/y", "/d/a\\,b:/y"),
    ("bind", "x:/y\n/a\nz:/b", "/d/x:/y\n/a\n/d/z:/b"),
    ("set-env", "A=./x\nfile\n/f\nimage:/e\nhost:/f\nhost:./g", "A=./x\n/d/file\n/f\nimage:/e\nhost:/f\nhost:/d/./g"),
    ("set-env0", "file", "/d/file"),
    ("device", "v.com/c=1,./a.json,b.yaml,/c.json,all", "v.com/c=1,/d/./a.json,/d/b.yaml,/c.json,all"),
    ("cd", "run", "run"),
    ("unset-env", "A*", "A*"),
]


@pytest.mark.parametrize(("name", "value", "expected"), VECTORS)
def test_what_is_anchored(name: str, value: str, expected: str) -> None:
    assert anchor.anchored(BY_NAME[name], value, "/d") == expected
    # Once is enough: the steps of a step's steps are anchored already.
    assert anchor.anchored(BY_NAME[name], expected, "/elsewhere") == expected


def test_a_directory_with_commas_and_colons_in_its_name() -> None:
    assert anchor.anchored(BY_NAME["bind"], "x:/y", "/a,b:c") == "/a\\,b\\:c/x:/y"


def test_every_option_says_which_paths_are_in_it() -> None:
    assert {option.name for option in OPTIONS if option.paths != "none"} == {
        name for name, given, wanted in VECTORS if given != wanted
    }


def test_an_anchored_image_is_still_called_what_it_was() -> None:
    spec = parsers.make(None, [Setting("image", "/d/./a/./foo:1", "--ch-image")])
    assert (spec.image, spec.image_directory) == ("a/./foo:1", "/d")
    spec = parsers.make(None, [Setting("image", "./foo", "--ch-image")])
    assert (spec.image, spec.image_directory) == ("./foo", None)
