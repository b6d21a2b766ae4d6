# SPDX-License-Identifier: Apache-2.0
"""How our C programs are built: options that make a fault hard to exploit, and a packager's flags."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_ch import paths

from .made import SPANK, write_script

NATIVE = Path(paths.NATIVE)
PROGRAMS = ("ch-join", "ch-relay", "ch-squashfuse_ll")


def readelf(path: Path, *options: str) -> str:
    return subprocess.run(["readelf", "-W", *options, path], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", [*PROGRAMS, "slurm_ch.so"])
def test_the_headers_of_what_was_built(name: str) -> None:
    segments, dynamic = readelf(NATIVE / name, "-hl"), readelf(NATIVE / name, "-d")
    assert re.search(r"^  Type: +DYN ", segments, re.M)
    assert "GNU_RELRO" in segments
    assert re.search(r"\(FLAGS_1\).*\bNOW\b", dynamic)
    assert "TEXTREL" not in dynamic
    # No memory is both writable and executable, not even the stack.
    loaded = re.findall(r"^  (LOAD|GNU_STACK) .* ([R ][W ][E ]) 0x", segments, re.M)
    assert ("GNU_STACK", "RW ") in loaded and len(loaded) >= 4
    assert not [one for one in loaded if one[1][1:] == "WE"]
    if name in PROGRAMS:  # static, and yet loaded anywhere
        assert re.search(r"\(FLAGS_1\).*\bPIE\b", dynamic)
        assert "NEEDED" not in dynamic and "INTERP" not in segments


@pytest.fixture(scope="module")
def unstripped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs with their symbols, otherwise built as usual."""
    to = tmp_path_factory.mktemp("unstripped")
    subprocess.run(["make", "-s", "-C", SPANK, f"OUT={to}", "STRIP="], check=True, capture_output=True, text=True)
    return to


@pytest.mark.parametrize("name", [*PROGRAMS, "slurm_ch.so"])
def test_each_source_has_the_stack_protector(unstripped: Path, name: str) -> None:
    """The C library calls it too, so the symbol alone proves nothing: functions of ours must call it."""
    sources = {path.name for path in SPANK.glob("*/*.c")}
    ours = set()
    source = False
    for line in readelf(unstripped / name, "-s").splitlines():
        words = line.split()
        if words[3:4] == ["FILE"]:
            source = words[-1] in sources
        elif source and words[3:4] == ["FUNC"] and words[6] != "UND":
            ours.add(words[7])
    assert ours
    text = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", unstripped / name], check=True, capture_output=True, text=True
    ).stdout
    functions = re.findall(r"^[0-9a-f]+ <([^>]+)>:\n((?:.+\n)+)", text, re.M)
    guarded = {function for function, body in functions if "<__stack_chk_fail" in body}
    assert ours & guarded


def commands(to: Path, **variables: object) -> Iterator[str]:
    """Yield the compiler's command for each of our programs in `to`, with a packager's variables."""
    words = [f"{name}={value}" for name, value in variables.items()]
    done = subprocess.run(["make", "-nB", "-C", SPANK, f"OUT={to}", *words], check=True, capture_output=True, text=True)
    text = done.stdout.replace("\\\n", " ")
    return (line for line in text.splitlines() if f" -o {to}/" in line)


def test_a_packagers_flags_come_last(tmp_path: Path) -> None:
    lines = list(commands(tmp_path, CPPFLAGS="-DONE=1", CFLAGS="-O1 -fno-stack-protector", LDFLAGS="-Wl,--as-needed"))
    assert len(lines) == 4
    for line in lines:
        words = line.split()
        for word in ("-DONE=1", "-O1", "-fno-stack-protector", "-Wl,--as-needed", "-D_FORTIFY_SOURCE=3"):
            assert words.count(word) == 1, (word, line)
        assert "-O2" not in words
        assert words.index("-fstack-protector-strong") < words.index("-fno-stack-protector")
        assert ("-static-pie" in words) == (not line.endswith("-ldl"))
    for where in ("CPPFLAGS", "CFLAGS"):
        for line in commands(tmp_path, **{where: "-O2 -Wp,-D_FORTIFY_SOURCE=1"}):
            assert re.findall(r"_FORTIFY_SOURCE\S*", line) == ["_FORTIFY_SOURCE=1"]


def test_a_compiler_that_lacks_some(tmp_path: Path) -> None:
    lacks = ("-static-pie", "-fstack-clash-protection", "-Wl,-z,relro,-z,now")
    tests = " || ".join(f'[ "$word" = {word} ]' for word in lacks)
    compiler = write_script(
        tmp_path / "cc", f'#!/bin/sh\nfor word; do if {tests}; then exit 1; fi; done\nexec cc "$@"\n'
    )
    lines = list(commands(tmp_path, CC=compiler))
    assert len(lines) == 4
    for line in lines:
        words = line.split()
        assert not {*lacks} & {*words}
        assert "-fstack-protector-strong" in words
        assert ("-static" in words) == (not line.endswith("-ldl"))
