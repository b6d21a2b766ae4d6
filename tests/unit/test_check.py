# SPDX-License-Identifier: Apache-2.0
"""The checker: when a relative image is of no use, and whatever a user writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_ch.errors import ChError
from slurm_ch.plugin import submit_check
from slurm_ch.plugin.facts import Facts


@pytest.mark.parametrize(
    ("command", "env", "elsewhere"),
    [
        ("srun app", {}, False),
        ("srun -n2 --chdir=/x app", {}, True),
        ("srun --chd /x app", {}, True),
        ("srun -D /x app", {}, True),
        ("srun -lD/x app", {}, True),
        ("srun --ch-image=D app", {}, False),
        ("srun --Dashes app", {}, False),
        ("srun app", {"SLURM_WORKING_DIR": "/x"}, True),
        ("salloc app", {}, False),
        ("/usr/bin/sbatch --wrap=app", {}, False),
        ("/usr/bin/sbatch -D/x --wrap=app", {}, True),
        ("sbatch", {}, True),  # the script comes from standard input
        ("sbatch nothing.here", {}, True),
        ("sbatch plain.sh word", {}, False),
        ("sbatch moving.sh word", {}, True),
        ("sbatch short.sh", {}, True),
        ("sbatch late.sh", {}, False),
    ],
)
def test_where_a_step_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, env: dict[str, str], elsewhere: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "plain.sh": "#!/bin/sh\n#SBATCH -n2 --ch-image=foo\necho -D\n",
        "moving.sh": "#!/bin/sh\n#SBATCH -n2\n#SBATCH --chdir=/x\n",
        "short.sh": "#!/bin/sh\n#SBATCH -D /x\n",
        "late.sh": "#!/bin/sh\necho '\n #SBATCH -D /x'\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert submit_check._starts_elsewhere(command.split(), env) is elsewhere


WORDS = st.text(st.sampled_from("=,:/%-+\\ \n\x7f\udc80ax0$*"), max_size=12)
NAMES = st.sampled_from(
    ["image", "bind", "cd", "set-env", "unset-env", "write", "write-fake", "uid", "home", "nonsense"]
)


@given(
    st.lists(st.tuples(NAMES, WORDS), max_size=6),
    st.lists(WORDS, min_size=1, max_size=4),
    st.lists(WORDS, max_size=3),
    st.dictionaries(st.sampled_from(["USER", "CH_IMAGE_STORAGE", "SLURM_WORKING_DIR", "HOME"]), WORDS),
)
def test_whatever_is_asked_for_there_is_one_line(
    request_: list[tuple[str, str]], command: list[str], site: list[str], env: dict[str, str]
) -> None:
    facts = Facts()
    facts.request = "".join(f"{name}={value}\n" for name, value in request_)
    facts.site = site
    facts.environment = env
    try:
        submit_check.check(facts, command)
    except ChError as error:
        assert os.fsencode(str(error))


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("docker://here.sqsh", True),
        ("docker://there.sqsh", False),
        ("docker://here.sqsh:1", False),
        ("docker://r/here.sqsh", False),
        ("docker://here", False),
    ],
)
def test_a_file_without_a_slash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], reference: str, told: bool
) -> None:
    """It is a name in a registry, as with pyxis; if there is such a file, a message mentions it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.sqsh").touch()
    (tmp_path / "here").touch()
    submit_check._warn_of_file("--container-image", reference)
    words = "--container-image=here.sqsh: looked for in a registry; for the file of that name here, say --container-image=./here.sqsh"
    assert (words in capfd.readouterr().err) == told
