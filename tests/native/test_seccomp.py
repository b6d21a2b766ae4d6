# SPDX-License-Identifier: Apache-2.0
"""Root emulation: the filter, run by an interpreter, for every architecture that it covers."""

from __future__ import annotations

import re
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from .made import SPANK

ALLOW, FAKE = 0x7FFF0000, 0x00050000

# linux/audit.h
X86_64, I386, AARCH64, ARM, RISCV64 = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028, 0xC00000F3

CHOWNS = ("chown", "fchown", "lchown", "fchownat")
IDS = ("setuid", "setgid", "setreuid", "setregid", "setgroups", "setresuid", "setresgid", "setfsuid", "setfsgid")
FAKED = (*CHOWNS, *IDS, "capset", "kexec_load")

# The kernel's headers with the numbers.
HEADERS = {
    X86_64: "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    I386: "/usr/include/x86_64-linux-gnu/asm/unistd_32.h",
    AARCH64: "/usr/include/asm-generic/unistd.h",
}

# 32-bit ARM's header is in no package here: i386 has the same numbers but for these.
ARM_DIFFERS = {"fchownat": 325, "mknodat": 324, "kexec_load": 347, "setresuid": 164, "setresgid": 170}

Instruction = tuple[int, int, int, int]

MAIN = r"""
#include <linux/filter.h>
#include <stdio.h>
#include <stdlib.h>
#include "ch-join.h"
void die(int code, const char *format, ...) { (void)format; exit(code); }
int main(void)
{
	struct sock_filter filter[512];
	size_t n = root_filter(filter, 512);
	if (root_filter(filter, 20))
		return 1;
	return fwrite(filter, sizeof(*filter), n, stdout) != n;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[Instruction]:
    """The filter as (code, jt, jf, k)."""
    where = tmp_path_factory.mktemp("seccomp")
    (where / "main.c").write_text(MAIN)
    command = ["cc", "-Wall", "-Werror", "-fsanitize=address,undefined", f"-I{SPANK}/ch-join", "-o", where / "dump"]
    subprocess.run([*command, where / "main.c", SPANK / "ch-join/root_emulation.c"], check=True)
    data = subprocess.run([where / "dump"], check=True, capture_output=True).stdout
    return [struct.unpack_from("<HBBI", data, at) for at in range(0, len(data), 8)]


def run(program: list[Instruction], arch: int, number: int, *args: int) -> int:
    """Return what the filter answers to a system call; as linux/bpf_common.h defines its machine."""
    call = struct.pack("<iIQ6Q", number, arch, 0, *args, *[0] * (6 - len(args)))
    accumulator = at = 0
    while True:
        code, jt, jf, k = program[at]
        at += 1
        if code == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            (accumulator,) = struct.unpack_from("<I", call, k)
        elif code == 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
            at += jt if accumulator == k else jf
        elif code == 0x05:  # BPF_JMP | BPF_JA
            at += k
        elif code == 0x54:  # BPF_ALU | BPF_AND | BPF_K
            accumulator &= k
        else:
            assert code == 0x06, hex(code)  # BPF_RET | BPF_K
            return k


def numbers(arch: int) -> dict[str, int]:
    """Return the architecture's system calls by name."""
    if arch == ARM:
        return {**numbers(I386), **ARM_DIFFERS}
    text = Path(HEADERS[arch]).read_text()
    return {name: int(n) for name, n in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\s", text)}


def families(calls: dict[str, int]) -> set[int]:
    """Return the numbers that must be faked: each name, and its 32-bit-id form where there is one."""
    return {calls[form] for name in FAKED for form in (name, f"{name}32") if form in calls}


@pytest.mark.parametrize("arch", [X86_64, I386, AARCH64, ARM])
@pytest.mark.row("--seccomp")
def test_each_call_of_each_architecture(program: list[Instruction], arch: int) -> None:
    calls = numbers(arch)
    special = {calls[name] for name in ("mknod", "mknodat") if name in calls}
    found = {number for number in range(1024) if run(program, arch, number) == FAKE}
    assert found == families(calls)
    for number in set(range(1024)) - found - special:
        assert run(program, arch, number, stat.S_IFCHR, stat.S_IFCHR, stat.S_IFCHR) == ALLOW


@pytest.mark.parametrize("arch", [X86_64, I386, AARCH64, ARM])
@pytest.mark.row("--seccomp")
def test_mknod_fakes_devices_only(program: list[Instruction], arch: int) -> None:
    calls = numbers(arch)
    for name, index in (("mknod", 1), ("mknodat", 2)):
        if name not in calls:
            continue
        for kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, 0):
            args = [0, 0, 0]
            # Only the lower half of the register is the mode.
            args[index] = kind | 0o644 | 0xFFFF << 32
            wanted = FAKE if kind in (stat.S_IFCHR, stat.S_IFBLK) else ALLOW
            assert run(program, arch, calls[name], *args) == wanted, (name, kind)


def test_what_is_none_of_ours(program: list[Instruction]) -> None:
    # x32 calls carry a bit of their own; an unknown machine is left alone.
    assert run(program, X86_64, 92 | 0x40000000) == ALLOW
    assert {run(program, RISCV64, number) for number in range(512)} == {ALLOW}


def test_program_is_one_that_the_kernel_takes(program: list[Instruction]) -> None:
    assert len(program) <= 4096
    for at, (code, jt, jf, k) in enumerate(program):
        ahead = (k,) if code == 0x05 else (jt, jf) if code == 0x15 else (0,)
        assert all(at + 1 + offset < len(program) for offset in ahead) or code == 0x06
