# SPDX-License-Identifier: Apache-2.0
"""Devices by CDI specs, in real containers: libraries, links, nodes, environment."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import leftovers

from .cdi import FOLDER, LIBRARY, LIBRARY_C, PROGRAM_C, SONAME, Write, hook, library_mount, spec
from .conftest import SLURM_CH, Run, mountinfo, settings

Good = Callable[..., str]
Fails = Callable[..., str]


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
        f"report: {path}: containerEdits.hooks[2]: createContainer hook /usr/bin/nvidia-cdi-hook frobnicate: not known, not run",
        f"make writeable, if they exist: /etc {FOLDER}",
        "check device node /dev/null",
        f"bind {driver}/{LIBRARY} at {FOLDER}/{LIBRARY} (read-only, nosuid, nodev)",
        "link /lib/b to a",
        "pivot into new root",
        f"update the dynamic linker's cache: ldconfig {FOLDER}",
    ]
    assert [line for line in lines if line in wanted] == wanted
