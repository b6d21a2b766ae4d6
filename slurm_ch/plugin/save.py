# SPDX-License-Identifier: Apache-2.0
"""`--ch-save=FILE`: save the container to an image file after its tasks have ended.

    check   in the launcher, before the command starts: reports what would make it fail
    run     the saver, a program that ch-join executes when the last task has succeeded

The saver reads the container in a child that enters it. It packs and writes the file on the host, as the user.
Loaded only if it is requested.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from .. import linux, log
from ..engine import image, namespaces
from ..errors import ChError, UsageError, describe, exit_code
from ..images import container_tree, directory, pack, pack_file
from ..images import settings as site_settings
from ..images.progress import Progress, size
from ..request import parsers
from ..request.options import PLUGIN, Setting
from . import references

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..engine.container import Container
    from ..images.merge import Tree
    from ..request.site import Site

# The arguments of plugstack.conf that the plugin passes on to the saver.
_PACKING = ("packer", "pull_threads")


def check(container: Container, here: Site, env: Mapping[str, str], is_batch: bool) -> None:
    """Raise ChError if it is known, before the command starts, that the container can't be saved."""
    wanted = container.spec
    assert wanted.save is not None
    what = f"{wanted.label('save')}={wanted.save}"
    if container.image.kind == image.HOST:
        raise UsageError(f"{what}: the host as image is not saved")
    if not is_batch:
        refuse_nodes(what, int(env.get("SLURM_STEP_NUM_NODES", "1")))
    elif env.get("SLURM_ARRAY_TASK_COUNT", "1") != "1":
        refuse_array(what)
    path = container.caller.path(wanted.save)
    _check_place(what, path)
    settings = site_settings.parse([one for one in here.pulling if one[0] in _PACKING], env, container.caller.user)
    try:
        pack.find(settings.packer, env.get("PATH"))
    except ChError as error:
        raise ChError(f"{what}: {error}") from None


def refuse_nodes(what: str, nodes: int) -> None:
    """Raise UsageError for a step of more than one node."""
    if nodes != 1:
        raise UsageError(
            f"{what}: the step has {nodes} nodes, and each has a container of its own: use a step of one node (-N1)"
        )


def refuse_array(what: str) -> None:
    """Raise UsageError for the script of an array of several tasks."""
    raise UsageError(
        f"{what}: each task of the array would replace it: give the option to an srun in the script, with "
        "$SLURM_ARRAY_TASK_ID in the file's name"
    )


def _check_place(what: str, path: str) -> None:
    if os.path.isdir(path):
        raise UsageError(f"{what}: it is a directory")
    try:
        os.close(os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY))
    except OSError as error:
        raise ChError(f"{what}: can't use its directory") from error
    if not os.access(os.path.dirname(path), os.W_OK | os.X_OK):
        raise ChError(f"{what}: you can't write to its directory")


def _read(user_fd: int, mount_fd: int) -> Tree:
    """Enter the container and return its tree. Call it in a child: the process stays in the container."""
    # No more imports: in the container, a module's path leads to a file of the image.
    sys.meta_path.clear()
    namespaces.enter(user_fd, mount_fd, "the container")
    return directory.read("/", directory.mount_points())


def save(user_fd: int, mount_fd: int, setting: Setting, site: Sequence[str]) -> None:
    """Pack the container to the file that the option `setting` names; ChError on failure.

    `site` are arguments of plugstack.conf.
    """
    path = parsers.make("/", [setting]).save
    assert path is not None
    arguments = [(key, value) for key, _, value in (one.partition("=") for one in site)]
    settings = site_settings.parse(arguments, {}, "")
    progress = Progress(*log.target())
    try:
        with references.interruptible("saving"):
            written = pack_file.write_from(
                container_tree.FromChild(lambda: _read(user_fd, mount_fd)), path, settings, progress
            )
    except ChError as error:
        progress.end()
        raise type(error)(f"{setting.label}={setting.value}: not saved: {describe(error)}") from None
    progress.line(f"saved in {progress.seconds():.0f} s, {size(written)}: {path}")


def main(argv: Sequence[str]) -> int:
    """Save a container; return the exit status. `argv`: NODE USER_FD MOUNT_FD LABEL VALUE SITE_ARGUMENT..."""
    node, user_fd, mount_fd, label, value, *site = argv
    log.configure(node=node)
    try:
        # ch-join was pinned to the task's core.
        linux.sched_setaffinity_any()
    except OSError as error:
        log.info(f"can't widen the CPU affinity: {error.strerror}")
    try:
        save(int(user_fd), int(mount_fd), Setting("save", value, label, PLUGIN), site)
    except ChError as error:
        log.error(describe(error))
        return exit_code(error)
    return 0


def run() -> None:
    """Run the saver as a program; exits without the interpreter's clean-up."""
    os._exit(main(sys.argv[4:]))
