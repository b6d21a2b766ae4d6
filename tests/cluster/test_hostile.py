# SPDX-License-Identifier: Apache-2.0
"""Hostile users, and malformed values."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_ch.sandbox.cluster import Cluster

from .conftest import Run

Good = Callable[..., str]

FORGED = {
    "SLURM_CH_REQUEST": "image=/\nwrite=yes\n",
    "SLURM_CH_JOIN": "0 /bin/sh",
    "SLURM_CH_CWD": "/root",
    "SLURM_CH_COMMAND": "/bin/false",
    "SLURM_CH_MULTI_PROG": "1",
}


def exports(variables: dict[str, str]) -> str:
    return "".join(f"export {name}={shlex.quote(value)}; " for name, value in variables.items())


@pytest.mark.parametrize("export", ["", "--export=ALL", "--export=NONE"])
def test_our_own_variables_forged(good: Good, export: str) -> None:
    """They influence nothing: a step runs in the image that was requested, or on the host as requested."""
    assert good(f"{exports(FORGED)} srun -n2 {export} --ch-image=$IMG /bin/cat /marker") == "one\none\n"
    assert good(f"{exports(FORGED)} srun -n2 {export} /bin/echo host") == "host\nhost\n"


def test_a_forged_request_in_roots_environment_does_nothing(cluster: Cluster, image_sqfs: Path) -> None:
    forged = {**FORGED, "SLURM_CH_REQUEST": f"image={image_sqfs}\n"}
    env = {**cluster.environ("root"), **forged}
    done = cluster.run(["srun", "test", "-e", "/marker"], user="root", env=env, timeout=60)
    assert done.returncode == 1, done


@pytest.fixture
def trap(other_sqfs: Path) -> Iterator[str]:
    """Another user's image in /tmp, under a name that a user takes for their own."""
    handle, name = tempfile.mkstemp(prefix="slurm-ch-trap-", suffix=".sqfs", dir="/tmp")
    os.close(handle)
    place = Path(name)
    shutil.copy(other_sqfs, place)
    shutil.chown(place, "daemon")
    yield place.name
    place.unlink()


def test_a_lost_working_directory_is_not_everybodys(sh: Run, trap: str) -> None:
    """Slurm goes to /tmp where a node lacks the working directory: what others have there isn't meant."""
    for option in (
        f"--ch-image={trap}",
        f"--ch-image=$IMG --ch-set-env={trap}",
        f"--ch-image=$IMG --ch-bind={trap}:/mnt",
    ):
        done = sh(f"cd /usr; srun --chdir=/nonexistent {option} cat /marker")
        assert "two" not in done.stdout, done
        assert done.returncode == 31, done
        assert "belongs to uid 1" in done.stderr, done
    # Given as such, it is.
    assert sh(f"cd /usr; srun --ch-image=/tmp/{trap} cat /marker").stdout == "two\n"
    assert sh(f"cd /tmp; srun --ch-image={trap} cat /marker").stdout == "two\n"


@pytest.mark.parametrize(
    "value",
    ["a=b:c,d=", "%n%s%x$(id)`id`", "\x01\x1b[31m\x7f", "é\u202e", "x" * 100_000, "'\"\\ \t", "$", "\\,"],
    ids=lambda value: ascii(value[:8]),
)
def test_values_arrive_as_they_are(good: Good, value: str) -> None:
    line = 'srun -n2 --ch-image=$IMG --ch-env-no-expand --ch-set-env=W="$V" sh -c \'test "$V" = "$W" && printf %s "$W" | md5sum\''
    expected = subprocess.run(["md5sum"], input=value.encode(), check=True, capture_output=True).stdout.decode()
    assert good(exports({"V": value}) + line) == expected * 2


@pytest.mark.parametrize("command", ["srun", "sbatch -W -o /dev/null", "salloc -Q"])
@pytest.mark.parametrize("value", ["/no\x1b[2Jsuch", "/no\rsuch", "x" * 60_000])
def test_a_terminal_is_safe_from_names(sh: Run, command: str, value: str) -> None:
    done = sh(exports({"V": value}) + f'{command} --ch-image="$V" /bin/true')
    ours = [line for line in done.stderr.splitlines() if "slurm-ch" in line]
    assert all(line.isprintable() for line in ours), done.stderr


def test_a_hostile_working_directory(sh: Run, good: Good) -> None:
    line = "d=$(mktemp -d); cd $d; {}; srun --ch-image=$IMG --ch-verbose pwd; code=$?; cd /; chmod 700 $d; rm -rf $d; exit $code"
    assert good(line.format("mkfifo fifo")).startswith("/tmp/")
    done = sh(line.format("chmod 0 ."))
    assert done.returncode == 0 or done.stderr.count("\n") <= 3, done
    done = sh("d=$(mktemp -d); mkfifo $d/f; srun --ch-image=$IMG --ch-cd=$d/f pwd; code=$?; rm -r $d; exit $code")
    assert (done.returncode, "Not a directory" in done.stderr) == (31, True), done


def test_fifos_end_a_step_at_once(sh: Run) -> None:
    done = sh(
        "d=$(mktemp -d); mkfifo $d/f; for o in --ch-image=$d/f '--ch-image='$IMG' --ch-set-env='$d/f; do srun $o true; echo $?; done; rm -r $d"
    )
    assert done.stdout == "31\n31\n", done
