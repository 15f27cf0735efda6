"""Put the service on AWS, and take it down: `make deploy`, `make undeploy`.

    python -m tools.deploy up --dry-run
    python -m tools.deploy up --runtime openvino --set AlarmEmail=me@example.com
    python -m tools.deploy down

Each command is printed before it runs, so that all of this can be done by hand; `--dry-run` prints
them only. docs/aws.md says what is deployed and what it costs.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import yaml

from serving.classifier import file_digest
from serving.errors import UserError
from serving.model_files import best_model, tflite_path
from serving.runtimes import RUNTIMES
from tools.container import ROOT, converted_model, model_arguments, model_folder, require_docker
from tools.environments import find_program
from training.cli import make_parser, run_command

TEMPLATE = "deploy/template.yaml"
NAME = "flowers"  # of stack and repository
RUNTIME = "ai-edge-litert"  # on AWS's supported Python 3.13 image
PLATFORMS = {"x86_64": "linux/amd64", "arm64": "linux/arm64"}
ACCOUNT, REGION = "123456789012", "us-east-1"  # in a dry run that knows no others
FLAGS = {"Runtime": "--runtime", "Architecture": "--architecture"}  # instead of --set
OPENVINO_MB = 768  # as docs/serving.md says
# AWS's list prices for US East (N. Virginia) in dollars, without the free tier.
GB_SECOND, REQUESTS, API_REQUESTS = 0.0000166667, 0.20, 1.00  # the last two: a million
PROVISIONED_GB_SECOND, SNAPSHOT_GB_SECOND = 0.0000041667, 0.0000015046
ALARM_METRIC, DASHBOARD, REGISTRY_GB, QUEUE = 0.10, 3.00, 0.10, 0.40  # a month; a million requests
LOG_GB = 0.50
MONTH = 2_592_000  # seconds
POLLS = MONTH / 20 * 5 / 1_000_000  # million requests of Lambda to an empty queue: 5 for 20 s each
IMAGE_GB = 0.3
ANSWER_MS = 100  # what an answer takes in docs/benchmarks.md
LOG_BYTES = 1480  # of its lines: the service's, Lambda's and the API's, with 26 for each of five


class DeployError(UserError):
    """The stack cannot be deployed or removed."""


class Target(NamedTuple):
    """Where the stack is.

    Attributes:
        stack: its name, and that of the repository of container images.
        account: number of the AWS account.
        region: such as eu-central-1.
    """

    stack: str
    account: str
    region: str

    @property
    def registry(self) -> str:
        """The host that container images are pushed to."""
        suffix = ".cn" if self.region.startswith("cn-") else ""
        return f"{self.account}.dkr.ecr.{self.region}.amazonaws.com{suffix}"


class Shell:
    """Runs commands, each printed before it runs."""

    def __init__(self, dry: bool, left: str):
        """Only print commands if `dry`; `left` says what is left where one fails."""
        self.dry = dry
        self.left = left

    def run(self, *command: str, stdin: str | None = None, shown: str = "") -> None:
        """Run `command`, with `stdin` if given; `shown` stands for where that comes from.

        Raises:
            DeployError: it failed.
        """
        print(f"$ {shown}{shlex.join(command)}", flush=True)
        if self.dry:
            return
        code = subprocess.run(command, cwd=ROOT, input=stdin, text=True).returncode
        if code:
            raise DeployError(
                f"{' '.join(command[:3])} failed with exit code {code}; its reason is above. "
                f"{self.left}"
            )

    def read(self, *command: str, dry: str | None = None, shown: bool = True) -> str | None:
        """Return what `command` prints, None if it fails, and `dry` in a dry run."""
        if shown:
            print(f"$ {shlex.join(command)}", flush=True)
        if self.dry:
            return dry
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if not done.returncode:  # whatever warnings it prints
            return done.stdout.strip()
        # Without a reason: a setting of the AWS CLI that is not set.
        if done.stderr.strip() and not re.search("NotFoundException|does not exist", done.stderr):
            reason = done.stderr.strip().splitlines()[-1]
            raise DeployError(
                f"Expected {' '.join(command[:3])} to answer. Received: {reason.rstrip('.')}. Set "
                "the AWS CLI up for your account: aws configure"
            )
        return None


def main(arguments: list[str] | None = None) -> int:
    """Deploy or remove as the command line says and return the exit code."""
    options = parse_arguments(arguments)
    return run_command(
        lambda: options.command(options),
        "tools.deploy",
        stopped=f"Stopped. {describe_left(options)}",
    )


def up(options: argparse.Namespace) -> None:
    """Build, push and deploy.

    Raises:
        DeployError: a program is missing or failed, settings do not go together, or there are
            changes that are not committed.
    """
    shell = Shell(options.dry_run, describe_left(options))
    models = model_folder(options.models)
    model = find_model(models, options)
    tag = image_tag(model, options)
    sam = "sam"
    if not options.dry_run:
        require_aws()
        require_docker()
        if not shutil.which(sam):
            sam = str(find_program(sam).relative_to(ROOT))
    target = find_target(shell, options)
    kept = find_kept(shell, target, options)
    print_cost(read_settings(options, kept))
    image = f"{target.registry}/{target.stack}:{tag}"
    push(shell, target, image, options, model)
    shell.run(
        *(sam, "deploy", "--template-file", TEMPLATE, "--stack-name", target.stack),
        *("--region", target.region, "--image-repository", image.rpartition(":")[0]),
        *("--capabilities", "CAPABILITY_IAM", "--no-confirm-changeset"),
        *("--no-fail-on-empty-changeset", "--on-failure", "DELETE", "--parameter-overrides"),
        *(f"ImageUri={image}", f"Runtime={options.runtime}"),
        *(f"Architecture={options.architecture}", *map(quoted, options.set)),
    )
    shell.run(*describe(target, "Stacks[0].Outputs[].[OutputKey, OutputValue]", "table"))
    print("What to look at first: docs/aws.md#the-first-hour-on-an-account")
    print(f"Take all of it down: make undeploy{undeploy_arguments(options)}")


def down(options: argparse.Namespace) -> None:
    """Remove the stack and the repository; the bucket and its images stay.

    Raises:
        DeployError: a program is missing or failed.
    """
    shell = Shell(options.dry_run, describe_left(options))
    if not options.dry_run:
        require_aws()
    target = find_target(shell, options)
    query = "Stacks[0].Outputs[?OutputKey=='ImageBucket'].OutputValue"
    bucket = shell.read(*describe(target, query, "text"), dry="BUCKET")
    at = ("--region", target.region)
    shell.run("aws", "cloudformation", "delete-stack", "--stack-name", target.stack, *at)
    stacks = ("aws", "cloudformation", "wait", "stack-delete-complete")
    shell.run(*stacks, "--stack-name", target.stack, *at)
    repository = ("--repository-name", target.stack, *at)
    if shell.read("aws", "ecr", "describe-repositories", *repository, dry="") is not None:
        shell.run("aws", "ecr", "delete-repository", *repository, "--force")
    if bucket:
        print(
            "The bucket and its images stay, since nothing else has them. To delete them for good: "
            f"aws s3 rb s3://{bucket} --force"
        )


def push(
    shell: Shell, target: Target, image: str, options: argparse.Namespace, model: Path
) -> None:
    """Build `image` with `model` and push it, unless it is there."""
    at = ("--region", target.region)
    repository = ("--repository-name", target.stack)
    if shell.read("aws", "ecr", "describe-repositories", *repository, *at) is None:
        shell.run(
            *("aws", "ecr", "create-repository", *repository, *at),
            *("--image-tag-mutability", "IMMUTABLE"),
            *("--image-scanning-configuration", "scanOnPush=true"),
        )
    tag = f"imageTag={image.rpartition(':')[2]}"
    if shell.read("aws", "ecr", "describe-images", *repository, *at, "--image-ids", tag):
        print(f"Push: {image} is there already.")
        return
    shell.run(
        # Lambda refuses images with BuildKit's attestations.
        *("env", "BUILDX_NO_DEFAULT_ATTESTATIONS=1", "docker", "build"),
        *("--platform", PLATFORMS[options.architecture]),
        *("--build-arg", f"RUNTIME={options.runtime}"),
        *(*model_arguments(model), "-t", image, "."),
    )
    login = ("aws", "ecr", "get-login-password", *at)
    password = shell.read(*login, dry="", shown=False)
    shell.run(
        *("docker", "login", "--username", "AWS", "--password-stdin", target.registry),
        stdin=password,
        shown=f"{shlex.join(login)} | ",
    )
    shell.run("docker", "push", image)


def find_target(shell: Shell, options: argparse.Namespace) -> Target:
    """Return where to deploy: the AWS CLI's account, and the region of flag, environment or CLI.

    Raises:
        DeployError: there is none.
    """
    region = options.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    region = region or shell.read("aws", "configure", "get", "region", dry=REGION) or "none"
    if not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-\d{1,2}", region):
        raise DeployError(
            f"Expected a region such as eu-central-1. Received: {region}. Name one with --region, "
            "or in AWS_REGION, or with aws configure."
        )
    identity = ("aws", "sts", "get-caller-identity", "--query", "Account", "--output", "text")
    account = shell.read(*identity, dry=ACCOUNT)
    return Target(options.stack, account or "", region)


def find_kept(shell: Shell, target: Target, options: argparse.Namespace) -> dict[str, str]:
    """Return the parameters that an earlier deployment has set and that stay, and print them.

    Where a parameter is not given, sam lets the stack keep its value.
    """
    # A stack that was only planned has no parameters yet.
    query = "Stacks[?StackStatus!='REVIEW_IN_PROGRESS'].Parameters[].[ParameterKey, ParameterValue]"
    stack = dict(json.loads(shell.read(*describe(target, query, "json")) or "[]"))
    given = ("ImageUri", *FLAGS, *(word.partition("=")[0] for word in options.set))
    usual = {name: value for name, value in defaults().items() if name not in given}
    kept = {name: stack[name] for name in usual if stack.get(name, usual[name]) != usual[name]}
    if kept:
        listed = ", ".join(f"{name}={kept[name]} (default: {usual[name]})" for name in kept)
        print(f"The stack keeps: {listed}. Change one with --set NAME=VALUE.")
    return kept


def describe(target: Target, query: str, output: str) -> tuple[str, ...]:
    """Return the command that prints what `query` asks of the stack."""
    return (
        *("aws", "cloudformation", "describe-stacks", "--stack-name", target.stack),
        *("--region", target.region, "--query", query, "--output", output),
    )


def find_model(models: Path, options: argparse.Namespace) -> Path:
    """Return the best model of the folder `models`, converted first if none is.

    In a dry run where it would be converted, it does not exist.

    Raises:
        ContainerError: its conversion failed, or it is a link to a file elsewhere.
        ModelError: there is none.
    """
    if options.dry_run and not list(models.glob("[!.]*.tflite")):
        checkpoint = best_model(models, ".h5")
        print(f"$ {shlex.join(('python', 'convert_to_tflite.py', '--models', str(models)))}")
        return tflite_path(checkpoint)
    return converted_model(models)


def image_tag(model: Path, options: argparse.Namespace) -> str:
    """Return a tag that only this commit, model, runtime and architecture have.

    Raises:
        DeployError: there are changes that are not committed, or no repository.
    """
    git = ("git", "status", "--porcelain", "--", ":!models", ":!flowers")
    status = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
    head = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    if status.returncode or head.returncode:
        raise DeployError(
            "Expected a Git repository, whose commit names the container image. Received: none. "
            "Clone the project, or run git init and commit."
        )
    if status.stdout.strip() and not options.dry_run:
        raise DeployError(
            "Expected all changes to be committed, since the commit names the container image. "
            f"Received: changes in {status.stdout.split()[1]}. Commit or stash them."
        )
    digest = file_digest(model) if model.exists() else "MODEL"
    return f"{head.stdout.strip()}-{digest}-{options.runtime}-{options.architecture}"


def require_aws() -> None:
    """Raise `DeployError` unless the AWS CLI is installed."""
    if not shutil.which("aws"):
        raise DeployError(
            "Expected the program aws. Received: no such program. Install the AWS CLI "
            "(docs.aws.amazon.com/cli), or see what would be done: make deploy ARGS=--dry-run"
        )


def read_settings(options: argparse.Namespace, kept: dict[str, str]) -> dict[str, str]:
    """Return all parameters of the stack: those that are set or `kept`, or their defaults.

    Raises:
        DeployError: they do not go together, or the template no longer allows one of `kept`.
    """
    for name, value in kept.items():
        if not is_allowed(value, parameters()[name]):
            raise DeployError(
                f"Expected {name} to be {describe_allowed(parameters()[name])}. Received: {value}, "
                f"which the stack keeps. Change it with --set {name}=VALUE."
            )
    settings = defaults() | kept | dict(word.split("=", 1) for word in options.set)
    settings |= {"Runtime": options.runtime, "Architecture": options.architecture}
    old = options.runtime == "tflite-runtime"
    reserved, provisioned = (
        int(settings[f"{name}Concurrency"]) for name in ("Reserved", "Provisioned")
    )
    refusals = {
        "another runtime than tflite-runtime for SnapStart": old
        and settings["StartFrom"] == "snapshot",
        "the runtime ai-edge-litert or openvino on arm64": old and options.architecture == "arm64",
        f"at least {OPENVINO_MB} MB of memory for OpenVINO": options.runtime == "openvino"
        and int(settings["MemorySize"]) < OPENVINO_MB,
        "no more ProvisionedConcurrency than ReservedConcurrency": 0 < reserved < provisioned
        and settings["StartFrom"] == "provisioned",
    }
    received = ["--runtime", options.runtime, "--architecture", options.architecture]
    received += [f"--set {word}" for word in options.set]
    received += [f"{name}={value} of the stack" for name, value in kept.items()]
    for expected in (text for text, refused in refusals.items() if refused):
        raise DeployError(
            f"Expected {expected}. Received: {' '.join(received)}. Change one of them."
        )
    return settings


def print_cost(settings: dict[str, str]) -> None:
    """Print what the stack costs at rest, for a million answers, and at most."""
    gigabytes = int(settings["MemorySize"]) / 1024
    template = (ROOT / TEMPLATE).read_text(encoding="utf-8")
    alarms = template.count("AWS::CloudWatch::Alarm")
    metrics = alarms + template.count("MetricStat:") - 1  # one alarm is of two metrics
    rest = metrics * ALARM_METRIC + DASHBOARD + IMAGE_GB * REGISTRY_GB + POLLS * QUEUE
    ready = {
        "provisioned": PROVISIONED_GB_SECOND * int(settings["ProvisionedConcurrency"]),
        "snapshot": SNAPSHOT_GB_SECOND,
    }.get(settings["StartFrom"], 0.0)
    rest += ready * gigabytes * MONTH
    answers = ANSWER_MS / 1000 * gigabytes * GB_SECOND * 1_000_000 + REQUESTS
    reserved = int(settings["ReservedConcurrency"])
    most = f"at most ${reserved * gigabytes * GB_SECOND * MONTH:,.0f} a month of computing"
    print(
        f"Cost at rest: about ${rest:.2f} a month ({alarms} alarms, a dashboard, asking the queue, "
        f"{IMAGE_GB} GB of container image). "
        f"A million answers of {ANSWER_MS} ms: ${answers:.2f}, ${API_REQUESTS:.2f} for the API and "
        f"${LOG_BYTES / 1000 * LOG_GB:.2f} for the log. Requests, whoever sends them, cost "
        f"{most if reserved else 'any sum'} (ReservedConcurrency={reserved}). These are "
        "list prices for US East, without the free tier; docs/aws.md has the formulas."
    )


def undeploy_arguments(options: argparse.Namespace) -> str:
    """Return what `make undeploy` has to be given to remove what was deployed."""
    flags = [f"--stack {options.stack}"] if options.stack != NAME else []
    flags += [f"--region {options.region}"] if options.region else []
    return f' ARGS="{" ".join(flags)}"' if flags else ""


def describe_left(options: argparse.Namespace) -> str:
    """Return what a command that fails or is stopped leaves, and what to run then."""
    return (
        "What was done stays: run the same command again, or make undeploy"
        f"{undeploy_arguments(options)}."
    )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = make_parser(__doc__, "python -m tools.deploy")
    commands = parser.add_subparsers(required=True, metavar="up|down")
    upward = commands.add_parser("up", help="build, push and deploy")
    upward.set_defaults(command=up)
    upward.add_argument("--models", default="models", help="folder of the model [%(default)s/]")
    upward.add_argument("--runtime", choices=RUNTIMES, default=RUNTIME, help="[%(default)s]")
    upward.add_argument("--architecture", choices=PLATFORMS, default="x86_64", help="[%(default)s]")
    upward.add_argument(
        "--set",
        action="append",
        default=[],
        type=parameter,
        metavar="NAME=VALUE",
        help=f"a parameter of {TEMPLATE}",
    )
    downward = commands.add_parser("down", help="remove stack and repository")
    downward.set_defaults(command=down)
    for each in (upward, downward):
        each.add_argument("--stack", default=NAME, type=stack_name, help="its name [%(default)s]")
        each.add_argument("--region", help="[that of the AWS CLI]")
        each.add_argument("--dry-run", action="store_true", help="print the commands only")
    return parser.parse_args(arguments)


def parameters() -> dict[str, dict]:
    """Return the parameters of the template: {name: its type, default and limits}."""
    text = (ROOT / TEMPLATE).read_text(encoding="utf-8")
    return yaml.safe_load(text.partition("\nParameters:\n")[2].partition("\nRules:\n")[0])


def defaults() -> dict[str, str]:
    """Return the default of each parameter of the template."""
    return {name: str(found["Default"]) for name, found in parameters().items()}


def parameter(text: str) -> str:
    """Return `text` as NAME=VALUE; for argparse."""
    name, equals, value = text.partition("=")
    known = {n: found for n, found in parameters().items() if n not in ("ImageUri", *FLAGS)}
    if name in FLAGS:
        raise argparse.ArgumentTypeError(f"expected {FLAGS[name]} {value} instead of {text}")
    if name not in known or not equals:
        raise argparse.ArgumentTypeError(
            f"expected NAME=VALUE, NAME one of {', '.join(known)}. Received: {text}"
        )
    if not is_allowed(value, known[name]):
        raise argparse.ArgumentTypeError(
            f"expected {name} to be {describe_allowed(known[name])}. Received: {value}"
        )
    return text


def quoted(word: str) -> str:
    """Return NAME=VALUE as sam reads it, which takes no empty value without quotation marks."""
    name, _, value = word.partition("=")
    return word if value else f'{name}=""'


def is_allowed(value: str, found: dict) -> bool:
    """Return whether a parameter, with what the template says of it, may have `value`."""
    if "AllowedValues" in found:
        return value in map(str, found["AllowedValues"])
    if "AllowedPattern" in found:
        return re.fullmatch(found["AllowedPattern"], value) is not None
    # As JSON and conditions of the template read it: without zeros in front.
    is_number = re.fullmatch("0|[1-9][0-9]{0,9}", value) is not None
    return is_number and found["MinValue"] <= int(value) <= found["MaxValue"]


def describe_allowed(found: dict) -> str:
    """Return in words what a parameter may be."""
    if "AllowedValues" in found:
        return f"one of {', '.join(map(str, found['AllowedValues']))}"
    if "AllowedPattern" in found:
        return f"as in its description: {found['Description'].rstrip('.')}"
    return f"a number from {found['MinValue']} to {found['MaxValue']}"


def stack_name(text: str) -> str:
    """Return `text` as the name of a stack and a repository; for argparse."""
    if not re.fullmatch(r"[a-z][a-z0-9-]{1,50}", text):
        raise argparse.ArgumentTypeError(
            f"expected a name of lower-case letters, digits and hyphens. Received: {text}"
        )
    return text


if __name__ == "__main__":
    sys.exit(main())
