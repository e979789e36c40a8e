"""Keys: those the gateway makes through its admin API, and those of the same form that it never made."""

import binascii
import hashlib
import http.client
import json
import random
import string
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
MADE_AT = "2026-01-01T00:00:00.000000Z"
PERMISSIONS = ["View firm settings", "Edit firm settings", "View clients", "Edit clients", "View ledger"]
KEYS_PER_FIRM = 500
# So that few keys, too, belong to several firms: one firm may hold half of an upstream's connections.
FIRMS_MIN = 8
CREATORS_AT_ONCE = 8
# From so many on, keys are not made one by one, a thousand or two in a second, but put into the store by an import.
IMPORTED_FROM = 20_000


def create(binary, config, admin_port, count):
    """Makes keys through the admin API, with tokens of the local issuer; answers their texts, firms mixed."""
    shares = shares_of(count)
    firms = len(shares)

    def fill(place):
        return create_for_firm(token(binary, config, f"firm-{place}"), admin_port, shares[place])

    with ThreadPoolExecutor(CREATORS_AT_ONCE) as pool:
        filled = list(pool.map(fill, range(firms)))
    return mixed(filled)


def shares_of(count):
    """How many keys each firm has."""
    firms = min(count, max(FIRMS_MIN, -(-count // KEYS_PER_FIRM)))
    return [count // firms + (place < count % firms) for place in range(firms)]


def mixed(firms):
    """The keys of all firms, each firm's first, then each firm's second, …"""
    return [firm[turn] for turn in range(len(firms[0])) for firm in firms if turn < len(firm)]


def imported(binary, config, count):
    """The same number of keys, of the same firms, by `store import`; no gateway may be running on the store."""
    source, filled, file = random.Random(count), [], Path(config.parent, "keys.jsonl")
    with Export(file) as export:
        for place, share in enumerate(shares_of(count)):
            firm = f"firm-{place}"
            texts = [with_checksum(f"assure_{tag(firm)}{''.join(source.choices(BASE62, k=32))}") for _ in range(share)]
            export.add_firm(firm, texts)
            filled.append(texts)
    subprocess.run([binary, "store", "import", "--config", config, "--input", file], check=True, capture_output=True, cwd=config.parent)
    file.unlink()
    return mixed(filled)


class Export:
    """A file as `store export` writes it, with live keys that nobody has used."""

    def __init__(self, file):
        self.file, self.hash, self.counts = file, hashlib.sha256(), {"firms": 0, "keys": 0, "records": 0, "spools": 0}

    def __enter__(self):
        self.out = self.file.open("wb")
        self.file.chmod(0o600)
        self.write({"kind": "header", "format": "assure-gateway-store", "version": 1, "exported_at": MADE_AT})
        return self

    def __exit__(self, *failure):
        self.write({"kind": "trailer", **self.counts, "sha256": self.hash.hexdigest()})
        self.out.close()

    def write(self, line):
        text = json.dumps(line).encode() + b"\n"
        self.hash.update(text)
        self.out.write(text)

    def add_firm(self, firm, texts):
        self.write({"kind": "firm", "firm_id": firm})
        for number, text in enumerate(texts):
            digest = hashlib.sha256(text.encode()).digest()
            self.write({"kind": "key", "digest": digest.hex(), "id": str(uuid.UUID(bytes=digest[:16], version=4)),
                        "name": f"load {number}", "prefix": text[:15], "firm_id": firm, "creator": "load", "creator_name": "Load",
                        "permissions": sorted(PERMISSIONS), "created_at": MADE_AT, "revoked": None,
                        "uses": {"last": None, "tools": [], "networks": [], "hours": []}})
        self.counts["firms"] += 1
        self.counts["keys"] += len(texts)


def tag(firm):
    """The four characters by which a key says where it is kept."""
    value, digits = int.from_bytes(hashlib.sha256(firm.encode()).digest()[:8], "big"), ""
    for _ in range(4):
        value, digit = divmod(value, 62)
        digits = BASE62[digit] + digits
    return digits


def token(binary, config, firm):
    words = [word for name in PERMISSIONS for word in ("--permission", name)]
    command = [binary, "token", "--config", config, "--firm", firm, "--user", "load", "--name", "Load", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=config.parent).stdout.strip()


def create_for_firm(bearer, port, count):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"}
    keys = []
    for number in range(count):
        connection.request("POST", "/v1/keys", json.dumps({"name": f"load {number}"}), headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 201:
            raise RuntimeError(f"POST /v1/keys answered {answer.status}: {body.decode(errors='replace')}")
        keys.append(json.loads(body)["key"])
    connection.close()
    return keys


def unknown(count, seed=1):
    """Keys with a right checksum that the gateway never made: only a look-up can refuse them."""
    source = random.Random(seed)
    return [with_checksum("assure_" + "".join(source.choices(BASE62, k=36))) for _ in range(count)]


def with_checksum(text):
    value, digits = binascii.crc32(text.encode()), ""
    for _ in range(6):
        value, digit = divmod(value, 62)
        digits = BASE62[digit] + digits
    return text + digits
