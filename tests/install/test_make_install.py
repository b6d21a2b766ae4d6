# SPDX-License-Identifier: Apache-2.0
"""`make install` and `make uninstall`: the same for every umask, nothing of before stays, nothing is fetched."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = "opt/slurm_ch/lib/slurm_ch"


def make(*words: str, umask: int = 0o022, **env: str) -> subprocess.CompletedProcess[str]:
    # Through the loopback alone: what is not on this machine can't be had.
    command = ["unshare", "--net", "make", "--no-print-directory", "-C", str(ROOT), "prefix=/opt/slurm_ch", *words]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, umask=umask, env={**os.environ, **env}, timeout=120
    )


def listed(root: Path) -> dict[str, str]:
    """Return the mode of all that is below `root`."""
    return {str(path.relative_to(root)): stat.filemode(path.lstat().st_mode) for path in root.rglob("*")}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("installed")
    done = make("install", f"DESTDIR={root}")
    assert done.returncode == 0, done.stderr
    return root


def test_every_file_can_be_read_by_everybody_and_written_by_root_alone(installed: Path) -> None:
    found = listed(installed)
    assert f"{LIBRARY}/slurm_ch/native/ch-join" in found
    assert any("plugin/__pycache__/launcher.cpython" in name for name in found)
    assert set(found.values()) == {"drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x", "lrwxrwxrwx"}


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_modes_do_not_depend_on_the_umask_and_old_files_go(installed: Path, tmp_path: Path, umask: int) -> None:
    old = tmp_path / LIBRARY / "slurm_ch/launcher.py"
    old.parent.mkdir(parents=True)
    for parent in (tmp_path / "opt", tmp_path / "opt/slurm_ch", tmp_path / "opt/slurm_ch/lib"):
        parent.chmod(0o755)
    old.write_text("of a version before\n")
    done = make("install", f"DESTDIR={tmp_path}", umask=umask)
    assert done.returncode == 0, done.stderr
    assert listed(tmp_path) == listed(installed)


def test_man_pages_and_completion_are_installed(installed: Path) -> None:
    share = installed / "opt/slurm_ch/share"
    assert (share / "man/man8/slurm_ch.8").exists()
    assert (share / "man/man1/slurm-ch-run.1").exists()
    assert {path.name for path in share.rglob("*slurm-ch*") if "man" not in path.parts} >= {"slurm-ch", "_slurm-ch"}
    assert "PATH=$PATH:/opt/slurm_ch/bin" in (share / "slurm_ch/profile.sh").read_text()
    assert "prepend-path PATH /opt/slurm_ch/bin" in (share / "slurm_ch/modulefile").read_text()


def test_another_python_is_named_in_the_fragment(tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.symlink_to("/usr/bin/python3")
    done = make("install-files", f"DESTDIR={tmp_path}", f"PYTHON={other}")
    assert done.returncode == 0, done.stderr
    fragment = (tmp_path / "opt/slurm_ch/share/slurm_ch/plugstack.conf").read_text()
    assert fragment.splitlines()[-1] == f"required /{LIBRARY}/slurm_ch/native/slurm_ch.so python={other}"
    # The command starts it, for all that isn't about a container.
    other.unlink()
    other.write_text('#!/bin/sh\necho "$@"\n')
    other.chmod(0o755)
    command = tmp_path / "opt/slurm_ch/bin/slurm-ch"
    said = subprocess.run([command, "ps", "x"], check=True, capture_output=True, text=True).stdout.split()
    assert (said[0], *said[2:]) == ("-I", "slurm-ch", "socket", "ps", "x")
    assert Path(said[1]).resolve() == tmp_path / LIBRARY / "slurm_ch/cli/program.py"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    without = tmp_path / "python"
    without.write_text('#!/bin/sh\ncase "$*" in *import*) exit 1;; esac\nexec /usr/bin/python3 "$@"\n')
    without.chmod(0o755)
    done = make("install-needed", f"PYTHON={without}")
    assert done.returncode != 0
    assert f"{without} has no click: install python3-click, or say WHEELS=DIR or WHEELS=pypi" in done.stderr
    (tmp_path / "wheels").mkdir()
    done = make("install-needed", f"WHEELS={tmp_path}/wheels")
    assert done.returncode != 0
    assert f"WHEELS={tmp_path}/wheels does not give what etc/requirements.txt lists" in done.stderr


def test_uninstall_waits_for_plugstack_conf(tmp_path: Path) -> None:
    libdir = tmp_path / LIBRARY
    done = make("install-files", f"prefix={tmp_path}/opt/slurm_ch", f"libdir={libdir}", "DESTDIR=")
    assert done.returncode == 0, done.stderr
    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=one\n")
    (tmp_path / "plugstack.conf").write_text("include plugstack.conf.d/*.conf\n")
    line = tmp_path / "plugstack.conf.d/slurm_ch.conf"
    line.parent.mkdir()
    line.write_text(f"required {libdir}/slurm_ch/native/slurm_ch.so\n")
    words = ("uninstall", f"prefix={tmp_path}/opt/slurm_ch", f"libdir={libdir}", "DESTDIR=")
    done = make(*words, SLURM_CONF=str(conf))
    assert done.returncode != 0
    assert f"{line}:1 loads {libdir}/slurm_ch/native/slurm_ch.so: remove that line first" in done.stderr
    assert (libdir / "slurm_ch/native/slurm_ch.so").exists()
    line.unlink()
    done = make(*words, SLURM_CONF=str(conf))
    assert done.returncode == 0, done.stderr
    assert [path for path in (tmp_path / "opt").rglob("*") if not path.is_dir()] == []


def test_a_join_without_posix_ipc_says_what_is_missing(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['posix_ipc'] = None; from slurm_ch.cli.main import main;"
        "from slurm_ch.standalone import run; run.sockets_refused();"
        "sys.argv = ['slurm-ch', 'run', '--join-ct=1', '--join-tag=x', '/', '--', 'true']; main()"
    )
    done = subprocess.run(
        [str(ROOT / ".venv/bin/python"), "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 31
    assert done.stderr == (
        "slurm-ch: error: --join needs the Python module posix_ipc: python3 -m pip install posix_ipc\n"
    )


def test_a_command_whose_click_has_gone_says_so(tmp_path: Path) -> None:
    """As after an upgrade of Python: the distribution's click is for the new one."""
    shutil.copytree(ROOT / "slurm_ch", tmp_path / "slurm_ch", ignore=shutil.ignore_patterns("__pycache__", "native"))
    words = [tmp_path / "slurm_ch/cli/program.py", "slurm-ch", "socket", "ps"]
    done = subprocess.run(
        ["/usr/bin/python3", "-B", "-I", "-S", *words], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr == (
        "slurm-ch: error: /usr/bin/python3 has no click any more:"
        " install python3-click, or make install again (docs/admins.rst)\n"
    )


def release_of(plugin: Path) -> bytes:
    found = re.search(rb"slurm_ch for Slurm \0([\d.]+)\0", plugin.read_bytes())
    assert found
    return found[1]


def test_an_upgrade_of_slurm_rebuilds_the_plugin_and_nothing_else(tmp_path: Path) -> None:
    """Other headers at the same place, as after `apt upgrade`."""
    headers = tmp_path / "slurm/include/slurm"
    shutil.copytree("/usr/include/slurm", headers)
    # Slurm 20.11 has its number with all else.
    version = next(path for path in (headers / "slurm_version.h", headers / "slurm.h") if path.exists())
    out = tmp_path / "out"

    def build(number: str) -> str:
        text = re.sub(r"(#define SLURM_VERSION_NUMBER) .*", rf"\1 {number}", version.read_text())
        if text != version.read_text():
            version.write_text(text)
            os.utime(version, (1, 1))  # packages keep the files' own, older, times
        words = [
            "make",
            "-C",
            str(ROOT / "spank"),
            f"OUT={out}",
            f"SLURM_PREFIX={tmp_path}/slurm",
            "CFLAGS=-O0 -D_FORTIFY_SOURCE=0",
        ]
        done = subprocess.run(
            [*words, f"{out}/slurm_ch.so", f"{out}/ch-relay"], check=True, capture_output=True, text=True
        )
        return done.stdout

    build("0x170b04")
    assert release_of(out / "slurm_ch.so") == b"23.11"
    said = build("0x180505")
    assert release_of(out / "slurm_ch.so") == b"24.05"
    assert "slurm_ch.so" in said and "ch-relay.c" not in said
    assert "cc " not in build("0x180505")


def test_a_new_python_gets_a_new_venv(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    old = venv / "lib/python3.1/site-packages"
    old.mkdir(parents=True)
    (venv / ".python").touch()
    # A quick `python3 -m venv`, of the interpreter that there is now.
    python = tmp_path / "python"
    make_venv = "mkdir -p $3/bin; ln -s /usr/bin/python3 $3/bin/python; mkdir -p $3/lib/$(/usr/bin/python3 -c 'import sys; print(\"python%d.%d\" % sys.version_info[:2])')"
    python.write_text(f'#!/bin/sh\n[ "$1 $2" = "-m venv" ] || exec /usr/bin/python3 "$@"\n{make_venv}\n')
    python.chmod(0o755)
    done = make(f"{venv}/.python", f"VENV={venv}", f"PYTHON={python}")
    assert done.returncode == 0, done.stderr
    assert f"{venv}: made for python" in done.stdout
    assert not old.exists() and (venv / ".python").exists()
    assert make(f"{venv}/.python", f"VENV={venv}", f"PYTHON={python}").stdout == ""
