# SPDX-License-Identifier: Apache-2.0
"""What the programs in C and those in Python agree on, in one place.

`spank/agreement.h` is generated from this file: each assignment becomes a
`#define`, each comment line a comment. So the file holds nothing else, and
imports nothing. What each program does with a value is documented there.
"""

# Exit codes of ours; the user's command has its own.
EXIT_SETUP = 31
EXIT_JOIN = 32
EXIT_LAUNCHER_DIED = 33
EXIT_USAGE = 64
# Called as ch-run: the command can't be executed, whatever the reason.
EXIT_CH_RUN_COMMAND = 49
EXIT_NO_FEATURE = 87
EXIT_CANNOT_EXECUTE = 126
EXIT_NOT_FOUND = 127

# Each kind of message between the programs starts with its own word and a number, which
# changes when an older program would misread the rest.
FACTS_MAGIC = "slurm_ch facts 1"
PLAN_MAGIC = "slurm_ch plan 1"
TICKET_MAGIC = "slurmch1"

# Facts: what the launcher and the checker are told. Records that end with NUL: a kind,
# then the text. From the plugin come arguments and a request, from `slurm-ch run` words.
FACT_ARGUMENT = "a"  # one of plugstack.conf's arguments
FACT_REQUEST = "r"  # the options as given, lines NAME=VALUE
FACT_VARIABLE = "e"  # NAME=VALUE of the job's environment
FACT_TASKS = "t"  # how many tasks this node has
FACT_JOB = "j"  # the job's number, of a het job that of its part: where the container has a name
FACT_COMMAND = "c"  # srun, sbatch or salloc, to the checker: its program may have another name
FACT_BROADCAST = "o"  # the job whose nodes are to have the image, to the checker
FACT_SCRIPT = "b"  # the batch script's path, in a batch step
FACT_WORD = "w"  # one of the words of `slurm-ch run` before the command: options, image
FACT_NAME = "n"  # the name that it was called by: CH_RUN has other defaults
FACT_LOCATED = "l"  # the file that the image's reference means, which Python has found

# The plan: what ch-join does to a task. Records that end with NUL: a kind, then the text.
PLAN_SET = "E"  # NAME=VALUE: set
PLAN_SET_ITEMS = "X"  # NAME=VALUE: set, with each item between colons that is $NAME expanded
PLAN_SET_ANYWHERE = "A"  # NAME=VALUE: set, with $NAME and ${NAME} expanded anywhere; a backslash keeps a $
PLAN_SET_DEFAULT = "N"  # NAME=VALUE: set, unless it is set already
PLAN_IF_STILL = "Y"  # NAME=VALUE: carry out the next record only if the task's variable still has this value
PLAN_UNSET = "U"  # unset the variables that match this shell pattern
PLAN_PATH = "P"  # give PATH /bin, or the directories that are text, where it lacks them; other text: but make no PATH
PLAN_TEMPORARY = "T"  # if TMPDIR or a similar variable names no directory, it is /tmp; text: without a warning
PLAN_DIRECTORY = "C"  # change to this directory, or fail
PLAN_USUAL_DIRECTORY = "D"  # without C: change to this directory, or to /
PLAN_LOST_DIRECTORY = "L"  # a message about a missing directory, in case the command was in it
PLAN_AS_SRUN = "W"  # a command that is not in PATH is looked for in the working directory
PLAN_IMAGES_DIRECTORY = "I"  # without C: where the image's own command starts
PLAN_LIKE_CH_RUN = "Q"  # exit with ch-run's codes
PLAN_VERBOSITY = "V"  # a level, below 0 for quiet
PLAN_COLOR = "K"  # color messages: always, or with IF_TERMINAL only on a terminal
PLAN_ROOT = "S"  # emulate root by seccomp; the option that asks for it, as given
PLAN_KEYRING = "R"  # keep the caller's session keyring, instead of the container's own

# Variables. Slurm passes on what starts with SLURM_ whatever --export says.
# The step's request, written where the user submits and read on the node: if an option is
# repeated, Slurm itself carries only the last value.
REQUEST_VARIABLE = "SLURM_CH_REQUEST"
# The command's first word, if the guard has replaced it.
COMMAND_VARIABLE = "SLURM_CH_COMMAND"
# Set by srun's side if --multi-prog may have been given; ch-join's path, if that is in front of each command.
MULTI_PROG_VARIABLE = "SLURM_CH_MULTI_PROG"
# The value of srun's or sbatch's --export, if it names variables.
EXPORTED_VARIABLE = "SLURM_CH_EXPORTED"
# ch-join's task: FD[:BROKER][ ARGV0|+ARGV0] (spank/ch-join/main.c).
JOIN_VARIABLE = "SLURM_CH_JOIN"
# For ch-join, where the container is to be saved: how many tasks must end well, behind SAVER_BATCH for a
# batch script; then, a line each, the option, FILE, and the site's arguments about packing.
SAVER_VARIABLE = "SLURM_CH_SAVER"
SAVER_BATCH = "b"
# The directory in which the user called the command; ch-join changes to it.
CWD_VARIABLE = "SLURM_CH_CWD"
# Prefix for a variable that a script in a container has changed, and that would break the host's
# programs: under this name it travels to the container of the script's step. Empty: unset.
RELAYED_PREFIX = "SLURM_CH_RELAYED_"
# Prefix for the name of an option: the variable with its default, for srun, sbatch and salloc.
SRUN_PREFIX = "SLURM_CH_"
SBATCH_PREFIX = "SBATCH_CH_"
SALLOC_PREFIX = "SALLOC_CH_"
PYXIS_PREFIX = "PYXIS_CONTAINER_"  # of pyxis' options, for all three

# What the checker answers where the image's name is a reference: this word, the reference with its
# digest; on a second line HOST:PATH where the image is a file already; and an end of line.
PIN_WORD = "PIN "
# In a request, besides the options: where HOST has put the file of the image, and under which path.
LOCATED_LINE = "located="
# In the request of an srun of several components that differ, before each one's: RANK:JOB, by which a
# node knows its step's (spank/plugin/components.c). No option has that name.
COMPONENT_LINE = "component="
# In a request: where the job's nodes have a copy of the image of their own; and what the checker answers where it has
# made one. A job's files begin with BROADCAST_FILE, in the site's directory if it names one, and UID-JOB-. Each is
# a copy, or with BROADCAST_NOTE at the end holds the path of one that is elsewhere.
BROADCAST_LINE = "broadcast-to="
BROADCAST_WORD = "AT "
BROADCAST_FILE = "/tmp/slurm_ch-image-"
BROADCAST_NOTE = ".at"
# How a reference begins, as opposed to a path: images in registries, archives and stores.
REFERENCE_BEGINNINGS = (
    "docker://", "oci:", "oci-archive:", "docker-archive:", "docker-daemon:", "containers-storage:", "dir:",
)  # fmt: skip

# Set in a container to the image; the host's commands don't get it.
RUNNING_VARIABLE = "CH_RUNNING"
# Where a program may take its directory for temporary files from.
TEMPORARY_VARIABLES = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")

# Files in an image, by which its own command and environment are found: as `slurm-ch pull` leaves them (the first as
# ch-image does; strings in the second, fourth and fifth end with NUL), and as Apptainer and enroot do.
IMAGE_ENVIRONMENT = "/ch/environment"
IMAGE_ENVIRONMENT0 = "/ch/environment0"
IMAGE_METADATA = "/ch/metadata.json"
IMAGE_ENTRYPOINT = "/ch/entrypoint"
IMAGE_COMMAND = "/ch/cmd"
APPTAINER_ENVIRONMENT = "/.singularity.d/env"
APPTAINER_START = "/.singularity.d/runscript"
ENROOT_START = "/etc/rc"

# The text of PLAN_COLOR if the task's own standard error decides.
IF_TERMINAL = "tty"

# Names of the command. The third is Python's, which has checked the words that come with it:
# a name, an interpreter, the file that the image's reference means (empty: it is none), and the words
# of `run` with options in full.
SLURM_CH = "slurm-ch"
CH_RUN = "ch-run"
CHECKED = "slurm-ch (checked)"
# Python's part of the command: in pip's directory of programs, and from where ch-join is. There
# its arguments are one of the names, how peers are to meet, and the words.
PYTHON_COMMAND = "slurm-ch-python"
PYTHON_PROGRAM = "../cli/program.py"
MEET_BY_SOCKET = "socket"
MEET_BY_NAME = "name"  # by posix_ipc's objects, where the kernel's policy refuses sockets

# A join: how many peers it may have, and which letters, how many, its tag. The timeout in seconds.
JOIN_MAX = 16384
TAG_MAX = 200
TAG_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
JOIN_SECONDS = 30
JOIN_SECONDS_MAX = 86400

# How many servers of one image another can wait behind; with more, some would begin side by side.
STANDBY_MAX = 32

# What MPICH's starter, Hydra, tells its ranks: how many of them are here; and its process that starts
# them, as far as the kernel keeps a name.
HYDRA_COUNT = "MPI_LOCALNRANKS"
HYDRA_PROXY = "hydra_pmi_proxy"

# Beginnings of paths, in an option's value or an image's name, that only the called process itself can open.
OWN_FILES = ("/dev/fd", "/dev/std", "/proc/")

# Arguments of our programs.
CHECK_OPTION = "--check"  # the launcher's: check a request where it is submitted
SAVE_OPTION = "--save"  # the launcher's: save a container whose tasks have ended
PLAN_OPTION = "--plan="  # ch-join's: the plan's descriptor
JOB_END_OPTION = "--job-end"  # the launcher's: remove a directory of containers whose job is over

# Where containers with a name are kept: OWN/of-job-JOB/NODE/NAME, or OWN/global/NODE/NAME. OWN is the first of these
# followed by the user's number, or the site's directory (containers=) and the second.
CONTAINERS_OWN = "/var/tmp/slurm_ch.containers-"
CONTAINERS_BELOW = "/slurm_ch.containers-"
CONTAINERS_OF_JOB = "of-job-"

# Beside ch-join, where it was installed for another Python than the default: that one's path.
INTERPRETER_FILE = "interpreter"

# Default paths, unless plugstack.conf has others; that of the launcher is relative to the plugin's directory.
DEFAULT_PYTHON = "/usr/bin/python3"
DEFAULT_LAUNCHER = "../plugin/launch.py"

# Slurm's commands that a container may pass on to the host, unless the site chooses. Not
# salloc, because its command would run on the host.
RELAYED_COMMANDS = "srun,sbatch,sbcast,scancel,scontrol,sinfo,squeue,sacct,sattach,sprio,sshare,sstat"

# The values of a flag that mean no, in upper or lower case.
NO_WORDS = ("0", "no", "false", "off")

# How a SquashFS file starts: https://dr-emann.github.io/squashfs/.
SQUASHFS_MAGIC = "hsqs"
