# SPDX-License-Identifier: Apache-2.0
"""What `slurm-ch doctor` says of pulling."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from slurm_ch.doctor import images
from slurm_ch.doctor.findings import WARNING, Finding
from slurm_ch.slurm.plugstack import Entry


def look(user: str, *arguments: str) -> list[Finding]:
    return list(images.check(Entry("here", "required", "/x", list(arguments)), pwd.getpwnam(user)))


def warnings(found: list[Finding]) -> str:
    return "\n".join(one.text for one in found if one.grade == WARNING)


def test_what_is_there(user: str) -> None:
    found = look(user)
    texts = [one.text for one in found]
    assert warnings(found) == ""
    assert "skopeo is installed" in texts and any("packs them" in text for text in texts)
    assert any("can be a cache, on " in text for text in texts)


def test_what_is_missing(user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_PATH", "/nonexistent")
    said = warnings(look(user))
    assert "skopeo is not installed" in said and "no tar2sqfs, no mksquashfs" in said
    assert "skopeo" not in warnings(look(user, "pull=no"))


def test_caches(user: str, world_tmp: Path) -> None:
    assert f"{user} can't make a cache there" in warnings(look(user, "cache=/root/%u"))
    shared = world_tmp / "shared"
    shared.mkdir(mode=0o1777)
    shared.chmod(0o1777)
    assert "which no other node sees" in warnings(look(user, f"cache={shared}/%u"))


def test_the_sites_own(user: str, world_tmp: Path) -> None:
    site = world_tmp / "site-images"
    assert f"images={site}: No such file or directory" in warnings(look(user, f"images={site}"))
    site.mkdir(mode=0o755)
    assert "images=" not in warnings(look(user, f"images={site}"))
    site.chmod(0o777)
    assert "others can write to it" in warnings(look(user, f"images={site}"))
