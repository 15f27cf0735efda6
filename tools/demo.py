"""Train briefly, convert, serve and classify a flower, in minutes.

    python -m tools.demo                # with flowers/, or drawn flowers if that is empty
    python -m tools.demo --no-docker    # the service behind AWS's Lambda emulator, without Docker
    python -m tools.demo --stay         # serve until Ctrl-C, and say where the page is

It uses few images and writes only to .cache/ and models/demo/; flowers/ and real checkpoints stay
unchanged. The exit code is 0 if the service classified the flower correctly.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from serving.errors import UserError
from serving.function_url import INVOCATIONS
from serving.model_files import best_model
from tools.emulator import free_port, local_service
from tools.function_url import invoker, serving
from tools.signals import exit_on_signals, undisturbed, undisturbed_exit
from training.cli import make_parser, run_command

WORK = Path(".cache", "demo")  # this run's images and logs
MODELS = Path("models", "demo")  # this run's checkpoint and .tflite

# Enough to classify flowers, and few enough for minutes: on two cores the network takes a tenth of
# a second per image.
IMAGES = 40  # a class
RECIPE = {
    "--epochs": "2",
    "--steps-per-epoch": "15",
    "--batch-size": "16",
    "--views": "2",
    "--learning-rate": "0.05",
    "--momentum": "0.9",
}
CANDIDATES = 10  # images, of which one is chosen
SERVICE_LOG = WORK / "service.log"
BUILD_SECONDS = 900.0
CLEAN_UP_SECONDS = 60.0
SHOWN_LINES = 25  # of the output of a failed stage
STAGES = 7
HOW_TO_STAY = "To keep it, and to classify images on its page: make demo ARGS=--stay"


class StageError(UserError):
    """A command failed; `str(error)` has the end of its output.

    Attributes:
        reason: the last line of its output or, without one, how it ended.
    """

    def __init__(self, command: Sequence[str], output: str, ending: str):
        """Take the `command`, its `output` and how it ended."""
        lines = [line for line in output.splitlines() if line.strip()]
        words = [word for word in command if word != sys.executable]
        name = " ".join(words[: 2 if words[0] in ("-m", "docker") else 1])
        super().__init__("\n".join([f"`{name}` {ending}. It printed:", *lines[-SHOWN_LINES:]]))
        self.reason = lines[-1].strip() if lines else ending


def main(arguments: list[str] | None = None) -> int:
    """Run every stage and return the exit code."""
    options = parse_arguments(arguments)
    exit_on_signals()  # ending the demo ends the service, too
    return run_command(
        lambda: demo(options), "tools.demo", stopped="Stopped, and the service as well."
    )


def demo(options: argparse.Namespace) -> None:
    """Run all stages and print the service's answer.

    Raises:
        StageError: a stage failed, or the answer is wrong.
        EmulatorError: there is neither Docker nor AWS's emulator.
    """
    started = time.monotonic()
    for folder in (WORK, MODELS):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    with stage(1, f"Data: {describe(options.data)}"):
        data = collect_images(options.data)

    with stage(2, f"Train: {RECIPE['--epochs']} short epochs into {MODELS}/"):
        recipe = [part for flag in RECIPE.items() for part in flag]
        places = ["--data", data, "--models", MODELS, "--weights", options.weights]
        python("train.py", *places, *recipe)
        checkpoint = best_model(MODELS, ".h5")

    with stage(3, f"Convert: {checkpoint.name} to TFLite"):
        python("convert_to_tflite.py", checkpoint, "--data", data)

    with stage(4, f"Choose: the most confident prediction on {CANDIDATES} validation images"):
        image = choose_image(checkpoint, data)

    with undisturbed_exit() as services:
        with stage(5, "Container image: docker build"):
            container_image = build_container_image(services, options.docker)
        with stage(6, f"Serve: {'in Docker' if container_image else 'behind the Lambda emulator'}"):
            service = services.enter_context(
                docker_service(container_image) if container_image else emulator_service(checkpoint)
            )
        with stage(7, f"Classify: what is {image}?"):
            answer = classify(service.endpoint, data / image, class_of(image))
        print(answer, end="", flush=True)
        minutes, seconds = divmod(round(time.monotonic() - started), 60)
        time_taken = f"{minutes} min {seconds} s in all."
        if options.stay:
            print(f"The answer is right. {time_taken}")
            wait_for_ctrl_c(service.page)
    right = f"The answer is right, and the service is stopped. {time_taken}\n{HOW_TO_STAY}"
    print("\nThe service is stopped." if options.stay else right)


def wait_for_ctrl_c(page: str) -> None:
    """Print where the `page` is and return upon Ctrl-C."""
    print(f"Open {page} in a browser; press Ctrl-C to stop.", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


class RunningService(NamedTuple):
    """Where a service is, on this machine."""

    endpoint: str  # URL to post events to
    page: str  # URL for browsers


@contextlib.contextmanager
def stage(number: int, title: str, stages: int = STAGES) -> Generator[None]:
    """Print a line of progress: `title`, then the seconds it took."""
    print(f"[{number}/{stages}] {title} ... ", end="", flush=True)
    started = time.monotonic()
    try:
        yield
    except BaseException as error:
        print("failed" if isinstance(error, Exception) else "stopped", flush=True)
        raise
    print(f"{time.monotonic() - started:.0f} s", flush=True)


def describe(folder: Path) -> str:
    """Return a phrase about the source of the images."""
    if has_images(folder):
        return f"up to {IMAGES} images per class of {folder}"
    return f"no images in {folder}, so drawing {IMAGES} per class"


def has_images(folder: Path) -> bool:
    """Return whether two or more sub-folders of `folder` hold files."""
    return len(list_files(folder)) > 1


def list_files(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each sub-folder of `folder`, without hidden ones."""
    files = {
        sub_folder.name: sorted(f for f in sub_folder.glob("[!.]*") if f.is_file())
        for sub_folder in sorted(folder.glob("[!.]*/"))
    }
    return {name: found for name, found in files.items() if found}


def collect_images(folder: Path) -> Path:
    """Return a folder of images, copied from `folder` or drawn.

    Raises:
        StageError: drawing failed.
    """
    data = WORK / "flowers"
    if not has_images(folder):
        python("-m", "training.sample", "--out", data, "--per-class", str(IMAGES))
        return data
    rng = random.Random(0)  # noqa: S311 - the same images each time
    for name, files in list_files(folder).items():
        (data / name).mkdir(parents=True)
        for file in rng.sample(files, min(IMAGES, len(files))):
            shutil.copyfile(file, data / name / file.name)
    return data


def choose_image(checkpoint: Path, data: Path) -> str:
    """Return "class/file" of the validation image with the most confident prediction.

    After so short a training some predictions are wrong, which the demo is not about.

    Raises:
        StageError: an image cannot be classified.
    """
    record = json.loads(checkpoint.with_suffix(".split.json").read_text(encoding="utf-8"))
    validation = record["validation"]
    images = validation[:: max(1, len(validation) // CANDIDATES)]  # of all classes
    files = [data / image for image in images]
    answers = python(
        "predict.py", "--json", "--model", checkpoint.with_suffix(".tflite"), *files
    ).splitlines()
    scores = [json.loads(line)["scores"] for line in answers if line.startswith('{"image"')]
    return max(zip(images, scores, strict=True), key=lambda pair: max(pair[1].values()))[0]


def class_of(image: str) -> str:
    """Return the class of a "class/file"."""
    return image.split("/", 1)[0]


def build_container_image(services: contextlib.ExitStack, wanted: bool) -> str | None:
    """Build a container image with the demo's model; return its id.

    `services` removes it at the end. Returns None, and prints the reason, if it is not `wanted`,
    Docker does not run or the build fails.
    """
    if not wanted:
        print("not wanted ... ", end="")
        return None
    if not docker_answers():
        print("no Docker daemon answers, continuing without ... ", end="")
        return None
    id_file = WORK / "image.txt"
    arguments = [f"MODELS={MODELS}"]
    if platform.machine() != "x86_64":
        arguments.append("RUNTIME=ai-edge-litert")  # tflite-runtime has no wheel for AWS's arm64
    options = [part for argument in arguments for part in ("--build-arg", argument)]
    try:
        run(
            ["docker", "build", "--force-rm", "--iidfile", id_file, *options, "."],
            timeout=BUILD_SECONDS,
        )
    except StageError as error:
        print(f"it failed, continuing without Docker ({error.reason}) ... ", end="")
        return None
    container_image = id_file.read_text(encoding="utf-8").strip()
    services.callback(clean_up, ["docker", "image", "rm", "--force", container_image])
    return container_image


def docker_answers() -> bool:
    """Return whether a Docker daemon runs."""
    if shutil.which("docker") is None:
        return False
    try:
        run(["docker", "version"], timeout=20)
    except StageError:
        return False
    return True


@contextlib.contextmanager
def docker_service(container_image: str) -> Generator[RunningService]:
    """Run a container of `container_image`.

    Raises:
        StageError: the container does not start.
    """
    port, name = free_port(), f"flowers-demo-{os.getpid()}-{time.time_ns()}"
    try:
        run(
            [
                "docker",
                "run",
                "--detach",
                "--name",
                name,
                "-p",
                f"127.0.0.1:{port}:8080",
                container_image,
            ]
        )
        address = f"http://127.0.0.1:{port}"
        yield RunningService(f"{address}{INVOCATIONS}", f"{address}/")
    finally:
        with undisturbed():
            clean_up(["docker", "logs", name], log=SERVICE_LOG)
            clean_up(["docker", "rm", "--force", "--volumes", name])


@contextlib.contextmanager
def emulator_service(checkpoint: Path) -> Generator[RunningService]:
    """Serve the .tflite file beside `checkpoint` behind AWS's emulator."""
    model = checkpoint.with_suffix(".tflite").absolute()
    with (
        local_service(free_port(), {"MODEL_PATH": str(model)}, log=SERVICE_LOG) as endpoint,
        serving(invoker(endpoint)) as port,
    ):
        yield RunningService(endpoint, f"http://127.0.0.1:{port}/")


def classify(endpoint: str, image: Path, expected: str) -> str:
    """Return the output of `docker_test.py` for the service's answer on `image`.

    Raises:
        StageError: there is no answer, or its class is not `expected`.
    """
    arguments = ["--endpoint", endpoint, "--file", image, "--expect", expected]
    return python("docker_test.py", *arguments)


def python(*arguments: str | Path) -> str:
    """Run this Python with `arguments` and return its output; see `run`."""
    return run([sys.executable, *arguments])


def clean_up(command: Sequence[str | Path], log: Path | None = None) -> None:
    """Run `command`, which may fail, for a minute at most: Ctrl-C does not end it."""
    with contextlib.suppress(StageError):
        run(command, check=False, timeout=CLEAN_UP_SECONDS, log=log)


def run(
    command: Sequence[str | Path],
    *,
    check: bool = True,
    timeout: float | None = None,
    log: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> str:
    """Run `command`; return its output and errors, and write them to `log`.

    Its environment is that of this process and `variables`.

    Raises:
        StageError: it took more than `timeout` seconds or, with `check`, it failed.
    """
    words = [str(word) for word in command]
    process = subprocess.Popen(
        words,
        env=os.environ | dict(variables or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        output = wait_for(process, timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise StageError(
            words, process.communicate()[0], f"took more than {timeout:.0f} s"
        ) from None
    except BaseException:
        process.kill()
        process.wait()
        raise
    if log:
        log.write_text(output, encoding="utf-8")
    if check and process.returncode:
        raise StageError(words, output, f"ended with exit code {process.returncode}")
    return output


def wait_for(process: subprocess.Popen, timeout: float | None) -> str:
    """Return the output of `process`; raise TimeoutExpired after `timeout` seconds.

    It wakes up every second: a signal just before Python begins to read would otherwise be handled
    only after the next output.
    """
    deadline = float("inf") if timeout is None else time.monotonic() + timeout
    while True:
        try:
            return process.communicate(timeout=min(1.0, deadline - time.monotonic()))[0]
        except subprocess.TimeoutExpired:
            if time.monotonic() >= deadline:
                raise


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__, "python -m tools.demo")
    add = parser.add_argument
    add("--data", type=Path, default=Path("flowers"), help="one folder a class [flowers/]")
    add("--weights", default="imagenet", help="as for train.py [imagenet]")
    add("--no-docker", dest="docker", action="store_false", help="serve without Docker")
    add("--stay", action="store_true", help="serve until Ctrl-C, with a page for browsers")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
