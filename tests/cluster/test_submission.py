# SPDX-License-Identifier: Apache-2.0
"""Errors that can be detected at submission are reported there, with the same message as on the node."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import slurm_ch
from slurm_ch import paths
from slurm_ch.sandbox.cluster import Cluster
from tests.command import SBATCH_WAIT

from .conftest import Run

Good = Callable[..., str]

REFUSED = [
    ("--ch-image=/etc/passwd", 31),
    ("--ch-image=/dev/null", 31),
    ("--ch-image=$SHORT", 31),
    ("--ch-image=", 64),
    ("--ch-image=$IMG --ch-write", 64),
    ("--ch-image=$IMG --ch-write --ch-write-fake", 64),
    ("--ch-image=$IMG --ch-write --ch-home", 64),
    ("--ch-image=$IMG --ch-private-tmp=maybe", 64),
    ("--ch-image=$IMG --ch-write-fake=0", 64),
    ("--ch-image=$IMG --ch-uid=-1", 64),
    ("--ch-image=$IMG --ch-bind=a", 64),
    ("--ch-image=$IMG --ch-bind=/a:b", 64),
    ("--ch-image=$IMG --ch-set-env==x", 64),
    ("--ch-image=$IMG --ch-verbose=loud", 64),
    ("--ch-image=$IMG --ch-bind=/usr:/mnt:readonly", 64),
    ("--ch-image=$EMPTY", 31),
    ("--ch-image=library://x/y", 31),
]

COMMANDS = {
    "srun": "srun -w n1 {} sh -c 'echo on the host'",
    "sbatch": "sbatch -W -w n1 -o $HOME/out.txt {} --wrap='echo on the host'",
    "salloc": "salloc -Q -w n1 {} sh -c 'echo granted; srun echo on the host'",
}


@pytest.fixture(scope="module")
def short(world_tmp: Path) -> Path:
    path = world_tmp / "short.sqfs"
    path.write_bytes(b"hsq")
    (world_tmp / "empty").mkdir(exist_ok=True)
    path.chmod(0o644)
    return path


@pytest.fixture(scope="module")
def blind(cluster: Cluster) -> str:
    """A slurm.conf for the submitting side alone, where the checker isn't installed."""
    directory = Path(cluster.directory)
    (directory / "blind.conf").write_text(f"required {paths.PLUGIN} python=/nonexistent\n")
    text = (directory / "slurm.conf").read_text()
    conf = directory / "slurm.blind.conf"
    conf.write_text(text.replace(f"{directory}/plugstack.conf", f"{directory}/blind.conf"))
    return str(conf)


@pytest.mark.parametrize(("options", "code"), REFUSED)
def test_the_nodes_message_before_there_is_a_job(sh: Run, short: Path, blind: str, options: str, code: int) -> None:
    options = options.replace("$SHORT", str(short)).replace("$EMPTY", str(short.parent / "empty"))
    on_node = sh(f"SLURM_CONF={blind} {COMMANDS['srun'].format(options)}")
    assert (on_node.returncode, on_node.stdout) == (code, "")
    message = re.search(r"^slurm-ch: n1: error: (.*)$", on_node.stderr, re.MULTILINE)
    assert message, on_node
    for line in COMMANDS.values():
        done = sh(line.format(options))
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr == f"slurm-ch: error: {message[1]}\n"


@pytest.mark.parametrize(("name", "value"), [("UID", "x"), ("IMAGE", "/etc/passwd"), ("CD", "a\nb")])
@pytest.mark.parametrize("command", COMMANDS)
def test_environment_defaults_are_checked_too(sh: Run, command: str, name: str, value: str) -> None:
    prefix = {"srun": "SLURM", "sbatch": "SBATCH", "salloc": "SALLOC"}[command]
    image = "" if name == "IMAGE" else "--ch-image=$IMG"
    done = sh(f"export {prefix}_CH_{name}='{value}'; {COMMANDS[command].format(image)}")
    assert done.returncode == (31 if name == "IMAGE" else 64)
    assert done.stdout == ""
    assert value.split("\n", maxsplit=1)[0] in done.stderr or f"{prefix}_CH_CD" in done.stderr


def test_what_the_site_forbids_or_sets(user: str, image_sqfs: Path) -> None:
    line = f"required {paths.PLUGIN} forbid=home,write default=private-tmp=maybe"
    with Cluster(nodes=1, plugstack_lines=[line]) as own:
        for command in COMMANDS.values():
            for options, message in (
                ("--ch-home", "--ch-home=yes: not allowed at this site"),
                ("", "plugstack.conf: default=private-tmp=maybe: neither yes nor no"),
            ):
                done = own.run(["bash", "-c", command.format(f"--ch-image={image_sqfs} {options}")], user=user)
                assert (done.returncode, done.stdout) == (64, "")
                assert done.stderr == f"slurm-ch: error: {message}\n"


def test_a_script_with_a_wrong_line(sh: Run, world_tmp: Path) -> None:
    script = world_tmp / "wrong.sh"
    script.write_text("#!/bin/sh\n#SBATCH --ch-image=/etc/passwd\necho on the host\n")
    done = sh(f"sbatch {script}")
    assert (done.returncode, done.stdout) == (31, "")
    assert done.stderr == "slurm-ch: error: unknown image type: /etc/passwd\n"


def test_an_image_that_only_the_nodes_have_is_no_error(sh: Run) -> None:
    done = sh(
        "sbatch-wait -w n1 -o $HOME/out.txt --ch-image=/not/here --ch-private-tmp --ch-verbose --wrap='echo on the host';"
        " echo $?; cat $HOME/out.txt; rm $HOME/out.txt"
    )
    submitted, code, *lines = done.stdout.splitlines()
    assert submitted.startswith("Submitted batch job")
    assert code == "31"
    # The job ran, and its node says what is wrong there.
    assert (
        lines[-1]
        == "slurm-ch: n1: error: can't stat image: /not/here (there is no /not on this node): No such file or directory"
    )


def test_a_name_in_the_storage_comes_before_a_file_here(good: Good, world_tmp: Path, image_dir: Path) -> None:
    storage = world_tmp / "named"
    (storage / "img").mkdir(parents=True)
    (storage / "img" / "file.txt").symlink_to(image_dir)
    (world_tmp / "file.txt").write_text("not an image\n")
    assert good(f"cd {world_tmp}; srun --ch-storage={storage} --ch-image=file.txt cat /marker") == "one\n"


def test_a_relative_image_of_another_directory(good: Good, sh: Run, world_tmp: Path, image_sqfs: Path) -> None:
    here, there = world_tmp / "here", world_tmp / "there"
    for path in (here, there):
        path.mkdir(exist_ok=True)
    (here / "foo").write_text("not an image\n")
    if not (there / "foo").exists():
        (there / "foo").symlink_to(image_sqfs)
    assert sh(f"cd {here}; srun --ch-image=foo cat /marker").returncode == 31
    assert sh(f"cd {here}; sbatch --ch-image=foo --wrap=true").returncode == 31
    for how in (f"-D {there}", f"--chdir={there}"):
        assert good(f"cd {here}; srun {how} --ch-image=foo cat /marker") == "one\n"
    script = here / "job.sh"
    script.write_text(f"#!/bin/sh\n#SBATCH --chdir={there}\n#SBATCH --ch-image=foo\ncat /marker\n")
    out = good(f"cd {here}; sbatch-wait -o $HOME/out.txt job.sh; cat $HOME/out.txt; rm $HOME/out.txt")
    assert out.splitlines()[1:] == ["one"]
    script.write_text("#!/bin/sh\n#SBATCH --ch-image=foo\ncat /marker\n")
    assert sh(f"cd {here}; sbatch job.sh").returncode == 31


@pytest.mark.parametrize(
    "reference", ["dockerd://ubuntu", "podman://x/y", "Docker://x", "https://x/y.sqfs", "oras://x/y"]
)
@pytest.mark.parametrize(
    "command", ["srun {} true", "sbatch {} --wrap=true", "sbatch -D /tmp {} --wrap=true", "salloc {} true"]
)
def test_a_reference_that_nobody_here_can_follow(sh: Run, reference: str, command: str) -> None:
    done = sh(command.format(f"--ch-image={reference}"))
    assert (done.returncode, done.stdout) == (31, "")
    assert re.fullmatch(rf"slurm-ch: error: {re.escape(reference)}(:| is) .*\n", done.stderr)


def test_a_checker_that_cannot_run_stops_nobody(user: str, image_sqfs: Path, world_tmp: Path) -> None:
    old = world_tmp / "old-python"
    old.write_text("#!/bin/sh\necho 'SyntaxError: invalid syntax' >&2\nexit 1\n")
    old.chmod(0o755)
    for python in ("/nonexistent", old):
        with Cluster(nodes=1) as own:
            directory = Path(own.directory)
            (directory / "login.conf").write_text(f"required {paths.PLUGIN} python={python}\n")
            conf = directory / "slurm.login.conf"
            text = (directory / "slurm.conf").read_text()
            conf.write_text(text.replace(f"{directory}/plugstack.conf", f"{directory}/login.conf"))
            env = {**own.environ(user), "SLURM_CONF": str(conf)}
            done = own.run(["srun", f"--ch-image={image_sqfs}", "--ch-uid=0", "id", "-u"], user=user, env=env)
            assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_a_test_only_submission(good: Good) -> None:
    assert "to start at" in good("srun --test-only --ch-image=$IMG --ch-private-tmp --ch-cd=/ true 2>&1")
    assert "to start at" in good("sbatch --test-only --ch-image=$IMG --ch-private-tmp --ch-cd=/ --wrap=true 2>&1")


@pytest.mark.parametrize("form", ["--ch-image={}", "--ch-image {}"])
def test_two_images_in_one_script_are_refused(sh: Run, world_tmp: Path, image_sqfs: Path, form: str) -> None:
    script = world_tmp / "components.sh"
    first, second = (f"#SBATCH {form.format(image)}\n" for image in (image_sqfs, "/other"))
    script.write_text(f"#!/bin/sh\n{first}#SBATCH hetjob\n{second}cat /marker\n")
    done = sh(f"sbatch {script}")
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr == "slurm-ch: error: --ch-image=/other: all components of one command have the same image\n"


@pytest.mark.parametrize(
    "line",
    [
        "srun --container=/b --ch-image=$IMG true",
        "srun --ch-image=$IMG -p sandbox --container /b true",  # seen once the command is known
        "sbatch -p sandbox --container=/b --ch-image=$IMG $SCRIPT",
        "sbatch -p sandbox --ch-image=$IMG $SCRIPT.says",
        "SRUN_CONTAINER=/b srun --ch-image=$IMG true",
    ],
)
def test_a_container_of_slurms_own_as_well(sh: Run, world_tmp: Path, line: str) -> None:
    script = world_tmp / "script.sh"
    script.write_text("#!/bin/sh\ntrue\n")
    (world_tmp / "script.sh.says").write_text("#!/bin/sh\n#SBATCH --container=/b\ntrue\n")
    done = sh(line.replace("$SCRIPT", str(script)))
    assert (done.returncode, done.stdout) == (64, "")
    assert "each makes a container; give one of them" in done.stderr


def test_words_of_the_command_are_its_own(sh: Run) -> None:
    done = sh(
        "srun -l --ch-image=$IMG -p sandbox /bin/sh -c 'echo $0' --container=/b; srun --ch-image=$IMG echo --runtime"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0: --container=/b\n--runtime\n", "")


def test_a_job_submitted_without_the_plugin(cluster: Cluster, user: str, image_sqfs: Path, world_tmp: Path) -> None:
    """As with pyslurm and slurmrestd: only the job's environment requests the container."""
    conf = world_tmp / "without-plugin.conf"
    with open(cluster.conf) as file:
        conf.write_text(re.sub(r"(?m)^PlugStackConfig=.*$", "PlugStackConfig=/dev/null", file.read()))
    out = world_tmp / "without-plugin.out"
    out.touch()
    out.chmod(0o666)
    script = f"#!/bin/sh\ncat /marker; ls /mnt; SLURM_CONF={cluster.conf} srun --overcommit -n2 cat /marker\n"
    variables = slurm_ch.job_environment(image=image_sqfs, bind=[f"{image_sqfs.parent}/image/etc:/mnt"])
    env = {**cluster.environ(user), "PATH": "/usr/bin:/bin", "SLURM_CONF": str(conf), **variables}
    done = cluster.run([SBATCH_WAIT, f"--output={out}"], user=user, env=env, input=script, timeout=60)
    assert done.returncode == 0, (done.stderr, out.read_text())
    lines = out.read_text().split()
    assert lines[0] == "one" and lines[-2:] == ["one", "one"]
    assert {"group", "hosts", "passwd"} <= set(lines)


@pytest.mark.parametrize(
    ("line", "word"),
    [("--ch-image=$HOME/foo.sqfs", "$HOME"), ("--ch-image=~/foo.sqfs", "~"), ("--ch-image={} --ch-bind=/data,$SCRATCH:/s", "$SCRATCH"),
     ("--ch-image={} --ch-cd=${HOME}/x", "${HOME}"), ("--ch-image={} --ch-set-env=~/env", "~")],
)  # fmt: skip
def test_what_a_script_can_not_expand(sh: Run, world_tmp: Path, image_sqfs: Path, line: str, word: str) -> None:
    script = world_tmp / "unexpanded.sh"
    script.write_text(f"#!/bin/sh\n#SBATCH {line.replace('{}', str(image_sqfs))}\necho on the host\n")
    done = sh(f"sbatch {script}")
    assert (done.returncode, done.stdout) == (64, "")
    assert re.fullmatch(
        rf"slurm-ch: error: --ch-.*: {re.escape(word)} is not expanded here, and no shell .*\n", done.stderr
    )
    # The shell does it, and the file is not here.
    assert sh("srun --test-only --ch-image=$HOME/foo.sqfs true").returncode == 0


def test_colons_and_commas_of_binds(good: Good, world_tmp: Path, image_sqfs: Path) -> None:
    odd = world_tmp / "in:a,bind"
    odd.mkdir()
    (odd / "file").write_text("odd\n")
    at = f"{world_tmp}/in\\:a\\,bind:/new/place:ro,/usr/share:/mnt"
    assert (
        good(f"srun '--ch-bind={at}' --ch-image=$IMG sh -c 'cat /new/place/file; ls -d /mnt/doc'") == "odd\n/mnt/doc\n"
    )
    script = world_tmp / "odd.sh"
    twice = at.replace("\\", "\\\\")
    script.write_text(
        f"#!/bin/sh\n#SBATCH --ch-image={image_sqfs}\n#SBATCH --ch-bind={twice}\ncat /new/place/file; srun cat /new/place/file\n"
    )
    out = good(f"cd /tmp; sbatch-wait -o $HOME/out.txt {script}; cat $HOME/out.txt; rm $HOME/out.txt")
    assert out.splitlines()[1:] == ["odd", "odd"]
