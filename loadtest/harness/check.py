"""Before anything is measured: whether a target does the work that it is measured for.

What forwards must forward. What does the whole job must take the key and a forged assertion off, add its own, and refuse
an unknown key and a denied route.
"""

import http.client
import ssl

from . import keys

FORGED = "forged-by-the-client"


def check(target):
    """Fails with a sentence where the target does less than it should."""
    known = target.keys[-1]
    status, seen = ask(target, "/v1/ledger/echo", known)
    demand(target, status == 200, f"answers a good request with {status}")
    demand(target, "GET /v1/ledger/echo HTTP/1.1" in seen, "does not forward the request")
    if not target.does_the_job:
        return
    demand(target, known not in seen, "shows the key to the upstream")
    demand(target, "x-assure-jwt-assertion: " in seen.lower(), "adds no assertion")
    demand(target, FORGED not in seen, "lets a forged assertion through")
    [stranger] = keys.unknown(1, seed=3)
    for path, key, expected in (("/v1/ledger/echo", stranger, 401), ("/v1/session/new", known, 403)):
        status, _ = ask(target, path, key)
        demand(target, status == expected, f"answers {path} with {status}, not {expected}")


def ask(target, path, key):
    if target.setup.tls:
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection("127.0.0.1", target.port, timeout=10, context=context)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=10)
    connection.request("GET", path, headers={"Authorization": f"Bearer {key}", "X-Assure-Jwt-Assertion": FORGED})
    answer = connection.getresponse()
    text = answer.read().decode(errors="replace")
    connection.close()
    return answer.status, text


def demand(target, is_so, otherwise):
    if not is_so:
        raise RuntimeError(f"{target.label} {otherwise}; it is not measured like that")
