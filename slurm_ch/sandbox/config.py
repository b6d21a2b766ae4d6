# SPDX-License-Identifier: Apache-2.0
"""The configuration files of a sandbox cluster, as text: strings in, strings out."""

from __future__ import annotations

# The first release of Slurm that knows CgroupPlugin=disabled in cgroup.conf; older ones refuse it.
_CGROUP_DISABLED_SINCE = (24, 5)


def node_names(nodes: int) -> list[str]:
    """Return the names of the virtual nodes: n1, n2, ..."""
    return [f"n{number}" for number in range(1, nodes + 1)]


def slurm_conf(
    *, directory: str, port: int, nodes: int, cpus: int, memory: int, extra: str, node_extra: str = ""
) -> str:
    """Return slurm.conf: slurmctld on `port`, the nodes on those after it; `memory` in MiB."""
    span = f"[1-{nodes}]" if nodes > 1 else "1"
    ports = f"[{port + 1}-{port + nodes}]" if nodes > 1 else f"{port + 1}"
    return f"""\
ClusterName=sandbox
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={directory}/munge/socket
PlugStackConfig={directory}/plugstack.conf

StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool/%n
SlurmctldPidFile={directory}/run/slurmctld.pid
SlurmdPidFile={directory}/run/%n.pid
SlurmctldLogFile={directory}/log/slurmctld.log
SlurmdLogFile={directory}/log/%n.log
SlurmctldDebug=info
SlurmdDebug=info
SlurmctldSyslogDebug=quiet
SlurmdSyslogDebug=quiet

# Two clusters on one machine have no number in common: containers and files of a node are named after jobs.
FirstJobId={port * 1000 + 1}

# Nothing here may need systemd, cgroups, MPI or a database.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none

# The nodes may claim more CPUs than the machine has, and jobs share them.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# With sched/builtin, a job waits for seconds if another one was submitted just before it.
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
ReturnToService=2
MaxTasksPerNode=65000
MailProg=/bin/true
KillWait=2
# Slurm drains a node at this timeout; newer ones want five times MessageTimeout at least.
MessageTimeout=10
UnkillableStepTimeout=50

NodeName=n{span} NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports} CPUs={cpus} RealMemory={memory} {node_extra}
PartitionName=sandbox Nodes=n{span} Default=YES State=UP MaxTime=INFINITE OverSubscribe=FORCE:64
{extra.rstrip()}
"""


def starting(text: str) -> str:
    """Return slurm.conf for the daemons' start, with a line that makes them listen only on the host name's address.

    The line has to be removed before clients such as srun read the file: they would listen on that
    address too, and nodes could not reach them if the host name isn't localhost.
    """
    return "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny\n" + text


def cgroup_conf(version: tuple[int, ...]) -> str | None:
    """Return cgroup.conf, or None for a release of Slurm that doesn't need it."""
    return "CgroupPlugin=disabled\n" if version >= _CGROUP_DISABLED_SINCE else None
