"""Calls the gateway as tools written in Python do: requests, httpx with HTTP/1.1, httpx with HTTP/2.

Usage: http_clients.py EDGE_URL KEY. Prints one line of JSON per call: the client, the call, the status and what it should be.
"""

import json
import sys

import httpx
import requests

edge, key = sys.argv[1:]
AUTHORIZATION = {"Authorization": f"Bearer {key}"}
LIMIT = 10 * 1024 * 1024


def report(client, call, response, expected):
    version = getattr(response, "http_version", "HTTP/1.1")
    print(json.dumps({"client": client, "call": call, "status": response.status_code, "expected": expected, "version": version}))


def pieces(count):
    """A body of undeclared length, as a generator gives it."""
    for _ in range(count):
        yield b"x" * 65536


def calls(name, request):
    report(name, "get", request("GET", "/python", headers=AUTHORIZATION), 200)
    report(name, "post", request("POST", "/python", headers={"X-Api-Key": key}, json={"a": 1}), 200)
    report(name, "no key", request("GET", "/python"), 401)
    report(name, "streamed upload", request("PUT", "/python", headers=AUTHORIZATION, content=pieces(32)), 200)
    report(name, "upload over the limit", request("PUT", "/python", headers=AUTHORIZATION, content=b"x" * (LIMIT + 1)), 413)


session = requests.Session()
session.trust_env = False


def with_requests(method, path, content=None, **rest):
    return session.request(method, edge + path, data=content, timeout=20, **rest)


calls("requests", with_requests)
with httpx.Client(base_url=edge, trust_env=False, timeout=20) as client:
    calls("httpx", client.request)
# Clear text leaves no ALPN to ask with, so HTTP/2 is spoken by prior knowledge.
with httpx.Client(base_url=edge, trust_env=False, timeout=20, http1=False, http2=True) as client:
    calls("httpx over HTTP/2", client.request)
