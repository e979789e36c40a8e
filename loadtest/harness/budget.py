"""The stored budget: instructions for each kind of request and step, how far above it is too far, and what is said about it."""

import json
import platform
import subprocess
from pathlib import Path

from .install import say
from .steps import BESIDE

FILE = Path(__file__).resolve().parents[1] / "budget.json"
# Above the budget by more than this share is a failure; loadtest/README.md says how much runs differ.
WHOLE_TOLERANCE = 0.08
STEP_TOLERANCE = 0.15
# And by more than so many instructions: a tenth of a small step is nothing. More where the clock decides: how often is signed
# anew, how much is being shipped while a cold key is read, how often there is nothing to do.
STEP_SLACK = {"sign": 2000, "store": 6000, "runtime": 3000}
STEP_SLACK_ELSE = 400
WHOLE = "whole line"


def rows(counted):
    """What is shown and stored of {step: instructions}: the steps, and behind the line's own steps their sum."""
    line = {step: round(cost) for step, cost in counted.items() if step not in BESIDE}
    beside = {step: round(counted[step]) for step in BESIDE}
    return {**line, WHOLE: sum(line.values()), **beside}


def load():
    return json.loads(FILE.read_text()) if FILE.exists() else {"made with": {}, "instructions": {}}


def accept(measured):
    """Makes what was measured the budget; kinds that were not measured keep theirs."""
    kept = load()["instructions"]
    FILE.write_text(json.dumps({"made with": tools(), "instructions": {**kept, **measured}}, indent=2) + "\n")
    say(f"the budget is {FILE} now")


def tools():
    """What else changes the number of instructions."""
    flags = set(next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "").split())
    return {"rustc": first_line(["rustc", "--version"]), "valgrind": first_line(["valgrind", "--version"]), "C library": " ".join(platform.libc_ver()),
            "processor": f"{platform.machine()}, {', '.join(flag for flag in ('avx2', 'sha_ni', 'erms', 'fsrm') if flag in flags)}"}


def first_line(command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.partition("\n")[0]


def is_kept(step, now, budget):
    """Whether a figure is held to its budget at all, and is within it."""
    if step in BESIDE:
        return True
    if step == WHOLE:
        return now <= budget * (1 + WHOLE_TOLERANCE)
    return now <= budget * (1 + STEP_TOLERANCE) + STEP_SLACK.get(step, STEP_SLACK_ELSE)


def table(kind, measured, budget):
    """One kind of request, as text."""
    width = max(map(len, measured))
    lines = [f"{kind}: instructions for each", f"  {'step':{width}} {'now':>9} {'budget':>9} {'difference':>11}"]
    for step, now in measured.items():
        known = budget.get(step)
        if now or known:
            shown = "–" if known is None else f"{known:,}"
            lines.append(f"  {step:{width}} {now:>9,} {shown:>9} {difference(now, known):>11}{remark(step, now, known)}")
    return "\n".join(lines)


def difference(now, known):
    return f"{now / known - 1:+.1%}" if known else ""


def remark(step, now, known):
    if step in BESIDE:
        return "  not held to it"
    return "" if known is None or is_kept(step, now, known) else "  TOO MUCH"


def judge(measured):
    """Sentences about what is above the budget; what is far below it is said as well, and is no failure."""
    stored = load()
    faults, gains = [], []
    for kind, figures in measured.items():
        budget = stored["instructions"].get(kind)
        if budget is None:
            faults.append(f"{kind} has no budget: `loadtest/micro --accept {kind}` makes one")
            continue
        for step, now in figures.items():
            known = budget.get(step, 0)
            if not is_kept(step, now, known):
                faults.append(f"{kind}, {step}: {now:,} instructions, and the budget is {known:,}")
            elif not is_kept(step, known, now):
                gains.append(f"{kind}, {step}")
    others = [(name, stored["made with"].get(name), now) for name, now in tools().items() if stored["made with"].get(name) != now]
    if faults and others:
        # Another compiler or processor counts otherwise: that is no regression of the gateway's.
        for name, then, now in others:
            say(f"the budget was made with another {name}: {then}; here it is {now}")
        say(f"so this is told and is no failure: {'; '.join(faults)}")
        return []
    if gains:
        say(f"less than the budget: {'; '.join(gains)}. `loadtest/micro --accept` holds it there")
    return faults
