# SPDX-License-Identifier: Apache-2.0
"""slurm-ch pull, run, explain, images, rm, prune, pack, push, login, logout, as an ordinary user."""

from __future__ import annotations

import json
import os
import pwd
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_ch.images import fetch, reference

from .craft import Layout, busybox, item, layer
from .registry import PASSWORD, USER, Registry, registries_conf

SLURM_CH = str(Path(sys.executable).with_name("slurm-ch"))


class Caller:
    """The ordinary user, with a home of their own below `place`."""

    def __init__(self, place: Path, user: str, **env: str) -> None:
        self.entry = pwd.getpwnam(user)
        self.home = place / "home"
        self.home.mkdir()
        self.cache = self.home / ".cache/slurm_ch"
        os.chown(self.home, self.entry.pw_uid, self.entry.pw_gid)
        self.env = {"HOME": str(self.home), "PATH": os.environ["PATH"], "USER": user, **env}

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [SLURM_CH, *words], env={**self.env, **env}, cwd=self.home, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, user=self.entry.pw_uid, group=self.entry.pw_gid, extra_groups=[],
        )  # fmt: skip

    def run(self, *words: str, stdin: str = "", **env: str) -> tuple[int, str, str]:
        with self.start(*words, **env) as child:
            out, err = child.communicate(stdin, timeout=60)
        return child.returncode, out, err

    def good(self, *words: str, **env: str) -> str:
        status, out, err = self.run(*words, **env)
        assert status == 0, err
        return out


@pytest.fixture
def caller(world_tmp: Path, user: str, plain: Registry, request: pytest.FixtureRequest) -> Iterator[Caller]:
    place = world_tmp / request.node.name.replace("[", "-").replace("]", "")
    place.mkdir()
    conf = registries_conf(place / "registries.conf", plain.host)
    yield Caller(place, user, CONTAINERS_REGISTRIES_CONF=str(conf))


def test_pull_and_run(caller: Caller, plain: Registry, layout: Layout) -> None:
    """The path goes to standard output, messages go to standard error; the reference itself makes a container."""
    name = plain.push(layout, "org/app:1")
    status, out, err = caller.run("pull", name)
    assert status == 0 and out.startswith(f"{caller.cache}/images/sha256-") and out.endswith(".sqfs\n")
    lines = err.splitlines()
    assert len(lines) == 2 and lines[0].startswith(f"slurm-ch: {name} is sha256:") and lines[0].endswith("MB; pulling")
    assert lines[1].startswith("slurm-ch: pulled in ") and lines[1].endswith(out.strip())
    assert caller.run("pull", name) == (0, out, "")
    assert caller.run("pull", "-q", name, "copy.sqfs") == (0, "copy.sqfs\n", "")
    assert (caller.home / "copy.sqfs").read_bytes() == Path(out.strip()).read_bytes()
    assert caller.good("run", name, "--", "cat", "/marker") == "from the registry\n"
    assert caller.good("run", "copy.sqfs", "--", "cat", "/marker") == "from the registry\n"
    # The image's own command.
    assert caller.good("run", name, "--", "-") == "started\n"
    assert caller.good("run", "--set-env", name, "--", "sh", "-c", "echo $GREETING") == "hello there\n"
    assert f"mount SquashFS {out.strip()}" in caller.good("explain", name)


def test_run_pulls_what_is_missing(caller: Caller, plain: Registry, layout: Layout) -> None:
    name = plain.push(layout, "org/app:1")
    status, out, err = caller.run("run", "--pull=cached", name, "--", "true")
    assert (status, out) == (31, "") and "never pulled here" in err
    assert caller.good("run", name, "--", "cat", "/marker") == "from the registry\n"
    before = len(plain.requests())
    assert caller.good("run", "--pull=cached", name, "--", "cat", "/marker") == "from the registry\n"
    assert plain.requests()[before:] == []
    status, _, err = caller.run("run", "--platform=linux/riscv64", name, "--", "true")
    assert status == 31 and "no image for linux/riscv64" in err
    status, _, err = caller.run("run", "--pull=perhaps", name, "--", "true")
    assert status == 64 and "--pull=perhaps: not one of auto, always, cached, never" in err
    status, _, err = caller.run("run", "--pull=never", "a:b", "--", "true")
    assert status == 64 and "a:b is not a reference" in err


def test_a_job_has_one_image_by_one_name(caller: Caller, plain: Registry, layout: Layout, world_tmp: Path) -> None:
    """The tag changes meanwhile: the job's steps, array tasks and peers of a join keep what it meant first."""
    name = plain.push(layout, "moving:1")
    job = {"SLURM_JOB_ID": "77", "SLURM_CLUSTER_NAME": "test"}
    before = len(plain.requests())
    children = [
        caller.start("run", "--join-ct=6", "--join-tag=one", name, "--", "cat", "/marker", **job) for _ in range(6)
    ]
    for child in children:
        out, err = child.communicate(timeout=60)
        assert (child.returncode, out) == (0, "from the registry\n"), err
    asked = [line for line in plain.requests()[before:] if line.endswith("/manifests/1")]
    assert asked == ["GET /v2/moving/manifests/1"]
    other = Layout(caller.home / "other")
    other.image([busybox(), layer([item("marker", "another\n")])])
    plain.push(other, "moving:1")
    assert caller.good("run", name, "--", "cat", "/marker", **job) == "from the registry\n"
    task = {"SLURM_JOB_ID": "99", "SLURM_ARRAY_JOB_ID": "77", "SLURM_CLUSTER_NAME": "test"}
    assert caller.good("run", name, "--", "cat", "/marker", **task) == "from the registry\n"
    assert caller.good("run", name, "--", "cat", "/marker", **{**job, "SLURM_JOB_ID": "78"}) == "another\n"
    assert caller.good("run", name, "--", "cat", "/marker") == "another\n"


def test_the_cache(caller: Caller, plain: Registry, layout: Layout) -> None:
    name = plain.push(layout, "org/listed:1")
    assert caller.good("images") == "IMAGE  DIGEST  SIZE  USED  PATH\n"
    path = caller.good("pull", name).strip()
    head, row = caller.good("images").splitlines()
    assert head.split() == ["IMAGE", "DIGEST", "SIZE", "USED", "PATH"]
    assert row.split()[0] == name and row.endswith(path) and row.split()[1] == Path(path).stem[7:19]
    said = json.loads(caller.good("images", "--json"))
    assert (
        said["references"] == [name]
        and said["path"] == path
        and said["size"] == os.path.getsize(path)
        and not said["site"]
    )
    assert caller.run("rm", "docker://other") == (
        31,
        "",
        f"slurm-ch: error: docker://other: not in the cache ({caller.cache})\n",
    )
    assert caller.run("prune")[:2] == (0, "") and caller.run("prune", "--older=1d", "--max=1G")[:2] == (0, "")
    assert caller.good("rm", name) == f"{path}\n" and not os.path.exists(path)
    caller.good("pull", name)
    assert caller.good("rm", Path(path).stem[7:15]) == f"{path}\n"
    caller.good("pull", name)
    for refs in (caller.cache / "refs").iterdir():
        refs.unlink()
    assert caller.good("prune") == f"{path}\n"
    caller.good("pull", name)
    status, out, err = caller.run("prune", "--max=1k")
    assert (status, out) == (0, f"{path}\n") and "removed 1 images, 1 MB" in err
    status, _, err = caller.run("prune", "--max=lots")
    assert status == 64 and "--max=lots: not a size" in err


def test_what_a_site_says(caller: Caller, plain: Registry, layout: Layout) -> None:
    """plugstack.conf's arguments count for the commands too."""
    conf = caller.home / "slurm.conf"
    conf.write_text(f"PlugStackConfig={caller.home}/plugstack.conf\n")
    site = caller.home / "site cache"
    (caller.home / "plugstack.conf").write_text(
        f"required /x/slurm_ch.so cache={caller.home}/%u/cache registries=docker.io bind=/a:/b\n"
    )
    name = plain.push(layout, "org/app:1")
    status, _, err = caller.run("pull", name, SLURM_CONF=str(conf))
    assert status == 31 and "not one of this site's registries: docker.io" in err
    (caller.home / "plugstack.conf").write_text(f"required /x/slurm_ch.so cache={caller.home}/%u/cache\n")
    assert caller.good("pull", name, SLURM_CONF=str(conf)).startswith(
        f"{caller.home}/{caller.env['USER']}/cache/images/"
    )
    (caller.home / "plugstack.conf").write_text("required /x/slurm_ch.so cache=relative\n")
    status, _, err = caller.run("pull", name, SLURM_CONF=str(conf))
    assert status == 64 and "plugstack.conf: cache=relative: not an absolute path" in err
    assert not site.exists()


def test_wrong_references(caller: Caller) -> None:
    for words, text in (
        (("pull", "ubuntu"), "ubuntu: not a reference"),
        (("pull", "docker://me:s3cr3t@host/x"), "no user and no password"),
        (("run", "docker://me:s3cr3t@host/x", "--", "true"), "no user and no password"),
        (("login", "me:s3cr3t@host"), "not a registry's name"),
        (("push", "/bin/sh", "docker://x"), "not a SquashFS file"),
        (("push", "/bin/sh", "oci:x"), "not where an image can be pushed to"),
        (("pack", "/no/such", "x.sqfs"), "can't pack /no/such"),
    ):
        status, out, err = caller.run(*words)
        assert status in (31, 64) and out == "" and text in err and "s3cr3t" not in err, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.row("F9")
def test_interrupted(caller: Caller, plain: Registry, layout: Layout, number: int) -> None:
    """Nothing stays, neither file nor process; the next pull removes what one that was killed left."""
    packer = caller.home / "tar2sqfs"
    packer.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exec echo 1.2.0\necho $$ > {caller.home}/pid\nmkfifo {caller.home}/never\nexec cat {caller.home}/never\n'
    )
    packer.chmod(0o755)
    name = plain.push(layout, "org/app:1")
    child = caller.start("pull", name, PATH=f"{caller.home}:{caller.env['PATH']}")
    deadline = time.monotonic() + 30
    while not (caller.home / "never").exists():
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.01)
    packer_fd = os.pidfd_open(int((caller.home / "pid").read_text()))
    child.send_signal(number)
    _, err = child.communicate(timeout=30)
    assert child.returncode == {signal.SIGINT: 130, signal.SIGTERM: -15, signal.SIGKILL: -9}[number], err
    assert select.select([packer_fd], [], [], 20)[0], "the packer lives on"
    os.close(packer_fd)
    if number == signal.SIGINT:
        assert list((caller.cache / "tmp").iterdir()) == [] and list((caller.cache / "lock").iterdir()) == []
    caller.good("pull", name)
    assert list((caller.cache / "tmp").iterdir()) == [] and list((caller.cache / "lock").iterdir()) == []


def test_pack_a_directory(caller: Caller) -> None:
    """As an image that was pulled: root's, readable, with what a container mounts at; links, attributes, names kept."""
    tree = caller.home / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    for name in ("sh", "cat", "ls", "stat"):
        (tree / "bin" / name).symlink_to("busybox")
    (tree / "a").write_text("hard\n")
    os.link(tree / "a", tree / "b")
    (tree / "new\nline").write_text("n")
    (tree / "empty").touch()
    (tree / "big").write_bytes(os.urandom(3_000_000))
    for path in tree.rglob("*"):
        os.chown(path, caller.entry.pw_uid, caller.entry.pw_gid, follow_symlinks=False)
    (tree / "bin/busybox").chmod(0o755)
    os.setxattr(tree / "a", "user.note", b"kept")
    assert caller.good("pack", "tree", "packed.sqfs") == "packed.sqfs\n"
    assert (
        caller.good("run", "packed.sqfs", "--", "sh", "-c", "cat /a /b; stat -c %h:%a /a /big; ls -d /proc /tmp")
        == "hard\nhard\n2:644\n1:644\n/proc\n/tmp\n"
    )
    out = caller.home / "unpacked"
    subprocess.run(["unsquashfs", "-q", "-n", "-d", out, caller.home / "packed.sqfs"], check=True, capture_output=True)
    assert (out / "big").read_bytes() == (tree / "big").read_bytes() and (out / "new\nline").exists()
    assert os.getxattr(out / "a", "user.note") == b"kept" and (out / "a").stat().st_uid == 0
    (tree / "secret").touch()
    (tree / "secret").chmod(0)
    before = (caller.home / "packed.sqfs").read_bytes()
    status, _, err = caller.run("pack", "tree", "packed.sqfs")
    assert status == 31 and "can't read tree/secret: Permission denied" in err
    assert (caller.home / "packed.sqfs").read_bytes() == before
    assert not [path for path in caller.home.iterdir() if path.name.startswith(".packed")]


def test_a_skopeo_that_can_not_push_a_squashfs_file() -> None:
    """Debian 11's says it so; nothing of that line is of use to the caller."""
    said = 'layer "sha256:ab": unsupported MIME type for compression: application/vnd.slurm-ch.image.layer.v1.squashfs'
    text = f'time="2026-11-28T13:28:20Z" level=fatal msg={json.dumps(said)}'
    error = fetch.failure(reference.parse("docker://host.example/back:1"), text, {}, "/tmp")
    assert re.fullmatch(
        "docker://host.example/back:1: this host's skopeo is too old .*: leave out --squashfs, .*", str(error)
    )


@pytest.mark.parametrize("how", [(), ("--squashfs",)])
def test_push_and_pull_again(caller: Caller, plain: Registry, layout: Layout, how: tuple[str, ...]) -> None:
    """One layer, which every tool runs; or the file as it is, which comes back without being packed."""
    path = caller.good("pull", plain.push(layout, "org/app:1")).strip()
    name = plain.reference(f"back/{len(how)}:1")
    assert caller.good("push", "-q", *how, path, name) == name + "\n"
    again = caller.good("pull", name).strip()
    assert again != path and (Path(again).read_bytes() == Path(path).read_bytes()) is bool(how)
    assert caller.good("run", name, "--", "-") == "started\n"
    assert (
        caller.good("run", "--set-env", name, "--", "sh", "-c", 'cat /marker; echo "$GREETING"')
        == "from the registry\nhello there\n"
    )
    if not how:
        config = json.loads(
            subprocess.run(
                ["skopeo", "inspect", "--config", "--tls-verify=false", name], check=True, capture_output=True
            ).stdout
        )
        assert config["config"]["Entrypoint"] == ["sh", "-c"] and config["config"]["WorkingDir"] == "/work/here"
        assert config["config"]["Env"][0] == "GREETING=hello there" and config["config"]["Labels"] == {
            "org.example.a": "b"
        }
    # Without a packer an artifact can be pulled all the same.
    if how:
        caller.good("rm", name)
        programs = caller.home / "programs"
        programs.mkdir()
        (programs / "skopeo").symlink_to("/usr/bin/skopeo")
        assert caller.good("pull", name, PATH=str(programs)).strip() == again


def test_an_image_of_apptainers_is_not_pushed_as_it_is(caller: Caller, plain: Registry, apptainers: Path) -> None:
    assert caller.run("push", str(apptainers), plain.reference("sif:1")) == (
        31, "", f"slurm-ch: error: {apptainers}: an image of Apptainer's (SIF): `srun --ch-image={apptainers} "
        "--ch-save=FILE.sqfs CMD` makes a SquashFS file of it\n"
    )  # fmt: skip
    assert (
        caller.run("push", "/bin/true", plain.reference("sif:1"))[2]
        == "slurm-ch: error: /bin/true: not a SquashFS file\n"
    )


def test_an_environment_that_another_program_left(caller: Caller) -> None:
    """It counts where the image's configuration has none, as that of an Apptainer image which was pushed as a layer."""
    for name, config, wanted in (
        ("theirs", {"Cmd": ["sh", "-c", "echo $GREETING"]}, "from the script\n"),
        (
            "ours",
            {"Cmd": ["sh", "-c", "echo $GREETING"], "Env": ["GREETING=from the configuration"]},
            "from the configuration\n",
        ),
    ):
        made = Layout(caller.home / name)
        script = item(".singularity.d/env/90-environment.sh", "export GREETING='from the script'\n", mode=0o755)
        made.image([busybox(), layer([item(".singularity.d/"), item(".singularity.d/env/"), script])], config)
        assert caller.good("run", f"oci:{name}", "--", "-") == wanted


def test_login(caller: Caller, closed: Registry, layout: Layout, ca: Path) -> None:
    """Kept where jobs see it, for nobody else to read; the password is nobody's to see."""
    for path in (ca, ca.parent):
        path.chmod(0o755)
    certificate = caller.home / "ca.crt"
    certificate.write_bytes((ca / "ca.crt").read_bytes())
    certificate.chmod(0o644)
    caller.env["SSL_CERT_FILE"] = str(certificate)
    name = closed.push(layout, "private/app:1")
    assert caller.run("pull", name)[0] == 31
    status, out, err = caller.run("login", "-u", USER, "--password-stdin", closed.host, stdin="wrong")
    assert (status, out) == (31, "")
    assert err.startswith(f"slurm-ch: error: {closed.host}: ") and "invalid username/password" in err
    assert err.count("\n") == 1
    status, out, err = caller.run("login", "-u", USER, "--password-stdin", "127.0.0.1:1", stdin=PASSWORD)
    assert status == 31 and err.startswith("slurm-ch: error: 127.0.0.1:1: 127.0.0.1:1 can't be reached: ")
    status, out, err = caller.run("login", "-u", USER, "--password-stdin", closed.host, stdin=PASSWORD)
    assert status == 0 and PASSWORD not in out + err
    auth = caller.home / ".config/containers/auth.json"
    assert auth.stat().st_mode & 0o777 == 0o600 and auth.stat().st_uid == caller.entry.pw_uid
    assert auth.parent.stat().st_mode & 0o777 == 0o700
    assert caller.good("pull", name).startswith(str(caller.cache))
    assert caller.run("logout", closed.host)[0] == 0
    status, _, err = caller.run("pull", name)
    assert status == 31 and f"slurm-ch login {closed.host}" in err
