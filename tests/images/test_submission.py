# SPDX-License-Identifier: Apache-2.0
"""The checker's work at submission if there is nothing to pull: as little as possible."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from slurm_ch import agreement
from slurm_ch.images import children

from .craft import Layout
from .pulled import Make, fake_packer, parse
from .registry import Registry

LAUNCHER = Path(children.__file__).parents[1] / "plugin/launch.py"

# What takes milliseconds, and is needed only to ask somebody or to pull.
SLOW = {"typing", "subprocess", "shutil", "hashlib", "threading", "tarfile", "slurm_ch.images.fetch", "slurm_ch.images.assemble"}  # fmt: skip


def loaded(request: str, env: dict[str, str]) -> set[str]:
    """Have the checker look at a request of srun's, which has to be answered; return the modules that it loads."""
    records = [agreement.FACTS_MAGIC, agreement.FACT_REQUEST + request, agreement.FACT_COMMAND + "srun"]
    records += [f"{agreement.FACT_VARIABLE}{name}={value}" for name, value in env.items()]
    facts = os.memfd_create("facts")
    os.write(facts, ("\0".join(records) + "\0").encode())
    command = ["/usr/bin/python3", "-I", "-S", "-X", "importtime", LAUNCHER, agreement.CHECK_OPTION, str(facts)]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, pass_fds=[facts], env={}, timeout=60)
    finally:
        os.close(facts)
    assert done.stdout.startswith(agreement.PIN_WORD), (done.stdout, done.stderr)
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_what_is_cached_needs_no_more_than_a_look(
    plain: Registry, layout: Layout, puller: Make, env: dict[str, str]
) -> None:
    ref = plain.push(layout, "submission/cached:1")
    resolved, _ = puller().get(parse(ref))
    asked = len(plain.requests())
    for request in (f"image={ref}\npull=cached\n", f"image={ref}@{resolved.digest}\n"):
        found = loaded(request, env)
        assert "slurm_ch.images.store" in found  # or nothing is looked at
        assert found & SLOW == set()
    assert plain.requests()[asked:] == []
    assert {"subprocess", "slurm_ch.images.fetch"} <= loaded(f"image={ref}\n", env)
    assert len(plain.requests()) > asked


def test_only_what_takes_long_gives_way_to_others(
    plain: Registry, layout: Layout, puller: Make, env: dict[str, str], tmp_path: Path
) -> None:
    """Somebody waits for a look-up; on a busy login node it is to take no longer than it has to."""
    ref, log = plain.push(layout, "submission/nice:1"), tmp_path / "nice"
    script = f'for word; do case $word in inspect|copy) echo "$word $(nice)" >> {log};; esac; done; exec /usr/bin/skopeo "$@"'
    fake_packer(tmp_path / "bin", "skopeo", script)
    env["PATH"] = f"{tmp_path}/bin:{env['PATH']}"
    puller().get(parse(ref))
    assert log.read_text().splitlines() == [f"inspect {os.nice(0)}", f"copy {os.nice(0) + 10}"]


@pytest.mark.parametrize("new", [True, False])
def test_a_child_that_ends_is_noticed(monkeypatch: pytest.MonkeyPatch, new: bool) -> None:
    """Also with a kernel that can't watch a process."""
    if not new:
        monkeypatch.setattr(children.os, "pidfd_open", missing)
    child = children.start(["/bin/sh", "-c", "read x; exit 3"], {}, stdin=subprocess.PIPE)
    assert child.stdin is not None
    assert children.ended(child, 0.01) is None
    child.stdin.close()
    assert children.wait(child, lambda: None) == 3
    assert children.ended(child, 0.01) == 3


def missing(pid: int) -> int:
    raise OSError(38, "Function not implemented")
