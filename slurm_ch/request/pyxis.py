# SPDX-License-Identifier: Apache-2.0
"""pyxis' options: their table, and their translation to slurm_ch's own options.

A site turns them on by `pyxis=yes` in plugstack.conf. Loaded only for a request with one of them. The rest of
the package sees only slurm_ch's own options, and a Compatibility for what these don't cover.
"""

from __future__ import annotations

from .. import agreement
from .. import lean_os as os
from ..errors import UsageError
from . import parsers, pyxis_mounts, pyxis_site, site
from .compatibility import AUTO, CREATE, NAMED, Compatibility, ContainerName
from .options import FLAG, LIST, ONE, PLUGIN, Setting
from .spec import Bind, Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Option:
    """One option of pyxis.

    `variable`: the end of its environment variable's name. `group`: options with the same group exclude each other;
    if one is given on the command line, the others' variables are ignored.
    """

    __slots__ = ("arg", "bare", "group", "help", "kind", "name", "paths", "variable")

    def __init__(self, name: str, kind: str, arg: str, help: str, *, group: str = "", bare: str = "yes") -> None:
        self.name = name
        self.kind = kind
        self.arg = arg
        self.help = help
        self.paths = "none"  # relative paths are not anchored
        self.bare = bare if kind == FLAG else None
        self.variable = name.partition("container-")[2].upper().replace("-", "_")
        self.group = group or self.variable


# Slurm cuts a plugin option's help at 75 characters.
OPTIONS = (
    Option("container-image", ONE, "[USER@][REG#]NAME[:TAG]|PATH", "run in this image; a path must begin with / or ."),
    Option("container-mounts", LIST, "SRC[:DST[:FLAGS]],...", "show the host's SRC at DST; FLAGS are joined by +"),
    Option("container-workdir", ONE, "DIR", "start the command in this directory [the image's working directory]"),
    Option("container-name", ONE, "NAME[:FLAG]", "use a container that is kept; FLAG: auto, create, exec, no_exec"),
    Option("container-save", ONE, "PATH", "save the container as a SquashFS file at the end"),
    Option("container-mount-home", FLAG, "", "show your home directory in the container"),
    Option("no-container-mount-home", FLAG, "", "don't show your home directory in the container", bare="no"),
    Option("container-remap-root", FLAG, "", "appear as root in the container"),
    Option("no-container-remap-root", FLAG, "", "don't appear as root in the container", bare="no"),
    Option("container-entrypoint", FLAG, "", "run the image's entrypoint before the command"),
    Option("no-container-entrypoint", FLAG, "", "don't run the image's entrypoint", bare="no"),
    Option("container-entrypoint-log", FLAG, "", "show the output of the image's entrypoint"),
    Option("container-writable", FLAG, "", "make the container writeable; changes are lost", group="WRITABLE"),
    Option("container-readonly", FLAG, "", "make the container read-only", group="WRITABLE"),
    Option("container-env", LIST, "NAME[,NAME...]", "keep the job's values of these variables instead of the image's"),
    Option("container-unshare", LIST, "KIND[,KIND...]", "separate namespaces for the container: net, ipc, uts"),
)  # fmt: skip

BY_NAME = {option.name: option for option in OPTIONS if not option.name.startswith("no-")}

# The beginning of these options' lines in a request.
_BEGINNING = "container-"
VARIABLES = agreement.PYXIS_PREFIX

_YES = ("1", "true", "yes", "y")
_NO = ("0", "false", "no", "n")

# For each option, those of our own with the same meaning, which must not be given too.
_CLASHES = {
    "container-image": ("image",),
    "container-name": ("image", "write", "write-fake", "overlay"),
    "container-save": ("save",),
    "container-workdir": ("cd",),
    "container-mount-home": ("home",),
    "container-remap-root": ("uid", "gid", "seccomp"),
    "container-writable": ("write", "write-fake", "overlay"),
    "container-readonly": ("write", "write-fake", "overlay"),
}

# The usual limit of file systems for a file's name, in bytes.
_NAME_MAX = 255


# Settings for the image's own PMIx, and the variables of Slurm's that they are taken from; enroot's hook does the same.
_PMIX = (("ptl", "PMIX_PTL_MODULE"), ("psec", "PMIX_SECURITY_MODE"), ("gds", "PMIX_GDS_MODULE"))

_NO_DEVICES = ("", "none", "void")

# Variables of the job that the container doesn't get: the image has its own locales.
_DROPPED = ("LANG", "LANGUAGE", "LC_ALL")


class Request:
    """The lines of a request: pyxis' options with their values in the order given, and all other lines."""

    __slots__ = ("given", "others")

    def __init__(self, text: str) -> None:
        self.given: dict[str, list[str]] = {}
        self.others: list[str] = []
        for line in text.split("\n"):
            name, _, value = line.partition("=")
            if not name.startswith(_BEGINNING):
                self.others.append(line)
            elif name not in BY_NAME:
                raise UsageError(f"--{name}: this node's slurm_ch doesn't know the option")
            else:
                if "\0" in value:
                    raise UsageError(f"--{name}={value!r}: has a NUL in it")
                self.given.setdefault(name, []).append(value)

    def last(self, name: str) -> str | None:
        """Return the last value, which is the one that counts, or None."""
        values = self.given.get(name)
        return values[-1] if values else None

    def parts(self, name: str) -> list[str]:
        """Return the parts of all values of a list; UsageError for an empty one."""
        found = []
        for value in self.given.get(name, ()):
            for part in value.split(","):
                if not part:
                    raise wrong(name, value, "an item of the list is empty")
                found.append(part)
        return found

    def truth(self, name: str) -> bool | None:
        """Return a flag's value, or None if it isn't given; UsageError if it is invalid, or both yes and no."""
        values = {_boolean(name, value) for value in self.given.get(name, ())}
        if len(values) > 1:
            raise UsageError(f"--{name} and --no-{name}: give one of them")
        return values.pop() if values else None


def wrong(name: str, value: str, why: str) -> UsageError:
    """Return the error that names the option, its value and the reason."""
    return UsageError(f"--{name}={value}: {why}")


def _boolean(name: str, value: str) -> bool:
    word = value.lower()
    if word in _YES:
        return True
    if word in _NO:
        return False
    variable = VARIABLES + BY_NAME[name].variable
    raise UsageError(f"{variable}={value}: not one of {', '.join((*_YES, *_NO))}")


def combine(here: site.Site, text: str, env: Mapping[str, str]) -> Spec:
    """Return the Spec for the site's settings and a request with pyxis' options.

    `env` is the job's environment. UsageError for a wrong option.
    """
    if here.pyxis != "yes":
        raise UsageError("--container-...: pyxis' options are not available here (plugstack.conf: pyxis=yes)")
    request = Request(text)
    others = parsers.parse_request("\n".join(request.others))
    _check(request, others)
    spec = site.combine(here, [*_settings(request), *others])
    spec.binds += [*_home(request, env), *pyxis_mounts.binds(request.parts("container-mounts"))]
    if not any(one.name == "image" for one in others):
        spec.compatibility = _compatibility(request, env, pyxis_site.parse(here.pyxis_arguments))
        kept = spec.compatibility.container_name
        if kept is not None and request.last("container-image") is None:
            spec.image = ""  # the container's own, which its node knows
        if "private-tmp" not in spec.labels:
            writes = spec.write or spec.write_fake is not None or spec.overlay is not None
            spec.compatibility.tmp_of_image = writes if kept is None else not kept.read_only
            # A read-only /tmp would be of no use.
            spec.private_tmp = not spec.compatibility.tmp_of_image
    if spec.relay_defaults:
        spec.relay_defaults = {**site.as_defaults(others), **as_defaults(request.given)}
    return spec


def _compatibility(request: Request, env: Mapping[str, str], by_site: Mapping[str, str]) -> Compatibility:
    compatibility = Compatibility()
    compatibility.container_name = _container_name(request, by_site)
    compatibility.start_in_image = by_site.get("container_directory") != "job"
    compatibility.keep = request.parts("container-env")
    compatibility.drop = tuple(name for name in _DROPPED if name not in compatibility.keep)
    compatibility.gpus = _gpus(env)
    asked = request.truth("container-entrypoint")
    if asked if asked is not None else by_site.get("execute_entrypoint") == "1":
        compatibility.entrypoint = ("--container-entrypoint", bool(request.truth("container-entrypoint-log")))
    compatibility.speaks = bool(request.truth("container-entrypoint-log"))
    adapters = env.get("MELLANOX_VISIBLE_DEVICES")
    if adapters not in (None, *_NO_DEVICES):
        compatibility.notes = (
            f"MELLANOX_VISIBLE_DEVICES={adapters}: the node's InfiniBand devices are in the container, all of them; the"
            " libraries for them are the image's own",
        )
    compatibility.tmpfs_mounts, compatibility.unmounted = pyxis_mounts.without_source(request.parts("container-mounts"))
    compatibility.defaults = [
        (agreement.PLAN_SET_DEFAULT, f"PMIX_MCA_{name}={env[given]}") for name, given in _PMIX if env.get(given)
    ]
    compatibility.if_image_has = ("PYTORCH_VERSION", _pytorch(env))
    return compatibility


def _container_name(request: Request, by_site: Mapping[str, str]) -> ContainerName | None:
    """Return the requested container name, or None."""
    value = request.last("container-name")
    if value is None:
        return None
    name, colon, how = value.partition(":")
    how = how if colon else AUTO
    if how not in NAMED:
        raise wrong("container-name", value, f"{how or 'an empty flag'} is not one of {', '.join(NAMED)}")
    if not name or "/" in name or name.startswith(".") or len(os.fsencode(name)) > _NAME_MAX:
        why = f"a container's name has 1 to {_NAME_MAX} bytes, no / in it, and no . at its beginning"
        raise wrong("container-name", value if len(value) < _NAME_MAX else f"{value[:32]}...", why)
    if how == CREATE and request.last("container-image") is None:
        raise wrong("container-name", value, "--container-image is missing")
    read_only = bool(request.truth("container-readonly")) or request.truth("container-writable") is False
    of_job = by_site.get("container_scope") != "global"
    return ContainerName(name, how, f"--container-name={name}", of_job=of_job, read_only=read_only)


def _gpus(env: Mapping[str, str]) -> tuple[str, Sequence[str], str] | None:
    """Return the GPUs that NVIDIA_VISIBLE_DEVICES names, or all if the job doesn't set it."""
    value = env.get("NVIDIA_VISIBLE_DEVICES")
    if value in _NO_DEVICES:
        return None
    if value is None:
        return "nvidia.com/gpu", ("all",), ""
    return "nvidia.com/gpu", value.split(","), f"NVIDIA_VISIBLE_DEVICES={value}"


def _pytorch(env: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the variables that enroot's hook for PyTorch sets: each process's rank, and the rendezvous address."""
    found = [
        (agreement.PLAN_SET_ANYWHERE, "RANK=$SLURM_PROCID"),
        (agreement.PLAN_SET_ANYWHERE, "LOCAL_RANK=$SLURM_LOCALID"),
    ]
    tasks, nodes = env.get("SLURM_NTASKS", "1"), env.get("SLURM_STEP_NUM_NODES") or env.get("SLURM_NNODES", "1")
    job = env.get("SLURM_JOB_ID", "0")
    host = first_host(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", ""))
    if host:
        found.append((agreement.PLAN_SET_DEFAULT, f"MASTER_ADDR={host}"))
    if job.isdigit():
        found.append((agreement.PLAN_SET_DEFAULT, f"MASTER_PORT={61000 + int(job) % 4536}"))
    found.append((agreement.PLAN_SET_DEFAULT, f"WORLD_SIZE={tasks}"))
    if tasks.isdigit() and nodes.isdigit() and int(tasks) > int(nodes):
        found.append((agreement.PLAN_SET_DEFAULT, "OMP_NUM_THREADS=1"))
    return found


def first_host(nodes: str) -> str:
    """Return the first host of a node list of Slurm's: n03 for n[03-05,7],m."""
    found = ""
    inside = False
    for letter in nodes:
        if inside and letter in ",-":
            # Skip the rest of this bracket; another one may follow it.
            inside = False
            rest = nodes[len(found) + 1 :].partition("]")[2].partition(",")[0]
            return found + (first_host(rest) if "[" in rest else rest)
        if letter == "[":
            inside = True
        elif letter == "]":
            inside = False
        elif letter == ",":
            break
        else:
            found += letter
    return found


def _home(request: Request, env: Mapping[str, str]) -> list[Bind]:
    if not request.truth("container-mount-home"):
        return []
    home = env.get("HOME", "")
    if not home.startswith("/"):
        raise UsageError("--container-mount-home: HOME is not set")
    place = "/root" if request.truth("container-remap-root") else home
    return [Bind(home, place, "--container-mount-home")]


def _check(request: Request, others: Sequence[Setting]) -> None:
    for name in request.given:
        if BY_NAME[name].kind == FLAG:
            request.truth(name)
    named = request.last("container-image") is not None or request.last("container-name") is not None
    if not named and not any(one.name == "image" for one in others):
        raise UsageError(f"--{next(iter(request.given))}: --container-image is missing")
    for name, ours in _CLASHES.items():
        clash = [one for one in others if one.name in ours]
        if name in request.given and clash:
            raise UsageError(f"--{name} and {clash[0].label}: give one of them")
    if request.truth("container-writable") and request.truth("container-readonly"):
        raise UsageError("--container-writable and --container-readonly: give one of them")


def _settings(request: Request) -> list[Setting]:
    """Return slurm_ch's own options with the same meaning."""
    found: list[Setting] = []

    def add(name: str, value: str, given: str) -> None:
        found.append(Setting(name, value, f"--{given}", PLUGIN))

    image = _image(request)
    if image is not None:
        add("image", image, "container-image")
    elif request.last("container-name") is not None:
        add("image", "/", "container-name")
    saved = request.last("container-save")
    if saved is not None:
        add("save", saved, "container-save")
    directory = request.last("container-workdir")
    if directory is not None:
        if not directory.startswith("/"):
            raise wrong("container-workdir", directory, "not an absolute path")
        add("cd", directory, "container-workdir")
    if request.truth("container-remap-root"):
        for name, value in (("uid", "0"), ("gid", "0"), ("seccomp", "yes")):
            add(name, value, "container-remap-root")
    if "container-unshare" in request.given:
        add("unshare", ",".join(request.parts("container-unshare")), "container-unshare")
    return [*found, *_writing(request)]


def _writing(request: Request) -> list[Setting]:
    writable, readonly = request.truth("container-writable"), request.truth("container-readonly")
    name = request.last("container-name")
    if name:
        # The node replaces the name by the container's directory.
        return [Setting("overlay", name, "--container-name", PLUGIN)]
    if writable or readonly is False:
        return [Setting("write-fake", "yes", "--container-writable", PLUGIN)]
    if writable is False or readonly:
        return [Setting("write-fake", "no", "--container-readonly", PLUGIN)]
    return []


def _image(request: Request) -> str | None:
    values = request.given.get("container-image", [])
    if len(set(values)) > 1:
        raise UsageError(f"--container-image: given twice: {values[0]} and {values[-1]}")
    return image(values[0]) if values else None


def image(value: str) -> str:
    """Return the path or reference for a value of --container-image; UsageError if it is neither."""
    if value.startswith(("/", ".")):
        return value
    if value.startswith("dockerd://"):
        name = value[len("dockerd://") :]
        if not name:
            raise wrong("container-image", value, "no name after dockerd://")
        return f"docker-daemon:{name}" if ":" in name.rpartition("/")[2] else f"docker-daemon:{name}:latest"
    name = value[len("docker://") :] if value.startswith("docker://") else value
    if "://" in name:
        raise wrong("container-image", value, "neither a path (which begins with / or .), docker:// nor dockerd://")
    # The user is ignored: `slurm-ch login`, or the container engine's own files, know it.
    before, hash_, after = name.rpartition("#")
    if hash_:
        before = before.rpartition("@")[2]
        if not before:
            raise wrong("container-image", value, "no registry before #")
    elif "@" in after and not after.rpartition("@")[2].startswith("sha256:"):
        after = after.rpartition("@")[2]
    if not after.strip(":/"):
        raise wrong("container-image", value, "the image's name is empty")
    return f"docker://{before}/{after}" if before else f"docker://{after}"


def as_defaults(given: Mapping[str, Sequence[str]]) -> Mapping[str, str]:
    """Return the variables that make the options the default for steps started inside, as sbatch's options are.

    Except container-save: only the batch script's own container is saved to that file.
    """
    return {
        VARIABLES + BY_NAME[name].variable: ",".join(values) if BY_NAME[name].kind == LIST else values[-1]
        for name, values in given.items()
        if name != "container-save"
    }
