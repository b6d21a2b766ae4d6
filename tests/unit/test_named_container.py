# SPDX-License-Identifier: Apache-2.0
"""Who joins a container, and the server of its image."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from slurm_ch.engine import standby_server
from slurm_ch.errors import ChError
from slurm_ch.plugin import named_container
from slurm_ch.request import site


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "image.sqsh"
    path.touch()
    return str(path)


def keep(
    monkeypatch: pytest.MonkeyPatch,
    image: str | None,
    start: object,
    maker: str = "3",
    whole: bool = True,
    words: str = "",
) -> None:
    def answer(_: int) -> object:
        if isinstance(start, Exception):
            raise start
        return start

    monkeypatch.setattr(standby_server, "start", answer)
    monkeypatch.setattr(standby_server, "is_needed", lambda: whole)
    process = SimpleNamespace(user_fd=-1)
    named_container._start_standby_server("c", process, maker, image, site.parse(words.split()))  # type: ignore[arg-type]


def test_another_server_is_started(
    monkeypatch: pytest.MonkeyPatch, image: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keep(monkeypatch, image, True)
    # A directory has none, and of a container without a name nobody knows.
    keep(monkeypatch, str(tmp_path), False)
    keep(monkeypatch, None, False)
    # Nobody ends the server before the container.
    keep(monkeypatch, image, RuntimeError("started"), maker="batch")
    keep(monkeypatch, image, RuntimeError("started"), whole=False)
    keep(monkeypatch, str(tmp_path), RuntimeError("started"), words="squashfuse=/opt/squashfuse_ll")
    assert capfd.readouterr().err == ""


def test_a_container_that_nobody_serves_any_more(monkeypatch: pytest.MonkeyPatch, image: str) -> None:
    with pytest.raises(ChError, match="c: step 3 has ended, and with it the server of the image"):
        keep(monkeypatch, image, False)


def test_where_there_can_t_be_another(
    monkeypatch: pytest.MonkeyPatch, image: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """An older kernel, or another server."""
    keep(monkeypatch, image, standby_server.CantStart("Function not implemented"))
    told = "c: step 3 serves its image, and tasks that have joined it can't go on without that step"
    assert f"{told} (Function not implemented)" in capfd.readouterr().err
    keep(monkeypatch, image, RuntimeError("started"), words="squashfuse=/opt/squashfuse_ll")
    assert f"{told} (squashfuse=/opt/squashfuse_ll)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("6:freezer:/slurm_n1/uid_1000/job_7/step_0\n2:cpuacct:/\n0::/\n", True),
        ("0::/system.slice/slurmstepd.scope/job_7/step_extern/user/task_0\n", True),
        ("6:freezer:/\n2:cpuacct:/\n0::/system.slice/slurmd.service\n", False),
    ],
)
def test_steps_that_end_as_a_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, whole: bool) -> None:
    """As cgroup/v1, cgroup/v2 and no such plugin of Slurm's have it."""
    (tmp_path / "cgroup").write_text(text)
    monkeypatch.setattr(standby_server, "_GROUPS", str(tmp_path / "cgroup"))
    assert standby_server.is_needed() == whole
