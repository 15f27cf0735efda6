"""tools.deploy: `make deploy` and `make undeploy`, with programs that only note their calls."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

from serving.model_files import best_model
from tools import deploy

# Notes its name and arguments, and answers as the file `answers` says: {words: [exit code, text]}.
# `warning` comes before that, as of Python.
PROGRAM = """#!{python}
import json, os, pathlib, sys
folder = pathlib.Path({folder!r})
call = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
text = sys.stdin.read() if "--password-stdin" in call else ""
with (folder / "calls").open("a") as file:
    file.write(json.dumps([call, text]) + "\\n")
print((folder / "warning").read_text(), file=sys.stderr, end="")
for words, (code, answer) in json.loads((folder / "answers").read_text()).items():
    if words in " ".join(call):
        print(answer, file=sys.stderr if code else sys.stdout)
        sys.exit(code)
"""
MISSING = [254, "An error occurred (RepositoryNotFoundException)"]
NO_IMAGE = [254, "An error occurred (ImageNotFoundException) when calling DescribeImages"]
ANSWERS = {
    "get-caller-identity": [0, "111122223333"],
    "configure get region": [0, "eu-central-1"],
    "describe-repositories": MISSING,
    "describe-images": NO_IMAGE,
    "get-login-password": [0, "secret"],
    "OutputKey=='ImageBucket'": [0, "flowers-imagebucket-1"],
}
# What is asked of AWS before anything is done.
ASKED = [
    ["configure", "get"],
    ["sts", "get-caller-identity"],
    ["cloudformation", "describe-stacks"],
]


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """Programs in front of the PATH; returns a function that sets answers."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name in ("aws", "sam", "docker"):
        path = bin_folder / name
        path.write_text(PROGRAM.format(python=sys.executable, folder=str(tmp_path)))
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(deploy, "require_docker", lambda: None)
    monkeypatch.setattr(deploy, "image_tag", lambda model, options: f"0123-{options.runtime}")

    def answer(more):
        (tmp_path / "answers").write_text(json.dumps(more | ANSWERS | more))

    answer({})
    (tmp_path / "warning").write_text("")
    return answer


@pytest.fixture
def calls(tmp_path):
    """The commands that ran, and what some were sent."""

    def read():
        path = tmp_path / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return read


def printed_commands(text):
    lines = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    commands = [shlex.split(command) for line in lines for command in line.split(" | ")]
    return [command[2:] if command[0] == "env" else command for command in commands]


IMAGE = "111122223333.dkr.ecr.eu-central-1.amazonaws.com/flowers:0123-ai-edge-litert"


def test_every_command_is_printed_before_it_runs(cloud, calls, capfd):
    assert deploy.main(["up"]) == 0
    output = capfd.readouterr().out
    assert [call for call, _ in calls()] == printed_commands(output)
    assert "secret" not in output
    [(login, password)] = [(call, text) for call, text in calls() if "login" in call]
    assert password == "secret"  # noqa: S105
    assert login[-1] == "111122223333.dkr.ecr.eu-central-1.amazonaws.com"


def test_it_is_built_pushed_and_deployed_in_this_order(cloud, calls):
    assert deploy.main(["up", "--set", "AlarmEmail=a@b.c"]) == 0
    ran = [call for call, _ in calls()]
    assert [" ".join(call[:3]) for call in ran] == [
        "aws configure get",
        "aws sts get-caller-identity",
        "aws cloudformation describe-stacks",
        "aws ecr describe-repositories",
        "aws ecr create-repository",
        "aws ecr describe-images",
        "docker build --platform",
        "aws ecr get-login-password",
        "docker login --username",
        f"docker push {IMAGE}",
        "sam deploy --template-file",
        "aws cloudformation describe-stacks",
    ]
    assert "IMMUTABLE" in ran[4]
    build, sam = ran[6], ran[10]
    model = best_model(ROOT / "models", ".tflite").name
    named = ["--build-arg", "MODELS=models", "--build-arg", f"MODEL={model}"]
    assert build[-7:] == [*named, "-t", IMAGE, "."]
    assert build[2:4] == ["--platform", "linux/amd64"]
    assert sam[sam.index("--on-failure") + 1] == "DELETE"  # or it could not be deployed again
    assert sam[sam.index("--parameter-overrides") + 1 :] == [
        f"ImageUri={IMAGE}",
        "Runtime=ai-edge-litert",
        "Architecture=x86_64",
        "AlarmEmail=a@b.c",
    ]


def test_lambda_s_images_have_no_attestations(cloud, tmp_path, capsys):
    docker = tmp_path / "bin" / "docker"
    docker.write_text(
        f'#!/bin/sh\necho "$BUILDX_NO_DEFAULT_ATTESTATIONS" >> "{tmp_path}/docker"\ncat\n'
    )
    assert deploy.main(["up"]) == 0
    assert (tmp_path / "docker").read_text().splitlines()[0] == "1"


def test_without_a_sam_of_the_user_that_of_the_lock_is_used(cloud, calls, monkeypatch, capsys):
    own = deploy.ROOT / ".cache" / "sam" / "bin" / "sam"
    monkeypatch.setattr(deploy, "find_program", lambda name: {"sam": own}[name])
    monkeypatch.setattr(deploy.shutil, "which", lambda name: None if name == "sam" else name)
    ran = []
    monkeypatch.setattr(deploy.Shell, "run", lambda self, *command, **_: ran.append(command))
    assert deploy.main(["up"]) == 0
    assert [command[:2] for command in ran if "deploy" in command] == [
        (".cache/sam/bin/sam", "deploy")
    ]


def test_a_docker_that_does_not_answer_is_told_before_anything_runs(
    cloud, calls, monkeypatch, capsys
):
    def refuse():
        raise deploy.DeployError("Expected a Docker daemon that answers.")

    monkeypatch.setattr(deploy, "require_docker", refuse)
    assert deploy.main(["up"]) == 1
    assert "Expected a Docker daemon that answers" in capsys.readouterr().err
    assert calls() == []


def test_what_was_deployed_elsewhere_is_removed_there(cloud, capsys):
    assert deploy.main(["up", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Take all of it down: make undeploy"
    arguments = ["--stack", "mine", "--region", "eu-west-1"]
    assert deploy.main(["up", "--dry-run", *arguments]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(' make undeploy ARGS="--stack mine --region eu-west-1"')


@pytest.mark.parametrize(
    ("command", "fails"), [("up", "docker push"), ("down", "delete-stack")], ids=("up", "down")
)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_where_it_fails_or_is_stopped_that_stack_is_named(
    cloud, capsys, monkeypatch, command, fails, elsewhere
):
    """The plain command would remove another stack, which works."""
    cloud({fails: [1, "denied"]})
    flags = ["--stack", "staging", "--region", "eu-west-1"] if elsewhere else []
    advice = f' ARGS="{" ".join(flags)}"' if flags else ""
    advice = f"run the same command again, or make undeploy{advice}.\n"
    assert deploy.main([command, *flags]) == 1
    assert capsys.readouterr().err.endswith(advice)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(deploy.Shell, "run", interrupted)
    assert deploy.main([command, *flags]) == 130
    assert capsys.readouterr().err.endswith(f"Stopped. What was done stays: {advice}")


def test_an_image_that_is_there_is_not_built_again(cloud, calls, capsys):
    cloud({"describe-repositories": [0, "{}"], "describe-images": [0, "{}"]})
    assert deploy.main(["up", "--region", "us-west-2"]) == 0
    assert "is there already" in capsys.readouterr().out
    ran = [" ".join(call[:2]) for call, _ in calls()]
    assert not [call for call in ran if call.startswith("docker") or "create" in call]
    assert "sam deploy" in ran


def test_a_dry_run_runs_nothing_and_prints_all(cloud, calls, capsys):
    assert deploy.main(["up", "--dry-run", "--runtime", "openvino", "--architecture", "arm64"]) == 0
    text = capsys.readouterr().out
    assert deploy.main(["down", "--dry-run"]) == 0
    text += capsys.readouterr().out
    assert calls() == []
    names = [" ".join(command[:3]) for command in printed_commands(text)]
    for name in (
        "aws ecr create-repository",
        "docker push 123456789012.dkr.ecr.us-east-1.amazonaws.com/flowers:0123-openvino",
        "sam deploy --template-file",
        "aws cloudformation delete-stack",
        "aws ecr delete-repository",
    ):
        assert name in names
    assert "--platform linux/arm64 --build-arg RUNTIME=openvino" in text


def test_a_dry_run_needs_no_programs(monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(deploy.shutil, "which", lambda name: None)
    assert deploy.main(["up", "--dry-run"]) == 0


@pytest.mark.parametrize("command", ["up", "down"])
def test_a_missing_program_is_told_before_anything_runs(monkeypatch, capsys, calls, command, cloud):
    monkeypatch.setattr(deploy.shutil, "which", lambda name: None)
    assert deploy.main([command]) == 1
    assert "Expected the program aws. Received: no such program. Install" in capsys.readouterr().err
    assert calls() == []


def test_everything_but_the_bucket_is_removed(cloud, calls, capfd):
    cloud({"describe-repositories": [0, "{}"]})
    assert deploy.main(["down"]) == 0
    output = capfd.readouterr().out
    ran = [call for call, _ in calls()]
    assert ran == printed_commands(output)
    assert [" ".join(call[1:3]) for call in ran][-4:] == [
        "cloudformation delete-stack",
        "cloudformation wait",
        "ecr describe-repositories",
        "ecr delete-repository",
    ]
    assert "aws s3 rb s3://flowers-imagebucket-1 --force" in output
    assert not [call for call in ran if "s3" in call]


def test_what_fails_ends_it_with_a_sentence(cloud, calls, capsys):
    cloud({"docker push": [1, "denied"]})
    assert deploy.main(["up"]) == 1
    assert "docker push 111122223333" in capsys.readouterr().err
    assert "sam" not in [call[0] for call, _ in calls()]


@pytest.mark.parametrize(
    ("answer", "arguments", "received"),
    [([1, ""], [], "none"), ([0, "mars"], [], "mars"), ([1, ""], ["--region", "eu"], "eu")],
    ids=("none", "wrong", "flag"),
)
def test_a_region_is_needed(cloud, calls, capsys, answer, arguments, received):
    cloud({"configure get region": answer})
    assert deploy.main(["up", *arguments]) == 1
    error = capsys.readouterr().err
    assert f"Expected a region such as eu-central-1. Received: {received}. Name one" in error
    assert not [call for call, _ in calls() if "ecr" in call]


def test_credentials_that_are_missing_are_told(cloud, capsys):
    cloud({"get-caller-identity": [253, "\nUnable to locate credentials.\n"]})
    assert deploy.main(["up"]) == 1
    assert "Received: Unable to locate credentials. Set the AWS CLI up" in capsys.readouterr().err


def test_a_program_that_only_warns_has_answered(cloud, calls, tmp_path, capsys):
    (tmp_path / "warning").write_text("a.py:1: InsecureRequestWarning: Unverified HTTPS request\n")
    assert deploy.main(["up"]) == 0
    assert calls()[-2][0][:2] == ["sam", "deploy"]
    assert ["aws", "ecr", "create-repository"] in [call[:3] for call, _ in calls()]


def test_a_broken_program_is_no_missing_repository(cloud, calls, capsys):
    broken = "ModuleNotFoundError: No module named 'awscli'"
    cloud({"describe-repositories": [1, broken]})
    assert deploy.main(["up"]) == 1
    assert f"Received: {broken}. Set the AWS CLI up" in capsys.readouterr().err
    assert "create-repository" not in str(calls())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "Memory=1"], "expected NAME=VALUE, NAME one of MemorySize, Timeout"),
        (["--set", "MemorySize"], "Received: MemorySize"),
        (["--set", "ImageUri=a"], "expected NAME=VALUE, NAME one of MemorySize, Timeout"),
        (["--set", "Runtime=openvino"], "expected --runtime openvino instead of Runtime=openvino"),
        (["--set", "MemorySize=01769"], "a number from 512 to 10240. Received: 01769"),
        (["--set", "ReservedConcurrency=00"], "Received: 00"),
        (["--set", f"MemorySize={'9' * 5000}"], "a number from 512 to 10240"),
        (["--set", "MemorySize=abc"], "MemorySize to be a number from 512 to 10240. Received: abc"),
        (["--set", "MemorySize=511"], "Received: 511"),
        (["--set", "MemorySize=10241"], "Received: 10241"),
        (["--set", "MemorySize=\u0661\u0660\u0660\u0660"], "a number from 512 to 10240"),
        (["--set", "Timeout=31"], "Timeout to be one of 15, 20, 30, 60. Received: 31"),
        (["--set", "StartFrom=cold"], "StartFrom to be one of nothing, snapshot, provisioned"),
        (["--set", "AlarmEmail=me"], "that alarms are sent to; empty for none. Received: me"),
        (["--set", 'AlarmEmail=a"b@x.com'], "AlarmEmail to be as in its description: Mail"),
        (["--set", "AlarmEmail=a\\b@x.com"], "AlarmEmail to be as in its description: Mail"),
        (["--stack", "My Stack"], "lower-case letters"),
        (["--runtime", "none"], "invalid choice"),
        (["--architecture", "mips"], "invalid choice"),
    ],
)
def test_wrong_flags_are_told(arguments, said, capsys):
    with pytest.raises(SystemExit):
        deploy.main(["up", *arguments])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--runtime tflite-runtime --set StartFrom=snapshot", "another runtime than tflite"),
        ("--runtime tflite-runtime --architecture arm64", "the runtime ai-edge-litert or"),
        ("--runtime openvino --set MemorySize=512", "at least 768 MB of memory for OpenVINO"),
        (
            "--set StartFrom=provisioned --set ProvisionedConcurrency=6",
            "no more ProvisionedConcurrency than",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_told_first(cloud, calls, arguments, expected, capsys):
    for more in ([], ["--dry-run"]):
        assert deploy.main(["up", *arguments.split(), *more]) == 1
        assert f"Expected {expected}" in capsys.readouterr().err
    assert [call[1:3] for call, _ in calls()] == ASKED


@pytest.mark.parametrize(
    "arguments",
    [
        "--set MemorySize=512 --set LogRetention=365 --set AlarmEmail=a@b.c --set ApiRate=10000",
        "--runtime openvino --set MemorySize=768 --set StartFrom=snapshot",
        "--set StartFrom=provisioned --set ProvisionedConcurrency=5",
        "--set StartFrom=provisioned --set ProvisionedConcurrency=6 --set ReservedConcurrency=0",
        "--set ProvisionedConcurrency=6",
        "--runtime tflite-runtime --set AlarmEmail= --set FunctionUrlAuthorization=off",
    ],
)
def test_settings_that_go_together_are_passed_on(arguments, capsys):
    assert deploy.main(["up", "--dry-run", *arguments.split()]) == 0
    [command] = [c for c in printed_commands(capsys.readouterr().out) if c[0] == "sam"]
    wanted = [word for word in arguments.split() if "=" in word]
    assert command[-len(wanted) :] == [f'{w}""' if w.endswith("=") else w for w in wanted]


def test_the_cost_is_said_before_anything_is_done(capsys):
    assert deploy.main(["up", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2:4] for line in lines[: len(ASKED)]] == ASKED
    first = lines[len(ASKED)]
    assert first.startswith("Cost at rest: about $4.59 a month (12 alarms, a dashboard, ")
    assert "A million answers of 100 ms: $3.08, $1.00 for the API and $0.74 for the log." in first
    assert "cost at most $373 a month of computing (ReservedConcurrency=5)." in first


def test_without_a_limit_the_cost_has_none(capsys):
    assert deploy.main(["up", "--dry-run", "--set", "ReservedConcurrency=0"]) == 0
    assert "cost any sum (ReservedConcurrency=0)." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "dollars"),
    [
        (["MemorySize=3538"], 4.59),
        (["StartFrom=provisioned"], 23.25),
        (["StartFrom=provisioned", "ProvisionedConcurrency=3"], 60.56),
        (["StartFrom=snapshot"], 11.33),
    ],
)
def test_functions_that_are_kept_ready_cost(settings, dollars, capsys):
    words = [word for setting in settings for word in ("--set", setting)]
    assert deploy.main(["up", "--dry-run", *words]) == 0
    assert f"about ${dollars:.2f} a month" in capsys.readouterr().out


@pytest.fixture
def stack(cloud):
    """Let the stack have parameters: the defaults, but for those given."""

    def deployed(**parameters):
        values = deploy.defaults() | {"ImageUri": IMAGE} | parameters
        cloud({".Parameters[]": [0, json.dumps(list(values.items()))]})

    return deployed


def test_what_the_stack_has_is_kept_and_said(stack, calls, capfd):
    stack(ReservedConcurrency="0", MemorySize="3538", AlarmEmail="a@b.c", Gone="1")
    assert deploy.main(["up", "--set", "AlarmEmail="]) == 0
    output = capfd.readouterr().out
    assert (
        "\nThe stack keeps: MemorySize=3538 (default: 1769), ReservedConcurrency=0 (default: 5). "
        "Change one with --set NAME=VALUE.\n"
    ) in output
    assert "any sum (ReservedConcurrency=0)" in output
    assert "answers of 100 ms: $5.96" in output
    [sam] = [call for call, _ in calls() if call[0] == "sam"]
    assert sam[-2:] == ["Architecture=x86_64", 'AlarmEmail=""']  # sam itself keeps the others


def test_a_value_that_is_set_comes_before_that_of_the_stack(stack, capsys):
    stack(ReservedConcurrency="0")
    assert deploy.main(["up", "--set", "ReservedConcurrency=7"]) == 0
    output = capsys.readouterr().out
    assert "(ReservedConcurrency=7)" in output
    assert "keeps" not in output


@pytest.mark.parametrize("answer", [[0, "[]"], [254, "Stack with id flowers does not exist"]])
def test_without_a_stack_the_defaults_count(cloud, capsys, answer):
    cloud({".Parameters[]": answer})
    assert deploy.main(["up"]) == 0
    output = capsys.readouterr().out
    assert "(ReservedConcurrency=5)" in output
    assert "keeps" not in output


@pytest.mark.parametrize(
    ("has", "arguments", "said"),
    [
        (
            {"MemorySize": "512"},
            ["--runtime", "openvino"],
            "Expected at least 768 MB of memory for OpenVINO. Received: --runtime openvino "
            "--architecture x86_64 MemorySize=512 of the stack. Change one of them.",
        ),
        (
            {"Timeout": "45"},
            [],
            "Expected Timeout to be one of 15, 20, 30, 60. Received: 45, which the stack keeps. "
            "Change it with --set Timeout=VALUE.",
        ),
    ],
)
def test_what_the_stack_keeps_has_to_go_with_the_rest(stack, calls, has, arguments, said, capsys):
    stack(**has)
    assert deploy.main(["up", *arguments]) == 1
    assert said in capsys.readouterr().err
    assert [call[1:3] for call, _ in calls()] == ASKED


def test_what_the_stack_has_may_make_settings_go_together(stack, capsys):
    stack(ReservedConcurrency="0", Timeout="45")
    provisioned = ("StartFrom=provisioned", "ProvisionedConcurrency=6", "Timeout=30")
    assert deploy.main(["up", *(w for word in provisioned for w in ("--set", word))]) == 0


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A project with a checkpoint that is not converted."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "xception_fin_01_0.500.h5").write_bytes(b"checkpoint")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tools.container.ROOT", tmp_path)
    return tmp_path


def test_a_checkpoint_is_converted_first(cloud, calls, clone, monkeypatch):
    def convert(models):
        assert calls() == []
        (models / "xception_fin_01_0.500.tflite").write_bytes(b"model")

    monkeypatch.setattr("tools.container.convert", convert)
    assert deploy.main(["up"]) == 0
    assert (clone / "models" / "xception_fin_01_0.500.tflite").exists()


def test_a_dry_run_converts_nothing(clone, capsys):
    assert deploy.main(["up", "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "$ python convert_to_tflite.py --models models\n" in output
    assert "--build-arg MODELS=models --build-arg MODEL=xception_fin_01_0.500.tflite -t" in output
    assert re.search(r"/flowers:[0-9a-f]{12}-MODEL-ai-edge-litert-x86_64 Runtime=", output)
    assert [path.suffix for path in (clone / "models").iterdir()] == [".h5"]


def test_a_link_to_a_model_elsewhere_is_refused(cloud, calls, clone, tmp_path_factory, capsys):
    """Docker would be sent the link alone, and pick another model than the tag names."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "a.tflite"
    elsewhere.write_bytes(b"model")
    (clone / "models" / "xception_fin_02_0.600.tflite").symlink_to(elsewhere)
    (clone / "models" / "xception_fin_01_0.500.tflite").write_bytes(b"model")
    for arguments in (["--dry-run"], []):
        assert deploy.main(["up", *arguments]) == 1
        assert f"a link to {elsewhere}. Copy the file" in capsys.readouterr().err
    assert calls() == []


def test_without_any_model_it_says_so(clone, capsys):
    (clone / "models" / "xception_fin_01_0.500.h5").unlink()
    for arguments in (["--dry-run"], []):
        assert deploy.main(["up", *arguments]) == 1
        assert "Expected" in capsys.readouterr().err


# The tag


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one commit and a model."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "a.tflite").write_bytes(b"model")
    (tmp_path / "code.py").write_text("1")
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b.c")
    for words in (["init", "-q"], ["add", "code.py"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(deploy, "ROOT", tmp_path)
    return tmp_path


def tag(repository, runtime="openvino", architecture="x86_64", dry_run=False):
    options = deploy.argparse.Namespace(runtime=runtime, architecture=architecture, dry_run=dry_run)
    return deploy.image_tag(repository / "models" / "a.tflite", options)


def test_the_tag_names_commit_model_runtime_and_architecture(repository):
    first = tag(repository)
    assert re.fullmatch(r"[0-9a-f]{12}-9372c470eeadd5ec-openvino-x86_64", first)
    assert (
        len({first, tag(repository, "ai-edge-litert"), tag(repository, architecture="arm64")}) == 3
    )
    (repository / "models" / "a.tflite").write_bytes(b"other")
    assert tag(repository).split("-")[0] == first.split("-")[0]
    assert tag(repository) != first


def test_changes_that_are_not_committed_have_no_tag(repository):
    first = tag(repository)
    (repository / "code.py").write_text("2")
    with pytest.raises(deploy.DeployError, match=r"Received: changes in code.py. Commit or stash"):
        tag(repository)
    assert tag(repository, dry_run=True) == first


def test_outside_of_a_repository_there_is_no_tag(tmp_path, monkeypatch):
    monkeypatch.setattr(deploy, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "a.tflite").write_bytes(b"model")
    with pytest.raises(deploy.DeployError, match="Expected a Git repository"):
        tag(tmp_path)


def test_the_template_is_where_it_is_read():
    assert (ROOT / deploy.TEMPLATE).is_file()
