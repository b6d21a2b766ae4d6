# SPDX-License-Identifier: Apache-2.0
"""Runs inside the container: `reader.py WHAT READERS ROOT PYTHON` prints the seconds of two passes.

WHAT is `tree` (read every file below ROOT/data) or `imports` (PYTHON runs
ROOT/imports.py); READERS processes do so at once.
"""

import os
import sys
import time


def read_tree(root: str) -> None:
    """Read every file below `root`."""
    for directory, _, files in os.walk(root):
        for name in files:
            fd = os.open(os.path.join(directory, name), os.O_RDONLY)
            while os.read(fd, 1 << 17):
                pass
            os.close(fd)


def one_pass(what: str, readers: int, root: str, python: str) -> float:
    """Return the seconds until all readers are done."""
    begin = time.perf_counter()
    children = []
    for _ in range(readers):
        child = os.fork()
        if child == 0:
            if what == "imports":
                os.execv(python, [python, "-I", "-B", root + "/imports.py"])
            read_tree(root + "/data")
            os._exit(0)
        children.append(child)
    for child in children:
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{what}: a reader failed")
    return time.perf_counter() - begin


if __name__ == "__main__":
    kind, count, place, interpreter = sys.argv[1:]
    print(*(one_pass(kind, int(count), place, interpreter) for _ in range(2)))
