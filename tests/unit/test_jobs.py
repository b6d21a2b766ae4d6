# SPDX-License-Identifier: Apache-2.0
"""Running jobs: what Slurm's commands and pyslurm say, and how people name them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_mock import MockerFixture

from slurm_ch.errors import ChError, UsageError
from slurm_ch.slurm import commands as controller
from slurm_ch.slurm import records


def set_to(number: int | None) -> dict[str, Any]:
    return {"set": number is not None, "infinite": False, "number": number or 0}


def job_json(
    new: bool, id: int, array: int = 0, task: int | None = None, het: int = 0, offset: int | None = None, **more: Any
) -> dict[str, Any]:
    """A job as 22.05 writes it, or as 23.11 and later do."""
    wrap = set_to if new else lambda number: number
    state = more.pop("state", "RUNNING")
    return {
        "job_id": id, "array_job_id": wrap(array), "array_task_id": wrap(task), "het_job_id": wrap(het),
        "het_job_offset": wrap(offset), "job_state": [state] if new else state, "nodes": "n1", "node_count": wrap(1),
        "user_name": "ada", **more,
    }  # fmt: skip


JOB_TEXT = """\
4|4|N/A|N/A|ada|n[1-2]|2|RUNNING|
5|1_3|N/A|N/A|ada|n1|1|RUNNING|
2|2+0|2|0|bob|n1|1|RUNNING|
3|2+1|2|1|bob|n2|1|RUNNING|
9|9|N/A|N/A|bob||1|PENDING|
"""
STEP_TEXT = """\
1_3.batch|batch|n1|1|0:03|
2+1.0|a|b|n2|1|1-00:00:02|
4.0|st|n[1-2]|3|1:00:02|
4.extern|extern|n[1-2]|2|INVALID|
"""


@pytest.mark.parametrize("new", [False, True])
def test_jobs_of_every_kind_from_json(new: bool) -> None:
    document = {
        "jobs": [
            job_json(new, 4),
            job_json(new, 5, array=1, task=0),
            job_json(new, 2, het=2, offset=0),
            job_json(new, 3, het=2, offset=1),
            job_json(new, 6, state="PENDING"),
        ]
    }
    found = records.jobs_from_json(document)
    assert {job.id: job.label for job in found.values()} == {4: "4", 5: "1_0", 2: "2+0", 3: "2+1"}
    assert (found[4].user, found[4].nodes, found[4].node_count) == ("ada", "n1", 1)


def test_steps_from_json() -> None:
    step = {"id": "5.batch", "name": "b", "nodes": "n1", "number_tasks": 1, "time": {"running": set_to(61)}}
    assert records.steps_from_json({"steps": [step]}) == [("5", records.Step("batch", "b", "n1", 1, 61))]
    # 22.05 answers with the jobs.
    assert records.steps_from_json({"jobs": []}) is None
    assert records.steps_from_json(None) is None


def test_from_text() -> None:
    found = records.jobs_from_text(JOB_TEXT)
    assert [(job.id, job.label, job.user, job.node_count) for job in found.values()] == [
        (4, "4", "ada", 2), (5, "1_3", "ada", 1), (2, "2+0", "bob", 1), (3, "2+1", "bob", 1),
    ]  # fmt: skip
    assert records.steps_from_text(STEP_TEXT) == [
        ("1_3", records.Step("batch", "batch", "n1", 1, 3)),
        ("2+1", records.Step("0", "a|b", "n2", 1, 86402)),
        ("4", records.Step("0", "st", "n[1-2]", 3, 3602)),
        ("4", records.Step("extern", "extern", "n[1-2]", 2, 0)),
    ]


@pytest.fixture
def running() -> list[records.Job]:
    return records.attach_steps(records.jobs_from_text(JOB_TEXT), records.steps_from_text(STEP_TEXT))


def test_steps_find_their_job_by_number_or_label(running: list[records.Job]) -> None:
    assert {job.label: [step.id for step in job.steps] for job in running} == {
        "4": ["0"], "1_3": ["batch"], "2+0": [], "2+1": ["0"],
    }  # fmt: skip
    again = records.attach_steps(records.jobs_from_text(JOB_TEXT), [("5", records.Step("0", "", "n1", 1, 0))])
    assert [step.id for step in again[1].steps] == ["0"]


@pytest.mark.parametrize(
    ("name", "user", "label"), [("4", "ada", "4"), ("1_3", "ada", "1_3"), ("1", "ada", "1_3"), ("5", "ada", "1_3"), ("2+1", "bob", "2+1")]
)  # fmt: skip
def test_find_job(running: list[records.Job], name: str, user: str, label: str) -> None:
    assert records.find_job(running, name, user).label == label


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("7", "job 7: not running"),
        ("9", "job 9: not running"),
        ("2", r"job 2 has several running parts; choose one: 2\+0, 2\+1"),
        ("4", "job 4: belongs to ada, not to you"),
    ],
)
def test_no_such_job(running: list[records.Job], name: str, message: str) -> None:
    with pytest.raises(ChError, match=f"^{message}$"):
        records.find_job(running, name, "bob")


def test_no_such_step(running: list[records.Job]) -> None:
    assert records.find_step(running[0], "0").name == "st"
    with pytest.raises(ChError, match=r"^step 4.1: not running; running: 4.0 \(st\) on n\[1-2\]$"):
        records.find_step(running[0], "1")


@pytest.mark.parametrize(
    ("text", "parts"),
    [("12", ("12", None)), ("12.0", ("12", "0")), ("12_3.batch", ("12_3", "batch")), ("12+1.4", ("12+1", "4"))],
)
def test_reference(text: str, parts: tuple[str, str | None]) -> None:
    assert records.parse_reference(text) == parts


@given(st.one_of(st.text(max_size=12), st.from_regex(r"[0-9_+.]{0,9}(batch|extern|)")))
def test_a_reference_is_one_or_a_usage_error(text: str) -> None:
    try:
        name, step = records.parse_reference(text)
    except UsageError:
        return
    assert text == (f"{name}.{step}" if step else name)


@given(st.integers(0, 10**7))
def test_clock_and_back(seconds: int) -> None:
    assert records.seconds_of(records.clock(seconds)) == seconds


@given(st.text(max_size=20))
def test_nothing_of_slurms_makes_another_error(text: str) -> None:
    records.seconds_of(text)
    for parse in (records.jobs_from_text, records.steps_from_text):
        try:
            parse(text)
        except ValueError:
            pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["jobs", "steps", "id", "job_id", "job_state", "nodes", "set", "number"]), inner, max_size=4),
)  # fmt: skip


@given(JSON)
def test_other_json_is_a_value_error(document: Any) -> None:
    for parse in (records.jobs_from_json, records.steps_from_json):
        try:
            parse(document)
        except ValueError:
            pass


# --- where the facts come from ------------------------------------------------


def commands(mocker: MockerFixture, **answers: str) -> Any:
    """Stand in for Slurm's commands: `json`, `steps_json`, `text`, `steps_text`, `version`."""

    def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
        kind = ("steps_" if "--steps" in argv else "") + ("json" if "--json" in argv else "text")
        kind = "version" if "--version" in argv else kind
        out = answers.get(kind)
        return subprocess.CompletedProcess(
            argv, out is None, out or "", "" if out else "squeue: error: no such plugin\n"
        )

    return mocker.patch.object(controller, "run", side_effect=run)


def no_pyslurm(mocker: MockerFixture) -> None:
    mocker.patch.object(controller.importlib.util, "find_spec", return_value=None)


def test_json_where_there_is_any(mocker: MockerFixture) -> None:
    no_pyslurm(mocker)
    step = {"id": "4.0", "name": "x", "nodes": "n1", "number_tasks": 1, "time": {"running": set_to(1)}}
    commands(mocker, json=json.dumps({"jobs": [job_json(True, 4)]}), steps_json=json.dumps({"steps": [step]}))
    (job,) = controller.running_jobs("ada")
    assert (job.label, [one.id for one in job.steps]) == ("4", ["0"])


def test_slurm_22_05_has_no_json_for_steps(mocker: MockerFixture) -> None:
    no_pyslurm(mocker)
    document = json.dumps({"jobs": [job_json(False, 5, array=1, task=3)]})
    commands(mocker, json=document, steps_json=document, steps_text=STEP_TEXT)
    (job,) = controller.running_jobs("ada")
    assert (job.label, [one.id for one in job.steps]) == ("1_3", ["batch"])


def test_no_json_at_all(mocker: MockerFixture) -> None:
    no_pyslurm(mocker)
    commands(mocker, text=JOB_TEXT, steps_text=STEP_TEXT)
    assert [job.label for job in controller.running_jobs("ada")] == ["4", "1_3"]


def test_json_that_is_not_known(mocker: MockerFixture) -> None:
    no_pyslurm(mocker)
    commands(mocker, json='{"jobs": [{}]}', steps_json='{"steps": [{}]}', text=JOB_TEXT, steps_text=STEP_TEXT)
    assert [job.label for job in controller.running_jobs("ada")] == ["4", "1_3"]


def test_text_that_is_not_known(mocker: MockerFixture) -> None:
    no_pyslurm(mocker)
    commands(mocker, text="what?\n")
    with pytest.raises(ChError, match=r"^can't read squeue's output: not squeue's --Format: what\?$"):
        controller.running_jobs("ada")


def test_slurm_does_not_answer(mocker: MockerFixture) -> None:
    no_pyslurm(mocker)
    commands(mocker)
    with pytest.raises(ChError, match=r"^squeue failed: squeue: error: no such plugin$"):
        controller.running_jobs("ada")


def fake_pyslurm(mocker: MockerFixture, version: str) -> ModuleType:
    """Stand in for pyslurm, with the names and types that its 25.11.2 has: None for every number that is 0."""
    module: Any = ModuleType("pyslurm")
    job = SimpleNamespace(
        id=5, array_id=1, array_task_id=3, heterogeneous_id=None, heterogeneous_offset=None, user_name="ada",
        state="RUNNING", allocated_nodes="n[1,3]", num_nodes=2,
    )  # fmt: skip
    first = SimpleNamespace(**{**vars(job), "id": 1, "array_task_id": None})
    plain = SimpleNamespace(**{**vars(first), "id": 7, "array_id": None})
    het = SimpleNamespace(**{**vars(plain), "id": 8, "heterogeneous_id": 8})
    ended = SimpleNamespace(**{**vars(job), "id": 6, "state": "COMPLETED"})
    steps = {
        0: SimpleNamespace(id=0, name="app", allocated_nodes=["n[1", "3]"], ntasks=4, run_time=7),
        "extern": SimpleNamespace(id="extern", name="extern", allocated_nodes=["n1"], ntasks=1, run_time=7),
    }
    module.__version__ = version
    module.Jobs = SimpleNamespace(load=lambda: {5: job, 6: ended, 1: first, 7: plain, 8: het})
    module.JobSteps = SimpleNamespace(load_all=lambda: {5: steps})
    mocker.patch.dict(sys.modules, {"pyslurm": module})
    mocker.patch.object(controller.importlib.util, "find_spec")
    mocker.patch("importlib.metadata.version", side_effect={"pyslurm": version}.__getitem__)
    return module


@pytest.fixture
def said(mocker: MockerFixture) -> Any:
    """Return what -v would say."""
    return mocker.patch.object(controller.log, "info")


def test_pyslurm_where_it_fits(mocker: MockerFixture, said: Any) -> None:
    fake_pyslurm(mocker, "25.11.2")
    run = commands(mocker, version="slurm 25.11.0")
    job, *others = controller.running_jobs("ada")
    assert (job.id, job.label, job.nodes, job.node_count) == (5, "1_3", "n[1,3]", 2)
    assert job.steps == [records.Step("0", "app", "n[1,3]", 4, 7)]
    assert [other.label for other in others] == ["1_0", "7", "8+0"]
    assert run.call_count == 1  # for the version
    said.assert_called_once_with("asked pyslurm 25.11.2 for the running jobs")


def test_pyslurm_of_another_release_is_not_even_loaded(mocker: MockerFixture, said: Any) -> None:
    fake_pyslurm(mocker, "25.11.2")
    mocker.patch.dict(sys.modules, {"pyslurm": None})  # an import would fail, and say so
    commands(mocker, version="slurm 26.05.1", text=JOB_TEXT, steps_text=STEP_TEXT)
    assert [job.label for job in controller.running_jobs("ada")] == ["4", "1_3"]
    assert [call.args[0] for call in said.call_args_list] == [
        "pyslurm can't be used: it is for Slurm 25.11.2",
        "asking Slurm's commands for the running jobs",
    ]


def test_pyslurm_that_is_no_package(mocker: MockerFixture, said: Any) -> None:
    mocker.patch.object(controller.importlib.util, "find_spec")
    mocker.patch("importlib.metadata.version", side_effect=importlib.metadata.PackageNotFoundError)
    commands(mocker, version="slurm 25.11.0", text=JOB_TEXT, steps_text=STEP_TEXT)
    assert [job.label for job in controller.running_jobs("ada")] == ["4", "1_3"]
    assert "its release is unknown" in said.call_args_list[0].args[0]


@pytest.mark.parametrize("fault", ["exit", "exception", "noise", "hangs"])
def test_pyslurm_that_fails_costs_only_the_commands(
    mocker: MockerFixture, capfd: pytest.CaptureFixture[str], fault: str
) -> None:
    module: Any = fake_pyslurm(mocker, "25.11.2")

    def load() -> None:
        os.write(2, b"fatal: Could not establish a configuration source\n")
        if fault == "exit":
            os._exit(1)  # as Slurm's library does without a slurm.conf
        if fault == "exception":
            raise RuntimeError("no controller")
        if fault == "hangs":
            signal.pause()

    module.Jobs.load = load
    mocker.patch.object(controller, "PYSLURM_SECONDS", 0.1 if fault == "hangs" else 30)
    commands(mocker, version="slurm 25.11.0", text=JOB_TEXT, steps_text=STEP_TEXT)
    assert [job.label for job in controller.running_jobs("ada")] == ["4", "1_3"]
    assert capfd.readouterr() == ("", "")


def test_pyslurm_is_loaded_in_one_place_and_late() -> None:
    package = Path(controller.__file__).parents[1]
    found = [
        (path.name, line)
        for path in package.rglob("*.py")
        for line in path.read_text().splitlines()
        if line.split()[:2] in (["import", "pyslurm"], ["from", "pyslurm"])
    ]
    # Indented: in the function that only the child calls.
    assert found == [("commands.py", "        import pyslurm")]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("bob RUNNING\n", "job 7: belongs to bob, not to you"),
        ("ada PENDING\nada PENDING\n", "job 7: pending, not running"),
        (None, "job 7: no such job"),
    ],
)
def test_why_not(mocker: MockerFixture, said: str | None, expected: str) -> None:
    commands(mocker, **({"text": said} if said else {}))
    assert controller.why_not_running("7", "ada") == expected


def test_a_command_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ChError, match="can't run squeue"):
        controller.run(["squeue"])
