# SPDX-License-Identifier: Apache-2.0
"""`slurm-ch doctor`: the installation, and who could change it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from slurm_ch import __version__, paths, slurm_conf
from slurm_ch.doctor import as_user, installation, modules, node, software, trust
from slurm_ch.doctor import parts as installed_parts
from slurm_ch.doctor.findings import OK, PROBLEM, WARNING, Finding
from slurm_ch.engine import squashfs
from slurm_ch.errors import ChError

# --- the installation ---------------------------------------------------------
from .test_doctor import NOBODY

# The checkout's own is made of it.
PYTHON = "/usr/bin/python3"


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def parts(world_tmp: Path) -> Path:
    """Parts that are wrong, each in its way, and the right ones compiled."""
    subprocess.run(["/usr/bin/python3", "-m", "compileall", "-q", paths.PACKAGE], check=True)
    where = world_tmp / "parts"
    where.mkdir()
    script(where / "old-python", "echo python 3.8 cpython-38")
    script(where / "bare-python", "echo ModuleNotFoundError: No module named \\'_ctypes\\' >&2; exit 1")
    script(where / "squashfuse_ll", "echo squashfuse 0.1.100 '(c)' somebody")
    script(where / "poor", "echo usage: ch-squashfuse_ll; echo compressions: gzip lzo")
    (where / "source.c").write_text('#include <stdio.h>\nint main(void) { puts("ch-join"); return 64; }\n')
    subprocess.run(["cc", "-o", where / "dynamic", where / "source.c"], check=True)
    closed = where / "closed"
    closed.mkdir(mode=0o700)
    shutil.copy(paths.LAUNCHER, closed)
    unlike = where / "uncompiled/slurm_ch"
    shutil.copytree(paths.PACKAGE, unlike, ignore=shutil.ignore_patterns("__pycache__", "native", "sandbox", "cli"))
    return where


def findings(conf: Path) -> list[Finding]:
    entry, found = installation.find({}, str(conf))
    return [*found, *(installation.check(entry, NOBODY) if entry else [])]


@pytest.mark.parametrize(
    ("line", "grade", "message"),
    [
        ("required {plugin}", "", ""),
        ("# required {plugin}", PROBLEM, "plugin: not in {conf} nor in what that includes"),
        ("required /elsewhere/other.so", PROBLEM, "plugin: not in {conf}"),
        ("required {plugin}\nrequired {plugin}", WARNING, "plugin: in plugstack.conf more than once: {conf}:1, {conf}:2"),
        ("optional {plugin}", WARNING, "plugin: {conf}:1: optional"),
        ("required /nonexistent/slurm_ch.so", PROBLEM, "plugin: /nonexistent/slurm_ch.so: No such file or directory"),
        ("required {foreign}", PROBLEM, "plugin: {foreign}: built for Slurm 23.11, and this is Slurm "),
        ("required {plugin} colour=red", PROBLEM, "plugstack.conf: plugstack.conf: colour=red: unknown argument"),
        ("required {plugin} bind=/nonexistent:/mnt", PROBLEM, "plugstack.conf: bind=/nonexistent: not on this node"),
        ("required {plugin} python=/nonexistent", PROBLEM, "python: can't execute /nonexistent: No such file"),
        ("required {plugin} python={parts}/old-python", PROBLEM, "python: {parts}/old-python is too old: 3.8"),
        ("required {plugin} python={parts}/bare-python", PROBLEM, "can't be used for the launcher: ModuleNotFoundError: No module named '_ctypes'"),
        ("required {plugin} launcher=/nonexistent", PROBLEM, "launcher: /nonexistent: "),
        ("required {plugin} launcher={parts}/closed/launch.py", PROBLEM, "launcher: {parts}/closed/launch.py: "),
        ("required {plugin} launcher={parts}/uncompiled/slurm_ch/plugin/launch.py", WARNING, "modules are not compiled for /usr/bin/python3"),
        ("required {plugin} ch_join=/nonexistent", PROBLEM, "ch-join: can't execute /nonexistent: No such file"),
        ("required {plugin} ch_join=/bin/true", PROBLEM, "ch-join: /bin/true: not a program of slurm_ch"),
        ("required {plugin} ch_join={parts}/dynamic", PROBLEM, "ch-join: {parts}/dynamic: linked dynamically"),
    ],
)  # fmt: skip
def test_the_installation(tmp_path: Path, parts: Path, foreign: Path, line: str, grade: str, message: str) -> None:
    conf = tmp_path / "plugstack.conf"
    names = {"plugin": paths.PLUGIN, "conf": conf, "parts": parts, "foreign": foreign}
    conf.write_text(line.format(**names) + "\n")
    found = findings(conf)
    odd = [(one.grade, f"{one.about}: {one.text}") for one in found if one.grade != OK]
    if not grade:
        assert odd == []
        return
    # A plugin that lies elsewhere lacks its companions too.
    assert [one for one, _ in odd] == [grade] or "{foreign}" in line, odd
    assert odd[0][0] == grade
    assert message.format(**names) in odd[0][1]
    assert all(one.remedy for one in found if one.grade != OK)


@pytest.fixture
def installed(parts: Path, world_tmp: Path) -> Path:
    """A package with all that an installation compiles."""
    place = Path(tempfile.mkdtemp(prefix="installed-", dir=world_tmp))
    place.chmod(0o755)
    package = place / "slurm_ch"
    shutil.copytree(parts / "uncompiled/slurm_ch", package)
    subprocess.run([PYTHON, "-m", "compileall", "-q", package], check=True)
    subprocess.run([PYTHON, "-I", "-B", package / "plugin/bundle.py"], check=True)
    return package


def said(package: Path) -> Finding:
    """Return what there is to say of the launcher's modules."""
    tag = sys.implementation.cache_tag or ""
    (found,) = modules.check(PYTHON, str(package / "plugin/launch.py"), tag, NOBODY)
    return found


def odd(package: Path) -> str:
    """Return the warning about the launcher's modules."""
    found = said(package)
    assert found.grade == WARNING
    assert f"{PYTHON} -I -B {package}/plugin/bundle.py" in found.remedy
    return found.text


def test_bytecode_older_than_its_source(installed: Path) -> None:
    assert said(installed).grade == OK
    os.utime(installed / "engine/root.py", (1, 1))
    assert "1 modules are not compiled for /usr/bin/python3 (engine/root.py" in odd(installed)


def test_the_launchers_modules_in_one_file(installed: Path) -> None:
    """Missing, older than a source, of another interpreter, cut short: a step then loads each module by itself."""
    (bundle,) = (installed / "plugin/__pycache__").glob("launch.*.all.pyc")
    whole = bundle.read_bytes()
    words = "its modules are not in one file for /usr/bin/python3: each step takes longer to start"
    bundle.unlink()
    assert f"{words} ({bundle}: No such file or directory)" in odd(installed)
    bundle.write_bytes(b"abcd" + whole[4:])
    assert f"{words} (it is of another Python)" in odd(installed)
    bundle.write_bytes(whole[:1000])
    assert f"{words} (it is damaged: EOFError)" in odd(installed)
    bundle.write_bytes(whole)
    # Also one that is loaded only when it is needed.
    for name in ("engine/root.py", "request/pyxis.py"):
        source = installed / name
        times = source.stat().st_mtime
        os.utime(source, (1, 1))
        subprocess.run([PYTHON, "-m", "compileall", "-q", installed], check=True)
        assert f"{words} ({name} has changed since)" in odd(installed)
        os.utime(source, (times, times))
        subprocess.run([PYTHON, "-m", "compileall", "-q", installed], check=True)


# --- who could change it --------------------------------------------------------


def untrusted(place: Path) -> list[tuple[str, str, str]]:
    """Return what there is to say of an installation below `place`, as nobody sees it."""
    files = {"program": [str(place / "lib/program")], "data": [str(place / "lib/sub/data")]}
    found: list[list[str]] = as_user.in_child(
        lambda: trust.faults(files, {"program": os.X_OK, "data": os.R_OK}), NOBODY
    )
    return [(grade, path.removeprefix(f"{place}/"), text) for grade, path, text in found]


@pytest.mark.parametrize(
    ("path", "mode", "owner", "grade", "text"),
    [
        ("lib/program", 0o755, 0, "", ""),
        ("lib/program", 0o757, 0, PROBLEM, "everybody can change what steps run (mode 0757)"),
        ("lib/program", 0o775, 0, WARNING, "group 0 can change what steps run (mode 0775)"),
        ("lib/program", 0o755, 1, WARNING, "belongs to uid 1, who can change what steps run"),
        ("lib/program", 0o644, 0, PROBLEM, "users can't execute it"),
        ("lib/sub/data", 0o600, 0, PROBLEM, "users can't read it"),
        ("lib/sub", 0o777, 0, PROBLEM, "everybody can change what steps run (mode 0777)"),
        ("lib/sub", 0o1777, 0, "", ""),
        ("lib", 0o777, 0, PROBLEM, "everybody can change what steps run (mode 0777)"),
        ("lib", 0o755, 1, WARNING, "belongs to uid 1, who can change what steps run"),
        (".", 0o775, 0, WARNING, "group 0 can change what steps run (mode 0775)"),
    ],
)  # fmt: skip
def test_owner_and_mode_of_each_file_and_all_above_it(
    world_tmp: Path, path: str, mode: int, owner: int, grade: str, text: str
) -> None:
    place = Path(tempfile.mkdtemp(dir=world_tmp))
    (place / "lib/sub").mkdir(parents=True)
    for file in ("lib/program", "lib/sub/data"):
        (place / file).touch()
        (place / file).chmod(0o755)
    for directory in (".", "lib", "lib/sub"):
        (place / directory).chmod(0o755)
    (place / path).chmod(mode)
    os.chown(place / path, owner, 0)
    expected = [(grade, str(place) if path == "." else path, text)] if grade else []
    assert untrusted(place) == expected


def test_links_and_what_can_t_be_reached(world_tmp: Path) -> None:
    place = Path(tempfile.mkdtemp(dir=world_tmp))
    place.chmod(0o755)
    for name in ("lib/sub", "elsewhere"):
        (place / name).mkdir(parents=True)
        (place / name).chmod(0o755)
    for file in ("elsewhere/program", "lib/sub/data"):
        (place / file).touch()
        (place / file).chmod(0o755)
    (place / "lib/program").symlink_to("sub/../../elsewhere/program")
    assert untrusted(place) == []
    (place / "elsewhere").chmod(0o757)
    assert [one[:2] for one in untrusted(place)] == [(PROBLEM, "elsewhere")]
    (place / "elsewhere").chmod(0o700)
    assert untrusted(place) == [(PROBLEM, "elsewhere/program", "users can't get to it: Permission denied")]
    (place / "elsewhere").chmod(0o755)
    (place / "lib/program").unlink()
    (place / "lib/program").symlink_to("program")
    assert untrusted(place) == [(PROBLEM, "lib/program", "users can't get to it: Too many levels of symbolic links")]


def test_the_whole_installation_is_looked_at(parts: Path, tmp_path: Path) -> None:
    """Each module and all of its compiled form; the doctor's own command says so."""
    package = parts / "loose/slurm_ch"
    shutil.copytree(paths.PACKAGE, package, ignore=shutil.ignore_patterns("native", "sandbox", "cli"))
    conf = tmp_path / "plugstack.conf"
    conf.write_text(f"required {paths.PLUGIN} launcher={package}/plugin/launch.py\n")
    tmp_path.chmod(0o755)
    entry, _ = installation.find({}, str(conf))
    assert entry is not None
    loose = next((package / "engine/__pycache__").glob("image.*.pyc"))
    loose.chmod(0o666)
    found = [one for one in installation.check_files(entry, paths.CH_JOIN, NOBODY) if str(package) in one.text]
    assert [(one.grade, one.text) for one in found] == [
        (PROBLEM, f"{loose}: everybody can change what steps run (mode 0666)")
    ]
    assert found[0].remedy.startswith(f"chmod go-w {loose}")


def test_a_server_that_is_not_ours_or_lacks_compressions(parts: Path) -> None:
    (found,) = node.check_server(NOBODY, str(parts / "squashfuse_ll"))
    assert (found.grade, "is not slurm_ch's own: it reads images without confinement" in found.text) == (WARNING, True)
    (found,) = node.check_server(NOBODY, str(parts / "poor"))
    assert (found.grade, found.text.split(": ", 1)[1]) == (
        WARNING, "was built without lz4, xz, zstd: images with that compression are refused"
    )  # fmt: skip
    (found,) = node.check_server(NOBODY, None)
    assert (found.grade, found.text) == (OK, f"{squashfs.SERVER}: gzip, lz4, lzo, xz, zstd")


def test_what_root_looks_at_it_runs_as_the_user(parts: Path) -> None:
    if os.geteuid() == 0:
        who = script(parts / "who", "id -u; id -G; exit 64")
        assert as_user.in_child(lambda: as_user.run([str(who)]), NOBODY) == [64, f"{NOBODY.pw_uid}\n{NOBODY.pw_gid}\n"]


def test_a_trial_that_dies_or_fails() -> None:
    with pytest.raises(ChError, match="it didn't end within 20 s, or was killed"):
        as_user.in_child(lambda: os.kill(os.getpid(), 9))
    with pytest.raises(ChError, match="^can't execute /nonexistent: No such file or directory$"):
        as_user.in_child(lambda: as_user.run(["/nonexistent"]))


def test_where_plugstack_conf_is(tmp_path: Path, mocker: MockerFixture) -> None:
    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=x # comment\ninclude more.conf\n#PlugStackConfig=/no\n")
    (tmp_path / "more.conf").write_text(
        f'plugstackconfig = "{tmp_path}/elsewhere.conf"\nPluginDir={tmp_path}/plugins\n'
    )
    (tmp_path / "elsewhere.conf").write_text("include conf.d/*.conf\n")
    for name in ("conf.d", "plugins"):
        (tmp_path / name).mkdir()
    (tmp_path / "conf.d/ch.conf").write_text("required slurm_ch.so bind=/usr\n")
    (tmp_path / "plugins/slurm_ch.so").symlink_to(paths.PLUGIN)
    entry, found = installation.find({"SLURM_CONF": str(conf)}, None)
    assert entry is not None
    assert (entry.path, entry.arguments, entry.where) == (
        f"{tmp_path}/plugins/slurm_ch.so",
        ["bind=/usr"],
        f"{tmp_path}/conf.d/ch.conf:1",
    )
    assert found == []
    (tmp_path / "more.conf").unlink()
    entry, (one,) = installation.find({"SLURM_CONF": str(conf)}, None)
    assert (entry, one.text) == (None, f"can't read {tmp_path}/plugstack.conf: No such file or directory")
    mocker.patch.object(slurm_conf, "SLURM_CONFS", ("/nonexistent/slurm.conf",))
    entry, (one,) = installation.find({}, None)
    assert (entry, one.text) == (None, "no slurm.conf: neither SLURM_CONF nor /nonexistent/slurm.conf")


def test_includes_in_a_circle_end(tmp_path: Path) -> None:
    conf = tmp_path / "plugstack.conf"
    conf.write_text("include plugstack.conf\n")
    assert findings(conf)[0].grade == PROBLEM


def test_parts_of_two_builds(tmp_path: Path) -> None:
    native = tmp_path / "native"
    shutil.copytree(paths.NATIVE, native)
    plugin = str(native / paths.PLUGIN_NAME)
    assert [one.grade for one in installed_parts.check(str(native), plugin)] == [OK]
    with (native / "ch-join").open("ab") as file:
        file.write(b"\n")
    (found,) = installed_parts.check(str(native), plugin)
    assert (found.grade, found.text) == (PROBLEM, "of another build than the rest: ch-join")
    listed = (native / "parts.json").read_text()
    (native / "parts.json").write_text(listed.replace(f'"version": "{__version__}"', '"version": "0.1.0"'))
    (found,) = installed_parts.check(str(native), plugin)
    assert (found.grade, "the programs in" in found.text, "0.1.0" in found.text) == (PROBLEM, True, True)
    (native / "parts.json").unlink()
    (found,) = installed_parts.check(str(native), plugin)
    assert found.grade == WARNING


@pytest.mark.parametrize(
    ("setting", "grade", "message"),
    [
        ("", WARNING, "TaskProlog: none in {conf}: on a node without the plugin a batch script"),
        ("TaskProlog={ours}", OK, "TaskProlog: {ours} refuses"),
        ("TaskProlog={calls}", OK, "TaskProlog: {calls} refuses"),
        ("TaskProlog={other}", WARNING, "TaskProlog: {other} doesn't look at SLURM_CH_REQUEST"),
        ("TaskProlog={other}:{ours}", OK, "TaskProlog: {ours} refuses"),
        ("TaskProlog=/nonexistent", WARNING, "TaskProlog: /nonexistent: No such file"),
    ],
)
def test_the_guard_of_task_prolog(tmp_path: Path, setting: str, grade: str, message: str) -> None:
    conf = tmp_path / "slurm.conf"
    names = {
        "conf": conf,
        "ours": Path(__file__).parents[2] / "etc/task-prolog",
        "calls": script(tmp_path / "calls", ". /opt/slurm_ch/share/slurm_ch/task-prolog"),
        "other": script(tmp_path / "other", "true"),
    }
    conf.write_text(setting.format(**names) + "\n")
    (found,) = installation.check_guard({"SLURM_CONF": str(conf)})
    assert (found.grade, bool(found.remedy)) == (grade, grade != OK)
    assert f"{found.about}: {found.text}".startswith(message.format(**names))


def test_what_a_configless_node_lacks(tmp_path: Path) -> None:
    cache = tmp_path / "conf-cache"
    cache.mkdir()
    (cache / "slurm.conf").touch()
    (cache / "plugstack.conf").write_text("include plugstack.conf.d/*\n")
    _, (found,) = installation.find({"SLURM_CONF": str(cache / "slurm.conf")}, None)
    assert (found.grade, "controller's plugstack.conf itself" in found.remedy) == (PROBLEM, True)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("", []),
        ("LaunchParameters=use_interactive_step", []),
        ("LaunchParameters=use_interactive_step,test_exec", [(WARNING, "LaunchParameters", "test_exec in ")]),
        ("SlurmdParameters=config_overrides,contain_spank", [(OK, "SlurmdParameters", "contain_spank: steps")]),
    ],
)
def test_settings_of_slurms_own(tmp_path: Path, setting: str, expected: list[tuple[str, str, str]]) -> None:
    conf = tmp_path / "slurm.conf"
    conf.write_text(setting + "\n")
    found = list(installation.check_slurm({"SLURM_CONF": str(conf)}))
    assert [(one.grade, one.about, one.text[: len(text)]) for one, (_, _, text) in zip(found, expected)] == expected
    assert len(found) == len(expected)


def test_a_plugin_from_a_newer_system(parts: Path) -> None:
    """Linked with a C library that has a version which this node's lacks."""
    (parts / "stub.c").write_text("int newer(void) { return 0; }\n")
    (parts / "map").write_text("GLIBC_9.99 { global: newer; };\n")
    stub = ["cc", "-shared", "-nostdlib", "-fPIC", "-Wl,-soname,libc.so.6", f"-Wl,--version-script={parts}/map"]
    subprocess.run([*stub, "-o", parts / "stub.so", parts / "stub.c"], check=True)
    (parts / "newer.c").write_text("int newer(void); int plugin(void) { return newer(); }\n")
    link = ["cc", "-shared", "-nostdlib", "-fPIC", "-o", parts / "newer.so", parts / "newer.c", parts / "stub.so"]
    subprocess.run(link, check=True)
    (found,) = installation.check_libraries(str(parts / "newer.so"), NOBODY)
    assert (found.grade, "GLIBC_9.99' not found" in found.text) == (PROBLEM, True)
    assert found.text.endswith(": it was built on a newer system")
    (found,) = installation.check_libraries(str(parts / "source.c"), NOBODY)
    assert (found.grade, "invalid ELF header" in found.text) == (PROBLEM, True)
    assert list(installation.check_libraries(paths.PLUGIN, NOBODY)) == []


def test_software_of_others(tmp_path: Path, mocker: MockerFixture) -> None:
    cdi, package = tmp_path / "cdi", tmp_path / "lib/slurm_ch"
    cdi.mkdir()
    package.mkdir(parents=True)
    mocker.patch.object(software.library, "directories", return_value=(str(cdi),))
    mocker.patch.object(paths, "PACKAGE", str(package))
    mocker.patch.dict(sys.modules, {"yaml": None, "posix_ipc": None})

    def warned(path: str = "/usr/bin:/bin") -> list[str]:
        found = list(software.check({"PATH": path}))
        assert all(one.remedy for one in found if one.grade != OK)
        assert len(found) == 5
        return [one.text.split(",")[0].rpartition(" ")[2] for one in found if one.grade == WARNING]

    assert warned() == []
    (cdi / "gpu.yaml").touch()
    assert warned() == ["yaml"]
    (package.parent / "vendor").mkdir()
    (package.parent / "vendor/posix_ipc.cpython-39-x86_64-linux-gnu.so").touch()
    assert warned() == ["yaml", "posix_ipc"]
    texts = [one.text for one in software.check({"PATH": str(tmp_path)})]
    assert "no tar2sqfs and no mksquashfs in PATH, which is for slurm-ch pull and pack" in texts
