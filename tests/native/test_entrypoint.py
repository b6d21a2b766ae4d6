# SPDX-License-Identifier: Apache-2.0
"""The image's own command, from the files that ch-image writes, with any bytes in them, under sanitizers."""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .made import SANITIZE, SPANK

MAIN = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "ch-join.h"
void die(int code, const char *format, ...) { (void)format; exit(code); }
char *need(char *allocated) { return allocated; }
int main(int argc, char **argv)
{
	(void)argc;
	for (char **own = images_own(argv); *own; own++)
		fwrite(*own, 1, strlen(*own) + 1, stdout);
	return 0;
}
"""

Own = Callable[..., "subprocess.CompletedProcess[bytes]"]


def packed(strings: list[bytes]) -> bytes:
    return b"angi" + b"".join(struct.pack(">I", len(text)) + text for text in strings)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Own:
    """Run the parser on the contents of an entrypoint and a command."""
    where = tmp_path_factory.mktemp("own")
    (where / "main.c").write_text(MAIN)
    paths = [
        f'-DENTRYPOINT="{where}/entrypoint"',
        f'-DCMD="{where}/cmd"',
        f'-DAPPTAINERS="{where}/a"',
        f'-DENROOTS="{where}/e"',
    ]
    command = [
        "cc",
        *SANITIZE,
        f"-I{SPANK}/ch-join",
        *paths,
        "-o",
        where / "own",
        where / "main.c",
        SPANK / "ch-join/entrypoint.c",
    ]
    subprocess.run(command, check=True, capture_output=True)

    def run(entrypoint: bytes, cmd: bytes, *arguments: bytes) -> subprocess.CompletedProcess[bytes]:
        for name, data in (("entrypoint", entrypoint), ("cmd", cmd)):
            Path(where / name).write_bytes(data)
        # Memory that is kept for the exec is no leak.
        env = {"ASAN_OPTIONS": "detect_leaks=0"}
        return subprocess.run(
            [b"-", *arguments], executable=where / "own", check=False, capture_output=True, timeout=20, env=env
        )

    return run


STRINGS = st.lists(st.binary(max_size=20).map(lambda text: text.replace(b"\0", b"")), max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STRINGS, STRINGS, STRINGS)
@pytest.mark.row("CMD")
def test_strings_come_back(own: Own, entrypoint: list[bytes], cmd: list[bytes], arguments: list[bytes]) -> None:
    done = own(packed(entrypoint), packed(cmd), *arguments)
    wanted = entrypoint + (arguments or cmd)
    assert done.returncode == (0 if wanted else 64)
    assert done.stdout == b"".join(text + b"\0" for text in wanted)


def test_random_bytes(own: Own) -> None:
    """Random contents, with a fixed seed so that a failure can be repeated."""
    dice = random.Random(20261124)
    good = packed([b"/bin/sh", b"-c", b"echo hello", b""])
    for _ in range(200):
        data = bytearray(good)
        for _ in range(dice.randint(1, 4)):
            place = dice.randrange(len(data) + 1)
            kind = dice.randrange(3)
            if kind == 0:
                data[place : place + 1] = dice.randbytes(1)
            elif kind == 1:
                del data[place:]
            else:
                data[place:place] = dice.randbytes(dice.randint(1, 6))
        done = own(bytes(data), good)
        assert done.returncode in (0, 31), (bytes(data), done)
        assert done.stderr == b""
