"""Keys: those the gateway makes through its admin API, and those of the same form that it never made."""

import binascii
import http.client
import json
import random
import string
import subprocess
from concurrent.futures import ThreadPoolExecutor

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
PERMISSIONS = ["View firm settings", "Edit firm settings", "View clients", "Edit clients", "View ledger"]
KEYS_PER_FIRM = 500
# So that few keys, too, belong to several firms: one firm may hold half of an upstream's connections.
FIRMS_MIN = 8
CREATORS_AT_ONCE = 8


def create(binary, config, admin_port, count):
    """Makes keys through the admin API, with tokens of the local issuer; answers their texts, firms mixed."""
    firms = min(count, max(FIRMS_MIN, -(-count // KEYS_PER_FIRM)))
    shares = [count // firms + (place < count % firms) for place in range(firms)]

    def fill(place):
        return create_for_firm(token(binary, config, f"firm-{place}"), admin_port, shares[place])

    with ThreadPoolExecutor(CREATORS_AT_ONCE) as pool:
        filled = list(pool.map(fill, range(firms)))
    return [firm[turn] for turn in range(shares[0]) for firm in filled if turn < len(firm)]


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
