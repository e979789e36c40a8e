#!/usr/bin/env python3
"""Holds the dependency tree to deny.toml: licences, banned crates, sources. Needs no network and no other tool.

Reads the resolved tree from cargo, so only what is compiled for the listed targets counts. A licence
expression is satisfied if some choice of its alternatives is made of allowed licences only (SPDX, appendix IV).
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def cargo(*words):
    return subprocess.run(["cargo", *words], cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout


def tree(target):
    """The packages that a build for `target` compiles, and our own."""
    metadata = json.loads(cargo("metadata", "--format-version", "1", "--locked", "--filter-platform", target))
    # The metadata also name what only a disabled feature would bring; the tree says what is compiled.
    lines = cargo("tree", "--locked", "--target", target, "--edges", "all", "--prefix", "none", "--format", "{p}").splitlines()
    compiled = {tuple(line.split()[:2]) for line in lines if line.strip()}
    root = next(package for package in metadata["packages"] if package["id"] == metadata["resolve"]["root"])
    packages = [package for package in metadata["packages"] if (package["name"], f"v{package['version']}") in compiled]
    return [package for package in packages if package is not root], root


def is_allowed(expression, allowed):
    """Whether an SPDX expression can be satisfied from `allowed`."""
    words = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))

    def alternatives():
        result = requirements()
        while words and words[0] == "OR":
            words.pop(0)
            # Evaluated first, so that the words are consumed whatever came before.
            result = requirements() or result
        return result

    def requirements():
        result = one()
        while words and words[0] == "AND":
            words.pop(0)
            result = one() and result
        return result

    def one():
        word = words.pop(0)
        if word == "(":
            result = alternatives()
            words.pop(0)
            return result
        if words and words[0] == "WITH":
            word = f"{word} {words.pop(0)} {words.pop(0)}"
        return word in allowed

    return alternatives()


def mistakes(rules, packages, root):
    allowed = set(rules["licenses"]["allow"])
    banned = {ban["crate"]: ban["reason"] for ban in rules["bans"]["deny"]}
    registries = {f"registry+{registry}" for registry in rules["sources"]["allow-registry"]}
    for package in packages:
        name, version = package["name"], package["version"]
        if not package["license"] or not is_allowed(package["license"], allowed):
            yield f"{name} {version}: the licence {package['license']} is not allowed"
        reason = banned.get(name) or banned.get(f"{name}@{version}")
        if reason:
            yield f"{name} {version} is banned: {reason}"
        if package["source"] not in registries:
            yield f"{name} {version} comes from {package['source']}"
    for dependency in root["dependencies"]:
        if dependency["req"] == "*":
            yield f"{dependency['name']}: a dependency without a version"


def self_test():
    allowed = {"MIT", "ISC", "Apache-2.0 WITH LLVM-exception"}
    rows = {
        "MIT": True,
        "GPL-3.0": False,
        "GPL-3.0 OR MIT": True,
        "GPL-3.0/MIT": True,
        "GPL-3.0 AND MIT": False,
        "ISC AND (GPL-3.0 OR MIT)": True,
        "(GPL-3.0 OR MIT) AND GPL-2.0": False,
        "Apache-2.0 WITH LLVM-exception": True,
    }
    for expression, expected in rows.items():
        assert is_allowed(expression, allowed) is expected, expression


def main():
    self_test()
    rules = tomllib.loads((REPOSITORY / "deny.toml").read_text())
    found = []
    for target in rules["graph"]["targets"]:
        packages, root = tree(target)
        found += mistakes(rules, packages, root)
        print(f"dependencies: {len(packages)} crates for {target}, {len(found)} mistakes")
    sys.exit("\n".join(found) if found else 0)


if __name__ == "__main__":
    main()
