# SPDX-License-Identifier: Apache-2.0
"""`import slurm_ch` as who checks types sees it, strictly, from another project."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is not installed: `make lint` needs it as well")

ROOT = Path(__file__).parents[2]
USE = """
import slurm_ch

def log(container: slurm_ch.Container, data: object) -> None:
    print(container.image.kind, data)

def right() -> None:
    hooks = slurm_ch.Hooks("all")
    hooks.add("log", log, "x")
    bind = slurm_ch.Bind("/a", "/b", "ro")
    status: int = slurm_ch.run("i", ["true"], binds=["a:/b", bind], env={"A": "b", "C": None}, hooks=[hooks], uid=0)
    lines: list[str] = slurm_ch.explain("i", private_tmp=True)
    spec = slurm_ch.Spec("i")
    spec.home = True
    container: slurm_ch.Container = slurm_ch.containerize(spec)
    variables: dict[str, str] = slurm_ch.job_environment(image="i", bind=["/a:/b"])
    with slurm_ch.Cluster(nodes=2) as cluster:
        text: str = cluster.run(["srun", "hostname"], user="root").stdout
    try:
        print(status, lines, container, variables, text, slurm_ch.__version__)
    except (slurm_ch.JoinError, slurm_ch.UsageError, slurm_ch.ChError) as error:
        print(error.code + 1)

"""
WRONG = (
    ("slurm_ch.nonsense", "attr-defined"), ("slurm_ch.run('i', 5)", "arg-type"), ("slurm_ch.job_environment()", "call-arg"),
    ("slurm_ch.Spec()", "call-arg"), ("slurm_ch.explain('i') + 1", "operator"), ("slurm_ch.Spec('i').home = 'no'", "assignment"),
)  # fmt: skip


def test_what_a_checker_of_types_says(tmp_path: Path) -> None:
    # As pip leaves a package: what is wrong in it is none of a user's business.
    shutil.copytree(
        ROOT / "slurm_ch", tmp_path / "site/slurm_ch", ignore=shutil.ignore_patterns("native", "__pycache__")
    )
    lines = [*USE.splitlines(), *(code for code, _ in WRONG)]
    (tmp_path / "use.py").write_text("\n".join(lines) + "\n")
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = true\n[mypy-slurm_ch.*]\nfollow_imports = silent\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--no-color-output", "use.py"],
        check=False, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "MYPYPATH": "site"},
    )  # fmt: skip
    errors = [line for line in done.stdout.splitlines() if line.startswith("use.py:")]
    first = len(lines) - len(WRONG)
    found = [(int(line.split(":")[1]), line.rpartition("[")[2][:-1]) for line in errors if ": error: " in line]
    assert found == [(first + number, kind) for number, (_, kind) in enumerate(WRONG, 1)], done.stdout
