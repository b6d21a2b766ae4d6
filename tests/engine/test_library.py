# SPDX-License-Identifier: Apache-2.0
"""`import slurm_ch`: what docs/library.rst promises, by its own examples, and what it doesn't cost."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import slurm_ch

from .conftest import settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/library.rst").read_text()
EXAMPLES = re.findall(r"\.\. code-block:: python\n(?:    :class: (\w+)\n)?\n((?:    .*\n|\n)+)", PAGE)


def python(code: str, user: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` as the user, or as root."""
    how = settings(user) if user != "root" else {}
    env = {**how.pop("env", dict(os.environ)), "PYTHONWARNINGS": "error"}  # type: ignore[dict-item]
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        **{**how, "cwd": cwd},
        env=env,
    )  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="module")
def place(world_tmp: Path, image_sqfs: Path) -> Path:
    place = world_tmp / "library"
    (place / "data").mkdir(parents=True)
    os.link(image_sqfs, place / "foo.sqfs")
    (place / "data/file").write_text("from the host\n")
    place.chmod(0o755)
    return place


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 7


@pytest.mark.parametrize(("role", "code"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_pages_examples(place: Path, user: str, role: str, code: str) -> None:
    code = re.sub(r"^    ", "", code, flags=re.MULTILINE)
    expected: list[str] = []
    for line in code.splitlines():
        if found := re.search(r"  # prints: (.+)$", line):
            expected += found[1].split(", ")
        elif "print(" in line and (found := re.search(r"\)  # (.+)$", line)):
            expected.append(found[1])
    done = python(code, role or user, place)
    assert (done.returncode, done.stderr, sorted(done.stdout.splitlines())) == (0, "", sorted(expected)), done.stdout


def test_names() -> None:
    tree = ast.parse(Path(slurm_ch.__file__).read_text())
    typed = {alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names} - {
        None
    }
    assert typed == set(slurm_ch.__all__) - {"__version__"}
    assert set(slurm_ch.__all__) <= set(dir(slurm_ch))
    for name in slurm_ch.__all__:
        assert getattr(slurm_ch, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        slurm_ch.nonsense  # type: ignore[attr-defined]  # noqa: B018
    assert (Path(slurm_ch.__file__).parent / "py.typed").exists()


def test_importing_it_loads_nothing() -> None:
    code = "import sys; before = set(sys.modules); import slurm_ch; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "['slurm_ch']\n"


@pytest.mark.parametrize(
    ("field", "value", "shows"),
    [
        ("home", True, "test -d /home/$USER"), ("mount_point", "/tmp", "true"), ("uid", 0, "test $(id -u) = 0"), ("gid", 0, "test $(id -g) = 0"),
        ("write_fake", "1m", "touch /x"), ("private_tmp", True, "test -z \"$(ls /tmp)\""), ("passwd", False, "test ! -s /etc/passwd"),
        ("seccomp", True, "mknod /tmp/slurm-ch-none b 1 1"), ("cd", "/etc", "test $PWD = /etc"), ("fuse_single", True, "true"),
        ("env_rules", [("set", "A=1")], "test $A = 1"), ("storage", "/tmp", "true"), ("verbosity", -1, "echo hidden"), ("color", True, "true"),
        ("join_count", 1, "true"),
    ],
)  # fmt: skip
def test_a_spec_made_by_hand(place: Path, user: str, field: str, value: object, shows: str) -> None:
    code = f"""
import slurm_ch, sys
spec = slurm_ch.Spec("foo.sqfs")
spec.{field} = {value!r}
sys.exit(slurm_ch.run(spec, ["sh", "-c", {shows!r}]))
"""
    done = python(code, user, place)
    # Where this directory is below /tmp, a fresh /tmp hides it, and a warning says so.
    lost = "" if field != "private_tmp" else done.stderr
    assert (done.returncode, done.stdout, done.stderr) == (0, "", lost), done


def test_contradictions_in_a_spec_made_by_hand(place: Path, user: str) -> None:
    code = """
import slurm_ch
spec = slurm_ch.Spec("foo.sqfs")
spec.write, spec.home = True, True
try:
    slurm_ch.explain(spec)
except slurm_ch.UsageError as error:
    print(error)
"""
    assert python(code, user, place).stdout == "write: contradicts home, which implies write-fake\n"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("uid", -1, "UsageError: uid=-1: not a whole number from 0 to"), ("uid", "me", "TypeError: uid: expected an int or None, not str"),
        ("write_fake", "lots", "UsageError: write_fake=lots: not a size"), ("write_fake", True, "TypeError: write_fake: expected a str or None, not bool"),
        ("home", "no", "TypeError: home: expected a bool, not str"), ("relay", 1, "TypeError: relay: expected a bool or None, not int"),
        ("verbosity", "2", "TypeError: verbosity: expected a number, not str"), ("unshare", ["pid"], "UsageError: unshare=pid: not one of net, ipc, uts"),
        ("binds", ["/tmp:/mnt"], "TypeError: binds: expected Binds in the list, not str"),
        ("binds", [slurm_ch.Bind("/tmp", "mnt")], "UsageError: binds=Bind('/tmp', 'mnt'): the destination is not absolute"),
        ("env_rules", ["A=1"], "TypeError: env_rules: expected pairs of two str, not str"),
        ("env_rules", [("sett", "A=1")], "UsageError: env_rules=('sett', 'A=1'): the first is not one of file, file0, literal, set,"),
        ("devices", ["nvidia.com/gpu=0"], "TypeError: devices: expected pairs of two str, not str"),
        ("devices", [("gpu", "devices")], "UsageError: devices=gpu: "),
        ("unshare", "net", "TypeError: unshare: expected a list or a tuple, not str"), ("labels", None, "TypeError: labels: expected a dict, not NoneType"),
        ("compatibility", True, "TypeError: compatibility: expected a Compatibility or None, not bool"),
        ("cd", "a\0b", "UsageError: cd='a\\x00b': has a NUL in it"), ("pull", "x", "UsageError: pull=x: not one of auto, always"),
        ("platform", "", "UsageError: platform=: not a platform"), ("join_timeout", -5, "UsageError: join_timeout=-5: not above 0"),
        ("image", None, "TypeError: image: expected a path, not NoneType"),
    ],
)  # fmt: skip
def test_a_wrong_value_in_a_spec_made_by_hand(field: str, value: object, message: str) -> None:
    spec = slurm_ch.Spec("/nowhere")
    setattr(spec, field, value)
    with pytest.raises((TypeError, slurm_ch.UsageError)) as caught:
        slurm_ch.run(spec, ["true"])
    assert f"{type(caught.value).__name__}: {caught.value}".startswith(message)


def test_a_name_is_no_pattern(place: Path, user: str) -> None:
    """Only the variables that the caller names are removed."""
    code = "import slurm_ch; slurm_ch.run('foo.sqfs', ['sh', '-c', 'echo $A $B'], env={'A': 'a', 'B': 'b', '*': None, '[AB]': None})"
    assert python(code, user, place).stdout == "a b\n"


# Each rule, applied to a process by ch-join and by containerize().
RULES = {
    "set_env": ["A=$B:$NOPE:x", "B=$A", "C='quoted'"], "unset_env": ["D*", "@(E|F)"], "env": {"G": "$A", "H": None},
}  # fmt: skip


def test_the_environment_is_as_ch_join_makes_it(place: Path, user: str) -> None:
    code = f"""
import os, slurm_ch, json
os.environ.update(B="b", D1="d", E="e", F="f", H="h", K="k", TMPDIR="below", TEMP="/gone")
rules = {RULES!r}
slurm_ch.run("foo.sqfs", ["sh", "-c", "env; pwd"], **rules)
if os.fork() == 0:
    slurm_ch.containerize("foo.sqfs", **rules)
    os.execv("/bin/sh", ["sh", "-c", "env; pwd"])
os.wait()
"""
    done = python(code, user, place)
    lines = [line for line in done.stdout.splitlines() if not line.startswith(("SHLVL=", "_="))]
    half = len(lines) // 2
    assert done.stderr == "slurm-ch: warning: TEMP=/gone: no such directory in the container; using /tmp\n" * 2
    assert sorted(lines[:half]) == sorted(lines[half:])
    assert {"A=b:x", "B=b:x", "C=quoted", "G=$A", "K=k", "TMPDIR=below", "TEMP=/tmp"} <= set(lines) and not {
        "D1=d",
        "E=e",
        "F=f",
        "H=h",
    } & set(lines)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("run('foo.sqfs', ['true'], nonsense=1)", "TypeError: there is no option 'nonsense'"),
        ("run('foo.sqfs', ['true'], relay=True)", "TypeError: there is no option 'relay'"),
        ("run('foo.sqfs', ['true'], cd=True)", "UsageError: cd=True: the option needs a value"),
        ("run('foo.sqfs', ['true'], uid='x')", "UsageError: uid=x: not a whole number"),
        ("run('foo.sqfs', ['/nowhere'])", ""),
        ("containerize('foo.sqfs', seccomp=True)", "UsageError: seccomp: only for commands that slurm_ch.run() runs"),
        ("run(slurm_ch.Spec('foo.sqfs'), ['true'], uid=1)", "TypeError: a Spec contains all options"),
        ("run('foo.sqfs', ['true'], hooks=[slurm_ch.Hooks('never')])", "UsageError: hooks run at host, guest or all, not at never"),
        ("job_environment(image='/etc/passwd')", "ChError: unknown image type: /etc/passwd"),
        ("job_environment(image='/', write=True, write_fake=True)", "UsageError: --ch-write=yes: contradicts --ch-write-fake"),
        ("job_environment(image='a\\nb')", "UsageError: image='a\\nb': has a newline in it"),
        ("job_environment(image='/', cd={'a': 1})", "TypeError: cd: expected a str, a number or a path, not dict"),
        ("job_environment(image='/', set_env=b'A=1')", "TypeError: set_env: expected a str, a number or a path, not bytes"),
        ("job_environment(image='/', unset_env={'A': 'b'})", "TypeError: unset_env: expected a str, a number or a path, not dict"),
        ("job_environment(image='/', set_env={'A': None})", "TypeError: set_env: expected a str, a number or a path, not NoneType"),
        ("job_environment(image='/', cd=False)", "UsageError: cd=False: the option needs a value"),
        ("job_environment(image='/', home=True, write_fake=False)", "UsageError: --ch-write-fake=no: contradicts --ch-home"),
        ("explain('foo.sqfs', uid='1\\n2')", "UsageError: uid=1\\x0a2: has a newline"),
        ("job_environment(image=None)", "TypeError: image: expected a path, not NoneType"),
        ("run('foo.sqfs', 'true')", "TypeError: argv: expected a list of words, not str"),
        ("run('foo.sqfs', [])", "UsageError: argv: the command is missing"),
        ("run('foo.sqfs', ['echo', 5])", "TypeError: argv[1]: expected a str or a path, not int"),
        ("run('foo.sqfs', ['a\\0'])", "UsageError: argv[0]='a\\x00': has a NUL in it"),
        ("run(5, ['true'])", "TypeError: image: expected a path, not int"),
        ("run('', ['true'])", "UsageError: image: an image is required"),
        ("run('a\\0', ['true'])", "UsageError: image='a\\x00': has a NUL in it"),
        ("run('foo.sqfs', ['true'], binds=5)", "TypeError: binds: expected one or several values, not int"),
        ("run('foo.sqfs', ['true'], binds=[('/tmp', '/mnt')])", "TypeError: binds: expected a str, a number or a path, not tuple"),
        ("run('foo.sqfs', ['true'], binds=['data'])", "UsageError: binds=data: a relative source needs a destination"),
        ("run('foo.sqfs', ['true'], binds=[slurm_ch.Bind('/a:b', '/mnt')])", "ChError: binds=/a\\:b:/mnt: can't bind: source not found: /a:b"),
        ("run('foo.sqfs', ['true'], env='A=1')", "TypeError: env: expected a dict, not str"),
        ("run('foo.sqfs', ['true'], env={'A': 1})", "TypeError: env['A']: expected a str or None, not int"),
        ("run('foo.sqfs', ['true'], env={'A=B': '1'})", "UsageError: env: 'A=B' can't be a variable's name"),
        ("run('foo.sqfs', ['true'], env={1: '1'})", "TypeError: env: expected names that are str, not int"),
        ("run('foo.sqfs', ['true'], hooks=slurm_ch.Hooks('all'))", "TypeError: hooks: expected a list of Hooks, not Hooks"),
        ("run('foo.sqfs', ['true'], hooks=[print])", "TypeError: hooks: expected Hooks in the list, not builtin_function_or_method"),
        ("explain(slurm_ch.Spec(''))", "UsageError: image: an image is required"),
        ("Cluster(nodes=0)", "ClusterError: nodes=0: not a whole number from 1 on"),
    ],
)  # fmt: skip
def test_wrong_arguments(place: Path, user: str, call: str, message: str) -> None:
    code = f"import slurm_ch\ntry: slurm_ch.{call}\nexcept Exception as error: print(f'{{type(error).__name__}}: {{error}}')"
    assert python(code, user, place).stdout.startswith(message)


def test_a_command_that_is_killed(place: Path, user: str) -> None:
    code = "import slurm_ch; print(slurm_ch.run('foo.sqfs', ['sh', '-c', 'kill -9 $$']))"
    assert python(code, user, place).stdout == "-9\n"


def test_a_join_that_fails(place: Path, user: str) -> None:
    code = """
import slurm_ch
try:
    slurm_ch.run("foo.sqfs", ["true"], join_ct=2, join_tag="library-alone", join_timeout=1)
except slurm_ch.JoinError as error:
    print(error.code)
"""
    assert python(code, user, place).stdout == "32\n"


def test_what_containerize_does_to_the_process(place: Path, user: str) -> None:
    """docs/library.rst has the list."""
    code = """
import ctypes, os, slurm_ch
libc = ctypes.CDLL(None)
os.umask(0o27)
def process():
    return [
        os.umask(0o27), os.getcwd(), os.getuid(), os.path.exists("/marker"), os.environ.get("CH_RUNNING"),
        libc.prctl(39, 0, 0, 0, 0), libc.prctl(3, 0, 0, 0, 0), *(os.readlink(f"/proc/self/ns/{one}") for one in ("user", "mnt")),
    ]
before = process()
slurm_ch.containerize("foo.sqfs", cd="/etc", uid=0)
after = process()
print(after[:7], before[0] == 0o27, before[5:7], [one in before for one in after[7:]])
"""
    done = python(code, user, place)
    assert done.stdout == "[23, '/etc', 0, True, 'foo.sqfs', 1, 0] True [0, 1] [False, False]\n", done


def test_a_comma_in_a_value_of_a_job(place: Path) -> None:
    variables = slurm_ch.job_environment(image="/images/foo.sqfs", bind=["/a,b:/mnt", slurm_ch.Bind("/c", "/d")])
    assert variables["SLURM_CH_BIND"] == "/a\\,b:/mnt\n/c:/d"
    assert "\nbind=/a\\,b:/mnt\nbind=/c:/d\n" in variables["SLURM_CH_REQUEST"]
