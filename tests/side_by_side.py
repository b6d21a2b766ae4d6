# SPDX-License-Identifier: Apache-2.0
"""`pytest --side-by-side`: two processes run the tests, each in a view of the machine of its own (tests/own_view.py).

Half of the suite waits for Slurm, the other half computes. This process collects the tests and reports them.
Each of the two takes whole modules, one from the first on, the other from the last on, so that what the tests
of a folder share is made once. Each test's report comes back here, so there is one summary, one list of the
slowest, one JUnit file and one exit status, as without the option.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import groupby
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

import pytest

from tests import own_view

Items = list[pytest.Item]


def modules(items: Items) -> list[Items]:
    """Return the tests of each module, in their order."""
    return [list(group) for _, group in groupby(items, lambda item: item.path)]


def run(session: pytest.Session) -> bool | None:
    """Run all tests in two processes, as pytest_runtestloop; None where that can't be."""
    config = session.config
    asked = config.option.side_by_side and not (config.option.collectonly or config.option.usepdb)
    # Without a view of its own, each would find what the other leaves.
    if not asked or session.testsfailed or not own_view.is_entered():
        return None
    _Runs(session).report_all()
    return True


class _Part:
    """One of the two, as the process sees it that reports."""

    def __init__(self, session: pytest.Session, take: Callable[[], Items], others: list[Connection]) -> None:
        self.take = take
        # The test that it runs, and what of its module's tests isn't reported yet.
        self.test = ""
        self.done = False
        self.events: list[tuple[str, Any]] = []
        self.connection, theirs = Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        # Until all of its processes are there, and wait for signals.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self.pid = os.fork()
        if not self.pid:
            for ours in (self.connection, *others):
                ours.close()
            _be(session, theirs)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        theirs.close()


class _Runs:
    """Both, and what is left for them."""

    def __init__(self, session: pytest.Session) -> None:
        self.session = session
        self.left = deque(enumerate(modules(session.items)))
        self.parts: dict[Connection, _Part] = {}
        for take in (self.left.popleft, self.left.pop):
            part = _Part(session, take, list(self.parts))
            self.parts[part.connection] = part

    def report_all(self) -> None:
        """Report what comes from both, until they have ended."""
        try:
            while self.parts:
                for connection in wait(list(self.parts)):
                    self._receive(self.parts[connection])
        except BaseException:
            self._interrupt()
            raise
        if self.session.shouldfail:
            raise self.session.Failed(self.session.shouldfail)
        if self.session.shouldstop:
            raise self.session.Interrupted(self.session.shouldstop)

    def _receive(self, part: _Part) -> None:
        try:
            what, value = part.connection.recv()
        except (EOFError, ConnectionResetError):
            self._ended(part)
            return
        if what == "next":
            part.connection.send(part.take()[0] if self.left else None)
            return
        if what == "done":
            part.done = True
            return
        if what == "stops":
            if not self.session.shouldfail:
                self.session.shouldstop = self.session.shouldstop or value
            self._stop(part)
            return
        if what == "broken":
            raise RuntimeError(f"{part.test}:\n{value}")
        if what == "start":
            module = value[0].partition("::")[0]
            # Each module has a line, so it is reported when all of it is there, or something fails.
            if part.test.partition("::")[0] != module:
                self._report(part)
            part.test = value[0]
        part.events.append((what, value))
        if what == "report" and value["outcome"] == "failed":
            self._report(part)

    def _report(self, part: _Part) -> None:
        hook = self.session.config.hook
        for what, value in part.events:
            if what == "start":
                hook.pytest_runtest_logstart(nodeid=value[0], location=value[1])
            elif what == "finish":
                hook.pytest_runtest_logfinish(nodeid=value[0], location=value[1])
            else:
                report = hook.pytest_report_from_serializable(config=self.session.config, data=value)
                hook.pytest_runtest_logreport(report=report)
        part.events.clear()
        # No test is begun after the one that -x stops at.
        if self.session.shouldfail or self.session.shouldstop:
            self._stop(part)

    def _stop(self, part: _Part) -> None:
        """Tell both that it is enough, `part` last."""
        for connection in sorted(self.parts, key=lambda one: one is part.connection):
            with suppress(OSError):
                connection.send(None)

    def _ended(self, part: _Part) -> None:
        del self.parts[part.connection]
        part.connection.close()
        self._report(part)
        _, status = os.waitpid(part.pid, 0)
        if status or not part.done:
            raise RuntimeError(f"{part.test}: its process ended, with status {os.waitstatus_to_exitcode(status)}")

    def _interrupt(self) -> None:
        """End both, and say where they were."""
        for part in self.parts.values():
            os.kill(part.pid, signal.SIGINT)
        for part in self.parts.values():
            with suppress(EOFError, OSError):
                while True:
                    what, value = part.connection.recv()
                    if what == "start":
                        part.test = value[0]
                    elif what == "broken":
                        print(f"\n{part.test}:\n{value}", flush=True)
            os.waitpid(part.pid, 0)


def _be(session: pytest.Session, reporter: Connection) -> None:
    """Be one of the two; does not return."""
    status = 1
    try:
        # A terminal's SIGINT goes to who reports, and from there to us: once.
        os.setpgid(0, 0)
        own_view.part()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        _begin(session.config, reporter)
        _run_modules(session, reporter)
        reporter.send(("done", None))
        status = 0
    except BaseException:
        reporter.send(("broken", traceback.format_exc()))
    finally:
        # After an interrupted test; else nothing is left of it.
        with suppress(BaseException):
            session._setupstate.teardown_exact(None)
        os._exit(status)


def _begin(config: pytest.Config, reporter: Connection) -> None:
    """Capture into files of this process's own, and report to `reporter` only."""
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    capture.stop_global_capturing()
    capture.start_global_capturing()
    capture.suspend_global_capture()
    # Silent, but there: pytest 8 asks it how to explain a comparison.
    terminal: Any = config.pluginmanager.getplugin("terminalreporter")
    terminal._tw._file = open(os.devnull, "w")  # noqa: SIM115
    config.pluginmanager.unregister(name="terminalprogress")
    config.pluginmanager.register(_Reporter(config, reporter))


class _Reporter:
    """A plugin that sends all that is reported."""

    def __init__(self, config: pytest.Config, to: Connection) -> None:
        self.config = config
        self.to = to

    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self.to.send(("start", (nodeid, location)))

    def pytest_runtest_logfinish(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self.to.send(("finish", (nodeid, location)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.to.send(("report", data))


def _taken(session: pytest.Session, reporter: Connection) -> Iterator[pytest.Item]:
    """Yield the tests of one module after the other, as they are given out."""
    of_modules = modules(session.items)
    while True:
        reporter.send(("next", None))
        if (number := reporter.recv()) is None:
            return
        for item in of_modules[number]:
            # What comes unasked says that the other process's failures are enough.
            if reporter.poll():
                return
            if why := session.shouldfail or session.shouldstop:
                reporter.send(("stops", str(why)))
                # The other one has heard of it by then.
                reporter.recv()
                return
            yield item


class _Next:
    """The next test as pytest's teardown sees it, which keeps what that needs as well.

    It is asked for when the one before has run: nobody keeps a module that the other process could run.
    """

    def __init__(self, tests: Iterator[pytest.Item]) -> None:
        self.tests = tests
        self.taken: list[pytest.Item | None] = []

    def item(self) -> pytest.Item | None:
        if not self.taken:
            self.taken.append(next(self.tests, None))
        return self.taken[0]

    def listchain(self) -> list[pytest.Item | pytest.Collector]:
        item = self.item()
        return item.listchain() if item else []  # type: ignore[return-value]


def _run_modules(session: pytest.Session, reporter: Connection) -> None:
    tests = _taken(session, reporter)
    item = next(tests, None)
    while item:
        after: Any = _Next(tests)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        item = after.item()
