# SPDX-License-Identifier: Apache-2.0
"""The option table, and what options become: no system calls."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_mock import MockerFixture

from slurm_ch import errors
from slurm_ch.engine import task_plan
from slurm_ch.errors import ChError, UsageError
from slurm_ch.plugin.facts import read_facts, task_count
from slurm_ch.plugin.launcher import _widen_affinity
from slurm_ch.request import options, parsers, site, spec
from slurm_ch.request.options import Setting
from slurm_ch.request.spec import Bind

ROOT = Path(__file__).parents[2]


def made(*words: str) -> spec.Spec:
    """Return the Spec for words like the plugin's: `bind=/a:/b`."""
    return parsers.make("img", parsers.parse_request("\n".join(words)))


def test_every_option_has_a_parser() -> None:
    parsers.check_complete()


def test_c_table_has_every_option_of_the_plugin() -> None:
    out = subprocess.run(
        [sys.executable, "-I", ROOT / "spank/plugin/gen_options.py"], check=True, capture_output=True, text=True
    ).stdout
    names = re.findall(
        r'^OPTION\(([A-Z0-9_]+), "ch-([a-z0-9-]+)", .*, KIND_[A-Z]+, (true|false), PATHS_([A-Z]+), NULL\)$',
        out,
        re.MULTILINE,
    )
    wanted = [
        (o.variable, o.name, str(o.sure).lower(), o.paths.upper()) for o in options.OPTIONS if o.where & options.PLUGIN
    ]
    assert names == wanted


def test_defaults() -> None:
    plain = made()
    assert (plain.binds, plain.write, plain.write_fake, plain.home, plain.passwd) == ([], False, None, False, True)
    assert (plain.private_tmp, plain.env_expand, plain.uid, plain.gid, plain.verbosity) == (False, True, None, None, 0)


@pytest.mark.parametrize(
    ("words", "binds"),
    [
        (["bind=/a"], [("/a", "/a")]),
        (["bind=/a:/b"], [("/a", "/b")]),
        (["bind=/a:/b,/c"], [("/a", "/b"), ("/c", "/c")]),
        (["bind=/a", "bind=/b:/c"], [("/a", "/a"), ("/b", "/c")]),
        (["bind=/a:/b\\:c"], [("/a", "/b:c")]),
        (["bind=/a\\:b"], [("/a:b", "/a:b")]),
        (["bind=/a\\:b\\,c\\:d:/e\\,f,/g"], [("/a:b,c:d", "/e,f"), ("/g", "/g")]),
        (["bind=/a\\b:/c\\"], [("/a\\b", "/c\\")]),
        (["bind=/a/~:/b~/$"], [("/a/~", "/b~/$")]),
        (["bind=/a\\$b:/\\$HOME/$5"], [("/a$b", "/$HOME/$5")]),
        (["bind=\\~x:/b"], [("~x", "/b")]),
        (["bind=rel:/b"], [("rel", "/b")]),
        (["bind=/a\\,b:/c"], [("/a,b", "/c")]),
    ],
)
@pytest.mark.row("--bind")
def test_binds(words: list[str], binds: list[tuple[str, str]]) -> None:
    assert made(*words).binds == [Bind(src, dst) for src, dst in binds]


@pytest.mark.parametrize(
    ("word", "flags"),
    [("ro", ("ro",)), ("rw", ()), ("ro+rprivate", ("ro",)), ("rslave", ()), ("rw+rslave+rbind", ()), ("noexec+ro", ("ro", "noexec")),
     ("nosuid+nodev+noexec+ro", ("ro", "nosuid", "nodev", "noexec")), ("z", ()), ("shared", ()), ("ro+ro", ("ro",))],
)  # fmt: skip
@pytest.mark.row("--bind")
def test_flags_of_binds(word: str, flags: tuple[str, ...]) -> None:
    assert made(f"bind=/a:/b:{word},/c").binds == [Bind("/a", "/b", flags=flags), Bind("/c", "/c")]
    # Alone on a command line, commas may be between flags, and needn't be kept in paths.
    alone = Setting("bind", f"/a,x\\,y:/b:{word.replace('+', ',')}", "-b")
    assert parsers.make("img", [alone]).binds == [Bind("/a,x,y", "/b", flags=flags)]


@pytest.mark.parametrize(
    "option",
    [
        one.name
        for one in options.OPTIONS
        if one.where & options.PLUGIN and (one.paths != "none" or one.name in ("cd", "broadcast"))
    ],
)
@pytest.mark.parametrize(
    ("value", "word"),
    [("~", "~"), ("~/x", "~"), ("~user/x.json", "~user"), ("$HOME/x", "$HOME"), ("/a/${USER}/b", "${USER}"), ("/a$_x-y", "$_x"),
     ("/\\$a/$b", "$b")],
)  # fmt: skip
def test_what_only_a_shell_expands(option: str, value: str, word: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--ch-{option}={value}: {word} is not expanded here")):
        made(f"{option}={value}")
    if option == "bind":
        with pytest.raises(UsageError, match="is not expanded here"):
            made(f"bind=/x:/{value}" if value[0] != "~" else "bind=/x:~")
    if option == "cdi-dirs":
        with pytest.raises(UsageError, match="is not expanded here"):
            made(f"cdi-dirs=/x:{value}")


@pytest.mark.parametrize(
    ("word", "size"),
    [("12%", "12%"), ("1G", "1g"), ("500m", "500m"), ("1024", "1024"), ("yes", "12%"), ("no", None), ("2T", "2t")],
)
@pytest.mark.row("--write-fake")
def test_write_fake(word: str, size: str | None) -> None:
    assert made(f"write-fake={word}").write_fake == size


def test_home_implies_write_fake() -> None:
    assert made("home=yes").write_fake == "12%"
    assert made("home=yes", "write-fake=1G").write_fake == "1g"


def test_environment_rules_keep_their_order() -> None:
    rules = made("set-env=A=1", "unset-env=B*", "set-env=/file", "set-env=C==x").env_rules
    assert rules == [("set", "A=1"), ("unset", "B*"), ("file", "/file"), ("set", "C==x")]


@pytest.mark.parametrize("word", ["1", "yes", "true", "on", "YES"])
def test_yes(word: str) -> None:
    assert made(f"private-tmp={word}").private_tmp


@pytest.mark.parametrize("word", ["0", "no", "false", "off"])
def test_no(word: str) -> None:
    assert not made("private-tmp=yes", f"private-tmp={word}").private_tmp


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["write-fake=banana"], "--ch-write-fake=banana: not a size"),
        (["write-fake=0"], "--ch-write-fake=0: not a size"),
        (["write-fake=101%"], "--ch-write-fake=101%: more than 100 %"),
        (["write-fake=-1"], "--ch-write-fake=-1: not a size"),
        (["write-fake=١"], "not a size"),
        (["private-tmp=maybe"], "--ch-private-tmp=maybe: neither yes nor no"),
        (["bind=:/x"], "--ch-bind=:/x: the source of a bind is empty"),
        (["bind="], "the source of a bind is empty"),
        (["bind=/a,"], "the source of a bind is empty"),
        (["bind=/a:b"], "the destination is not absolute: b"),
        (["bind=/a:ro"], "the destination is not absolute: ro (flags are third: /a:/a:ro)"),
        (["bind=/a:/b:ro:x"], "more than SRC:DST:FLAGS (a colon in a path is written \\:): /a:/b:ro:x"),
        (["bind=/a:/b:"], "not a flag of a bind, which are rw, ro, nosuid, nodev, noexec: nothing"),
        (
            ["bind=/a:/b:ro+rox"],
            "--ch-bind=/a:/b:ro+rox: not a flag of a bind, which are rw, ro, nosuid, nodev, noexec: rox",
        ),
        (["bind=/a:/b:ro+"], "noexec: nothing"),
        (["bind=/a:/b:ro+rw"], "ro contradicts rw"),
        (["bind=/a:"], "--ch-bind=/a:: the destination of a bind is empty"),
        (["bind=/a:/"], "--ch-bind=/a:/: the destination can't be /"),
        (["bind=/a:/.././"], "the destination can't be /"),
        (["bind=/"], "the destination can't be /"),
        (["bind=rel"], "a relative source needs a destination"),
        (["cd="], "--ch-cd=: the directory's name is empty"),
        (["set-env="], "the variable's name is empty"),
        (["set-env==1"], "--ch-set-env==1: the variable's name is empty"),
        (["set-env0="], "--ch-set-env0=: the variable's name is empty"),
        (["set-env0==1"], "the variable's name is empty"),
        (["seccomp=perhaps"], "--ch-seccomp=perhaps: neither yes nor no"),
        (["fuse-single=2"], "--ch-fuse-single=2: neither yes nor no"),
        (["verbose=4"], "--ch-verbose=4: not a whole number from 0 to 3"),
        (["unset-env="], "the pattern is empty"),
        (["uid=x"], "--ch-uid=x: not a whole number from 0 to 4294967294"),
        (["gid=4294967295"], "--ch-gid=4294967295: not a whole number"),
        (["uid=-1"], "--ch-uid=-1: not a whole number"),
        (["verbose=x"], "--ch-verbose=x: not a whole number"),
        (["storage="], "--ch-storage=: the directory's name is empty"),
        (["write=1", "write-fake=1G"], "--ch-write=1: contradicts --ch-write-fake"),
        (["home=yes", "write-fake=no"], "--ch-write-fake=no: contradicts --ch-home, which implies write-fake"),
        (["write-fake=no", "device=a.b/c=d"], "--ch-write-fake=no: contradicts --ch-device, which implies"),
        (["write=1", "home=1"], "--ch-write=1: contradicts --ch-home"),
        (["bananas=1"], "--ch-bananas: this node's slurm_ch doesn't know the option"),
        (["join=yes"], "--ch-join: this node's slurm_ch doesn't know the option"),
        (["cd=/a\0b"], "has a newline or NUL"),
    ],
)
def test_refusals_name_option_and_value(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        made(*words)
    assert message in str(caught.value)
    assert caught.value.code == 64


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("quiet", "4")], "--quiet=4: not a whole number from 0 to 3"),
        ([("quiet", "1"), ("verbose", "1")], "--quiet=1: contradicts --verbose"),
        ([("verbose", "1"), ("quiet", "1")], "--quiet=1: contradicts --verbose"),
        ([("color", "blue")], "--color=blue: neither auto, yes nor no"),
        ([("mount", "")], "--mount=: the mount point's name is empty"),
        ([("join-tag", "")], "--join-tag=: the tag is empty"),
        ([("join-ct", "0")], "--join-ct=0: not a whole number"),
        ([("join-pid", "0")], "--join-pid=0: not a whole number"),
        ([("join-pid", "1"), ("join-tag", "x")], "--join-pid=1: contradicts --join"),
    ],
)
def test_refusals_on_the_command_line(pairs: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parsers.make("img", [Setting(name, value, f"--{name}") for name, value in pairs])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("word", "meaning"),
    [("auto", None), ("tty", None), ("if-tty", None), ("yes", True), ("always", True), ("force", True), ("no", False),
     ("never", False), ("none", False)],
)  # fmt: skip
@pytest.mark.row("--color")
def test_color(word: str, meaning: bool | None) -> None:
    assert parsers.make("img", [Setting("color", word, "--color")]).color is meaning


def test_an_image_is_required() -> None:
    with pytest.raises(UsageError, match="--ch-image: an image is required"):
        parsers.make(None, [])


def test_site_and_user_meet() -> None:
    here = site.parse(
        [
            "python=/usr/bin/python3",
            "storage=/images",
            "bind=/s1,/s2:/x",
            "bind=/s3",
            "default=private-tmp",
            "default=set-env=A=1",
            "default=verbose",
            "squashfuse=/opt/sq",
            "image_timeout=30",
            "forbid=write,uid",
        ]
    )
    met = site.combine(here, parsers.parse_request("image=i\nbind=/mine\n"))
    assert met.image == "i"
    assert [bind.src for bind in met.binds] == ["/s1", "/s2", "/s3", "/mine"]
    assert (met.private_tmp, met.env_rules, met.verbosity, met.storage) == (
        True,
        [("set-anywhere", "A=1")],
        1,
        "/images",
    )
    assert (here.squashfuse, met.image_timeout) == ("/opt/sq", 30)
    # The user's word replaces the site's default, and the site's place for images.
    met = site.combine(here, parsers.parse_request("image=i\nprivate-tmp=no\nset-env=B=2\nstorage=/my"))
    assert (met.private_tmp, met.env_rules, met.storage) == (False, [("set", "B=2")], "/my")
    with pytest.raises(UsageError, match="--ch-uid=0: not allowed at this site"):
        site.combine(here, parsers.parse_request("image=i\nuid=0"))


@pytest.mark.parametrize(
    ("default", "request_", "write", "fake"),
    [
        ("write-fake", "write=yes", True, None),
        ("home", "write=yes", True, None),
        ("write-fake=1G", "write=no", False, "1g"),
        ("write", "write-fake=1G", False, "1g"),
        ("write", "home=yes", False, "12%"),
        ("write", "device=a.b/c=d", False, "12%"),
        ("write", "write-fake=no", True, None),
        ("home", "write-fake=no", False, None),
        ("write-fake=no", "home=yes", False, "12%"),
        ("overlay=/d", "write=yes", True, None),
        ("overlay=/d", "write-fake=no", False, None),
        ("write", "overlay=/d", False, "12%"),
        ("write-fake=no", "overlay=/d", False, "12%"),
    ],
)
def test_a_sites_default_gives_way_to_what_contradicts_it(
    default: str, request_: str, write: bool, fake: str | None
) -> None:
    met = site.combine(site.parse([f"default={default}"]), parsers.parse_request(f"image=i\n{request_}\n"))
    assert (met.write, met.write_fake) == (write, fake)


def test_a_sites_default_device_does_not_vanish() -> None:
    here = site.parse(["default=device=a.b/c=d"])
    with pytest.raises(UsageError, match="--ch-write=yes: contradicts plugstack.conf: default=device"):
        site.combine(here, parsers.parse_request("image=i\nwrite=yes\n"))


def test_a_sites_default_may_be_bare() -> None:
    bare = [option.name for option in options.OPTIONS if option.where & options.PLUGIN and option.bare is not None]
    assert {"set-env", "set-env0", "write-fake", "verbose", "home"} <= set(bare)
    met = site.combine(
        site.parse([f"default={name}" for name in bare if name != "write"]), parsers.parse_request("image=i\n")
    )
    assert ("file", "/ch/environment") in met.env_rules


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("bananas=1", "bananas=1: unknown argument"),
        ("storage", "storage: a value is missing"),
        ("storage=", "a value is missing"),
        ("default=image=/x", "not an option that can have a default"),
        ("default=bananas", "not an option that can have a default"),
        ("default=cd", "the option needs a value"),
        ("forbid=image", "not an option that can be forbidden: image"),
        ("default=join", "not an option that can have a default"),
        ("default=save=/x", "not an option that can have a default"),
        ("forbid=write,apples", "not an option that can be forbidden: apples"),
        ("forbid=join,join-ct,color", "not an option that can be forbidden: color, join, join-ct"),
        ("image_timeout=14", "image_timeout=14: not a number of seconds from 15 to 65535"),
        ("image_timeout=65536", "from 15 to 65535"),
        ("image_timeout=1e3", "from 15 to 65535"),
        ("image_timeout=-20", "from 15 to 65535"),
        ("bind=/a:b", "the destination is not absolute"),
    ],
)
def test_wrong_site_arguments(argument: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        site.parse([argument])
    assert str(caught.value).startswith("plugstack.conf: ")
    assert message in str(caught.value)


@given(st.lists(st.tuples(st.sampled_from([o.name for o in options.OPTIONS]), st.text(max_size=30)), max_size=5))
def test_nothing_a_user_can_write_makes_another_error(pairs: list[tuple[str, str]]) -> None:
    settings = [Setting(name, value, f"--{name}") for name, value in pairs]
    try:
        parsers.make("img", settings)
    except UsageError as error:
        assert "\n" not in errors.describe(error)


@given(st.text(max_size=200))
def test_request_of_any_text(text: str) -> None:
    try:
        site.combine(site.Site(), parsers.parse_request(text))
    except UsageError:
        pass


@given(st.text(max_size=60))
def test_site_argument_of_any_text(text: str) -> None:
    try:
        site.parse([text])
    except UsageError:
        pass


def test_facts_of_another_version_are_refused() -> None:
    for data in (b"", b"x", b"slurm_ch facts 1", b"slurm_ch facts 2\0", b"slurm_ch facts 1\0zwhat\0"):
        fd = task_plan.plan_file(data)
        with pytest.raises(ChError, match="different versions"):
            read_facts(fd)
        os.close(fd)


def test_facts() -> None:
    fd = task_plan.plan_file(b"slurm_ch facts 1\0abind=/x\0rimage=i\ncd=/y\n\0eA=1\0eB=\xff=2\0t4\0b/spool/script\0")
    facts = read_facts(fd)
    assert (facts.site, facts.request, facts.local_tasks, facts.script) == (
        ["bind=/x"],
        "image=i\ncd=/y\n",
        4,
        "/spool/script",
    )
    assert facts.environment == {"A": "1", "B": "\udcff=2"}
    assert task_count(facts) == 4
    facts.local_tasks = None
    assert task_count(facts) == 1
    facts.script = None
    facts.environment |= {"SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_NODEID": "1"}
    assert task_count(facts) == 1


def test_cores_are_asked_for_whatever_their_numbers(mocker: MockerFixture) -> None:
    """Numbers of CPUs go beyond their count where some are offline."""
    call = mocker.patch("slurm_ch.linux._sched_setaffinity", return_value=0)
    _widen_affinity()
    ((process, size, mask),) = [one.args for one in call.call_args_list]
    assert (process, size.value, mask) == (0, 2048, b"\xff" * 2048)


def test_the_server_may_run_on_every_core_of_the_step() -> None:
    """Slurm binds task 0, and so the launcher, to its cores; the server serves all tasks."""
    everywhere = os.sched_getaffinity(0)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.sched_setaffinity(0, {min(everywhere)})
            _widen_affinity()
            os.write(writer, b"all" if os.sched_getaffinity(0) == everywhere else b"some")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with open(reader) as pipe:
        assert pipe.read() == "all"
