"""The suites: which targets do what work. A row is a target, how it is set up, and the load that it gets."""

from dataclasses import dataclass, field

from .targets import Envoy, EnvoyJob, Gateway, GatewayRedis, HaProxy, HaProxyJob, Nginx, NginxLua, NginxSidecar, Setup

CONNECTIONS = 64
UPLOAD_BYTES = 10 * 1024 * 1024
PLAIN = [Nginx, HaProxy, Envoy]
JOB = [Gateway, GatewayRedis, NginxSidecar, HaProxyJob, NginxLua, EnvoyJob]
# The real limit: what is over it is refused, what is below it passes.
REAL_LIMIT = 1000
# Slow enough for any store to keep up, so that latency is the look-up's and not a queue's.
COLD_RATE = 1000
GOOD_KEYS = 2000
KEYS_PER_LOG = 64
# What the gateway's cache holds at most.
CACHED_KEYS = 100_000


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    target: type
    setup: Setup = Setup()
    # Arguments of loadgen, by name; "keys" is (first, count) of the target's keys, or "unknown".
    load: dict = field(default_factory=dict)
    note: str = ""
    expect: int = 200
    # At least this share of all answers must have the expected status, else the row is marked.
    right_min: float = 0.99
    # Started anew before each round, so that nothing is remembered.
    is_cold: bool = False
    # Each key is used once before the first round, so that as many as can be are in the cache.
    fills: bool = False

    @property
    def label(self):
        return f"{self.target.label}, {self.note}" if self.note else self.target.label


@dataclass(frozen=True)
class Suite:
    """A table."""

    title: str
    rows: list
    # rounds; http2 (h2load); idle (memory of connections that stand there); beside (a flood, and good traffic next to it);
    # activity (reading the log); backlog (shipping what an earlier life left).
    kind: str = "rounds"
    # Whether open-loop latency at a fixed rate is measured as well.
    latency: bool = False
    about: str = ""


def rows(targets, setup=Setup(), **more):
    return [Row(target, setup, **more) for target in targets]


def suites(options, cores):
    """All suites by name; `options` has the sizes that are the caller's to choose."""
    tls = Setup(tls=True)
    everyone = [Gateway, GatewayRedis, *PLAIN]
    many = Setup(keys=options.many_keys)
    return {
        "pass-through": Suite("Nothing but forwarding, beside the gateway with everything on", rows([*PLAIN, Gateway]), latency=True,
                              about=f"1 KiB answers, keep-alive, {CONNECTIONS} connections."),
        "whole-job": Suite("The whole job: key, limit, assertion, log", rows([Nginx, *JOB]), latency=True,
                           about="As pass-through, with 64 keys; nginx, which only forwards, is the measure."),
        "cold-keys": Suite("Cold keys", [Row(target, Setup(keys=options.cold_keys), {"requests": options.cold_keys, "rate": COLD_RATE}, note, is_cold=note == "first use")
                                         for target in (Gateway, GatewayRedis, NginxLua) for note in ("first use", "second use")],
                           about=f"The proxy is started anew, then each of {options.cold_keys:,} keys is used once, at a fixed rate; then once more, so that "
                                 "what such a rate costs by itself can be told from what the first use adds."),
        "many-keys": Suite("One key and many", [Row(target, many, {"keys": (0, count)}, f"{count:,} key{'s' if count > 1 else ''}")
                                                for target in (Gateway, GatewayRedis, NginxSidecar, HaProxyJob) for count in (1, options.many_keys)],
                           about="The same target asked with its first key alone, and with all in turn."),
        "new-connections": Suite("A new connection for each request", rows(everyone, load={"per-connection": 1})),
        "tls": Suite("TLS 1.3, keep-alive", rows(everyone, tls, load={"tls": "true"}), latency=True),
        "tls-handshakes": Suite("A full TLS 1.3 handshake for each request", rows(everyone, tls, load={"tls": "true", "per-connection": 1}),
                                about="X25519, ECDSA P-256, nothing resumed."),
        "http2": Suite("HTTP/2 in TLS", rows(everyone, tls), kind="http2", about="h2load: 16 connections with 8 streams each."),
        "uploads": Suite("Uploads of 10 MiB", rows(everyone, load={"method": "POST", "path": "/v1/ledger/upload", "connections": 4,
                                                                   "body-bytes": UPLOAD_BYTES})),
        "large-answers": Suite("Answers of 64 KiB", rows(everyone, load={"path": "/v1/ledger/bytes/65536", "connections": 16})),
        "idle": Suite(f"{options.idle_connections:,} idle keep-alive connections", rows(everyone) + rows(everyone[:1] + PLAIN, tls, load={"tls": "true"}, note="TLS"),
                      kind="idle", about="Each connection has had one answer."),
        "rate-limited": Suite("A flood over the limit", rate_limited(), kind="beside",
                              about=f"One key floods at a limit of {REAL_LIMIT} a minute; {GOOD_KEYS} other keys go on at a fixed rate."),
        "unknown-keys": Suite("A flood of unknown keys", strangers({}),
                              kind="beside", about="Well-formed keys that nobody made, each new; good keys go on at a fixed rate."),
        "connection-flood": Suite("A flood of new connections", strangers({"per-connection": 1}), kind="beside",
                                  about="Each connection brings one unknown key; good keys go on at a fixed rate on connections that stay."),
        "cores": Suite("Over cores", [Row(target, Setup(cores=count), note=f"{count} core{'s' if count > 1 else ''}")
                                      for target in (Gateway, Nginx) for count in core_counts(cores)],
                       about="The load has the other cores; where there are too few of them the throughput is the load's, not the proxy's."),
        "scale": Suite("Routes, upstreams, keys, replicas", scale(options)),
        "activity": Suite("Reading the activity log", [Row(target, Setup(keys=KEYS_PER_LOG, records=records), note=f"{records:,} records")
                                                       for target in (Gateway, GatewayRedis) for records in record_counts(options.activity_records)],
                          kind="activity", about="A page of 100 records through the admin API, in milliseconds; each firm has an eighth of the records."),
        "backlog": Suite("What an earlier life left in the spool", rows([Gateway, GatewayRedis]), kind="backlog",
                         about=f"A backup of the store is put back after {options.backlog_mib:,} MiB of the spool were written: the next start ships them before it "
                               "serves."),
    }


def rate_limited():
    setup = Setup(keys=GOOD_KEYS + 1, per_minute=REAL_LIMIT)
    return [Row(target, setup, {"keys": (0, 1)}, expect=429, right_min=0.95) for target in (Gateway, GatewayRedis, NginxSidecar, HaProxyJob, NginxLua)]


def strangers(load):
    """Unknown keys, each of them new."""
    return [Row(target, Setup(keys=GOOD_KEYS), {"keys": "unknown", **load}, expect=401) for target in (Gateway, GatewayRedis, NginxSidecar, HaProxyJob, NginxLua)]


def scale(options):
    return [
        Row(Gateway, note="as it is"),
        Row(Gateway, Setup(routes=1000), {"path": "/v1/route-{n}/17", "paths": 1000}, "1,000 routes"),
        Row(Gateway, Setup(upstreams=100), {"path": "/v1/service-{n}/17", "paths": 100}, "100 upstreams"),
        many_keys(Gateway, options.scale_keys),
        Row(GatewayRedis, note="as it is"),
        many_keys(GatewayRedis, options.scale_keys),
        *[Row(GatewayRedis, Setup(replicas=count), note=f"{count} replicas") for count in (2, 4, 8)],
    ]


def many_keys(target, count):
    """So many keys in the store, and of them as many in use as the cache holds."""
    used = min(count, CACHED_KEYS)
    return Row(target, Setup(keys=count), {"keys": (0, used)}, f"{count:,} keys in the store, {used:,} in use", fills=True)


def record_counts(most):
    """Up to so many, each ten times the one before."""
    return sorted(most // factor for factor in (100, 10, 1))


def core_counts(cores):
    """1, 2, 4, … of the cores the proxy has."""
    return [count for count in (1, 2, 4, 8, 16, 32, 64) if count <= cores]
