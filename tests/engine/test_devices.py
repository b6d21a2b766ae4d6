# SPDX-License-Identifier: Apache-2.0
"""Devices by CDI specs, in real containers: libraries, links, nodes, hooks, environment, joins."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import leftovers
from tests.small_images import make_image, squash

from .conftest import SLURM_CH, Run, mountinfo, settings

Good = Callable[..., str]
Fails = Callable[..., str]

LIBRARY = "libfake.so.535.7"
SONAME = "libfake.so.1"
FOLDER = "/usr/lib/fake"

LIBRARY_C = "int answer(void) { return 42; }\n"
PROGRAM_C = '#include <stdio.h>\nint answer(void);\nint main(void) { return printf("answer %d\\n", answer()) < 0; }\n'


def spec(edits: dict[str, object], **more: object) -> dict[str, object]:
    return {
        "cdiVersion": "0.6.0",
        "kind": "fake.test/gpu",
        "devices": [{"name": "0", "containerEdits": {"env": ["FAKE=0"]}}],
        "containerEdits": edits,
        **more,
    }


def hook(*words: str) -> dict[str, object]:
    return {"hookName": "createContainer", "path": f"/usr/bin/{words[0]}", "args": list(words)}


@pytest.fixture(scope="session")
def driver(world_tmp: Path) -> Path:
    """A directory of the host with a driver's library, and a program linked against it."""
    root = world_tmp / "driver"
    root.mkdir()
    (root / "library.c").write_text(LIBRARY_C)
    (root / "program.c").write_text(PROGRAM_C)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{SONAME}", "-o", LIBRARY, "library.c"], cwd=root, check=True
    )
    subprocess.run(["gcc", "-o", "program", "program.c", LIBRARY], cwd=root, check=True)
    return root


@pytest.fixture(scope="session")
def glibc_dir(world_tmp: Path, driver: Path, user: str) -> Path:
    """An image with glibc, ldconfig, and the program, but not the driver's library."""
    root = make_image(world_tmp / "glibc", "glibc")
    shutil.copy(driver / "program", root / "usr/bin/program")
    listed = subprocess.run(["ldd", "/bin/cat"], check=True, capture_output=True, text=True).stdout
    for word in listed.split():
        if word.startswith("/"):
            place = root / word.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, place)
    (root / "sbin").mkdir()
    shutil.copy("/sbin/ldconfig", root / "sbin/ldconfig")
    (root / "etc/ld.so.conf").write_text("/usr/lib/other\n")
    subprocess.run(["chown", "-hR", f"{user}:", root], check=True)
    return root


@pytest.fixture(scope="session")
def glibc_sqfs(glibc_dir: Path, world_tmp: Path) -> Path:
    return squash(glibc_dir, world_tmp / "glibc.sqfs")


@pytest.fixture(scope="session")
def glibc_others(glibc_dir: Path, world_tmp: Path) -> Path:
    """The same as a directory that is root's."""
    root = world_tmp / "glibc-root"
    shutil.copytree(glibc_dir, root, symlinks=True)
    return root


@pytest.fixture(params=["directory", "SquashFS", "root's directory"])
def glibc(request: pytest.FixtureRequest, glibc_dir: Path, glibc_sqfs: Path, glibc_others: Path) -> Path:
    return {"directory": glibc_dir, "SquashFS": glibc_sqfs, "root's directory": glibc_others}[request.param]


Write = Callable[..., Path]


@pytest.fixture
def write(world_tmp: Path) -> Write:
    """Write a spec to the directory of specs, which is emptied first, and return its path."""
    place = world_tmp / "cdi"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()

    def call(what: object, name: str = "fake.json") -> Path:
        path = place / name
        path.write_text(what if isinstance(what, str) else json.dumps(what))
        return path

    return call


def library_mount(driver: Path) -> dict[str, object]:
    target = f"{FOLDER}/{LIBRARY}"
    return {"hostPath": str(driver / LIBRARY), "containerPath": target, "options": ["ro", "nosuid", "nodev", "bind"]}


def test_library_is_found_after_the_cache_is_updated(
    good: Good, run: Run, write: Write, glibc: Path, driver: Path
) -> None:
    words = ("nvidia-ctk", "hook") if glibc.suffix == ".sqfs" else ("nvidia-cdi-hook",)
    path = write(
        spec({"mounts": [library_mount(driver)], "hooks": [hook(*words, "update-ldcache", "--folder", FOLDER)]})
    )
    assert good("--device", path, glibc, "--", "program") == "answer 42\n"
    # A library says by its name that it is one.
    path = write(spec({"mounts": [library_mount(driver)]}))
    assert good("--device", path, glibc, "--", "program") == "answer 42\n"
    # The test would notice if the cache were not updated.
    done = run("-W", "-b", f"{driver}/{LIBRARY}:{FOLDER}/{LIBRARY}", glibc, "--", "program")
    assert done.returncode == 127
    assert SONAME in done.stderr


def test_cache_as_another_user(good: Good, write: Write, glibc_sqfs: Path, driver: Path) -> None:
    path = write(
        spec(
            {
                "mounts": [library_mount(driver)],
                "hooks": [hook("nvidia-cdi-hook", "update-ldcache", "--folder", FOLDER)],
            }
        )
    )
    assert good("-u0", "-g0", "--device", path, glibc_sqfs, "--", "program") == "answer 42\n"


def test_cache_of_an_image_without_ldconfig(run: Run, write: Write, image_sqfs: Path) -> None:
    path = write(spec({"hooks": [hook("nvidia-cdi-hook", "update-ldcache", "--folder", FOLDER)]}))
    done = run("--device", path, image_sqfs, "--", "cat", "/marker")
    assert (done.returncode, done.stdout) == (0, "one\n")
    assert done.stderr == (
        f"slurm-ch: warning: the image has no ldconfig: its programs may not find libraries in {FOLDER}\n"
    )


@pytest.fixture
def with_ldconfig(image_dir: Path, world_tmp: Path) -> Callable[[str], Path]:
    """An image whose ldconfig is a script of the given text."""

    def make(text: str) -> Path:
        root = world_tmp / "scripted"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(image_dir, root, symlinks=True)
        (root / "sbin").mkdir()
        (root / "sbin/ldconfig").write_text(text)
        (root / "sbin/ldconfig").chmod(0o755)
        return root

    return make


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#!/bin/sh\necho first; echo second >&2; exit 3\n", "failed with status 3: first; second"),
        (
            "#!/bin/none\n",
            "failed with status 127: slurm-ch: error: can't execute /sbin/ldconfig:"
            " the interpreter in its first line, /bin/none, is not in the container",
        ),
        ("#!/bin/sh\nsleep 1009\n", "took longer than 1 s"),
        ("#!/bin/sh\nkill -9 $$\n", "failed with status -9: "),
    ],
)
def test_an_ldconfig_that_fails(
    fails: Fails, write: Write, with_ldconfig: Callable[[str], Path], text: str, message: str
) -> None:
    asked = hook("nvidia-cdi-hook", "update-ldcache", "--folder", FOLDER)
    line = fails(31, "--device", write(spec({"hooks": [{**asked, "timeout": 1}]})), with_ldconfig(text), "--", "true")
    assert line == f"the image's /sbin/ldconfig {message}"
    # Nor does what it started stay: it is killed, and gone when the kernel has come to that.
    leftovers.wait_until_gone("sleep 1009")


def test_what_ldconfig_gets(good: Good, write: Write, with_ldconfig: Callable[[str], Path]) -> None:
    """The folders, no environment, nothing open but its streams, no privileges to be had, and no care for SIGCHLD."""
    image = with_ldconfig(
        "#!/bin/sh\n(echo $@; env; ls -l /proc/self/fd | wc -l; grep -E 'NoNewPrivs|CapEff' /proc/self/status; id -u) > /etc/seen\n"
    )
    for words, args in ((["--folder", "/a,/b", "--folder=/c"], "-- /a /b /c"), ([], "--")):
        path = write(spec({"hooks": [hook("nvidia-cdi-hook", "update-ldcache", *words)]}))
        assert good("--device", path, image, "--", "head", "-n1", "/etc/seen") == f"{args}\n"
    done = subprocess.run(
        [SLURM_CH, "run", "--device", path, image, "--", "cat", "/etc/seen"],
        preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        **settings("chuser"),
    )  # type: ignore[call-overload]
    seen = done.stdout.splitlines()
    assert seen[0] == "--", done
    assert sorted(word.partition("=")[0] for word in seen[1:-4]) == ["PATH", "PWD", "SHLVL"]
    # Three streams, the listed directory, and a line that counts blocks.
    assert seen[-4] == "5"
    assert seen[-3].split() == ["CapEff:", "0" * 16]
    assert seen[-2].split() == ["NoNewPrivs:", "1"]
    assert int(seen[-1]) == settings("chuser")["user"]


def test_root_in_the_container_has_no_capability_in_ldconfig(
    good: Good, write: Write, with_ldconfig: Callable[[str], Path]
) -> None:
    image = with_ldconfig("#!/bin/sh\n(id -u; grep CapEff /proc/self/status) > /etc/seen\n")
    path = write(spec({"hooks": [hook("nvidia-cdi-hook", "update-ldcache")]}))
    out = good("-u0", "--device", path, image, "--", "sh", "-c", "cat /etc/seen; grep CapEff /proc/self/status").split()
    assert out[:3] == ["0", "CapEff:", "0" * 16]
    # The user's command is another matter.
    assert out[4] != "0" * 16


def test_what_is_not_needed_is_said_to_who_asks(run: Run, write: Write, image_sqfs: Path) -> None:
    path = write(spec({"hooks": [hook("nvidia-ctk", "hook", "chmod", "--mode", "755", "--path", "/dev/dri")]}))
    assert run("--device", path, image_sqfs, "--", "true").stderr == ""
    lines = run("-v", "--device", path, image_sqfs, "--", "true").stderr.splitlines()
    assert [line for line in lines if line.endswith("chmod: not needed: /dev/dri is the host's")]


def test_the_users_binds_come_after(good: Good, write: Write, image_sqfs: Path, driver: Path) -> None:
    path = write(spec({"mounts": [{"hostPath": str(driver / "library.c"), "containerPath": "/lib/file"}]}))
    bind = ("-b", f"{driver}/program.c:/lib/file")
    assert good("--device", path, *bind, image_sqfs, "--", "cat", "/lib/file") == PROGRAM_C


def test_cuda_libraries_newer_than_the_driver(run: Run, write: Write, image_dir: Path, world_tmp: Path) -> None:
    root = world_tmp / "cuda"
    shutil.copytree(image_dir, root, symlinks=True)
    (root / "usr/local/cuda-12/compat").mkdir(parents=True)
    (root / "usr/local/cuda").symlink_to("/usr/local/cuda-12")
    (root / "usr/local/cuda-12/compat/libcuda.so.550.54").touch()
    said = {}
    for version in ("535.161.08", "550.90"):
        path = write(
            spec({"hooks": [hook("nvidia-cdi-hook", "enable-cuda-compat", f"--host-driver-version={version}")]})
        )
        for image in (root, image_dir):
            done = run("--device", path, image, "--", "true")
            assert done.returncode == 0
            said[version, image] = done.stderr
    assert "enable-cuda-compat is not done: the image's libraries" in said.pop(("535.161.08", root))
    assert set(said.values()) == {""}


def test_ldconfig_does_not_outlive_a_killed_launcher(
    user: str, write: Write, with_ldconfig: Callable[[str], Path], world_tmp: Path
) -> None:
    pipe = world_tmp / "pid"
    os.mkfifo(pipe)
    pipe.chmod(0o666)
    image = with_ldconfig(f"#!/bin/sh\necho $$ > {pipe}\nexec sleep 1000\n")
    command = [
        SLURM_CH,
        "run",
        "--device",
        write(spec({"hooks": [hook("nvidia-ctk", "update-ldcache")]})),
        image,
        "--",
        "true",
    ]
    with subprocess.Popen(command, **settings(user)) as peer:  # type: ignore[call-overload]
        ldconfig = os.pidfd_open(int(pipe.read_text()))
        peer.kill()
    poll = select.poll()
    poll.register(ldconfig, select.POLLIN)
    assert poll.poll(10000)
    os.close(ldconfig)


def test_links(run: Run, write: Write, image_dir: Path, world_tmp: Path) -> None:
    root = world_tmp / "cdi-links"
    shutil.copytree(image_dir, root, symlinks=True)
    (root / "lib/old").symlink_to("stale")
    (root / "lib/file").write_text("kept\n")
    (root / "var/lib").symlink_to("/lib")
    words = [
        word
        for link in (
            "new::/opt/deep/er/link",
            "fresh::/lib/old",
            "x::/lib/file",
            "through::/var/lib/absolute",
            "/proc/self/fd::/dev/fd",
            "x::/dev/none",
        )
        for word in ("--link", link)
    ]
    path = write(spec({"hooks": [hook("nvidia-ctk", "hook", "create-symlinks", *words)]}))
    show = "for link in /opt/deep/er/link /lib/old /lib/absolute; do readlink $link; done; cat /lib/file"
    done = run("--device", path, root, "--", "sh", "-c", show)
    assert done.stdout == "new\nfresh\nthrough\nkept\n", done
    assert done.stderr.splitlines() == [
        "slurm-ch: warning: link /lib/file to x not made: something else is there",
        "slurm-ch: warning: link /dev/none to x not made: /dev/none: /dev is bound from the host; nothing is created there",
    ]


def test_mounts_keep_their_options(good: Good, write: Write, image_sqfs: Path, driver: Path) -> None:
    path = write(
        spec(
            {
                "mounts": [
                    {"hostPath": str(driver), "containerPath": "/opt/dir", "options": ["rw", "noexec", "rprivate"]},
                    {
                        "hostPath": str(driver / LIBRARY),
                        "containerPath": "/lib/all",
                        "options": ["ro", "nosuid", "nodev"],
                    },
                    {"hostPath": str(driver / "program.c"), "containerPath": "/lib/none"},
                ]
            }
        )
    )
    out = mountinfo(good("--device", path, image_sqfs, "--", "cat", "/proc/self/mountinfo"))

    def options(place: str) -> set[str]:
        return set(out[place][1].split(",")) & {"ro", "rw", "nosuid", "nodev", "noexec"}

    assert options("/lib/all") == {"ro", "nosuid", "nodev"}
    assert options("/lib/none") == {"rw"}
    assert options("/opt/dir") == {"rw", "noexec"}


def test_a_mount_below_another(fails: Fails, good: Good, write: Write, image_sqfs: Path, driver: Path) -> None:
    inner = {"hostPath": "/etc/hostname", "containerPath": "/opt/dir/library.c"}
    path = write(spec({"mounts": [inner, {"hostPath": str(driver), "containerPath": "/opt/dir"}]}))
    assert good("--device", path, image_sqfs, "--", "cat", "/opt/dir/library.c") == Path("/etc/hostname").read_text()
    path = write(
        spec(
            {
                "mounts": [
                    {**inner, "containerPath": "/opt/dir/new"},
                    {"hostPath": str(driver), "containerPath": "/opt/dir"},
                ]
            }
        )
    )
    line = fails(31, "--device", path, image_sqfs, "--", "true")
    assert line.startswith(f"{path}: containerEdits.mounts[0]: can't bind: /opt/dir/new: ")
    assert line.endswith("bound from the host; nothing is created there")


def test_places_are_the_images(good: Good, write: Write, image_dir: Path, world_tmp: Path, driver: Path) -> None:
    """Absolute links in the image mean the image, and none leads out of it."""
    root = world_tmp / "cdi-linked"
    shutil.copytree(image_dir, root, symlinks=True)
    (root / "run").mkdir()
    (root / "var/run").symlink_to("/run")
    (root / "out").symlink_to("../../../../../../opt")
    source = str(driver / "library.c")
    path = write(
        spec(
            {
                "mounts": [
                    {"hostPath": source, "containerPath": "/var/run/fake/socket"},
                    {"hostPath": source, "containerPath": "/out/escaped"},
                ]
            }
        )
    )
    show = "cat /run/fake/socket /opt/escaped"
    assert good("--device", path, root, "--", "sh", "-c", show) == LIBRARY_C * 2
    assert not Path("/opt/escaped").exists()


def test_a_source_that_is_missing(fails: Fails, write: Write, image_sqfs: Path) -> None:
    path = write(spec({"mounts": [{"hostPath": "/none/lib", "containerPath": "/lib/x"}]}))
    line = fails(31, "--device", path, image_sqfs, "--", "true")
    assert (
        line
        == f"{path}: containerEdits.mounts[0]: can't bind: source not found: /none/lib (there is no /none on this node)"
    )


def test_device_nodes(run: Run, write: Write, image_sqfs: Path) -> None:
    nodes = [
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
        {"path": "/dev/zero"},
        {"path": "/dev/none"},
        {"path": "/dev/full", "type": "b"},
        {"path": "/dev/random", "major": 7, "minor": 8},
        {"path": "/dev/shm"},
        {"path": "/opt/dev/nothing", "hostPath": "/dev/null"},
        {"path": "/opt/dev/none", "hostPath": "/dev/none"},
        {"path": "/dev/renamed", "hostPath": "/dev/null"},
    ]
    path = write(spec({"deviceNodes": nodes}))
    done = run(
        "--device", path, image_sqfs, "--", "sh", "-c", "echo lost > /opt/dev/nothing; cat /opt/dev/nothing; echo $?"
    )
    assert (done.returncode, done.stdout) == (0, "0\n"), done
    said = [
        line.removeprefix(f"slurm-ch: warning: {path}: containerEdits.deviceNodes") for line in done.stderr.splitlines()
    ]
    assert said == [
        "[2]: device node /dev/none: No such file or directory",
        "[3]: device node /dev/full: not a device of the kind that its spec says",
        "[4]: device node /dev/random: is 1:8, not 7:8 as its spec says",
        "[5]: device node /dev/shm: not a device of the kind that its spec says",
        "[7]: device node /opt/dev/none: No such file or directory",
        "[8]: device node /dev/renamed: No such file or directory",
    ]


def test_environment_in_the_order_of_the_command_line(good: Good, write: Write, image_sqfs: Path) -> None:
    path = write(spec({"env": ["A=spec", "B=$A:x"]}))
    show = ("--", "sh", "-c", "echo $A $B $FAKE")
    assert good("--set-env=A=mine", "--device", path, image_sqfs, *show) == "spec $A:x 0\n"
    assert good("--device", path, "--set-env=A=mine", image_sqfs, *show) == "mine $A:x 0\n"
    assert good("--device", path, "--unset-env=B", "--set-env=FAKE=$A", image_sqfs, *show) == "spec spec\n"


@pytest.mark.row("--device")
def test_kinds_and_devices_from_directories(
    good: Good, fails: Fails, write: Write, image_sqfs: Path, user: str
) -> None:
    write("cdiVersion: 0.5.0\nkind: yaml.test/nic\ndevices:\n- name: 0\n  containerEdits: {env: [NIC=0]}\n", "nic.yaml")
    place = write(
        {
            "cdiVersion": "0.3.0",
            "kind": "fake.test/gpu",
            "devices": [{"name": name, "containerEdits": {"env": [f"GPU_{name}=1"]}} for name in ("a", "b", "c")],
        }
    ).parent
    show = (image_sqfs, "--", "sh", "-c", "echo NIC$NIC a$GPU_a b$GPU_b c$GPU_c")
    dirs = f"--cdi-dirs=/nonexistent:{place}"
    assert good(dirs, "-d", "fake.test/gpu=a", "-dyaml.test/nic", "-d", "fake.test/gpu=c", *show) == "NIC0 a1 b c1\n"
    assert good(dirs, "-d", "fake.test/gpu", *show) == "NIC a1 b1 c1\n"
    env = {**settings(user)["env"], "CH_RUN_CDI_DIRS": str(place)}  # type: ignore[dict-item]
    assert good("-d", "fake.test/gpu=all", *show, env=env) == "NIC a1 b1 c1\n"
    assert good("-d", "./nic.yaml", *show, cwd=place) == "NIC0 a b c\n"
    assert fails(64, dirs, "-d", "fake.test/gpu=d", *show) == "--device=fake.test/gpu=d: no such device, only a, b, c"
    assert fails(64, "-d", "other.test/gpu", dirs, *show) == (
        f"--device=other.test/gpu: no devices of this kind in /nonexistent:{place}"
    )


def test_groups(run: Run, write: Write, image_sqfs: Path, user: str) -> None:
    own = settings(user)["group"]
    done = run(
        "--device", write(spec({"additionalGids": [0, own, 4711]}, cdiVersion="0.7.0")), image_sqfs, "--", "true"
    )
    assert done.stderr.endswith("json: additionalGids: you are not in group 4711, and nobody can be added here\n")
    assert done.stderr.count("\n") == 1


def test_implies_write_fake(good: Good, write: Write, image_sqfs: Path) -> None:
    assert good("--device", write(spec({})), image_sqfs, "--", "sh", "-c", "echo x > /new; cat /new") == "x\n"


def test_explain_shows_all_of_it(user: str, write: Write, image_sqfs: Path, driver: Path) -> None:
    asked = [
        hook("nvidia-cdi-hook", "update-ldcache", "--folder", FOLDER),
        hook("nvidia-cdi-hook", "create-symlinks", "--link", "a::/lib/b"),
        hook("nvidia-cdi-hook", "frobnicate"),
    ]
    path = write(spec({"mounts": [library_mount(driver)], "hooks": asked, "deviceNodes": [{"path": "/dev/null"}]}))
    command = [SLURM_CH, "explain", str(image_sqfs), "--device", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, **settings(user))  # type: ignore[call-overload]
    lines = done.stdout.splitlines()
    wanted = [
        f"say: {path}: containerEdits.hooks[2]: createContainer hook /usr/bin/nvidia-cdi-hook frobnicate: not known, not run",
        f"make writeable, where they are: /etc {FOLDER}",
        "check device node /dev/null",
        f"bind {driver}/{LIBRARY} at {FOLDER}/{LIBRARY} (read-only, nosuid, nodev)",
        "link /lib/b to a",
        "pivot into new root",
        f"update the dynamic linker's cache: ldconfig {FOLDER}",
    ]
    assert [line for line in lines if line in wanted] == wanted


# ---- Named joins ----


def peers(user: str, count: int, *words: object) -> list[subprocess.CompletedProcess[str]]:
    command = [SLURM_CH, "run", f"--join-ct={count}", "--join-tag=devices", *map(str, words)]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings(user))  # type: ignore[call-overload]
        for _ in range(count)
    ]
    return [
        subprocess.CompletedProcess(command, peer.returncode, *ended)
        for peer in started
        for ended in [peer.communicate(timeout=30)]
    ]


def test_the_winner_mounts_and_all_get_the_environment(user: str, write: Write, glibc: Path, driver: Path) -> None:
    path = write(
        spec(
            {
                "env": ["FROM=spec"],
                "mounts": [library_mount(driver)],
                "hooks": [hook("nvidia-cdi-hook", "update-ldcache", "--folder", FOLDER), hook("x", "y")],
            }
        )
    )
    show = f"echo $FROM $FAKE $(grep -c {FOLDER}/{LIBRARY} /proc/self/mountinfo) $(readlink /proc/self/ns/mnt); program"
    done = peers(user, 4, "--device", path, glibc, "--", "sh", "-c", show)
    assert len({peer.stdout for peer in done}) == 1, done
    words = done[0].stdout.split()
    assert (words[:3], words[4:]) == (["spec", "0", "1"], ["answer", "42"])
    # Once a container, not once a peer.
    assert sorted(peer.stderr.count("not run") for peer in done) == [0, 0, 0, 1]


@pytest.mark.parametrize(("what", "code"), [("/none.json", 64), ("v.com/none", 64)])
def test_a_join_that_cannot_have_its_device_says_so_once(user: str, image_sqfs: Path, what: str, code: int) -> None:
    done = peers(user, 4, "--device", what, image_sqfs, "--", "true")
    assert {peer.returncode for peer in done} == {code}
    assert sorted(peer.stderr.count("error: ") for peer in done) == [0, 0, 0, 1]


# ---- Off the hot path, and all of it before the first namespace ----

IMPORTS = """
import os, sys
from slurm_ch import linux
from slurm_ch.engine import container as engine
from slurm_ch.engine.caller import Caller
from slurm_ch.request import options, parsers
seen = []
def unshare(flags, original=linux.unshare):
    seen.append(set(sys.modules))
    original(flags)
linux.unshare = unshare
settings = [options.Setting("device", path, "--device") for path in sys.argv[2:]]
box = engine.Container(parsers.make(sys.argv[1], settings), Caller(dict(os.environ)))
engine.containerize(box)
print(sorted(set(sys.modules) - seen[0]), sorted({"json", "yaml", "slurm_ch.devices.reader", "slurm_ch.engine.device_edits"} & seen[0]))
"""


def imports(user: str, *words: object) -> str:
    command = [sys.executable, "-c", IMPORTS, *map(str, words)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30, **settings(user))  # type: ignore[call-overload]
    return done.stdout.strip()


def test_nothing_is_imported_inside(user: str, write: Write, glibc_sqfs: Path, driver: Path) -> None:
    asked = [hook("nvidia-cdi-hook", "update-ldcache", "--folder", FOLDER)]
    plain = write(spec({"mounts": [library_mount(driver)], "hooks": asked, "deviceNodes": [{"path": "/dev/null"}]}))
    yaml = write("{cdiVersion: 0.5.0, kind: a.b/c, devices: [{name: a}]}", "a.yaml")
    assert imports(user, glibc_sqfs) == "[] []"
    assert imports(user, glibc_sqfs, plain) == "[] ['json', 'slurm_ch.devices.reader', 'slurm_ch.engine.device_edits']"
    assert (
        imports(user, glibc_sqfs, plain, yaml)
        == "[] ['json', 'slurm_ch.devices.reader', 'slurm_ch.engine.device_edits', 'yaml']"
    )


# ---- Hooks [H1] ----

HOOKS = """
import os, sys
from slurm_ch import errors
from slurm_ch.engine import container as engine
from slurm_ch.engine.caller import Caller
from slurm_ch.request import options, parsers
wanted = parsers.make(sys.argv[1], [options.Setting("device", sys.argv[2], "--device")])
box = engine.Container(wanted, Caller(dict(os.environ)))
def host(container, data):
    os.close(os.open("lib/bound", os.O_RDONLY, dir_fd=os.open(container.build.root, os.O_RDONLY)))
    print("host", flush=True)
def guest(container, data):
    print("guest", open("/etc/seen").read().strip(), flush=True)
box.hooks_host.add("look", host)
box.hooks_guest.add("look", guest)
try:
    engine.containerize(box)
except errors.ChError as error:
    print(errors.describe(error))
"""


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo updated > /etc/seen", ["host", "guest updated"]),
        ("exit 7", ["host", "the image's /sbin/ldconfig failed with status 7:"]),
    ],
)
def test_h1_hooks_see_what_devices_did(
    user: str, write: Write, with_ldconfig: Callable[[str], Path], driver: Path, script: str, said: list[str]
) -> None:
    """Host hooks after the mounts, guest hooks after the cache, and none after a failure."""
    mounts = [{"hostPath": str(driver / "library.c"), "containerPath": "/lib/bound"}]
    path = write(spec({"mounts": mounts, "hooks": [hook("nvidia-cdi-hook", "update-ldcache")]}))
    command = [sys.executable, "-c", HOOKS, str(with_ldconfig(f"#!/bin/sh\n{script}\n")), str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30, **settings(user))  # type: ignore[call-overload]
    assert [line.strip() for line in done.stdout.splitlines()] == said, done


def test_a_winner_whose_ldconfig_fails_takes_all_with_it(
    user: str, write: Write, with_ldconfig: Callable[[str], Path]
) -> None:
    path = write(spec({"hooks": [hook("nvidia-cdi-hook", "update-ldcache")]}))
    done = peers(user, 4, "--device", path, with_ldconfig("#!/bin/sh\nexit 7\n"), "--", "true")
    assert {peer.returncode for peer in done} == {31}
    assert sorted(peer.stderr.count("failed with status 7") for peer in done) == [0, 0, 0, 1]


def test_peers_that_see_another_spec_than_the_winner(
    user: str, write: Write, image_sqfs: Path, world_tmp: Path
) -> None:
    """Each peer works out its own environment: what is mounted is the winner's."""
    here, there = world_tmp / "here", world_tmp / "there"
    for place in (here, there):
        place.mkdir(exist_ok=True)
        (place / "own.json").write_text(json.dumps(spec({"env": [f"PLACE={place.name}"]})))
    command = [
        SLURM_CH,
        "run",
        "--join-ct=2",
        "--join-tag=places",
        "-d",
        "./own.json",
        image_sqfs,
        "--",
        "sh",
        "-c",
        "echo $PLACE",
    ]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **{**settings(user), "cwd": place})  # type: ignore[call-overload]
        for place in (here, there)
    ]
    assert [peer.communicate(timeout=30)[0] for peer in started] == ["here\n", "there\n"]


def test_a_mount_out_of_reach_is_said(run: Run, write: Write, image: Path, driver: Path, world_tmp: Path) -> None:
    """A socket in root's directory, which a vendor's tool has found as root: the rest is of use without."""
    closed = world_tmp / "closed"
    closed.mkdir(mode=0o700, exist_ok=True)
    (closed / "socket").touch()
    mounts = [
        {"hostPath": str(closed / "socket"), "containerPath": "/run/vendor/socket"},
        {"hostPath": str(closed / "deep/er"), "containerPath": "/run/vendor/deep"},
        {"hostPath": str(driver / LIBRARY), "containerPath": "/opt/data", "options": ["ro"]},
    ]
    path = write(spec({"mounts": mounts, "env": ["VENDOR=1"]}))
    done = run("--device", path, image, "--", "sh", "-c", "ls /opt/data /run/vendor/socket 2>/dev/null; echo $VENDOR")
    assert done.stdout == "/opt/data\n1\n"
    assert sorted(done.stderr.splitlines()) == [
        f"slurm-ch: warning: {path}: containerEdits.mounts[{index}]: {closed}/{name} is not mounted: you can't reach it: Permission denied"
        for index, name in enumerate(("socket", "deep/er"))
    ]
