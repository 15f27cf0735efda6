"""deploy/template.yaml: linters, and what they do not see. Each mutant of it is noticed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from stack_rules import TEMPLATE, problems, read
from stack_rules import load as load_template

# What cfn-lint finds although it is meant so: {(rule, resource): reason}.
MEANT = {
    ("WS1002", "ClassifyFunction.Alias"): "the API and a public Function URL call one alias",
    ("WS1004", "ClassifyFunction"): "LoggingConfig names its group, which this rule does not read",
    ("WS1004", "LabelFunction"): "the same",
    ("WS1004", "MapFunction"): "the same",
    ("ES6000", "DeadLetterQueue"): "it is the dead-letter queue",
    ("ES1001", "LabelQueueSource"): "for streams; a queue has its own dead-letter queue",
    ("ES7000", "AlarmSubscription"): "mail",
}


def lint(path: Path) -> list[tuple[str, str]]:
    """Return the (rule, message) of each finding of cfn-lint and its serverless rules."""
    pytest.importorskip("cfn_lint_serverless")
    command = [sys.executable, "-c", "from cfnlint.runner import main; main()", "--format", "json"]
    done = subprocess.run(
        [*command, "-a", "cfn_lint_serverless.rules", "-t", path], capture_output=True, text=True
    )
    assert done.stdout, done.stderr
    return [(found["Rule"]["Id"], found["Message"]) for found in json.loads(done.stdout)]


def not_meant(found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [
        (rule, message)
        for rule, message in found
        if not any(rule == r and re.search(rf"\b{name}\b", message) for r, name in MEANT)
    ]


def test_linters_find_what_is_meant_and_nothing_else():
    found = lint(TEMPLATE)
    assert not_meant(found) == []
    assert len(found) == len(MEANT)


def test_the_rules_find_nothing():
    assert problems(*read()) == []


# {what was changed: (text, its replacement, what the rules say)}
MUTANTS = {
    "short visibility": ("VisibilityTimeout: 360", "VisibilityTimeout: 60", "six times"),
    "long timeout": ("[15, 20, 30, 60]", "[15, 20, 30, 60, 120]", "six times"),
    "no visibility": ("      VisibilityTimeout: 360", "      DelaySeconds: 0", "six times"),
    "no redrive": ("      RedrivePolicy:", "      Unused:", "no dead-letter queue"),
    "tried twice": ("maxReceiveCount: 5", "maxReceiveCount: 2", "tried too seldom"),
    "long batching": (
        "      BatchSize: 10\n",
        "      BatchSize: 10\n      MaximumBatchingWindowInSeconds: 20\n",
        "six times",
    ),
    "letters kept for a day": ("1209600", "86400", "14 days"),
    "no encryption": ("SqsManagedSseEnabled: true", "SqsManagedSseEnabled: false", "encrypted"),
    "policy for the wrong rule": (
        'ArnEquals: {"aws:SourceArn": !GetAtt NewImageRule.Arn}',
        'StringLike: {"aws:SourceArn": "*"}',
        "may not send",
    ),
    "policy of the wrong queue": (
        "Queues: [!Ref ImageQueue]",
        "Queues: [!Ref DeadLetterQueue]",
        "another queue",
    ),
    "wrong sender": ("Service: events.amazonaws.com", "Service: s3.amazonaws.com", "may not send"),
    "all of a batch fail": (
        "      FunctionResponseTypes: [ReportBatchItemFailures]\n",
        "",
        "poison image",
    ),
    "own labels are read": ('["*.json", "jobs/*"]', '["jobs/*"]', "labels that it writes"),
    "tags as well": ("[Object Created]", "[Object Created, Object Tags Added]", "new images only"),
    "undelivered events": ("          DeadLetterConfig:", "          InputPath:", "lost"),
    "any number of functions": (
        "        MaximumConcurrency: !Ref LabelConcurrency",
        "        {}",
        "any number",
    ),
    "all buckets": ("!Sub ${ImageBucket.Arn}/*.json", '"*"', "PutObject on everything"),
    "any object written": ("${ImageBucket.Arn}/*.json", "${ImageBucket.Arn}/*", "too much"),
    "all actions": ("Action: s3:PutObject\n", "Action: s3:*\n", "allows s3:*"),
    "no tagging": (", s3:PutObjectTagging]", "]", "PutObjectTagging"),
    "no reading": ("[s3:GetObject, s3:GetObjectTagging,", "[s3:GetObjectTagging,", "GetObject on"),
    "no receiving": ("sqs:ReceiveMessage, ", "", "sqs:ReceiveMessage"),
    "one role for two": (
        "Role: !GetAtt MapFunctionRole.Arn",
        "Role: !GetAtt LabelRole.Arn",
        "role each",
    ),
    "role of SAM": ("      Role: !GetAtt ClassifyRole.Arn\n", "", "role each"),
    "old policy": ('        Version: "2012-10-17"\n', "", "another version"),
    "taken by all": ("Service: lambda.amazonaws.com", 'AWS: "*"', "taken by others"),
    "taken from other accounts": (
        '            Condition: {StringEquals: {"aws:SourceAccount": !Ref AWS::AccountId}}\n'
        "      Policies:",
        "      Policies:",
        "taken by others",
    ),
    "denied": (
        "              - Effect: Allow\n                Action: s3:PutObject\n",
        "              - Effect: Deny\n                Action: s3:PutObject\n",
        "forbids something",
    ),
    "no traces": ("xray:PutTraceSegments, ", "", "PutTraceSegments"),
    "log group of all": ("Resource: !GetAtt LabelLog.Arn", 'Resource: "*"', "on everything"),
    "no log": ("Resource: !GetAtt LabelLog.Arn", "Resource: !GetAtt ApiLog.Arn", "may not log"),
    "logs forever": ("      RetentionInDays: !Ref LogRetention\n", "", "forever"),
    "the API may not call": ("Principal: apigateway", "Principal: events", "may not call"),
    "all APIs": ("${AWS::AccountId}:${Api}/*", "${AWS::AccountId}:*", "may not call"),
    "public whatever is said": ("    Condition: HasPublicUrl\n", "", "lets everybody in"),
    "public past the URL": ("      InvokedViaFunctionUrl: true\n", "", "past its URL"),
    "URL though off": ("    Condition: HasFunctionUrl\n", "", "whatever the parameter"),
    "URL of another": (
        "TargetFunctionArn: !Ref ClassifyFunction",
        "TargetFunctionArn: !Ref MapFunction",
        "another function's",
    ),
    "off means open": (
        "[!Ref FunctionUrlAuthorization, NONE]",
        '[!Ref FunctionUrlAuthorization, "off"]',
        "HasPublicUrl does not hold",
    ),
    "no limit where there is one": (
        "!Not [!Equals [!Ref ReservedConcurrency, 0]]",
        "!Equals [!Ref ReservedConcurrency, 0]",
        "HasReservedConcurrency does not hold",
    ),
    "another limit": (
        "!Ref ReservedConcurrency, !Ref AWS::NoValue]",
        "!Ref ProvisionedConcurrency, !Ref AWS::NoValue]",
        "no limit at all",
    ),
    "never kept": (
        "ProvisionedConcurrentExecutions: !Ref ProvisionedConcurrency",
        "ProvisionedConcurrentExecutions: 1",
        "provisioned concurrency",
    ),
    "endless requests": ("      Timeout: !Ref Timeout\n", "      Timeout: 900\n", "do not end"),
    "short lists": ("      Timeout: 900\n", "      Timeout: 60\n", "do not end"),
    "API of web sockets": ("ProtocolType: HTTP", "ProtocolType: WEBSOCKET", "of another kind"),
    "never deployed": ("      AutoDeploy: true\n", "", "not deployed"),
    "another path": ("StageName: $default", "StageName: prod", "not deployed"),
    "burst only": ("!Ref ApiRate\n", "!Ref ApiBurst\n", "no throttling"),
    "logs kept": ("    DeletionPolicy: Delete\n", "", "deleted with the stack"),
    "open URL": ("    Default: AWS_IAM", "    Default: NONE", "open by default"),
    "URL without a limit": (
        "      ReservedConcurrentExecutions:\n",
        "      Description:\n",
        "no limit at all",
    ),
    "no throttling": ("        ThrottlingRateLimit: !Ref ApiRate\n", "", "no throttling"),
    "no access log": ("      AccessLogSettings:", "      Unused:", "no access log"),
    "no alias to call": ("${ClassifyFunction.Arn}:live", "${ClassifyFunction.Arn}", "to the alias"),
    "alias too late": ("    DependsOn: ClassifyFunctionAliaslive\n", "", "wait for the alias"),
    "old versions": ("    DeletionPolicy: Delete # passed", "    # passed", "their snapshots cost"),
    "another image": ("{RUNTIME: !Ref Runtime}", "{RUNTIME: openvino}", "another container image"),
    "tag of none": ("      DockerTag: !Ref Runtime\n", "", "another container image"),
    "one partition": ("arn:${Partition}:", "arn:aws:", "partitions only"),
    "another call": ("Resource: ${Function}", "Resource: ${Bucket}", "does not call the function"),
    "old events": ('PayloadFormatVersion: "2.0"', 'PayloadFormatVersion: "1.0"', "format 2.0"),
    "preflights signed": (
        "      AuthorizationType: NONE",
        "      AuthorizationType: AWS_IAM",
        "authorization",
    ),
    "no other paths": ("ANY /{proxy+}", "GET /{proxy+}", "routes"),
    "SnapStart always": (
        "!If [HasSnapStart, PublishedVersions, None]",
        "PublishedVersions",
        "SnapStart",
    ),
    "old settings": ("${MemorySize} MB, ${Timeout} s, from", "${MemorySize} MB, from", "wait for"),
    "no new function": ("${Timeout} s\n", "${Timeout} s, ${StartFrom}\n", "be refused"),
    "same content": ("      Description: !Ref ImageUri\n", "", "would be refused"),
    "no alias": ("      AutoPublishAlias: live\n", "", "alias"),
    "requests with a bucket": (
        "METRICS_NAMESPACE: !Ref AWS::StackName",
        "LABEL_BUCKET: a",
        "no metrics",
    ),
    "no bucket": ("          LABEL_BUCKET: !Ref ImageBucket", "          A: b", "events of AWS"),
    "alarms tell nobody": ("      AlarmActions: [!Ref AlarmTopic]\n", "", "tells nobody"),
    "mean time": ("      ExtendedStatistic: p99", "      Statistic: Average", "no alarm, or"),
    "no alarm of errors": ("MetricName: Errors", "MetricName: Invocations", "no alarm, or"),
    "alarm of another service": ("Namespace: AWS/SQS", "Namespace: AWS/SNS", "no alarm, or"),
    "alarm of no queue": (
        "Value: !GetAtt DeadLetterQueue.QueueName",
        "Value: !GetAtt DeadLetterQueue.Arn",
        "no alarm, or",
    ),
    "many errors": ("      Threshold: 0\n", "      Threshold: 10\n", "no alarm, or"),
    "alarm in a day": ("      Period: 300\n", "      Period: 86400\n", "another time"),
    "one slow moment": ("EvaluationPeriods: 3", "EvaluationPeriods: 1", "another time"),
    "undecided": ("      TreatMissingData: notBreaching\n", "", "while nothing happens"),
    "slow batches of another timeout": ('"60": 48000', '"60": 24000', "80 %"),
    "unknown of few": ("FILL(classified, 0) >= 20", "FILL(classified, 0) >= 2", "unknown: not"),
    "unknown without a share": ("100 * FILL(unknown, 0)", "FILL(unknown, 0)", "unknown: not"),
    "unknown of nothing": ("FILL(unknown, 0) /", "unknown /", "unknown: not"),
    "unknown of a minute": ("Period: 3600", "Period: 60", "unknown images"),
    "anybody publishes": (
        '            Condition: {StringEquals: {"aws:SourceAccount": !Ref AWS::AccountId}}\n'
        "  AlarmSubscription",
        "  AlarmSubscription",
        "others may publish",
    ),
    "mail to nobody": ("    Condition: HasAlarmEmail\n", "", "without an address"),
    "other way round": ("GreaterThanThreshold", "LessThanThreshold", "other way"),
    "no alarm of unknown": ("MetricName: unknown", "MetricName: errors", "unknown images"),
    "images deleted": (
        "    DeletionPolicy: RetainExceptOnCreate",
        "    DeletionPolicy: Delete",
        "deleted with the stack",
    ),
    "images replaced": ("    UpdateReplacePolicy: Retain\n", "", "bucket is replaced"),
    "one door open": ("        IgnorePublicAcls: true\n", "", "become public"),
    "images of others": ("BucketOwnerEnforced", "ObjectWriter", "belong to others"),
    "key that costs": ("SSEAlgorithm: AES256", "SSEAlgorithm: aws:kms", "encrypted"),
    "parts of uploads": ("            Status: Enabled", "            Status: Disabled", "uploads"),
    "without TLS": ('SecureTransport": "false"', 'SecureTransport": "true"', "without TLS"),
    "TLS for the list only": (', !Sub "${ImageBucket.Arn}/*"]', "]", "without TLS"),
    "public images": ("BlockPublicPolicy: true", "BlockPublicPolicy: false", "become public"),
    "no events": ("EventBridgeEnabled: true", "EventBridgeEnabled: false", "told to EventBridge"),
    "the map may call all": ("Resource: !GetAtt MapFunction.Arn", 'Resource: "*"', "on everything"),
    "a map that starts nothing": (
        "Action: states:StartExecution",
        "Action: states:ListExecutions",
        "machine's role",
    ),
    "map in one execution": ("Mode: DISTRIBUTED", "Mode: INLINE", "not distributed"),
    "map without tolerance": (
        "            ToleratedFailurePercentagePath: $.tolerated\n",
        "",
        "no limit",
    ),
    "map of everything": ("'jobs/{}/lists/'", "'{}'", "all objects"),
    "no job": ("              job.$: $.job\n", "", "not told the job"),
    "machine of another role": (
        "RoleArn: !GetAtt MapRole.Arn",
        "RoleArn: !GetAtt LabelRole.Arn",
        "another role",
    ),
    "machine of another name": (
        "StateMachineName: !Sub ${AWS::StackName}-label",
        "StateMachineName: label",
        "another name",
    ),
    "machine without a log": ("        Level: ERROR", '        Level: "OFF"', "no log of errors"),
    "long policies": ("/aws/vendedlogs/states/", "/states/", "has little"),
    "machine without traces": ("{Enabled: true}", "{Enabled: false}", "no traces"),
    "machine may not log": ("                  - logs:GetLogDelivery\n", "", "machine's role"),
    "five minutes": ("ExecutionType: STANDARD", "ExecutionType: EXPRESS", "five minutes"),
    "no list": ("$$.Map.Item.Value.Key", "$$.Map.Item.Value.Etag", "no list"),
    "own errors again": ("- Lambda.ServiceException", "- States.ALL", "tried again"),
    "tried once": ("MaxAttempts: 6", "MaxAttempts: 1", "two minutes"),
    "large answers": ("                  ResultSelector: {}\n", "", "grows with its images"),
    "throttled lists fail": (
        "                        - Lambda.TooManyRequestsException\n",
        "",
        "throttled",
    ),
    "map gives up": ("TimeoutSeconds: 960", "TimeoutSeconds: 60", "gives up"),
    "large result": ("            ResultPath: null\n", "", "256 kB"),
    "wrong next state": ("Next: Lists", "Next: List", "lead nowhere"),
    "state that nothing leads to": ("Next: Lists", "End: true", "lead nowhere"),
    "unknown substitution": ("${Function}", "${Functoin}", "substitutions"),
    "parameter without use": ("!Ref SlowestMs", "9000", "SlowestMs does nothing"),
    "parameter takes anything": ("    MinValue: 100\n", "", "takes anything"),
    "no check of the base": (
        "!Equals [!Ref Runtime, tflite-runtime]",
        '!Equals ["a", "b"]',
        "nothing checks",
    ),
    "check of another base": (
        "!Equals [!Ref Runtime, tflite-runtime]",
        "!Equals [!Ref Runtime, openvino]",
        "nothing checks",
    ),
    "no check of arm64": (
        "      - Assert: !Equals [!Ref Architecture, x86_64]\n"
        "        AssertDescription: On arm64 take the runtime ai-edge-litert.\n",
        "",
        "nothing checks",
    ),
}


@pytest.mark.parametrize(("text", "other", "said"), MUTANTS.values(), ids=MUTANTS)
def test_a_mutant_is_noticed(text: str, other: str, said: str):
    template = TEMPLATE.read_text(encoding="utf-8")
    assert text in template
    mutant = template.replace(text, other, 1)
    found = problems(load_template(mutant), mutant)
    assert any(said in problem for problem in found), found


# What these rules leave to cfn-lint.
LINTED = {
    "no kind of state": ("Type: Map\n", "Type: Mapp\n"),
    "misspelled property": ("StageName: $default", "StagName: $default"),
    "missing resource": ("!GetAtt ApiLog.Arn", "!GetAtt ApiLogs.Arn"),
    "wrong retention": ("[1, 3, 5, 7,", "[2, 3, 5, 7,"),
    "image and handler": ("      AutoPublishAlias: live", "      Handler: a.b"),
    "no throttling": (
        "      DefaultRouteSettings:\n        ThrottlingRateLimit: !Ref ApiRate\n"
        "        ThrottlingBurstLimit: !Ref ApiBurst\n        DetailedMetricsEnabled: false\n",
        "",
    ),
    "no tracing": ("    Tracing: Active\n", ""),
    "no such condition": ("Condition: HasPublicUrl", "Condition: HasPublikUrl"),
}


@pytest.mark.parametrize(("text", "other"), LINTED.values(), ids=LINTED)
def test_linters_notice_a_mutant(tmp_path: Path, text: str, other: str):
    template = TEMPLATE.read_text(encoding="utf-8")
    assert text in template
    path = tmp_path / "template.yaml"
    path.write_text(template.replace(text, other, 1), encoding="utf-8")
    assert not_meant(lint(path))


def test_lists_of_regions_and_accounts_are_nowhere():
    """A template for any account, region and partition names none."""
    resources = TEMPLATE.read_text(encoding="utf-8").partition("\nResources:\n")[2]
    assert not re.findall(r"\b\d{12}\b|\b[a-z]{2}-[a-z]+-\d\b", resources)
    assert "arn:aws:" not in resources


def test_the_documentation_has_all_parameters():
    page = (ROOT / "docs" / "aws.md").read_text(encoding="utf-8")
    template, _ = read()
    assert [name for name in template["Parameters"] if f"`{name}`" not in page] == []
    assert f"{len(MUTANTS) + len(LINTED)} small changes" in page
