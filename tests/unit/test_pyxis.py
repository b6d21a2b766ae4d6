# SPDX-License-Identifier: Apache-2.0
"""What pyxis' options ask for in our own words."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from slurm_ch import agreement
from slurm_ch.errors import UsageError
from slurm_ch.request import parsers, pyxis, site
from slurm_ch.request.compatibility import ContainerName
from slurm_ch.request.spec import Bind, Spec

ROOT = Path(__file__).parents[2]
HERE = site.parse(["pyxis=yes"])
ENV = {"HOME": "/home/u", "SLURM_JOB_ID": "7"}


def made(*words: str, here: site.Site = HERE, image: str = "/i", **env: str) -> Spec:
    lines = [f"container-image={image}", *words] if image else list(words)
    return pyxis.combine(here, "\n".join(lines), {**ENV, **env})


def refused(*words: str, **more: str) -> str:
    with pytest.raises(UsageError) as caught:
        made(*words, **more)
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("/a/b.sqsh", "/a/b.sqsh"),
        ("./b.sqsh", "./b.sqsh"),
        ("docker://ubuntu", "docker://ubuntu"),
        ("docker://ubuntu:22.04", "docker://ubuntu:22.04"),
        ("docker://nvcr.io#nvidia/pytorch:24.01-py3", "docker://nvcr.io/nvidia/pytorch:24.01-py3"),
        ("docker://$oauthtoken@nvcr.io#nvidia/pytorch", "docker://nvcr.io/nvidia/pytorch"),
        ("docker://me@ubuntu", "docker://ubuntu"),
        ("docker://r.io:5000#a/b", "docker://r.io:5000/a/b"),
        ("docker://r.io/a/b@sha256:" + "0" * 64, "docker://r.io/a/b@sha256:" + "0" * 64),
        ("docker://me@r.io#a/b@sha256:" + "0" * 64, "docker://r.io/a/b@sha256:" + "0" * 64),
        ("dockerd://b", "docker-daemon:b:latest"),
        ("dockerd://r:5000/b", "docker-daemon:r:5000/b:latest"),
        ("dockerd://b:1", "docker-daemon:b:1"),
    ],
)
def test_images(value: str, meant: str) -> None:
    assert made(image=value).image == meant


@pytest.mark.parametrize("value", ["docker://", "docker://:", "docker://#a", "docker://u@#a", "dockerd://", "oci://a"])
def test_no_images(value: str) -> None:
    assert f"--container-image={value}: " in refused(image=value)


def test_two_images() -> None:
    assert refused("container-image=/j") == "--container-image: given twice: /i and /j"
    assert made("container-image=/i").image == "/i"


def test_mounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    value = "/a,/b:/c,/d:/e:ro,./f:/g:rw+rbind,./h,/a b:/t\tt:ro+nosuid+x-create=dir+rslave"
    assert made(f"container-mounts={value}", "container-mounts=/z:/z:rprivate").binds == [
        Bind("/a", "/a"),
        Bind("/b", "/c"),
        Bind("/d", "/e", flags=("ro",)),
        Bind("./f", "/g"),
        Bind("./h", f"{tmp_path}/h"),
        Bind("/a b", "/t\tt", flags=("ro", "nosuid")),
        Bind("/z", "/z"),
    ]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "an item of the list is empty"),
        (":", "the source is not a path"),
        ("a:/b", "the source is not a path"),
        ("/a,", "an item of the list is empty"),
        ("/a:", "an empty field"),
        ("/a:/b:", "an empty field"),
        ("/a:b", "the destination is not a path"),
        ("/a:/", "the destination can't be /"),
        ("/a:/b:ro+", "the empty word is not a flag that a user's mount can have"),
        ("/a:/b:ro,rw", "the source is not a path"),
        ("/a:/b:suid", "suid is not a flag that a user's mount can have"),
        ("/a:/b:ro:rw", "ro:rw is not a flag"),
        ("/a:/b:shared", "shared is not a flag"),
    ],
)
def test_no_mounts(value: str, why: str) -> None:
    message = refused(f"container-mounts={value}")
    assert message.startswith("--container-mounts=")
    assert why in message


def test_mounts_without_a_source() -> None:
    value = "tmpfs:/scratch:size=1G+mode=0700+x-create=dir,/a:/scratch/a,umount:/etc/hosts:x-detach,tmpfs:/t"
    spec = made(f"container-mounts={value}")
    assert spec.binds == [Bind("/a", "/scratch/a")]
    assert spec.compatibility is not None
    assert [one[:2] for one in spec.compatibility.tmpfs_mounts] == [
        ("/scratch", {"size": "1G", "mode": "0700"}),
        ("/t", {}),
    ]
    assert spec.compatibility.unmounted == [("/etc/hosts", "--container-mounts=umount:/etc/hosts:x-detach")]
    for value in (
        "tmpfs",
        "tmpfs:",
        "tmpfs:/",
        "tmpfs:t",
        "umount:",
        "tmpfs:/t:uid=0",
        "tmpfs:/t:size",
        "umount:/t:ro",
    ):
        assert f"--container-mounts={value}: " in refused(f"container-mounts={value}")


def test_entrypoint() -> None:
    def asked(*words: str) -> object:
        spec = made(*words)
        assert spec.compatibility is not None
        return spec.compatibility.entrypoint

    assert asked() is asked("container-entrypoint=no") is asked("container-entrypoint-log=yes") is None
    assert asked("container-entrypoint=yes") == ("--container-entrypoint", False)
    assert asked("container-entrypoint=1", "container-entrypoint-log=1") == ("--container-entrypoint", True)


def test_unshare() -> None:
    assert made("container-unshare=net,ipc", "container-unshare=net").unshare == ("net", "ipc")
    assert made("unshare=uts", "container-unshare=ipc").unshare == ("ipc", "uts")
    for value in ("", "net,", "pid"):
        assert refused(f"container-unshare={value}").startswith(f"--container-unshare={value}: ")


def test_gpus() -> None:
    def gpus(**env: str) -> object:
        spec = made(**env)
        assert spec.compatibility is not None
        return spec.compatibility.gpus

    assert gpus() == ("nvidia.com/gpu", ("all",), "")
    assert gpus(NVIDIA_VISIBLE_DEVICES="0,GPU-1") == (
        "nvidia.com/gpu", ["0", "GPU-1"], "NVIDIA_VISIBLE_DEVICES=0,GPU-1",
    )  # fmt: skip
    for value in ("", "none", "void"):
        assert gpus(NVIDIA_VISIBLE_DEVICES=value) is None


def test_directory_and_what_is_as_the_image_has_it() -> None:
    spec = made()
    assert spec.compatibility is not None
    assert (spec.cd, spec.compatibility.start_in_image, spec.compatibility.drop) == (
        None,
        True,
        ("LANG", "LANGUAGE", "LC_ALL"),
    )
    assert made("container-workdir=/w").cd == "/w"
    assert "not an absolute path" in refused("container-workdir=w")


def test_home() -> None:
    assert made().binds == []
    assert made("container-mount-home=yes").binds == [Bind("/home/u", "/home/u")]
    assert made("container-mount-home=no").binds == []
    assert made("container-mount-home=1", "container-remap-root=TRUE").binds == [Bind("/home/u", "/root")]
    assert "HOME is not set" in refused("container-mount-home=yes", HOME="")
    assert refused("container-mount-home=yes", "container-mount-home=no") == (
        "--container-mount-home and --no-container-mount-home: give one of them"
    )


def test_root() -> None:
    spec = made("container-remap-root=y")
    assert (spec.uid, spec.gid, spec.seccomp) == (0, 0, True)
    assert (made().uid, made("container-remap-root=n").uid, made().seccomp) == (None, None, False)


def test_writing() -> None:
    writeable = site.parse(["pyxis=yes", "default=write-fake"])
    for words, here, size in (
        ((), HERE, None),
        (("container-writable=yes",), HERE, "12%"),
        (("container-readonly=no",), HERE, "12%"),
        (("container-readonly=yes",), HERE, None),
        ((), writeable, "12%"),
        (("container-writable=no",), writeable, None),
        (("container-readonly=yes",), writeable, None),
    ):
        spec = made(*words, here=here)
        assert spec.write_fake == size, words
        # The image's own /tmp, where it can be written to.
        assert spec.compatibility is not None
        assert (spec.compatibility.tmp_of_image, spec.private_tmp) == (size is not None, size is None)
    assert "give one of them" in refused("container-writable=yes", "container-readonly=yes")


@pytest.mark.parametrize("name", [one.name for one in pyxis.OPTIONS if one.bare == "yes"])
def test_what_is_no_boolean(name: str) -> None:
    if name in pyxis.BY_NAME:
        assert "=maybe: not one of 1, true, yes, y, 0, false, no, n" in refused(f"{name}=maybe")


def test_environment() -> None:
    spec = made("container-env=LANG,FOO", "container-env=BAR")
    assert spec.compatibility is not None
    assert (spec.compatibility.keep, spec.compatibility.drop) == (["LANG", "FOO", "BAR"], ("LANGUAGE", "LC_ALL"))
    for value in ("", "A,", ",A", "A,,B"):
        assert "an item of the list is empty" in refused(f"container-env={value}")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"), ("n1,n2", "n1"), ("n[03-05,7],m", "n03"), ("n[7]", "n7"), ("a[1-2]b[3-4],c", "a1b3"),
        ("n[01,03-04]-ib", "n01-ib"), ("", ""),
    ],
)  # fmt: skip
def test_first_host(nodes: str, first: str) -> None:
    assert pyxis.first_host(nodes) == first


def test_pytorch() -> None:
    def rules(**env: str) -> dict[str, str]:
        spec = made(SLURM_JOB_ID="5000", SLURM_STEP_NODELIST="n[2-3]", **env)
        assert spec.compatibility is not None
        name, records = spec.compatibility.if_image_has
        assert name == "PYTORCH_VERSION"
        return dict(text.split("=", 1) for _, text in records)

    own = {"RANK": "$SLURM_PROCID", "LOCAL_RANK": "$SLURM_LOCALID", "MASTER_ADDR": "n2", "MASTER_PORT": "61464"}
    assert rules(SLURM_NTASKS="2", SLURM_STEP_NUM_NODES="2") == {**own, "WORLD_SIZE": "2"}
    many = rules(SLURM_NTASKS="4", SLURM_STEP_NUM_NODES="2")
    assert many == {**own, "WORLD_SIZE": "4", "OMP_NUM_THREADS": "1"}


def test_pmix() -> None:
    spec = made(PMIX_PTL_MODULE="tcp", PMIX_GDS_MODULE="hash", PMIX_SECURITY_MODE="")
    assert spec.compatibility is not None
    assert spec.compatibility.defaults == [
        (agreement.PLAN_SET_DEFAULT, "PMIX_MCA_ptl=tcp"),
        (agreement.PLAN_SET_DEFAULT, "PMIX_MCA_gds=hash"),
    ]


@pytest.mark.parametrize(
    "words",
    [
        ("image=/j",),
        ("container-workdir=/a", "cd=/b"),
        ("container-mount-home=yes", "home=yes"),
        ("container-remap-root=yes", "uid=0"),
        ("container-writable=yes", "write-fake=1G"),
        ("container-readonly=yes", "write=yes"),
    ],
)
def test_clashes_of_both_families(words: tuple[str, ...]) -> None:
    message = refused(*words)
    assert message.startswith("--container-")
    assert " and --ch-" in message
    assert message.endswith("give one of them")


def test_both_families_where_that_means_something() -> None:
    spec = made("bind=/o", "container-mounts=/p", "verbose=2", "set-env=A=1")
    assert spec.binds == [Bind("/o", "/o"), Bind("/p", "/p")]
    assert (spec.verbosity, spec.env_rules) == (2, [("set", "A=1")])
    ours = made("image=/i", "container-mounts=/p", image="")
    # An image of ours has our rules.
    assert (ours.image, ours.compatibility) == ("/i", None)


def test_without_an_image() -> None:
    assert refused("container-mounts=/a", image="") == "--container-mounts: --container-image is missing"


def test_save() -> None:
    spec = made("container-save=new.sqsh", "relay=yes")
    assert (spec.save, spec.label("save")) == ("new.sqsh", "--container-save")
    # Not that of the steps inside too.
    assert dict(spec.relay_defaults) == {"PYXIS_CONTAINER_IMAGE": "/i", "SLURM_CH_RELAY": "yes"}
    for value in ("", "/dir/"):
        assert refused(f"container-save={value}").startswith(f"--container-save={value}: ")
    assert "give one of them" in refused("container-save=/a", "save=/b")


def kept(*words: str, here: site.Site = HERE, image: str = "/i") -> ContainerName:
    spec = made(*words, here=here, image=image)
    assert spec.compatibility is not None
    assert spec.compatibility.container_name is not None
    return spec.compatibility.container_name


def test_names() -> None:
    one = kept("container-name=n")
    assert (one.name, one.how, one.of_job, one.read_only) == ("n", "auto", True, False)
    for how in ("auto", "create", "exec", "no_exec"):
        assert kept(f"container-name=n:{how}").how == how
    assert not kept("container-name=n", here=site.parse(["pyxis=yes", "container_scope=global"])).of_job
    assert kept("container-name=n", "container-readonly=yes").read_only
    # What is written is kept, and so nothing of a site's default counts.
    for default in ("write", "write-fake", "write-fake=no"):
        spec = made("container-name=n", here=site.parse(["pyxis=yes", f"default={default}"]))
        assert (spec.write, spec.overlay is not None) == (False, True), default
    # Without an image, it is that of the container which its node has.
    assert made("container-name=n", image="").image == ""
    for value, why in (
        ("n:", "an empty flag is not one of auto, create, exec, no_exec"),
        ("n:x", "x is not one of auto"),
        ("", "1 to 255 bytes"),
        (".n", "no . at its beginning"),
        ("a/b", "no / in it"),
    ):
        assert why in refused(f"container-name={value}")
    assert "--container-image is missing" in refused("container-name=n:create", image="")
    assert "give one of them" in refused("container-name=n", "overlay=/o")


def test_pyxis_own_site_arguments() -> None:
    assert made(here=site.parse(["pyxis=yes", "sbatch_support=1", "use_squashfuse=1"])).image == "/i"
    here = site.parse(["pyxis=yes", "execute_entrypoint=1"])
    for words, runs in (((), True), (("container-entrypoint=no",), False)):
        spec = made(*words, here=here)
        assert spec.compatibility is not None
        assert (spec.compatibility.entrypoint is not None) is runs
    for argument, why in (
        ("runtime_path=/run/pyxis", "containers="),
        ("use_enroot_load=1", "there is no enroot here"),
        ("use_squashfuse=0", "not unpacked"),
        ("sbatch_support=0", "always have"),
        ("container_scope=step", "neither job nor global"),
        ("execute_entrypoint=yes", "neither 0 nor 1"),
        ("containers=here", "not an absolute path"),
    ):
        message = refused(here=site.parse(["pyxis=yes", argument]))  # type: ignore[arg-type]
        assert message.startswith(f"plugstack.conf: {argument}: ")
        assert why in message


def test_where_a_site_has_not_asked_for_it() -> None:
    assert "plugstack.conf: pyxis=yes" in refused(here=site.parse([]))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"plugstack.conf: pyxis=maybe: neither yes nor no"):
        site.parse(["pyxis=maybe"])
    with pytest.raises(UsageError, match="this node's slurm_ch doesn't know the option"):
        parsers.parse_request("container-image=/i")
    assert "doesn't know the option" in refused("container-later=1")


def test_a_steps_own_steps_have_the_same_options() -> None:
    spec = made("container-mounts=/a", "container-mounts=/b", "container-writable=yes", "relay=yes", "verbose=1")
    assert dict(spec.relay_defaults) == {
        "PYXIS_CONTAINER_IMAGE": "/i",
        "PYXIS_CONTAINER_MOUNTS": "/a,/b",
        "PYXIS_CONTAINER_WRITABLE": "yes",
        "SLURM_CH_RELAY": "yes",
        "SLURM_CH_VERBOSE": "1",
    }


def test_c_table() -> None:
    command = [sys.executable, "-I", ROOT / "spank/plugin/gen_options.py"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [line for line in out.splitlines() if line.startswith("OPTION(") and not line.endswith("NULL)")]
    assert [row.split('"')[1] for row in rows] == [one.name for one in pyxis.OPTIONS]
    assert [row.rstrip('")').split('"')[-1] for row in rows] == [one.group for one in pyxis.OPTIONS]


def test_without_these_options_nothing_of_it_is_loaded() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from slurm_ch.plugin.facts import Facts, site_and_request; facts = Facts();"
        " facts.site = ['pyxis=yes', 'container_scope=global', 'containers=/c']; facts.request = 'image=/i\\nbind=/container-a:/b\\n'; site_and_request(facts);"
        " print([name for name in sys.modules if 'pyxis' in name or 'compatibility' in name])"
    )
    command = ["/usr/bin/python3", "-I", "-S", "-c", code]
    assert subprocess.run(command, check=True, capture_output=True, text=True, env={}).stdout == "[]\n"


def test_the_page_has_each_option_with_a_test_that_there_is() -> None:
    text = (ROOT / "docs/from-pyxis.rst").read_text()
    rows = [row.split("\n     - ") for row in text.split("   * - ")[2:]]
    shown = " ".join(row[0] for row in rows).replace("[no-]", "")
    for option in pyxis.OPTIONS:
        assert f"--{option.name.removeprefix('no-')}" in shown, option.name
    for name in (
        "container_scope",
        "execute_entrypoint",
        "runtime_path",
        "use_squashfuse",
        "sbatch_support",
        "containers",
    ):
        assert f"``{name}=" in text
    for row in rows:
        assert len(row) == 3, row
        tests = re.findall(r"``(tests/[\w/]+\.py)(?:::(\w+))?``", row[2].partition("\n\n")[0])
        assert tests, row
    for path, test in re.findall(r"``(tests/[\w/]+\.py)(?:::(\w+))?``", text):
        source = (ROOT / path).read_text()
        assert not test or f"def {test}(" in source, (path, test)
