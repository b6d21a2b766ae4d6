# SPDX-License-Identifier: Apache-2.0
"""Turn options into a `Spec`, with one parser per option. Reads no file."""

from __future__ import annotations

from .. import agreement
from ..errors import UsageError
from .options import BY_NAME, DEFAULT_WRITE_FAKE, LIST, PLUGIN, SITE, Setting
from .spec import MOUNT_FLAGS, Bind, Spec, check_combination

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

NAMESPACES = ("net", "ipc", "uts")
MAX_ID = 2**32 - 2
_YES = ("1", "yes", "true", "on")


def make(image: str | None, settings: Iterable[Setting], image_label: str = "--ch-image") -> Spec:
    """Return the Spec for `settings` in the order given; UsageError names the wrong option.

    `image_label`: the option or argument to name if the image is missing.
    """
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
    check_combination(spec, {name: f"{one.label}={one.value}" for name, one in given.items()})
    return spec


def boolean(setting: Setting) -> bool:
    """Return a flag's value as a boolean; UsageError if it is neither yes nor no."""
    word = setting.value.lower()
    if word in _YES:
        return True
    if word in agreement.NO_WORDS:
        return False
    raise setting.wrong("neither yes nor no")


def _image(spec: Spec, setting: Setting) -> None:
    if not setting.value:
        raise setting.wrong("the image's name is empty")
    # DIRECTORY/./IMAGE: a default for steps, given in another directory (anchor.py).
    directory, anchor, given = setting.value.partition("/./")
    anchored = anchor and given and directory.startswith("/")
    spec.image, spec.image_directory = (given, directory) if anchored else (setting.value, None)
    spec.image = path(setting, spec.image)


def path(setting: Setting, text: str) -> str:
    r"""Return a path without escapes; UsageError for `~` and `$NAME`, which only a shell expands.

    `\$`, and `\~` at the beginning, stand for these characters in a path.
    """
    if "$" not in text and text[:1] != "~" and text[:2] != "\\~":
        return text
    if text.startswith("~"):
        raise setting.wrong(
            f"{text.partition('/')[0]} is not expanded here, and no shell does it after a =, in quotes or in an #SBATCH"
            " line: write the whole path"
        )
    before, dollar, after = text.partition("$")
    while dollar:
        if before[-1:] != "\\" and (after[:1].isalpha() or after[:1] in ("_", "{")):
            name = _name(after)
            raise setting.wrong(
                f"${name} is not expanded here, and no shell does it in single quotes or in an #SBATCH line: write the"
                " whole path"
            )
        before, dollar, after = after.partition("$")
    text = text.replace("\\$", "$")
    return text[1:] if text.startswith("\\~") else text


def _name(text: str) -> str:
    """Return the variable's name at the beginning of `text`, with its braces."""
    if text.startswith("{"):
        return text.partition("}")[0] + "}"
    end = 0
    while text[end : end + 1].isalnum() or text[end : end + 1] == "_":
        end += 1
    return text[:end]


# Flags that are accepted and change nothing: mounts are always recursive and private, and labels stay the host's.
_IGNORED_FLAGS = frozenset((
    "rw", "bind", "rbind", "private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable",
    "z", "Z",
))  # fmt: skip


def bind(spec: Spec, setting: Setting) -> None:
    """Add the binds of an option to `spec`; UsageError if one is invalid."""
    for part in setting.parts():
        fields = _fields(part)
        if len(fields) > 3:
            raise setting.wrong(f"more than SRC:DST:FLAGS (a colon in a path is written \\:): {part}")
        src, dst = fields[0], fields[1] if len(fields) > 1 else ""
        if not src:
            raise setting.wrong("the source of a bind is empty")
        if len(fields) > 1 and not dst:
            raise setting.wrong("the destination of a bind is empty")
        src, dst = path(setting, src), path(setting, dst or src)
        if not src.startswith("/") and dst == src:
            raise setting.wrong("a relative source needs a destination")
        if not dst.startswith("/"):
            hint = f" (flags are third: {src}:{src}:{dst})" if _are_flags(dst) else ""
            raise setting.wrong(f"the destination is not absolute: {dst}{hint}")
        if all(name in ("", ".", "..") for name in dst.split("/")):
            raise setting.wrong("the destination can't be /")
        flags = _flags(setting, fields[2]) if len(fields) > 2 else ()
        spec.binds.append(Bind(src, dst, f"{setting.label}={part}", flags))


def _fields(text: str) -> list[str]:
    """Split `text` at colons, unless a backslash precedes them; unescape colons and commas."""
    if "\\" not in text:
        return text.split(":")
    return [one.replace("\0", ":").replace("\\,", ",") for one in text.replace("\\:", "\0").split(":")]


def _are_flags(text: str) -> bool:
    return all(word in MOUNT_FLAGS or word in _IGNORED_FLAGS for word in text.replace(",", "+").split("+"))


def _flags(setting: Setting, text: str) -> tuple[str, ...]:
    """Return those of a bind's flags that are in MOUNT_FLAGS; UsageError for unknown ones."""
    words = text.replace(",", "+").split("+")
    for word in words:
        if word not in MOUNT_FLAGS and word not in _IGNORED_FLAGS:
            raise setting.wrong(
                f"not a flag of a bind, which are {', '.join(('rw', *MOUNT_FLAGS))}: {word or 'nothing'}"
            )
    if "ro" in words and "rw" in words:
        raise setting.wrong("ro contradicts rw")
    return tuple(word for word in MOUNT_FLAGS if word in words)


def _cd(spec: Spec, setting: Setting) -> None:
    if not setting.value:
        raise setting.wrong("the directory's name is empty")
    spec.cd = path(setting, setting.value)


def _set_env(spec: Spec, setting: Setting) -> None:
    _add_rule(spec, setting, "file")


def _set_env0(spec: Spec, setting: Setting) -> None:
    _add_rule(spec, setting, "file0")


def _add_rule(spec: Spec, setting: Setting, kind_of_file: str) -> None:
    name, equals, _ = setting.value.partition("=")
    if not setting.value or (equals and not name):
        raise setting.wrong("the variable's name is empty")
    if equals and any(letter.isspace() for letter in name):
        raise setting.wrong("the variable's name has a blank in it")
    # A user's value is expanded by ch-run's rules. In a site's value, $NAME is expanded anywhere.
    if not equals:
        path(setting, setting.value)
    kind = "set" if setting.origin != SITE else "set-anywhere"
    spec.env_rules.append((kind if equals else kind_of_file, setting.value))


def _unset_env(spec: Spec, setting: Setting) -> None:
    if not setting.value:
        raise setting.wrong("the pattern is empty")
    spec.env_rules.append(("unset", setting.value))


def _env_no_expand(spec: Spec, setting: Setting) -> None:
    spec.env_expand = not boolean(setting)


def _image_env(spec: Spec, setting: Setting) -> None:
    spec.image_env = boolean(setting)


def _private_tmp(spec: Spec, setting: Setting) -> None:
    spec.private_tmp = boolean(setting)


def _no_passwd(spec: Spec, setting: Setting) -> None:
    spec.passwd = not boolean(setting)


def _write(spec: Spec, setting: Setting) -> None:
    spec.write = boolean(setting)


def says_no(write_fake: Setting) -> bool:
    """Whether a value of write-fake turns it off. "0" doesn't: it is an invalid size."""
    return write_fake.value != "0" and write_fake.value.lower() in agreement.NO_WORDS


def _write_fake(spec: Spec, setting: Setting) -> None:
    text = setting.value.lower()
    if says_no(setting):
        spec.write_fake = None
        return
    if text in _YES:
        spec.write_fake = DEFAULT_WRITE_FAKE
        return
    digits = text[:-1] if text and text[-1] in "kmgt%" else text
    if not (digits.isascii() and digits.isdigit()) or int(digits) == 0 or len(digits) > 15:
        raise setting.wrong("not a size (a number, or a number followed by K, M, G, T or %)")
    if text[-1] == "%" and int(digits) > 100:
        raise setting.wrong("more than 100 % of memory")
    spec.write_fake = text


def _overlay(spec: Spec, setting: Setting) -> None:
    if not setting.value:
        raise setting.wrong("the directory's name is empty")
    spec.overlay = path(setting, setting.value)


def _broadcast(spec: Spec, setting: Setting) -> None:
    word = setting.value.lower()
    if word in agreement.NO_WORDS:
        spec.broadcast = None
    elif word in _YES:
        spec.broadcast = ""
    else:
        spec.broadcast = path(setting, setting.value)
        if not spec.broadcast.startswith("/"):
            raise setting.wrong("neither yes, no nor an absolute path")


def _save(spec: Spec, setting: Setting) -> None:
    if not setting.value or setting.value.endswith("/"):
        raise setting.wrong("not the name of a file")
    spec.save = path(setting, setting.value)


def _home(spec: Spec, setting: Setting) -> None:
    spec.home = boolean(setting)


def number(setting: Setting, low: int, high: int) -> int:
    """Return the value as a whole number from `low` to `high`; UsageError if it isn't."""
    text = setting.value
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or not low <= int(text) <= high:
        raise setting.wrong(f"not a whole number from {low} to {high}")
    return int(text)


def _device(spec: Spec, setting: Setting) -> None:
    # Loaded only for this.
    from ..devices import names as cdinames

    for part in setting.parts():
        if part == cdinames.NONE:
            continue
        path(setting, part)
        if part != cdinames.EVERY and not cdinames.is_file(part):
            try:
                cdinames.split(part)
            except ValueError:
                raise setting.wrong(f"{cdinames.WHAT}: {part}") from None
        spec.devices.append((part, setting.label))
        spec.env_rules.append(("device", part))


def _cdi_dirs(spec: Spec, setting: Setting) -> None:
    if not setting.value.strip(":"):
        raise setting.wrong("names no directory")
    spec.cdi_dirs = ":".join(path(setting, one) for one in setting.value.split(":"))


def _uid(spec: Spec, setting: Setting) -> None:
    spec.uid = number(setting, 0, MAX_ID)


def _gid(spec: Spec, setting: Setting) -> None:
    spec.gid = number(setting, 0, MAX_ID)


def _storage(spec: Spec, setting: Setting) -> None:
    if not setting.value:
        raise setting.wrong("the directory's name is empty")
    spec.storage = path(setting, setting.value)


def _pull(spec: Spec, setting: Setting) -> None:
    if setting.value not in ("auto", "always", "cached", "never"):
        raise setting.wrong("not one of auto, always, cached, never")
    spec.pull = setting.value


def _platform(spec: Spec, setting: Setting) -> None:
    parts = setting.value.split("/")
    if len(parts) not in (2, 3) or not all(part.isascii() and part.isalnum() for part in parts):
        raise setting.wrong("not a platform, such as linux/arm64")
    spec.platform = setting.value


def _relay(spec: Spec, setting: Setting) -> None:
    spec.relay = boolean(setting)


def _verbose(spec: Spec, setting: Setting) -> None:
    spec.verbosity = number(setting, 0, 3)


def _quiet(spec: Spec, setting: Setting) -> None:
    spec.verbosity = -number(setting, 0, 3)


def _color(spec: Spec, setting: Setting) -> None:
    words = {
        None: ("auto", "tty", "if-tty"),
        True: ("yes", "always", "force"),
        False: ("no", "never", "none"),
    }
    for meaning, names in words.items():
        if setting.value in names:
            spec.color = meaning
            return
    raise setting.wrong("neither auto, yes nor no")


def _mount(spec: Spec, setting: Setting) -> None:
    if not setting.value:
        raise setting.wrong("the mount point's name is empty")
    spec.mount_point = path(setting, setting.value)


def _seccomp(spec: Spec, setting: Setting) -> None:
    spec.seccomp = boolean(setting)


def _keep_keyring(spec: Spec, setting: Setting) -> None:
    spec.keep_keyring = boolean(setting)


def _unshare(spec: Spec, setting: Setting) -> None:
    for kind in setting.parts():
        if kind not in NAMESPACES:
            raise setting.wrong(f"not a kind of namespace, which are {', '.join(NAMESPACES)}: {kind or 'nothing'}")
        if kind not in spec.unshare:
            spec.unshare = (*spec.unshare, kind)


def _userns(spec: Spec, setting: Setting) -> None:
    spec.userns = boolean(setting)


def _fuse_single(spec: Spec, setting: Setting) -> None:
    spec.fuse_single = boolean(setting)


def _join(spec: Spec, setting: Setting) -> None:
    spec.join = boolean(setting)


def _join_ct(spec: Spec, setting: Setting) -> None:
    spec.join_count = number(setting, 1, 1 << 20)
    spec.join = True


def _join_tag(spec: Spec, setting: Setting) -> None:
    if not setting.value:
        raise setting.wrong("the tag is empty")
    spec.join_tag = setting.value
    spec.join = True


def _join_pid(spec: Spec, setting: Setting) -> None:
    spec.join_pid = number(setting, 1, 1 << 22)


def _join_timeout(spec: Spec, setting: Setting) -> None:
    spec.join_timeout = float(number(setting, 1, agreement.JOIN_SECONDS_MAX))


_PARSERS = {
    "image": _image,
    "bind": bind,
    "cd": _cd,
    "set-env": _set_env,
    "set-env0": _set_env0,
    "unset-env": _unset_env,
    "env-no-expand": _env_no_expand,
    "image-env": _image_env,
    "private-tmp": _private_tmp,
    "no-passwd": _no_passwd,
    "write": _write,
    "write-fake": _write_fake,
    "overlay": _overlay,
    "broadcast": _broadcast,
    "save": _save,
    "home": _home,
    "device": _device,
    "cdi-dirs": _cdi_dirs,
    "uid": _uid,
    "gid": _gid,
    "storage": _storage,
    "pull": _pull,
    "platform": _platform,
    "relay": _relay,
    "verbose": _verbose,
    "quiet": _quiet,
    "color": _color,
    "mount": _mount,
    "seccomp": _seccomp,
    "keep-keyring": _keep_keyring,
    "fuse-single": _fuse_single,
    "unshare": _unshare,
    "userns": _userns,
    "join": _join,
    "join-ct": _join_ct,
    "join-tag": _join_tag,
    "join-pid": _join_pid,
    "join-timeout": _join_timeout,
}


def check_complete() -> None:
    """Fail if an option of the table has no parser, or a parser no option."""
    assert set(_PARSERS) == set(BY_NAME)


def check_nothing_to_pull(spec: Spec) -> None:
    """Raise UsageError if a spec whose image is a path has an option about pulling."""
    for name, value in (("pull", spec.pull), ("platform", spec.platform)):
        if value is not None:
            problem = f"{spec.image} is not a reference, so nothing is pulled"
            raise UsageError(f"{spec.labels[name]}={value}: {problem}; leave the option out")


def located(text: str) -> tuple[str, str] | None:
    """Return the host that pulled the image, and the file's path, if a step's request has them; else None."""
    for line in text.split("\n"):
        if line.startswith(agreement.LOCATED_LINE):
            host, _, path = line[len(agreement.LOCATED_LINE) :].partition(":")
            return host, path
    return None


def broadcast_to(text: str) -> str | None:
    """Return the path of the image's copies on the nodes' own disks, if a step's request has it; else None."""
    for line in text.split("\n"):
        if line.startswith(agreement.BROADCAST_LINE):
            return line[len(agreement.BROADCAST_LINE) :]
    return None


def parse_request(text: str) -> list[Setting]:
    """Return the settings of a step's request, which is lines NAME=VALUE from the plugin.

    UsageError for an unknown option: if the submitting machine has another version of the
    plugin, no part of the request may be ignored.
    """
    settings = []
    for line in text.split("\n"):
        if not line or line.startswith((agreement.LOCATED_LINE, agreement.BROADCAST_LINE)):
            continue
        name, _, value = line.partition("=")
        option = BY_NAME.get(name)
        if option is None or not option.where & PLUGIN:
            raise UsageError(f"--ch-{name}: this node's slurm_ch doesn't know the option")
        settings.append(Setting(name, value, f"--ch-{name}", PLUGIN))
    return settings
