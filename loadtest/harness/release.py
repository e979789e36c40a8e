"""The gateway as it is released: compiled with a profile of how it is used, which the same sources made in a training run before.

A profile tells the compiler which way branches go and what runs together (LLVM's instrumentation-based profile-guided
optimisation). Writing one takes `llvm-profdata` of the very LLVM that rustc holds: rustup has it as the component llvm-tools,
Debian in the package llvm-N. Where neither can be had the build is a plain one, and that is said aloud.
"""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from . import install, targets
from .measure import Bench, Options
from .processes import Workplace, free_port
from .suites import UPLOAD_BYTES, Row
from .targets import Gateway, GatewayRedis, Setup

FOLDER = install.REPOSITORY / "target" / "released"
SECONDS = 3
TLS = Setup(tls=True)
# What a day is made of: mostly requests that are let through, on connections that stay.
TRAINING = [
    Row(Gateway),
    Row(GatewayRedis),
    Row(Gateway, TLS, {"tls": "true"}),
    Row(Gateway, TLS, {"tls": "true", "per-connection": 1}),
    Row(Gateway, load={"per-connection": 1}),
    Row(Gateway, load={"path": "/v1/ledger/bytes/65536", "connections": 16}),
    Row(Gateway, load={"method": "POST", "path": "/v1/ledger/upload", "connections": 4, "body-bytes": UPLOAD_BYTES}),
    Row(Gateway, load={"keys": "unknown"}),
    Row(Gateway, Setup(per_minute=1000), {"keys": (0, 1)}),
]
PACKAGES = {name: install.PACKAGES[name] for name in ("redis-server", "nghttp2-client", "openssl", "util-linux", "gcc", "g++", "libc6-dev", "cmake", "make")}


def build(loadgen):
    """The path of the released gateway."""
    profdata = find_profdata()
    if profdata is None:
        install.say("llvm-profdata of rustc's LLVM cannot be had here: this is a plain build, without a profile")
        return install.build_gateway()
    # Named for what it was made of, because cargo looks at its name alone: another profile must be another flag.
    profile = FOLDER / f"{digest_of_sources()[:16]}.profdata"
    if not profile.exists():
        make_profile(profile, profdata, loadgen)
    binary = FOLDER / "assure-gateway"
    shutil.copy2(compile_with(f"-Cprofile-use={profile}"), binary)
    return binary


def make_profile(profile, profdata, loadgen):
    raw = FOLDER / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    raw.mkdir(parents=True)
    install.say("building the gateway that writes the profile")
    train(compile_with(f"-Cprofile-generate={raw}"), loadgen)
    for former in FOLDER.glob("*.profdata"):
        former.unlink()
    subprocess.run([profdata, "merge", "-sparse", "-o", profile, *raw.glob("*.profraw")], check=True)
    shutil.rmtree(raw)


def train(gateway, loadgen):
    cores = sorted(os.sched_getaffinity(0))
    with Workplace() as workplace:
        machine = targets.Machine(workplace, gateway, loadgen, None, cores[:1], cores[1:] or cores, free_port())
        machine.certificate = targets.certificate(workplace.folder)
        bench = Bench(machine, Options.for_training(SECONDS))
        bench.start_upstreams()
        for number, row in enumerate(TRAINING):
            install.say(f"training {number + 1} of {len(TRAINING) + 1}: {row.target.label} {' '.join(map(str, row.load.values()))}")
            with_target(machine, row, number, lambda target, row=row: bench.load(row, target))
        install.say(f"training {len(TRAINING) + 1} of {len(TRAINING) + 1}: HTTP/2")
        with_target(machine, Row(Gateway, TLS), len(TRAINING), lambda target: bench.h2load(target, SECONDS))


def with_target(machine, row, number, load):
    target = row.target(machine, row.setup, number)
    try:
        target.start()
        load(target)
    finally:
        # Ends it in order, which is when it writes its profile.
        target.stop()


def compile_with(flags):
    """The path of a gateway that was compiled so. With a target of its own, or build scripts would get the flags as well."""
    host = rustc_says("host")
    environment = {**os.environ, "RUSTFLAGS": f"{os.environ.get('RUSTFLAGS', '')} {flags}".strip()}
    command = ["cargo", "build", "--locked", "--quiet", "--release", "--bin", "assure-gateway", "--target", host, "--target-dir", FOLDER,
               "--manifest-path", install.REPOSITORY / "Cargo.toml"]
    subprocess.run(list(map(str, command)), check=True, env=environment)
    return FOLDER / host / "release" / "assure-gateway"


def find_profdata():
    """The path of the right llvm-profdata, which is installed where that is possible; or None."""
    major = rustc_says("LLVM version").split(".")[0]
    sysroot = subprocess.run(["rustc", "--print", "sysroot"], check=True, capture_output=True, text=True).stdout.strip()
    places = [Path(sysroot, "lib/rustlib", rustc_says("host"), "bin/llvm-profdata"), Path(f"/usr/lib/llvm-{major}/bin/llvm-profdata")]
    ways = [["rustup", "component", "add", "llvm-tools"], ["apt-get", "install", "-y", "-qq", "--no-install-recommends", f"llvm-{major}"]]
    for way in [None, *ways]:
        if way and shutil.which(way[0]):
            subprocess.run(way, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if found := next(filter(Path.exists, places), None):
            return found
    return None


def rustc_says(name):
    """A line of `rustc -vV`."""
    text = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout
    return dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)[name]


def digest_of_sources():
    """Of everything that the binary is made of, the compiler's version included."""
    digest = hashlib.sha256(rustc_says("release").encode())
    root = install.REPOSITORY
    for file in [root / "Cargo.lock", root / "Cargo.toml", *sorted((root / "src").rglob("*"))]:
        if file.is_file():
            digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
