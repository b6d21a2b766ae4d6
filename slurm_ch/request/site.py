# SPDX-License-Identifier: Apache-2.0
"""Parse plugstack.conf's arguments, and combine the site's settings with a user's request."""

from __future__ import annotations

from .. import agreement
from ..errors import UsageError
from . import parsers, spec
from .options import BY_NAME, LIST, PLUGIN, SITE, Setting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


RELAYED = tuple(agreement.RELAYED_COMMANDS.split(","))
# Commands that a site may relay.
_RELAYABLE = frozenset((*RELAYED, "sacctmgr", "salloc", "scrontab", "sdiag", "sreport", "strigger"))
# Fields of a job's record in which the image may be written.
RECORDS = ("comment", "extra")
_WORDS = {"record": RECORDS, "pyxis": ("yes", "no")}
# Options that determine whether and how commands can write to the image.
_OF_WRITING = frozenset(("write", "write-fake", "overlay", "home", "device"))


# Arguments for pulling images; images.settings parses them.
IMAGE_ARGUMENTS = (
    "cache", "images", "cache_max", "pull", "registries", "importer", "packer", "pull_timeout", "pull_threads",
    "pull_max",
)  # fmt: skip


# Arguments for pyxis' options; pyxis_site parses them.
PYXIS_ARGUMENTS = (
    "container_directory", "container_scope", "containers", "execute_entrypoint", "runtime_path", "sbatch_support",
    "use_enroot_load", "use_squashfuse",
)  # fmt: skip


class Site:
    """The site's settings: plugstack.conf's arguments, parsed."""

    __slots__ = (
        "binds",
        "broadcast",
        "defaults",
        "forbidden",
        "image_timeout",
        "pulling",
        "pyxis",
        "pyxis_arguments",
        "record",
        "relayed",
        "squashfuse",
        "storage",
    )

    def __init__(self) -> None:
        self.binds: list[spec.Bind] = []
        self.broadcast: str | None = None  # the directory on each node that --ch-broadcast copies to
        self.defaults: list[Setting] = []
        self.forbidden: set[str] = set()
        self.image_timeout = 0  # in seconds; 0: none
        self.pulling: list[tuple[str, str]] = []  # those of IMAGE_ARGUMENTS
        self.pyxis = "no"  # "yes" or "no": whether pyxis' options are available
        self.pyxis_arguments: list[tuple[str, str]] = []
        self.record: str | None = None  # one of RECORDS
        self.relayed: Sequence[str] = RELAYED  # commands
        self.squashfuse: str | None = None
        self.storage: str | None = None


def parse(arguments: Sequence[str]) -> Site:
    """Return the Site for plugstack.conf's `arguments`; UsageError names the wrong one."""
    site = Site()
    for argument in arguments:
        key, equals, value = argument.partition("=")
        setting = Setting(key, value, f"plugstack.conf: {key}", SITE)
        if not equals or not value:
            raise UsageError(f"plugstack.conf: {argument}: a value is missing")
        if key not in ("python", "launcher", "ch_join"):  # the plugin's own
            _apply(site, setting)
    return site


def _apply(site: Site, setting: Setting) -> None:
    key, value = setting.name, setting.value
    if key in ("storage", "squashfuse", "broadcast"):
        setattr(site, key, value)
    elif key == "image_timeout":
        site.image_timeout = _site_seconds(setting)
    elif key in _WORDS:
        if value not in _WORDS[key]:
            raise setting.wrong(f"neither {' nor '.join(_WORDS[key])}")
        setattr(site, key, value)
    elif key == "bind":
        scratch = spec.Spec("/")
        parsers.bind(scratch, setting)
        site.binds += scratch.binds
    elif key == "default":
        site.defaults.append(_site_default(setting))
    elif key == "forbid":
        site.forbidden |= _site_forbidden(setting)
    elif key == "relay":
        site.relayed = _site_relayed(setting)
    elif key in (*IMAGE_ARGUMENTS, *PYXIS_ARGUMENTS):
        (site.pyxis_arguments if key in PYXIS_ARGUMENTS else site.pulling).append((key, value))
    else:
        raise UsageError(f"plugstack.conf: {key}={value}: unknown argument")


def _site_default(setting: Setting) -> Setting:
    name, equals, value = setting.value.partition("=")
    option = BY_NAME.get(name)
    if option is None or not option.where & PLUGIN or name in ("image", "save"):
        raise setting.wrong("not an option that can have a default")
    if not equals:
        if option.bare is None:
            raise setting.wrong("the option needs a value")
        value = option.bare
    return Setting(name, value, f"plugstack.conf: default={name}", SITE)


def _site_seconds(setting: Setting) -> int:
    """Return a timeout in the range that the kernel accepts: it checks every 15 seconds, and stores 16 bits."""
    if not (setting.value.isascii() and setting.value.isdigit() and 15 <= int(setting.value[:6]) <= 65535):
        raise setting.wrong("not a number of seconds from 15 to 65535")
    return int(setting.value)


def _site_forbidden(setting: Setting) -> set[str]:
    names = set(setting.value.split(","))
    unknown = sorted(n for n in names if n not in BY_NAME or not BY_NAME[n].where & PLUGIN or n == "image")
    if unknown:
        raise setting.wrong(f"not an option that can be forbidden: {', '.join(unknown)}")
    return names


def _site_relayed(setting: Setting) -> Sequence[str]:
    if setting.value == "no":
        return ()
    if setting.value == "yes":
        return RELAYED
    names = setting.value.split(",")
    unknown = sorted(name for name in set(names) if name not in _RELAYABLE)
    if unknown:
        raise setting.wrong(f"neither yes nor no, nor commands of Slurm's: {', '.join(unknown)}")
    return names


def as_defaults(request: Sequence[Setting]) -> Mapping[str, str]:
    """Return the variables that make `request` the default for steps started inside, as sbatch's options are."""
    found: dict[str, str] = {}
    for setting in request:
        if setting.name == "save":
            continue
        option = BY_NAME[setting.name]
        variable = agreement.SRUN_PREFIX + option.variable
        if option.kind == LIST and variable in found:
            found[variable] += "\n" + setting.value
        else:
            found[variable] = setting.value
    return found


def _without_contradictions(defaults: list[Setting], request: Sequence[Setting]) -> list[Setting]:
    """Return the site's defaults without those that contradict the user's options for writing to the image.

    A default device is kept, so that `write` is an error: only the user knows whether the container is useful
    without the device.
    """
    asked = [setting for setting in request if setting.name in _OF_WRITING]
    user = parsers.make("/", asked)
    dropped: tuple[str, ...] = ()
    if user.write:
        dropped = ("write-fake", "home", "overlay")
    elif user.write_fake is not None:
        dropped = ("write",)
        # The user's home, device or overlay implies write-fake, which the site's default may turn off.
        defaults = [one for one in defaults if one.name != "write-fake" or not parsers.says_no(one)]
    elif any(setting.name == "write-fake" for setting in asked):
        dropped = ("home", "overlay")
    return [setting for setting in defaults if setting.name not in dropped]


def combine(site: Site, request: Sequence[Setting]) -> spec.Spec:
    """Return the Spec for the site's settings and a user's request; UsageError for a wrong or forbidden option.

    A user's option replaces the site's default for the same option. The site's binds
    are always made, before the user's.
    """
    asked = {setting.name for setting in request}
    for setting in request:
        if setting.name in site.forbidden:
            raise setting.wrong("not allowed at this site")
    defaults = [setting for setting in site.defaults if setting.name not in asked]
    if defaults and not asked.isdisjoint(_OF_WRITING):
        defaults = _without_contradictions(defaults, request)
    image = next((s.value for s in reversed(request) if s.name == "image"), None)
    wanted = parsers.make(image, [*defaults, *request])
    wanted.binds[:0] = site.binds
    wanted.image_timeout = site.image_timeout
    wanted.relay_commands = site.relayed
    if wanted.relay:
        if not site.relayed:
            raise UsageError(f"{wanted.label('relay')}: not available at this site")
        wanted.relay_defaults = as_defaults(request)
    if wanted.storage is None:
        wanted.storage = site.storage
    return wanted
