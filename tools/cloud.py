"""Run the whole stack on this machine: the real image behind MiniStack, a local AWS.

    python -m tools.cloud                       # try all of it, then take it down
    python -m tools.cloud --stay                # keep it until Ctrl-C, and say what to type
    python -m tools.cloud --runtime openvino --port 4567

It needs Docker on Linux. deploy/template.yaml is deployed as it is, but for what tools/ministack.py
lists; docs/aws.md says what that shows of AWS and what not. Nothing of it is left in the end; logs
are in .cache/cloud/.
"""

import argparse
import contextlib
import http.client
import json
import os
import shlex
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path

from serving.errors import UserError
from serving.runtimes import RUNTIMES
from tools import ministack
from tools.container import (
    build_command,
    converted_model,
    docker,
    model_folder,
    port_number,
    require_docker,
)
from tools.demo import StageError, run, stage
from tools.deploy import RUNTIME
from tools.environments import find_program
from tools.ministack import Cloud, MiniStack
from tools.signals import exit_on_signals, undisturbed
from training.cli import make_parser, run_command
from training.sample import LABELS

WORK = Path(".cache", "cloud")  # this run's images and logs
IMAGE_FILE = Path("docs", "rose.jpg")
PORT = 4566  # as LocalStack's
BUILD_SECONDS = 900.0
JOB_SECONDS = 300.0
PER_CLASS = 4  # drawn images
SHARD_SIZE = 6  # so four shards, which four functions label
JOB = "drawn"
PUBLIC = {"FunctionUrlAuthorization": "NONE"}  # so that a browser opens it
STAGES = 6
STOPPED = "Stopped. MiniStack, its containers and the image are removed."


class CloudError(UserError):
    """The image cannot be built, or the stack answers wrongly."""


def main(arguments: list[str] | None = None) -> int:
    """Run the stack and return the exit code."""
    options = parse_arguments(arguments)
    exit_on_signals()
    return run_command(lambda: try_all(options), "tools.cloud", stopped=STOPPED)


def try_all(options: argparse.Namespace) -> None:
    """Build, deploy, and send images every way.

    Raises:
        UserError: something is missing, or does not work.
    """
    started = time.monotonic()
    models = model_folder(options.models)
    require_docker()
    find_program("ministack")
    ministack.require_port(ministack.bridge(), options.port)
    model = converted_model(models)
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    with contextlib.ExitStack() as services:
        image = f"flowers-cloud-{os.getpid()}"
        with step(1, f"Container image: {options.runtime} with {model}"):
            services.enter_context(built(image, model, options.runtime, WORK / "build.log"))
        with step(2, "MiniStack, a local AWS"):
            log = WORK / "ministack.log"
            server = services.enter_context(ministack.running(log, options.port))
        with step(3, "Stack: deploy/template.yaml"):
            cloud = ministack.deploy(server.url, image, PUBLIC)
        print_addresses(cloud)
        send_images(cloud, model, options.runtime)
        print(f"All of it works, in {time.monotonic() - started:.0f} s.", flush=True)
        if options.stay:
            stay(server, cloud, model, options.runtime)
    if not options.stay:
        print("It is taken down. To keep it until Ctrl-C: make cloud ARGS=--stay")


def send_images(cloud: Cloud, model: Path, runtime: str) -> None:
    """Send images every way, and print what comes back.

    Raises:
        UserError: it is wrong.
    """
    with step(4, f"Request: what is {IMAGE_FILE}?"):
        answers = [classify(url) for url in (cloud.api, cloud.function_url)]
    print(f"      {answers[0]}")
    with step(5, f"New image: {IMAGE_FILE} into the bucket"):
        tags, row = label(cloud, IMAGE_FILE.name)
    print(f"      tags: {tags}\n      {IMAGE_FILE.name}.json: {row}")
    count = PER_CLASS * len(LABELS)
    with step(6, f"Job: {count} drawn images and a text, by the state machine"):
        rows = label_drawn(cloud, model, runtime)
    print_rows(rows)


def step(number: int, title: str) -> contextlib.AbstractContextManager[None]:
    """Print a line of progress."""
    return stage(number, title, STAGES)


@contextlib.contextmanager
def built(
    image: str, model: Path, runtime: str, log: Path, options: Sequence[str] = ()
) -> Generator[None]:
    """Have the container image `image` with `model` while the context lasts.

    What docker build, with `options`, prints is in the file `log`.

    Raises:
        CloudError: it cannot be built.
    """
    try:
        command = build_command(image, model, runtime)
        try:
            run([*command, "--force-rm", *options, "."], timeout=BUILD_SECONDS, log=log)
        except StageError as error:
            raise CloudError(
                f"Expected docker build to make the image. Received: {error.reason.rstrip('.')}. "
                "It needs a network for AWS's base image and the packages, unless Docker's cache "
                f"has them; all that it printed is in {log}."
            ) from None
        yield
    finally:
        with undisturbed():
            docker("image", "rm", "--force", image)


def classify(url: str) -> str:
    """Return the answer at `url` to the image, as JSON.

    Raises:
        CloudError: it is no rose.
    """
    headers = {"Content-Type": "image/jpeg"}
    request = urllib.request.Request(url, IMAGE_FILE.read_bytes(), headers)
    try:
        with urllib.request.urlopen(request, timeout=ministack.PATIENCE) as response:
            answer = response.read().decode()
    except urllib.error.HTTPError as error:
        answer = f"status {error.code}, {error.read().decode(errors='replace')}"
    except (OSError, http.client.HTTPException) as error:
        answer = str(getattr(error, "reason", error)) or type(error).__name__
    require_rose(url, answer)
    return answer


def label(cloud: Cloud, key: str) -> tuple[str, str]:
    """Put the image into the bucket as `key`; return its tags and the JSON beside it.

    Raises:
        CloudError: it is no rose.
        MiniStackError: it is not labelled in time.
    """
    s3, place = cloud.client("s3"), {"Bucket": cloud.bucket, "Key": key}
    s3.put_object(**place, Body=IMAGE_FILE.read_bytes())
    tags = ministack.wait_until(
        lambda: s3.get_object_tagging(**place)["TagSet"], f"tags of s3://{cloud.bucket}/{key}"
    )
    row = s3.get_object(Bucket=cloud.bucket, Key=f"{key}.json")["Body"].read().decode().strip()
    require_rose(f"s3://{cloud.bucket}/{key}.json", json.dumps(json.loads(row)["scores"]))
    return ", ".join(f"{tag['Key']}={tag['Value']}" for tag in tags), row


def require_rose(where: str, answer: str) -> None:
    """Raise `CloudError` unless `answer` is JSON with the highest score for a rose."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        scores = json.loads(answer)
        if max(scores, key=scores.get) == "rose":
            return
    raise CloudError(f"Expected {where} to say that {IMAGE_FILE} is a rose. Received: {answer}")


def label_drawn(cloud: Cloud, model: Path, runtime: str) -> list[dict]:
    """Label drawn images and a file that is none by the state machine; return the results' rows.

    Raises:
        StageError: predict.py fails to list them.
        CloudError: the state machine fails.
    """
    drawn = WORK / "drawn"
    python = (sys.executable, "-m", "training.sample")
    run([*python, "--out", drawn, "--per-class", str(PER_CLASS)])
    s3 = cloud.client("s3")
    for path in sorted(drawn.glob("*/*.jpg")):
        key = f"jobs/{JOB}/images/{path.name}"
        s3.put_object(Bucket=cloud.bucket, Key=key, Body=path.read_bytes())
    s3.put_object(Bucket=cloud.bucket, Key=f"jobs/{JOB}/images/text.jpg", Body=b"no image")
    command = list_command(cloud, JOB, runtime, "--shard-size", str(SHARD_SIZE))
    run([sys.executable, *command, "--model", model], variables=ministack.variables(cloud.url))
    execution = ministack.start_map(cloud, JOB)
    status = ministack.wait_for_map(cloud, execution, JOB_SECONDS)
    if status != "SUCCEEDED":
        raise CloudError(f"Expected the state machine to label the images. Received: {status}.")
    return ministack.read_rows(cloud, JOB)


def list_command(cloud: Cloud, job: str, runtime: str, *more: str) -> list[str]:
    """Return the arguments of Python that list the images of `job` for the state machine."""
    place = f"s3://{cloud.bucket}/jobs/{job}"
    listed = ["predict.py", f"{place}/images", "--out", place, "--list-only"]
    return [*listed, "--runtime", runtime, *more]


def print_rows(rows: Sequence[dict]) -> None:
    """Print what the images of a job show."""
    labels = Counter(row["label"] for row in rows if not row["error"])
    shown = ", ".join(f"{count} {name}" for name, count in sorted(labels.items()))
    print(f"      {len(rows)} rows: {shown}; {sum(bool(row['unknown']) for row in rows)} unknown")
    for row in rows:
        if row["error"]:
            print(f"      {row['image'].rpartition('/')[2]}: {row['error']['message']}")


def print_addresses(cloud: Cloud) -> None:
    """Print where the stack is."""
    print(f"      Page and API: {cloud.api}")
    print(f"      Function URL: {cloud.function_url}")
    print(f"      Bucket:       s3://{cloud.bucket}", flush=True)


def print_commands(cloud: Cloud, model: Path, runtime: str) -> None:
    """Print commands for another terminal."""
    exports = " ".join(f"{k}={v}" for k, v in ministack.variables(cloud.url).items())
    bucket, job = cloud.bucket, "mine"
    # The stack refuses the job of another model.
    command = list_command(cloud, job, runtime, "--model", str(model))
    listing = shlex.join([".venv/bin/python", *command])
    machine = cloud.outputs["StateMachine"]
    print(
        f"""
Open {cloud.api} in a browser, or type in another terminal:

  export {exports}

  curl --data-binary @{IMAGE_FILE} -H "Content-Type: image/jpeg" {shlex.quote(cloud.api)}

  aws s3 cp {IMAGE_FILE} s3://{bucket}/my.jpg
  aws s3api get-object-tagging --bucket {bucket} --key my.jpg
  aws s3 cp s3://{bucket}/my.jpg.json -

  aws s3 cp --recursive {WORK / "drawn"} s3://{bucket}/jobs/{job}/images
  {listing}
  aws stepfunctions start-execution --state-machine-arn {machine} --input '{{"job": "{job}"}}'
  aws s3 cp s3://{bucket}/jobs/{job}/results/00000.jsonl -

Press Ctrl-C to take it down.""",
        flush=True,
    )


def stay(server: MiniStack, cloud: Cloud, model: Path, runtime: str) -> None:
    """Print what a person can type, and return upon Ctrl-C.

    Raises:
        MiniStackError: MiniStack ended.
    """
    with contextlib.suppress(KeyboardInterrupt):
        print_commands(cloud, model, runtime)
        while True:
            server.require_running()
            time.sleep(1)
    print("\nTaking it down ...", flush=True)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__, "python -m tools.cloud")
    add = parser.add_argument
    add("--models", default="models", help="folder of the model [%(default)s/]")
    add("--runtime", choices=RUNTIMES, default=RUNTIME, help="in the image [%(default)s]")
    add("--port", type=port_number, default=PORT, help="of MiniStack [%(default)s]")
    add("--stay", action="store_true", help="keep it until Ctrl-C")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
