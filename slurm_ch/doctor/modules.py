# SPDX-License-Identifier: Apache-2.0
"""Check the launcher's modules on this node: that they can be loaded, and that they are compiled."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .. import agreement, errors
from . import as_user
from .findings import OK, PROBLEM, WARNING, Finding

if TYPE_CHECKING:
    import pwd
    from collections.abc import Iterator

# Reads the bundle like launch.py, and compares it with all sources like bundled.py.
_BUNDLE = """
import importlib.util, marshal, sys
package = sys.argv[1]
try:
    with open(f"{package}/plugin/__pycache__/launch.{sys.implementation.cache_tag}.all.pyc", "rb") as file:
        head = file.read(8)
        if head[:4] != importlib.util.MAGIC_NUMBER:
            sys.exit("it is of another Python")
        bundle = marshal.loads(file.read(int.from_bytes(head[4:], "little")))
    names = {}
    exec(bundle[0], names)
    for stamp in (*bundle[1], *(stamp for stamp, _ in bundle[3].values())):
        if not names["_is_same"](package, *stamp):
            sys.exit(f"{stamp[0]} has changed since")
except OSError as error:
    sys.exit(f"{error.filename}: {error.strerror}")
except Exception as error:
    sys.exit(f"it is damaged: {type(error).__name__}")
"""


def check(python: str, launcher: str, tag: str, user: pwd.struct_passwd) -> Iterator[Finding]:
    """Check that all modules can be loaded, and that no step has to compile them."""
    package = os.path.dirname(os.path.dirname(launcher))
    remedy = "make install; every directory above it must be open to everybody"
    try:
        # Called by hand, the launcher exits with EXIT_USAGE after it has loaded all its modules.
        status, output = as_user.in_child(lambda: as_user.run([python, "-I", "-S", launcher]), user)
    except errors.ChError as error:
        yield Finding(PROBLEM, "launcher", errors.describe(error), remedy)
        return
    if status != agreement.EXIT_USAGE:
        last = output.strip().splitlines()[-1:] or [f"status {status}"]
        yield Finding(PROBLEM, "launcher", f"{launcher}: {last[0]}", remedy)
        return
    bundle = f"{python} -I -B {package}/plugin/bundle.py"
    stale = [name for name in _modules(package) if not _compiled(package, name, tag)]
    if stale:
        text = f"{launcher}: {len(stale)} modules are not compiled for {python} ({stale[0]}, ...): each step does that"
        yield Finding(WARNING, "launcher", text, f"{python} -m compileall {package}; {bundle}")
        return
    why = _bundle(python, package, user)
    if why:
        text = f"{launcher}: its modules are not in one file for {python}: each step takes longer to start ({why})"
        yield Finding(WARNING, "launcher", text, bundle)
    else:
        yield Finding(OK, "launcher", launcher)


def _bundle(python: str, package: str, user: pwd.struct_passwd) -> str:
    """Return why a step can't use the bundle, or ""."""
    try:
        status, output = as_user.in_child(lambda: as_user.run([python, "-I", "-S", "-c", _BUNDLE, package]), user)
    except errors.ChError as error:
        return errors.describe(error)
    last = output.strip().splitlines()[-1:] or [f"status {status}"]
    return last[0] if status or output else ""


def _modules(package: str) -> list[str]:
    """Return the files of all modules in the package and its folders, relative to the package."""
    if not os.access(package, os.R_OK):
        return []
    folders = ["", *(one.name for one in os.scandir(package) if os.path.exists(f"{one.path}/__init__.py"))]
    found = [os.path.join(one, name) for one in folders for name in os.listdir(os.path.join(package, one))]
    return sorted(name for name in found if name.endswith(".py"))


def _compiled(package: str, name: str, tag: str) -> bool:
    """Whether a module's cached bytecode exists and is up to date, by the source's size and time, like Python."""
    source = os.path.join(package, name)
    folder, base = os.path.split(source)
    try:
        with open(os.path.join(folder, "__pycache__", f"{base[:-3]}.{tag}.pyc"), "rb") as file:
            head = file.read(16)
        status = os.stat(source)
    except OSError:
        return False
    if int.from_bytes(head[4:8], "little"):
        return True  # checked by a hash, or never
    stamp = (int(status.st_mtime) & 0xFFFFFFFF).to_bytes(4, "little") + (status.st_size & 0xFFFFFFFF).to_bytes(
        4, "little"
    )
    return head[8:16] == stamp
