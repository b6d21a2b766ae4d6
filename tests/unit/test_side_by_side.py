# SPDX-License-Identifier: Apache-2.0
"""`pytest --side-by-side` reports what one process would, and runs two modules at once."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import own_view

ROOT = Path(__file__).parents[2]
CONFTEST = "from tests.conftest import pytest_addoption, pytest_cmdline_main, pytest_runtestloop\n"


class Suite:
    """A suite of a few modules, where both processes see it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "conftest.py").write_text(CONFTEST)
        (place / "pytest.ini").write_text("[pytest]\naddopts = -ra\n")

    def add(self, **modules: str) -> None:
        for name, text in modules.items():
            (self.place / f"test_{name}.py").write_text(
                f"import os, pytest, signal\nHERE = {str(self.place)!r}\n{text}"
            )

    def start(self, *words: object) -> subprocess.Popen[str]:
        env = {name: value for name, value in os.environ.items() if name != own_view.ENTERED}
        command = [sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider", "--side-by-side", *map(str, words)]
        return subprocess.Popen(
            command, cwd=self.place, env={**env, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, *words: object) -> tuple[int, str]:
        process = self.start(*words)
        return end(process)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        out, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        raise AssertionError(out) from None
    return process.returncode, out


@pytest.fixture
def suite() -> Iterator[Suite]:
    place = Path(tempfile.mkdtemp(prefix="slurm-ch-suite-", dir="/opt"))
    yield Suite(place)
    shutil.rmtree(place)


def test_two_modules_run_at_once_each_with_a_view_of_its_own(suite: Suite) -> None:
    """Both ends of the FIFO are opened, or neither; both have made the same file."""
    test = """
def test(tmp_path_factory):
    open("/tmp/mine", "x").close()
    with open(HERE + "/fifo", {mode!r}) as fifo:
        {line}
"""
    os.mkfifo(suite.place / "fifo")
    suite.add(
        a=test.format(mode="w", line='fifo.write(os.readlink("/proc/self/ns/net"))'),
        b=test.format(mode="r", line='assert os.readlink("/proc/self/ns/net") not in (fifo.read(), "")'),
    )
    status, out = suite.run()
    assert (status, "2 passed" in out) == (0, True), out


RESULTS = """
def test_good(): print("not shown")
def test_bad(): print("said before"); assert [1, 2] == [1, 3]
def test_skipped(): pytest.skip("no such thing")
@pytest.mark.xfail(reason="known")
def test_known(): raise OSError
@pytest.fixture
def broken(): raise ValueError("no fixture")
def test_without(broken): pass
"""


def test_every_result_is_reported_once(suite: Suite) -> None:
    suite.add(a=RESULTS, b="def test_b(): pass", c="def test_c(): pass")
    junit = suite.place / "report.xml"
    status, out = suite.run(f"--junitxml={junit}", "--durations=25", "--durations-min=0", "-vv")
    assert status == 1
    assert "1 failed, 3 passed, 1 skipped, 1 xfailed, 1 error in" in out, out
    assert out.count("assert [1, 2] == [1, 3]") >= 1 and out.count("said before") == 2  # the source, and the output
    assert "At index 1 diff: 2 != 3" in out
    assert re.search(r"SKIPPED \[1\] test_a.py:\d+: no such thing", out)
    assert "ValueError: no fixture" in out
    assert "not shown" not in out.replace('print("not shown")', "")
    assert set(re.findall(r"s call +test_.\.py::(\w+)", out)) >= {"test_good", "test_b", "test_c"}
    cases = [(case.get("name"), [child.tag for child in case]) for case in ET.parse(junit).iter("testcase")]
    assert sorted(cases) == [
        ("test_b", []), ("test_bad", ["failure"]), ("test_c", []), ("test_good", []),
        ("test_known", ["skipped"]), ("test_skipped", ["skipped"]), ("test_without", ["error"]),
    ]  # fmt: skip


def test_each_module_has_one_line(suite: Suite) -> None:
    """However the tests of two of them fall between each other, and what a module shares is made once."""
    test = "@pytest.fixture(scope='module')\ndef one(): open({0!r}, 'x').close()\n"
    test += "@pytest.mark.parametrize('n', range(20))\ndef test(one, n): pass\n"
    for name in "abcd":
        suite.add(**{name: test.format(f"{suite.place}/made-{name}")})
    status, out = suite.run()
    assert status == 0, out
    lines = sorted(line.split("[")[0].strip() for line in out.splitlines() if line.startswith("test_"))
    assert lines == [f"test_{name}.py {'.' * 20}" for name in "abcd"]


def test_after_a_failure_none_is_begun(suite: Suite) -> None:
    """With -x; of the test that the other process runs meanwhile, the fixtures are done."""
    os.mkfifo(suite.place / "fifo")
    left = """
@pytest.fixture
def place():
    open(HERE + "/made", "x").close()
    yield
    os.unlink(HERE + "/made")
    open(HERE + "/undone", "x").close()
def test_one(place):
    with open(HERE + "/fifo") as fifo:
        fifo.read()
def test_more():
    open(HERE + "/more", "x").close()
"""
    # It fails when the other's is under way, which goes on when this process has ended.
    bad = "def test_bad():\n    os.open(HERE + '/fifo', os.O_WRONLY)\n    assert False\n"
    suite.add(
        a=bad + "def test_after(): open(HERE + '/after', 'x').close()", b="def test_b(): open(HERE + '/b', 'x')", c=left
    )
    status, out = suite.run("-x")
    assert (status, "stopping after 1 failures" in out) == (1, True), out
    assert not (suite.place / "made").exists() and (suite.place / "undone").exists()
    assert not any((suite.place / name).exists() for name in ("after", "more", "b"))


@pytest.mark.parametrize("how", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_process_that_dies_is_a_failure(suite: Suite, how: str) -> None:
    suite.add(a="def test_a(): pass", b="def test_b(): pass", c=f"def test_dies(): {how}")
    status, out = suite.run()
    assert status == 3
    assert "test_c.py::test_dies: its process ended" in out, out


def test_a_test_that_hangs_is_named(suite: Suite) -> None:
    """At the signal that `make test` sends after its time."""
    os.mkfifo(suite.place / "fifo")
    hangs = "def test_hangs():\n    open(HERE + '/fifo', 'w').close()\n    signal.pause()  # here\n"
    suite.add(a="def test_a(): pass", b=hangs)
    process = suite.start()
    (suite.place / "fifo").read_text()
    process.send_signal(signal.SIGINT)
    status, out = end(process)
    assert status == 2
    assert "test_b.py::test_hangs:" in out and "signal.pause()  # here" in out, out
