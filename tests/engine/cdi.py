# SPDX-License-Identifier: Apache-2.0
"""Helpers of the device tests: a driver's library, and specs for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Write = Callable[..., Path]

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


def library_mount(driver: Path) -> dict[str, object]:
    target = f"{FOLDER}/{LIBRARY}"
    return {"hostPath": str(driver / LIBRARY), "containerPath": target, "options": ["ro", "nosuid", "nodev", "bind"]}
