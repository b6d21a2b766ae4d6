# SPDX-License-Identifier: Apache-2.0
"""Commands that can't be executed: the message names what is missing, and no shell runs a binary file."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.engine import task_plan

from .test_ch_join import carry_out

PLAN = task_plan.encode([])
NOT_FOUND, CANNOT_EXECUTE = 127, 126

Failing = Callable[..., str]


@pytest.fixture(params=["as shipped", "sanitized"])
def failing(request: pytest.FixtureRequest, ch_join_sanitized: Path) -> Failing:
    """Run a command that must fail with `code` and one message; return the message's part about the command."""
    program = paths.CH_JOIN if request.param == "as shipped" else ch_join_sanitized

    def run(code: int, *command: str | Path, **env: str) -> str:
        done = carry_out(PLAN, *map(str, command), program=program, **env)
        assert (done.returncode, done.stdout) == (code, ""), done
        begin = f"slurm-ch: error: can't execute {command[0]}: "
        assert done.stderr.startswith(begin)
        assert done.stderr.count("\n") == 1
        return done.stderr.removeprefix(begin).rstrip("\n")

    return run


def executable(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(0o755)
    return path


def elf(bits: int = 64, order: str = "<", kind: int = 2, machine: int = 62, loader: bytes = b"") -> bytes:
    """Return an ELF file with nothing in it but a loader's name, if one is given."""
    form = "HHIQQQIHHHHHH" if bits == 64 else "HHIIIIIHHHHHH"
    size, entry = (64, 56) if bits == 64 else (52, 32)
    ident = b"\x7fELF" + bytes([bits // 32, 1 if order == "<" else 2, 1]) + bytes(9)
    head = struct.pack(order + form, kind, machine, 1, 0, size, 0, 0, size, entry, 1 if loader else 0, 0, 0, 0)
    if not loader:
        return ident + head
    name = loader + b"\0"
    at = size + entry
    fields = (3, 4, at, 0, 0, len(name), len(name), 1) if bits == 64 else (3, at, 0, 0, len(name), len(name), 4, 1)
    return ident + head + struct.pack(order + ("IIQQQQQQ" if bits == 64 else "8I"), *fields) + name


MACHINE = os.uname().machine
OWN = {"x86_64": 62, "aarch64": 183}[MACHINE]
ANOTHER, ANOTHER_NAME = (183, "aarch64") if OWN == 62 else (62, "x86_64")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("#!/nonexistent/python3\n", "the interpreter in its first line, /nonexistent/python3, is not in the container"),
        ("#! \t/nonexistent/python3 -u x\n", "the interpreter in its first line, /nonexistent/python3, is not in the container"),
        ("#!/nonexistent/python3", "the interpreter in its first line, /nonexistent/python3, is not in the container"),
        ("#!/etc/passwd/x\n", "the interpreter in its first line, /etc/passwd/x, is not in the container"),
        ("#!/bin/sh\r\necho x\r\n", "No such file or directory: its lines end with CR LF, as on Windows (sed -i 's/\\r$//' FILE)"),
        ("#!/nonexistent\r\n", "No such file or directory: its lines end with CR LF, as on Windows (sed -i 's/\\r$//' FILE)"),
    ],
)  # fmt: skip
def test_scripts_whose_interpreter_is_missing(failing: Failing, tmp_path: Path, text: str, why: str) -> None:
    assert failing(NOT_FOUND, executable(tmp_path / "script", text)) == why


def test_an_interpreter_that_is_there_and_can_not_run(failing: Failing, tmp_path: Path) -> None:
    inner = executable(tmp_path / "inner", "#!/nonexistent/deep\n")
    script = executable(tmp_path / "script", f"#!{inner}\n")
    assert failing(NOT_FOUND, script) == (
        f"the interpreter in its first line, {inner}, can't be executed: "
        "the interpreter in its first line, /nonexistent/deep, is not in the container"
    )
    plain = tmp_path / "plain"
    plain.write_text("x")
    script = executable(tmp_path / "other", f"#!{plain}\n")
    assert "Permission denied: the file is not executable (chmod +x)" in failing(CANNOT_EXECUTE, script)
    (tmp_path / "round").symlink_to("round")
    script = executable(tmp_path / "unseen", f"#!{tmp_path}/round/sh\n")
    assert failing(CANNOT_EXECUTE, script) == (
        f"the interpreter in its first line, {tmp_path}/round/sh: Too many levels of symbolic links"
    )
    loop = tmp_path / "loop"
    executable(loop, f"#!{loop}\n")
    assert failing(CANNOT_EXECUTE, loop).startswith(f"the interpreter in its first line, {loop}, can't be executed: ")


@pytest.mark.parametrize("bits", [64, 32])
def test_programs_whose_loader_is_missing(failing: Failing, tmp_path: Path, bits: int) -> None:
    machine = OWN if bits == 64 else {62: 3, 183: 40}[OWN]
    program = executable(tmp_path / "app", elf(bits, machine=machine, loader=b"/lib/ld-nonexistent.so.1"))
    done = carry_out(PLAN, str(program))
    if bits == 32 and done.returncode == CANNOT_EXECUTE:  # a kernel without 32-bit programs
        assert "built for" in done.stderr
        return
    assert failing(NOT_FOUND, program) == (
        "its loader, /lib/ld-nonexistent.so.1, is not in the container: built for another C library or distribution?"
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (elf(machine=ANOTHER), f"built for {ANOTHER_NAME}, and this node is {MACHINE}: use an image for its processor"),
        (elf(32, machine=8, order=">"), f"built for mips of the other byte order, and this node is {MACHINE}: use an image for its processor"),
        (elf(machine=21, order=">"), f"built for ppc64 of the other byte order, and this node is {MACHINE}: use an image for its processor"),
        (elf(machine=0xABCD), f"its ELF header is broken, or for another processor than this node's ({MACHINE})"),
        (elf(kind=1, machine=OWN), "an ELF file, but no program: an object file, not linked yet"),
        (elf(kind=4, machine=OWN), "an ELF file, but no program"),
        (elf(machine=OWN)[:20], "its ELF header is broken; was it copied whole?"),
        (b"\x7fELF", "its ELF header is broken; was it copied whole?"),
        (b"\x7fELF\necho ran by a shell\n", "its ELF header is broken; was it copied whole?"),
        (b"\x7fELF" + b"\xff" * 200, "its ELF header is broken; was it copied whole?"),
        (b"MZ\0\0echo ran by a shell\n", "neither a program nor a script for this node"),
        (b"\0\necho ran by a shell\n", "neither a program nor a script for this node"),
        (b"x" * 300 + b"\0", None),
    ],
)  # fmt: skip
def test_files_that_are_no_program(failing: Failing, tmp_path: Path, content: bytes, why: str | None) -> None:
    file = executable(tmp_path / "file", content)
    if why is None:  # text as far as is looked
        assert "x: " in carry_out(PLAN, str(file)).stderr
        return
    assert failing(CANNOT_EXECUTE, file) == why
    assert failing(CANNOT_EXECUTE, "file", PATH=str(tmp_path)) == f"{file}: {why}"


def test_text_without_a_first_line_is_the_shells(tmp_path: Path) -> None:
    executable(tmp_path / "script", 'echo "$0" "$@"\n')
    done = carry_out(PLAN, "script", "a", "b c", PATH=f"/nonexistent:{tmp_path}:/bin")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/script a b c\n")
    assert carry_out(PLAN, str(executable(tmp_path / "empty", ""))).returncode == 0


def test_permissions_and_links(failing: Failing, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    assert failing(CANNOT_EXECUTE, plain) == "Permission denied: the file is not executable (chmod +x)"
    assert failing(CANNOT_EXECUTE, "plain", PATH=f"/bin:{tmp_path}") == (
        f"{plain}: Permission denied: the file is not executable (chmod +x)"
    )
    assert failing(CANNOT_EXECUTE, "/etc") == "Permission denied: it is a directory"
    assert failing(CANNOT_EXECUTE, "/dev/null") == "Permission denied: it is not a regular file"
    (tmp_path / "link").symlink_to("/nonexistent/app")
    assert failing(NOT_FOUND, tmp_path / "link") == "it is a link to /nonexistent/app, which is not in the container"
    assert failing(NOT_FOUND, "/nonexistent/app") == "No such file or directory"
    assert failing(NOT_FOUND, "nonexistent") == "No such file or directory"
    assert failing(NOT_FOUND, "") == "No such file or directory"
    os.mkfifo(tmp_path / "fifo", 0o755)
    assert failing(CANNOT_EXECUTE, tmp_path / "fifo") == "Permission denied: it is not a regular file"


@pytest.fixture
def noexec(tmp_path: Path) -> Iterator[Path]:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"x", os.fsencode(tmp_path), b"tmpfs", 8, None) == 0
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_file_system_without_programs(failing: Failing, noexec: Path) -> None:
    script = executable(noexec / "script", "#!/bin/sh\n")
    assert failing(CANNOT_EXECUTE, script) == (
        "Permission denied: its file system is mounted noexec; copy it to another, or start a script by its interpreter"
    )


def test_the_search_goes_on(tmp_path: Path) -> None:
    """As with execvp: a file that can't run doesn't hide one that can."""
    for name, text in (("a", "#!/nonexistent\n"), ("b", "x"), ("c", "#!/bin/sh\necho c\n")):
        (tmp_path / name).mkdir()
        executable(tmp_path / name / "app", text)
    (tmp_path / "b/app").chmod(0o644)
    path = f"{tmp_path}/a:{tmp_path}/b:{tmp_path}/c"
    assert carry_out(PLAN, "app", PATH=path).stdout == "c\n"
    done = carry_out(PLAN, "app", PATH=path.rpartition(":")[0])
    assert done.returncode == CANNOT_EXECUTE
    assert f"{tmp_path}/b/app: Permission denied: the file is not executable" in done.stderr
    assert carry_out(PLAN, "app", PATH=":", cwd=str(tmp_path / "c")).stdout == "c\n"
    assert carry_out(PLAN, "./app", PATH="", cwd=str(tmp_path / "c")).stdout == "c\n"


def test_a_long_name_is_no_trouble(failing: Failing, tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(12):
        deep /= "d" * 250
        os.mkdir(deep)
    script = executable(deep / "script", "#!/" + "i" * 250 + "\n")
    assert "the interpreter in its first line, /iii" in failing(NOT_FOUND, script)
