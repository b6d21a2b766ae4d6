# SPDX-License-Identifier: Apache-2.0
"""Batch scripts, job arrays, heterogeneous jobs, requeued jobs: which processes are in which container."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Run

Good = Callable[..., str]
Submit = Callable[..., dict[str, list[str]]]


@pytest.fixture
def submit(good: Good, world_tmp: Path) -> Submit:
    """Submit a script, wait for its end, and return what it wrote, by file."""

    def run(body: str, options: str = "", files: str = "job.txt", env: str = "") -> dict[str, list[str]]:
        script = world_tmp / "batch.sh"
        script.write_text(body)
        out = good(
            f"d=$(mktemp -d); cd $d; {env} sbatch-wait -o $d/{files} {options} {script} >&2; "
            'for f in *; do echo "== $f"; cat $f; done; cd /; rm -r $d'
        )
        found: dict[str, list[str]] = {}
        for line in out.splitlines():
            if line.startswith("== "):
                found[line[3:]] = []
            else:
                found[list(found)[-1]].append(line)
        return found

    return run


def tags(lines: list[str]) -> list[str]:
    """Return the names of the containers that --ch-verbose tells."""
    return [found[1] for line in lines if (found := re.search(r"info: container (\S+) for", line))]


def plain(lines: list[str]) -> list[str]:
    return [line for line in lines if "slurm-ch: " not in line]


def test_steps_of_a_script_that_keeps_its_changes(submit: Submit, image_sqfs: Path, world_tmp: Path, user: str) -> None:
    """They can't write where it does; the line says what helps."""
    place = world_tmp / "batch-kept"
    place.mkdir()
    shutil.chown(place, user)
    body = "#!/bin/sh\ntouch /new && echo written\nsrun true 2>&1 | grep slurm-ch\n"
    lines = submit(body, f"--ch-image={image_sqfs} --ch-overlay={place}/over")["job.txt"]
    assert lines[0] == "written"
    assert lines[1].endswith(
        "another container on this node is using it, perhaps this job's script: give the option to srun only"
    )


def test_directives_and_the_command_line(submit: Submit, image_sqfs: Path, other_sqfs: Path) -> None:
    body = f"""#!/bin/sh
#SBATCH --ch-image={other_sqfs}
#SBATCH --ch-set-env=A=1
#SBATCH --ch-set-env=B=$A:2 --ch-cd=/srv
#SBATCH --ch-bind=/usr:/mnt,/etc:/opt
cat /marker
echo $A $B $PWD
test -e /mnt/bin/srun && test -e /opt/hostname && echo bound
"""
    assert submit(body)["job.txt"] == ["two", "1 1:2 /srv", "bound"]
    # The command line's word counts.
    assert submit(body, f"--ch-image={image_sqfs} --ch-cd=/")["job.txt"] == ["one", "1 1:2 /", "bound"]


@pytest.mark.parametrize("export", ["NONE", "A,B"])
def test_no_export_loses_an_option(submit: Submit, image_sqfs: Path, export: str) -> None:
    body = f"""#!/bin/bash
#SBATCH --ch-image={image_sqfs} --ch-set-env=C=3 --ch-private-tmp
cat /marker
ls -A /tmp | grep -v slurm-ch- # the cluster's own
echo ${{A-unset}} ${{B-unset}} $C ${{D-unset}}
"""
    body = body.replace("/bin/bash", "/bin/sh")
    there = {"NONE": "unset unset 3 unset", "A,B": "1 2 3 unset"}[export]
    assert plain(submit(body, f"--export={export}", env="A=1 B=2 D=4")["job.txt"]) == ["one", there]


@pytest.mark.parametrize("export", ["NONE", "A,B"])
def test_no_export_loses_a_default_of_the_steps_inside(good: Good, other_sqfs: Path, export: str) -> None:
    inner = f"""
    srun --export={export} /bin/sh -c "cat /marker; echo \\$C"
    srun --export={export} --ch-image={other_sqfs} --ch-set-env=C=4 /bin/sh -c "cat /marker; echo \\$C"
    """
    out = good(f"A=1 B=2 salloc -Q --ch-image=$IMG --ch-set-env=C=3 bash -c '{inner}'")
    assert out.split() == ["one", "3", "two", "4"]


def test_sbatchs_options_are_the_defaults_of_the_steps_inside(
    submit: Submit, image_sqfs: Path, other_sqfs: Path
) -> None:
    body = f"""#!/bin/sh
#SBATCH --ch-image={image_sqfs} --ch-set-env=A=1 --ch-set-env=B=2
srun sh -c 'cat /marker; echo $A $B'
srun --ch-image={other_sqfs} --ch-set-env=A=3 sh -c 'cat /marker; echo $A'
"""
    assert submit(body, "--ch-set-env=C=4")["job.txt"] == ["one", "1 2", "two", "3"]


def test_wrap(good: Good) -> None:
    out = good(
        "sbatch-wait -o $HOME/w.txt --ch-image=$IMG --wrap='cat /marker; echo $0' >&2; cat $HOME/w.txt; rm $HOME/w.txt"
    )
    marker, name = out.splitlines()
    assert marker == "one"
    assert name.endswith("/slurm_script")


def test_each_task_of_an_array_has_its_own_container(submit: Submit, image_sqfs: Path) -> None:
    body = f"#!/bin/sh\n#SBATCH --ch-image={image_sqfs} --ch-verbose --array=3-5\necho $SLURM_ARRAY_TASK_ID $(cat /marker)\n"
    found = submit(body, files="%a.txt")
    assert {name: plain(lines) for name, lines in found.items()} == {f"{n}.txt": [f"{n} one"] for n in (3, 4, 5)}
    assert len({tag for lines in found.values() for tag in tags(lines)}) == 3


HET = "--ch-verbose --ch-image={} sh -c 'echo $SLURM_PROCID $SLURMD_NODENAME $(cat /marker) $(readlink /proc/self/ns/mnt)'"


def test_each_component_of_a_heterogeneous_job_has_its_own_container(submit: Submit, image_sqfs: Path) -> None:
    body = f"""#!/bin/bash
#SBATCH -w n1 -n2 --overcommit
#SBATCH hetjob
#SBATCH -w n2 -n1
srun --het-group=0,1 {HET.format(image_sqfs)}
"""
    lines = submit(body)["job.txt"]
    tasks = sorted(line.split() for line in plain(lines))
    assert [task[:3] for task in tasks] == [["0", "n1", "one"], ["1", "n1", "one"], ["2", "n2", "one"]]
    # Nothing about the third's: the kernel gives a namespace's number again once it is gone.
    assert tasks[0][3] == tasks[1][3]
    assert len(set(tags(lines))) == 2


def test_a_requeued_job_is_in_its_container_again(sh: Run, world_tmp: Path, image_sqfs: Path) -> None:
    script = world_tmp / "again.sh"
    script.write_text(f"""#!/bin/sh
#SBATCH --ch-image={image_sqfs} --ch-verbose --requeue --open-mode=append
echo restart ${{SLURM_RESTART_COUNT:-0}} $(cat /marker)
test -n "$SLURM_RESTART_COUNT" || exec sleep 300
""")
    line = f"""
    d=$(mktemp -d)
    id=$(sbatch --parsable -o $d/out {script})
    until grep -q '^restart 0' $d/out 2> /dev/null; do sleep 0.02; done
    scontrol requeue $id
    # Slurm would wait for two minutes. It may not listen yet, and each "now" takes it a moment.
    until timeout 4 sh -c "until grep -q '^restart 1' $d/out; do sleep 0.02; done"; do
        scontrol update JobId=$id StartTime=now
    done > /dev/null 2>&1
    while squeue -h -j $id 2> /dev/null | grep -q .; do sleep 0.02; done
    cat $d/out
    rm -r $d
    """
    lines = sh(line).stdout.splitlines()
    assert [line for line in lines if line.startswith("restart")] == ["restart 0 one", "restart 1 one"]
    first, second = tags(lines)
    assert second == first + ".1"
