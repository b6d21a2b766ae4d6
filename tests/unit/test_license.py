# SPDX-License-Identifier: Apache-2.0
"""Each file of ours names its license, and each C file then says what it is."""

from __future__ import annotations

from tests import checkout
from tests.checkout import ROOT

TAG = "SPDX-License-Identifier: Apache-2.0"
# Data, and the license itself.
WITHOUT = (".json", ".png", ".md", ".sif")
APART = {"LICENSE", "NOTICE", "py.typed"}


def test_each_file_names_its_license() -> None:
    files = [
        path for path in map(ROOT.joinpath, checkout.files())
        if path.is_file() and "corpus" not in path.parts and path.parent != ROOT / "slurm_ch/native"
        and path.suffix not in WITHOUT and path.name not in APART
            and "debian" not in path.parts  # fixed formats; copyright has it
    ]  # fmt: skip
    assert len(files) > 150
    assert [str(path) for path in files if TAG not in path.read_text()[:300]] == []


def test_each_c_file_says_what_it_is() -> None:
    files = [path for path in (ROOT / "spank").glob("*/*.[ch]") if "Generated" not in path.read_text()[:100]]
    assert len(files) > 80
    assert [str(path) for path in files if not path.read_text().split("\n")[1].startswith("/* ")] == []


def test_the_license_and_the_notice() -> None:
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
    notice = (ROOT / "NOTICE").read_text()
    assert "Charliecloud" in notice and "Triad National Security, LLC" in notice
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text()
