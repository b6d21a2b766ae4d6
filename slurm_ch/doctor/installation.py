# SPDX-License-Identifier: Apache-2.0
"""Check the installation on this node: the plugin's line in plugstack.conf, and the programs that the plugin starts."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING

from .. import agreement, errors, slurm_conf
from ..request import site
from ..slurm import commands, plugstack
from . import as_user, modules, parts, trust
from .findings import OK, PROBLEM, WARNING, Finding

if TYPE_CHECKING:
    import pwd
    from collections.abc import Iterator, Mapping

PYTHON = (3, 9)
# The file that slurmd of a configless cluster gets from slurmctld.
_CACHED = "/conf-cache/plugstack.conf"
# Found in our task-prolog, and in a prolog that calls it.
_GUARD = re.compile(agreement.REQUEST_VARIABLE + "|slurm_ch/task-prolog")
_BUILT_FOR = re.compile(rb"slurm_ch for Slurm \0(\d+)\.(\d+)\0")
_TOO_OLD = re.compile(r"version [`']GLIBC_\S+ not found")
_NEEDED = (
    "import sys, _ctypes, fcntl, _socket, pwd, grp;"
    " print('python %d.%d %s' % (*sys.version_info[:2], sys.implementation.cache_tag))"
)


def find(env: Mapping[str, str], conf: str | None) -> tuple[plugstack.Entry | None, list[Finding]]:
    """Return our plugin's line in plugstack.conf, or None, and the findings about it.

    `conf`: plugstack.conf's path; None for the one of slurm.conf.
    """
    remedy = "put the installed plugstack.conf fragment into plugstack.conf, or include it there (docs/admins.rst)"
    try:
        if conf is None:
            own = slurm_conf.path(env)
            if own is None:
                text = f"no slurm.conf: neither SLURM_CONF nor {', '.join(slurm_conf.SLURM_CONFS)}"
                return None, [Finding(PROBLEM, "plugin", text, "set SLURM_CONF, or use --plugstack=FILE")]
            settings = slurm_conf.settings(own)
            conf = plugstack.path_of(own, settings)
            directories = tuple(one for one in settings.get("plugindir", "").split(":") if one)
        else:
            directories = ()
        entries = list(plugstack.entries(conf, (*directories, *plugstack.PLUGIN_DIRECTORIES)))
    except errors.ChError as error:
        return None, [Finding(PROBLEM, "plugin", errors.describe(error), remedy)]
    if not entries:
        if os.path.realpath(conf).endswith(_CACHED):
            remedy = (
                "write its line into the controller's plugstack.conf itself, which alone is handed out, not what it"
                " includes; then scontrol reconfigure (docs/admins.rst)"
            )
        return None, [Finding(PROBLEM, "plugin", f"not in {conf} nor in what that includes", remedy)]
    found = []
    entry = entries[0]
    if len(entries) > 1:
        text = f"in plugstack.conf more than once: {', '.join(one.where for one in entries)}"
        # A warning only: the plugin acts once, with the first line's arguments.
        found.append(Finding(WARNING, "plugin", text, "keep one of the lines: the first line's arguments count"))
    if entry.kind != "required":
        text = f"{entry.where}: optional: a node that can't load it runs steps on the host"
        found.append(Finding(WARNING, "plugin", text, "make it required"))
    return entry, found


def check_guard(env: Mapping[str, str]) -> Iterator[Finding]:
    """Check that a TaskProlog refuses steps in containers on a node without the plugin."""
    remedy = "set TaskProlog to the installed task-prolog, or put its lines at the beginning of yours (docs/admins.rst)"
    risk = "on a node without the plugin a batch script with --ch-image runs on the host"
    conf = slurm_conf.path(env)
    try:
        prologs = slurm_conf.settings(conf).get("taskprolog", "").split(":") if conf else []
    except errors.ChError:
        return  # reported by find
    for prolog in prologs:
        if not prolog:
            yield Finding(WARNING, "TaskProlog", f"none in {conf}: {risk}", remedy)
            return
        try:
            with open(prolog, errors="replace") as file:
                if _GUARD.search(file.read()):
                    yield Finding(OK, "TaskProlog", f"{prolog} refuses steps of a node without the plugin")
                    return
        except OSError as error:
            yield Finding(WARNING, "TaskProlog", f"{prolog}: {error.strerror}", remedy)
            return
    if prologs:
        yield Finding(
            WARNING, "TaskProlog", f"{':'.join(prologs)} doesn't look at {agreement.REQUEST_VARIABLE}: {risk}", remedy
        )


def check_slurm(env: Mapping[str, str]) -> Iterator[Finding]:
    """Check Slurm's own settings that affect steps in containers."""
    conf = slurm_conf.path(env)
    try:
        found = slurm_conf.settings(conf) if conf else {}
    except errors.ChError:
        return  # reported by find
    if "test_exec" in found.get("launchparameters", "").lower().split(","):
        text = f"test_exec in {conf}: srun refuses a command that the submission host lacks, though the image has it"
        yield Finding(
            WARNING,
            "LaunchParameters",
            text,
            "take test_exec out of LaunchParameters; meanwhile: srun --ch-image=IMAGE env COMMAND",
        )
    if "contain_spank" in found.get("slurmdparameters", "").lower().split(","):
        yield Finding(OK, "SlurmdParameters", "contain_spank: steps in containers work with it")


def argument(entry: plugstack.Entry, name: str) -> str | None:
    """Return the first value of an argument of the plugin's, which is the one that the plugin uses."""
    for one in entry.arguments:
        key, _, value = one.partition("=")
        if key == name and value:
            return value
    return None


def check(entry: plugstack.Entry, user: pwd.struct_passwd) -> Iterator[Finding]:
    """Check the plugin, its arguments, and the programs that it starts; programs are run as `user`."""
    plugin = os.path.realpath(entry.path)
    native = os.path.dirname(plugin)
    yield from _check_plugin(entry)
    yield from check_libraries(entry.path, user)
    if not os.path.exists(plugin):
        return  # the other parts would be next to it
    yield from parts.check(native, plugin)
    try:
        wanted = site.parse(entry.arguments)
    except errors.UsageError as error:
        yield Finding(PROBLEM, "plugstack.conf", errors.describe(error), f"correct {entry.where}")
    else:
        for bind in wanted.binds:
            if not os.path.exists(bind.src):
                text = f"bind={bind.src}: not on this node"
                yield Finding(PROBLEM, "plugstack.conf", text, "create it, or remove the bind")
    ch_join = argument(entry, "ch_join") or os.path.join(native, "ch-join")
    yield from _check_python(_python(entry), _launcher(entry), user)
    yield from _check_program("ch-join", ch_join, "make install, or set ch_join=PATH in plugstack.conf", user)
    if argument(entry, "launcher") is None:
        # ch-relay is next to the plugin, unless the launcher is elsewhere.
        relay = os.path.join(native, "ch-relay")
        yield from _check_program("ch-relay", relay, "make install, or set relay=no in plugstack.conf", user)


def _native(entry: plugstack.Entry) -> str:
    return os.path.dirname(os.path.realpath(entry.path))


def _launcher(entry: plugstack.Entry) -> str:
    return argument(entry, "launcher") or os.path.normpath(os.path.join(_native(entry), agreement.DEFAULT_LAUNCHER))


def _python(entry: plugstack.Entry) -> str:
    return argument(entry, "python") or agreement.DEFAULT_PYTHON


def check_files(entry: plugstack.Entry, squashfuse: str, user: pwd.struct_passwd) -> Iterator[Finding]:
    """Check who can read and who can change the files that a step runs, and plugstack.conf."""
    launcher = _launcher(entry)
    ch_join = argument(entry, "ch_join") or os.path.join(_native(entry), "ch-join")
    relay = os.path.join(_native(entry), "ch-relay")
    readable = {"plugstack.conf": [entry.where.rpartition(":")[0]], "plugin": [entry.path], "launcher": [launcher]}
    programs = [_python(entry), ch_join, squashfuse, *([relay] if argument(entry, "launcher") is None else [])]
    package = os.path.dirname(os.path.dirname(launcher))
    yield from trust.check(
        {**readable, "programs": programs},
        {**dict.fromkeys(readable, os.R_OK), "programs": os.X_OK},
        # A launcher in another place may be next to unrelated files.
        package if os.path.exists(os.path.join(package, "errors.py")) else None,
        user,
    )


def _check_plugin(entry: plugstack.Entry) -> Iterator[Finding]:
    try:
        with open(entry.path, "rb") as file:
            built = _BUILT_FOR.search(file.read())
    except OSError as error:
        remedy = f"make install, or correct {entry.where}"
        yield Finding(PROBLEM, "plugin", f"{entry.path}: {error.strerror}", remedy)
        return
    if not built:
        yield Finding(PROBLEM, "plugin", f"{entry.path}: not a plugin of this version", "make install")
        return
    release = int(built[1]), int(built[2])
    running = _slurm_release()
    words = "built for Slurm {}.{:02}".format(*release)
    if running is None:
        yield Finding(
            WARNING, "plugin", f"{entry.path}: {words}; can't find out what Slurm this is", "put srun into PATH"
        )
    elif running != release:
        text = "{}: {}, and this is Slurm {}.{:02}".format(entry.path, words, *running)
        yield Finding(PROBLEM, "plugin", text, "build and install it anew on this release: make install")
    else:
        yield Finding(OK, "plugin", f"{entry.path}: {words}")


def check_libraries(plugin: str, user: pwd.struct_passwd) -> Iterator[Finding]:
    """Check that this node's C library is new enough for the plugin, by loading it in a child, as `user`."""
    if not os.path.exists(plugin):
        return  # reported by _check_plugin
    words = [sys.executable, "-I", "-S", "-c", "import _ctypes, sys; _ctypes.dlopen(sys.argv[1], 1)", plugin]
    try:
        status, output = as_user.in_child(lambda: as_user.run(words), user)
    except errors.ChError as error:
        yield Finding(PROBLEM, "plugin", errors.describe(error))
        return
    last = (output.strip().splitlines() or [""])[-1]
    # Slurm's own symbols are only in Slurm's programs: if only those are missing, the C library is new enough.
    if status and "undefined symbol: s" not in last:
        text = f"can't be loaded on this node: {last.removeprefix('OSError: ')}"
        if _TOO_OLD.search(last):
            text += ": it was built on a newer system"
        yield Finding(
            PROBLEM, "plugin", text, "build it on the oldest system that runs it, and install that everywhere"
        )


def _slurm_release() -> tuple[int, ...] | None:
    for name in ("srun", "slurmd", "/usr/sbin/slurmd"):
        try:
            found = commands.parse_version(commands.run([name, "-V"]).stdout)[:2]
        except errors.ChError:
            continue
        if found:
            return found
    return None


def check_cluster() -> Iterator[Finding]:
    """Ask slurmctld which nodes run another Slurm release than this node."""
    try:
        done = commands.run(["sinfo", "--noheader", "--Node", "--format=%N %v"])
    except errors.ChError as error:
        yield Finding(WARNING, "cluster", errors.describe(error), "put sinfo into PATH")
        return
    if done.returncode:
        yield Finding(WARNING, "cluster", f"sinfo failed: {commands.last_line(done)}", "is slurmctld up?")
        return
    here = _slurm_release()
    if here is None:
        yield Finding(WARNING, "cluster", "can't find out what Slurm this node runs", "put srun into PATH")
        return
    nodes = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if " " in line)
    # A node that has never registered has no version.
    versions = {name: commands.parse_version(text)[:2] for name, text in nodes.items()}
    others = sorted(name for name, version in versions.items() if version and version != here)
    if others:
        shown = ", ".join(f"{name} ({nodes[name]})" for name in others[:5]) + (", ..." if len(others) > 5 else "")
        text = f"{len(others)} of {len(nodes)} nodes run another Slurm release: {shown}"
        yield Finding(WARNING, "cluster", text, "each release needs a plugin of its own (docs/admins.rst)")
    else:
        yield Finding(OK, "cluster", f"{len(nodes)} nodes, all of this Slurm release")


def _check_python(python: str, launcher: str, user: pwd.struct_passwd) -> Iterator[Finding]:
    """Check the interpreter and the launcher, and that the launcher is compiled for that interpreter."""
    remedy = "install Python 3.9 or later there, or set python=PATH in plugstack.conf"
    try:
        status, output = as_user.in_child(lambda: as_user.run([python, "-I", "-S", "-c", _NEEDED]), user)
    except errors.ChError as error:
        yield Finding(PROBLEM, "python", errors.describe(error), remedy)
        return
    match = re.match(r"python (\d+)\.(\d+) (\S+)", output)
    if status or not match:
        last = output.strip().splitlines()[-1:] or [f"status {status}"]
        yield Finding(PROBLEM, "python", f"{python} can't be used for the launcher: {last[0]}", remedy)
        return
    if (int(match[1]), int(match[2])) < PYTHON:
        yield Finding(PROBLEM, "python", f"{python} is too old: {match[1]}.{match[2]}", remedy)
        return
    yield Finding(OK, "python", f"{python}: {match[1]}.{match[2]}")
    yield from modules.check(python, launcher, match[3], user)


def _check_program(name: str, path: str, remedy: str, user: pwd.struct_passwd) -> Iterator[Finding]:
    """Check a program of slurm_ch that is executed inside containers, so has to be linked statically."""
    remedy += "; the file system must not be mounted noexec"
    try:
        status, output = as_user.in_child(lambda: as_user.run([path]), user)
    except errors.ChError as error:
        yield Finding(PROBLEM, name, errors.describe(error), remedy)
        return
    if status != agreement.EXIT_USAGE or name not in output:
        yield Finding(PROBLEM, name, f"{path}: not a program of slurm_ch", remedy)
    elif _interpreter(path):
        text = f"{path}: linked dynamically: its loader is not in the image"
        yield Finding(PROBLEM, name, text, "make install, with static libc")
    else:
        yield Finding(OK, name, path)


def _interpreter(path: str) -> bool:
    """Whether an ELF program needs a loader (it has a PT_INTERP header, elf(5))."""
    with open(path, "rb") as file:
        head = file.read(64)
        wide = head[4] == 2
        order = "little" if head[5] == 1 else "big"

        def number(data: bytes) -> int:
            return int.from_bytes(data, order)  # type: ignore[arg-type]

        start = number(head[32:40]) if wide else number(head[28:32])
        size, count = (number(head[54:56]), number(head[56:58])) if wide else (number(head[42:44]), number(head[44:46]))
        file.seek(start)
        return any(number(file.read(size)[:4]) == 3 for _ in range(count))
