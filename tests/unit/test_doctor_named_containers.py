# SPDX-License-Identifier: Apache-2.0
"""What `slurm-ch doctor` says of containers with a name."""

from __future__ import annotations

import pwd
from pathlib import Path

from slurm_ch.doctor import named_containers
from slurm_ch.doctor.findings import OK, WARNING, Finding
from slurm_ch.slurm.plugstack import Entry


def look(user: str, *arguments: str) -> list[Finding]:
    return list(named_containers.check(Entry("here", "required", "/x", list(arguments)), pwd.getpwnam(user)))


def test_where_they_can_be(user: str, world_tmp: Path) -> None:
    assert look(user) == look(user, "pyxis=no") == []
    place = world_tmp / "doctors"
    place.mkdir()
    place.chmod(0o1777)
    for arguments in ((), (f"containers={place}",)):
        (found,) = look(user, "pyxis=yes", *arguments)
        assert (found.grade, found.text) == (OK, f"can be kept in {place if arguments else '/var/tmp'}")
    assert [list(path.iterdir()) for path in place.iterdir()] == [[]]


def test_where_they_can_not(user: str, world_tmp: Path) -> None:
    for place, why in (
        ("/nonexistent", "No such file or directory"),
        ("/proc", "No such file or directory"),
        (str(world_tmp), "Permission denied"),
        ("/dev/shm/open", "anybody may replace what is in it"),
    ):
        if place.endswith("open"):
            Path(place).mkdir()
            Path(place).chmod(0o777)
        (found,) = look(user, "pyxis=yes", f"containers={place}")
        assert found.grade == WARNING
        assert found.text.startswith(f"can't be kept in {place}: ")
        assert why in found.text
