# SPDX-License-Identifier: Apache-2.0
"""The plugin where a user submits: options in, one request out."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm_ch import agreement
from slurm_ch.request import parsers, site

from .conftest import Fake, variables
from .made import write_script


def request(done: object) -> list[str]:
    assert done.returncode == 0, done  # type: ignore[attr-defined]
    return variables(done.stdout)["SLURM_CH_REQUEST"].splitlines()  # type: ignore[attr-defined]


def test_options_in_the_order_given(fake: Fake) -> None:
    words = [
        "--ch-image=i",
        "--ch-set-env=A=1",
        "--ch-unset-env=B",
        "--ch-set-env=C=2",
        "--ch-bind=/a",
        "--ch-bind=/b,/c",
    ]
    expected = ["image=i", "set-env=A=1", "unset-env=B", "set-env=C=2", "bind=/a", "bind=/b,/c"]
    assert request(fake("submit", *words)) == expected


def test_bare_options(fake: Fake) -> None:
    words = [
        "--ch-image=i",
        "--ch-write-fake",
        "--ch-private-tmp",
        "--ch-set-env",
        "--ch-verbose",
        "--ch-write-fake=1G",
    ]
    expected = ["image=i", "write-fake=12%", "private-tmp=yes", "set-env=/ch/environment", "verbose=1", "write-fake=1G"]
    assert request(fake("submit", *words)) == expected


def test_environment_defaults_come_first_and_give_way(fake: Fake) -> None:
    env = {
        "SLURM_CH_IMAGE": "e",
        "SLURM_CH_CD": "/e",
        "SLURM_CH_SET_ENV": "A=1\n\nB=2",
        "SLURM_CH_BIND": "/x,/y",
        "SLURM_CH_HOME": "",
    }
    assert request(fake("submit", **env)) == ["image=e", "bind=/x,/y", "cd=/e", "set-env=A=1", "set-env=B=2"]
    assert request(fake("submit", "--ch-image=i", "--ch-set-env=C=3", **env)) == [
        "bind=/x,/y",
        "cd=/e",
        "image=i",
        "set-env=C=3",
    ]


@pytest.mark.parametrize(("name", "prefix"), [("srun", "SLURM"), ("sbatch", "SBATCH"), ("salloc", "SALLOC")])
def test_each_command_has_its_own_defaults(fake: Fake, name: str, prefix: str) -> None:
    env = {f"{each}_CH_IMAGE": each for each in ("SLURM", "SBATCH", "SALLOC")}
    assert request(fake("submit", name=name, **env)) == [f"image={prefix}"]


@pytest.mark.parametrize(
    ("name", "prefix"), [("sbatch.real", "SBATCH"), ("submit", "SBATCH"), ("salloc-wrapped", "SALLOC")]
)
def test_a_command_under_another_name(fake: Fake, name: str, prefix: str) -> None:
    env = {f"{each}_CH_IMAGE": each for each in ("SLURM", "SBATCH", "SALLOC")}
    assert request(fake("submit", name=name, FAKE_CONTEXT="allocator", **env)) == [f"image={prefix}"]


def test_the_checker_knows_a_command_under_another_name(fake: Fake, world_tmp: Path) -> None:
    checker = write_script(world_tmp / "checker", "#!/bin/sh\necho 64 $(tr '\\0' '\\n' < /proc/self/fd/3 | grep ^cs)\n")
    arguments = f"python={checker}\nlauncher=/etc/hostname"
    done = fake("submit", "--ch-image=i", "--ch-cd=/", name="submit", FAKE_CONTEXT="allocator", FAKE_SITE=arguments)
    assert (done.returncode, done.stderr) == (64, "csbatch\n")


def test_no_image_means_no_request(fake: Fake) -> None:
    done = fake("submit", SLURM_CH_REQUEST="image=stale", SLURM_CH_PRIVATE_TMP="1")
    assert done.returncode == 0
    assert "SLURM_CH_REQUEST" not in variables(done.stdout)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--ch-bind=/a"], 64, "--ch-bind: --ch-image is missing"),
        (["--ch-image=i", "--ch-cd=/a\nb"], 64, "--ch-cd: the value has a newline in it"),
    ],
)
def test_refusals(fake: Fake, words: list[str], code: int, message: str) -> None:
    done = fake("submit", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr


def test_newline_in_a_default(fake: Fake) -> None:
    done = fake("submit", "--ch-image=i", SLURM_CH_CD="/a\n/b")
    assert done.returncode == 64
    assert "SLURM_CH_CD: the value has a newline in it" in done.stderr


def test_an_allocations_options_are_its_steps_defaults(fake: Fake) -> None:
    words = ["--ch-image=i", "--ch-set-env=A=1", "--ch-set-env=B=2", "--ch-cd=/a", "--ch-cd=/b"]
    found = variables(fake("submit", *words, name="sbatch", FAKE_CONTEXT="allocator").stdout)
    del found["SLURM_CH_REQUEST"]
    assert found == {"SLURM_CH_IMAGE": "i", "SLURM_CH_SET_ENV": "A=1\nB=2", "SLURM_CH_CD": "/b"}
    # srun publishes none: its options are its own step's.
    assert set(variables(fake("submit", *words).stdout)) == {"SLURM_CH_REQUEST"}


@pytest.mark.parametrize(
    "words",
    [
        ["image=i"],
        ["image=i", "image=j", "cd=/longer", "cd=/b"],
        ["set-env=A=1", "image=i", "unset-env=*", "set-env=B=a,b", "set-env=/f", "set-env0"],
        ["bind=/a,/b:/c", "image=i", "bind=/d", "device=k\\,x", "home", "write-fake"],
        ["image=i", "private-tmp=no", "private-tmp", "relay", "verbose", "verbose=2", "uid=0"],
    ],
)
def test_both_sides_make_the_same_defaults_of_a_request(fake: Fake, words: list[str]) -> None:
    # sbatch's plugin in C, before the job; the relay's launcher in Python, on the node.
    given = [f"--ch-{word}" for word in words]
    found = variables(fake("submit", *given, name="sbatch", FAKE_CONTEXT="allocator").stdout)
    request = parsers.parse_request(found.pop(agreement.REQUEST_VARIABLE))
    assert found == site.as_defaults(request)


def test_what_slurm_hands_on_is_dropped(fake: Fake) -> None:
    env = {"SLURM_SPANK__SLURM_SPANK_OPTION_slurm_ch_ch_set_env": "x", "_SLURM_SPANK_OPTION_slurm_ch_ch_image": "x"}
    assert set(variables(fake("submit", "--ch-image=i", **env).stdout)) == {"SLURM_CH_REQUEST"}


@pytest.mark.parametrize(
    ("words", "marked"), [(["--multi-prog"], True), (["--multi"], True), (["-m"], False), ([], False)]
)
def test_multi_prog_is_marked(fake: Fake, words: list[str], marked: bool) -> None:
    # After an option of the fake, at the place of srun's own options.
    done = fake("submit", "--ch-image=i", name=words[0] if words else "srun")
    assert ("SLURM_CH_MULTI_PROG" in variables(done.stdout)) is marked


def test_multi_prog_by_its_variable(fake: Fake) -> None:
    assert "SLURM_CH_MULTI_PROG" in variables(fake("submit", "--ch-image=i", SLURM_SRUN_MULTI="1").stdout)


def test_the_command_is_guarded(fake: Fake) -> None:
    env = {"FAKE_COMMAND": "app", "SLURM_CH_COMMAND": "stale"}
    found = variables(fake("submit", "--ch-image=i", **env).stdout)
    # A word that only looks like --multi-prog makes no difference.
    again = variables(fake("submit", "--ch-image=i", name="--mu", FAKE_WORD="word", **env).stdout)
    assert again == {**found, "WORD": "word", "SLURM_CH_MULTI_PROG": "1"}
    assert found["COMMAND"].startswith("/proc/no-slurm_ch-plugin")
    assert found["SLURM_CH_COMMAND"] == "app"


def test_a_command_that_needs_no_guard(fake: Fake) -> None:
    found = variables(fake("submit", FAKE_COMMAND="app", FAKE_WORD="0 x", SLURM_CH_COMMAND="stale").stdout)
    assert found["COMMAND"] == "app"
    assert "SLURM_CH_COMMAND" not in found


MULTI = {"SLURM_SRUN_MULTI": "1", "FAKE_SITE": "ch_join=/x/ch-join", "SLURM_CH_COMMAND": "stale"}


@pytest.mark.parametrize(
    ("text", "through"),
    [
        ("0 app\n", "0 /x/ch-join app\n"),
        ("# a\n\n \t0-1,3\tapp 'b c' \\d", "# a\n\n \t0-1,3 /x/ch-join\tapp 'b c' \\d"),
        ("*  ./app %t\n#\n1 b\n2", "* /x/ch-join  ./app %t\n#\n1 /x/ch-join b\n2 /x/ch-join"),
    ],
)
def test_the_commands_of_multi_prog_go_through_ch_join(fake: Fake, world_tmp: Path, text: str, through: str) -> None:
    conf = world_tmp / "through.conf"
    conf.write_text(text)
    found = variables(fake("submit", "--ch-image=i", FAKE_COMMAND=conf, FAKE_WORD=text, **MULTI).stdout)
    assert (found["COMMAND"], found["WORD"]) == (str(conf), through)
    assert found["SLURM_CH_MULTI_PROG"] == "/x/ch-join"
    assert "SLURM_CH_COMMAND" not in found
    # If Slurm puts ch-join there on the node, the text stays unchanged.
    found = variables(fake("submit", "--ch-image=i", way="api", FAKE_COMMAND=conf, FAKE_WORD=text, **MULTI).stdout)
    assert (found["WORD"], found["SLURM_CH_MULTI_PROG"]) == (text, "1")


@pytest.mark.parametrize(
    ("text", "word", "reason"),
    [
        ("0 a\\\nb\n", None, "a backslash at a line's end"),
        ("0 a\n", "0 b\n", "what can't be read twice"),
        ("0 a\n", "0 a", "what can't be read twice"),
    ],
)
def test_what_cannot_go_through_ch_join(fake: Fake, world_tmp: Path, text: str, word: str | None, reason: str) -> None:
    conf = world_tmp / "not-through.conf"
    conf.write_text(text)
    done = fake("submit", "--ch-image=i", FAKE_COMMAND=conf, FAKE_WORD=word or text, **MULTI)
    assert done.returncode == 64
    assert f"--ch-image and --multi-prog with {reason} need Slurm 23.02.5 or later" in done.stderr


@pytest.mark.parametrize(
    ("verdict", "code", "stderr"),
    [
        ("64 slurm-ch: error: so\n", 64, "slurm-ch: error: so\n"),
        ("", 0, ""),
        ("Traceback", 0, ""),
        ("0 no error\n", 0, ""),
        ("64", 0, ""),
        ("300 x\n", 0, ""),
        ("31 " + "x" * 100000, 31, "x" * 8188),
    ],
)
def test_the_checkers_verdict(fake: Fake, world_tmp: Path, verdict: str, code: int, stderr: str) -> None:
    said = world_tmp / "verdict"
    said.write_text(verdict)
    checker = write_script(world_tmp / "checker", f"#!/bin/sh\necho noise >&2\ncat {said}\n")
    done = fake("submit", "--ch-image=i", "--ch-cd=/", FAKE_SITE=f"python={checker}\nlauncher=/etc/hostname")
    assert (done.returncode, done.stderr) == (code, stderr)


def test_a_plain_good_image_needs_no_checker(fake: Fake, world_tmp: Path) -> None:
    checker = write_script(world_tmp / "checker", "#!/bin/sh\necho 64 asked\n")
    (world_tmp / "plain.sqfs").write_bytes(b"hsqs")
    (world_tmp / "plain.txt").write_bytes(b"text")
    site = f"python={checker}\nlauncher=/etc/hostname"
    plain = f"--ch-image={world_tmp}/plain.sqfs"

    def asked(*words: str, more: str = "") -> bool:
        return fake("submit", *words, FAKE_SITE=site + more).returncode == 64

    assert not asked(plain)
    assert asked(f"--ch-image={world_tmp}")  # a directory without programs
    (world_tmp / "plain/bin").mkdir(parents=True)
    assert not asked(f"--ch-image={world_tmp}/plain")
    assert not asked("--ch-image=/not/here", "--ch-private-tmp")
    assert asked(f"--ch-image={world_tmp}/plain.txt")
    assert asked("--ch-image=")
    assert asked(plain, "--ch-write")
    assert asked(plain, "--ch-private-tmp=x")
    assert not asked(plain, "--ch-private-tmp", "--ch-no-passwd")
    assert asked(plain, "--ch-home")
    assert asked(plain, "--ch-cd=/")
    assert asked(plain, more="\nforbid=cd")
    assert asked(plain, more="\ndefault=cd=/")


def test_a_failing_registration(fakes: object, fake: Fake) -> None:
    assert fake("remote", 1, 0, "/bin/true", FAKE_FAIL="1").returncode == 2


@pytest.mark.parametrize(
    ("name", "env", "said"),
    [
        ("--container", {}, "--container"),
        ("--container=b", {}, "--container"),
        ("--conta", {}, "--conta"),
        ("--container-id=b", {}, "--container-id"),
        ("--container-type=b", {}, "--container-type"),
        ("--runtime=b", {}, "--runtime"),
        ("--cont", {}, ""),
        ("--containers", {}, ""),
        ("--runtime-of-mine=b", {}, ""),
        ("srun", {"SRUN_CONTAINER": "b"}, "SRUN_CONTAINER"),
        ("srun", {"SLURM_CONTAINER_ID": "b"}, "SLURM_CONTAINER_ID"),
        ("srun", {"SLURM_CONTAINER": "", "SBATCH_CONTAINER": "b"}, ""),
        ("sbatch", {"SBATCH_CONTAINER": "b"}, "SBATCH_CONTAINER"),
        ("salloc", {"SALLOC_CONTAINER_ID": "b"}, "SALLOC_CONTAINER_ID"),
        ("salloc", {"SLURM_CONTAINER": "b"}, ""),
    ],
)
def test_a_container_of_slurms_own_as_well(fake: Fake, name: str, env: dict[str, str], said: str) -> None:
    done = fake("submit", "--ch-image=i", name=name, **env)
    words = f"slurm_ch: --ch-image and {said}: each makes a container; give one of them"
    assert (done.returncode, words in done.stderr) == ((64, True) if said else (0, False)), done
    # Without an image it doesn't matter.
    assert fake("submit", name=name, **env).returncode == 0
