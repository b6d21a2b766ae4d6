# SPDX-License-Identifier: Apache-2.0
"""A step's surroundings, as Slurm starts it: directory, TMPDIR, names that srun resolves itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from slurm_ch.request.options import BY_NAME
from slurm_ch.sandbox.cluster import Cluster
from tests.unit.test_anchor import VECTORS

from .conftest import Run

Good = Callable[..., str]


LOOK = "sh -c 'pwd; cat here'"


def test_a_step_starts_in_its_users_directory(good: Good, outside: Path) -> None:
    run, options = f"{outside}/scratch/run", f"--ch-write-fake --ch-bind={outside}/scratch --ch-image=$IMG"
    assert good(f"cd {run}; srun {options} {LOOK}") == f"{run}\nmine\n"
    assert good(f"srun -D {run} {options} {LOOK}") == f"{run}\nmine\n"
    script = f"{outside}/script"
    Path(script).write_text(f"#!/bin/sh\n#SBATCH --ch-write-fake --ch-bind={outside}/scratch\npwd; cat here\n")
    for words in (f"cd {run}; sbatch-wait", f"sbatch-wait -D {run}"):
        assert good(f"{words} -o {outside}/data/out --ch-image=$IMG {script} >&2; cat {outside}/data/out") == (
            f"{run}\nmine\n"
        )
    assert good(f"cd {outside}/data; HOME={outside}/scratch srun --ch-home --ch-image=$IMG sh -c 'cat run/here'") == (
        "mine\n"
    )


def test_a_step_whose_directory_is_lost_says_so_once_a_node(sh: Run, outside: Path) -> None:
    done = sh(f"cd {outside}/data; srun -N2 -n6 --overcommit --ch-image=$IMG pwd")
    assert done.stdout == "/\n" * 6
    assert sorted(line for line in done.stderr.splitlines() if "working directory" in line) == [
        f"slurm-ch: {node}: warning: the working directory {outside}/data is not in the container;"
        f" --ch-bind={outside}/data shows it; starting in /"
        for node in ("n1", "n2")
    ]
    done = sh(f"cd {outside}/data; srun --ch-image=$IMG ./app")
    assert done.returncode == 127
    assert f"can't execute ./app: No such file or directory; the working directory {outside}/data is" in done.stderr


def test_a_script_in_the_working_directory_is_found_as_without_a_container(
    good: Good, sh: Run, world_tmp: Path
) -> None:
    script = world_tmp / "place-inst.sh"
    script.write_text("#!/bin/sh\necho $0 in $PWD\n")
    script.chmod(0o755)
    for options in ("", "--ch-image=$IMG"):
        assert good(f"cd {world_tmp}; srun {options} place-inst.sh x") == f"place-inst.sh in {world_tmp}\n"
        assert good(f"cd {world_tmp}; srun {options} ./place-inst.sh").endswith(f"place-inst.sh in {world_tmp}\n")
    # PATH first, and nothing that isn't executable.
    (world_tmp / "cat").write_text("#!/bin/sh\necho wrong\n")
    (world_tmp / "cat").chmod(0o755)
    assert good(f"cd {world_tmp}; srun --ch-image=$IMG cat /marker") == "one\n"
    script.chmod(0o644)
    done = sh(f"cd {world_tmp}; srun --ch-image=$IMG place-inst.sh")
    assert done.returncode == 126
    assert "can't execute place-inst.sh: place-inst.sh: Permission denied" in done.stderr


def test_a_program_of_ones_own_in_a_directory_by_another_name(good: Good, outside: Path) -> None:
    """srun itself makes a path of ./app, by the kernel's name for the directory."""
    for name in ("app", "mine"):
        (outside / "data/run" / name).write_text("#!/bin/sh\necho $0 $*\n")
        (outside / "data/run" / name).chmod(0o755)
    for options in (f"--ch-bind={outside}/scratch", f"--ch-bind={outside}/data:/mnt"):
        line = f"cd {outside}/scratch/run; srun --ch-image=$IMG {options}"
        assert good(f"{line} ./app 1 2") == "./app 1 2\n"
        assert good(f"{line} mine : --ch-image=$IMG {options} ./app -x").splitlines() in (
            ["mine", "./app -x"],
            ["./app -x", "mine"],
        )


def test_names_are_the_containers_where_srun_looks_for_commands(user: str, image_sqfs: Path) -> None:
    """LaunchParameters=test_exec: srun refuses what this machine lacks, and gives the rest its paths here."""
    with Cluster(nodes=1, slurm_conf_extra="LaunchParameters=test_exec\n") as cluster:
        env = {**cluster.environ(user), "IMG": str(image_sqfs), "PATH": "/usr/bin:/bin"}

        def run(line: str) -> subprocess.CompletedProcess[str]:
            return cluster.run(["bash", "-c", line], user=user, timeout=60, env=env)

        done = run("srun --ch-image=$IMG cat /marker")
        assert (done.returncode, done.stdout) == (0, "one\n"), done.stderr
        refused = run("srun --ch-image=$IMG zcat-of-the-image")
        assert "Can not execute zcat-of-the-image" in refused.stderr
        # What docs/troubleshooting.rst says to type.
        assert run("srun --ch-image=$IMG env busybox echo there").stdout == "there\n"
        doctor = run(f"{Path(sys.executable).parent}/slurm-ch doctor")
        assert "test_exec" in doctor.stdout


SHOW = "sh -c 'echo $TMPDIR; test -d $TMPDIR && test -w $TMPDIR && echo there; ls -d /tmp/slurm-ch-tests-* > /dev/null && echo all'"


def test_a_tmpdir_that_the_node_lacks(sh: Run, good: Good, outside: Path) -> None:
    """A login node's. Slurm makes the directory, or says that it can't and takes /tmp."""
    done = sh(f"TMPDIR=/nonexistent/x srun --ch-image=$IMG {SHOW}")
    assert (done.returncode, done.stdout) == (0, "/tmp\nthere\nall\n")
    assert "TMPDIR [/nonexistent/x]" in done.stderr
    assert "slurm-ch" not in done.stderr
    made = f"{outside}/job"
    assert good(f"TMPDIR={made} srun --ch-image=$IMG {SHOW}") == f"{made}\nthere\nall\n"


def test_a_task_prologs_tmpdir_counts(sh: Run, good: Good, world_tmp: Path, outside: Path) -> None:
    """The launcher is at work by then."""
    prolog = world_tmp / "place-prolog"
    prolog.write_text('#!/bin/sh\nmkdir -p "$WANTED"\necho "export TMPDIR=$WANTED"\n')
    prolog.chmod(0o755)
    out = good(f"export WANTED=/tmp/place-$$; srun --task-prolog={prolog} --ch-image=$IMG {SHOW}; rmdir $WANTED")
    assert out.split()[1:] == ["there", "all"]
    assert out.startswith("/tmp/place-")
    there = f"{outside}/scratch/job"
    line = f"export WANTED={there}; srun --task-prolog={prolog} --ch-image=$IMG"
    assert good(f"{line} --ch-write-fake --ch-bind={outside}/scratch {SHOW}") == f"{there}\nthere\nall\n"
    done = sh(f"{line} {SHOW}")
    assert (done.returncode, done.stdout) == (0, "/tmp\nthere\nall\n")
    assert f"warning: TMPDIR={there}: no such directory in the container; using /tmp\n" in done.stderr


def test_relative_paths_that_become_defaults(good: Good, image_sqfs: Path, outside: Path) -> None:
    """As the README says: the script's image is also that of its steps, wherever they start."""
    home = outside / "data"
    shutil.copy(image_sqfs, home / "foo.sqfs")
    (home / "vars").write_text("A=from the file\n")
    (home / "d").mkdir()
    (home / "d/file").write_text("bound\n")
    see = "cat /marker /mnt/file; echo $A"
    inner = see.replace("$", "\\$")
    script = home / "script"
    script.write_text(f"""#!/bin/sh
#SBATCH --ch-image=foo.sqfs --ch-bind=./d:/mnt --ch-set-env=vars
{see}
cd /
srun sh -c '{see}'
""")
    seen = "one\nbound\nfrom the file\n"
    for submit in (f"cd {home}; sbatch-wait", f"cd /; sbatch-wait -D {home}"):
        out = good(f"{submit} -o {outside}/out {script} >&2; cat {outside}/out")
        assert [line for line in out.splitlines(keepends=True) if "slurm-ch" not in line] == (seen * 2).splitlines(
            keepends=True
        )
    options = "--ch-image=foo.sqfs --ch-bind=./d:/mnt --ch-set-env=vars"
    assert good(f"cd {home}; salloc -Q {options} sh -c \"cd /; srun sh -c '{inner}'\"") == seen
    # What salloc finds in its environment, too.
    exported = "export SLURM_CH_IMAGE=foo.sqfs SLURM_CH_BIND=./d:/mnt SLURM_CH_SET_ENV=vars"
    assert good(f"cd {home}; {exported}; salloc -Q sh -c \"cd /; srun sh -c '{inner}'\"") == seen
    # A plain script whose steps have their defaults from its submitter's environment.
    script.write_text(f"#!/bin/sh\ncd /\nsrun sh -c '{see}'\n")
    out = good(f"cd {home}; {exported}; sbatch-wait -o {outside}/out {script} >&2; cat {outside}/out")
    assert out == seen
    # An ordinary step with the relay is the default of its own steps too.
    line = f"cd {home}; srun --ch-relay {options} sh -c \"cd /mnt; srun --overlap sh -c '{inner}'\""
    assert good(line) == seen


@pytest.mark.parametrize("command", ["salloc", "sbatch"])
def test_every_kind_of_path_is_anchored_alike(good: Good, command: str, outside: Path) -> None:
    def check(number: int, name: str, given: str, wanted: str) -> None:
        variable = BY_NAME[name].variable
        show = f"echo \\$SLURM_CH_{variable}"
        if command == "salloc":
            line = f"cd {outside}; salloc -Q --ch-image=foo.sqfs '--ch-{name}={given}' sh -c \"{show}\""
            line = line if name != "image" else f"cd {outside}; salloc -Q '--ch-image={given}' sh -c \"{show}\""
        else:
            out = f"{outside}/data/out-{number}"
            line = f"cd {outside}; SLURM_CH_{variable}='{given}' sbatch-wait -o {out} --wrap \"{show}\" >&2; cat {out}"
        assert good(line).strip() == wanted.replace("/d/", f"{outside}/"), line

    cases = [
        (number, name, given, wanted)
        for number, (name, given, wanted) in enumerate(VECTORS)
        if "\n" not in given
        and name not in ("storage", "cd", "unset-env")
        and not given.startswith(("docker:", "/"))
        and (command, name) != ("salloc", "save")  # it runs nothing that could be saved
    ]
    assert len(cases) >= 8
    # A batch job is waiting for most of its second.
    with ThreadPoolExecutor(8 if command == "sbatch" else 1) as pool:
        list(pool.map(lambda case: check(*case), cases))


def test_a_step_that_may_write_no_file(sh: Run, good: Good) -> None:
    """`ulimit -f 0`: what is to be written where it is submitted can't be; the step can be as without a container."""
    for options in ("", "--ch-image=$IMG", "--ch-image=$IMG --ch-bind=/usr:/mnt", "--ch-image=$IMG --ch-set-env=A=1"):
        for limit in ("-f 0", "-S -f 0"):
            assert good(f"ulimit {limit}; srun {options} sh -c 'ulimit -f'") == "0\n"
    # Where nobody could check before, the node does.
    done = sh("ulimit -f 0; srun --ch-image=$IMG --ch-uid=x true")
    assert done.returncode == 64
    assert "--ch-uid=x: not a whole number" in done.stderr
