"""Provide AWS's base images for Python, or stand-ins for them.

    python -m tests.container.base_images    # from the project's root

An image that cannot be pulled is replaced by Debian with the same Python version, entry point and
emulator, under the same tag and with the label `STAND_IN`. Building one needs root, debootstrap
and a Docker daemon.
"""

import ast
import configparser
import hashlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serving.errors import UserError
from training.cli import run_command

ROOT = Path(__file__).parent.parent.parent
SOURCES = Path(__file__).parent / "stand_in"
REPOSITORY = "public.ecr.aws/lambda/python"
# {Python version: Debian release that has it}
RELEASES = {"3.11": "bookworm", "3.13": "trixie"}
PACKAGES = "python3,python3-pip,ca-certificates"
# The runtime interface client and its dependencies, at the versions of the lock.
CLIENT = ("awslambdaric", "simplejson", "snapshot-restore-py")
STAND_IN = "stand-in-for-the-aws-image"  # the label; its value is a hash of the sources
PULL_TIMEOUT = 300  # seconds
CA_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
# The variables that `docker build` accepts without an ARG.
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


class UnavailableError(UserError):
    """A base image can neither be pulled nor replaced; `str(error)` says why."""


def ensure_base_images() -> list[str]:
    """Give the daemon every base image, and return their tags.

    Raises:
        UnavailableError: one is missing and cannot be built.
    """
    with ThreadPoolExecutor() as pool:
        return list(pool.map(ensure_base_image, RELEASES))


def ensure_base_image(python: str) -> str:
    """Give the daemon the base image for `python` ("3.11").

    Returns its tag. A real image stays; a stand-in is rebuilt when its sources have changed.

    Raises:
        UnavailableError: it is missing and cannot be built.
    """
    tag = f"{REPOSITORY}:{python}"
    labels = image_labels(tag)
    if labels is None and can_pull(tag):
        return tag
    if labels is None or STAND_IN in labels:
        with tempfile.TemporaryDirectory() as folder:
            build_stand_in(tag, RELEASES[python], Path(folder), labels or {})
    return tag


def image_labels(tag: str) -> dict[str, str] | None:
    """Return the labels of the image `tag`, None if it is missing."""
    process = subprocess.run(
        ["docker", "image", "inspect", "--format", "{{json .Config.Labels}}", tag],
        capture_output=True,
        text=True,
    )
    return (json.loads(process.stdout) or {}) if process.returncode == 0 else None


def can_pull(tag: str) -> bool:
    """Pull `tag` and return whether that worked."""
    try:
        pull = subprocess.run(["docker", "pull", tag], capture_output=True, timeout=PULL_TIMEOUT)
    except subprocess.TimeoutExpired:
        return False
    return pull.returncode == 0


def build_stand_in(tag: str, release: str, folder: Path, labels: dict[str, str]) -> None:
    """Build the stand-in `tag` on a Debian release.

    Does nothing if `labels` show that it is up to date.

    Raises:
        UnavailableError: a requirement is missing, or a step failed.
    """
    context = folder / "context"
    write_context(context)
    made_from = digest(context)
    if labels.get(STAND_IN) == made_from:
        return
    print(f"Building a stand-in for {tag} on Debian {release} ...", flush=True)
    rootfs = f"{STAND_IN}/{release}"
    if image_labels(rootfs) is None:
        import_debian(release, rootfs, folder / "rootfs")
    names = ("--tag", tag, "--label", f"{STAND_IN}={made_from}", "--build-arg", f"ROOTFS={rootfs}")
    call(["docker", "build", *build_options(), *names, str(context)])


def build_options() -> list[str]:
    """Return the flags that give `docker build` this machine's network and proxies."""
    proxies = [f"--build-arg={name}" for name in PROXIES if name in os.environ]
    return ["--network", "host", *proxies]


def write_context(context: Path) -> None:
    """Put the files that the stand-in's Dockerfile copies into `context`.

    Raises:
        UnavailableError: the emulator cannot be fetched.
    """
    shutil.copytree(SOURCES, context)
    etc = context / "etc"
    certificates = etc / "ssl" / "certs"
    certificates.mkdir(parents=True)
    if bundle := ca_bundle():
        shutil.copy(bundle, certificates / "ca-certificates.crt")
    with (etc / "pip.conf").open("w") as file:
        pip_configuration().write(file)
    (context / "requirements.txt").write_text(client_requirements())
    shutil.copy(emulator(), context / "aws-lambda-rie")


def emulator() -> Path:
    """Return the Lambda Runtime Interface Emulator's binary.

    Raises:
        UnavailableError: it cannot be fetched.
    """
    from tools.emulator import emulator_binary

    try:
        return emulator_binary()
    except Exception as error:
        raise UnavailableError(f"The Lambda emulator cannot be fetched: {error}") from error


def ca_bundle() -> str | None:
    """Return the path of this machine's certificate bundle, if it has one."""
    found = (ssl.get_default_verify_paths().cafile, *CA_BUNDLES)
    return next((path for path in found if path and Path(path).is_file()), None)


def pip_configuration() -> configparser.RawConfigParser:
    """Return this machine's pip settings for package indexes, without local folders."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True
    )
    configuration = configparser.RawConfigParser()
    configuration.add_section("global")
    # Sorted so that the environment's settings (`:env:`) override those in files.
    for line in sorted(listed.stdout.splitlines(), reverse=True):
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2]
        if option in ("index-url", "extra-index-url", "trusted-host"):
            words = ast.literal_eval(value).split()
            words = [word for word in words if not word.startswith("file:")]
            if words:
                configuration.set("global", option, " ".join(words))
    return configuration


def client_requirements() -> str:
    """Return the runtime interface client's requirements, with the hashes of the lock."""
    locked = json.loads((ROOT / "Pipfile.lock").read_text())["develop"]
    lines = []
    for name in CLIENT:
        hashes = " ".join(f"--hash={value}" for value in locked[name]["hashes"])
        lines.append(f"{name}{locked[name]['version']} {hashes}\n")
    return "".join(lines)


def digest(folder: Path) -> str:
    """Return a hash of all names and contents under `folder`."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


def import_debian(release: str, tag: str, folder: Path) -> None:
    """Import a minimal Debian release with Python as the image `tag`.

    Raises:
        UnavailableError: root or debootstrap is missing, or it fails.
    """
    if os.geteuid() != 0:
        raise UnavailableError("AWS's image cannot be pulled, and a stand-in needs root.")
    if not shutil.which("debootstrap"):
        raise UnavailableError("AWS's image cannot be pulled, and a stand-in needs debootstrap.")
    options = ("--variant=minbase", f"--include={PACKAGES}")
    command = ["debootstrap", *options, release, str(folder), *debian_mirror()]
    call(command, env=os.environ | apt_proxy())
    archive = folder.parent / "rootfs.tar"
    skipped = [f"--exclude=./var/{name}" for name in ("cache/apt/*", "lib/apt/lists/*")]
    call(["tar", "--create", "--file", str(archive), "--directory", str(folder), *skipped, "."])
    call(["docker", "import", str(archive), tag])


def debian_mirror() -> list[str]:
    """Return apt's archive on this machine, or none to use debootstrap's default."""
    if not shutil.which("apt-get"):
        return []
    query = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    query += ["Origin: Debian", "Component: main"]
    listed = subprocess.run(query, capture_output=True, text=True).stdout.split()
    # The main archive comes first; security and update archives lack most packages.
    return [uri for uri in listed if uri.startswith("http") and "security" not in uri][:1]


def apt_proxy() -> dict[str, str]:
    """Return apt's proxy as an environment variable for debootstrap."""
    if not shutil.which("apt-config"):
        return {}
    command = ["apt-config", "dump", "--format", "%v", "Acquire::http::Proxy"]
    proxy = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return {"http_proxy": proxy} if proxy.startswith("http") else {}


def call(command: list[str], **options: object) -> None:
    """Run `command`.

    Raises:
        UnavailableError: it failed; the message has its last lines.
    """
    process = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    if process.returncode:
        end = "\n".join(process.stdout.splitlines()[-20:])
        raise UnavailableError(f"{' '.join(command[:2])} failed:\n{end}")


if __name__ == "__main__":
    sys.exit(
        run_command(
            lambda: print("\n".join(ensure_base_images())),
            "tests.container.base_images",
            paths="read the sources and run docker",
        )
    )
