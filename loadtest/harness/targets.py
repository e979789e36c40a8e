"""What is measured: the gateway, plain proxies, and peers that do the same job; each is started from a file in loadtest/.

`Target.start` fills in the names between @, starts the proxy on its cores and what it leans on (Redis) on the load's, and knows
afterwards where to ask, with which keys, and which processes to charge.
"""

import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path

from . import keys
from .install import LUA_MODULE, find_program
from .processes import START_WAIT_S, free_port, wait_until

LOADTEST = Path(__file__).resolve().parents[1]
PEERS = LOADTEST / "peers"
LIMIT_NONE = 1_000_000
# As long as the gateway's own.
ASSERTION = "a" * 560


@dataclass(frozen=True)
class Setup:
    """How a target is set up, beside what its file says."""

    tls: bool = False
    keys: int = 64
    per_minute: int = LIMIT_NONE
    cores: int = 1
    routes: int = 0
    upstreams: int = 0
    replicas: int = 1
    # How many the activity log has before it is read.
    records: int = 0


@dataclass
class Machine:
    """What all targets share: programs, cores, the upstream, the certificate, the place for files."""

    workplace: object
    gateway: Path
    loadgen: Path
    envoy: Path | None
    proxy_cores: list
    load_cores: list
    upstream_port: int = 0
    certificate: Path | None = None


class Target:
    """Something that is asked; subclasses say how it is started."""

    label = ""
    does_the_job = False
    follows = True

    def __init__(self, machine, setup, number):
        self.machine, self.setup = machine, setup
        self.cores = machine.proxy_cores[:setup.cores]
        self.name = f"{type(self).__name__.lower()}-{number}"
        self.folder = machine.workplace.subfolder(self.name)
        self.port = free_port()
        # Where it is asked: each address gets its share of a load.
        self.ports = [self.port]
        self.records, self.is_full = 0, False
        # Charged as the proxy, and charged beside it.
        self.proxies, self.helpers, self.keys = [], [], []

    @classmethod
    def is_available(cls, machine):
        return True

    def start(self):
        raise NotImplementedError

    def stop(self):
        for process in self.proxies + self.helpers:
            self.machine.workplace.stop(process)
        self.proxies, self.helpers = [], []

    def restart(self):
        """Ends the proxy and starts it with nothing in memory; what it leans on goes on."""
        for process in self.proxies:
            self.machine.workplace.stop(process)
        self.proxies = []
        self.launch()

    def launch(self):
        raise NotImplementedError

    def keys_file(self, first=0, count=None):
        """A file with some of the keys, one a line."""
        chosen = self.keys[first:None if count is None else first + count]
        file = self.folder / f"keys-{first}-{len(chosen)}.txt"
        if not file.exists():
            file.write_text("".join(f"{key}\n" for key in chosen))
        return file

    def fill(self, template, **names):
        """The template with its names filled in, as a file in the target's folder."""
        known = {
            "FOLDER": self.folder, "PORT": self.port, "WORKERS": len(self.cores), "PER_MINUTE": self.setup.per_minute, "PEERS": PEERS,
            "UPSTREAM": f"127.0.0.1:{self.machine.upstream_port}", "UPSTREAM_PORT": self.machine.upstream_port,
            "TLS_WORDS": "", "TLS_LINES": "", **names,
        }
        text = re.sub(r"@([A-Z_]+)@", lambda name: str(known[name[1]]), template.read_text())
        file = self.folder / template.name
        file.write_text(text)
        return file

    def launch_proxy(self, command, port=None):
        process = self.machine.workplace.start(command, self.cores, self.name, port or self.port, self.folder)
        self.proxies.append(process)
        return process

    def start_redis(self, port=None):
        port = port or free_port()
        command = [find_program("redis-server"), "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes",
                   "--appendfsync", "everysec", "--dir", self.folder]
        self.helpers.append(self.machine.workplace.start(command, self.machine.load_cores, f"{self.name}-redis", port, self.folder))
        return port


class Gateway(Target):
    """The gateway on the embedded store, everything on."""

    label = "gateway"
    does_the_job = True
    template = LOADTEST / "gateway-embedded.yaml"
    with_redis = False
    ready_wait_s = START_WAIT_S

    def start(self):
        self.admin_port, self.ops_port = free_port(), free_port()
        self.redis_port = self.start_redis() if self.with_redis else 0
        certificate = self.machine.certificate
        tls = f'{{ certificate: "{certificate}", private_key: "{certificate.with_suffix(".key")}" }}' if self.setup.tls else "null"
        self.config = self.fill(self.template, ADMIN_PORT=self.admin_port, OPS_PORT=self.ops_port, REDIS_PORT=self.redis_port, TLS=tls,
                                MORE_UPSTREAMS=self.more_upstreams(), MORE_ROUTES=self.more_routes())
        if self.setup.keys >= keys.IMPORTED_FROM:
            self.keys = keys.imported(self.machine.gateway, self.config, self.setup.keys)
        self.launch()
        if self.setup.keys and not self.keys:
            self.keys = keys.create(self.machine.gateway, self.config, self.admin_port, self.setup.keys)

    def resume(self):
        """Starts what `stop` has ended, with what it left on disk."""
        if self.with_redis:
            self.start_redis(self.redis_port)
        self.launch()

    def launch(self):
        process = self.machine.workplace.start([self.machine.gateway, "run", "--config", self.config], self.cores, self.name, folder=self.folder)
        self.proxies.append(process)
        wait_until(self.is_ready, process, self.ready_wait_s)

    def is_ready(self):
        with contextlib.suppress(OSError, urllib.error.HTTPError):
            return urllib.request.urlopen(f"http://127.0.0.1:{self.ops_port}/readyz", timeout=5).status == 200
        return False

    def metric(self, name):
        """The value of a metric without labels."""
        text = urllib.request.urlopen(f"http://127.0.0.1:{self.ops_port}/metrics", timeout=5).read().decode()
        return float(re.search(rf"^\w*{name} (\S+)$", text, re.MULTILINE)[1])

    def ask_admin(self, path, bearer):
        """Seconds that an answer of the admin API takes, and the answer."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.admin_port}{path}", headers={"Authorization": f"Bearer {bearer}"})
        began = time.perf_counter()
        text = urllib.request.urlopen(request, timeout=60).read()
        return time.perf_counter() - began, json.loads(text)

    def more_upstreams(self):
        line = '  service-{}: {{ endpoints: ["http://127.0.0.1:{}"] }}'
        return "\n".join(line.format(number, self.machine.upstream_port) for number in range(self.setup.upstreams))

    def more_routes(self):
        forwards = [f"  - {{ path: /v1/service-{n}/**, upstream: service-{n} }}" for n in range(self.setup.upstreams)]
        return "\n".join(forwards + [f"  - {{ path: /v1/route-{n}/**, upstream: ledger }}" for n in range(self.setup.routes)])


class GatewayRedis(Gateway):
    """The gateway on Redis, everything on."""

    label = "gateway on Redis"
    template = LOADTEST / "gateway-redis.yaml"
    with_redis = True

    def start(self):
        super().start()
        for number in range(1, self.setup.replicas):
            replica = Replica(self, number)
            replica.start()
            self.proxies += replica.proxies
            self.ports.append(replica.port)


class Replica(GatewayRedis):
    """One more gateway on the Redis of another; that one is charged with it, ends it, and has the keys."""

    def __init__(self, first, number):
        super().__init__(first.machine, replace(first.setup, replicas=1, keys=0), f"{first.name}-{number}")
        self.redis_port = first.redis_port

    def start_redis(self, port=None):
        return self.redis_port


class Peer(Target):
    """A foreign proxy; it has keys of its own making, of the same form."""

    template = Path()

    def start(self):
        self.keys = keys.unknown(self.setup.keys)
        self.prepare()
        self.launch()

    def prepare(self):
        self.config = self.fill(self.template)


class Nginx(Peer):
    """nginx that only forwards."""

    label = "nginx, forwards only"
    template = PEERS / "nginx.conf"

    def tls_names(self):
        if not self.setup.tls:
            return {}
        certificate = self.machine.certificate
        lines = f"ssl_certificate {certificate}; ssl_certificate_key {certificate.with_suffix('.key')}; ssl_protocols TLSv1.3;"
        return {"TLS_WORDS": "ssl http2", "TLS_LINES": lines}

    def prepare(self):
        self.config = self.fill(self.template, **self.tls_names())

    def launch(self):
        self.launch_proxy([find_program("nginx"), "-p", self.folder, "-c", self.config, "-e", self.folder / "error.log"])


class NginxSidecar(Nginx):
    """nginx with auth_request; the sidecar shares the proxy's cores and is charged with it."""

    label = "nginx + auth_request sidecar"
    does_the_job = True
    template = PEERS / "nginx-sidecar.conf"

    def prepare(self):
        self.sidecar_port = free_port()
        self.config = self.fill(self.template, SIDECAR=f"127.0.0.1:{self.sidecar_port}", **self.tls_names())

    def launch(self):
        self.launch_proxy([self.machine.loadgen, "sidecar", "--listen", f"127.0.0.1:{self.sidecar_port}", "--keys", self.keys_file(),
                           "--per-minute", self.setup.per_minute], self.sidecar_port)
        super().launch()


class NginxLua(Nginx):
    """nginx with Lua; Redis runs on the load's cores, as the gateway's does."""

    label = "nginx + Lua + Redis"
    does_the_job = True
    template = PEERS / "nginx-lua.conf"

    @classmethod
    def is_available(cls, machine):
        return LUA_MODULE.exists()

    def prepare(self):
        redis_port = self.start_redis()
        self.config = self.fill(self.template, REDIS_PORT=redis_port, **self.tls_names())
        commands = "".join(f"SET key:{key} {ASSERTION}\n" for key in self.keys)
        subprocess.run([find_program("redis-cli"), "-p", str(redis_port)], input=commands, text=True, check=True, stdout=subprocess.DEVNULL)


class HaProxy(Peer):
    """HAProxy that only forwards."""

    label = "HAProxy, forwards only"
    template = PEERS / "haproxy.cfg"

    def prepare(self):
        keys_map = self.folder / "keys.map"
        keys_map.write_text("".join(f"{key} {ASSERTION}\n" for key in self.keys))
        words = f"ssl crt {self.machine.certificate.with_suffix('.both')} alpn h2,http/1.1" if self.setup.tls else ""
        self.config = self.fill(self.template, TLS_WORDS=words, KEYS_MAP=keys_map)

    def launch(self):
        self.launch_proxy([find_program("haproxy"), "-db", "-f", self.config])


class HaProxyJob(HaProxy):
    """HAProxy with map, stick table, header, log."""

    label = "HAProxy + map + stick table"
    does_the_job = True
    template = PEERS / "haproxy-job.cfg"


class Envoy(Peer):
    """Envoy that only forwards."""

    label = "Envoy, forwards only"
    template = PEERS / "envoy.yaml"

    @classmethod
    def is_available(cls, machine):
        return machine.envoy is not None

    def prepare(self):
        credential = '                        - {{ key: "{}", client: "client-{}" }}'
        credentials = "\n".join(credential.format(key, number) for number, key in enumerate(self.keys))
        self.config = self.fill(self.template, CREDENTIALS=credentials, ASSERTION=ASSERTION, TLS_LINES=self.tls_lines())

    def tls_lines(self):
        if not self.setup.tls:
            return ""
        certificate, kind = self.machine.certificate, "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
        chain = f'certificate_chain: {{ filename: "{certificate}" }}, private_key: {{ filename: "{certificate.with_suffix(".key")}" }}'
        context = f'alpn_protocols: [h2, http/1.1], tls_certificates: [{{ {chain} }}]'
        return ('transport_socket: { name: envoy.transport_sockets.tls, '
                f'typed_config: {{ "@type": {kind}, common_tls_context: {{ {context} }} }} }}')

    def launch(self):
        self.launch_proxy([self.machine.envoy, "-c", self.config, "--concurrency", len(self.cores), "--disable-hot-restart", "-l", "error"])


class EnvoyJob(Envoy):
    """Envoy with its filters for keys, limits, headers and the log."""

    label = "Envoy + its own filters"
    does_the_job = True
    template = PEERS / "envoy-job.yaml"


def certificate(folder):
    """A self-signed P-256 certificate, its key, and both in one file, as HAProxy wants them."""
    file = Path(folder, "edge.pem")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([shutil.which("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
                    *subject, "-out", str(file), "-keyout", str(file.with_suffix(".key"))], check=True, capture_output=True)
    file.with_suffix(".both").write_text(file.read_text() + file.with_suffix(".key").read_text())
    # Read by the workers of servers that give up root.
    file.chmod(0o644)
    return file
