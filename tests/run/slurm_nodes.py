"""A whole Slurm on this machine: munge, slurmctld and two slurmd in a folder of their own, on loopback.

Daemons outlive a test process that is killed. So the folder says whose it is, and whoever starts a Slurm ends those
whose owner is gone first: by the pid files in their folders, and only what runs with that folder's configuration.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

PREFIX, OWNER = "diffaug-slurm-", "owner"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
# linuxproc, task/none and jobacct_gather/none need no cgroup; a requeued job waits cred_expire + 1 s, by default 121 s.
CONFIGURATION = """
ClusterName=diffaug
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=5
MinJobAge=3600
SlurmdTimeout=60
SchedulerParameters=sched_interval=1,batch_sched_delay=0,defer=0
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=4000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=2
"""


@dataclass(frozen=True)
class SlurmNodes:
    """A Slurm with the nodes n1 and n2."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to find it."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *line: str) -> str:
        """What a command of Slurm says."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(line, env=environment, check=True, capture_output=True, text=True, timeout=60).stdout

    def field(self, job: str, name: str) -> str:
        """A field of `scontrol show job`."""
        words = dict(
            word.split("=", 1) for word in self.ask("scontrol", "-o", "show", "job", job).split() if "=" in word
        )
        return words[name]

    def processes(self, node: str) -> list[psutil.Process]:
        """The daemon of a node, and all that runs of its jobs, by what stands in their environments."""
        found = self.daemon(f"{node}.pid")
        for process in psutil.process_iter():
            try:
                there = process.environ()
                if (there.get("SLURMD_NODENAME"), there.get("SLURM_CONF")) == (node, self.environment["SLURM_CONF"]):
                    steps = [parent for parent in process.parents() if parent.name() == "slurmstepd"]
                    found += [process, *steps]
            except psutil.Error:
                continue
        return list(dict.fromkeys(found))

    def daemon(self, name: str) -> list[psutil.Process]:
        """The daemon of a pid file, if it still runs and is of this folder."""
        try:
            process = psutil.Process(int((self.folder / name).read_text()))
            return [process] if str(self.folder) in " ".join(process.cmdline()) else []
        except (OSError, ValueError, psutil.Error):
            return []

    def start(self, node: str) -> None:
        """Start the daemon of a node."""
        self.ask("slurmd", "-N", node, "-f", self.environment["SLURM_CONF"])


@contextmanager
def slurm_nodes() -> Iterator[SlurmNodes]:
    """Meanwhile a Slurm runs; skips where it is not installed or this user may not start it."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"no {missing[0]} here; the Debian packages slurmctld, slurmd, slurm-client and munge have Slurm")
    if os.geteuid():
        pytest.skip("Slurm's daemons start as root alone")
    end_what_is_left()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    owner = psutil.Process()
    (folder / OWNER).write_text(f"{owner.pid} {owner.create_time()}")
    for name in ("state", "spool.n1", "spool.n2"):
        (folder / name).mkdir()
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=host, ports=free_ports(3)))
    slurm = SlurmNodes(folder)
    try:
        places = {name: folder / f"munge.{name}" for name in ("socket", "log", "seed")}
        slurm.ask(
            *("munged", "--force", "--num-threads=1", f"--key-file={key}", f"--pid-file={folder / 'munge.pid'}"),
            *(f"--{name}{'' if name == 'socket' else '-file'}={place}" for name, place in places.items()),
        )
        slurm.ask("slurmctld", "-c", "-f", slurm.environment["SLURM_CONF"])
        for node in ("n1", "n2"):
            slurm.start(node)
        wait_until(
            lambda: slurm.ask("sinfo", "-h", "-N", "-n", "n1,n2", "-p", "main", "-o", "%T").split() == ["idle"] * 2
        )
        yield slurm
    finally:
        end(slurm)


def end_what_is_left() -> None:
    """End every Slurm of a test process that is gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            pid, born = (folder / OWNER).read_text().split()
            is_alive = psutil.Process(int(pid)).create_time() == float(born)
        except psutil.Error:
            is_alive = False
        except (OSError, ValueError):  # of another user, or only just made
            continue
        if not is_alive:
            end(SlurmNodes(folder))


def end(slurm: SlurmNodes) -> None:
    """End the daemons, and what still runs of jobs, by their ids; the folder goes too."""
    left = [process for node in ("n1", "n2") for process in slurm.processes(node)]
    left += [process for name in ("slurmctld.pid", "munge.pid") for process in slurm.daemon(name)]
    for process in left:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=10)
    shutil.rmtree(slurm.folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_until(is_so: Callable[[], bool], seconds: float = 300) -> None:
    """Ask until it is so."""
    limit = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < limit, "it never was so"
        time.sleep(0.2)
