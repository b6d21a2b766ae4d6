# SPDX-License-Identifier: Apache-2.0
"""The launcher: read the plugin's facts, make the container, hand out the ticket, exit.

The plugin starts it once per node and step, with an empty environment, and passes
descriptors of a memory file with the facts, the tasks' socket, and an error log. All
tasks of the node wait for it: a test pins the list of modules that may be imported.
"""

from __future__ import annotations

import sys

from .. import agreement, linux, log
from .. import lean_os as os
from ..agreement import EXIT_SETUP, EXIT_USAGE
from ..engine import namespaces, task_plan
from ..engine.caller import Caller
from ..engine.container import Container, containerize, plan_bytes
from ..errors import ChError, describe, exit_code
from ..request import parsers
from . import tickets
from .facts import Facts, read_facts, site_and_request, task_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..request import site, spec


def launch(facts: Facts, task_socket: tickets.TaskSocket) -> None:
    """Make the step's container on this node and hand out the ticket."""
    env = facts.environment
    here, wanted = site_and_request(facts)
    log.configure(level=wanted.verbosity)
    if wanted.verbosity > 0:
        # Only for this message: the launcher itself needs neither the tag nor the count.
        from ..request import step

        log.info(f"container {step.tag(env)} for {task_count(facts)} tasks: {wanted.image}")
    _make_temporary_directory(env)
    caller = Caller(env, script=facts.script)
    _widen_affinity()
    if wanted.compatibility is not None and wanted.compatibility.container_name is not None:
        from . import named_container

        if named_container.join_or_prepare(facts, wanted, here, caller, task_socket):
            return
    if agreement.BROADCAST_LINE in facts.request:
        from . import local_copy

        wanted.located = local_copy.find(facts.request, wanted)
    refers = wanted.image.startswith(agreement.REFERENCE_BEGINNINGS) or agreement.LOCATED_LINE in facts.request
    if refers and wanted.located is None:
        wanted.located = _locate(facts, wanted, here, caller)
    container = Container(wanted, caller, here.squashfuse)
    if here.record or wanted.verbosity > 0:
        from . import record

        what = record.description(container.image.path, wanted.image)
        log.info(what)
        if here.record:
            record.note(here.record, what, env)
    if wanted.save is not None:
        from . import save

        save.check(container, here, env, facts.script is not None)
    build = containerize(container)
    build.records.append((agreement.PLAN_AS_SRUN, ""))
    user_fd, mount_fd = namespaces.open_own()
    more = namespaces.open_more(wanted.unshare)
    task_socket.issue(user_fd, mount_fd, task_plan.plan_file(plan_bytes(build)), build.relay_fd, more)


def _locate(facts: Facts, wanted: spec.Spec, here: site.Site, caller: Caller) -> str | None:
    """Return the image's file: the one that was pulled at submission, else pull it here."""
    found = parsers.located(facts.request)
    if found is not None:
        host, path = found
        try:
            os.stat(path)
            return path
        except OSError:
            # For a batch script whose file is missing, pull again: while the job waited in the queue, the cache may
            # have dropped the image.
            if facts.script is None or path == wanted.image:
                from . import references

                references.wait_for_file(host, path, wanted, facts.environment)
                return path
    from . import references

    path = references.on_node(wanted, here, caller)
    log.info(f"{wanted.image}: {path}")
    return path


def _make_temporary_directory(env: Mapping[str, str]) -> None:
    """Create TMPDIR, as Slurm will do later for the first task, so that it can be bound."""
    path = env.get("TMPDIR", "")
    if path.startswith("/"):
        try:
            os.mkdir(path, 0o700)
        except (OSError, ValueError):
            pass  # it exists; or Slurm will report the error, and use /tmp


def _widen_affinity() -> None:
    """Allow all of the step's CPUs: the image server inherits them, and it serves all tasks, not only task 0."""
    try:
        # The kernel limits this to the step's cpuset.
        linux.sched_setaffinity_any()
    except OSError as error:
        log.info(f"can't widen the CPU affinity: {error.strerror}")


def main(argv: Sequence[str]) -> int:
    """Run the launcher with the descriptors and on the node that `argv` names; return its exit status."""
    try:
        facts_fd, socket_fd, errors_fd, *ready = (int(text) for text in (*argv[:3], *argv[4:]))
        # First: a process with the socket can hand out a ticket, and the launcher may start the image's programs.
        for fd in (facts_fd, socket_fd, errors_fd, *ready):
            os.set_inheritable(fd, False)
        log.configure(fd=errors_fd, node=argv[3] if argv[3:] else "")
    except (ValueError, OSError):
        log.error("the launcher is started by Slurm's plugin, not by hand")
        return EXIT_USAGE
    task_socket = tickets.TaskSocket(socket_fd)
    try:
        facts = read_facts(facts_fd)
        if facts.name:
            from . import command_launcher

            _widen_affinity()
            wanted = command_launcher.wanted(facts.words, facts.name, facts.located)
            command_launcher.launch(wanted, Caller(facts.environment), task_socket, ready)
        else:
            launch(facts, task_socket)
    except Exception as error:
        text = describe(error)
        log.error(text if isinstance(error, ChError) else f"can't make the container: {text}")
        _refuse(task_socket, exit_code(error))
        return exit_code(error)
    return 0


def _refuse(task_socket: tickets.TaskSocket, code: int) -> None:
    try:
        task_socket.refuse(code or EXIT_SETUP)
    except ChError as error:
        log.error(describe(error))


def run() -> None:
    """Run the launcher as a program; exits without the interpreter's clean-up."""
    os._exit(main(sys.argv[1:]))
