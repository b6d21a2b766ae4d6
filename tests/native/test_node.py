# SPDX-License-Identifier: Apache-2.0
"""The plugin on the node: slurmstepd, the tasks, and the launcher's start."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from slurm_ch import paths
from slurm_ch.request.site import RELAYED

from .conftest import Fake
from .made import SPANK, write_script

WAYS = ["argv0", "api"]
BATCH, EXTERN, INTERACTIVE = 0xFFFFFFFB, 0xFFFFFFFC, 0xFFFFFFFA

# Stands in for the interpreter: reports how it was started, and sends a ticket or not.
LAUNCHER = """#!/usr/bin/python3 -I
import json, os, signal, socket, sys
facts = os.pread(3, 1 << 20, 0).split(b"\\0")
fds = {{}}
for name in os.listdir("/proc/self/fd"):
    try:
        fds[name] = os.readlink("/proc/self/fd/" + name)
    except OSError:
        pass
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
with open({report!r}, "a") as out:
    json.dump({{
        "argv": sys.argv[1:], "env": dict(os.environ), "fds": fds, "sid": os.getsid(0) == os.getpid(),
        "facts": [f.decode("latin-1") for f in facts], "ignored": status["SigIgn"].strip(), "blocked": status["SigBlk"].strip(),
        "parent": os.getppid(),
    }}, out)
    out.write("\\n")
{then}
"""

REFUSE = """
try:
    socket.socket(fileno=4).sendmsg([b'slurmch1' + (77).to_bytes(4, 'little')])
except BrokenPipeError:
    pass
"""


def launcher(world_tmp: Path, then: str = "") -> tuple[Path, Path]:
    """Return a stand-in for the interpreter, and the file that it reports to."""
    report = world_tmp / "report"
    report.unlink(missing_ok=True)
    return write_script(world_tmp / "interpreter", LAUNCHER.format(report=str(report), then=then)), report


def site(interpreter: Path | str, **more: object) -> str:
    arguments = {"python": interpreter, "launcher": "/etc/hostname", "ch_join": paths.CH_JOIN, **more}
    return "\n".join(f"{key}={value}" for key, value in arguments.items())


def clean(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line]


@pytest.mark.parametrize("way", WAYS)
def test_a_step_without_a_container_is_left_alone(fake: Fake, way: str) -> None:
    done = fake("remote", 2, 0, "/usr/bin/env", way=way, A="1")
    assert done.returncode == 0
    assert "SLURM_CH" not in done.stdout
    assert clean(done.stderr) == []


@pytest.mark.parametrize("step", [EXTERN, INTERACTIVE])
def test_steps_that_are_never_in_a_container(fake: Fake, step: int) -> None:
    done = fake("remote", 1, step, "/bin/true", SLURM_CH_REQUEST="image=i\n", FAKE_OPTION="ch-image=i")
    assert (done.returncode, clean(done.stderr)) == (0, [])


def test_an_option_without_its_request_is_never_on_the_host(fake: Fake) -> None:
    done = fake("remote", 1, 0, "/bin/echo", "host", FAKE_OPTION="ch-image=i")
    assert done.returncode == 31
    assert "refusing to run on the host" in done.stderr
    assert "host\n" not in done.stdout


@pytest.mark.parametrize("way", WAYS)
def test_one_launcher_well_started(fake: Fake, world_tmp: Path, way: str) -> None:
    interpreter, report = launcher(world_tmp, REFUSE)
    done = fake(
        "remote",
        4,
        0,
        "/bin/true",
        "word",
        way=way,
        FAKE_SITE=site(interpreter, bind="/x"),
        SLURM_CH_REQUEST="image=i\ncd=/c\n",
        A="1\n2",
    )
    # All four tasks get the refusal's code; no other message is needed.
    assert done.stdout == "task: 77\n" * 4
    assert clean(done.stderr) == []
    (line,) = report.read_text().splitlines()
    found = json.loads(line)
    assert found["argv"] == ["-I", "-S", "/etc/hostname", "3", "4", "5"]
    assert set(found["env"]) <= {"LC_CTYPE"}
    assert found["sid"]
    assert int(found["blocked"], 16) == 0
    # Python itself ignores SIGPIPE and SIGXFSZ; 32 and 33 are reserved by the C library.
    assert int(found["ignored"], 16) & ~(1 << 12 | 1 << 24 | 3 << 31) == 0
    names = {fd: to.split(":")[0] for fd, to in found["fds"].items()}
    # The interpreter's own messages are discarded; the launcher has another descriptor for its own.
    assert {fd: names[fd] for fd in "012345"} == {
        "0": "/dev/null",
        "1": "/dev/null",
        "2": "/dev/null",
        "3": "/memfd",
        "4": "socket",
        "5": "pipe",
    }
    assert "6" not in names or names["6"].startswith("/proc")
    facts = found["facts"]
    assert facts[0] == "slurm_ch facts 1"
    assert {"abind=/x", "rimage=i\ncd=/c\n", "eA=1\n2", "t4"} <= set(facts)
    assert not [fact for fact in facts if fact.startswith("b")]


def test_a_prolog_gets_no_descriptor_of_ours(fake: Fake, world_tmp: Path) -> None:
    """A process that it left running would keep the ticket, and so the container; not every Slurm closes descriptors."""
    interpreter, _ = launcher(world_tmp, REFUSE)
    prolog = write_script(world_tmp / "prolog", "#!/bin/sh\nls -l /proc/self/fd\n")
    done = fake(
        "remote", 1, 0, "/bin/true", FAKE_SITE=site(interpreter), SLURM_CH_REQUEST="image=i\n", FAKE_PROLOG=str(prolog)
    )
    assert "/proc/" in done.stdout
    assert "socket:" not in done.stdout
    assert done.stdout.endswith("task: 77\n")


@pytest.mark.parametrize("way", WAYS)
def test_streams_may_be_closed(fake: Fake, world_tmp: Path, way: str) -> None:
    interpreter, report = launcher(world_tmp, REFUSE)
    done = fake(
        "remote", 2, 0, "/bin/true", way=way, FAKE_SITE=site(interpreter), SLURM_CH_REQUEST="image=i\n", FAKE_CLOSE="1"
    )
    assert done.stdout == "task: 77\n" * 2
    found = json.loads(report.read_text())
    assert {found["fds"][fd] for fd in "012"} == {"/dev/null"}


def test_a_batch_step_tells_its_script(fake: Fake, world_tmp: Path) -> None:
    interpreter, report = launcher(world_tmp, REFUSE)
    fake("remote", 1, BATCH, "/spool/script", "word", FAKE_SITE=site(interpreter), SLURM_CH_REQUEST="image=i\n")
    assert "b/spool/script" in json.loads(report.read_text())["facts"]


@pytest.mark.parametrize("way", WAYS)
def test_a_launcher_that_dies(fake: Fake, world_tmp: Path, way: str) -> None:
    interpreter, _ = launcher(world_tmp)
    done = fake(
        "remote",
        3,
        0,
        "/bin/true",
        way=way,
        FAKE_SITE=site(interpreter),
        SLURM_CH_REQUEST="image=i\n",
        SLURM_LOCALID="1",
    )
    assert done.stdout == "task: 33\n" * 3
    assert clean(done.stderr) == []
    done = fake(
        "remote",
        1,
        0,
        "/bin/true",
        way=way,
        FAKE_SITE=site(interpreter),
        SLURM_CH_REQUEST="image=i\n",
        SLURM_LOCALID="0",
    )
    assert clean(done.stderr) == [
        "slurm-ch: error: the launcher died before the container was ready (killed, or no Python could start): if memory ran out, ask for more, "
        "or pull the image before the job (`slurm-ch pull`)"
    ]


# As with Slurm's contain_spank: user_init and others run in a process that can't reach slurmstepd's descriptors.
CONTAINED = [{}, {"FAKE_CONTAIN": "1"}]


@pytest.mark.parametrize("contain", CONTAINED)
@pytest.mark.parametrize(("then", "code"), [(REFUSE, 77), ("", 33)])
def test_callbacks_in_a_child_of_slurmstepds(
    fake: Fake, world_tmp: Path, contain: dict[str, str], then: str, code: int
) -> None:
    """There is one launcher, whose death all tasks notice; at the end slurmstepd has no further descriptor."""
    interpreter, report = launcher(world_tmp, then)
    env = {"FAKE_SITE": site(interpreter), "SLURM_CH_REQUEST": "image=i\n", "SLURM_LOCALID": "1", **contain}
    done = fake("remote", 8, 0, "/bin/true", **env)
    assert (done.stdout, clean(done.stderr)) == (f"task: {code}\n" * 8, [])
    assert len(report.read_text().splitlines()) == 1


@pytest.mark.parametrize("contain", CONTAINED)
@pytest.mark.parametrize("dead", [0, 2])
def test_a_task_that_dies_before_all_else(fake: Fake, world_tmp: Path, contain: dict[str, str], dead: int) -> None:
    """The other tasks never wait for the launcher that it did not start: they fail, or another task starts it."""
    interpreter, report = launcher(world_tmp, REFUSE)
    env = {"FAKE_SITE": site(interpreter), "SLURM_CH_REQUEST": "image=i\n", "SLURM_LOCALID": "1", **contain}
    done = fake("remote", 4, 0, "/bin/true", FAKE_KILL=str(dead), **env)
    others = 77 if contain or dead else 33
    assert sorted(done.stdout.splitlines()) == sorted([f"task: {others}"] * 3 + ["task: 137"])
    assert clean(done.stderr) == []
    assert report.exists() is (others == 77)


def test_the_ticket_goes_with_the_last_task(fake: Fake, world_tmp: Path) -> None:
    """If slurmstepd keeps the tasks' end, it drops the ticket when all tasks are gone, and the launcher notices."""
    gone = world_tmp / "gone"
    os.mkfifo(gone)
    send = f"""
signal.signal(signal.SIGIO, signal.SIG_IGN)  # both tasks may be gone before this lets go of its end
here, there = os.pipe()
socket.socket(fileno=4).sendmsg([b'slurmch1' + (77).to_bytes(4, 'little')],
                                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, there.to_bytes(4, 'little'))])
os.close(there)
os.read(here, 1)  # until nobody has the other end
with open({str(gone)!r}, "w") as out:
    out.write("gone")
"""
    interpreter, _ = launcher(world_tmp, send)
    # slurmstepd does not end before the test has read.
    env = {"FAKE_SITE": site(interpreter), "SLURM_CH_REQUEST": "image=i\n", "FAKE_CONTAIN": "1", "FAKE_WAIT": str(gone)}
    done = fake("remote", 2, 0, "/bin/true", **env)
    assert done.stdout == "task: 77\n" * 2 + "gone\n"
    gone.unlink()


@pytest.mark.parametrize("contain", CONTAINED)
def test_a_number_that_means_another_file_is_left_alone(fake: Fake, world_tmp: Path, contain: dict[str, str]) -> None:
    interpreter, report = launcher(world_tmp, REFUSE)
    env = {"FAKE_SITE": site(interpreter), "SLURM_CH_REQUEST": "image=i\n", "FAKE_CLOBBER": "1", **contain}
    done = fake("remote", 2, 0, "/bin/echo", "host", **env)
    assert done.stdout == "task: 31\n" * 2
    # One message; and both files that got these numbers are still open at the end.
    assert clean(done.stderr) == [
        "error: slurm_ch: the socket pair that was made for this step is gone; does another plugin close descriptors?"
    ]
    assert not report.exists()


@pytest.mark.parametrize("part", ["python", "launcher"])
def test_a_launcher_that_cannot_start(fake: Fake, part: str) -> None:
    arguments = site("/bin/true", **{part: "/nonexistent"})
    done = fake("remote", 3, 0, "/bin/true", FAKE_SITE=arguments, SLURM_CH_REQUEST="image=i\n", SLURMD_NODENAME="n7")
    assert done.stdout == "task: 31\n" * 3
    assert clean(done.stderr) == ["slurm-ch: n7: error: can't start launcher: /nonexistent: No such file or directory"]


def test_no_ch_join(fake: Fake, world_tmp: Path) -> None:
    interpreter, _ = launcher(world_tmp)
    done = fake(
        "remote",
        3,
        0,
        "/bin/echo",
        "host",
        FAKE_SITE=site(interpreter, ch_join="/nonexistent"),
        SLURM_CH_REQUEST="image=i\n",
    )
    assert done.stdout == "task: 31\n" * 3
    assert clean(done.stderr) == ["error: slurm_ch: can't execute ch-join: /nonexistent: No such file or directory"]


@pytest.mark.parametrize("text", ["0 /bin/true\n", "# comment\n\n  *  /bin/true", "0-3 a"])
def test_multi_prog_is_refused_where_it_cannot_work(fake: Fake, world_tmp: Path, text: str) -> None:
    interpreter, _ = launcher(world_tmp, REFUSE)
    env = {"FAKE_SITE": site(interpreter), "SLURM_CH_REQUEST": "image=i\n", "SLURM_CH_MULTI_PROG": "1"}
    done = fake("remote", 2, 0, "/bin/echo", text, **env)
    assert done.stdout == "task: 31\n" * 2
    assert done.stderr.count("need Slurm 23.02.5") == 1
    # With Slurm's function it works, and a command that only looks like --multi-prog is an ordinary one.
    assert fake("remote", 2, 0, "/bin/echo", text, way="api", **env).stdout == "task: 77\n" * 2
    assert fake("remote", 2, 0, "/bin/echo", "x" + text, **env).stdout == "task: 77\n" * 2
    # If ch-join is in front of each task's command already, the text stays unchanged.
    env["SLURM_CH_MULTI_PROG"] = "/x/ch-join"
    through = re.sub(r"([\d*]) +(?=\S+\n?$)", r"\1 /x/ch-join ", text)
    for way in WAYS:
        said = fake("remote", 1, 0, "/bin/echo", through, way=way, **env).stdout
        assert said == through + "\ntask: 0\n"
    del env["SLURM_CH_MULTI_PROG"]
    assert fake("remote", 2, 0, "/bin/echo", text, **env).stdout == "task: 77\n" * 2


@pytest.mark.parametrize("way", WAYS)
def test_a_guarded_command_is_put_back(fake: Fake, world_tmp: Path, way: str) -> None:
    interpreter, _ = launcher(world_tmp, REFUSE)
    words = write_script(world_tmp / "words", '#!/bin/sh\necho "$SLURM_CH_JOIN|$*|$(env | grep -c SLURM_CH_)"\n')
    env = {"FAKE_SITE": site(interpreter, ch_join=words), "SLURM_CH_REQUEST": "image=i\n", "SLURM_CH_COMMAND": "/app x"}
    guard = re.search(r'#define GUARD "(.*)"', (SPANK / "plugin/command_guard.c").read_text())
    assert guard
    said = fake("remote", 1, 0, guard[1], "a", "b", way=way, **env).stdout.splitlines()[0]
    # ch-join's own variable is the only one of ours that is left.
    assert re.fullmatch(r"\d+ /app x\|a b\|1" if way == "argv0" else rf"\d+\+/app x\|{guard[1]} a b\|1", said), said
    # The guard leaves a command of another name alone.
    said = fake("remote", 1, 0, "/bin/c", "a", way=way, **env).stdout.splitlines()[0]
    assert re.fullmatch(r"\d+ /bin/c\|a\|1" if way == "argv0" else r"\d+\|/bin/c a\|1", said), said
    # The guard without its variable never becomes a command.
    del env["SLURM_CH_COMMAND"]
    assert fake("remote", 1, 0, guard[1], way=way, **env).stdout == "task: 31\n"


BROKERS = [
    # step, request, site's arguments, what ch-join is told; None: the default list
    (0, "", "", ""), (BATCH, "", "", "t"), (0, "relay=yes\n", "", "s"), (BATCH, "relay=yes\n", "", "t"),
    (BATCH, "relay=no\n", "", ""), (BATCH, "relay=OFF\n", "", ""), (BATCH, "relay=0\n", "", ""), (BATCH, "relay=false\n", "", ""),
    (0, "relay=yes\nrelay=no\n", "", ""), (0, "relay=no\nrelay=yes\n", "", "s"), (0, "set-env=x\nrelay=yes\n", "", "s"),
    (0, "set-env=relay=yes\n", "", ""), (BATCH, "", "relay=no", ""), (0, "relay=yes\n", "relay=no", ""),
    (BATCH, "", "relay=yes", "t"), (BATCH, "", "relay=squeue,srun,sinfo", "tsqueue!,srun,sinfo!"), (0, "", "default=relay", "s"),
    (0, "", "default=relay=yes", "s"), (BATCH, "", "default=relay=no", ""), (0, "relay=no\n", "default=relay", ""),
    (0, "", "default=relayed", ""), (BATCH, "relay=yes\n", "default=relay=no", "t"),
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_the_plugin_says_which_broker_there_may_be(fake: Fake, world_tmp: Path, way: str) -> None:
    """The site's and the user's options decide, as in the launcher; no ticket can allow more."""
    interpreter, _ = launcher(world_tmp, REFUSE)
    words = write_script(world_tmp / "words", '#!/bin/sh\necho "$SLURM_CH_JOIN"\n')
    for step, request, arguments, expected in BROKERS:
        key, _, value = arguments.partition("=")
        env = {"FAKE_SITE": site(interpreter, ch_join=words, **({key: value} if key else {}))}
        said = fake("remote", 1, step, "/bin/c", way=way, SLURM_CH_REQUEST=f"image=i\n{request}", **env).stdout
        found = re.match(r"\d+(?::(\S+))?(?: /bin/c)?\n", said)
        assert found, said
        wanted = expected + ",".join(RELAYED) if len(expected) == 1 else expected
        assert (found[1] or "") == wanted, (step, request, arguments)


def test_the_sockets_are_close_on_exec(fake: Fake) -> None:
    bare = fake("remote", 1, 0, "/bin/true", FAKE_CLOEXEC="1").stdout
    assert fake("remote", 1, 0, "/bin/true", FAKE_CLOEXEC="1", SLURM_CH_REQUEST="image=i\n").stdout == bare


def test_slurmstepd_keeps_no_descriptor_over_many_steps(fake: Fake) -> None:
    assert fake("many", "/bin/true", SLURM_CH_REQUEST="image=i\n").returncode == 0


@pytest.mark.parametrize("way", WAYS)
def test_every_call_of_slurms_may_fail(fake: Fake, world_tmp: Path, way: str) -> None:
    """Whichever call fails: no crash, no leak, and the command never runs on the host."""
    interpreter, _ = launcher(world_tmp, REFUSE)
    options = 0
    for number in range(1, 60):
        done = fake(
            "remote", 1, 0, "/bin/echo", "on the host", way=way, FAKE_FAIL=str(number), FAKE_SITE=site(interpreter),
            SLURM_CH_REQUEST="image=i\n", FAKE_OPTION="ch-image=i",
        )  # fmt: skip
        assert "Sanitizer" not in done.stderr, done.stderr
        assert "on the host" not in done.stdout, (number, done)
        assert done.returncode in (2, 31, 77), (number, done)
        options += done.returncode == 2
        assert not [line for line in clean(done.stderr) if not line.startswith(("error: ", "slurm-ch: "))], done.stderr
    assert options > 10


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("#!/bin/sh\n#SBATCH --ch-image=i\necho host\n", True),
        ("#!/bin/sh\n\n# a word\n\t# another\n#SBATCH\t-N1 \t--ch-image i", True),
        ("#!/bin/sh\r\n#SBATCH --ch-image=i\r\n", True),
        ("#!/bin/sh\n#SBATCH -N1\necho host\n#SBATCH --ch-image=i\n", False),
        ("#!/bin/sh\n##SBATCH --ch-image=i\n", False),
        ("#!/bin/sh\n#SBATCHX --ch-image=i\n", False),
        ("#!/bin/sh\n #SBATCH --ch-image=i\n", False),
        ("#!/bin/sh\n#SBATCH -N1 # --ch-image=i\n", False),
        ("#!/bin/sh\n#SBATCH -J --ch", False),
        ("#SBATCH", False),
        ("", False),
    ],
)
def test_a_script_that_came_past_sbatch(fake: Fake, world_tmp: Path, text: str, refused: bool) -> None:
    """Its lines request a container, but there is no request: pyslurm and slurmrestd don't read such lines."""
    script = write_script(world_tmp / "batch.sh", text)
    done = fake("remote", 1, BATCH, script)
    assert (done.stdout == "task: 31\n") is refused
    assert ("refusing to run it on the host" in done.stderr) is refused
    # Only the batch step runs a script.
    assert "refusing" not in fake("remote", 1, 0, script).stderr


@pytest.mark.parametrize("path", ["/nonexistent", "/dev/zero", "/"])
def test_a_script_that_is_none(fake: Fake, path: str) -> None:
    assert "refusing" not in fake("remote", 1, BATCH, path).stderr
