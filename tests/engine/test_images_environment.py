# SPDX-License-Identifier: Apache-2.0
"""The image's own environment, command and directory, from each place that may have them, by option or by default."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_ch.images import additions
from tests.small_images import squash

from .conftest import SLURM_CH, Run, settings
from .test_like_ch_run import OURS

Good = Callable[..., str]
Fails = Callable[..., str]
Make = Callable[..., Path]

# All of it, whatever is in the values.
ENVIRON = "/proc/self/environ"


@pytest.fixture
def make(world_tmp: Path, image_dir: Path, tmp_path: Path) -> Iterator[Make]:
    """Make an image with more files in it, given by path and text."""
    made: list[Path] = []

    def call(files: dict[str, str | bytes], form: str = "directory") -> Path:
        copy = world_tmp / f"{tmp_path.name}-{len(made)}"
        made.append(copy)
        subprocess.run(["cp", "-a", image_dir, copy], check=True)
        for name, text in files.items():
            path = copy / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
            path.chmod(0o755)
        return squash(copy, copy.with_suffix(".sqfs")) if form == "SquashFS" else copy

    yield call
    for copy in made:
        subprocess.run(["rm", "-rf", copy, copy.with_suffix(".sqfs")], check=True)


def pulled(*env: str, directory: str = "", command: tuple[str, ...] = ()) -> dict[str, str | bytes]:
    """Return the files that `slurm-ch pull` adds to an image."""
    config = additions.Config()
    config.env, config.directory, config.command = list(env), directory, list(command)
    files: dict[str, str | bytes] = {
        "ch/environment": "".join(line + "\n" for line in env if "\n" not in line),
        "ch/environment0": "".join(line + "\0" for line in env),
        "ch/metadata.json": additions.metadata(config, {"reference": "docker://x"}),
    }
    if command:
        files["ch/cmd"] = additions.strings_file(list(command))
    return files


def apptainers(script: str) -> dict[str, str | bytes]:
    return {
        ".singularity.d/env/01-base.sh": "#!/bin/sh\nif true; then export NEVER=1; fi\n",
        ".singularity.d/env/10-docker2singularity.sh": '#!/bin/sh\nexport PATH="/opt/a:/usr/bin:/bin"\nexport KEEP="${KEEP:-"image"}"\n',
        ".singularity.d/env/90-environment.sh": script,
        ".singularity.d/runscript": '#!/bin/sh\necho run "$@"\n',
    }


ENROOTS: dict[str, str | bytes] = {
    "etc/environment": 'PATH=/opt/e:/usr/bin:/bin\nTEXT=a "b" $c\n',
    "etc/rc": '# label x\n\nmkdir -p "/srv/work" 2> /dev/null\ncd "/srv/work" && unset OLDPWD || exit 1\n\n'
    "if [ -s /etc/rc.local ]; then\n    . /etc/rc.local\nfi\n\nif [ $# -gt 0 ]; then\n    exec 'echo' 'e' \"$@\"\nelse\n"
    "    exec 'echo' 'e' 'own'\nfi\n",
    "srv/work/.there": "",
}


def variables(text: str) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in text.split("\0") if line)


# ---- By itself ----


@pytest.mark.parametrize("form", ["directory", "SquashFS"])
def test_a_pulled_image_brings_its_environment(good: Good, make: Make, user: str, form: str) -> None:
    image = make(
        pulled("PATH=/opt/i:/usr/bin", "TWO=a\nb", "RAW=$HOME \\$x", "KEEP=image", "OMP_NUM_THREADS=1", "PMI_RANK=9"),
        form,
    )
    env = {**settings(user)["env"], "KEEP": "user", "OMP_NUM_THREADS": "4"}  # type: ignore[dict-item]
    found = variables(good(image, "--", "cat", ENVIRON, env=env))
    assert found["PATH"] == "/opt/i:/usr/bin:/bin"
    # As they are: what a Dockerfile says was expanded when the image was built.
    assert (found["TWO"], found["RAW"], found["KEEP"]) == ("a\nb", "$HOME \\$x", "image")
    # The job's layout is the job's.
    assert (found["OMP_NUM_THREADS"], found["PMI_RANK"]) == ("4", "9")


def test_what_counts_more_than_the_images(good: Good, make: Make, user: str) -> None:
    image = make(pulled("A=image", "B=image", "C=image", "SLURM_CH_BIND=/etc", "SLURM_PROCID=7"))
    env = {**settings(user)["env"], "SLURM_PROCID": "3", "C": "given", "D": "given", "SLURM_CH_EXPORTED": "ALL,C=given"}  # type: ignore[dict-item]
    found = variables(good("--set-env=A=$A:user", "--unset-env=B", image, "--", "cat", ENVIRON, env=env))
    assert (found["A"], "B" in found, found["C"], found["D"]) == ("image:user", False, "given", "given")
    assert ("SLURM_CH_BIND" in found, found["SLURM_PROCID"]) == (False, "3")


def test_image_env_no(good: Good, make: Make) -> None:
    image = make(pulled("A=image", "PATH=/nowhere"))
    found = variables(good("--image-env=no", image, "--", "cat", ENVIRON))
    assert ("A" in found, found["PATH"]) == (False, "/usr/bin:/bin")
    assert "A" in variables(good("--image-env=no", "--set-env", image, "--", "/bin/cat", ENVIRON))


def test_an_image_of_ch_image_gives_its_own_where_asked(good: Good, fails: Fails, make: Make) -> None:
    image = make({"ch/environment": "A=image:$HOME\n"})
    assert "A" not in variables(good(image, "--", "cat", ENVIRON))
    assert variables(good("--image-env", image, "--", "cat", ENVIRON))["A"].startswith("image:/home/")
    assert variables(good("--set-env", image, "--", "cat", ENVIRON))["A"] == "image:/root"
    nothing = make({})
    assert fails(31, "--image-env", nothing, "--", "true") == f"--image-env: {nothing} has no environment of its own"
    assert "neither yes nor no" in fails(64, "--image-env=x", nothing, "--", "true")


@pytest.mark.parametrize("words", [[], ["--set-env"], ["--image-env"]])
def test_apptainers_environment(good: Good, make: Make, user: str, words: list[str]) -> None:
    image = make(apptainers("export NEW=1 'OTHER=a b'\nexport LIBS=/x/lib:$LIBS\n"))
    env = {**settings(user)["env"], "KEEP": "user", "LIBS": "/mine"}  # type: ignore[dict-item]
    found = variables(good(*words, image, "--", "cat", ENVIRON, env=env))
    assert (found["PATH"], found["KEEP"], found["NEW"], found["OTHER"]) == ("/opt/a:/usr/bin:/bin", "user", "1", "a b")
    assert ("NEVER" in found, found["LIBS"].startswith("/x/lib:"), found["LIBS"].endswith("/mine")) == (
        False,
        True,
        True,
    )
    assert good(image, "--", "-", "a b", "c") == "run a b c\n"


@pytest.mark.parametrize("words", [[], ["--set-env"], ["--image-env"], ["--image-env=no", "--set-env"]])
def test_what_only_a_shell_knows_is_warned_of(run: Run, make: Make, words: list[str]) -> None:
    image = make(apptainers("export A=1\nexport B=$(hostname)\nexport C=3\n"))
    done = run(*words, image, "--", "cat", ENVIRON)
    found = variables(done.stdout)
    assert (found["A"], "B" in found, found["C"]) == ("1", False, "3")
    assert "/.singularity.d/env/90-environment.sh of the image: line 2: only a shell can evaluate it" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["--set-env"], ["--image-env"]])
def test_enroots_environment_directory_and_command(good: Good, make: Make, words: list[str]) -> None:
    image = make(ENROOTS)
    found = variables(good(*words, image, "--", "cat", ENVIRON))
    assert (found["PATH"], found["TEXT"]) == ("/opt/e:/usr/bin:/bin", 'a "b" $c')
    assert good(image, "--", "-") == "e own\n"
    assert good(image, "--", "-", "a b", "c") == "e a b c\n"
    assert good("--set-env=image:/etc/environment", image, "--", "sh", "-c", "echo $PATH") == "/opt/e:/usr/bin:/bin\n"


def test_an_etc_environment_alone_is_given_where_asked(good: Good, make: Make) -> None:
    image = make({"etc/environment": '# PAM\nLANG="x y"\n'})
    assert variables(good(image, "--", "cat", ENVIRON))["LANG"] == "C.UTF-8"
    assert variables(good("--set-env", image, "--", "cat", ENVIRON))["LANG"] == "x y"


def test_what_an_image_has_there_by_chance(good: Good, run: Run, fails: Fails, make: Make) -> None:
    # A directory, what nobody may read, an init's script, names that no variable has.
    odd = make(
        {
            "etc/rc/x": "",
            "ch/metadata.json/x": "",
            ".singularity.d/env": "a file",
            "ch/environment0": "A B=1\0C=3\0=\0nothing\0\0",
        }
    )
    found = variables(good(odd, "--", "cat", ENVIRON))
    assert (found["C"], [name for name in found if " " in name]) == ("3", [])
    closed = make(
        {"etc/rc": "", "ch/environment0": "A=1\0", "ch/metadata.json": "{}", "etc/environment": 'LANG="x y"\n'}
    )
    for name in ("etc/rc", "ch/environment0", "ch/metadata.json"):
        (closed / name).chmod(0)
    assert "A" not in variables(good(closed, "--", "cat", ENVIRON))
    assert (
        "left out: /ch/environment0: can't read environment file: Permission denied"
        in run("-v", closed, "--", "true").stderr
    )
    assert "Permission denied" in fails(31, "--image-env", closed, "--", "true")
    init = make({"etc/rc": "#!/bin/sh\nexport A=1\n/sbin/start\n", "etc/environment": 'LANG="x y"\n'})
    found = variables(good(init, "--", "cat", ENVIRON))
    assert ("A" in found, found["LANG"]) == (False, "C.UTF-8")


# ---- The directory ----


@pytest.mark.row("CMD")
def test_the_images_directory(good: Good, make: Make) -> None:
    image = make({**pulled(directory="/srv/work", command=("pwd",)), "srv/work/.there": ""})
    assert good(image, "--", "-", cwd="/dev") == "/srv/work\n"
    assert good("-c", "/usr", image, "--", "-") == "/usr\n"
    assert good(image, "--", "pwd", cwd="/dev") == "/dev\n"
    assert good("--image-env=no", image, "--", "-", cwd="/dev") == "/srv/work\n"


@pytest.mark.row("CMD")
def test_where_the_callers_directory_is_not_in_the_container(run: Run, make: Make, world_tmp: Path) -> None:
    lost = world_tmp / "lost"
    lost.mkdir(exist_ok=True)
    for files in ({**pulled(directory="/srv/work"), "srv/work/.there": ""}, ENROOTS):
        assert run("-t", make(files), "--", "pwd", cwd=lost).stdout == "/srv/work\n"
    # One that isn't there is no error.
    assert run("-t", make(pulled(directory="/no/where")), "--", "pwd", cwd=lost).stdout == "/\n"


# ---- Files ----


@pytest.mark.row("--set-env")
def test_whose_file(run: Run, good: Good, fails: Fails, make: Make) -> None:
    path = "/etc/os-release"
    both = make({path.lstrip("/"): "ID=image\n", "etc/own-env": "ID=own\n"})
    host = dict(line.split("=", 1) for line in Path(path).read_text().splitlines())["ID"] + "\n"
    show = ("--", "sh", "-c", "echo $ID")
    done = run(f"--set-env={path}", both, *show)
    assert done.stdout == host
    both_said = f"--set-env={path}: the host's file is used, but the image has one of that name too: write --set-env=image:{path} for"
    assert both_said in done.stderr
    assert done.stderr.count("\n") == 1
    assert good(f"--set-env=image:{path}", both, *show) == "image\n"
    assert good(f"--set-env=host:{path}", both, *show) == host
    # The host's own, shown in the container, is no other.
    assert good("-b", path, f"--set-env={path}", both, *show) == host
    assert good("--set-env=/etc/own-env", both, *show) == "own\n"
    assert good("--set-env=image:/etc/own-env", both, *show) == "own\n"
    assert fails(31, f"--set-env=image:{path}x", both, *show).endswith(
        "can't read environment file: No such file or directory"
    )
    assert "no such file on the host" in fails(31, f"--set-env=host:{path}x", both, *show)


@pytest.mark.row("--set-env")
def test_files_as_people_write_them(good: Good, fails: Fails, image: Path, world_tmp: Path) -> None:
    file = world_tmp / "written"
    file.write_bytes(b'\xef\xbb\xbf# a comment\r\n  A=1\r\n\texport B="two words"\r\n\r\nexport C=$A/x\n')
    lines = good(f"--set-env={file}", image, "--", "env").splitlines()
    assert {"A=1", "B=two words", "C=1/x"} <= set(lines)
    for line in ("A B=1", "A = 1", "export A", "nothing"):
        file.write_text(f"# one\nX=1\n{line}\n")
        assert f"--set-env={file}: line 3" in fails(64, f"--set-env={file}", image, "--", "true")
    assert "the variable's name has a blank in it" in fails(64, "--set-env=A B=1", image, "--", "true")


# ---- Expansion ----


@pytest.mark.row("--set-env")
def test_expansion_anywhere(run: Run, good: Good, image: Path, user: str) -> None:
    env = {**settings(user)["env"], "A": "aa"}  # type: ignore[dict-item]
    out = good(
        "--set-env=ONE=/x/$A/y", "--set-env=TWO=${A}b:$NOPE:${NOPE}", r"--set-env=THREE=\$A-$A", image, "--", "sh", "-c",
        'echo "$ONE $TWO $THREE"', env=env,
    )  # fmt: skip
    assert out == "/x/aa/y aab $A-aa\n"
    done = run("--set-env=ONE=$(ls):$A", image, "--", "sh", "-c", 'echo "$ONE"', env=env)
    assert done.stdout == "$(ls):aa\n"
    assert done.stderr == (
        r"slurm-ch: warning: --set-env: ONE=$(ls):$A: the $ in $(ls):$A names no variable and stays as it is (\$ for a dollar)"
        "\n"
    )
    assert good("--env-no-expand", r"--set-env=ONE=$(ls)\$A", image, "--", "sh", "-c", 'echo "$ONE"') == "$(ls)\\$A\n"


# ---- As ch-run ----


def ch_run(user: str, *words: object, **env: str | None) -> subprocess.CompletedProcess[str]:
    given = {name: text for name, text in {**settings(user)["env"], **env}.items() if text is not None}  # type: ignore[dict-item]
    return subprocess.run(
        [*OURS, *map(str, words)], check=False, capture_output=True, text=True, timeout=30, **{**settings(user), "env": given},  # type: ignore[call-overload]
    )  # fmt: skip


def test_as_ch_run(user: str, image: Path, make: Make, world_tmp: Path) -> None:
    show = ("--", "/bin/sh", "-c", 'echo "$CH_RUNNING|$V"; tr "\\0" "\\n" < /proc/$$/environ | grep ^PATH=')
    done = ch_run(user, "--set-env=V=x/$USER:$USER", image, *show)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"Weird Al Yankovic|x/$USER:{user}\nPATH=/usr/bin:/bin\n",
        "",
    )
    done = ch_run(user, image, *show, PATH=None)
    assert (done.returncode, done.stdout) == (1, "Weird Al Yankovic|\n")
    assert subprocess.run(
        [SLURM_CH, "run", str(image), *show], check=False, capture_output=True, text=True, timeout=30,
        **{**settings(user), "env": {"HOME": "/"}},  # type: ignore[arg-type, call-overload]
    ).stdout == f"{image}|\nPATH=/bin\n"  # fmt: skip
    assert "A=" not in ch_run(user, make(pulled("A=1")), "--", "env").stdout


@pytest.mark.parametrize(
    ("words", "code"),
    [(["IMG", "--", "nothing"], 49), (["IMG", "--", "/etc"], 49), (["/nonexistent", "--", "true"], 31), (["-b", ":/x", "IMG", "--", "true"], 31),
     (["IMG"], 31), (["IMG", "--", "-"], 31), (["--no-such-option"], 64), (["IMG", "--", "sh", "-c", "exit 127"], 127)],
)  # fmt: skip
def test_exit_codes_as_ch_run(user: str, image_dir: Path, words: list[str], code: int) -> None:
    done = ch_run(user, *(str(image_dir) if word == "IMG" else word for word in words))
    assert done.returncode == code, done
    assert done.stderr.count("\n") == (code != 127)


def test_version_as_ch_run(user: str) -> None:
    done = ch_run(user, "--version")
    assert (done.returncode, done.stdout) == (0, "")
    assert all(part.isdigit() for part in done.stderr.strip().split(".")[:2])
