"""A real SLURM on this machine for a test: munged, slurmctld and two slurmd on the loopback, without accounting."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
CONF = Path("/etc/slurm/slurm.conf")
"""The path built into Debian's SLURM; a job does not see another one everywhere."""
CGROUPS = Path("/sys/fs/cgroup/memory")
_TEXT = """ClusterName=course
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={home}/ctld
SlurmdSpoolDir={home}/d.%n
SlurmctldPidFile={home}/ctld.pid
SlurmdPidFile={home}/d.%n.pid
SlurmctldLogFile={home}/ctld.log
SlurmdLogFile={home}/d.%n.log
ProctrackType=proctrack/{track}
TaskPlugin=task/{task}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,bf_interval=2
MinJobAge=3600
ReturnToService=2
SlurmdTimeout=20
KillWait=5
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=1 RealMemory=8000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs=1 RealMemory=8000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=01:00:00 DefMemPerCPU=500 State=UP
"""
_CGROUP = """CgroupPlugin=cgroup/v1
CgroupAutomount=no
ConstrainRAMSpace=yes
ConstrainSwapSpace=yes
AllowedSwapSpace=0
"""


def why_not() -> str:
    """Return why no SLURM can be started here, or an empty word."""
    missing = [name for name in PROGRAMS if not shutil.which(name, path=_path())]
    if missing:
        return f"no {', '.join(missing)} here (apt-get install --no-install-recommends slurm-wlm munge)"
    if os.geteuid():
        return "SLURM's daemons are started as root only"
    if CONF.exists():
        return f"{CONF} exists: this machine has a SLURM of its own"
    if not Path("/etc/munge/munge.key").exists():
        return "no /etc/munge/munge.key"
    return ""


def can_limit_memory() -> bool:
    """Whether this host has memory control groups (version 1) that may be written."""
    return (CGROUPS / "memory.limit_in_bytes").exists() and os.access(CGROUPS, os.W_OK)


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _wait(ready, what: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} did not come up")
        time.sleep(0.05)


def _ok(*command) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None


def _ports(many: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(many)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Slurm:
    """Daemons of one test session; ``start`` and ``stop``."""

    def __init__(self, home: Path, *, memory: bool = False):
        self.home, self.memory, self.daemons, self.written = home, memory, [], []

    def start(self) -> None:
        """Write the configuration and bring the daemons up, polling."""
        for name in ("ctld", "d.n1", "d.n2", "munge"):
            (self.home / name).mkdir(parents=True)
        port, port1, port2 = _ports(3)
        words = {"host": socket.gethostname().split(".")[0], "home": self.home, "port": port, "port1": port1,
                 "port2": port2, "track": "cgroup" if self.memory else "linuxproc",
                 "task": "cgroup" if self.memory else "none"}  # fmt: skip
        self._write(CONF, _TEXT.format(**words))
        if self.memory:
            self._write(CONF.with_name("cgroup.conf"), _CGROUP)
        if _ok("munge", "-n") is None:
            munge = pwd.getpwnam("munge")
            run = Path("/run/munge")
            run.mkdir(mode=0o755, exist_ok=True)
            for place in (run, self.home / "munge"):
                os.chown(place, munge.pw_uid, munge.pw_gid)
            place = self.home
            while place != place.parent and place.stat().st_mode & 0o005 != 0o005 and place.stat().st_uid == 0:
                place.chmod(place.stat().st_mode | 0o055)
                place = place.parent
            files = [f"--{name}-file={self.home}/munge/{name}" for name in ("pid", "log", "seed")]
            self._daemon("munged", "--foreground", "--force", *files, user=munge.pw_uid, group=munge.pw_gid)
            _wait(lambda: _ok("munge", "-n") is not None, "munged")
        self._daemon("slurmctld", "-D", "-c")
        _wait(lambda: "UP" in (_ok("scontrol", "ping") or ""), "slurmctld")
        for node in ("n1", "n2"):
            self._daemon("slurmd", "-D", "-N", node)
        _wait(lambda: (_ok("sinfo", "-h", "-t", "idle", "-o", "%D") or "").strip() == "2", "two nodes")

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text)
        self.written.append(path)

    def _daemon(self, name: str, *words, **who) -> None:
        out = open(self.home / f"{name}-{len(self.daemons)}.out", "wb")
        with out:
            command = [shutil.which(name, path=_path()), *words]
            self.daemons.append(subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, **who))

    def stop(self) -> None:
        """Cancel what still runs, end the daemons in reverse, remove what was written outside."""
        try:
            _ok("scancel", "-u", "root")
            with contextlib.suppress(RuntimeError):
                _wait(lambda: not (_ok("squeue", "-h") or "").strip(), "the end of the jobs", 10)
            for daemon in reversed(self.daemons):
                daemon.send_signal(signal.SIGTERM)
                try:
                    daemon.wait(10)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
        finally:
            for path in self.written:
                path.unlink(missing_ok=True)
            if self.memory:
                for place in sorted(Path("/sys/fs/cgroup").glob("*/slurm_n[12]/**/"), reverse=True):
                    with contextlib.suppress(OSError):
                        place.rmdir()
