"""Which step of the line an instruction belongs to: that of the innermost source file on its stack that is in a table.

Files, not functions, are what the table names, and the chain of inlined calls behind each address is asked of the debug information: so
neither a renamed function nor one that the compiler has dissolved goes astray. Code that is in no file of the table (libraries,
the standard library, the allocator) belongs to whoever called it: where several steps did, in the shares of the
instructions below their calls. What nobody of the table called is the runtime's, and so is tokio's runtime itself: a task that it
runs is no errand of whoever stands above on the stack.
"""

import re
import subprocess
from collections import defaultdict

from .install import REPOSITORY

# In the order of the table. The longest path that fits decides.
LINE = {
    "HTTP in": ["edge/"],
    "line": ["gateway/", "gateway/handle.rs", "app/listeners.rs"],
    "target": ["gateway/target.rs"],
    "credential": ["gateway/credential.rs", "domain/key.rs"],
    "resolve": ["gateway/resolve/"],
    "coherence": ["coherence/"],
    "admit": ["gateway/admit.rs"],
    "limit": ["gateway/limit/", "domain/window.rs", "store/embedded/windows.rs"],
    "policy": ["gateway/policy.rs", "gateway/policy/", "domain/permission.rs", "domain/route.rs"],
    "sign": ["gateway/sign.rs", "signing/"],
    "exchange": ["gateway/exchange.rs", "gateway/client_address.rs"],
    "audit": ["audit/", "domain/audit_record.rs"],
    "forward": ["gateway/forward/", "dial.rs"],
    "answer": ["gateway/answer.rs", "gateway/respond.rs", "gateway/linger.rs", "domain/rejection.rs"],
    "store": ["store/"],
}
# Not a request's: happens in its own time, so its share for each request is another under valgrind. All that is below it is its own.
BESIDE = {
    "shipping": ["audit/ship.rs", "audit/recover.rs", "store/embedded/writer.rs", "store/embedded/activity.rs"],
    "spool's keeper": ["audit/keeper.rs"],
    "upkeep": ["admin/", "ops/", "app/", "config/", "cli/", "demo/"],
}
RUNTIME = "runtime"
RUNTIME_NAMES = ("tokio::runtime::", "<tokio::runtime::", "tokio::task::local::")
# Belongs to its callers, as a library does.
SHARED = ["lib.rs", "main.rs", "clock.rs", "deadline.rs", "metrics.rs", "tasks.rs", "mutants.rs", "fuzzing.rs", "fetch.rs", "domain/"]
PREFIXES = {path: step for steps in (LINE, BESIDE) for step, paths in steps.items() for path in paths} | dict.fromkeys(SHARED)
NAMES = [*LINE, RUNTIME, *BESIDE]
# Shares settle after as many rounds as there are calls between a step and a library function; more than this changes nothing.
ROUNDS = 40
# The file that tells where the sources were when the program was built: the one that the layout promises.
LANDMARK = "gateway/handle.rs"


def step_of(path):
    """The step of a file below src/; None where it belongs to its callers."""
    fitting = [prefix for prefix in PREFIXES if path.startswith(prefix)]
    return PREFIXES[max(fitting, key=len)] if fitting else None


def strangers():
    """Source files that are in no table."""
    files = (file.relative_to(REPOSITORY / "src").as_posix() for file in (REPOSITORY / "src").rglob("*.rs"))
    return sorted(file for file in files if not any(file.startswith(prefix) for prefix in PREFIXES))


class Sources:
    """Knows the step of each address of a program."""

    def __init__(self, program):
        self.program, self.known, self.root = str(program), {}, None

    def learn(self, addresses):
        """Asks the debug information, once for each address."""
        fresh = sorted(addresses - self.known.keys())
        text = subprocess.run(["addr2line", "--addresses", "--inlines", f"--exe={self.program}"], check=True, capture_output=True, text=True,
                              input="".join(f"{address:#x}\n" for address in fresh)).stdout
        self.root = self.root or self.find_root(text)
        for chain in re.split(r"^0x", text, flags=re.MULTILINE)[1:]:
            address, *frames = chain.splitlines()
            self.known[int(address, 16)] = self.innermost(frames)

    def find_root(self, text):
        found = re.search(rf"^(.*/src/){LANDMARK}:", text, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"{self.program} does not say which lines it was made of: build it with the profile `micro`")
        return found[1]

    def innermost(self, frames):
        steps = (step_of(frame.removeprefix(self.root).rpartition(":")[0]) for frame in frames if frame.startswith(self.root))
        return next((step for step in steps if step), None)


def charge(profile, sources):
    """{step: {function: instructions}}; their sum is that of the profile."""
    sources.learn(profile.addresses(sources.program))
    calls = defaultdict(lambda: defaultdict(int))
    for (caller, address, callee), cost in profile.calls.items():
        calls[callee][caller, step_at(profile, sources, caller, address)] += cost
    runtime = {function for function, name in profile.names.items() if name.startswith(RUNTIME_NAMES)}
    inherited = settle({callee: into for callee, into in calls.items() if callee not in runtime}, profile.names)
    charged = {step: defaultdict(float) for step in NAMES}
    for function, costs in profile.own.items():
        for address, cost in costs.items():
            for owner, share in owners(step_at(profile, sources, function, address), inherited[function]).items():
                charged[owner][profile.names[function]] += cost * share
    return charged


def step_at(profile, sources, function, address):
    return sources.known[address] if profile.objects[function] == sources.program else None


def settle(calls, functions):
    """For whom each function works, as shares: those of its callers, whose own are found in the same way."""
    unknown = {RUNTIME: 1.0}
    shares = dict.fromkeys(functions, unknown)
    for _ in range(ROUNDS):
        for callee, into in calls.items():
            total, mixed = sum(into.values()), defaultdict(float)
            for (caller, step), cost in into.items():
                for owner, share in owners(step, shares[caller]).items():
                    mixed[owner] += share * cost / total
            shares[callee] = mixed or unknown
    return shares


def owners(step, inherited):
    """Who pays, as shares, for code of a step (or of none) in a function with these callers."""
    if step is None:
        return inherited
    if step in BESIDE:
        return {step: 1.0}
    beside = {owner: share for owner, share in inherited.items() if owner in BESIDE}
    return {**beside, step: 1.0 - sum(beside.values())}
