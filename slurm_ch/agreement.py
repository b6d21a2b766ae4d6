# SPDX-License-Identifier: Apache-2.0
"""The constants that the programs in C and those in Python share.

`spank/agreement.h` is generated from this file: each assignment becomes a
`#define`, each comment line a comment. So the file contains nothing else, and
imports nothing. The programs that use a value document what they do with it.
"""

# slurm_ch's own exit codes. A command's exit code is passed on.
EXIT_SETUP = 31
EXIT_JOIN = 32
EXIT_LAUNCHER_DIED = 33
EXIT_USAGE = 64
# Called as ch-run: the command can't be executed, for any reason.
EXIT_CH_RUN_COMMAND = 49
EXIT_NO_FEATURE = 87
EXIT_CANNOT_EXECUTE = 126
EXIT_NOT_FOUND = 127

# Each kind of message between the programs starts with its own word and a version number. The
# number is raised when an older program would misread the rest.
FACTS_MAGIC = "slurm_ch facts 1"
PLAN_MAGIC = "slurm_ch plan 1"
TICKET_MAGIC = "slurmch1"

# Facts: the input of the launcher and of the check at submission. Each record is a kind and a text, and
# ends with NUL. The plugin sends arguments and a request, `slurm-ch run` sends words instead.
FACT_ARGUMENT = "a"  # one of plugstack.conf's arguments
FACT_REQUEST = "r"  # the options as given: lines NAME=VALUE
FACT_VARIABLE = "e"  # NAME=VALUE of the job's environment
FACT_TASKS = "t"  # the number of tasks on this node
FACT_JOB = "j"  # the job's id, or that of a het job's component; only for named containers
FACT_COMMAND = "c"  # srun, sbatch or salloc, for the check: the program itself may have another name
FACT_BROADCAST = "o"  # the job whose nodes should get a copy of the image, for the check
FACT_SCRIPT = "b"  # the batch script's path, in a batch step
FACT_WORD = "w"  # an argument of `slurm-ch run` before the command: an option or the image
FACT_NAME = "n"  # the name by which it was called: CH_RUN has other defaults
FACT_LOCATED = "l"  # the image's file, which Python has found, if the image is a reference

# The task plan: what ch-join does to a task. Each record is a kind and a text, and ends with NUL.
PLAN_SET = "E"  # NAME=VALUE: set
PLAN_SET_ITEMS = "X"  # NAME=VALUE: set; items between colons that consist of $NAME are expanded
PLAN_SET_ANYWHERE = "A"  # NAME=VALUE: set; $NAME and ${NAME} are expanded anywhere, \$ stands for a dollar
PLAN_SET_DEFAULT = "N"  # NAME=VALUE: set, unless it is set already
PLAN_IF_STILL = "Y"  # NAME=VALUE: carry out the next record only if the task's variable still has this value
PLAN_UNSET = "U"  # unset the variables that match this shell pattern
PLAN_PATH = "P"  # add /bin to PATH, or the directories in text, if missing; other text: only if there is a PATH
PLAN_TEMPORARY = "T"  # set TMPDIR and similar variables to /tmp if they name no directory; text: without a warning
PLAN_DIRECTORY = "C"  # change to this directory, or fail
PLAN_USUAL_DIRECTORY = "D"  # without C: change to this directory, or to /
PLAN_LOST_DIRECTORY = "L"  # a message about a missing directory, to show if the command isn't found
PLAN_AS_SRUN = "W"  # look for a command that is not in PATH in the working directory
PLAN_IMAGES_DIRECTORY = "I"  # without C: the directory in which the image's own command starts
PLAN_LIKE_CH_RUN = "Q"  # exit with ch-run's codes
PLAN_VERBOSITY = "V"  # a level, below 0 for quiet
PLAN_COLOR = "K"  # color messages: always, or with IF_TERMINAL only on a terminal
PLAN_ROOT = "S"  # emulate root by seccomp; the text is the option that asks for it, as given
PLAN_KEYRING = "R"  # keep the caller's session keyring, instead of a new one for the container

# Variables. Slurm always passes on those that start with SLURM_, whatever --export says.
# The step's request, written at submission and read on the node. Slurm itself would pass on only the
# last value of a repeated option.
REQUEST_VARIABLE = "SLURM_CH_REQUEST"
# The command's first word, if the guard has replaced it.
COMMAND_VARIABLE = "SLURM_CH_COMMAND"
# Set in srun if --multi-prog may have been given; its value is ch-join's path, if that precedes each command.
MULTI_PROG_VARIABLE = "SLURM_CH_MULTI_PROG"
# The value of srun's or sbatch's --export, if it names variables.
EXPORTED_VARIABLE = "SLURM_CH_EXPORTED"
# Tells ch-join what to do: FD[:BROKER][ ARGV0|+ARGV0] (spank/ch-join/main.c).
JOIN_VARIABLE = "SLURM_CH_JOIN"
# For ch-join, if the container is to be saved: the number of tasks that have to succeed, after SAVER_BATCH for a
# batch script; then, each on its own line, the option, FILE, and the site's arguments for packing.
SAVER_VARIABLE = "SLURM_CH_SAVER"
SAVER_BATCH = "b"
# The directory in which the user called the command; ch-join changes to it.
CWD_VARIABLE = "SLURM_CH_CWD"
# Prefix for a variable that a script in a container has changed, and that would break the host's
# programs: with it, the variable is passed to the container of the script's step. Empty: unset.
RELAYED_PREFIX = "SLURM_CH_RELAYED_"
# Prefixes of the variables with the options' defaults, for srun, sbatch and salloc.
SRUN_PREFIX = "SLURM_CH_"
SBATCH_PREFIX = "SBATCH_CH_"
SALLOC_PREFIX = "SALLOC_CH_"
PYXIS_PREFIX = "PYXIS_CONTAINER_"  # for pyxis' options, in all three

# The check's answer if the image is a reference: this word and the reference with its digest; on a second
# line HOST:PATH, if the image's file exists already; and a newline.
PIN_WORD = "PIN "
# In a request, next to the options: HOST:PATH, the host that has pulled the image, and the image's file.
LOCATED_LINE = "located="
# In the request of an srun of several components that differ, before each component's part: RANK:JOB, by which
# a node finds its own (spank/plugin/components.c). No option has that name.
COMPONENT_LINE = "component="
# In a request: the path of the image's copy on each of the job's nodes; and the check's answer after it has made the
# copies. The names of a job's files begin with BROADCAST_FILE, or its last part in the site's directory, and UID-JOB-.
# Each file is a copy; with BROADCAST_NOTE at the end, it contains the path of a copy in another directory.
BROADCAST_LINE = "broadcast-to="
BROADCAST_WORD = "AT "
BROADCAST_FILE = "/tmp/slurm_ch-image-"
BROADCAST_NOTE = ".at"
# A reference begins with one of these, unlike a path: it names an image in a registry, an archive or a store.
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

# Names by which the static command may be called. With CHECKED, Python calls it after it has checked the
# arguments, which are then: one of the other two names, Python's path, the image's file ("" if the image is
# not a reference), and the arguments of `run` with the options in full.
SLURM_CH = "slurm-ch"
CH_RUN = "ch-run"
CHECKED = "slurm-ch (checked)"
# Python's part of the command: its name in pip's directory of programs, and its path relative to ch-join. The
# latter's arguments are one of the names, how the peers meet, and the command line.
PYTHON_COMMAND = "slurm-ch-python"
PYTHON_PROGRAM = "../cli/program.py"
MEET_BY_SOCKET = "socket"
MEET_BY_NAME = "name"  # by posix_ipc's objects, if the kernel's policy refuses sockets

# A join: the largest number of peers, the longest tag and its letters; the default and the longest timeout, in seconds.
JOIN_MAX = 16384
TAG_MAX = 200
TAG_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
JOIN_SECONDS = 30
JOIN_SECONDS_MAX = 86400

# A standby server of an image waits for at most this many others. With more, several would start to serve at once.
STANDBY_MAX = 32

# setns(2) sometimes fails with EINVAL and succeeds when repeated (Charliecloud issue 1270): how often it is tried.
SETNS_TRIES = 5

# MPICH's starter, Hydra: the variable with the number of ranks on this node, and the name of the process that
# starts them, cut to the length that the kernel keeps.
HYDRA_COUNT = "MPI_LOCALNRANKS"
HYDRA_PROXY = "hydra_pmi_proxy"

# A path in an option or an image's name that begins with one of these can be opened only by the called process itself.
OWN_FILES = ("/dev/fd", "/dev/std", "/proc/")

# Arguments of our programs.
CHECK_OPTION = "--check"  # the launcher's: check a request at submission
SAVE_OPTION = "--save"  # the launcher's: save a container whose tasks have ended
PLAN_OPTION = "--plan="  # ch-join's: the plan's descriptor
JOB_END_OPTION = "--job-end"  # the launcher's: remove the named containers of a job that has ended

# Named containers are kept in OWN/of-job-JOB/NODE/NAME, or OWN/global/NODE/NAME. OWN is the first of these followed by
# the user id, or the site's directory (containers=) followed by the second and the user id.
CONTAINERS_OWN = "/var/tmp/slurm_ch.containers-"
CONTAINERS_BELOW = "/slurm_ch.containers-"
CONTAINERS_OF_JOB = "of-job-"

# A file next to ch-join with the path of Python, if it was installed for another one than the default.
INTERPRETER_FILE = "interpreter"

# Paths that plugstack.conf can override. The launcher's is relative to the plugin's directory.
DEFAULT_PYTHON = "/usr/bin/python3"
DEFAULT_LAUNCHER = "../plugin/launch.py"

# Slurm's commands that a container may pass on to the host, unless the site chooses others. salloc is not
# among them, because its command would run on the host.
RELAYED_COMMANDS = "srun,sbatch,sbcast,scancel,scontrol,sinfo,squeue,sacct,sattach,sprio,sshare,sstat"

# The values of a flag that mean no; upper and lower case are the same.
NO_WORDS = ("0", "no", "false", "off")

# The first bytes of a SquashFS file: https://dr-emann.github.io/squashfs/.
SQUASHFS_MAGIC = "hsqs"
