# SPDX-License-Identifier: Apache-2.0
"""docs/users.rst's table, "What the command sees": each row of our column holds for steps on a cluster."""

from __future__ import annotations

import contextlib
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.sandbox.cluster import Cluster
from tests.documented import ROOT
from tests.small_images import make_image, squash

IMAGES_USERS = "daemon:x:1:1:an image's own:/usr/sbin:/bin/false\n"


def rows() -> dict[str, str]:
    """Return what our column says by the name of the line."""
    page = (ROOT / "docs/users.rst").read_text()
    table = page[page.index(".. list-table::") : page.index("\nTwo rules")]
    found = re.findall(r"^   \* - (.*)\n     - ((?:.|\n(?!     - ))*)", table, re.M)
    return {name: " ".join(text.split()) for name, text in found[1:]}


class Step:
    """Runs lines on the cluster as the user."""

    def __init__(self, cluster: Cluster, user: str, place: Path, image: Path) -> None:
        self.cluster = cluster
        self.user = user
        self.home = pwd.getpwnam(user).pw_dir
        self.place = place
        self.image = image

    def run(self, line: str, directory: str = "/", **env: str) -> subprocess.CompletedProcess[str]:
        settled = {**self.cluster.environ(self.user), "PATH": "/usr/bin:/bin", "PWD": directory, **env}
        line = line.replace("srun", f"srun --ch-image={self.image}")
        done = self.cluster.run(["bash", "-ec", line], user=self.user, timeout=60, env=settled, cwd=directory)
        done.stderr = re.sub("^srun: job .*\n", "", done.stderr, flags=re.M)
        return done

    def sees(self, line: str, directory: str = "/", **env: str) -> str:
        done = self.run(line, directory, **env)
        assert (done.returncode, done.stderr) == (0, ""), (line, done)
        return done.stdout.rstrip("\n")

    def fails(self, line: str) -> str:
        done = self.run(line)
        assert done.returncode != 0, (line, done)
        return done.stderr


def owned(user: str, path: Path) -> Path:
    subprocess.run(["chown", "-hR", f"{user}:", path], check=True)
    return path


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that no container shows by itself."""
    path = Path(tempfile.mkdtemp(prefix="slurm-ch-table-", dir="/opt"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def step(user: str, place: Path) -> Iterator[Step]:
    """A cluster whose site binds a directory, and an image that brings users and an environment."""
    for name in ("scratch", "site", "elsewhere"):
        (place / name).mkdir(parents=True)
        (place / name / "here").write_text(name + "\n")
    root = make_image(place / "directory", "image")
    (root / "etc/passwd").write_text(IMAGES_USERS)
    (root / "etc/group").write_text("daemon:x:1:\n")
    (root / "ch").mkdir()
    (root / "ch/image.json").write_text("{}")
    (root / "ch/environment").write_text(
        "FROM_IMAGE=image\nBOTH=image\nSLURM_PROCID=image\nOMP_NUM_THREADS=image\nMKL_NUM_THREADS=image\n"
    )
    image = squash(root, place / "foo.sqfs")
    with Cluster(nodes=1, cpus=4, plugstack_lines=[f"required {paths.PLUGIN} bind={place}/site:/site"]) as own:
        yield Step(own, user, owned(user, place), image)


def image(s: Step) -> None:
    for kind in ("foo.sqfs", "directory"):
        assert "Read-only file system" in s.fails(f"srun --ch-image={s.place}/{kind} touch /new")
    assert (
        s.sees("srun --ch-write-fake sh -c 'echo x > /new; cat /new'; srun sh -c 'test -e /new || echo gone'")
        == "x\ngone"
    )
    over = f"--ch-overlay={s.place}/scratch/over"
    assert s.sees(f"srun {over} touch /new; srun {over} ls /new") == "/new"
    write = f"--ch-write --ch-image={s.place}/directory"
    assert s.sees(f"srun {write} touch /new; ls {s.place}/directory/new; rm {s.place}/directory/new").endswith("/new")


def working_directory(s: Step) -> None:
    scratch = f"{s.place}/scratch"
    assert s.sees(f"srun --ch-bind={scratch} sh -c 'pwd; cat here'", scratch) == f"{scratch}\nscratch"
    assert s.sees(f"srun --ch-bind={scratch}:/mnt/s sh -c 'pwd; cat here'", scratch) == "/mnt/s\nscratch"
    (s.place / "link").symlink_to("scratch")
    assert (
        s.sees(f"cd {s.place}/link; srun --ch-write-fake --ch-bind={scratch}:{s.place}/link pwd") == f"{s.place}/link"
    )
    # Shown by both of its names.
    for name in ("link", "scratch"):
        assert s.sees(f"cd {s.place}/{name}; srun --ch-bind={s.place} sh -c 'echo $PWD'") == f"{s.place}/{name}"
    lost = (
        f"slurm-ch: n1: warning: the working directory {scratch} is not in the container; --ch-bind={scratch} shows it;"
    )
    done = s.run(f"cd {scratch}; srun --ch-private-tmp pwd")
    assert (done.stdout, done.stderr) == ("/\n", f"{lost} starting in /\n")


def home_directory(s: Step) -> None:
    assert s.sees(f"srun sh -c 'ls -d {s.home} 2>&1 || true'").startswith("ls: ")
    assert s.sees(f"srun --ch-home ls -d {s.home} /home/$USER", HOME=s.home) == f"{s.home}\n/home/{s.user}"
    elsewhere = f"{s.place}/elsewhere"
    out = s.sees(f"srun --ch-home cat {elsewhere}/here /home/{s.user}/here", HOME=elsewhere)
    assert out == "elsewhere\nelsewhere"


def home_variable(s: Step) -> None:
    look = f"sh -c 'echo $HOME; grep ^{s.user}: /etc/passwd | cut -d: -f6'"
    assert s.sees(f"srun {look}") == "/root\n/root"
    assert s.sees(f"srun --ch-home {look}") == f"{s.home}\n{s.home}"
    elsewhere = f"{s.place}/elsewhere"
    for shown in ("--ch-home", f"--ch-bind={elsewhere}"):
        assert s.sees(f"srun {shown} {look}", HOME=elsewhere) == f"{elsewhere}\n{elsewhere}"
    (s.place / "directory/root").rmdir()
    assert s.sees(f"srun --ch-image={s.place}/directory {look}") == "/\n/"
    owned(s.user, s.place / "directory")
    (s.place / "directory/root").mkdir()


def users(s: Step) -> None:
    passwd = s.sees("srun cat /etc/passwd").splitlines()
    assert (passwd[0].partition(":")[0], passwd[1] + "\n") == (s.user, IMAGES_USERS)
    group = s.sees("srun cat /etc/group").splitlines()
    assert group[1] == "daemon:x:1:"
    assert int(group[0].split(":")[2]) == pwd.getpwnam(s.user).pw_gid
    assert s.sees("srun --ch-no-passwd cat /etc/passwd") + "\n" == IMAGES_USERS


def temporary(s: Step) -> None:
    where = "stat -c %d:%i /tmp /var/tmp"
    assert (
        s.sees(f"srun {where}")
        == subprocess.run(where.split(), check=True, capture_output=True, text=True).stdout.strip()
    )
    assert (
        s.sees("srun --ch-private-tmp sh -c 'touch /tmp/a /var/tmp/b; ls -A /tmp /var/tmp'")
        == "/tmp:\na\n\n/var/tmp:\nb"
    )


def tmpdir(s: Step) -> None:
    own = f"{s.place}/tmp-of-a-job"
    for name in ("TMPDIR", "TMP", "TEMP", "TEMPDIR"):
        line = f"mkdir {own}; echo x > {own}/x; srun --export=ALL,{name}={own} sh -c 'echo ${name}; cat ${name}/x'; rm -r {own}"
        assert s.sees(line) == f"{own}\nx"
        done = s.run(f"srun --export=ALL,{name}=/no/such sh -c 'echo ${name}'")
        assert (done.stdout, done.returncode) == ("/tmp\n", 0)
        if name != "TMPDIR":
            assert f"{name}=/no/such: no such directory in the container; using /tmp" in done.stderr
        else:  # Slurm has put its own in its place, and says so
            assert "/no/such" in done.stderr


def devices(s: Step) -> None:
    mounts = s.sees("srun cat /proc/self/mountinfo").splitlines()
    for path in ("/dev", "/proc", "/sys"):
        assert [one.split()[5].split(",")[0] for one in mounts if one.split()[4] == path] == ["ro"]
    assert s.sees("srun sh -c 'test -w /dev/shm && test -w /dev/null && ls /proc/self/status'") == "/proc/self/status"
    assert (
        s.sees("srun cat /proc/sys/kernel/random/boot_id")
        == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    )
    assert s.sees("srun ls /sys").split() == sorted(path.name for path in Path("/sys").iterdir())


def name_service(s: Step) -> None:
    for path in ("/etc/hosts", "/etc/resolv.conf"):
        assert s.sees(f"srun cat {path}") == Path(path).read_text().rstrip("\n")


def time_zone(s: Step) -> None:
    show = "srun sh -c 'date +%Z%z; tail -n 1 /etc/localtime'"
    zone, zones = s.place / "directory/etc/localtime", Path("/usr/share/zoneinfo")
    with elsewhere(s.place, zones / "Asia/Tokyo"):
        assert s.sees(show) == "JST+0900\nJST-9"
        zone.write_bytes((zones / "America/New_York").read_bytes())
        assert s.sees(show.replace("srun", f"srun --ch-image={s.place}/directory")).endswith("\nEST5EDT,M3.2.0,M11.1.0")
    zone.unlink()


@contextlib.contextmanager
def elsewhere(place: Path, zone: Path) -> Iterator[None]:
    """Have the machine in another time zone: UTC is what an image without any has anyway."""
    subprocess.run(["cp", "-a", "/etc", place / "etc"], check=True)
    (place / "etc/localtime").unlink(missing_ok=True)
    (place / "etc/localtime").symlink_to(zone)
    subprocess.run(["mount", "--bind", place / "etc", "/etc"], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", "/etc"], check=True)


def locale(s: Step) -> None:
    said = "LANG=en_US.UTF-8: the image has no such locale"
    told = s.run("srun --ch-verbose true", LANG="en_US.UTF-8", LC_ALL="").stderr
    assert said in told and "--ch-set-env=LANG=C.UTF-8)" in told
    assert said not in s.run("srun true", LANG="en_US.UTF-8", LC_ALL="").stderr
    assert s.sees("srun sh -c 'ls -d /usr/lib/locale 2>&1 || true'").startswith("ls: ")


def data(s: Step) -> None:
    scratch, elsewhere = f"{s.place}/scratch", f"{s.place}/elsewhere"
    bound = f"--ch-bind={scratch}:/made/place,{elsewhere}:/mnt"
    assert s.sees(f"srun {bound} cat /site/here /made/place/here /mnt/here") == "site\nscratch\nelsewhere"
    assert s.sees("srun sh -c 'test -e /made || echo none'") == "none"


def environment(s: Step) -> None:
    look = "sh -c 'echo $MINE $BOTH $FROM_IMAGE $SLURM_PROCID $OMP_NUM_THREADS $MKL_NUM_THREADS'"
    env = {"MINE": "mine", "BOTH": "mine", "OMP_NUM_THREADS": "mine", "MKL_NUM_THREADS": "mine"}
    asked = "--ch-image-env"  # an image of ch-image's doesn't bring it by itself
    assert s.sees(f"srun {asked} {look}", **env) == "mine image image 0 mine mine"
    assert s.sees(f"srun {asked}=no {look}", **env) == "mine mine 0 mine mine"


def ids(s: Step) -> None:
    entry = pwd.getpwnam(s.user)
    assert s.sees("srun sh -c 'id -u; id -g'") == f"{entry.pw_uid}\n{entry.pw_gid}"
    assert s.sees("srun --ch-uid=0 --ch-gid=0 sh -c 'id -u; id -g'") == "0\n0"


LINES: dict[str, Callable[[Step], None]] = {
    "image": image,
    "working directory": working_directory,
    "home directory": home_directory,
    "``HOME``, and your home in ``passwd``": home_variable,
    "``/etc/passwd``, ``/etc/group``": users,
    "``/tmp``, ``/var/tmp``": temporary,
    "``TMPDIR``": tmpdir,
    "``/dev``, ``/proc``, ``/sys``": devices,
    "name service": name_service,
    "time zone": time_zone,
    "locale": locale,
    "scratch, data": data,
    "environment": environment,
    "ids": ids,
}


def test_every_line_is_tried() -> None:
    assert list(rows()) == list(LINES)
    assert all(rows().values())


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_true(step: Step, line: str) -> None:
    LINES[line](step)
