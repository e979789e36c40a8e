"""The tables: medians, spread, ratios to nginx and to each peer; what they were measured on."""

import os
import platform
import statistics
import subprocess
from pathlib import Path

from . import release
from .install import REPOSITORY, find_program
from .measure import BUSY_SHARE

VERSIONS = {"nginx": ["nginx", "-v"], "HAProxy": ["haproxy", "-v"], "Redis": ["redis-server", "--version"], "h2load": ["h2load", "--version"]}


COLUMNS = {
    "activity": {"newest, ms": "page_ms", "of one key, ms": "key_ms", "creations, ms": "action_ms", "until a moment, ms": "until_ms"},
    "backlog": {"in the spool, MiB": "backlog_mib", "records": "records", "start with it, s": "start_s", "MiB / s": "mib_per_s", "records / s": "records_per_s",
                "start without, s": "empty_start_s"},
}


def median(samples, name):
    return statistics.median(samples[name]) if samples.get(name) else None


def spread(samples, name):
    """From the lowest to the highest round, as a share of the median."""
    middle = median(samples, name)
    return (max(samples[name]) - min(samples[name])) / middle if middle else 0


def table(suite, results, rate):
    """A suite's table, in Markdown."""
    if suite.kind == "idle":
        return idle_table(results)
    if suite.kind == "beside":
        return beside_table(results)
    if suite.kind in COLUMNS:
        return plain_table(results, COLUMNS[suite.kind])
    measure = next((samples for row, samples in results if row.target.__name__ == "Nginx"), None)
    heads = ["target", "µs CPU / request", "± ", "Redis µs", "requests / s", "± ", "RSS MiB", "PSS MiB"]
    counts_keys = any("cached_keys" in samples for _, samples in results)
    heads += ["keys in the cache"] if counts_keys else []
    heads += ["CPU × nginx", "throughput × nginx"] if measure else []
    heads += [f"{name} ms at {rate:,.0f}/s" for name in ("p50", "p99", "p99.9")] if rate else []
    return markdown(heads, [line(row, samples, measure, rate, counts_keys) for row, samples in results])


def line(row, samples, measure, rate, counts_keys):
    cells = [row.label + mark(row, samples), number(median(samples, "cpu_us"), 1), percent(spread(samples, "cpu_us")),
             number(median(samples, "helper_us"), 1) if median(samples, "helper_us") else "", number(median(samples, "rate"), 0),
             percent(spread(samples, "rate")), number(median(samples, "rss_mib"), 1), number(median(samples, "pss_mib"), 1)]
    if counts_keys:
        cells.append(number(median(samples, "cached_keys"), 0))
    if measure:
        cells += [ratio(samples, measure, "cpu_us"), ratio(samples, measure, "rate")]
    if rate:
        cells += [milliseconds(samples, name) for name in ("p50", "p99", "p999")]
    return cells


def beside_table(results):
    heads = ["target", "µs / accepted", "µs / refused", "refused ÷ accepted", "refused / s alone", "good beside the flood", "good p99 ms alone",
             "good p99 ms beside", "refused / s beside"]
    lines = [[row.label + mark(row, samples), number(median(samples, "accepted_us"), 1), number(median(samples, "refused_us"), 1),
              number(median(samples, "refused_us") / (median(samples, "accepted_us") or 1), 2), number(median(samples, "refused_rate"), 0),
              percent(median(samples, "good_share")), milliseconds(samples, "p99_alone"), milliseconds(samples, "p99_beside"),
              number(median(samples, "flood_rate"), 0)] for row, samples in results]
    return markdown(heads, lines)


def plain_table(results, columns):
    lines = [[row.label, *(number(median(samples, name), 2) for name in columns.values())] for row, samples in results]
    return markdown(["target", *columns], lines)


def idle_table(results):
    heads = ["target", "KiB / connection", "± ", "MiB with all of them"]
    lines = [[row.label + mark(row, samples), number(median(samples, "kib_per_connection"), 1), percent(spread(samples, "kib_per_connection")),
              number(median(samples, "anonymous_mib"), 1)] for row, samples in results]
    return markdown(heads, lines)


def peers_table(results):
    """What the gateway costs and gives, against each other target; nothing where there is no gateway or no peer."""
    own = [(row, samples) for row, samples in results if row.target.__name__.startswith("Gateway") and samples.get("cpu_us")]
    others = [(row, samples) for row, samples in results if not row.target.__name__.startswith("Gateway") and samples.get("cpu_us")]
    # Where a target stands in several rows, they are compared with each other, not with all peers.
    if not own or not others or any(row.note for row, _ in results):
        return ""
    heads = ["against"] + [f"{row.label}: {what}" for row, _ in own for what in ("CPU ×", "throughput ×")]
    lines = [[row.label] + [ratio(mine, samples, what) for _, mine in own for what in ("cpu_us", "rate")] for row, samples in others]
    return markdown(heads, lines)


def mark(row, samples):
    """† the load was at its own limit; ‡ not all answers were as they should have been."""
    is_busy = (median(samples, "busy") or 0) > BUSY_SHARE
    is_wrong = any(min(samples.get(name, [1])) < row.right_min for name in ("right", "right_accepted"))
    return (" †" if is_busy else "") + (" ‡" if is_wrong else "")


def markdown(heads, lines):
    rule = ["---"] + ["---:"] * (len(heads) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [[head.strip() for head in heads], rule, *lines])


def number(value, digits):
    return "" if value is None else f"{value:,.{digits}f}"


def percent(value):
    return "" if value is None else f"{value:.0%}"


def ratio(samples, measure, name):
    own, other = median(samples, name), median(measure, name)
    return number(own / other, 2) if own and other else ""


def milliseconds(samples, name):
    value = median(samples, name)
    # A target that cannot keep up with the rate is not asked at it.
    return "too slow" if value is None else number(value / 1000, 2)


def machine_text(machine, options):
    """What the numbers were measured on."""
    lines = [f"- {cpu_model()}, {os.cpu_count()} cores; proxy on {machine.proxy_cores}, load and upstream on {machine.load_cores}.",
             f"- {platform.system()} {platform.release()}, {memory_gib():.0f} GiB; load average at the start {os.getloadavg()[0]:.1f}.",
             f"- {options.rounds} rounds of {options.seconds:g} s each, interleaved, after {options.warm_seconds:g} s of warming; medians; ± is "
             "the highest round less the lowest, as a share of the median.",
             f"- gateway {revision()}, {'as released' if machine.gateway.is_relative_to(release.FOLDER) else 'built without a profile'}; " + "; ".join(versions(machine)) + "."]
    return "\n".join(lines)


def cpu_model():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def memory_gib():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def revision():
    answer = subprocess.run(["git", "-C", REPOSITORY, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "of unknown revision"


def versions(machine):
    found = [f"{name} {first_number(command)}" for name, command in VERSIONS.items()]
    return found + ([f"Envoy {first_number([machine.envoy, '--version'])}"] if machine.envoy else [])


def first_number(command):
    program = find_program(str(command[0])) or command[0]
    answer = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
    words = (answer.stdout + answer.stderr).replace("/", " ").replace("=", " ").split()
    return next((word.rstrip(",") for word in words if word[0].isdigit() and "." in word), "?")
