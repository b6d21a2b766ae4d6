# SPDX-License-Identifier: Apache-2.0
"""The table of options.

The command line (click), the plugin's C table (generated from this one) and the
launcher all use OPTIONS; `parsers` has a parser for each option's value.
"""

from __future__ import annotations

from .. import log
from ..agreement import IMAGE_ENVIRONMENT, JOIN_SECONDS
from ..errors import UsageError

# Kinds of options.
ONE = "one"  # needs a value; the last one counts
LIST = "list"  # has a value, and may be repeated; all count
FLAG = "flag"  # yes or no; without a value it means yes
OPTIONAL = "optional"  # one value; without a value it means `bare`

DEFAULT_WRITE_FAKE = "12%"

PLUGIN = 1  # --ch-NAME of srun, sbatch, salloc
COMMAND = 2  # --NAME of `slurm-ch run`
BOTH = PLUGIN | COMMAND
SITE = 4  # an argument in plugstack.conf


class Option:
    """One option.

    `arg`: the value's name in the help. `where`: PLUGIN, COMMAND or both. `short`: a letter, or "". `bare`: the value
    if the option is given without one; None if it needs one. `sure`: without a value, the option is valid with every
    image and in every combination; a request of such options alone need not be checked at submission. `paths`: the
    kind of paths in the value, for anchor.py.
    """

    __slots__ = ("arg", "bare", "help", "kind", "name", "paths", "short", "sure", "where")

    def __init__(
        self,
        name: str,
        kind: str,
        arg: str,
        help: str,
        *,
        where: int = BOTH,
        short: str = "",
        bare: str | None = None,
        sure: bool = False,
        paths: str = "none",
    ) -> None:
        self.name = name
        self.kind = kind
        self.arg = arg
        self.help = help
        self.where = where
        self.short = short
        self.bare = "yes" if kind == FLAG else bare
        self.sure = sure
        self.paths = paths

    @property
    def variable(self) -> str:
        """The option's part in the name of the environment variable for its default, after the prefix."""
        return self.name.upper().replace("-", "_")


# Slurm cuts a plugin option's help at 75 characters.
OPTIONS = (
    Option("image", ONE, "IMAGE", "run in this image: SquashFS file, directory, docker://NAME or stored name",
           where=PLUGIN, paths="image"),
    Option("bind", LIST, "SRC[:DST[:FLAGS]]",
           "show the host's SRC at DST; FLAGS: ro, nosuid, nodev, noexec; repeatable",
           short="b", paths="binds"),
    Option("cd", ONE, "DIR", "start the command in this directory of the container", short="c"),
    Option("set-env", LIST, "NAME=VALUE|FILE",
           "set a variable, or those in FILE; bare: in the image's environment file",
           bare=IMAGE_ENVIRONMENT, paths="file"),
    Option("set-env0", LIST, "NAME=VALUE|FILE", "like set-env, but each assignment in FILE ends with NUL",
           bare=IMAGE_ENVIRONMENT, paths="file"),
    Option("unset-env", LIST, "GLOB", "unset the variables whose names match this shell pattern"),
    Option("env-no-expand", FLAG, "", "don't expand $NAME in the values of set-env", sure=True),
    Option("image-env", OPTIONAL, "yes|no", "apply the image's environment [if pulled, or from Apptainer or enroot]",
           bare="yes"),
    Option("private-tmp", FLAG, "", "use a fresh /tmp and /var/tmp instead of the host's", short="t", sure=True),
    Option("no-passwd", FLAG, "", "leave the image's /etc/passwd and /etc/group as they are", sure=True),
    Option("write", FLAG, "", "make a directory image writeable; changes stay in it", short="w"),
    Option("write-fake", OPTIONAL, "SIZE",
           f"make the image writeable; changes are in memory and are lost [{DEFAULT_WRITE_FAKE} of it]",
           short="W", bare=DEFAULT_WRITE_FAKE),
    Option("overlay", ONE, "DIR", "make the image writeable; changes are kept in DIR, and used again",
           paths="directory"),
    Option("broadcast", OPTIONAL, "DIR", "copy the image to each node's DIR once per job; bare: /tmp or the site's",
           where=PLUGIN, bare="yes"),
    Option("save", ONE, "FILE", "pack the container into FILE when all tasks have ended with status 0", where=PLUGIN,
           paths="directory"),
    Option("home", FLAG, "", "show your home at its own path and at /home/$USER (implies write-fake)"),
    Option("device", LIST, "KIND|FILE", "add devices: CDI kind, KIND=NAME, all or a CDI file (implies write-fake)",
           short="d", paths="devices"),
    Option("cdi-dirs", ONE, "DIRS", "directories of CDI files, separated by colons [/etc/cdi:/var/run/cdi]",
           paths="directories"),
    Option("uid", ONE, "UID", "user id in the container [yours]", short="u"),
    Option("gid", ONE, "GID", "group id in the container [yours]", short="g"),
    Option("storage", ONE, "DIR", "directory of stored images [$CH_IMAGE_STORAGE or /var/tmp/$USER.ch]", short="s",
           paths="directory"),
    Option("pull", ONE, "WHEN", "when to pull: auto, always, cached (don't ask the registry), never [auto]"),
    Option("platform", ONE, "OS/ARCH", "pull the image for this platform, such as linux/arm64 [this machine's]"),
    Option("relay", FLAG, "", "make srun, squeue etc. work in the container [in batch scripts only]", where=PLUGIN),
    Option("seccomp", FLAG, "", "emulate root: chown, setuid, mknod etc. succeed without effect"),
    Option("keep-keyring", FLAG, "", "keep your session keyring (Kerberos, AFS) instead of a fresh one"),
    Option("unshare", LIST, "KIND", "separate namespaces for the container: net, ipc, uts; repeat or use commas",
           where=PLUGIN),
    Option("userns", FLAG, "", "allow user namespaces in the container (bwrap, podman, Nix, Chromium)"),
    Option("fuse-single", FLAG, "", "serve a SquashFS image with a single thread"),
    Option("verbose", OPTIONAL, "LEVEL", "report what is done; 2: in detail; 3: each variable", short="v", bare="1"),
    Option("quiet", OPTIONAL, "LEVEL", "hide CMD's output; 2: warnings too; 3: CMD's standard error too",
           where=COMMAND, short="q", bare="1"),
    Option("color", OPTIONAL, "WHEN", "color messages: auto, yes, no; bare: yes [auto]", where=COMMAND, bare="yes"),
    Option("mount", ONE, "DIR", "accepted for scripts that call ch-run; not needed", where=COMMAND, short="m"),
    Option("join", FLAG, "", "share one container with the other tasks or ranks on this node",
           where=COMMAND, short="j"),
    Option("join-ct", ONE, "N", "how many processes share it [as Slurm or mpirun says]; implies --join", where=COMMAND),
    Option("join-tag", ONE, "TAG", "TAG that the processes have in common [job and step]; implies --join",
           where=COMMAND),
    Option("join-pid", ONE, "PID", "run in the container of this process", where=COMMAND),
    Option("join-timeout", ONE, "SECONDS", f"how long to wait for the other processes [{JOIN_SECONDS}]", where=COMMAND),
)  # fmt: skip

BY_NAME = {option.name: option for option in OPTIONS}

# Options that may differ between tasks that share a container; all others are the container's.
OF_EACH_TASK = frozenset((
    "cd", "set-env", "set-env0", "unset-env", "env-no-expand", "image-env", "home", "device", "seccomp", "keep-keyring",
    "verbose", "quiet", "color",
))  # fmt: skip


class Setting:
    """One option as it was given.

    `label`: the option as its user knows it, for messages. `origin`: PLUGIN, COMMAND or SITE.
    """

    __slots__ = ("label", "name", "origin", "value")

    def __init__(self, name: str, value: str, label: str, origin: int = COMMAND) -> None:
        self.name = name
        self.value = value
        self.label = label
        self.origin = origin

    def parts(self) -> list[str]:
        """Return the parts of the value, which is split at commas unless a backslash precedes them.

        A value from a command line is not split: there, the option is repeated instead.
        """
        if self.origin == COMMAND:
            return [self.value]
        if "\\," not in self.value:
            return self.value.split(",")
        return [part.replace("\0", ",") for part in self.value.replace("\\,", "\0").split(",")]

    def wrong(self, why: str) -> UsageError:
        """Return the error that names the option, its value and the reason."""
        return UsageError(log.printable(f"{self.label}={self.value}: {why}"))
