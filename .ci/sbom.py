#!/usr/bin/env python3
"""Prints what the program is made of, as a bill of materials in CycloneDX 1.5 (JSON): `.ci/sbom.py > sbom.json`.

Says of each crate that a build compiles its version, licence, digest and whether the program itself asks for it.
Reads cargo's own files only; the same sources give the same bytes, so it can be kept beside a release.
"""

import json
import sys
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from dependencies import REPOSITORY, cargo  # noqa: E402

TARGET = "x86_64-unknown-linux-gnu"


def linked():
    """Names and versions of what is compiled into the program; not what only its tests or its build need."""
    lines = cargo("tree", "--locked", "--target", TARGET, "--edges", "normal", "--prefix", "none", "--format", "{p}").splitlines()
    return {tuple(line.split()[:2]) for line in lines if line.strip()}


def reference(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def component(package, digests, direct):
    entry = {
        "type": "library",
        "bom-ref": reference(package),
        "name": package["name"],
        "version": package["version"],
        "purl": reference(package),
        "licenses": [{"expression": package["license"].replace("/", " OR ")}],
        "hashes": [{"alg": "SHA-256", "content": digests[package["name"], package["version"]]}],
        "properties": [{"name": "assure:direct", "value": str(package["name"] in direct).lower()}],
    }
    if package["repository"]:
        entry["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return entry


def main():
    metadata = json.loads(cargo("metadata", "--format-version", "1", "--locked", "--filter-platform", TARGET))
    lock = tomllib.loads((REPOSITORY / "Cargo.lock").read_text())
    digests = {(package["name"], package["version"]): package["checksum"] for package in lock["package"] if "checksum" in package}
    wanted = linked()
    packages = {package["id"]: package for package in metadata["packages"] if (package["name"], f"v{package['version']}") in wanted}
    root = packages.pop(metadata["resolve"]["root"])
    direct = {dependency["name"] for dependency in root["dependencies"] if dependency["kind"] is None}
    chosen = sorted(packages.values(), key=lambda package: (package["name"], package["version"]))
    edges = {node["id"]: node["dependencies"] for node in metadata["resolve"]["nodes"]}
    shown = [root, *chosen]
    dependencies = [
        {"ref": reference(package), "dependsOn": sorted(reference(packages[id]) for id in edges[package["id"]] if id in packages)}
        for package in shown
    ]
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "bom-ref": reference(root), "name": root["name"], "version": root["version"], "purl": reference(root)}
        },
        "components": [component(package, digests, direct) for package in chosen],
        "dependencies": dependencies,
    }
    json.dump(bill, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
