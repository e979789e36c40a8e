"""A spool with a long backlog: what the gateway wrote down since a backup of its store, which is then put back.

A store that is merely away is no way to a long one: without it nobody can tell whether a key was revoked, so uses are refused after the
lease of 3 s. A store that was set back, or that takes less than comes in, is. Shipped segments are linked into another folder before
the gateway deletes them, so that in the end the spool is as it would be had the store taken nothing since the backup.
"""

import os
import shutil
import threading
import time
from pathlib import Path

# Of the store, within a target's folder: the embedded one's, and Redis's.
STORES = ("data", "appendonlydir")
# Records that one load writes down; the segments are looked at between two of them as well.
RECORDS_AT_ONCE = 50_000
LOOK_PAUSE_S = 0.2
# A gateway that has a gigabyte to ship takes its time before it serves.
READY_WAIT_S = 1800


class Links:
    """Links each segment of a spool into another folder, from the moment it is made."""

    def __init__(self, spool, folder):
        self.spool, self.folder = spool, folder
        folder.mkdir()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.follow)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *failure):
        self.over.set()
        self.thread.join()
        self.look()

    def follow(self):
        while not self.over.wait(LOOK_PAUSE_S):
            self.look()

    def look(self):
        for segment in self.spool.glob("*.seg"):
            link = self.folder / segment.name
            if not link.exists():
                os.link(segment, link)

    def bytes(self):
        """Of all segments, but for the one that is being written and the spare."""
        self.look()
        return written(self.folder)


def written(folder):
    """Bytes of a spool's segments, but for the one that is being written and the spare."""
    return sum(segment.stat().st_size for segment in sorted(folder.glob("*.seg"))[:-2])


def make(target, load, bytes_wanted):
    """Leaves a target that is ended, with a backlog of so many bytes; answers how many they are."""
    target.stop()
    backup = target.folder / "backup"
    for name in present(target.folder):
        shutil.copytree(target.folder / name, backup / name)
    target.resume()
    with Links(target.folder / "spool", target.folder / "linked") as links:
        while links.bytes() < bytes_wanted:
            load(RECORDS_AT_ONCE)
        for process in target.proxies:
            process.child.kill()
    target.stop()
    for name in present(target.folder):
        shutil.rmtree(target.folder / name)
        shutil.move(backup / name, target.folder / name)
    for segment in (target.folder / "linked").iterdir():
        if not Path(target.folder, "spool", segment.name).exists():
            segment.rename(target.folder / "spool" / segment.name)
    shutil.rmtree(target.folder / "linked")
    return written(target.folder / "spool")


def present(folder):
    return [name for name in STORES if (folder / name).exists()]


def ship(target):
    """Seconds until a target that is ended is ready, which is when it has shipped all of it; and how many records that were."""
    target.ready_wait_s = READY_WAIT_S
    began = time.perf_counter()
    target.resume()
    return time.perf_counter() - began, target.metric("audit_shipped_total")
