# SPDX-License-Identifier: Apache-2.0
"""ch-join: the ticket, the plan, the environment, the command."""

from __future__ import annotations

import os
import random
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_ch import paths
from slurm_ch.engine import task_plan
from slurm_ch.library import containers
from slurm_ch.plugin import tickets

from .conftest import CH_JOIN_SOURCES
from .made import SANITIZE

HEADER = task_plan.HEADER


def carry_out(
    plan: bytes, *command: str, program: str | Path = paths.CH_JOIN, cwd: str = "/", **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `command` by a plan, in no other namespace."""
    fd = task_plan.plan_file(plan)
    try:
        return subprocess.run(
            ["ch-join", f"--plan={fd}", "--", *command], executable=program, check=False, capture_output=True, text=True,
            timeout=60, pass_fds=[fd], cwd=cwd, env={"PATH": "/usr/bin:/bin", **env}, errors="surrogateescape",
        )  # fmt: skip
    finally:
        os.close(fd)


def environment_after(records: Sequence[tuple[str, str]], **env: str) -> dict[str, str]:
    done = carry_out(task_plan.encode(records), "env", "-0", **env)
    assert (done.returncode, done.stderr) == (0, "")
    found = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)
    # containerize() has the same done to a process in Python.
    in_python = {"PATH": "/usr/bin:/bin", **env}
    containers.apply_records(records, in_python)
    assert {**found, "PWD": ""} == {**in_python, "PWD": ""}
    return found


# What the variables A (aa), B (b:b), EMPTY (empty) and NOPE (unset) make of a value.
EXPANSIONS = [
    ("", ""), ("x", "x"), ("$A", "aa"), ("$B", "b:b"), ("$EMPTY", ""), ("$NOPE", ""), ("$", "$"), ("$$", ""), ("$A$A", ""),
    ("x$A", "x$A"), ("$A:x", "aa:x"), ("x:$A", "x:aa"), ("$A:$A", "aa:aa"), ("$A:$B", "aa:b:b"), ("x:$A:y", "x:aa:y"),
    ("$NOPE:x", "x"), ("x:$NOPE", "x"), ("x:$NOPE:y", "x:y"), ("$NOPE:$NOPE", ""), ("$NOPE:$NOPE:x", "x"), ("$EMPTY:x", "x"),
    ("x:$EMPTY", "x"), ("x:$EMPTY:y", "x:y"), ("$:x", "$:x"), ("x:$", "x:$"), ("x:$:y", "x:$:y"), (":", ":"), ("::", "::"),
    (":x", ":x"), ("x:", "x:"), ("x::y", "x::y"), (":$A", ":aa"), ("$A:", "aa:"), ("$NOPE:", ""), (":$NOPE", ""),
    ("::$NOPE", ":"), ("$A::$A", "aa::aa"), ("a$", "a$"), ("a$:b", "a$:b"), ("${A}", ""), ("$A ", ""), ("$A/bin", ""),
    ("/x/$A", "/x/$A"), (" $A", " $A"), ("'$A'", "'$A'"), ("\\$A", "\\$A"), ("$A=$B", ""), ("x=$A", "x=$A"), ("$B:$NOPE:$A", "b:b:aa"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("records", "found"),
    [
        ([("T", "quietly")], {"TMPDIR": "x/y", "TMP": "/tmp", "TEMP": "/usr", "TEMPDIR": ""}),
        ([("P", "")], {"PATH": "/usr/bin:/bin"}), ([("P", "/bin:/sbin:/x")], {"PATH": "/usr/bin:/bin:/sbin:/x"}),
        ([("U", "PATH"), ("P", "")], {"PATH": "/bin"}), ([("E", "PATH="), ("P", "/a:/bin")], {"PATH": "/a:/bin"}),
        ([("N", "TEMP=x"), ("N", "V=x"), ("N", "TEMPDIR=x")], {"TEMP": "/usr", "V": "x", "TEMPDIR": ""}),
        ([("Y", "TEMP=/usr"), ("E", "V=a"), ("Y", "TEMP="), ("E", "V=b"), ("Y", "NOPE="), ("E", "V=c"), ("E", "W=d")], {"V": "a", "W": "d"}),
        ([("U", "T?P"), ("U", "@(TEMP|NOPE)"), ("U", "[!TP]*")], {"TMPDIR": "x/y", "TEMPDIR": ""}),
    ],
)  # fmt: skip
def test_the_other_records(records: list[tuple[str, str]], found: dict[str, str]) -> None:
    given = {"TMPDIR": "x/y", "TMP": "/nowhere", "TEMP": "/usr", "TEMPDIR": ""}
    after = environment_after(records, **given)
    assert found.items() <= after.items()
    assert "NOPE" not in after and ("TMP" in after) == (records[0] != ("U", "T?P"))


def test_there_are_enough_cases() -> None:
    assert len(EXPANSIONS) >= 40


@pytest.mark.parametrize(("value", "expected"), EXPANSIONS)
@pytest.mark.row("--set-env")
def test_expansion(value: str, expected: str) -> None:
    found = environment_after([("X", f"V={value}")], A="aa", B="b:b", EMPTY="")
    assert found["V"] == expected
    assert environment_after([("E", f"V={value}")], A="aa")["V"] == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [("/home/$A", "/home/aa"), ("${A}x$B", "aaxb:b"), ("$A$A", "aaaa"), ("$NOPE/x", "/x"), ("${NOPE}", ""), ("$", "$"), ("a$", "a$"),
     ("$$A", "$aa"), ("${A", "${A"), ("${}", "${}"), ("${1}", "${1}"), ("$1", "$1"), ("$A_", ""), ("$A-", "aa-"), ("${A-b}", "${A-b}"),
     ("", ""), ("x", "x"), ("$A:$B:$", "aa:b:b:$"), ("\\$A", "$A"), ("\\\\$A", "\\$A"), ("a\\b\\$", "a\\b$"), ("\\", "\\"),
     ("x:$NOPE", "x"), ("$NOPE:x", "x"), ("x:${NOPE}$EMPTY:y", "x:y"), ("x::y", "x::y"), ("$NOPE:$EMPTY", ""), ("$NOPE-:x", "-:x"),
     (":$NOPE", ""), ("$A:", "aa:"), ("http://$A:$A/x", "http://aa:aa/x")],
)  # fmt: skip
def test_expansion_anywhere(value: str, expected: str) -> None:
    assert environment_after([("A", f"V={value}")], A="aa", B="b:b", EMPTY="")["V"] == expected


def test_what_only_counts_without_a_value_of_the_tasks_own() -> None:
    records = [
        ("N", "A=new"),
        ("N", "B=new"),
        ("Y", "A=1"),
        ("E", "X=1"),
        ("Y", "A=2"),
        ("E", "Y=1"),
        ("Y", "NOPE="),
        ("E", "Z=1"),
        ("E", "W=1"),
    ]
    found = environment_after(records, A="1")
    assert {name: found.get(name) for name in "ABXYZW"} == {
        "A": "1",
        "B": "new",
        "X": "1",
        "Y": None,
        "Z": None,
        "W": "1",
    }
    # At a plan's end there is nothing to leave out.
    assert environment_after([("Y", "A=2")], A="1")["A"] == "1"


def test_the_images_directory_is_for_its_own_command() -> None:
    assert carry_out(task_plan.encode([("I", "/usr")]), "pwd", cwd="/etc").stdout == "/etc\n"


@pytest.mark.parametrize(("command", "code"), [("nonsense", 49), ("/etc", 49), ("true", 0)])
def test_exit_codes_of_ch_run(command: str, code: int) -> None:
    assert carry_out(task_plan.encode([("Q", "")]), command).returncode == code


def expanded(value: str, variables: dict[str, str]) -> str:
    """Expand a value by the same rules, written in another way."""
    items = []
    for item in value.split(":"):
        if len(item) < 2 or item[0] != "$":
            items.append(item)
        elif variables.get(item[1:]):
            items.append(variables[item[1:]])
    return ":".join(items)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("$:AB '=x", max_size=12), min_size=1, max_size=40))
@pytest.mark.row("--set-env")
def test_expansion_of_many_values(values: list[str]) -> None:
    variables = {"A": "aa", "B": "", "AB": "b:$A"}
    found = environment_after([("X", f"V{n}={value}") for n, value in enumerate(values)], **variables)
    assert [found[f"V{n}"] for n in range(len(values))] == [expanded(value, variables) for value in values]


def test_rules_see_what_came_before() -> None:
    found = environment_after([("X", "A=1"), ("X", "B=$A:x"), ("U", "A"), ("X", "C=$A:y"), ("X", "B=$B:z")])
    assert (found["B"], found["C"], "A" in found) == ("1:x:z", "y", False)


@pytest.mark.parametrize(
    ("pattern", "gone"),
    [
        ("A", "A"),
        ("A*", "A AB ABC"),
        ("?B", "AB"),
        ("[AX]", "A X"),
        ("*", "A AB ABC X"),
        ("*C", "ABC"),
        ("a", ""),
        ("A?*", "AB ABC"),
        ("A=1", ""),
    ],
)
@pytest.mark.row("--unset-env")
def test_unset_by_pattern(pattern: str, gone: str) -> None:
    names = {"A", "AB", "ABC", "X"}
    records = [("U", pattern), ("E", "PATH=/usr/bin:/bin")]
    found = environment_after(records, **dict.fromkeys(names, "1"))
    assert names - set(found) == set(gone.split())


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/usr/bin", "/usr/bin:/bin"), ("/bin", "/bin"), ("/bin:/usr/bin", "/bin:/usr/bin"), ("/usr/bin:/bin", "/usr/bin:/bin"),
     ("/sbin:/usr/bin", "/sbin:/usr/bin:/bin"), ("/usr/bin:/bin/x", "/usr/bin:/bin/x:/bin"), ("/usr/bin:/binx", "/usr/bin:/binx:/bin")],
)  # fmt: skip
def test_path_has_bin(path: str, expected: str) -> None:
    assert environment_after([("P", "")], PATH=path)["PATH"] == expected


def test_path_has_what_root_needs() -> None:
    records = [("P", "/usr/local/sbin:/usr/sbin:/sbin")]
    assert environment_after(records, PATH="/bin:/usr/sbin")["PATH"] == "/bin:/usr/sbin:/usr/local/sbin:/sbin"
    # The command is looked up in that PATH.
    assert environment_after([("U", "PATH"), ("P", ""), *records])["PATH"] == f"/bin:{records[0][1]}"


def test_path_where_there_is_none() -> None:
    assert "PATH" not in environment_after([("U", "PATH"), ("P", "as it is")])
    assert environment_after([("U", "PATH"), ("P", "")])["PATH"] == "/bin"


def test_working_directory(tmp_path: Path) -> None:
    assert environment_after([("C", "/usr")])["PWD"] == "/usr"
    done = carry_out(task_plan.encode([]), "pwd", cwd="/usr/share")
    assert done.stdout == "/usr/share\n"
    done = carry_out(task_plan.encode([("C", "/nonexistent")]), "pwd")
    assert (done.returncode, done.stdout, done.stderr) == (
        31,
        "",
        "slurm-ch: error: can't cd to /nonexistent: No such file or directory\n",
    )
    done = carry_out(task_plan.encode([("V", "1")]), "pwd", SLURM_CH_CWD="/nonexistent")
    assert done.stdout == "/\n"
    assert "working directory /nonexistent is not in the container" in done.stderr


@pytest.mark.parametrize(
    ("command", "code", "why"),
    [(["nonsense"], 127, "No such file"), (["/nonexistent/x"], 127, "No such file"), (["/etc/passwd/x"], 127, "Not a directory"),
     (["/etc"], 126, "Permission denied"), (["/etc/passwd"], 126, "Permission denied")],
)  # fmt: skip
@pytest.mark.row("R4")
def test_commands_that_cannot_be_executed(command: list[str], code: int, why: str) -> None:
    done = carry_out(task_plan.encode([]), *command, SLURMD_NODENAME="n7")
    assert done.returncode == code
    assert done.stderr.startswith(f"slurm-ch: n7: error: can't execute {command[0]}: {why}")


def test_a_command_found_by_the_plans_path(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho found\n")
    tool.chmod(0o755)
    assert carry_out(task_plan.encode([("E", f"PATH={tmp_path}")]), "tool").stdout == "found\n"


def test_nothing_of_ours_leaks() -> None:
    show = "for f in /proc/$$/fd/*; do echo ${f##*/}; done; grep NoNew /proc/$$/status"
    bare = subprocess.run(["sh", "-c", show], check=True, capture_output=True, text=True).stdout
    assert carry_out(task_plan.encode([]), "sh", "-c", show).stdout == bare.replace("NoNewPrivs:\t0", "NoNewPrivs:\t1")


@pytest.mark.parametrize(
    "words", [[], ["--plan=3"], ["--plan=x", "--", "true"], ["--plan=-1", "--", "true"], ["--plan=3", "true"], ["true"]]
)
def test_by_hand_it_refuses(words: list[str]) -> None:
    done = subprocess.run([paths.CH_JOIN, *words], check=False, capture_output=True, text=True, timeout=20, env={})
    assert (done.returncode, done.stderr) == (
        64,
        "slurm-ch: error: ch-join is started by Slurm's plugin, not by hand\n",
    )


PLANS = [
    b"", b"\0", b"x" * 100, HEADER[:-1], HEADER[:-2] + b"2\0", HEADER + b"E", HEADER + b"EA=1", HEADER + b"Znew\0", HEADER + b"\0",
    HEADER + b"EA\0", HEADER + b"E=1\0", HEADER + b"X\0", HEADER + b"E\0",
]  # fmt: skip


@pytest.mark.parametrize("plan", PLANS)
def test_malformed_plans(ch_join_sanitized: Path, plan: bytes) -> None:
    done = carry_out(plan, "true", program=ch_join_sanitized)
    assert done.returncode == 31
    assert done.stderr.count("\n") == 1, done.stderr


def test_plans_of_random_bytes(ch_join_sanitized: Path) -> None:
    """A fixed seed: what fails once fails again."""
    dice = random.Random(20261124)
    good = task_plan.encode([("E", "A=1"), ("X", "B=$A:$C:x"), ("U", "C*"), ("P", ""), ("C", "/"), ("V", "0")])
    for _ in range(400):
        plan = bytearray(good)
        for _ in range(dice.randint(1, 6)):
            place = dice.randrange(len(plan))
            kind = dice.randrange(3)
            if kind == 0:
                plan[place] = dice.randrange(256)
            elif kind == 1:
                del plan[place:]
                break
            else:
                plan[place:place] = dice.randbytes(dice.randint(1, 20))
        done = carry_out(bytes(plan), "true", program=ch_join_sanitized)
        assert done.returncode in (0, 31, 127), (bytes(plan), done)
        assert "Sanitizer" not in done.stderr


# ---- Tickets ----


def join(
    tasks_end: socket.socket,
    *command: str,
    value: str | None = None,
    program: str | Path = paths.CH_JOIN,
    more_fds: Sequence[int] = (),
    **env: str,
) -> subprocess.Popen[str]:
    variable = f"{tasks_end.fileno()}" if value is None else value
    return subprocess.Popen(
        ["ch-join", *command], executable=program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        pass_fds=[tasks_end.fileno(), *more_fds], env={"PATH": "/usr/bin:/bin", "SLURM_CH_JOIN": variable, **env},
    )  # fmt: skip


_open: list[socket.socket] = []


def pair() -> tuple[socket.socket, socket.socket]:
    """Return the tasks' and the launcher's end; closed after the test."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    _open.extend(ends)
    return ends


@pytest.fixture(autouse=True)
def sockets_closed() -> Iterator[None]:
    yield
    while _open:
        _open.pop().close()


def issue(launcher_end: socket.socket, namespaces: Sequence[int], plan: bytes = HEADER) -> None:
    task_socket = tickets.TaskSocket(launcher_end.detach())
    task_socket.issue(namespaces[0], namespaces[1], task_plan.plan_file(plan))
    task_socket.close()


def refuse(launcher_end: socket.socket, code: int) -> None:
    task_socket = tickets.TaskSocket(launcher_end.detach())
    task_socket.refuse(code)
    task_socket.close()


def end(task: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = task.communicate(timeout=20)
    return task.returncode, out, err


@pytest.fixture
def namespaces() -> list[int]:
    """Descriptors of a new user and mount namespace."""
    holder = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", "echo; cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    fds = [os.open(f"/proc/{holder.pid}/ns/{kind}", os.O_RDONLY) for kind in ("user", "mnt")]
    holder.communicate(b"")
    return fds


def test_many_tasks_and_one_ticket(namespaces: list[int]) -> None:
    tasks_end, launcher_end = pair()
    tasks = [join(tasks_end, "readlink", "/proc/self/ns/mnt") for _ in range(64)]
    issue(launcher_end, namespaces)
    late = join(tasks_end, "readlink", "/proc/self/ns/mnt")
    results = {end(task) for task in [*tasks, late]}
    inode = os.fstat(namespaces[1]).st_ino
    assert results == {(0, f"mnt:[{inode}]\n", "")}


@pytest.fixture(scope="session")
def ch_join_flaky(world_tmp: Path) -> Path:
    """ch-join whose setns fails with EINVAL, as the kernel's sometimes does; FLAKY is how many times."""
    source = world_tmp / "flaky.c"
    source.write_text(
        "#include <errno.h>\n#include <stdlib.h>\n"
        "int __real_setns(int, int);\n"
        'int __wrap_setns(int fd, int type) { static int n; const char *times = getenv("FLAKY");'
        " if (times && n++ < atoi(times)) { errno = EINVAL; return -1; } n = 0; return __real_setns(fd, type); }\n"
    )
    to = world_tmp / "ch-join-flaky"
    sources = CH_JOIN_SOURCES
    subprocess.run(["cc", *SANITIZE, "-Wl,--wrap=setns", "-o", to, source, *sources], check=True)
    return to


@pytest.mark.row("N3")
def test_n3_setns_is_tried_again(namespaces: list[int], ch_join_flaky: Path) -> None:
    tasks_end, launcher_end = pair()
    issue(launcher_end, namespaces)
    assert end(join(tasks_end, "echo", "in", program=ch_join_flaky, FLAKY="4")) == (0, "in\n", "")
    status, out, err = end(join(tasks_end, "true", program=ch_join_flaky, FLAKY="5"))
    assert (status, out) == (31, "")
    assert "can't join user namespace of the container: Invalid argument" in err


def test_the_command_that_was_replaced(namespaces: list[int]) -> None:
    tasks_end, launcher_end = pair()
    issue(launcher_end, namespaces)
    task = join(tasks_end, "one", "two words", value=f"{tasks_end.fileno()} echo")
    assert end(task) == (0, "one two words\n", "")
    assert "SLURM_CH_JOIN" not in end(join(tasks_end, "env"))[1]


def test_the_users_words_are_theirs(namespaces: list[int]) -> None:
    # Before Slurm 23.02.5 the command is in the variable, and the words after it look like ch-join's own.
    tasks_end, launcher_end = pair()
    issue(launcher_end, namespaces)
    task = join(tasks_end, "--plan=3", "--", "true", value=f"{tasks_end.fileno()} echo")
    assert end(task) == (0, "--plan=3 -- true\n", "")


def test_the_command_that_was_guarded(namespaces: list[int]) -> None:
    tasks_end, launcher_end = pair()
    issue(launcher_end, namespaces)
    task = join(tasks_end, "/proc/guard", "one", "two words", value=f"{tasks_end.fileno()}+echo")
    assert end(task) == (0, "one two words\n", "")


def test_refusal_and_death(namespaces: list[int]) -> None:
    tasks_end, launcher_end = pair()
    tasks = [join(tasks_end, "true", SLURM_LOCALID=str(n)) for n in range(3)]
    launcher_end.close()
    results = [end(task) for task in tasks]
    assert results[0] == (
        33,
        "",
        "slurm-ch: error: the launcher died before the container was ready (killed, or no Python could start): if memory ran out, ask for more, "
        "or pull the image before the job (`slurm-ch pull`)\n",
    )
    assert results[1:] == [(33, "", "")] * 2
    tasks_end, launcher_end = pair()
    refuse(launcher_end, 64)
    assert end(join(tasks_end, "true")) == (64, "", "")


def forged(
    namespaces: list[int], plan: bytes, *, swapped: bool = False, sealed: bool = True
) -> tuple[bytes, list[int]]:
    """Return a ticket's message and descriptors."""
    memory = task_plan.plan_file(plan)
    if not sealed:
        memory = os.memfd_create("plan")
        os.write(memory, plan)
    ends = namespaces[::-1] if swapped else namespaces
    return tickets.MAGIC + bytes(4), [*ends, memory]


def test_the_first_message_counts(namespaces: list[int]) -> None:
    """A task looks at the first message and takes none: no task ever reads a later one."""
    tasks_end, launcher_end = pair()
    message, fds = forged(namespaces, task_plan.encode([("E", "WHOSE=first")]))
    socket.send_fds(launcher_end, [message], fds)
    message, fds = forged(namespaces, task_plan.encode([("E", "WHOSE=second")]))
    socket.send_fds(launcher_end, [message], fds)
    refuse(launcher_end, 64)
    for _ in range(3):
        assert end(join(tasks_end, "sh", "-c", "echo $WHOSE")) == (0, "first\n", "")


def test_a_task_cannot_answer_another(namespaces: list[int]) -> None:
    """A message that is sent from the tasks' end only reaches the launcher's end, which nobody reads."""
    tasks_end, launcher_end = pair()
    message, fds = forged(namespaces, task_plan.encode([]))
    socket.send_fds(tasks_end, [message], fds)
    task = join(tasks_end, "echo", "forged")
    refuse(launcher_end, 77)
    assert end(task) == (77, "", "")


def test_a_ticket_s_descriptors_are_what_they_stand_for(namespaces: list[int], ch_join_sanitized: Path) -> None:
    plan = task_plan.encode([])
    for how, why in (
        ({"swapped": True}, "can't join user namespace"),
        ({"sealed": False}, "the plan: it is not sealed"),
    ):
        tasks_end, launcher_end = pair()
        message, fds = forged(namespaces, plan, **how)
        socket.send_fds(launcher_end, [message], fds)
        code, out, err = end(join(tasks_end, "echo", "ran", program=ch_join_sanitized))
        assert (code, out, why in err) == (31, "", True), err
    tasks_end, launcher_end = pair()
    message, fds = forged(namespaces, plan)
    socket.send_fds(launcher_end, [message + b"more"], fds)
    assert end(join(tasks_end, "echo", "ran", program=ch_join_sanitized))[:2] == (31, "")


@pytest.mark.parametrize("value", ["", "x", "-1", "99999999999", "3x"])
def test_nonsense_in_the_variable(value: str) -> None:
    tasks_end, _launcher_end = pair()
    assert end(join(tasks_end, "true", value=value))[0] == 64


@pytest.mark.parametrize("fds", [0, 1, 2, 12])
def test_tickets_with_a_wrong_number_of_descriptors(namespaces: list[int], ch_join_sanitized: Path, fds: int) -> None:
    tasks_end, launcher_end = pair()
    with open("/dev/null") as null:
        socket.send_fds(launcher_end, [tickets.MAGIC + bytes(4)], [null.fileno()] * fds) if fds else launcher_end.send(
            tickets.MAGIC + bytes(4)
        )
        code, _, err = end(join(tasks_end, "true", program=ch_join_sanitized))
    assert code == 31
    assert "can't receive the ticket" in err
    assert "Sanitizer" not in err


def test_tickets_of_random_bytes(ch_join_sanitized: Path) -> None:
    dice = random.Random(1124)
    messages = [
        tickets.MAGIC,
        tickets.MAGIC + b"\0" * 3,
        b"x" * 12,
        tickets.MAGIC + b"\0" * 5,
        *[dice.randbytes(dice.randint(1, 40)) for _ in range(40)],
    ]
    for message in messages:
        tasks_end, launcher_end = pair()
        launcher_end.send(message)
        code, _, err = end(join(tasks_end, "true", program=ch_join_sanitized))
        assert code == 31, (message, err)
        assert "Sanitizer" not in err


def test_no_command() -> None:
    tasks_end, launcher_end = pair()
    refuse(launcher_end, 1)
    assert end(join(tasks_end))[0] == 1
