# SPDX-License-Identifier: Apache-2.0
"""The launcher as a program: `python3 -I -S launch.py FACTS_FD SOCKET_FD ERRORS_FD [NODE [USER_FD MOUNT_FD]]`.

This file is as short as possible, because Python compiles it at every start; the rest is in `bundled.py`. Standard
error is /dev/null, to hide the long tracebacks of the interpreter and its libraries. Messages go to ERRORS_FD.
"""

import gc
import marshal
import posix
import sys

# Collecting garbage during the imports only takes time, and the launcher exits soon.
gc.disable()
HERE = __file__.rpartition("/")[0]
try:
    # The bundle. It is trusted as much as the sources are.
    path = f"{HERE}/__pycache__/launch.{sys.implementation.cache_tag}.all.pyc"
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    head = posix.read(fd, 8)
    if head[:4] != sys.modules["_frozen_importlib_external"].MAGIC_NUMBER:
        raise ValueError
    bundle = marshal.loads(posix.read(fd, int.from_bytes(head[4:], "little")))  # noqa: S302
    exec(bundle[0])  # noqa: S102
    run = globals()["program"](HERE, bundle, fd)
except (OSError, EOFError, ValueError, TypeError, KeyError):
    run = None
if run is None:
    with open(f"{HERE}/bundled.py", "rb") as file:
        exec(file.read())  # noqa: S102
    run = globals()["program"](HERE, (), -1)
run()
