#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""In etc/cross.py's tree: build all C for aarch64, and run what qemu-user can run.

One line per finding. What qemu-user can't do is tried and listed at the end, so
that nobody takes it for tested.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))

from slurm_ch import linux  # noqa: E402
from slurm_ch.engine import task_plan  # noqa: E402

CC = "aarch64-linux-gnu-gcc"
QEMU = ["/usr/bin/qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"]
OUT = HERE / "build/aarch64"
NATIVE = OUT / "native"
FUZZ_CASES = 300
SECONDS = 120

# For a process under qemu-user `uname -m` is aarch64, and system calls have aarch64's numbers.
PYTHON = [
    "/usr/bin/qemu-aarch64-static",
    "-L",
    "/arm64",
    "-E",
    "PYTHONHOME=/arm64/usr",
    "/arm64/usr/bin/python3.11",
]
LAUNCHER = """#!/usr/bin/python3 -I
import socket
socket.socket(fileno=4).sendmsg([b"slurmch1" + (77).to_bytes(4, "little")])
"""

failed = 0


def run(argv: Sequence[str | Path], **kw: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, its output as text."""
    settings: dict[str, object] = {
        "capture_output": True,
        "text": True,
        "errors": "replace",
        "timeout": SECONDS,
        "stdin": subprocess.DEVNULL,
    }
    return subprocess.run([str(word) for word in argv], check=False, **{**settings, **kw})  # type: ignore[call-overload,no-any-return]


def must(argv: Sequence[str | Path], **kw: object) -> str:
    """Run a command that succeeds, and return what it printed."""
    done = run(argv, **kw)
    assert done.returncode == 0, f"{argv[0]}: status {done.returncode}: {(done.stderr or done.stdout)[-1500:]}"
    return done.stdout


def finding(what: str, check: Callable[[], str]) -> None:
    """Run one check, and print what it found."""
    global failed
    started = time.monotonic()
    try:
        said = check()
        print(f"ok: {what}{': ' + said if said else ''} ({time.monotonic() - started:.1f} s)", flush=True)
    except (AssertionError, OSError, subprocess.SubprocessError, ValueError) as error:
        failed += 1
        print(f"FAILED: {what}: {error}", flush=True)


# --- built -------------------------------------------------------------------


def build() -> str:
    """Build programs and plugin, warnings being errors."""
    shutil.rmtree(OUT, ignore_errors=True)
    must(["make", "-C", HERE / "spank", f"CC={CC}", f"OUT={NATIVE}", "all"])
    names = sorted(path.name for path in NATIVE.iterdir() if not path.name.startswith(".") and path.suffix != ".json")
    assert {"ch-join", "ch-relay", "ch-squashfuse_ll", "slurm_ch.so"} <= set(names), names
    for name in ("ch-join", "ch-relay", "ch-squashfuse_ll", "slurm_ch.so"):
        assert "ARM aarch64" in must(["file", "-b", NATIVE / name]), name
    return ", ".join(f"{name} {(NATIVE / name).stat().st_size >> 10} KiB" for name in names)


def sections_fit_pages_of_64k() -> str:
    """Every part that is loaded is aligned for the largest page that the architecture has."""
    for name in ("ch-join", "ch-relay", "ch-squashfuse_ll", "slurm_ch.so"):
        text = must(["aarch64-linux-gnu-readelf", "-lW", NATIVE / name])
        aligned = [int(line.split()[-1], 16) for line in text.splitlines() if line.split()[:1] == ["LOAD"]]
        assert aligned and min(aligned) >= 1 << 16, (name, aligned)
    return ""


def packages() -> str:
    """Debian's packages for arm64 can be built here, and all their programs are for that architecture."""
    must(["make", "--no-print-directory", "deb", "DEB_ARCH=arm64", "COMMIT=cross"], cwd=HERE, timeout=5 * SECONDS)
    found = sorted((HERE / "build/packages").glob("*_arm64.deb"))
    assert {path.name.partition("_")[0] for path in found} == {"slurm-ch", "slurm-ch-plugin"}, found
    for path in found:
        assert must(["dpkg-deb", "-f", path, "Architecture"]).strip() == "arm64", path
        unpacked = OUT / path.stem
        must(["dpkg-deb", "-x", path, unpacked])
        native = unpacked / "usr/lib/slurm_ch/slurm_ch/native"
        binaries = [*native.glob("ch-*"), *native.glob("*.so")]
        assert binaries and all("ARM aarch64" in must(["file", "-b", one]) for one in binaries), binaries
    return ", ".join(f"{path.name} {path.stat().st_size >> 10} KiB" for path in found)


# --- run ---------------------------------------------------------------------


def programs_answer() -> str:
    """Each program, called by hand, reports what it is, with the status that doctor expects."""
    for name in ("ch-join", "ch-relay"):
        done = run([*QEMU, NATIVE / name])
        assert done.returncode == 64 and name in done.stderr, (name, done)
    return ""


def plan() -> str:
    """ch-join carries out a plan: variables, a directory, patterns, and an exit status that passes."""
    records = [("E", "A=1"), ("X", "B=$A:2"), ("U", "DROP_*"), ("C", "/usr"), ("P", "")]
    fd = task_plan.plan_file(task_plan.encode(records))
    os.set_inheritable(fd, True)
    # The command is a program of this machine, which the kernel starts for qemu.
    shell = "echo $A $B ${DROP_ME-gone} $PWD; case $PATH in */bin*) echo bin;; esac; exit 7"
    command = [*QEMU, NATIVE / "ch-join", f"--plan={fd}", "--", "/bin/sh", "-c", shell]
    done = run(command, pass_fds=[fd], env={"PATH": "/usr/sbin", "DROP_ME": "x"})
    os.close(fd)
    assert (done.returncode, done.stdout) == (7, "1 1:2 gone /usr\nbin\n"), done
    return ""


def compile_fake(to: Path, *flags: str) -> None:
    """Build the tests' fake Slurm with the plugin in it."""
    sources = [path for folder in ("plugin", "common") for path in sorted((HERE / "spank" / folder).glob("*.c"))]
    command = [CC, "-std=gnu11", "-g", "-static", "-Wall", "-Wextra", *flags, f"-I{HERE}/spank/plugin"]
    fakes = [HERE / "tests/native/fake.c", *sorted((HERE / "tests/native").glob("spank_fake*.c"))]
    must([*command, "-o", to, *fakes, *sources, "-ldl"])


def plugin(place: Path) -> str:
    """The plugin in the tests' fake Slurm accepts options, and all tasks of a node get the launcher's answer."""
    fake = OUT / "fake"
    compile_fake(fake)
    words = ["submit", "--ch-image=i", "--ch-set-env=A=1", "--ch-write-fake"]
    said = must([*QEMU, "-0", "srun", fake, *words], env={"PATH": "/bin"})
    assert "SLURM_CH_REQUEST=image=i\nset-env=A=1\nwrite-fake=12%\n" in said, said
    interpreter = place / "interpreter"
    interpreter.write_text(LAUNCHER)
    interpreter.chmod(0o755)
    # A task can only execute a program of this machine: a shell script that starts ch-join by qemu, as binfmt would.
    join = place / "join"
    join.write_text(f'#!/bin/sh\nexec {" ".join(QEMU)} {NATIVE / "ch-join"} "$@"\n')
    join.chmod(0o755)
    site = f"python={interpreter}\nlauncher=/etc/hostname\nch_join={join}"
    env = {"PATH": "/bin", "FAKE_SITE": site, "SLURM_CH_REQUEST": "image=i\n"}
    done = run([*QEMU, fake, "remote", "3", "0", "/bin/true"], env=env)
    assert done.stdout == "task: 77\n" * 3, done
    return "3 tasks, one launcher"


def fuzz(target: str) -> str:
    """The parsers of one fuzz target stand the kept cases, and some made from them."""
    to = OUT / f"fuzz-{target}"
    fuzzing = HERE / "tests/fuzz"
    flags = ["-std=gnu11", "-g", "-O1", "-static", "-DPLAIN", "-Wno-cpp"]
    must([CC, *flags, "-o", to, fuzzing / f"fuzz_{target}.c", fuzzing / "driver.c", "-ldl"], cwd=fuzzing)
    corpus = sorted((fuzzing / "corpus" / target).iterdir())
    said = must([*QEMU, to, str(FUZZ_CASES), "7", *corpus])
    assert int(said) == FUZZ_CASES + len(corpus)
    return f"{int(said)} cases"


def fields(text: str) -> dict[str, str]:
    """Return the NAME=VALUE lines of a text."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def system_calls() -> str:
    """Python's system calls, by aarch64's numbers, fail because of their arguments, not as unknown calls."""
    program = f"""
import sys, os, errno
sys.path.insert(0, {str(HERE)!r})
from slurm_ch import linux
print("machine=" + os.uname().machine)
def attempt(name, call):
    try:
        call()
        print(f"{{name}}=done")
    except OSError as error:
        print(f"{{name}}=" + errno.errorcode[error.errno])
attempt("openat2", lambda: os.close(linux.openat2(linux.AT_FDCWD, "usr/bin/..", os.O_RDONLY, linux.RESOLVE_BENEATH)))
attempt("open_tree", lambda: linux.open_tree(linux.AT_FDCWD, "/nonexistent", 0))
attempt("pivot_root", lambda: linux.pivot_root("/nonexistent", "/nonexistent"))
attempt("mount", lambda: linux.mount("none", "/nonexistent", "tmpfs", 0, None))
attempt("umount2", lambda: linux.umount2("/nonexistent", 0))
attempt("fsopen", lambda: linux.fsopen("nonexistent"))
attempt("move_mount", lambda: linux.move_mount(-1, "", linux.AT_FDCWD, "/nonexistent", 0))
attempt("setns", lambda: linux.setns(-1))
attempt("unshare", lambda: linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS))
attempt("no_new_privs", linux.prctl_no_new_privs)
"""
    found = fields(must([*PYTHON, "-I", "-S", "-c", program], cwd="/"))
    assert found.pop("machine") == "aarch64", found
    expected = {
        "pivot_root": "ENOENT",
        "mount": "ENOENT",
        "umount2": "ENOENT",
        "setns": "EBADF",
        "no_new_privs": "done",
    }
    odd = {name: (found[name], wanted) for name, wanted in expected.items() if found[name] != wanted}
    assert not odd, odd
    missing = sorted(name for name, said in found.items() if said == "ENOSYS")
    return f"not in this qemu: {', '.join(missing)}" if missing else ""


def numbers() -> str:
    """The numbers of aarch64's system calls in linux.py are those of the kernel's header."""
    text = must([CC, "-dM", "-E", "-"], input="#include <asm/unistd.h>\n", stdin=None)
    header = {found[1]: found[2] for found in re.finditer(r"#define __NR_(\w+) (\d+)", text)}
    own = {name[4:].lower(): value for name, value in vars(linux).items() if name.startswith("_NR_")}
    checked = 0
    for name, value in own.items():
        number = value["aarch64"] if isinstance(value, dict) else value
        if name in header:
            assert int(header[name]) == number, (name, number, header[name])
            checked += 1
    assert checked >= 8, own
    return f"{checked} of {len(own)}"


def launcher() -> str:
    """All modules of the launcher can be loaded, and it reports what it is."""
    done = run([*PYTHON, "-I", "-S", HERE / "slurm_ch/plugin/launch.py"])
    assert done.returncode == 64 and "not by hand" in done.stderr, done
    return ""


def serve(place: Path) -> str:
    """ch-squashfuse_ll, without its filter, serves an image to this machine's kernel: the protocol needs no translation."""
    confined = OUT / "not-confined.o"
    must([CC, "-c", "-xc", "-o", confined, "-"], input="int __wrap_confine(void) { return 0; }", stdin=None)
    wrap = f"LDFLAGS=-Wl,--wrap=confine {confined}"
    program = OUT / "open/ch-squashfuse_ll"
    must(["make", "-C", HERE / "spank", f"CC={CC}", f"OUT={program.parent}", wrap, program])
    tree, image, at = place / "tree", place / "image.sqfs", place / "at"
    tree.mkdir()
    at.mkdir()
    (tree / "small").write_text("small\n")
    (tree / "large").write_bytes(os.urandom(3 << 20) + bytes(5 << 20))
    os.symlink("small", tree / "link")
    must(["mksquashfs", tree, image, "-quiet", "-no-progress"])
    fuse, archive = os.open("/dev/fuse", os.O_RDWR), os.open(image, os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
    assert libc.mount(b"image", bytes(at), b"fuse", 7, options) == 0, os.strerror(ctypes.get_errno())
    server = subprocess.Popen(
        [*QEMU, str(program), "-f", f"/dev/fd/{archive}", f"/dev/fd/{fuse}"],
        pass_fds=[fuse, archive],
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(fuse)
    os.close(archive)
    try:
        names = sorted(os.listdir(at))
        assert names == ["large", "link", "small"], names
        assert (at / "link").read_text() == "small\n"
        assert (at / "large").read_bytes() == (tree / "large").read_bytes()
    except OSError as error:
        server.kill()
        raise AssertionError(f"{error}; the server said: {server.communicate()[1]}") from None
    finally:
        libc.umount2(bytes(at), 2)
        server.kill()
        server.wait()
    return "8 MiB compared"


def refusals() -> str:
    """Try what qemu-user can't do, and so isn't tested here."""
    attempts = """
#define _GNU_SOURCE
#include <errno.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
static char stack[65536] __attribute__((aligned(16)));
static int child(void *unused)
{
	(void)unused;
	return 0;
}
int main(void)
{
	if (clone(child, stack + sizeof(stack), CLONE_VM | SIGCHLD, 0) < 0)
		printf("clone(CLONE_VM), as contain_spank has it: %s; ", strerror(errno));
	if (unshare(CLONE_NEWUSER))
		printf("user namespaces (its own threads): %s; ", strerror(errno));
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	int done = prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, 0);
	printf("seccomp filters: %s\\n", done ? strerror(errno) : "done");
	return 0;
}
"""
    program = OUT / "attempts"
    must([CC, "-static", "-xc", "-o", program, "-"], input=attempts, stdin=None)
    return must([*QEMU, program]).strip()


def main() -> int:
    """Do all checks; return the exit status."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        finding("everything is built for aarch64", build)
        if failed:
            return 1
        finding("make deb DEB_ARCH=arm64", packages)
        finding("parts are aligned for pages of 64 KiB", sections_fit_pages_of_64k)
        finding("ch-join and ch-relay start", programs_answer)
        finding("ch-join carries out a plan", plan)
        finding("the plugin in a fake Slurm", lambda: plugin(place))
        for target in ("ch_join", "words", "meeting", "submit", "node", "relay"):
            finding(f"fuzz target {target}", lambda target=target: fuzz(target))  # type: ignore[misc]
        finding("ch-squashfuse_ll serves an image", lambda: serve(place))
        finding("linux.py's numbers are those of the header", numbers)
        finding("linux.py under an aarch64 Python", system_calls)
        finding("the launcher under an aarch64 Python", launcher)
        finding("what qemu-user lacks", refusals)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
