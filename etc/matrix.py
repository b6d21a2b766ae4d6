#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Run the test suite on several Debian releases, each with its own Slurm and Python.

    matrix.py [--clean] [--jobs N] [RELEASE...]

Each release gets a tree of its own below build/matrix/, made by debootstrap
from the mirror that this machine's apt uses, and kept for the next time. The
tree becomes the root of a new mount namespace (a chroot refuses user
namespaces), with new pid, /tmp, /var/tmp and /dev/shm; nothing outlives it. The
checkout is copied in, built against that release's Slurm, and tested. N releases
are tested at a time. A table of suites against releases is printed and written to
build/matrix/table.txt.

Exit status 1 if a release can't be built or a test fails. Needs root.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
WORK = HERE / "build/matrix"
RELEASES = ("bullseye", "bookworm", "trixie", "forky")
SCRIPTS = Path("/usr/share/debootstrap/scripts")

# Enough to run apt and make in the tree; the Makefile's PACKAGES are installed later.
BASE = "ca-certificates,make"
SUITE_SECONDS = 2400

# The release where the HTML documentation is built too, with warnings as errors.
DOCS = ("bookworm", "trixie")

# Tests that need something that a release lacks, and that nodes don't need.
LEFT_OUT = {
    "bullseye": {
        "tests/unit/test_bench.py": "benchmarks need Python 3.10",
        'tests/unit/test_cdi_reader.py::test_malformed[{"a": 999': "that a number is too long is Python 3.11's to say",
        "tests/native/test_confine.py": "its C names system calls that the headers lack",
        "tests/engine/test_escape.py": "likewise",
        "tests/native/test_descriptors.py": "likewise",
        "tests/native/test_reader.py::test_as_the_kernel_sees_it[gensquashfs": "its squashfs-tools-ng is too old",
        "tests/native/test_reader.py::test_as_the_kernel_sees_it[tar2sqfs": "likewise",
        "tests/native/test_reader.py::test_files_beyond_4_gib": "likewise",
        "tests/engine/test_like_ch_run.py": "Charliecloud 0.21 is no reference",
        "tests/engine/test_ch_run_options.py::test_fuse_single_reaches_the_server": "no squashfuse_ll",
        "tests/images/test_commands.py::test_push_and_pull_again[how1]": "skopeo 1.2 refuses a layer of its kind",
        "tests/cluster/test_missing_plugin.py::test_the_task_prolog_guards_what_srun_alone_cannot": "Slurm 20.11 goes on"
        " when TaskProlog fails",
        "tests/cluster/test_components.py::test_components_of_a_step_in_one_job": "Slurm 20.11 has none",
        "tests/cluster/test_configless.py::test_what_plugstack_conf_includes_does_not_get_to_the_node": "likewise",
        "tests/cluster/test_attach.py::test_a_terminal": "Slurm 20.11 sets up terminals otherwise",
        "tests/cluster/test_relay.py::test_a_terminal_inside": "likewise",
        "tests/cluster/test_per_task.py::test_each_task_sees_its_own_gpu[--gpus-per-task=1]": "Slurm 20.11 gives each task all",
        "tests/cluster/test_join_in_jobs.py::test_components_of_a_het_job": "in a script, srun refuses such components",
        "tests/cluster/test_broadcast_nodes.py::test_where_one_node_has_no_room": "sbcast of 20.11 says nothing of it",
        "tests/cluster/test_private_tmp.py": "Slurm 20.11 has no job_container/tmpfs",
        "tests/cluster/test_submission.py::test_a_container_of_slurms_own_as_well": "Slurm 20.11 has no --container",
    }
}

# bullseye's pip is older than the standard for editable installations.
VENV = """
test -x .venv/bin/python || python3 -m venv .venv
.venv/bin/python -c 'import pip, sys; sys.exit(tuple(map(int, pip.__version__.split(".")[:2])) < (21, 3))' ||
    .venv/bin/python -m pip install --quiet --upgrade pip
"""

# Files of the host that configure name servers, proxies and certificates.
LENT = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")

# As root of a new mount and pid namespace: make $1 the root, then run the rest.
ENTER = r"""
set -e
tree=$1; shift
mount --bind "$tree" "$tree"
cd "$tree"
mkdir -p sys dev proc tmp var/tmp run old
mount --rbind /sys sys
mount --rbind /dev dev
mount -t proc -o nosuid,nodev,noexec proc proc
for d in tmp var/tmp dev/shm; do mount -t tmpfs -o mode=1777 tmpfs $d; done
mount -t tmpfs -o mode=755 tmpfs run
for path in $LENT; do
    if [ -d $path ]; then mkdir -p .$path; else mkdir -p .${path%/*}; [ -e .$path ] || : > .$path; fi
    mount --bind $path .$path
done
pivot_root . old
cd /
umount -l /old
rmdir /old
cd /src
"$@"
exit $?  # not exec, because this shell must reap orphans
"""


class Failed(Exception):
    """A release can't be tested; the message says why."""


def run(*argv: str | Path, log: Path | None = None, **kw: object) -> None:
    """Run a command with its output in `log`; Failed with the log's end if it fails."""
    with open(log, "ab") if log else open(os.devnull, "wb") as out:
        done = subprocess.run(
            [str(word) for word in argv],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            **kw,
        )  # type: ignore[call-overload]
    if done.returncode:
        said = "".join(f"\n    {line}" for line in log.read_text(errors="replace").splitlines()[-15:]) if log else ""
        raise Failed(f"{argv[0]} failed (status {done.returncode}){said}")


def mirror() -> str:
    """Return the mirror of this machine's own release, from apt's configuration."""
    own = re.search(r"^VERSION_CODENAME=(\S+)", Path("/etc/os-release").read_text(), re.M)
    columns = "$(SITE)|$(RELEASE)|$(CODENAME)|$(COMPONENT)"
    command = ["apt-get", "indextargets", "--format", columns, "Created-By: Packages"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for line in said.splitlines():
        site, release, codename, component = line.split("|")
        if own and own[1] in (release, codename) and component == "main":
            return site
    raise Failed("apt has no source for this machine's own Debian release")


def lent() -> list[str]:
    """Return the host's files that each tree shows: LENT, and the directories where pip finds packages."""
    said = subprocess.run([sys.executable, "-m", "pip", "config", "list"], check=False, capture_output=True, text=True)
    local = re.findall(r"(?:file://|[' =])(/[^\s'\\]+)", said.stdout)
    local = [str(Path(path).parent if path.endswith("/simple") else path) for path in local]
    paths = [*LENT, *local, *os.environ.get("PIP_FIND_LINKS", "").split()]
    return sorted({path for path in paths if os.path.exists(path)})


def inside(tree: Path, *argv: str, log: Path, timeout: float = SUITE_SECONDS) -> None:
    """Run a command with `tree` as its root."""
    env = {
        name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.lower().endswith("_proxy")
    }
    env |= {"LENT": " ".join(lent()), "HOME": "/root", "LC_ALL": "C.UTF-8", "TERM": "dumb"}
    env["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    # Killed with this process, or the suite would go on in the tree.
    new = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--propagation",
        "private",
    ]
    try:
        run(*new, "bash", "-c", ENTER, "enter", tree, *argv, log=log, env=env, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Failed(f"no end after {timeout:.0f} s: {' '.join(argv)}") from None


def bootstrap(release: str, log: Path, tree: Path | None = None) -> Path:
    """Return the release's tree, made if it isn't there."""
    tree = tree or WORK / release / "tree"
    if tree.exists():
        return tree
    if not shutil.which("debootstrap"):
        # A broken source of a third party doesn't matter here.
        subprocess.run(["apt-get", "update", "-qq"], check=False, stdout=subprocess.DEVNULL)
        run("apt-get", "install", "-qq", "-y", "--no-install-recommends", "debootstrap", log=log)
    script = SCRIPTS / release
    # A debootstrap older than the release has no script for it; unstable's does.
    script = script if script.exists() else SCRIPTS / "sid"
    new = tree.with_name("tree.new")
    shutil.rmtree(new, ignore_errors=True)
    run("debootstrap", "--variant=minbase", f"--include={BASE}", release, new, mirror(), script, log=log)
    new.rename(tree)
    return tree


def copy_checkout(tree: Path) -> None:
    """Copy the checkout's files to /src in the tree; keep its virtual environment."""
    to = tree / "src"
    to.mkdir(exist_ok=True)
    for entry in to.iterdir():
        if entry.name == ".venv":
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    git = [
        "git",
        "-C",
        str(HERE),
        "-c",
        f"safe.directory={HERE}",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    names = subprocess.run(git, check=True, capture_output=True).stdout
    names = b"\0".join(name for name in names.split(b"\0") if name and (HERE / os.fsdecode(name)).exists())
    pack = subprocess.Popen(
        ["tar", "-C", str(HERE), "--null", "-T", "-", "-cf", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    unpack = subprocess.Popen(["tar", "-C", str(to), "--no-same-owner", "-xf", "-"], stdin=pack.stdout)
    assert pack.stdin is not None
    pack.stdin.write(names)
    pack.stdin.close()
    if unpack.wait() or pack.wait():
        raise Failed("can't copy the checkout")
    subprocess.run(["chmod", "-R", "a+rX", to], check=True)


def facts(tree: Path) -> dict[str, str]:
    """Return the tree's versions, and how the plugin puts ch-join in front of a command there."""
    said = subprocess.run(
        ["chroot", tree, "bash", "-c", "slurmd -V; python3 -V"], check=False, capture_output=True, text=True
    )
    words = said.stdout.split()
    header = tree / "usr/include/slurm/spank.h"
    api = header.exists() and "spank_prepend_task_argv" in header.read_text()
    return {
        "Slurm": words[1] if len(words) > 1 else "?",
        "Python": words[3] if len(words) > 3 else "?",
        "ch-join put in front": "by Slurm's call" if api else "by replacing argv[0]",
    }


def results(report: Path) -> dict[str, str]:
    """Return each suite's `passed/total` from a JUnit report."""
    counts: dict[str, list[int]] = {}
    for case in ET.parse(report).iter("testcase"):
        parts = case.get("classname", "").split(".")
        suite = "tests/" + (parts[1] if len(parts) > 1 else "?")
        good, total = counts.setdefault(suite, [0, 0])
        bad = any(child.tag in ("failure", "error", "skipped") for child in case)
        counts[suite] = [good + (not bad), total + 1]
    return {suite: f"{good}/{total}" for suite, (good, total) in counts.items()}


def test(release: str, make: list[str]) -> tuple[dict[str, str], bool]:
    """Test one release; return its column of the table, and whether all passed."""
    started = time.monotonic()
    (WORK / release).mkdir(parents=True, exist_ok=True)
    log, report = WORK / release / "log", WORK / release / "tree/src/report.xml"
    log.unlink(missing_ok=True)
    column: dict[str, str] = {}
    good = False
    try:
        tree = bootstrap(release, log)
        copy_checkout(tree)
        inside(tree, "make", "--no-print-directory", "deps", log=log)
        column = facts(tree)
        inside(tree, "sh", "-c", VENV, log=log)
        inside(tree, "make", "--no-print-directory", "build", log=log)
        if release in DOCS:
            column["make docs"] = "FAILED"
            inside(tree, "make", "--no-print-directory", "docs", log=log)
            column["make docs"] = "built"
        inside(tree, *make, *[f"--deselect={name}" for name in LEFT_OUT.get(release, ())], log=log)
        good = True
    except Failed as error:
        print(f"{release}: {error}", file=sys.stderr)
    if report.exists():
        column |= results(report)
    column["all"] = ("passed" if good else "FAILED") + f", {time.monotonic() - started:.0f} s"
    return column, good


def table(columns: dict[str, dict[str, str]]) -> str:
    """Return the table as text."""
    rows = list(dict.fromkeys(row for column in columns.values() for row in column if row != "all"))
    rows = [
        *[row for row in rows if not row.startswith("tests/")],
        *sorted(row for row in rows if row.startswith("tests/")),
        "all",
    ]
    cells = [["", *columns], *[[row, *[column.get(row, "-") for column in columns.values()]] for row in rows]]
    widths = [max(len(line[n]) for line in cells) for n in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells)


def main() -> int:
    """Test every release that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description="Run the test suite on several Debian releases.")
    parser.add_argument("--clean", action="store_true", help="make the trees anew")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many releases are tested at a time")
    parser.add_argument("--tests", default="", help="words for pytest instead of the whole suite")
    parser.add_argument("releases", nargs="*", metavar="RELEASE", default=list(RELEASES))
    wanted = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("must be root")
    pytest = [
        ".venv/bin/python",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--junitxml=report.xml",
        *wanted.tests.split(),
    ]

    def column(release: str) -> tuple[dict[str, str], bool]:
        if wanted.clean:
            shutil.rmtree(WORK / release, ignore_errors=True)
        print(f"{release}: log in {(WORK / release / 'log').relative_to(HERE)}", flush=True)
        return test(release, pytest)

    with ThreadPoolExecutor(max(1, wanted.jobs)) as pool:
        tested = dict(zip(wanted.releases, pool.map(column, wanted.releases), strict=True))
    text = table({release: rows for release, (rows, _) in tested.items()})
    (WORK / "table.txt").write_text(text + "\n")
    print(text)
    return int(not all(good for _, good in tested.values()))


if __name__ == "__main__":
    sys.exit(main())
