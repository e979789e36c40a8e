"""The gateway under callgrind: instructions are counted, not time, so other work on the machine changes nothing.

Start-up, the making of keys and the first warming run uncounted and so much faster. What is counted between two commands comes as
a profile: for each function its own instructions by address, and for each call its address and all that happened below it.
"""

import re
import subprocess
from collections import defaultdict
from dataclasses import dataclass, field

from .processes import wait_until
from .targets import Gateway

COMMAND_WAIT_S = 60
# valgrind counts `rep movsb` once for each byte, where a processor moves dozens at once: the C library is to copy with vectors.
COPYING = "GLIBC_TUNABLES=glibc.cpu.hwcaps=-ERMS,-FSRM"
HASH = re.compile(r"::h[0-9a-f]{16}$")
NAME = re.compile(r"\((\d+)\)(?: (.*))?")


class CountedGateway(Gateway):
    """The gateway under valgrind, on one core: as few threads as it runs on."""

    label = "gateway under callgrind"

    def launch(self):
        self.profiles = 0
        # Not demangled, for then a generic function would be one with all its instances.
        tool = ["env", COPYING, "valgrind", "--tool=callgrind", "--instr-atstart=no", "--dump-instr=yes", "--fair-sched=yes", "--demangle=no",
                f"--vgdb-prefix={self.folder / 'vgdb'}", f"--callgrind-out-file={self.folder / 'profile'}"]
        process = self.launch_proxy([*tool, self.machine.gateway, "run", "--config", self.config])
        wait_until(self.is_ready, process)

    def begin_counting(self):
        self.command("instrumentation", "on")

    def reset(self):
        """Forgets what was counted."""
        self.command("zero")

    def profile(self):
        """What was counted since the last reset or profile."""
        self.command("dump")
        self.profiles += 1
        return read(self.folder / f"profile.{self.profiles}")

    def command(self, *words):
        [process] = self.proxies
        process.require_alive()
        command = ["vgdb", f"--pid={process.child.pid}", f"--vgdb-prefix={self.folder / 'vgdb'}", *words]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_WAIT_S, check=False)
        if answer.returncode != 0:
            raise RuntimeError(f"valgrind did not obey {' '.join(words)!r} (it needs ptrace): {answer.stderr.strip()}")


@dataclass
class Profile:
    """Functions are numbers; an address is one within `objects[function]`."""

    names: dict = field(default_factory=dict)
    objects: dict = field(default_factory=dict)
    # {function: {address: instructions of its own}}
    own: dict = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    # {(caller, address of the call, callee): instructions below}
    calls: dict = field(default_factory=lambda: defaultdict(int))

    def addresses(self, program):
        """All addresses within one program."""
        found = {address for function, costs in self.own.items() if self.objects[function] == program for address in costs}
        return found | {address for caller, address, _ in self.calls if self.objects[caller] == program}


def read(file):
    """Reads a profile: "Callgrind Format Specification", with positions `instr line` and relative numbers."""
    profile, objects = Profile(), {}
    this_object = function = callee = None
    address, is_call = 0, False
    with file.open(errors="replace") as lines:
        for line in lines:
            if line[:1] in "0+-*":
                position, _, cost = line.split()[:3]
                address = moved(address, position)
                if is_call:
                    profile.calls[function, address, callee] += int(cost)
                    is_call = False
                else:
                    profile.own[function][address] += int(cost)
            elif line.startswith("calls="):
                is_call = True
            elif line.startswith(("ob=", "cob=")):
                number = note(objects, line)
                this_object = number if line.startswith("ob=") else this_object
            elif line.startswith("fn="):
                function = note(profile.names, line)
                profile.objects[function] = objects[this_object]
            elif line.startswith("cfn="):
                callee = note(profile.names, line)
    profile.names = dict(zip(profile.names, demangled(profile.names.values())))
    return profile


def demangled(names):
    """Readable, and without the hash behind them that another build would make another."""
    text = subprocess.run(["c++filt"], input="".join(f"{name}\n" for name in names), check=True, capture_output=True, text=True).stdout
    return [HASH.sub("", name) for name in text.splitlines()]


def note(names, line):
    """The number of a name; its text stands only where it is first used."""
    number, text = NAME.match(line.partition("=")[2]).groups()
    if text is not None:
        names[number] = text
    return number


def moved(address, position):
    if position == "*":
        return address
    return address + int(position) if position[0] in "+-" else int(position, 16)
