"""The option table, and the record that options become.

This is the one place that knows which options there are. The command line
(click), the plugin's C table (generated) and the launcher all read OPTIONS.
Here strings become a `Spec`; nothing is looked up in the file system.
"""

from __future__ import annotations

from .errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# How often an option counts and whether it takes a value.
ONE = "one"  # one value, the last given wins
LIST = "list"  # each occurrence adds
FLAG = "flag"  # yes or no, bare means yes
OPTIONAL = "optional"  # one value, bare means `bare`

DEFAULT_WRITE_FAKE = "12%"
MAX_ID = 2**32 - 2

PLUGIN = 1  # --ch-NAME of srun, sbatch, salloc
COMMAND = 2  # --NAME of `slurm-ch run`
BOTH = PLUGIN | COMMAND


class Option:
    """One option: its name, kind, metavariable, help, where it exists, short form."""

    __slots__ = ("arg", "bare", "help", "kind", "name", "short", "where")

    def __init__(
        self, name: str, kind: str, arg: str, help: str, *, where: int = BOTH, short: str = "", bare: str = "yes"
    ) -> None:
        self.name = name
        self.kind = kind
        self.arg = arg
        self.help = help
        self.where = where
        self.short = short
        self.bare = bare

    @property
    def variable(self) -> str:
        """The part of an environment default's name that follows SLURM_CH_."""
        return self.name.upper().replace("-", "_")


# Slurm cuts a plugin option's help at 75 characters.
OPTIONS = (
    Option("image", ONE, "IMAGE", "run in this image: SquashFS file, directory or image name", where=PLUGIN),
    Option("bind", LIST, "SRC[:DST]", "bind SRC from the host at DST; repeat, or separate by commas", short="b"),
    Option("cd", ONE, "DIR", "initial working directory in the container", short="c"),
    Option("set-env", LIST, "NAME=VALUE|FILE", "set a variable, or all in FILE; bare: /ch/environment",
           bare="/ch/environment"),
    Option("unset-env", LIST, "GLOB", "unset variables whose name matches the shell pattern"),
    Option("env-no-expand", FLAG, "", "don't expand $NAME in the values of --set-env"),
    Option("private-tmp", FLAG, "", "a fresh /tmp instead of the host's", short="t"),
    Option("no-passwd", FLAG, "", "leave the image's /etc/passwd and /etc/group alone"),
    Option("write", FLAG, "", "mount the image read-write", short="w"),
    Option("write-fake", OPTIONAL, "SIZE", "writeable image, changes kept in memory and lost [12%]",
           short="W", bare=DEFAULT_WRITE_FAKE),
    Option("home", FLAG, "", "bind your home directory at /home/$USER (implies write-fake)"),
    Option("uid", ONE, "UID", "user id in the container [yours]", short="u"),
    Option("gid", ONE, "GID", "group id in the container [yours]", short="g"),
    Option("storage", ONE, "DIR", "where images by name are [/var/tmp/$USER.ch]", short="s"),
    Option("verbose", OPTIONAL, "LEVEL", "say what is done; 2: in detail", short="v", bare="1"),
    Option("quiet", FLAG, "", "no warnings", where=COMMAND, short="q"),
    Option("join", FLAG, "", "share one container among this node's peers", where=COMMAND, short="j"),
    Option("join-ct", ONE, "N", "number of peers [this node's task count]; implies --join", where=COMMAND),
    Option("join-tag", ONE, "TAG", "name of the join [from job and step]; implies --join", where=COMMAND),
    Option("join-pid", ONE, "PID", "enter the container of this process", where=COMMAND),
    Option("join-timeout", ONE, "SECONDS", "how long to wait for peers [30]", where=COMMAND),
)  # fmt: skip

BY_NAME = {option.name: option for option in OPTIONS}

_YES = ("1", "yes", "true", "on")
_NO = ("0", "no", "false", "off")


class Bind:
    """A bind mount that was asked for: source on the host, destination inside."""

    __slots__ = ("dst", "label", "src")

    def __init__(self, src: str, dst: str, label: str = "") -> None:
        self.src = src
        self.dst = dst
        self.label = label

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bind) and (self.src, self.dst) == (other.src, other.dst)

    def __hash__(self) -> int:
        return hash((self.src, self.dst))

    def __repr__(self) -> str:
        return f"Bind({self.src!r}, {self.dst!r})"


class Spec:
    """What a container shall be, as asked for: checked for form, not against the node."""

    __slots__ = (
        "binds", "cd", "env_expand", "env_rules", "gid", "home", "image", "join", "join_count", "join_pid",
        "join_tag", "join_timeout", "labels", "passwd", "private_tmp", "storage", "uid", "verbosity", "write",
        "write_fake",
    )  # fmt: skip

    def __init__(self, image: str) -> None:
        self.image = image
        self.labels: dict[str, str] = {}  # how its giver knows each option
        self.binds: list[Bind] = []
        self.cd: str | None = None
        self.env_rules: list[tuple[str, str]] = []
        self.env_expand = True
        self.private_tmp = False
        self.passwd = True
        self.write = False
        self.write_fake: str | None = None
        self.home = False
        self.uid: int | None = None
        self.gid: int | None = None
        self.storage: str | None = None
        self.verbosity = 0
        self.join = False
        self.join_count: int | None = None
        self.join_tag: str | None = None
        self.join_pid: int | None = None
        self.join_timeout = 30.0


class Setting:
    """One option as given: name, value, and the words by which its giver knows it."""

    __slots__ = ("label", "name", "value")

    def __init__(self, name: str, value: str, label: str) -> None:
        self.name = name
        self.value = value
        self.label = label

    def wrong(self, why: str) -> UsageError:
        """Return the error that names the option, its value and the reason."""
        return UsageError(f"{self.label}={self.value}: {why}")


def make(image: str | None, settings: Iterable[Setting], image_label: str = "--ch-image") -> Spec:
    """Return the Spec for `settings` in the order given; UsageError names the culprit."""
    spec = Spec(image or "")
    given: dict[str, Setting] = {}
    for setting in settings:
        option = BY_NAME[setting.name]
        if "\0" in setting.value or "\n" in setting.value:
            raise setting.wrong("has a newline or NUL in it")
        if option.kind != LIST:
            given[setting.name] = setting
        _PARSERS[setting.name](spec, setting)
        spec.labels[setting.name] = setting.label
    if not spec.image and spec.join_pid is None:
        raise UsageError(f"{image_label}: an image is required")
    _check_combination(spec, given)
    return spec


def _check_combination(spec: Spec, given: Mapping[str, Setting]) -> None:
    if spec.write and spec.write_fake is not None:
        raise given["write"].wrong(f"contradicts {given['write-fake'].label}")
    if spec.write and spec.home:
        raise given["write"].wrong(f"contradicts {given['home'].label}, which implies write-fake")
    if spec.home and spec.write_fake is None:
        spec.write_fake = DEFAULT_WRITE_FAKE
    if spec.join_pid is not None and spec.join:
        raise given["join-pid"].wrong("contradicts --join, --join-ct and --join-tag")


def boolean(setting: Setting) -> bool:
    """Return the truth of a flag's value; UsageError if it is neither yes nor no."""
    word = setting.value.lower()
    if word in _YES:
        return True
    if word in _NO:
        return False
    raise setting.wrong("neither yes nor no")


def _image(spec: Spec, setting: Setting) -> None:
    if not setting.value:
        raise setting.wrong("the image's name is empty")
    spec.image = setting.value


def split_commas(text: str) -> list[str]:
    """Split at commas; a backslash keeps the comma behind it."""
    if "\\," not in text:
        return text.split(",")
    return [part.replace("\0", ",") for part in text.replace("\\,", "\0").split(",")]


def _bind(spec: Spec, setting: Setting) -> None:
    # Only the plugin's option is split: on a command line one repeats it.
    parts = [setting.value] if setting.label.startswith("--bind") else split_commas(setting.value)
    for part in parts:
        src, _, dst = part.partition(":")
        dst = dst or src
        if not src:
            raise setting.wrong("the source of a bind is empty")
        if not src.startswith("/") and dst == src:
            raise setting.wrong("a relative source needs a destination")
        if not dst.startswith("/"):
            raise setting.wrong(f"the destination is not absolute: {dst}")
        spec.binds.append(Bind(src, dst, f"{setting.label}={part}"))


def _cd(spec: Spec, setting: Setting) -> None:
    if not setting.value:
        raise setting.wrong("the directory's name is empty")
    spec.cd = setting.value


def _set_env(spec: Spec, setting: Setting) -> None:
    name, equals, _ = setting.value.partition("=")
    if not setting.value or (equals and not name):
        raise setting.wrong("the variable's name is empty")
    spec.env_rules.append(("set" if equals else "file", setting.value))


def _unset_env(spec: Spec, setting: Setting) -> None:
    if not setting.value:
        raise setting.wrong("the pattern is empty")
    spec.env_rules.append(("unset", setting.value))


def _env_no_expand(spec: Spec, setting: Setting) -> None:
    spec.env_expand = not boolean(setting)


def _private_tmp(spec: Spec, setting: Setting) -> None:
    spec.private_tmp = boolean(setting)


def _no_passwd(spec: Spec, setting: Setting) -> None:
    spec.passwd = not boolean(setting)


def _write(spec: Spec, setting: Setting) -> None:
    spec.write = boolean(setting)


def _write_fake(spec: Spec, setting: Setting) -> None:
    text = setting.value.lower()
    if text in ("no", "off", "false"):
        spec.write_fake = None
        return
    if text in ("yes", "on", "true", "1"):
        spec.write_fake = DEFAULT_WRITE_FAKE
        return
    digits = text[:-1] if text and text[-1] in "kmgt%" else text
    if not (digits.isascii() and digits.isdigit()) or int(digits) == 0 or len(digits) > 15:
        raise setting.wrong("not a size (a number, with K, M, G, T or % behind it)")
    if text[-1] == "%" and int(digits) > 100:
        raise setting.wrong("more than 100 % of memory")
    spec.write_fake = text


def _home(spec: Spec, setting: Setting) -> None:
    spec.home = boolean(setting)


def number(setting: Setting, low: int, high: int) -> int:
    """Return the value as a whole number from `low` to `high`; UsageError if it isn't."""
    text = setting.value
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or not low <= int(text) <= high:
        raise setting.wrong(f"not a whole number from {low} to {high}")
    return int(text)


def _uid(spec: Spec, setting: Setting) -> None:
    spec.uid = number(setting, 0, MAX_ID)


def _gid(spec: Spec, setting: Setting) -> None:
    spec.gid = number(setting, 0, MAX_ID)


def _storage(spec: Spec, setting: Setting) -> None:
    if not setting.value:
        raise setting.wrong("the directory's name is empty")
    spec.storage = setting.value


def _verbose(spec: Spec, setting: Setting) -> None:
    spec.verbosity = number(setting, 0, 9)


def _quiet(spec: Spec, setting: Setting) -> None:
    if boolean(setting):
        spec.verbosity = -1


def _join(spec: Spec, setting: Setting) -> None:
    spec.join = boolean(setting)


def _join_ct(spec: Spec, setting: Setting) -> None:
    spec.join_count = number(setting, 1, 1 << 20)
    spec.join = True


def _join_tag(spec: Spec, setting: Setting) -> None:
    spec.join_tag = setting.value
    spec.join = True


def _join_pid(spec: Spec, setting: Setting) -> None:
    spec.join_pid = number(setting, 1, 1 << 22)


def _join_timeout(spec: Spec, setting: Setting) -> None:
    spec.join_timeout = float(number(setting, 1, 86400))


_PARSERS = {
    "image": _image,
    "bind": _bind,
    "cd": _cd,
    "set-env": _set_env,
    "unset-env": _unset_env,
    "env-no-expand": _env_no_expand,
    "private-tmp": _private_tmp,
    "no-passwd": _no_passwd,
    "write": _write,
    "write-fake": _write_fake,
    "home": _home,
    "uid": _uid,
    "gid": _gid,
    "storage": _storage,
    "verbose": _verbose,
    "quiet": _quiet,
    "join": _join,
    "join-ct": _join_ct,
    "join-tag": _join_tag,
    "join-pid": _join_pid,
    "join-timeout": _join_timeout,
}


def check_complete() -> None:
    """Fail when an option of the table has no parser, or the reverse."""
    assert set(_PARSERS) == set(BY_NAME)


def parse_request(text: str) -> list[Setting]:
    """Return the settings of a step's request: lines `NAME=VALUE` from the plugin.

    UsageError on a line that this version doesn't know: an older or newer
    plugin on the submitting machine must not be half obeyed.
    """
    settings = []
    for line in text.split("\n"):
        if not line:
            continue
        name, _, value = line.partition("=")
        option = BY_NAME.get(name)
        if option is None or not option.where & PLUGIN:
            raise UsageError(f"--ch-{name}: this node's slurm_ch doesn't know the option")
        settings.append(Setting(name, value, f"--ch-{name}"))
    return settings


class Site:
    """What plugstack.conf's arguments say: the site's part of every container."""

    __slots__ = ("binds", "defaults", "forbidden", "squashfuse", "storage")

    def __init__(self) -> None:
        self.binds: list[Bind] = []
        self.defaults: list[Setting] = []
        self.forbidden: set[str] = set()
        self.squashfuse: str | None = None
        self.storage: str | None = None


def parse_site(arguments: Sequence[str]) -> Site:
    """Return the Site for plugstack.conf's `arguments`; UsageError names the wrong one."""
    site = Site()
    for argument in arguments:
        key, equals, value = argument.partition("=")
        setting = Setting(key, value, f"plugstack.conf: {key}")
        if not equals or not value:
            raise UsageError(f"plugstack.conf: {argument}: a value is missing")
        if key in ("python", "launcher", "ch_join"):
            continue  # the plugin's own
        if key == "storage":
            site.storage = value
        elif key == "squashfuse":
            site.squashfuse = value
        elif key == "bind":
            scratch = Spec("/")
            _bind(scratch, setting)
            site.binds += scratch.binds
        elif key == "default":
            site.defaults.append(_site_default(setting))
        elif key == "forbid":
            site.forbidden |= _site_forbidden(setting)
        else:
            raise UsageError(f"plugstack.conf: {argument}: unknown argument")
    return site


def _site_default(setting: Setting) -> Setting:
    name, equals, value = setting.value.partition("=")
    option = BY_NAME.get(name)
    if option is None or not option.where & PLUGIN or name == "image":
        raise setting.wrong("not an option that can have a default")
    if not equals:
        if option.kind not in (FLAG, OPTIONAL):
            raise setting.wrong("the option needs a value")
        value = option.bare
    return Setting(name, value, f"plugstack.conf: default={name}")


def _site_forbidden(setting: Setting) -> set[str]:
    names = set(setting.value.split(","))
    unknown = sorted(n for n in names if n not in BY_NAME or n == "image")
    if unknown:
        raise setting.wrong(f"no such option: {', '.join(unknown)}")
    return names


def meet(site: Site, request: Sequence[Setting]) -> Spec:
    """Return the Spec that site and user make together.

    The user's word replaces the site's default of the same option; the site's
    binds always come, before the user's.
    """
    asked = {setting.name for setting in request}
    for setting in request:
        if setting.name in site.forbidden:
            raise setting.wrong("not allowed at this site")
    defaults = [setting for setting in site.defaults if setting.name not in asked]
    image = next((s.value for s in reversed(request) if s.name == "image"), None)
    spec = make(image, [*defaults, *request])
    spec.binds[:0] = site.binds
    if spec.storage is None:
        spec.storage = site.storage
    return spec
