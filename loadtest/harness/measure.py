"""Measuring: rounds that take the targets in turn (A B C A B C …), so that a machine's moods meet all of them alike.

CPU is that of all the proxy's processes, from /proc, over the whole of a load, divided by its answers. A sample in which not
nearly every answer had the expected status is marked, and so is one in which the load's own cores were busy throughout.
"""

import json
import re
import resource
import statistics
import subprocess
import time
from dataclasses import dataclass, replace
from urllib.parse import quote

from . import backlog, keys
from .check import check
from .install import find_program, say
from .processes import wait_until
from .suites import CONNECTIONS, REAL_LIMIT

# A throughput that is the load generator's or the upstream's says nothing about the proxy.
BUSY_SHARE = 0.95
UNKNOWN_KEYS = 200_000
# Behind this share of a target's own maximum, latency is the queue's.
OPEN_LOOP_SHARE = 0.8
COUNTED_SECONDS_MAX = 120
# Records of a log are made in portions that a load can do before its time is over.
RECORDS_AT_ONCE = 200_000
SHIPPING_WAIT_S = 3600
QUESTIONS = 15
QUANTILES = ("p50", "p99", "p999")


@dataclass
class Options:
    """What the caller may choose."""

    rounds: int
    seconds: float
    warm_seconds: float
    rate: float | None
    good_rate: float
    cold_keys: int
    many_keys: int
    scale_keys: int
    activity_records: int
    idle_connections: int
    backlog_mib: int = 64

    @classmethod
    def for_training(cls, seconds):
        """Of loads that nobody measures."""
        return cls(1, seconds, 0, None, 0, 0, 0, 0, 0, 0, 0)


class Bench:
    """Runs suites on one machine."""

    def __init__(self, machine, options):
        self.machine, self.options = machine, options
        self.upstreams, self.started = [], 0

    def start_upstreams(self):
        """What every target forwards to: one process for each two of the load's cores."""
        for number in range(max(1, len(self.machine.load_cores) // 2)):
            command = [self.machine.loadgen, "upstream", "--listen", f"127.0.0.1:{self.machine.upstream_port}"]
            self.upstreams.append(self.machine.workplace.start(command, self.machine.load_cores, f"upstream-{number}", self.machine.upstream_port))

    def run(self, suite):
        """All samples of a suite: a list of (row, {measure: [value of each round]})."""
        available = [row for row in suite.rows if row.target.is_available(self.machine)]
        instances = {}
        try:
            for row in available:
                self.instance(instances, row)
            kind = {"rounds": self.closed, "http2": self.http2, "idle": self.idle, "beside": self.beside,
                    "activity": self.activity, "backlog": self.backlog}[suite.kind]
            results = [(row, {}) for row in available]
            self.rounds(results, instances, kind)
            rate = self.latency_rate(results) if suite.latency else None
            if rate:
                able = [result for result in results if statistics.median(result[1]["rate"]) > rate * 1.02]
                self.rounds(able, instances, lambda row, target: self.open(row, target, rate))
            return results, rate or available[0].load.get("rate")
        finally:
            for target in instances.values():
                target.stop()

    def instance(self, instances, row):
        kept = (row.target, row.setup)
        if kept not in instances:
            self.started += 1
            target = row.target(self.machine, row.setup, self.started)
            say(f"starting {row.label}")
            # Before it has started, so that it is stopped even if it never does.
            instances[kept] = target
            target.start()
            check(target)
        return instances[kept]

    def rounds(self, results, instances, measure):
        for number in range(self.options.rounds):
            for row, samples in results:
                say(f"round {number + 1} of {self.options.rounds}: {row.label}")
                for name, value in measure(row, instances[row.target, row.setup]).items():
                    samples.setdefault(name, []).append(value)

    # Kinds of rounds.

    def closed(self, row, target):
        """As fast as it goes."""
        if row.is_cold:
            target.restart()
        elif row.fills and not target.is_full:
            # Each of its keys once, so that what is measured is measured with all of them in the cache.
            self.load(row, target, requests=row.load["keys"][1])
            target.is_full = True
        else:
            self.load(row, target, seconds=self.options.warm_seconds)
        cached = {"cached_keys": target.metric("key_cache_entries")} if row.fills else {}
        return {**self.charged(target, lambda: self.load(row, target), row.expect), **sizes(target), **cached}

    def open(self, row, target, rate):
        """At a fixed rate, whatever the answers do."""
        answer = self.load(row, target, rate=rate)
        return {name: answer["latency_us"][name] for name in QUANTILES}

    def http2(self, row, target):
        self.h2load(target, self.options.warm_seconds)
        return {**self.charged(target, lambda: self.h2load(target, self.options.seconds), row.expect), **sizes(target)}

    def idle(self, row, target):
        """What each of many connections that only stand there costs, in memory of the process's own.

        A process anew each time: one that has freed memory would hide the connections in it.
        """
        target.restart()
        self.load(row, target, connections=1, requests=10)
        before, count = memory(target, "Anonymous"), self.options.idle_connections
        load = {**row.load, "connections": count, "requests": count, "rate": count / 2, "seconds": COUNTED_SECONDS_MAX, "hold": 600}
        holder = self.spawn(row, target, load)
        try:
            answer = json.loads(holder.stdout.readline())
            time.sleep(1)
            after = memory(target, "Anonymous")
        finally:
            holder.terminate()
            holder.wait()
        return {"kib_per_connection": (after - before) * 1024 / count, "anonymous_mib": after, "right": right_share(answer, row.expect)}

    def beside(self, row, target):
        """A flood alone, good traffic alone, both at once; and what an accepted request costs."""
        first = 1 if row.expect == 429 else 0
        good = {"keys": (first, target.setup.keys - first), "connections": 32}
        at_rate = {**good, "rate": self.options.good_rate, "seconds": self.options.seconds}
        calm = replace(row, load={})
        self.load(calm, target, **good, seconds=self.options.warm_seconds)
        if row.expect == 429:
            self.load(row, target, requests=REAL_LIMIT * 3 // 2)
        accepted = self.charged(target, lambda: self.load(calm, target, **good), 200)
        refused = self.charged(target, lambda: self.load(row, target), row.expect)
        alone = self.load(calm, target, **at_rate)
        flood = self.spawn(row, target, {**row.load, "seconds": self.options.seconds + 1})
        try:
            together = self.load(calm, target, **at_rate)
            flooded = json.loads(flood.communicate(timeout=COUNTED_SECONDS_MAX)[0])
        finally:
            flood.kill()
        return {
            "accepted_us": accepted["cpu_us"], "refused_us": refused["cpu_us"], "refused_rate": refused["rate"], "right": refused["right"],
            "right_accepted": accepted["right"], "good_share": together["statuses"].get("200", 0) / max(1, alone["statuses"].get("200", 0)),
            "p99_alone": alone["latency_us"]["p99"], "p99_beside": together["latency_us"]["p99"],
            "flood_rate": flooded["answers"] / flooded["seconds"],
        }

    def activity(self, row, target):
        """How long a page of the log takes to read, with so many records in it."""
        while target.records < row.setup.records:
            target.records += self.load(row, target, requests=min(RECORDS_AT_ONCE, row.setup.records - target.records))["answers"]
        wait_until(lambda: target.metric("audit_spool_bytes") == 0, target.proxies[0], SHIPPING_WAIT_S)
        bearer = keys.token(self.machine.gateway, target.config, "firm-0")
        newest = target.ask_admin("/v1/activity?limit=1", bearer)[1]["records"][0]
        questions = {"page_ms": "", "key_ms": f"&key={newest['key_id']}", "action_ms": "&action=key.create", "until_ms": f"&until={quote(newest['time'])}"}
        samples = {name: [target.ask_admin(f"/v1/activity?limit=100{filters}", bearer)[0] * 1000 for _ in range(QUESTIONS)]
                   for name, filters in questions.items()}
        return {name: statistics.median(values) for name, values in samples.items()}

    def backlog(self, row, target):
        """How long a start takes that ships a backlog before it serves, and how long one that has none."""
        left = backlog.make(target, lambda records: self.load(row, target, requests=records), self.options.backlog_mib * 2**20)
        seconds, records = backlog.ship(target)
        return {"backlog_mib": left / 2**20, "start_s": seconds, "mib_per_s": left / 2**20 / seconds, "records": records,
                "records_per_s": records / seconds, "empty_start_s": killed_and_started(target)}

    def latency_rate(self, results):
        """0.8 times what the gateway does (or the first target, where it is not among them), or what the caller chose."""
        if self.options.rate:
            return self.options.rate
        own = [samples for row, samples in results if row.target.__name__ == "Gateway"] or [samples for _, samples in results]
        return round(OPEN_LOOP_SHARE * statistics.median(own[0]["rate"]), -2)

    # One load.

    def charged(self, target, load, expect):
        """Runs a load and says what it cost the target for each answer."""
        at = self.clocks(target)
        answer = load()
        proxy, helpers, upstream, own = (after - before for after, before in zip(self.clocks(target), at))
        answers, seconds = max(1, answer["answers"]), answer["seconds"]
        busy = (upstream + own + helpers) / seconds / len(self.machine.load_cores)
        return {
            "cpu_us": proxy / answers * 1e6, "helper_us": helpers / answers * 1e6, "rate": answers / seconds,
            "right": right_share(answer, expect), "busy": busy, **self.latencies(answer),
        }

    @staticmethod
    def latencies(answer):
        """Those of a load at a fixed rate; a closed loop has none that mean anything."""
        return {name: answer["latency_us"][name] for name in QUANTILES} if answer.get("is_open") else {}

    def clocks(self, target):
        own = resource.getrusage(resource.RUSAGE_CHILDREN)
        sums = [sum(process.cpu_seconds() for process in group) for group in (target.proxies, target.helpers, self.upstreams)]
        return [*sums, own.ru_utime + own.ru_stime]

    def load(self, row, target, **more):
        """Runs one loadgen, or several for a proxy on several cores or at several addresses; answers their sum."""
        load = {"connections": CONNECTIONS, **row.load, **more}
        if "requests" in load and "hold" not in load:
            load["seconds"] = COUNTED_SECONDS_MAX
        elif "seconds" not in load:
            load["seconds"] = self.options.seconds
        count = max(1, len(self.machine.load_cores) // 2) if target.setup.cores > 1 else 1
        load = divided(load, count * len(target.ports))
        started = [self.spawn(row, target, load, port) for port in target.ports for _ in range(count)]
        try:
            answers = [json.loads(process.communicate(timeout=COUNTED_SECONDS_MAX + 60)[0]) for process in started]
        finally:
            for process in started:
                process.kill()
        return {**merge(answers), "is_open": "rate" in load}

    def spawn(self, row, target, load, port=None):
        load = {"connections": CONNECTIONS, **load}
        load["keys"] = self.keys_file(target, load.get("keys", (0, None)))
        words = [str(word) for name, value in load.items() for word in (f"--{name}", value)]
        command = ["taskset", "--cpu-list", ",".join(map(str, self.machine.load_cores)), str(self.machine.loadgen), "load",
                   "--target", f"127.0.0.1:{port or target.port}", *words]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)

    def keys_file(self, target, chosen):
        if chosen != "unknown":
            return target.keys_file(*chosen)
        file = self.machine.workplace.folder / "unknown-keys.txt"
        if not file.exists():
            file.write_text("".join(f"{key}\n" for key in keys.unknown(UNKNOWN_KEYS, seed=2)))
        return file

    def h2load(self, target, seconds):
        key = target.keys[0]
        command = ["taskset", "--cpu-list", ",".join(map(str, self.machine.load_cores)), find_program("h2load"), "-c", "16", "-m", "8",
                   "-D", str(max(1, round(seconds))), "-H", f"Authorization: Bearer {key}", f"https://127.0.0.1:{target.port}/v1/clients/17"]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seconds = re.search(r"finished in ([\d.]+)(ms|s|m)\b", text)
        spoken = float(seconds[1]) * {"ms": 0.001, "s": 1, "m": 60}[seconds[2]]
        good, refused = (int(re.search(rf"(\d+) {kind}xx", text)[1]) for kind in (2, 4))
        return {"answers": good + refused, "seconds": spoken, "statuses": {"200": good, "4xx": refused}, "errors": 0}


def killed_and_started(target):
    """Seconds from the end of a gateway, without warning, until the next one is ready."""
    for process in target.proxies:
        process.child.kill()
    began = time.perf_counter()
    target.restart()
    return time.perf_counter() - began


def divided(load, shares):
    """One of so many equal shares of a load."""
    whole = {name: -(-load[name] // shares) for name in ("connections", "requests") if name in load}
    return {**load, **whole, **({"rate": load["rate"] / shares} if "rate" in load else {})}


def merge(answers):
    """The sum of several loads; latencies are those of the first, which is all there is where they are used."""
    total = dict(answers[0])
    for answer in answers[1:]:
        for name in ("answers", "errors", "unfinished"):
            total[name] += answer[name]
        for status, count in answer["statuses"].items():
            total["statuses"][status] = total["statuses"].get(status, 0) + count
    return total


def right_share(answer, expect):
    """How many of all requests were answered as they should have been."""
    return answer["statuses"].get(str(expect), 0) / max(1, answer["answers"] + answer["errors"])


def sizes(target):
    return {"rss_mib": memory(target, "Rss"), "pss_mib": memory(target, "Pss")}


def memory(target, field):
    return sum(process.memory_kib(field) for process in target.proxies) / 1024
