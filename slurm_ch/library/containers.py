# SPDX-License-Identifier: Apache-2.0
"""Containers in Python: put this process into one, or run a command in one.

The keyword arguments are the options of `slurm-ch run`, with "_" for "-".
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from typing import TYPE_CHECKING

from .. import agreement, errors, linux, log
from ..engine import container as engine
from ..engine import task_plan
from ..engine.caller import Caller
from ..request import options, parsers
from ..request.spec import Bind, Spec
from ..standalone import run as standalone
from . import arguments
from .settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
    from typing import Any

    from ..engine.action import Hooks

_FNM_EXTMATCH = 1 << 5
_libc = ctypes.CDLL(None)
# Options for `run` only.
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

    `env`: variables to set, or to unset if the value is None, after all other rules.

    This changes the whole process, and can't be undone: its root and working directory, os.environ,
    its user and mount namespaces, and its user and group ids as it sees them. It is no longer
    dumpable, and no program that it starts can gain privileges (no_new_privs). The umask is
    restored. The process must have only one thread. Modules that are imported later are the image's.
    After a failure, the process is in a half-made container and can only exit: call this in a child.
    """
    for name in _OF_A_COMMAND:
        if more.get(name):
            raise errors.UsageError(f"{name}: only for commands that slurm_ch.run() runs")
    spec = _spec(image, binds, write_fake, env, more)
    hooks = arguments.hooks(hooks)
    caller = Caller(dict(os.environ))
    container = engine.Container(spec, caller)
    _add_hooks(container, hooks)
    build = engine.containerize(container)
    linux.prctl_no_new_privs()
    asked, usual = apply_records(build.records, os.environ)
    _change_directory(asked, usual or "/")
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
    """Run `argv` in a container made from `image` and return its exit status, negative for a signal.

    ChError if the container can't be made. Nothing changes in this process, except that standard output and
    standard error are flushed. If the command can't be executed, a message is printed, and the status is 126 or
    127, as in a shell.
    """
    spec = _spec(image, binds, write_fake, env, more)
    words, hooks = arguments.command(argv), arguments.hooks(hooks)
    reader, writer = os.pipe()  # closed by exec
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = agreement.EXIT_SETUP
        try:
            os.close(reader)
            standalone.run(spec, words, dict(os.environ), lambda container: _add_hooks(container, hooks))
        except Exception as error:
            code = errors.exit_code(error)
            os.write(writer, json.dumps([errors.describe(error), code]).encode())
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, "rb") as pipe:
        message = pipe.read()
    status = os.waitpid(child, 0)[1]
    if message:
        text, code = json.loads(message)
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
    """Return what containerize() would do, one line per action; ChError for errors that can be found beforehand."""
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
            raise TypeError("a Spec contains all options: no others can be given with it")
        return arguments.spec(image)
    given = settings({"binds": binds, "write_fake": write_fake, **more}, options.COMMAND)
    spec = parsers.make(arguments.path("image", image), given, "image")
    spec.env_rules += arguments.environment({} if env is None else env)
    return spec


def _add_hooks(container: engine.Container, hooks: Iterable[Hooks]) -> None:
    for one in hooks:
        setattr(container, f"hooks_{one.when}", one)


def _error(text: str, code: int) -> errors.ChError:
    kinds = {agreement.EXIT_USAGE: errors.UsageError, agreement.EXIT_JOIN: errors.JoinError}
    error = kinds.get(code, errors.ChError)(text)
    error.code = code
    return error


# ---- What ch-join does for a command, applied to this process ----


def apply_records(
    records: Iterable[task_plan.Record], environ: MutableMapping[str, str]
) -> tuple[str | None, str | None]:
    """Apply a plan's records to `environ`; return the requested directory and the usual one, each or None."""
    directories: dict[str, str] = {}
    rest = iter(records)
    for kind, value in rest:
        name, _, text = value.partition("=")
        if kind in _EXPANDED:
            environ[name] = _EXPANDED[kind](text, environ)
        elif kind == agreement.PLAN_SET_DEFAULT:
            environ.setdefault(name, text)
        elif kind == agreement.PLAN_IF_STILL:
            if environ.get(name) != text:
                next(rest, None)
        elif kind == agreement.PLAN_PATH:
            _add_to_path(environ, value if value[:1] == "/" else "/bin", makes_one=not value or value[0] == "/")
        elif kind in (agreement.PLAN_UNSET, agreement.PLAN_TEMPORARY):
            _unset_or_replace(kind, value, environ)
        else:
            directories[kind] = value
    return directories.get(agreement.PLAN_DIRECTORY), directories.get(agreement.PLAN_USUAL_DIRECTORY)


def _unset_or_replace(kind: str, value: str, environ: MutableMapping[str, str]) -> None:
    """Unset the variables that match; for PLAN_TEMPORARY, set those that name a missing directory to /tmp."""
    if kind == agreement.PLAN_UNSET:
        for one in [one for one in environ if matches(value, one)]:
            del environ[one]
        return
    for one in agreement.TEMPORARY_VARIABLES:
        path = environ.get(one, "")
        # Not a relative path: it starts at the directory that this process will enter later.
        if path.startswith("/") and not os.path.isdir(path):
            if not value:
                log.warning(f"{one}={path}: no such directory in the container; using /tmp")
            environ[one] = "/tmp"


def _add_to_path(environ: MutableMapping[str, str], directories: str, *, makes_one: bool) -> None:
    for one in directories.split(":"):
        path = environ.get("PATH")
        if path is None and not makes_one:
            return
        if one not in (path or "").split(":"):
            environ["PATH"] = f"{path}:{one}" if path else one


def matches(pattern: str, name: str) -> bool:
    """Whether a variable's name matches a shell pattern, by the C library's fnmatch with extended patterns."""
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
    name = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})|\\(\$)")
    items = []
    for item in value.split(":"):
        text = name.sub(lambda match: match[3] or environ.get(match[1] or match[2], ""), item)
        # Leave out an item of only unset variables: in a search path, an empty item means the working directory.
        only_names = item and not name.sub(lambda match: match[3] or "", item)
        if text or not only_names:
            items.append(text)
    return ":".join(items)


_EXPANDED: dict[str, Callable[[str, Mapping[str, str]], str]] = {
    agreement.PLAN_SET: lambda text, _: text,
    agreement.PLAN_SET_ITEMS: _expand_items,
    agreement.PLAN_SET_ANYWHERE: _expand_anywhere,
}


def _change_directory(asked: str | None, usual: str) -> None:
    """Change to the requested directory (ChError), or else to the usual one or the root; set PWD."""
    try:
        os.chdir(asked or usual)
    except OSError as error:
        if asked:
            raise errors.ChError(f"can't cd to {asked}") from error
        os.chdir("/")
    os.environ["PWD"] = os.getcwd()
