#!/usr/bin/env python3
"""Prints a CycloneDX 1.5 bill of materials of the gateway: every crate that a release build compiles, with version, licence,
checksum, and what depends on what. The same sources give the same bytes.

    python3 .ci/sbom.py > assure-gateway.cdx.json
"""

import hashlib
import json
import sys
import tomllib
import uuid

from dependencies import REPOSITORY, cargo

TARGET = "x86_64-unknown-linux-gnu"


def compiled():
    """The packages of a release build: neither tests' dependencies nor what a disabled feature would bring."""
    words = ["tree", "--locked", "--target", TARGET, "--edges", "normal,build", "--prefix", "none", "--format", "{p}"]
    return {tuple(line.split()[:2]) for line in cargo(*words).splitlines() if line.strip()}


def url(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def component(package, checksums):
    found = {
        "type": "library",
        "bom-ref": url(package),
        "name": package["name"],
        "version": package["version"],
        "purl": url(package),
        "licenses": [{"expression": package["license"].replace("/", " OR ")}],
        "hashes": [{"alg": "SHA-256", "content": checksums[package["name"], package["version"]]}],
    }
    if package["repository"]:
        found["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return found


def main():
    lock = (REPOSITORY / "Cargo.lock").read_bytes()
    checksums = {(entry["name"], entry["version"]): entry.get("checksum") for entry in tomllib.loads(lock.decode())["package"]}
    metadata = json.loads(cargo("metadata", "--format-version", "1", "--locked", "--filter-platform", TARGET))
    names = compiled()
    packages = {package["id"]: package for package in metadata["packages"] if (package["name"], f"v{package['version']}") in names}
    root = packages[metadata["resolve"]["root"]]
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}

    def needs(identity):
        kinds = ((needed["pkg"], {kind["kind"] for kind in needed["dep_kinds"]}) for needed in nodes[identity]["deps"])
        return sorted(url(packages[needed]) for needed, kind in kinds if needed in packages and kind != {"dev"})

    libraries = sorted((package for package in packages.values() if package is not root), key=url)
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=hashlib.sha256(lock).digest()[:16], version=4)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": url(root),
                "name": root["name"],
                "version": root["version"],
                "licenses": [{"expression": root["license"]}],
            }
        },
        "components": [component(package, checksums) for package in libraries],
        "dependencies": [
            {"ref": url(packages[identity]), "dependsOn": needs(identity)} for identity in sorted(packages, key=lambda known: url(packages[known]))
        ],
    }
    json.dump(bill, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
