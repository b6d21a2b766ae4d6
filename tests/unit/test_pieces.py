# SPDX-License-Identifier: Apache-2.0
"""Small pure parts: images, passwd, environment files, errors, hooks."""

from __future__ import annotations

import ctypes
import errno
import grp
import os
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest
from pytest_mock import MockerFixture

from slurm_ch import agreement, errors, linux, log
from slurm_ch.engine import (
    accounts,
    action,
    binds,
    container,
    environment,
    image,
    namespaces,
    root,
    squashfs,
    task_plan,
)
from slurm_ch.engine.action import Build
from slurm_ch.engine.caller import Caller
from slurm_ch.errors import ChError, JoinError, UsageError
from slurm_ch.request import options, parsers


@pytest.mark.row("I3")
def test_storage_directory_in_order() -> None:
    assert image.storage_directory("/opt", {"CH_IMAGE_STORAGE": "/env"}, "me") == "/opt"
    assert image.storage_directory(None, {"CH_IMAGE_STORAGE": "/env"}, "me") == "/env"


def test_the_default_storage_must_be_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(image, "_STORAGE_PARENT", str(tmp_path))
    default = tmp_path / "me.ch"
    assert image.storage_directory(None, {}, "me") is None
    default.mkdir(mode=0o755)
    assert image.storage_directory(None, {}, "me") == str(default)
    (default / "img").mkdir(mode=0o755)
    assert image.storage_directory(None, {}, "me") == str(default)
    for path in (default, default / "img"):
        for mode in (0o777, 0o775, 0o757, 0o1777):
            path.chmod(mode)
            assert image.storage_directory(None, {}, "me") is None
            said = f"ignoring {default}: others can write to {path} (chmod go-w {path})"
            assert said in capfd.readouterr().err
        path.chmod(0o755)
        os.chown(path, 1, 1)
        assert image.storage_directory(None, {}, "me") is None
        assert f"ignoring {default}: {path} belongs to uid 1" in capfd.readouterr().err
        os.chown(path, 0, 0)
    default.rename(tmp_path / "elsewhere")
    default.symlink_to("elsewhere")
    assert image.storage_directory(None, {}, "me") == str(default)
    (tmp_path / "elsewhere").chmod(0o775)
    assert image.storage_directory(None, {}, "me") is None
    (tmp_path / "elsewhere").chmod(0o755)
    os.lchown(default, 1, 1)
    assert image.storage_directory(None, {}, "me") is None


def test_lines_for_people_cannot_steer_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    log.error("a\nb\x1b[31mc\r\x7f\x9b\u202e\udcffé %n")
    assert capfd.readouterr().err == "slurm-ch: error: a\\x0ab\\x1b[31mc\\x0d\\x7f\\x9b\\u202e\\xffé %n\n"


@pytest.mark.row("I1")
def test_resolve_kinds(tmp_path: Path) -> None:
    (tmp_path / "s/img/a%b+c").mkdir(parents=True)
    (tmp_path / "dir/bin").mkdir(parents=True)
    (tmp_path / "sq").write_bytes(b"hsqs....")
    storage, cwd = str(tmp_path / "s"), str(tmp_path)
    assert image.resolve("a/b:c", storage, cwd).path == f"{storage}/img/a%b+c"
    assert (image.resolve("dir", storage, cwd).kind, image.resolve("sq", storage, cwd).kind) == (
        "directory",
        "SquashFS",
    )
    # A name comes before a path.
    (tmp_path / "s/img/dir").mkdir()
    assert image.resolve("dir", storage, cwd).path == f"{storage}/img/dir"
    # Made of dots, it is a path.
    assert [image.resolve(dots, storage, cwd).path for dots in (".", "..")] == [f"{cwd}/.", f"{cwd}/.."]


def test_read_error_of_an_image(tmp_path: Path, mocker: MockerFixture) -> None:
    (tmp_path / "sq").write_bytes(b"hsqs....")
    mocker.patch("slurm_ch.lean_os.pread", side_effect=OSError(errno.EIO, "Input/output error"))
    with pytest.raises(ChError) as caught:
        image.resolve("sq", "/nonexistent", str(tmp_path))
    assert errors.describe(caught.value) == "can't read image: sq: Input/output error"


@pytest.mark.parametrize("uid", [0, 1, 65534, 4000000])
def test_passwd_has_each_id_once(uid: int) -> None:
    user, group = accounts.user_line(uid, uid, "/"), accounts.group_line(uid)
    for text in (accounts.passwd_text(uid, user), accounts.group_text(uid, group)):
        ids = [line.split(":")[2] for line in text.splitlines()]
        assert len(set(ids)) == len(ids)
        assert {"0", "65534", str(uid)} == set(ids)


def test_passwd_takes_the_hosts_names(mocker: MockerFixture) -> None:
    mocker.patch.object(pwd, "getpwuid", return_value=SimpleNamespace(pw_name="me", pw_gecos="A: B\nC"))
    mocker.patch.object(grp, "getgrgid", return_value=SimpleNamespace(gr_name="ours"))
    assert accounts.user_line(7, 8, "/x:y") == "me:x:7:8:A  B C:/x y:/bin/sh"
    assert accounts.group_line(8) == "ours:x:8:"


OURS = "carol:x:1000:500:C:/home/carol:/bin/sh"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "whole"),
        ("\n", "whole"),
        ("root:x:0:0:r:/root:/bin/ash\n", OURS + "\nroot:x:0:0:r:/root:/bin/ash\n"),
        # Another with our number, or with our name: the first line counts, and none is lost.
        ("ubuntu:x:1000:1000::/home/ubuntu:/bin/bash\n", OURS + "\nubuntu:x:1000:1000::/home/ubuntu:/bin/bash\n"),
        ("a:x:1:1:::\ncarol:x:7:7::/c:/bin/bash\n", OURS + "\na:x:1:1:::\ncarol:x:7:7::/c:/bin/bash\n"),
        # The user already; only the home, and the group, are the container's.
        ("carol:x:1000:1000:I:/c:/bin/zsh\na:x:1:1:::\n", "carol:x:1000:500:I:/home/carol:/bin/zsh\na:x:1:1:::\n"),
        ("carol:x:1000:500:C:/home/carol:/bin/sh", "carol:x:1000:500:C:/home/carol:/bin/sh"),
        # What is no line of passwd stays as well.
        ("# users\n\ncarol:x:1000\n", OURS + "\n# users\n\ncarol:x:1000\n"),
        ("no newline", OURS + "\nno newline"),
    ],
)
def test_an_images_own_users_stay(text: str, expected: str) -> None:
    assert accounts.merged(text, OURS, "whole") == expected


def test_an_images_own_groups_stay() -> None:
    assert accounts.merged("root:x:0:\nstaff:x:50:a,b\n", "staff:x:50:", "") == "root:x:0:\nstaff:x:50:a,b\n"
    assert accounts.merged("staff:x:50:\n", "us:x:500:", "") == "us:x:500:\nstaff:x:50:\n"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("/x", "/x"), ("/home/$USER", "/home/me"), ("/h/${USER}x/$NONE/y", "/h/mex//y"), ("$HOME/in", "/users/me/in")],
)
def test_the_home_that_a_rule_sets(value: str, expected: str) -> None:
    records = [(agreement.PLAN_SET, "HOME=/root"), (agreement.PLAN_SET_ANYWHERE, f"HOME={value}"), ("U", "X")]
    assert environment.chosen_home(records, {"USER": "me", "HOME": "/users/me"}) == expected
    assert environment.chosen_home(records[:1], {}) == "/root"


def test_passwd_dummies(mocker: MockerFixture) -> None:
    mocker.patch.object(pwd, "getpwuid", side_effect=KeyError)
    mocker.patch.object(grp, "getgrgid", side_effect=KeyError)
    assert accounts.user_line(7, 8, "/") == "charlie:x:7:8:Charlie:/:/bin/sh"
    assert accounts.group_line(8) == "charliegroup:x:8:"
    assert accounts.user_name(7) == "7"


def test_plan_records() -> None:
    records = environment.rule_records([("set", "A=1"), ("unset", "B*"), ("file", "f")], "E", lambda _, f: ["C=2"])
    assert records == [("E", "A=1"), ("U", "B*"), ("E", "C=2")]
    assert environment.rule_records([("set", "A=$B")], "X", lambda _, f: [])[0] == ("X", "A=$B")
    assert task_plan.encode([("E", "A=\udcff")]) == b"slurm_ch plan 1\0EA=\xff\0"
    with pytest.raises(ChError, match="a NUL"):
        task_plan.encode([("E", "A=\0")])


def test_description_of_errors() -> None:
    assert errors.describe(OSError(errno.ENOENT, "No such file", "/a", None, "/b")) == "/a -> /b: No such file"
    try:
        try:
            raise OSError(errno.EPERM, "Operation not permitted")
        except OSError as error:
            raise ChError("can't do it") from error
    except ChError as error:
        assert errors.describe(error) == "can't do it: Operation not permitted"
    assert [errors.exit_code(e) for e in (ChError(), UsageError(), JoinError(), ValueError())] == [31, 64, 32, 31]


def test_hooks_run_in_order_and_once() -> None:
    seen: list[tuple[object, object]] = []
    hooks = action.Hooks("host")
    hooks.add("a", lambda c, data: seen.append((c, data)), 1)
    hooks.add("b", lambda c, data: seen.append((c, data)), 2)
    hooks.run("container")  # type: ignore[arg-type]
    assert seen == [("container", 1), ("container", 2)]
    with pytest.raises(ChError, match="hooks already ran: host"):
        hooks.run("container")  # type: ignore[arg-type]


@pytest.mark.row("H1")
def test_duplicate_hooks() -> None:
    seen: list[object] = []
    hooks = action.Hooks("guest")
    hooks.add("a", lambda c, data: seen.append(data), 1)
    hooks.add("a", lambda c, data: seen.append(data), 2, action.HOOK_SKIP)
    hooks.add("a", lambda c, data: seen.append(data), 3, action.HOOK_ALLOW)
    with pytest.raises(ChError, match="duplicate hook: a"):
        hooks.add("a", lambda c, data: seen.append(data), 4, action.HOOK_FAIL)
    hooks.run("container")  # type: ignore[arg-type]
    assert seen == [1, 3]


@pytest.mark.parametrize(
    ("src", "dst", "flags", "message"),
    [
        ("", "/x", {}, "empty source or destination"),
        ("/x", "", {}, "empty source or destination"),
        ("/x", "y", {}, "destination is not absolute: y"),
        ("/x", "/y", {"dst_optional": True, "dst_create": True}, "destination both optional and created: /y"),
    ],
)
@pytest.mark.row("B1")
def test_b1_binds_that_make_no_sense(src: str, dst: str, flags: dict[str, bool], message: str) -> None:
    with pytest.raises(ChError, match=message):
        binds.BindMount(src, dst, **flags)  # type: ignore[arg-type]


def test_bare_set_env_never_reads_the_hosts(mocker: MockerFixture) -> None:
    # A host may have a /ch/environment of its own.
    read = mocker.patch.object(environment, "host_file", return_value=("A=host\n", (0, 0)))
    for name, files in (
        ("/ch/environment", []), ("image:/etc/environment", []), ("/etc/environment", ["/etc/environment"]),
    ):  # fmt: skip
        wanted = parsers.make("/tmp", [options.Setting("set-env", name, "--set-env")])
        assert list(container.Environment(wanted, Caller({}, cwd="/")).host_files) == files
    assert read.call_count == 1


@pytest.mark.row("N3")
def test_setns_is_tried_again_on_einval(mocker: MockerFixture) -> None:
    mocker.patch.object(namespaces, "check_owner")
    dumpable = mocker.patch.object(linux, "prctl_dumpable")
    fault = OSError(errno.EINVAL, "Invalid argument")

    def none_can_trace_us(*_: int) -> None:
        dumpable.assert_called_once_with(False)
        if setns.call_count < 3:
            raise fault

    setns = mocker.patch.object(linux, "setns", side_effect=none_can_trace_us)
    namespaces.enter(10, 11, "pid 7")
    assert [call.args[0] for call in setns.call_args_list] == [10, 10, 10, 11]


@pytest.mark.row("N3")
def test_setns_gives_up_and_says_where(mocker: MockerFixture) -> None:
    mocker.patch.object(namespaces, "check_owner")
    mocker.patch.object(linux, "prctl_dumpable")
    setns = mocker.patch.object(linux, "setns", side_effect=[None, *[OSError(errno.EINVAL, "Invalid argument")] * 5])
    with pytest.raises(ChError) as caught:
        namespaces.enter(10, 11, "pid 7")
    assert errors.describe(caught.value) == "can't join mnt namespace of pid 7: Invalid argument"
    assert setns.call_count == 6
    mocker.patch.object(linux, "setns", side_effect=OSError(errno.EPERM, "Operation not permitted"))
    with pytest.raises(ChError, match="can't join user namespace of pid 7"):
        namespaces.enter(10, 11, "pid 7")


def test_no_user_namespaces_gets_a_hint(mocker: MockerFixture) -> None:
    mocker.patch.object(linux, "unshare", side_effect=OSError(errno.EPERM, "Operation not permitted"))
    with pytest.raises(
        ChError, match=r"can't create user and mount namespaces \(are unprivileged user namespaces allowed"
    ):
        namespaces.NewNamespaces((1, 1), (0, 0)).apply(container.Build())


def test_openat2_is_tried_again_when_somebody_renames(tmp_path: Path, mocker: MockerFixture) -> None:
    """The kernel gives up on ".." if anything anywhere is renamed or mounted meanwhile."""
    original, calls = linux._syscall, []

    def interrupted(*args: object) -> int:
        calls.append(args)
        if len(calls) > 3:
            return original(*args)  # type: ignore[no-any-return]
        ctypes.set_errno(errno.EAGAIN)
        return -1

    mocker.patch.object(linux, "_syscall", interrupted)
    root = os.open(tmp_path, os.O_PATH)
    os.close(linux.openat2(root, "..", os.O_PATH, linux.RESOLVE_IN_ROOT))
    assert len(calls) == 4
    # Of other failures once is enough.
    with pytest.raises(FileNotFoundError):
        linux.openat2(root, "none", os.O_PATH, linux.RESOLVE_IN_ROOT)
    assert len(calls) == 5
    calls.clear()
    mocker.patch.object(linux, "_OPENAT2_TRIES", 2)
    with pytest.raises(BlockingIOError):
        linux.openat2(root, "..", os.O_PATH, linux.RESOLVE_IN_ROOT)
    os.close(root)


def test_calls_of_machines_whose_numbers_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slurm_ch.lean_os.uname", lambda: SimpleNamespace(machine="s390x"))
    with pytest.raises(FileNotFoundError, match="/nonexistent"):
        linux.pivot_root("/nonexistent", ".")
    with pytest.raises(OSError, match="Function not implemented"):
        linux.keyctl_join_session_keyring()


def test_errors_name_the_option_as_it_was_given(tmp_path: Path) -> None:
    file = tmp_path / "environment"
    lines = ["write-fake=1g", "seccomp=yes", f"set-env={file}"]
    for where, text in (("--ch-", "nonsense"), ("--", "nonsense")):
        settings = [
            options.Setting(name, value, f"{where}{name}")
            for name, _, value in map(lambda one: one.partition("="), lines)
        ]
        wanted = parsers.make("/", settings)
        file.write_text("A=1\n")
        build = Build()
        environment.Environment(wanted, Caller({})).apply(build)
        assert ("S", f"{where}seccomp") in build.records
        file.write_text(text)
        with pytest.raises(UsageError, match=f"^{where}set-env={file}: line 1 is not NAME=VALUE"):
            environment.Environment(wanted, Caller({})).apply(build)
        file.unlink()
        with pytest.raises(ChError, match=f"^{where}set-env={file}: can't read environment file"):
            environment.Environment(wanted, Caller({})).apply(build)
        assert wanted.write_fake_label() == f"{where}write-fake"


def test_a_container_cannot_write_to_the_terminal_of_who_lists_it() -> None:
    from slurm_ch.cli import ps

    row = {"job": "1", "step": "0", "node": "n1", "image": "/x\x1b[2J\udcff", "tasks": 1, "seconds": 1}
    assert ps._lines([row], False)[1].split()[3] == "/x\\x1b[2J\\xff"
    assert ps._lines([row], True)[0].isprintable()


def test_the_sites_timeout_reaches_our_server_only(monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[list[str]] = []
    it = image.Image("i", image.SQUASHFS, "/i")
    monkeypatch.setattr(squashfs, "_open_fuse", lambda: os.open("/dev/null", os.O_RDWR))
    monkeypatch.setattr(squashfs, "_mount_fuse", lambda *_: -1)
    monkeypatch.setattr(squashfs, "_start_site_server", lambda *start: words.append(start[3][:-2]) or -1)
    monkeypatch.setattr(squashfs.linux, "unshare", lambda _: None)
    for single, timeout in ((False, 0), (True, 0), (False, 30), (True, 30)):
        squashfs.ServeSquashFS(it, "/x/ch-squashfuse_ll", single, timeout).apply(Build())
    assert words == [["-r"], ["-r", "-s"], ["-r", "-t", "30"], ["-r", "-s", "-t", "30"]]
    squashfs.ServeSquashFS(it, "/x/ch-squashfuse_ll", owners=True).apply(Build())
    assert words[-1] == []
    squashfs.ServeSquashFS(it, "/usr/bin/squashfuse_ll").apply(Build())
    with pytest.raises(
        ChError, match="image_timeout=30 needs ch-squashfuse_ll, and squashfuse= names /usr/bin/squashfuse"
    ):
        squashfs.ServeSquashFS(it, "/usr/bin/squashfuse_ll", False, 30).apply(Build())


def test_the_image_that_was_looked_at_is_the_one_that_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[os.stat_result] = []
    monkeypatch.setattr(squashfs, "_open_fuse", lambda: os.open("/dev/null", os.O_RDWR))
    monkeypatch.setattr(squashfs, "_mount_fuse", lambda *_: -1)
    monkeypatch.setattr(squashfs, "_start_site_server", lambda _, fd, *rest: served.append(os.fstat(fd)) or -1)
    monkeypatch.setattr(squashfs.linux, "unshare", lambda _: None)
    for name in ("file", "other"):
        (tmp_path / name).write_bytes(b"hsqs")
        (tmp_path / f"{name}.dir/usr").mkdir(parents=True)
    first = (tmp_path / "file").stat()
    found = image.resolve("file", None, str(tmp_path))
    directory = image.resolve("file.dir", None, str(tmp_path))
    (tmp_path / "other").rename(tmp_path / "file")
    squashfs.ServeSquashFS(found, "/bin/true").apply(Build())
    assert os.path.samestat(served[0], first)
    # A directory is found by name again, in the new namespace.
    open_tree = lambda _, path, flags: os.open(path, os.O_PATH)  # noqa: E731
    monkeypatch.setattr(linux, "open_tree", open_tree)
    root.OpenDirectory(image.resolve("file.dir", None, str(tmp_path))).apply(Build())
    (tmp_path / "file.dir").rename(tmp_path / "gone.dir")
    (tmp_path / "other.dir").rename(tmp_path / "file.dir")
    with pytest.raises(ChError, match="another directory has taken its place"):
        root.OpenDirectory(directory).apply(Build())


def test_nothing_stays_open_of_an_image_that_is_only_looked_at(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"hsqs")
    (tmp_path / "bad").write_bytes(b"text")
    before = set(os.listdir("/proc/self/fd"))
    for name in ("file", ".", str(tmp_path)):
        assert image.resolve(name, None, str(tmp_path)).fd >= 0
    with pytest.raises(ChError, match="unknown image type: bad"):
        image.resolve("bad", None, str(tmp_path))
    assert set(os.listdir("/proc/self/fd")) == before
