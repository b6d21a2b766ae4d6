# SPDX-License-Identifier: Apache-2.0
"""The command's surroundings without options: directory, home, users, temporary files."""

from __future__ import annotations

import errno
import hashlib
import os
import pwd
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_ch.engine import container
from tests import leftovers

from .conftest import SLURM_CH, TIMEOUT, Run, mountinfo, settings

Good = Callable[..., str]
Fails = Callable[..., str]

WHERE = ("--", "sh", "-c", "pwd; echo $PWD; cat here 2> /dev/null")
CH_RUN = [sys.executable, "-c", "from slurm_ch.cli.main import ch_run; ch_run()"]


@pytest.fixture
def ch_run(user: str) -> Iterator[Run]:
    """Run the words under the name of ch-run."""
    before = leftovers.Snapshot(1)

    def call(*words: object, **kw: object) -> subprocess.CompletedProcess[str]:
        keywords = {**settings(user), "stdin": subprocess.DEVNULL, "timeout": TIMEOUT, **kw}
        return subprocess.run([*CH_RUN, *map(str, words)], check=False, capture_output=True, text=True, **keywords)  # type: ignore[call-overload, no-any-return]

    yield call
    before.wait_until_clean()


@pytest.fixture
def of_users(world_tmp: Path, image_dir: Path, user: str) -> Path:
    """An image with users of its own."""
    copy = world_tmp / "with-users"
    if not copy.exists():
        subprocess.run(["cp", "-a", image_dir, copy], check=True)
        (copy / "etc/passwd").write_text(
            "root:x:0:0:root:/root:/bin/ash\npostgres:x:70:70::/var/lib/postgresql:/bin/sh\n"
        )
        (copy / "etc/group").write_text("root:x:0:root\nman:x:15:\n")
    return copy


def env(user: str, **more: object) -> dict[str, str]:
    return {**settings(user)["env"], **{name: str(value) for name, value in more.items()}}  # type: ignore[dict-item]


# ---- The working directory ----


def test_the_directory_by_the_name_that_its_user_knows(good: Good, image: Path, outside: Path, user: str) -> None:
    run = f"{outside}/scratch/run"
    kw = {"cwd": run, "env": env(user, PWD=run)}
    assert good("-W", "-b", f"{outside}/scratch", image, *WHERE, **kw) == f"{run}\n{run}\nmine\n"
    assert good("-W", "-b", outside, image, *WHERE, **kw) == f"{run}\n{run}\nmine\n"


@pytest.mark.parametrize("pwd", ["unset", "elsewhere"])
def test_a_name_that_nobody_gave_is_found_by_the_binds(
    good: Good, image: Path, outside: Path, user: str, pwd: str
) -> None:
    """As with `srun -D LINK` or an sbatch script: PWD is not the real path."""
    kw = {"cwd": f"{outside}/scratch/run", "env": env(user, **({"PWD": "/srv"} if pwd == "elsewhere" else {}))}
    for bind, there in (
        (f"{outside}/scratch", f"{outside}/scratch/run"),
        (f"{outside}/data:/mnt", "/mnt/run"),
        (f"{outside}:/srv", "/srv/data/run"),
        (f"{outside}/data/run:/mnt", "/mnt"),
    ):
        assert good("-W", "-b", bind, image, *WHERE, **kw) == f"{there}\n{there}\nmine\n"


def test_a_directory_below_a_home_that_is_elsewhere(good: Good, image: Path, outside: Path, user: str) -> None:
    home = f"{outside}/scratch"
    for logical in (f"{home}/run", f"{outside}/data/run", "/srv"):
        seen = good("--home", image, *WHERE, cwd=f"{home}/run", env=env(user, HOME=home, PWD=logical))
        assert seen.splitlines()[2] == "mine", logical


def test_a_home_below_the_usual_one(good: Good, image: Path, user: str) -> None:
    """It is at its own path, and what is beside it is not shown."""
    usual = Path(pwd.getpwnam(user).pw_dir)
    assert usual == Path(f"/home/{user}")
    home = Path(tempfile.mkdtemp(dir=usual))
    try:
        (home / "run").mkdir()
        (home / "run/here").write_text("mine\n")
        subprocess.run(["chown", "-R", f"{user}:", home], check=True)
        seen = good("--home", image, *WHERE, cwd=home / "run", env=env(user, HOME=home))
        assert seen == f"{home}/run\n{home}/run\nmine\n"
        script = f"echo $HOME; ls -A {usual}; touch ~/new; grep ^{user}: /etc/passwd | cut -d: -f6"
        assert (
            good("--home", image, "--", "sh", "-c", script, env=env(user, HOME=home))
            == f"{home}\n{home.name}\n{home}\n"
        )
        assert (home / "new").exists()
    finally:
        shutil.rmtree(home)


def test_a_lost_directory_is_named_once_with_what_shows_it(run: Run, image: Path, outside: Path, user: str) -> None:
    done = run(image, *WHERE, cwd=f"{outside}/data/run")
    assert (done.returncode, done.stdout) == (1, "/\n/\n")
    assert done.stderr == (
        f"slurm-ch: warning: the working directory {outside}/data/run is not in the container;"
        f" --bind={outside}/data/run shows it; starting in /\n"
    )
    home = env(user, HOME=outside)
    assert "; --home shows it;" in run(image, "--", "true", cwd=f"{outside}/data/run", env=home).stderr


@pytest.mark.parametrize("name", ["a b", "c:d", "e,f", "it's", "$HOME", "back\\slash", '"q"', "ü", "~x", "*"])
def test_what_shows_a_lost_directory_can_be_typed(run: Run, image: Path, outside: Path, user: str, name: str) -> None:
    lost = outside / "data" / name
    lost.mkdir()
    (lost / "here").write_text("mine\n")
    said = run(image, "--", "true", cwd=lost).stderr
    remedy = said.partition("is not in the container; ")[2].partition(" shows it;")[0]
    done = run(*shlex.split(remedy), image, "--", "cat", "here", cwd=lost)
    assert (done.returncode, done.stdout, done.stderr) == (0, "mine\n", ""), said


def test_a_command_that_may_have_been_in_a_lost_directory_says_so(run: Run, image: Path, outside: Path) -> None:
    done = run(image, "--", "./app", cwd=f"{outside}/data")
    assert done.returncode == 127
    assert done.stderr.splitlines()[1] == (
        "slurm-ch: error: can't execute ./app: No such file or directory; the working directory"
        f" {outside}/data is not in the container; --bind={outside}/data shows it"
    )
    for command in ("/app", "app"):
        last = run(image, "--", command, cwd=f"{outside}/data").stderr.splitlines()[1]
        assert last == f"slurm-ch: error: can't execute {command}: No such file or directory"


def test_a_directory_of_the_images_by_the_same_name_is_another(run: Run, image: Path) -> None:
    done = run(image, "--", "pwd", cwd="/srv")
    assert done.stdout == "/srv\n"
    assert "the working directory /srv is not in the container; --bind=/srv shows it; starting in /srv" in done.stderr


def test_a_directory_that_was_asked_for_or_never_was_is_no_loss(
    good: Good, run: Run, image: Path, outside: Path
) -> None:
    assert good("-c", "/mnt", image, "--", "pwd", cwd=f"{outside}/data") == "/mnt\n"
    assert good("-t", image, "--", "pwd", cwd="/tmp") == "/tmp\n"
    assert good(image, "--", "pwd", cwd="/") == "/\n"
    assert good("/", "--", "pwd", cwd=f"{outside}/data") == f"{outside}/data\n"


def test_peers_of_a_join_are_told_once(image: Path, outside: Path, user: str) -> None:
    command = [SLURM_CH, "run", "--join-ct=3", "--join-tag=lost", str(image), "--", "pwd"]
    peers = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            **{**settings(user), "cwd": f"{outside}/data"},  # type: ignore[call-overload]
        )
        for _ in range(3)
    ]  # fmt: skip
    said = [peer.communicate(timeout=TIMEOUT) for peer in peers]
    assert [out for out, _ in said] == ["/\n"] * 3
    assert sum(err.count("working directory") for _, err in said) == 1


@pytest.mark.row("R1")
def test_ch_run_goes_to_the_root_without_a_word(ch_run: Run, image: Path, outside: Path) -> None:
    done = ch_run(image, "--", "pwd", cwd=f"{outside}/data/run")
    assert (done.stdout, done.stderr) == ("/\n", "")


# ---- Home and users ----

PASSWD = ("--", "sh", "-c", "echo $HOME; cat /etc/passwd; echo; cat /etc/group")


def own_line(user: str, home: str) -> str:
    ids = settings(user)
    return f"{user}:x:{ids['user']}:{ids['group']}::{home}:/bin/sh"


def test_the_images_own_users_stay(good: Good, of_users: Path, user: str) -> None:
    passwd, group = (of_users / "etc/passwd").read_text(), (of_users / "etc/group").read_text()
    ours = f"{user}:x:{settings(user)['group']}:\n"
    assert good(of_users, *PASSWD) == f"/root\n{own_line(user, '/root')}\n{passwd}\n{ours}{group}"
    assert good("--no-passwd", of_users, *PASSWD) == f"/root\n{passwd}\n{group}"
    # Root is there as it is, and nothing is mounted that couldn't be replaced.
    assert good("-u0", "-g0", of_users, *PASSWD) == f"/root\n{passwd}\n{group}"
    assert "/etc/passwd" not in mountinfo(good("-u0", "-g0", of_users, "--", "cat", "/proc/self/mountinfo"))


@pytest.mark.row("T5")
def test_ch_runs_users_are_its_own(ch_run: Run, of_users: Path, user: str) -> None:
    lines = ch_run(of_users, *PASSWD).stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["/root", "root", "nobody", user, "", "root", "nogroup", user]
    assert own_line(user, "/") in lines


def test_what_somebody_bound_there_stays(good: Good, of_users: Path, world_tmp: Path) -> None:
    (world_tmp / "passwd").write_text("mine\n")
    assert good("-b", f"{world_tmp}/passwd:/etc/passwd", of_users, "--", "cat", "/etc/passwd") == "mine\n"


def test_a_file_of_users_can_be_replaced_where_all_is_in_memory(good: Good, of_users: Path, user: str) -> None:
    """As useradd and groupadd do it."""
    script = "for f in passwd group; do cp /etc/$f /etc/$f+; echo new:x:9:9:::>>/etc/$f+; mv /etc/$f+ /etc/$f; done"
    out = good("-W", of_users, "--", "sh", "-c", f"{script}; cat /etc/passwd; grep -c new /etc/group")
    assert out.splitlines() == [
        own_line(user, "/root"),
        *(of_users / "etc/passwd").read_text().splitlines(),
        "new:x:9:9:::",
        "1",
    ]


def test_home_is_shown_at_its_own_path_too(good: Good, of_users: Path, outside: Path, user: str) -> None:
    home = f"{outside}/data"
    show = f"echo $HOME; ls /home/{user} {home}; sed -n 1p /etc/passwd"
    out = good("--home", of_users, "--", "sh", "-c", show, env=env(user, HOME=home)).splitlines()
    assert [line for line in out if line] == [home, f"/home/{user}:", "run", f"{home}:", "run", own_line(user, home)]


def test_a_home_that_is_bound_is_home(good: Good, of_users: Path, outside: Path, user: str) -> None:
    """As at a site that binds /home for all users."""
    kw = {"env": env(user, HOME=f"{outside}/data")}
    show = ("--", "sh", "-c", "echo $HOME; sed -n 1p /etc/passwd")
    assert good("-W", "-b", outside, of_users, *show, **kw) == f"{outside}/data\n{own_line(user, f'{outside}/data')}\n"
    assert good(of_users, *show, **kw) == f"/root\n{own_line(user, '/root')}\n"


def test_a_home_of_the_images_by_the_same_name_is_none(good: Good, of_users: Path, user: str) -> None:
    assert good(of_users, "--", "sh", "-c", "echo $HOME", env=env(user, HOME="/srv")) == "/root\n"


def test_a_rule_that_sets_home_sets_that_of_passwd(good: Good, of_users: Path, user: str) -> None:
    out = good("--set-env=HOME=/mnt", of_users, "--", "sh", "-c", "echo $HOME; sed -n 1p /etc/passwd")
    assert out == f"/mnt\n{own_line(user, '/mnt')}\n"


# ---- Temporary files ----

TEMPORARY = ("--", "sh", "-c", "echo $TMPDIR $TMP $TEMP $TEMPDIR; ls $TMPDIR; echo x > $TMPDIR/new")


def test_a_directory_of_a_jobs_own_for_temporary_files(good: Good, image: Path, world_tmp: Path, user: str) -> None:
    """Below /tmp, and elsewhere: it is where it was, and so is all else that is in /tmp."""
    ids = settings(user)
    for place in (world_tmp / "job", Path(tempfile.mkdtemp(dir="/opt"))):
        place.mkdir(exist_ok=True)
        os.chown(place, ids["user"], ids["group"])  # type: ignore[arg-type]
        (place / "mine").touch()
        work = world_tmp / "work"
        work.mkdir(exist_ok=True)
        kw = {"env": env(user, TMPDIR=place, TMP=place), "cwd": work}
        assert good(image, *TEMPORARY, **kw) == f"{place} {place}\nmine\n"
        assert (place / "new").exists()
        assert good(image, "--", "sh", "-c", f"pwd; ls {world_tmp}/image.sqfs", **kw).splitlines() == [
            str(work),
            f"{world_tmp}/image.sqfs",
        ]
        shutil.rmtree(place)


def test_a_link_in_tmp_for_temporary_files(good: Good, image: Path, world_tmp: Path, outside: Path, user: str) -> None:
    """The link leads out of /tmp, to a directory on the node's disk, for example."""
    (outside / "data/disk").mkdir()
    shutil.chown(outside / "data/disk", user)
    (outside / "data/disk/mine").touch()
    link = world_tmp / "link-to-disk"
    link.unlink(missing_ok=True)
    link.symlink_to(outside / "data/disk")
    for words in ((), ("-t",)):
        assert good(*words, image, *TEMPORARY, env=env(user, TMPDIR=link)) == f"{link}\nmine\n"
        (outside / "data/disk/new").unlink()


def test_a_directory_for_temporary_files_that_is_not_there(run: Run, image: Path, user: str) -> None:
    lost = {"TMPDIR": "/nonexistent/job", "TMP": "/nonexistent/job", "TEMP": "/srv", "TEMPDIR": "/etc/passwd"}
    done = run(image, "--", "sh", "-c", "echo $TMPDIR $TMP $TEMP $TEMPDIR", env=env(user, **lost))
    assert (done.returncode, done.stdout) == (0, "/tmp /tmp /srv /tmp\n")
    assert done.stderr.splitlines() == [
        f"slurm-ch: warning: {name}={lost[name]}: no such directory in the container; using /tmp"
        for name in ("TMPDIR", "TMP", "TEMPDIR")
    ]


@pytest.mark.parametrize("value", [".", "job", "./job", ""])
def test_a_relative_directory_for_temporary_files_is_left_alone(
    good: Good, image: Path, world_tmp: Path, user: str, value: str
) -> None:
    work = world_tmp / "relative"
    (work / "job").mkdir(parents=True, exist_ok=True)
    shutil.chown(work, user)
    shutil.chown(work / "job", user)
    out = good(image, "--", "sh", "-c", "echo $TMPDIR; : > ${TMPDIR:-.}/new", cwd=work, env=env(user, TMPDIR=value))
    assert out == f"{value}\n"
    (work / value / "new").unlink()


def test_a_private_tmp_is_where_temporary_files_go(good: Good, image: Path, world_tmp: Path, user: str) -> None:
    script = "echo $TMPDIR; ls -A /tmp /var/tmp; touch /tmp/x /var/tmp/x; stat -c %a /var/tmp"
    out = good("-t", image, "--", "sh", "-c", script, env=env(user, TMPDIR=world_tmp / "job"))
    assert out == "/tmp\n/tmp:\n\n/var/tmp:\n1777\n"


def test_var_tmp_is_the_hosts(good: Good, image_sqfs: Path, world_tmp: Path, image_dir: Path) -> None:
    out = good(image_sqfs, "--", "sh", "-c", "f=$(mktemp -p /var/tmp slurm-ch-XXXXXX); echo $f")
    assert Path(out.strip()).exists()
    Path(out.strip()).unlink()
    linked = world_tmp / "var-tmp-is-a-link"
    subprocess.run(["cp", "-a", image_dir, linked], check=True)
    (linked / "var/tmp").rmdir()
    (linked / "var/tmp").symlink_to("/tmp")
    name = f"{world_tmp.name}.1"
    for words in ((), ("-t",)):
        assert good(*words, linked, "--", "sh", "-c", f"touch /tmp/{name}; ls /var/tmp/{name}") == f"/var/tmp/{name}\n"
    Path("/tmp", name).unlink()
    without = world_tmp / "no-var-tmp"
    subprocess.run(["cp", "-a", image_dir, without], check=True)
    (without / "var/tmp").rmdir()
    assert good(without, "--", "ls", "/var") == "spool\n"


@pytest.mark.row("T6", "R2a")
def test_ch_run_makes_it_tmp(ch_run: Run, image: Path, world_tmp: Path, user: str) -> None:
    done = ch_run(
        image, "--", "sh", "-c", "ls -d /tmp/image.sqfs; echo ${TMPDIR-unset}", env=env(user, TMPDIR=world_tmp)
    )
    assert (done.stdout, done.stderr) == ("/tmp/image.sqfs\nunset\n", "")


def test_binds_below_a_private_tmp(good: Good, image: Path, world_tmp: Path) -> None:
    """Also at the path of the host's /tmp, and if the directories above it are missing."""
    (world_tmp / "shown").mkdir(exist_ok=True)
    (world_tmp / "shown/file").write_text("x\n")
    for bind in (f"{world_tmp}/shown", f"{world_tmp}/shown:/tmp/a/b", f"{world_tmp}/shown:/var/tmp/c"):
        there = bind.rpartition(":")[2]
        assert good("-t", "-b", bind, image, "--", "sh", "-c", f"cat {there}/file; ls -A /tmp | wc -l") == (
            f"x\n{int(there.startswith('/tmp'))}\n"
        )
    assert good("-t", "-b", f"{world_tmp}/shown", image, "--", "pwd", cwd=world_tmp / "shown") == f"{world_tmp}/shown\n"


def test_a_time_zone_that_can_t_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """None, or a file in place of a link, tell that it is not UTC; a disk's error tells nothing."""
    for number, expected in ((errno.ENOENT, False), (errno.EINVAL, False), (errno.EIO, None), (errno.ENOMEM, None)):

        def fails(path: str, number: int = number) -> str:
            raise OSError(number, os.strerror(number), path)

        monkeypatch.setattr(container.os, "readlink", fails)
        if expected is None:
            with pytest.raises(OSError, match="/etc/localtime"):
                container._is_utc()
        else:
            assert container._is_utc() is expected


@pytest.mark.parametrize("there", ["missing", "dangling", "own"])
def test_the_time_zone_is_the_hosts_where_the_image_has_none(
    image_dir: Path, world_tmp: Path, user: str, there: str
) -> None:
    """With UTC, the machine's zone need not be shown: an image has UTC anyway."""
    copy = world_tmp / f"zone-{there}"
    subprocess.run(["cp", "-a", image_dir, copy], check=True)
    if there == "dangling":
        (copy / "etc/localtime").symlink_to("/usr/share/zoneinfo/Etc/UTC")
    elif there == "own":
        (copy / "etc/localtime").write_text("own")
    script = (
        "import sys; from slurm_ch.engine import container; container._is_utc = lambda: False;"
        "from slurm_ch.cli.main import main; sys.argv[:1] = ['slurm-ch', 'run']; main()"
    )
    command = [sys.executable, "-c", script, str(copy), "--", "md5sum", "/etc/localtime"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT, **settings(user))  # type: ignore[call-overload]
    shown = copy / "etc/localtime" if there == "own" else Path("/etc/localtime")
    assert done.stdout.split()[0] == hashlib.md5(shown.read_bytes()).hexdigest()
