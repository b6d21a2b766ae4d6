# SPDX-License-Identifier: Apache-2.0
"""Containers from Python: this very process in one, or a command.

The keyword arguments are the options of `slurm-ch run`, with "_" for "-".
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import TYPE_CHECKING

from .. import agreement, errors, linux
from ..engine import container as engine
from ..engine import task_plan
from ..engine.caller import Caller
from ..request import options, parsers
from ..request.spec import Bind, Spec
from ..standalone import run as standalone
from .settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, MutableMapping, Sequence
    from typing import Any

    from ..engine.action import Hooks

_FNM_EXTMATCH = 1 << 5
_libc = ctypes.CDLL(None)
# Options of which only `run` can make something: they are about the command.
_OF_A_COMMAND = ("seccomp", "quiet", "join", "join_ct", "join_tag", "join_pid", "join_timeout")


def containerize(
    image: str | os.PathLike[str] | Spec,
    *,
    binds: Iterable[Bind | str] = (),
    write_fake: str | bool | None = None,
    env: Mapping[str, str | None] | None = None,
    hooks: Iterable[Hooks] = (),
    **more: object,
) -> engine.Container:
    """Put this process into a container made from `image`, and return the container; ChError if that fails.

    `env` is set in the environment, or unset where the value is None, after all other rules.

    What changes is the whole process, for good: its root and working directory,
    os.environ, its user and mount namespaces, its user and group ids as the process
    sees them, and no program that it starts can gain privileges any more
    (no_new_privs). It stops being dumpable. The umask is as before. The process must have one thread. Modules that are
    imported later come from the image. After a failure the process is in a
    half-made container, and good for nothing but to exit: call this in a child.
    """
    for name in _OF_A_COMMAND:
        if more.get(name):
            raise errors.UsageError(f"{name}: only for what slurm_ch.run() runs")
    spec = _spec(image, binds, write_fake, env, more)
    caller = Caller(dict(os.environ))
    container = engine.Container(spec, caller)
    _add_hooks(container, hooks)
    build = engine.containerize(container)
    linux.prctl_no_new_privs()
    directory = _carry_out(build.records, os.environ)
    _change_directory(directory, caller.cwd)
    return container


def run(
    image: str | os.PathLike[str] | Spec,
    argv: Sequence[str],
    *,
    binds: Iterable[Bind | str] = (),
    write_fake: str | bool | None = None,
    env: Mapping[str, str | None] | None = None,
    hooks: Iterable[Hooks] = (),
    **more: object,
) -> int:
    """Run `argv` in a container made from `image` and return its exit status, below 0 for a signal.

    ChError if there is no container; nothing changes in this process.
    """
    spec = _spec(image, binds, write_fake, env, more)
    hooks = list(hooks)
    reader, writer = os.pipe()  # closed by exec
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = agreement.EXIT_SETUP
        try:
            os.close(reader)
            standalone.run(spec, argv, dict(os.environ), lambda container: _add_hooks(container, hooks))
        except Exception as error:
            code = errors.exit_code(error)
            os.write(writer, json.dumps([errors.describe(error), code]).encode())
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, "rb") as pipe:
        told = pipe.read()
    status = os.waitpid(child, 0)[1]
    if told:
        text, code = json.loads(told)
        raise _error(text, code)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def explain(
    image: str | os.PathLike[str] | Spec,
    *,
    binds: Iterable[Bind | str] = (),
    write_fake: str | bool | None = None,
    env: Mapping[str, str | None] | None = None,
    **more: object,
) -> list[str]:
    """Return what containerize() would do, one action a line; ChError where it would fail at once."""
    spec = _spec(image, binds, write_fake, env, more)
    return list(engine.explain(engine.Container(spec, Caller(dict(os.environ)))))


def _spec(
    image: str | os.PathLike[str] | Spec,
    binds: Iterable[Bind | str],
    write_fake: str | bool | None,
    env: Mapping[str, str | None] | None,
    more: Mapping[str, Any],
) -> Spec:
    if isinstance(image, Spec):
        if binds or write_fake or env or more:
            raise TypeError("a Spec has everything in it: no further options beside it")
        return image
    given = settings({"bind": binds, "write_fake": write_fake, **more}, options.COMMAND)
    spec = parsers.make(os.fspath(image), given, "image")
    for name, value in (env or {}).items():
        spec.env_rules.append(("unset", name) if value is None else ("literal", f"{name}={value}"))
    return spec


def _add_hooks(container: engine.Container, hooks: Iterable[Hooks]) -> None:
    for one in hooks:
        if one.when not in ("host", "guest", "all"):
            raise errors.UsageError(f"hooks run at host, guest or all, not at {one.when}")
        setattr(container, f"hooks_{one.when}", one)


def _error(text: str, code: int) -> errors.ChError:
    kinds = {agreement.EXIT_USAGE: errors.UsageError, agreement.EXIT_JOIN: errors.JoinError}
    error = kinds.get(code, errors.ChError)(text)
    error.code = code
    return error


# ---- What ch-join does for a command, done to this process ----


def _carry_out(records: Iterable[task_plan.Record], environ: MutableMapping[str, str]) -> str | None:
    """Apply a plan's records to `environ`; return the directory that they ask for, or None."""
    directory = None
    expanded = {
        agreement.PLAN_SET: lambda text, _: text,
        agreement.PLAN_SET_ITEMS: _expand_items,
        agreement.PLAN_SET_ANYWHERE: _expand_anywhere,
    }
    for kind, value in records:
        if kind in expanded:
            name, _, text = value.partition("=")
            environ[name] = expanded[kind](text, environ)
        elif kind == agreement.PLAN_UNSET:
            for name in [name for name in environ if matches(value, name)]:
                del environ[name]
        elif kind == agreement.PLAN_PATH:
            path = environ.get("PATH", "")
            if "/bin" not in path.split(":"):
                environ["PATH"] = f"{path}:/bin" if path else "/bin"
        elif kind == agreement.PLAN_DIRECTORY:
            directory = value
    return directory


def matches(pattern: str, name: str) -> bool:
    """Whether a variable's name matches, extended patterns included, as the C library has it."""
    return bool(_libc.fnmatch(os.fsencode(pattern), os.fsencode(name), _FNM_EXTMATCH) == 0)


def _expand_items(value: str, environ: Mapping[str, str]) -> str:
    items = []
    for item in value.split(":"):
        if len(item) < 2 or item[0] != "$":
            items.append(item)
        elif environ.get(item[1:]):
            items.append(environ[item[1:]])
    return ":".join(items)


def _expand_anywhere(value: str, environ: Mapping[str, str]) -> str:
    import re

    names = r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})"
    return re.sub(names, lambda match: environ.get(match[1] or match[2], ""), value)


def _change_directory(asked: str | None, callers: str) -> None:
    """Go to the directory asked for, else where the caller was, else to the root."""
    try:
        os.chdir(asked or callers)
    except OSError as error:
        if asked:
            raise errors.ChError(f"can't cd to {asked}") from error
        os.chdir("/")
    os.environ["PWD"] = os.getcwd()
