"""Build and run the container image.

    python -m tools.container build --models models/mine --runtime openvino --tag mine
    python -m tools.container run --port 8081 --tag mine

What stands behind -- goes to Docker as it is. `build` converts the best checkpoint first if the
folder has no .tflite file.
"""

import argparse
import errno
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from serving.errors import UserError
from serving.model_files import best_model
from serving.runtimes import RUNTIMES
from tools.signals import exit_on_signals
from training.cli import make_parser, run_command

ROOT = Path(__file__).resolve().parent.parent
TAG = "flowers"
PORT = 8080
# A container that has only what the service needs: as on Lambda, no rights, and memory enough for
# any image and model.
CONFINED = (
    *("--read-only", "--tmpfs", "/tmp", "--user", "65534:65534"),  # noqa: S108
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--memory", "2g", "--pids-limit", "256"),
)
DOCKER_FAILED = 125  # docker run's exit code where it could not start the container


class ContainerError(UserError):
    """The image cannot be built, or the container not started."""


def main(arguments: list[str] | None = None) -> int:
    """Build or run as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    exit_on_signals()
    return run_command(
        lambda: options.command(options), "tools.container", stopped="The container is stopped."
    )


def build(options: argparse.Namespace) -> int:
    """Build the image with the best model of a folder; return Docker's exit code.

    Raises:
        ContainerError: the folder has no model, or Docker does not answer.
    """
    if options.runtime not in ("", *RUNTIMES):
        raise ContainerError(
            f"Expected RUNTIME to be one of {', '.join(RUNTIMES)}. Received: {options.runtime}."
        )
    if "--help" in options.docker:
        require_docker()
        return subprocess.run(["docker", "build", "--help"]).returncode
    refuse_build_arguments(options.docker)
    models = model_folder(options.models)
    require_docker()
    model = converted_model(models)
    print(f"Build: {options.tag} with {model}", flush=True)
    command = build_command(options.tag, model, options.runtime)
    # Lambda refuses images with BuildKit's attestations.
    environment = os.environ | {"BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
    code = subprocess.run([*command, *options.docker, "."], cwd=ROOT, env=environment).returncode
    if code:
        raise ContainerError(
            "docker build failed; its reason is above. It needs a network for the base image and "
            "the packages, unless they are in Docker's cache."
        )
    tag = "" if options.tag == TAG else f" TAG={shlex.quote(options.tag)}"
    print(f"Built: {options.tag} with {model}. Run it: make run{tag}")
    return code


def build_command(tag: str, model: Path, runtime: str = "") -> list[str]:
    """Return the command that builds `tag`, but for its last word, the folder to build from."""
    command = ["docker", "build", "-t", tag, *model_arguments(model)]
    return [*command, "--build-arg", f"RUNTIME={runtime}"] if runtime else command


def model_arguments(model: Path) -> list[str]:
    """Return the options of docker build that put exactly the file `model` into the image."""
    # By name: Docker's cache takes no notice of which file is the newest.
    arguments = (f"MODELS={model.parent.as_posix()}", f"MODEL={model.name}")
    return [word for argument in arguments for word in ("--build-arg", argument)]


def converted_model(models: Path) -> Path:
    """Return the best model of the folder `models`, converted first if none is.

    Raises:
        ContainerError: its conversion failed, or it is a link that Docker cannot follow.
        ModelError: there is none.
    """
    if not list(models.glob("[!.]*.tflite")):
        convert(models)
    return find_model(models)


def find_model(models: Path) -> Path:
    """Return the best model of the folder `models`.

    Raises:
        ContainerError: it is a link that Docker cannot follow.
        ModelError: there is none.
    """
    model = best_model(models, ".tflite")
    links = [path for path in (model, *model.parents) if path.is_symlink()]
    if not model.resolve().is_relative_to(ROOT.resolve() / "models") or any(
        os.path.isabs(os.readlink(link)) for link in links
    ):
        raise ContainerError(
            "Expected a model in models/, since Docker is sent no other, and follows no link to an "
            f"absolute path. Received: {model}, a link to {model.resolve()}. Copy the file itself "
            "there."
        )
    return model


def refuse_build_arguments(words: list[str]) -> None:
    """Raise `ContainerError` if `words` for Docker contradict what is printed and converted."""
    for before, word in pairwise(("", *words)):
        if before != "--build-arg" and not word.startswith("--build-arg="):
            continue
        name, _, value = word.removeprefix("--build-arg=").partition("=")
        if name == "MODEL":
            raise ContainerError(
                f"Expected the best model of a folder. Received: the build argument {name}="
                f"{value}. Copy that file into a folder of its own, then run: make build "
                "MODELS=models/NAME"
            )
        if name in ("MODELS", "RUNTIME"):
            raise ContainerError(
                f"Expected {name} as a variable of make. Received: a build argument. "
                f"Run: make build {name}={shlex.quote(value)}"
            )


def model_folder(text: str) -> Path:
    """Return the folder of models `text`, relative to the project.

    Raises:
        ContainerError: it is missing, not below models/, or holds no model.
    """
    folder = Path(os.path.relpath(text, ROOT))
    if folder.parts[:1] != ("models",):
        raise ContainerError(
            f"Expected MODELS to be models or a folder in it, since Docker is sent no other. "
            f"Received: {text}. Move it there, or train with --models models/NAME."
        )
    if not (ROOT / folder).is_dir():
        raise ContainerError(
            f"Expected MODELS to be a folder with a model. Received: {text}, which is none. "
            "Check its name, or train into it: python train.py --models "
            f"{shlex.quote(folder.as_posix())}"
        )
    return folder


def convert(models: Path) -> None:
    """Convert the best checkpoint of the folder `models`.

    Raises:
        ContainerError: there is none, or its conversion failed.
    """
    checkpoint = best_model(models, ".h5")
    print(f"Convert: {models} has no .tflite file, so {checkpoint.name} is converted.", flush=True)
    command = [sys.executable, "convert_to_tflite.py", "--models", str(models)]
    if subprocess.run(command).returncode:
        raise ContainerError(
            "The conversion failed; its reason is above. Convert with the images that the model "
            f"was trained on: {printed(command)} --data FOLDER"
        )


def run(options: argparse.Namespace) -> int:
    """Run the image on a port of this machine until Ctrl-C; return Docker's exit code.

    Raises:
        ContainerError: there is no such image, the port is taken, Docker does not answer, or its
            options would open the service to other machines.
    """
    words = options.docker
    if any(re.match(r"-[ditq]*[pP]|--publish", word) for word in words):
        raise ContainerError(
            "Expected the port as a variable of make. Received: one in ARGS, which would be open "
            "to other machines. Run: make run PORT=8081"
        )
    pairs = (f"{word} {value}" for word, value in pairwise(words))
    if any(
        re.fullmatch(r"--net(work)?[= ](host|(.*,)?name=host)(,.*)?", text)
        for text in (*words, *pairs)
    ):
        raise ContainerError(
            "Expected a container with a network of its own. Received: the host's, where the "
            "service would be open to other machines. To reach this one, run: make run "
            'ARGS="--add-host host.docker.internal:host-gateway"'
        )
    require_docker()
    require_image(options.tag)
    require_free_port(options.port)
    print(f"Serve: {options.tag} on http://localhost:{options.port}; press Ctrl-C to stop.")
    publish = ("--rm", "-p", f"127.0.0.1:{options.port}:8080")
    command = ["docker", "run", *publish, *CONFINED, *options.docker, options.tag]
    process = subprocess.Popen(command)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # Docker's client got Ctrl-C as well, and stops the container
        raise
    except SystemExit:
        process.terminate()  # which Docker's client passes on
        process.wait()
        raise
    if code == DOCKER_FAILED:
        raise ContainerError(
            "docker run did not start the container; its reason is above. If the port is taken, "
            f"choose another: make run PORT={options.port + 1}"
        )
    return code


def require_docker() -> None:
    """Raise `ContainerError` unless a Docker daemon answers."""
    if not shutil.which("docker"):
        raise ContainerError(
            "Expected Docker. Received: no such program. Install it (docs.docker.com/get-docker); "
            "without it, python predict.py IMAGE uses the same model."
        )
    process = docker("version", "--format", "{{.Server.Version}}")
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ContainerError(
            f"Expected a Docker daemon that answers. Received: {reason.rstrip('.')}. Start Docker, "
            "and see that you may use it."
        )


def require_image(tag: str) -> None:
    """Raise `ContainerError` unless the daemon has the image `tag`."""
    if docker("image", "inspect", tag).returncode:
        name = "" if tag == TAG else f" TAG={shlex.quote(tag)}"
        raise ContainerError(
            f"Expected a container image {tag}. Received: none of that name. "
            f"Build it first: make build{name}"
        )


def require_free_port(port: int) -> None:
    """Raise `ContainerError` if something listens on `port` of 127.0.0.1."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        # The daemon may have rights that this process lacks.
        if error.errno == errno.EADDRINUSE:
            raise ContainerError(
                f"Expected port {port} to be free. Received: a program listens on it. Stop that, "
                f"or choose another port: make run PORT={port + 1}"
            ) from None


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Return the finished process of Docker's client."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True)


def printed(command: list[str]) -> str:
    """Return `command` as one types it."""
    return shlex.join(["python", *command[1:]])


def port_number(text: str) -> int:
    """Return `text` as a TCP port; for argparse."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(
            f"expected PORT to be a number from 1 to 65535. Received: {text}"
        )
    return int(text)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__, "python -m tools.container")
    commands = parser.add_subparsers(required=True)
    builder = commands.add_parser("build", help="build the image")
    builder.set_defaults(command=build)
    builder.add_argument("--models", default="models", help="folder of the model [%(default)s/]")
    builder.add_argument(
        "--runtime", default="", help=f"{', '.join(RUNTIMES)} [{next(iter(RUNTIMES))}]"
    )
    runner = commands.add_parser("run", help="serve it on this machine")
    runner.set_defaults(command=run)
    runner.add_argument("--port", type=port_number, default=PORT, help="[%(default)s]")
    for each in (builder, runner):
        each.add_argument("--tag", default=TAG, help="name of the container image [%(default)s]")
        each.add_argument("docker", nargs="*", metavar="-- OPTION", help="for Docker itself")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
