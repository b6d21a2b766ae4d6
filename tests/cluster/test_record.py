# SPDX-License-Identifier: Apache-2.0
"""Which image has run can be found afterwards: with -v and, if the site enables it, in Slurm's record of the job."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from slurm_ch import paths
from slurm_ch.plugin import record
from slurm_ch.sandbox.cluster import Cluster

from .conftest import Run

WRITTEN = re.compile(r"ch-image=\S+ \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \d+")


def test_what_tells_one_image_from_another(image_sqfs: Path, image_dir: Path) -> None:
    status = image_sqfs.stat()
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(status.st_mtime))
    assert record.description(str(image_sqfs)) == f"ch-image={image_sqfs} {when} {status.st_size}"
    assert re.fullmatch(rf"ch-image={image_dir} \S+Z", record.description(str(image_dir)))
    assert record.description("/nonexistent") == "ch-image=/nonexistent"
    assert record.description("/c/x.sqfs", "docker://h/n@sha256:1") == "ch-image=docker://h/n@sha256:1 /c/x.sqfs"
    assert record.description("/c/x.sqfs", "./x.sqfs") == "ch-image=/c/x.sqfs"


def until(read: Callable[[], str], wanted: str) -> str:
    """Return what `read` returns once `wanted` is in it: Slurm is asked beside the step."""
    deadline = time.monotonic() + 30
    while wanted not in (found := read()):
        assert time.monotonic() < deadline, found
    return found


def test_the_job_s_comment(user: str, image_sqfs: Path) -> None:
    with Cluster(nodes=2, plugstack_lines=[f"required {paths.PLUGIN} record=comment"]) as own:

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            return own.run(list(words), user=user, timeout=60, env={**own.environ(user), "IMG": str(image_sqfs)})

        line = "srun -N2 --ch-image=$IMG true; srun --ch-image=$IMG true; srun --ch-image=/ true; read x < fifo"
        fifo = Path(own.directory) / "fifo"
        os.mkfifo(fifo)
        fifo.chmod(0o666)
        script = line.replace("< fifo", f"< {fifo}")
        done = run("sbatch", "--parsable", "-N2", "-o", "/dev/null", "--comment=mine", f"--wrap={script}")
        assert done.returncode == 0, done.stderr
        job = done.stdout.strip()
        found = until(lambda: run("squeue", "-h", "-j", job, "-o", "%k").stdout, "ch-image=/ ")
        fifo.write_text("on\n")
        assert found.startswith("mine; ch-image=")
        assert found.count(str(image_sqfs)) == 1  # once, however many steps and nodes
        assert WRITTEN.search(found)


def test_verbose_steps_say_what_ran(sh: Run, image_sqfs: Path) -> None:
    done = sh("srun --ch-verbose --ch-image=$IMG true")
    assert [line for line in done.stderr.splitlines() if record.description(str(image_sqfs)) in line], done.stderr


def test_an_unknown_place_is_refused(user: str, image_sqfs: Path) -> None:
    with Cluster(nodes=1, plugstack_lines=[f"required {paths.PLUGIN} record=sacct"]) as own:
        done = own.run(["srun", f"--ch-image={image_sqfs}", "true"], user=user, timeout=60)
        assert done.returncode == 64
        assert "plugstack.conf: record=sacct: neither comment nor extra" in done.stderr
