"""Processes that a load test starts, pinned to cores: what they cost, what they hold, and their certain end.

A `Workplace` owns a temporary folder and every process; leaving it ends all of them and removes the folder, whatever happened.
Only processes that were started here are ever ended.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
START_WAIT_S = 60
STOP_WAIT_S = 10


class Process:
    """A process and its descendants."""

    def __init__(self, command, cores, folder, name, environment=None):
        self.name = name
        self.log = Path(folder, f"{name}.log")
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                ["taskset", "--cpu-list", ",".join(map(str, cores)), *map(str, command)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, start_new_session=True,
                env={**os.environ, **(environment or {})})

    def members(self):
        """Ids of the process and of what it started."""
        parents = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    parents.setdefault(int(stat_fields(entry)[1]), []).append(int(entry))
        found = [self.child.pid]
        for member in found:
            found.extend(parents.get(member, []))
        return found

    def cpu_seconds(self):
        """User and system time of all members, the ended ones that were waited for included."""
        total = 0
        for member in self.members():
            with contextlib.suppress(OSError):
                total += sum(int(ticks) for ticks in stat_fields(member)[11:15])
        return total / TICKS_PER_SECOND

    def memory_kib(self, field):
        """`Rss` or `Pss` of all members."""
        total = 0
        for member in self.members():
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
        return total

    def require_alive(self):
        if self.child.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self.name} ended with {self.child.returncode}:\n{tail}")

    def stop(self):
        if self.child.poll() is None:
            self.child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(STOP_WAIT_S)
        # What is left of its own session, and nothing else.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()


def stat_fields(process):
    """Fields of /proc/PID/stat from the third (the state) on; the name before it may hold spaces."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


class Workplace:
    """A temporary folder and the processes that live in it."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="assure-loadtest-"))
        # nginx's workers are another user where the master is root.
        self.folder.chmod(0o711)
        self.processes = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # A second Ctrl-C must not leave half of them running.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for process in reversed(self.processes):
            process.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def subfolder(self, name):
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        folder.chmod(0o711)
        return folder

    def start(self, command, cores, name, port=None, folder=None, environment=None):
        """Starts a process and, where a port is named, waits until it is open."""
        process = Process(command, cores, folder or self.folder, name, environment)
        self.processes.append(process)
        if port:
            wait_until(lambda: is_open(port), process)
        return process

    def stop(self, process):
        process.stop()
        self.processes.remove(process)


def wait_until(is_so, process, wait_s=START_WAIT_S):
    """Asks again until it is so; fails when the process has ended or has taken too long."""
    deadline = time.monotonic() + wait_s
    while not is_so():
        process.require_alive()
        if time.monotonic() > deadline:
            raise RuntimeError(f"{process.name} was not ready after {wait_s} s; see its log:\n"
                               + process.log.read_text(errors="replace")[-2000:])
        time.sleep(0.02)


def is_open(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def free_port():
    """A port that nobody listens on, below those that outgoing connections take."""
    for _ in range(1000):
        port = 10_000 + int.from_bytes(os.urandom(2), "big") % 20_000
        with contextlib.suppress(OSError), socket.socket() as trial:
            trial.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port")
