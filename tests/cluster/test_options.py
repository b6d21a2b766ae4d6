# SPDX-License-Identifier: Apache-2.0
"""Options: on the command line, from the environment, in batch scripts, from the site."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.request import options
from slurm_ch.sandbox.cluster import Cluster
from tests.command import WITH_SBATCH_WAIT

from .conftest import Run

Good = Callable[..., str]


def test_help_shows_every_option(good: Good) -> None:
    for command in ("srun", "sbatch", "salloc"):
        text = good(f"{command} --help")
        for option in options.OPTIONS:
            if option.where & options.PLUGIN:
                assert f"--ch-{option.name}" in text


@pytest.mark.row("--bind")
def test_repeated_binds_add_up(good: Good, world_tmp: Path) -> None:
    for name in ("a", "b", "c"):
        (world_tmp / name).mkdir(exist_ok=True)
        (world_tmp / name / name).touch()
    out = good(
        f"srun --ch-image=$IMG --ch-bind={world_tmp}/a:/mnt --ch-bind={world_tmp}/b:/srv,{world_tmp}/c:/opt"
        " ls /mnt /opt /srv"
    )
    assert [word for word in out.split() if not word.endswith(":")] == ["a", "c", "b"]


def test_each_option_does_what_it_says(good: Good, user: str) -> None:
    assert good("srun --ch-image=$IMG --ch-cd=/srv sh -c 'pwd; echo $PWD'") == "/srv\n/srv\n"
    assert good("srun --ch-image=$IMG --ch-set-env=A=1 --ch-set-env='B=$A:x' sh -c 'echo $B'") == "1:x\n"
    assert good("srun --ch-image=$IMG --ch-env-no-expand --ch-set-env='B=$A' sh -c 'echo $B'") == "$A\n"
    assert (
        good("A1=x A2=y srun --ch-image=$IMG --ch-unset-env='A*' sh -c 'echo ${A1-gone} ${A2-gone}'") == "gone gone\n"
    )
    assert good("srun --ch-image=$IMG --ch-private-tmp ls -A /tmp") == ""
    assert good("srun --ch-image=$IMG --ch-no-passwd cat /etc/passwd") == ""
    assert good("srun --ch-image=$IMG --ch-write-fake sh -c 'echo x > /new; cat /new'") == "x\n"
    assert good("srun --ch-image=$IMG --ch-write-fake=1M df -k /").split("\n")[1].split()[1] == "1024"
    assert (
        good("srun --ch-image=$IMG --ch-home sh -c 'echo $HOME; test -w $HOME && echo mine'") == f"/home/{user}\nmine\n"
    )
    assert good("srun --ch-image=$IMG --ch-uid=0 --ch-gid=0 sh -c 'id -u; id -g'") == "0\n0\n"
    assert "info: executing true" in good("srun --ch-image=$IMG --ch-verbose true 2>&1")


def test_write_reaches_a_directory_image(good: Good, sh: Run, image_dir: Path) -> None:
    assert sh(f"srun --ch-image={image_dir} touch /written").returncode == 1
    good(f"srun --ch-image={image_dir} --ch-write touch /written")
    (image_dir / "written").unlink()


def test_rules_keep_their_order(good: Good) -> None:
    out = good("srun --ch-image=$IMG --ch-set-env=A=1 --ch-unset-env=A --ch-set-env=B=2 sh -c 'echo ${A-none} $B'")
    assert out == "none 2\n"
    assert good("srun --ch-image=$IMG --ch-unset-env=A --ch-set-env=A=1 sh -c 'echo $A'") == "1\n"


def test_environment_defaults(good: Good, image_dir: Path) -> None:
    assert good("SLURM_CH_IMAGE=$IMG srun cat /marker") == "one\n"
    assert good("SLURM_CH_IMAGE=$IMG SLURM_CH_CD=/srv SLURM_CH_PRIVATE_TMP=1 srun sh -c 'pwd; ls -A /tmp'") == "/srv\n"
    assert good("SLURM_CH_IMAGE=/nonexistent srun --ch-image=$IMG cat /marker") == "one\n"
    assert good("export SLURM_CH_SET_ENV=$'A=1\\nB=2'; SLURM_CH_IMAGE=$IMG srun sh -c 'echo $A $B'") == "1 2\n"
    # A default for a container is nothing to a step without one.
    assert good("SLURM_CH_PRIVATE_TMP=1 srun echo ok") == "ok\n"


@pytest.mark.parametrize("export", ["ALL", "NONE", "A"])
def test_no_export_loses_an_option(good: Good, export: str) -> None:
    out = good(
        f"A=1 srun --export={export} --ch-image=$IMG --ch-set-env=B=2 --ch-private-tmp /bin/sh -c 'cat /marker; ls -A /tmp; echo $B'"
    )
    assert out == "one\n2\n"


def batch(good: Good, world_tmp: Path, script: str, options: str = "") -> list[str]:
    path = world_tmp / "job.sh"
    path.write_text(script)
    out = world_tmp / "out"
    out.mkdir(exist_ok=True)
    out.chmod(0o777)
    good(f"cd /; sbatch-wait -o {out}/job.txt {options} {path} first second")
    return (out / "job.txt").read_text().splitlines()


@pytest.mark.parametrize("options", ["", "--export=NONE", "--ch-private-tmp", "--ch-write-fake"])
def test_batch_script_runs_in_the_container(good: Good, world_tmp: Path, image_sqfs: Path, options: str) -> None:
    script = f'#!/bin/sh\n#SBATCH --ch-image={image_sqfs}\ncat /marker\necho "$@"\nsrun -Q cat /marker\n'
    assert batch(good, world_tmp, script, options) == ["one", "first second", "one"]


def test_batch_script_where_its_directory_is_not_in_the_image(user: str, image_sqfs: Path) -> None:
    parent = Path(tempfile.mkdtemp(prefix="slurm-ch-tests-", dir="/var/lib"))
    parent.chmod(0o755)
    try:
        with Cluster(nodes=1, directory_parent=str(parent)) as own:
            line = f"sbatch-wait -o $HOME/job.txt --ch-image={image_sqfs} --wrap='cat /marker; ls /var/spool; echo $0'; cat $HOME/job.txt; rm $HOME/job.txt"
            done = own.run(["bash", "-c", WITH_SBATCH_WAIT + line], user=user)
    finally:
        parent.rmdir()
    assert done.stdout.splitlines()[1] == "one", done
    assert "slurm_script" in done.stdout.splitlines()[-1]


def test_srun_in_a_plain_batch_script(good: Good, world_tmp: Path, image_sqfs: Path) -> None:
    script = f"""#!/bin/bash
srun -Q --ch-image={image_sqfs} cat /marker
export SLURM_CH_IMAGE={image_sqfs}
srun -Q cat /marker
echo host ${{CH_RUNNING-none}}
"""
    assert batch(good, world_tmp, script) == ["one", "one", "host none"]


def test_sbatch_options_are_the_defaults_of_steps_inside(good: Good, image_sqfs: Path) -> None:
    line = f"salloc -Q --ch-image={image_sqfs} --ch-set-env=A=1 --ch-set-env=B=2 bash -c "
    inner = (
        'echo ${CH_RUNNING-host}; srun sh -c "cat /marker; echo \\$A \\$B"; srun --ch-set-env=A=3 sh -c "echo \\$A\\$B"'
    )
    assert good(f"{line}'{inner}'").splitlines() == ["host", "one", "1 2", "3"]


def test_a_default_of_the_login_environment_is_not_sbatchs(good: Good, world_tmp: Path) -> None:
    path = world_tmp / "plain.sh"
    path.write_text("#!/bin/bash\necho ${CH_RUNNING-host}\nsrun cat /marker\n")
    out = good(
        f"export SLURM_CH_IMAGE=$IMG; sbatch-wait -o $HOME/out.txt {path} >&2; cat $HOME/out.txt; rm $HOME/out.txt"
    )
    assert out.splitlines() == ["host", "one"]


def test_site_arguments(user: str, image_sqfs: Path, world_tmp: Path) -> None:
    data = world_tmp / "data"
    data.mkdir()
    (data / "site").touch()
    line = f"required {paths.PLUGIN} bind={data}:/srv default=private-tmp default=set-env=SITE=1 forbid=write,uid"
    with Cluster(nodes=1, plugstack_lines=[line]) as own:

        def run(options: str, command: str) -> tuple[int, str, str]:
            done = own.run(["bash", "-c", f"srun --ch-image={image_sqfs} {options} sh -c '{command}'"], user=user)
            return done.returncode, done.stdout, done.stderr

        assert run("", "ls /srv; ls -A /tmp; echo $SITE")[:2] == (0, "site\n1\n")
        assert run("--ch-private-tmp=no --ch-set-env=A=1", f"ls -d {data}; echo ${{SITE-none}}")[:2] == (
            0,
            f"{data}\nnone\n",
        )
        code, out, err = run("--ch-uid=0", "id")
        assert (code, out) == (64, "")
        assert "--ch-uid=0: not allowed at this site" in err


def test_a_wrong_site_argument_says_so(user: str, image_sqfs: Path) -> None:
    with Cluster(nodes=1, plugstack_lines=[f"required {paths.PLUGIN} bananas=1"]) as own:
        done = own.run(["srun", f"--ch-image={image_sqfs}", "true"], user=user)
        assert done.returncode == 64
        assert "plugstack.conf: bananas=1: unknown argument" in done.stderr
        assert own.run(["srun", "echo", "bare"], user=user).stdout == "bare\n"


@pytest.mark.row("--seccomp")
def test_root_emulation_holds_in_every_task(good: Good) -> None:
    inner = "'touch /f; chown 1:2 /f && mknod /null$SLURM_PROCID c 1 3 && grep Seccomp: /proc/self/status'"
    out = good(f"srun -n3 --ch-image=$IMG --ch-seccomp --ch-write-fake sh -c {inner}")
    assert out.split() == ["Seccomp:", "2"] * 3
    assert "Seccomp:\t0" in good("srun --ch-image=$IMG --ch-seccomp=no cat /proc/self/status")


@pytest.mark.row("IMAGE")
def test_the_host_as_image(good: Good, user: str) -> None:
    out = good("srun -n2 --ch-image=/ /bin/sh -c 'echo $HOME $CH_RUNNING; touch /x 2>/dev/null || echo read-only'")
    assert out.splitlines().count(f"/home/{user} /") == 2
    assert out.splitlines().count("read-only") == 2


@pytest.mark.row("CMD")
def test_the_images_own_command(good: Good, sh: Run, world_tmp: Path, image_dir: Path) -> None:
    copy = world_tmp / "own-command"
    subprocess.run(["cp", "-a", image_dir, copy], check=True)
    (copy / "ch").mkdir()
    (copy / "ch/entrypoint").write_bytes(b"angi\0\0\0\x04echo\0\0\0\x05hello")
    (copy / "ch/environment").write_text("IMAGES=own\n")
    assert good(f"srun -n2 --ch-image={copy} - there") == "hello there\n" * 2
    assert (
        good(f"srun --ch-image={copy} --ch-set-env0 --ch-set-env0=A=$'1\\t2' sh -c 'echo $IMAGES \"$A\"'")
        == "own 1\t2\n"
    )
    assert sh("srun --ch-image=$IMG -").returncode == 64
    assert good("srun --ch-image=$IMG --ch-fuse-single cat /marker") == "one\n"


def test_user_namespaces(good: Good, sh: Run) -> None:
    assert good("srun --ch-image=$IMG --ch-userns unshare -Ur id -u") == "0\n"
    assert "No space left on device" in sh("srun --ch-image=$IMG unshare -Ur id -u").stderr
