"""A Slurm of three nodes on this machine, as root and without systemd: python tests/small_slurm.py start|stop FOLDER.

`start FOLDER 1001` allows arrays of a thousand tasks, as Slurm does by default, instead of five.

Every node is a separate daemon. Two, each with a fake GPU, form the partition `main`; the third is in two partitions,
`low` and `high`, of which `high` preempts `low`. All files are in FOLDER and none in /etc, so that a Slurm to which the
machine belongs is neither read nor changed. `start` prints what to export.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

MAIN, SPARE = ("node0", "node1"), "node2"
NODES = (*MAIN, SPARE)
DAEMONS = (*(f"slurmd-{node}" for node in NODES), "slurmctld", "munged")  # in the order in which they are stopped
PACKAGES = ["slurm-wlm", "slurmctld", "slurmd", "slurm-client", "munge"]
CPUS = 6  # of a node; more than there may be: the runs are tiny and wait for each other little

CONFIG = """
ClusterName=small
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
ReturnToService=2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
MaxArraySize={array}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
KillWait=60
MinJobAge=3600
MessageTimeout=90
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
PartitionName=main Nodes={main} Default=YES MaxTime=INFINITE
PartitionName=low Nodes={spare} MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes={spare} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""
NODE = "NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus}{gpu} State=UNKNOWN"


def unavailable() -> str:
    """Why there can be no such Slurm here, or ''; Debian's packages are installed where PDP_TEST_SLURM=install asks."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    if shutil.which("slurmctld") and shutil.which("slurmd") and shutil.which("munged"):
        return ""
    if os.environ.get("PDP_TEST_SLURM") != "install":
        return "slurm-wlm is not installed; PDP_TEST_SLURM=install lets the tests install it (Debian, as root)"
    if not shutil.which("apt-get"):
        return "slurm-wlm is not installed, and there is no apt-get to install it"
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        try:
            done = subprocess.run(
                ["apt-get", "-qq", *command], env=environment, capture_output=True, text=True, timeout=300
            )
        except subprocess.TimeoutExpired:
            return "slurm-wlm could not be installed: apt-get took longer than 300 s"
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["apt-get failed"])[-1]
            return f"slurm-wlm could not be installed: {reason}"
    return ""


def environment(folder: Path) -> dict[str, str]:
    """What commands need to speak to the Slurm in `folder`."""
    return {"SLURM_CONF": str(folder / "slurm.conf")}


def start(folder: Path, array: int = 6) -> None:
    """Starts the daemons and waits until all nodes take jobs; raises `RuntimeError` with the end of the logs."""
    for name in ("run", "log", "state", "munge", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    host = socket.gethostname().split(".")[0]
    port, *ports = _free_ports(1 + len(NODES))
    lines = [CONFIG.format(host=host, port=port, folder=folder, array=array, main=",".join(MAIN), spare=SPARE).strip()]
    for node, port in zip(NODES, ports, strict=True):
        gpu = " Gres=gpu:1" if node in MAIN else ""
        lines.append(NODE.format(node=node, host=host, port=port, cpus=CPUS, gpu=gpu))
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    (folder / "gpu").touch()  # Slurm only looks whether there is such a file
    (folder / "gres.conf").write_text(f"NodeName={','.join(MAIN)} Name=gpu File={folder}/gpu\n")
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    munge = folder / "munge"
    commands = [
        [
            *("munged", "--force", f"--key-file={key}", f"--socket={munge}/socket"),
            *(
                f"--pid-file={folder}/run/munged.pid",
                f"--log-file={folder}/log/munged.log",
                f"--seed-file={munge}/seed",
            ),
        ],
        ["slurmctld", "-c", "-f", str(folder / "slurm.conf")],
        *(["slurmd", "-N", node, "-f", str(folder / "slurm.conf")] for node in NODES),
    ]
    for command in commands:
        done = subprocess.run(command, env=os.environ | environment(folder), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stderr}\n{logs(folder)}")
    end = time.monotonic() + 180
    while _ask(folder, "sinfo", "-h", "-N", "-p", "main,low", "-o", "%T").split() != ["idle"] * len(NODES):
        if time.monotonic() > end:
            raise RuntimeError(f"a node takes no jobs\n{logs(folder)}")
        time.sleep(0.1)


def stop(folder: Path) -> None:
    """Cancels every job and stops the daemons that `start` started, by their process ids."""
    if _pid(folder, "slurmctld"):
        _ask(folder, "scancel", "--user=root")
        end = time.monotonic() + 90  # longer than KillWait
        while _ask(folder, "squeue", "-h") and time.monotonic() < end:
            time.sleep(0.2)
    for daemon in DAEMONS:
        pid = _pid(folder, daemon)
        if pid:
            os.kill(pid, signal.SIGTERM)
            end = time.monotonic() + 15
            while _pid(folder, daemon) and time.monotonic() < end:
                time.sleep(0.05)


def _pid(folder: Path, daemon: str) -> int | None:
    """The daemon's process id, where it lives and was not taken by another program."""
    try:
        pid = int((folder / "run" / f"{daemon}.pid").read_text())
        _, _, rest = Path(f"/proc/{pid}/stat").read_text().partition(f"({daemon.partition('-')[0]}) ")
        alive = rest[:1] not in ("", "Z")  # another program's name, or dead and not yet taken note of
    except (OSError, ValueError):
        return None
    return pid if alive else None


def _ask(folder: Path, *command: str) -> str:
    environ = os.environ | environment(folder)
    return subprocess.run(command, env=environ, capture_output=True, text=True).stdout.strip()


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def logs(folder: Path) -> str:
    """The ends of what the daemons wrote."""
    return "\n".join(f"{log}:\n{log.read_text()[-4000:]}" for log in sorted((folder / "log").glob("*.log")))


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or sys.argv[1] not in ("start", "stop"):
        raise SystemExit(__doc__)
    where = Path(sys.argv[2]).resolve()
    if sys.argv[1] == "stop":
        stop(where)
    elif reason := unavailable():
        raise SystemExit(reason)
    else:
        start(where, *map(int, sys.argv[3:]))
        print(f"export SLURM_CONF={where}/slurm.conf")
