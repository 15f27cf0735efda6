"""What no linter and no AWS on one machine holds of the template: each rule returns sentences."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from conftest import ROOT

TEMPLATE = ROOT / "deploy" / "template.yaml"
# Actions for which AWS knows no resource but "*" (its service authorization reference).
ANY_RESOURCE = re.compile(r"(xray|logs):\w+")
LOG_STREAMS = {"logs:CreateLogStream", "logs:PutLogEvents"}  # these know log groups
FUNCTIONS = {
    "ClassifyFunction": set(),
    "LabelFunction": {
        ("sqs:ReceiveMessage", "ImageQueue"),
        ("sqs:DeleteMessage", "ImageQueue"),
        ("sqs:GetQueueAttributes", "ImageQueue"),
        ("s3:GetObject", "ImageBucket/*"),
        ("s3:GetObjectTagging", "ImageBucket/*"),
        ("s3:PutObjectTagging", "ImageBucket/*"),
        ("s3:PutObject", "ImageBucket/*.json"),
        ("s3:ListBucket", "ImageBucket"),
    },
    "MapFunction": {
        ("s3:GetObject", "ImageBucket/*"),
        ("s3:PutObject", "ImageBucket/jobs/*"),
        ("s3:ListBucket", "ImageBucket"),
    },
}
ALARMS = {  # metric: of which resources
    "Errors": {"ClassifyFunction", "LabelFunction", "MapFunction"},
    "Throttles": {"ClassifyFunction", "LabelFunction", "MapFunction"},
    "Duration": {"ClassifyFunction", "LabelFunction"},
    "ApproximateNumberOfMessagesVisible": {"DeadLetterQueue"},
    "ApproximateAgeOfOldestMessage": {"ImageQueue"},
    "5xx": {"Api"},
    "ExecutionsFailed": {"MapStateMachine"},
}


class _Loader(yaml.SafeLoader):
    """Reads CloudFormation's short forms: !Ref A as {"Ref": "A"}."""


def _long_form(loader: _Loader, tag: str, node: yaml.Node) -> dict:
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    if tag == "GetAtt":
        value = value.split(".")
    return {tag if tag in {"Ref", "Condition"} else f"Fn::{tag}": value}


_Loader.add_multi_constructor("!", _long_form)


def load(text: str) -> dict:
    """Return the template `text`."""
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader


def problems(template: dict, text: str) -> list[str]:
    """Return what is wrong with `template`, which was read from `text`."""
    rules = (
        *(queues, senders, new_images, queue_source, roles, rights, map_role, functions),
        *(classify, permissions, function_url, api, logs, alarms, watched, bucket, machine),
        *(distributed_map, topic_policy),
    )
    found = [problem for rule in rules for problem in rule(template)]
    return found + list(parameters(template, text))


def of_type(template: dict, kind: str) -> dict[str, dict]:
    """Return the properties of the resources of `kind`."""
    resources = template["Resources"].items()
    return {name: r.get("Properties") or {} for name, r in resources if r["Type"] == kind}


def target(value: object) -> str:
    """Return the resource that `value` means, with what stands behind it: "ImageBucket/*"."""
    match value:
        case {"Ref": name}:
            return name
        case {"Fn::GetAtt": [name, *_]}:
            return name
        case {"Fn::Sub": str(text)}:
            return re.sub(r"\$\{(\w+)(?:\.\w+)?\}", r"\1", text)
    return str(value)


def listed(value: object) -> list:
    return value if isinstance(value, list) else [value]


def allowed(role: dict) -> Iterator[tuple[str, str]]:
    """Yield each (action, resource) that `role` allows."""
    for policy in role.get("Policies", []):
        for statement in policy["PolicyDocument"]["Statement"]:
            for action in listed(statement["Action"]):
                for resource in listed(statement["Resource"]):
                    yield action, target(resource)


def queues(template: dict) -> Iterator[str]:
    found = of_type(template, "AWS::SQS::Queue")
    images, dead = found["ImageQueue"], found["DeadLetterQueue"]
    longest = max(template["Parameters"]["Timeout"]["AllowedValues"])
    if images.get("VisibilityTimeout", 30) < 6 * longest:
        yield "the queue hides a message for less than six times the function's timeout"
    redrive = images.get("RedrivePolicy", {})
    if target(redrive.get("deadLetterTargetArn")) != "DeadLetterQueue":
        yield "the queue has no dead-letter queue"
    if not 2 <= redrive.get("maxReceiveCount", 0) <= 5:
        yield "an image is tried once only, or too often"
    if dead.get("MessageRetentionPeriod") != 1_209_600:
        yield "dead letters are not kept for 14 days"
    if any(queue.get("SqsManagedSseEnabled") is not True for queue in found.values()):
        yield "a queue is not encrypted"


def senders(template: dict) -> Iterator[str]:
    found = {}
    for policy in of_type(template, "AWS::SQS::QueuePolicy").values():
        for statement in policy["PolicyDocument"]["Statement"]:
            found[target(statement["Resource"])] = statement
            if [target(queue) for queue in policy["Queues"]] != [target(statement["Resource"])]:
                yield "a queue policy is for another queue"
    for name in of_type(template, "AWS::SQS::Queue"):
        sender = found.get(name, {})
        source = sender.get("Condition", {}).get("ArnEquals", {}).get("aws:SourceArn")
        if (
            sender.get("Effect") != "Allow"
            or sender.get("Action") != "sqs:SendMessage"
            or sender.get("Principal") != {"Service": "events.amazonaws.com"}
            or target(source) != "NewImageRule"
        ):
            yield f"the rule for new images may not send to {name}, or others may"


def new_images(template: dict) -> Iterator[str]:
    [rule] = of_type(template, "AWS::Events::Rule").values()
    pattern = rule["EventPattern"]
    if (pattern["source"], pattern["detail-type"]) != (["aws.s3"], ["Object Created"]):
        yield "the rule is not for new images only"
    if [target(name) for name in pattern["detail"]["bucket"]["name"]] != ["ImageBucket"]:
        yield "the rule is for other buckets as well"
    keys = pattern["detail"].get("object", {}).get("key")
    if keys != [{"anything-but": {"wildcard": ["*.json", "jobs/*"]}}]:
        yield "the function would be sent the labels that it writes"
    [to] = rule["Targets"]
    if target(to["Arn"]) != "ImageQueue":
        yield "the rule does not send to the queue"
    if target(to.get("DeadLetterConfig", {}).get("Arn")) != "DeadLetterQueue":
        yield "what EventBridge cannot deliver is lost"


def queue_source(template: dict) -> Iterator[str]:
    [source] = of_type(template, "AWS::Lambda::EventSourceMapping").values()
    if (target(source["FunctionName"]), target(source["EventSourceArn"])) != (
        "LabelFunction",
        "ImageQueue",
    ):
        yield "the function for new images does not read the queue"
    if source.get("FunctionResponseTypes") != ["ReportBatchItemFailures"]:
        yield "a poison image would fail all ten of its batch"
    if target(source.get("ScalingConfig", {}).get("MaximumConcurrency")) != "LabelConcurrency":
        yield "the queue may start any number of functions"


def roles(template: dict) -> Iterator[str]:
    found = of_type(template, "AWS::IAM::Role")
    for name, role in found.items():
        if role.get("ManagedPolicyArns"):
            yield f"{name} has a policy of AWS, which allows more than it needs"
        for action, resource in allowed(role):
            if "*" in action:
                yield f"{name} allows {action}"
            if resource == "*" and (not ANY_RESOURCE.fullmatch(action) or action in LOG_STREAMS):
                yield f"{name} allows {action} on everything"


def rights(template: dict) -> Iterator[str]:
    found = of_type(template, "AWS::IAM::Role")
    used = [target(f.get("Role")) for f in of_type(template, "AWS::Serverless::Function").values()]
    if len(set(used)) != len(used) or not set(used) <= set(found):
        yield "functions do not have a role each"
    for name in FUNCTIONS:
        role = found.get(target(template["Resources"][name]["Properties"].get("Role")), {})
        own = {r for r in allowed(role) if r[0].split(":")[0] not in {"logs", "xray"}}
        for action, resource in own ^ FUNCTIONS[name]:
            yield f"{name}: {action} on {resource} is missing, or too much"


def map_role(template: dict) -> Iterator[str]:
    role = of_type(template, "AWS::IAM::Role")["MapRole"]
    machine = {right for right in allowed(role) if right[1] != "*"}
    own = "arn:AWS::Partition:states:AWS::Region:AWS::AccountId:"
    named = re.compile(r"\$\{(AWS::\w+)\}")
    machine = {(action, named.sub(r"\1", resource)) for action, resource in machine}
    if machine != {
        ("lambda:InvokeFunction", "MapFunction"),
        ("s3:ListBucket", "ImageBucket"),
        ("states:StartExecution", own + "stateMachine:AWS::StackName-label"),
        ("states:DescribeExecution", own + "execution:AWS::StackName-label/*"),
        ("states:StopExecution", own + "execution:AWS::StackName-label/*"),
    }:
        yield "the state machine's role allows other things than it does"


def functions(template: dict) -> Iterator[str]:
    found = of_type(template, "AWS::Serverless::Function")
    if set(found) != set(FUNCTIONS):
        yield "there are other functions than these rules know"
    for name, function in found.items():
        if function.get("PackageType") != "Image" or target(function["ImageUri"]) != "ImageUri":
            yield f"{name} does not run the container image"
        variables = function.get("Environment", {}).get("Variables", {})
        if (target(variables.get("LABEL_BUCKET")) == "ImageBucket") != bool(FUNCTIONS[name]):
            yield f"{name} takes events of AWS's services that are not meant for it, or none"
        if "Policies" in function or "Events" in function:
            yield f"{name} has resources that only SAM sees"


def classify(template: dict) -> Iterator[str]:
    variables = template["Globals"]["Function"]["Environment"]["Variables"]
    if target(variables.get("METRICS_NAMESPACE")) != "AWS::StackName":
        yield "the functions send no metrics of unknown images"
    function = template["Resources"]["ClassifyFunction"]["Properties"]
    if "ReservedConcurrentExecutions" not in function:
        yield "the Function URL has no limit at all"
    if function.get("AutoPublishAlias") != "live":
        yield "SnapStart has no version, and callers no alias"
    described = function.get("VersionDescription", {}).get("Fn::Sub", "")
    if not all(f"${{{name}}}" in described for name in ("MemorySize", "Timeout", "StartFrom")):
        yield "other settings would wait for the next container image"
    if function.get("SnapStart", {}).get("ApplyOn") != {
        "Fn::If": ["HasSnapStart", "PublishedVersions", "None"]
    }:
        yield "SnapStart is not where the parameter says"
    provisioned = function.get("ProvisionedConcurrencyConfig", {}).get("Fn::If", [None])[0]
    if provisioned != "HasProvisionedConcurrency":
        yield "provisioned concurrency is not where the parameter says"


def permissions(template: dict) -> Iterator[str]:
    alias = "ClassifyFunction.Alias"
    found = list(of_type(template, "AWS::Lambda::Permission").items())
    for name, permission in found:
        if target(permission["FunctionName"]) != alias:
            yield f"{name} is not for the alias"
        if permission["Principal"] == "*":
            if template["Resources"][name].get("Condition") != "HasPublicUrl":
                yield f"{name} lets everybody in whatever the parameter says"
        elif "SourceArn" not in permission:
            yield f"{name} lets all APIs of all accounts in"
    source = "arn:${AWS::Partition}:execute-api:${AWS::Region}:${AWS::AccountId}:${Api}/*"
    if not any(
        permission["Principal"] == "apigateway.amazonaws.com"
        and permission["Action"] == "lambda:InvokeFunction"
        and permission.get("SourceArn") == {"Fn::Sub": source}
        for _, permission in found
    ):
        yield "the API may not call the function"


def function_url(template: dict) -> Iterator[str]:
    found = of_type(template, "AWS::Lambda::Permission").values()
    public = {p["Action"]: p for p in found if p["Principal"] == "*"}
    if public.get("lambda:InvokeFunctionUrl", {}).get("FunctionUrlAuthType") != "NONE":
        yield "a public Function URL answers 403"
    if public.get("lambda:InvokeFunction", {}).get("InvokedViaFunctionUrl") is not True:
        yield "everybody may call the function past its URL, or nobody by it"
    [url] = of_type(template, "AWS::Lambda::Url").values()
    if (target(url["AuthType"]), url.get("Qualifier")) != ("FunctionUrlAuthorization", "live"):
        yield "the Function URL is not that of the alias, or open to others"
    if template["Parameters"]["FunctionUrlAuthorization"]["Default"] != "AWS_IAM":
        yield "the Function URL is open by default"


def api(template: dict) -> Iterator[str]:
    [stage] = of_type(template, "AWS::ApiGatewayV2::Stage").values()
    limits = stage.get("DefaultRouteSettings", {})
    if {"ThrottlingRateLimit", "ThrottlingBurstLimit"} - set(limits):
        yield "the API has no throttling"
    if target(stage.get("AccessLogSettings", {}).get("DestinationArn")) != "ApiLog":
        yield "the API has no access log"
    else:
        json.loads(stage["AccessLogSettings"]["Format"])
    [integration] = of_type(template, "AWS::ApiGatewayV2::Integration").values()
    if (integration.get("PayloadFormatVersion"), target(integration["IntegrationUri"])) != (
        "2.0",
        "ClassifyFunction.Alias",
    ):
        yield "the API does not send events of format 2.0 to the alias"
    routes = of_type(template, "AWS::ApiGatewayV2::Route").values()
    of_keys = {route["RouteKey"]: target(route["AuthorizationType"]) for route in routes}
    if of_keys != {
        "OPTIONS /": "NONE",
        "ANY /": "ApiAuthorization",
        "ANY /{proxy+}": "ApiAuthorization",
    }:
        yield "the API's routes or their authorization are others"
    if {target(route["Target"]) for route in routes} != {"integrations/ApiIntegration"}:
        yield "a route leads elsewhere"


def logs(template: dict) -> Iterator[str]:
    groups = of_type(template, "AWS::Logs::LogGroup")
    for name, group in groups.items():
        if target(group.get("RetentionInDays")) != "LogRetention":
            yield f"{name} is kept forever"
    for name, function in of_type(template, "AWS::Serverless::Function").items():
        group = target(function.get("LoggingConfig", {}).get("LogGroup"))
        role = template["Resources"].get(target(function.get("Role")), {}).get("Properties", {})
        if group not in groups:
            yield f"{name} logs to a group that nobody deletes"
        if {(action, group) for action in LOG_STREAMS} - set(allowed(role)):
            yield f"{name} may not log"


def alarms(template: dict) -> Iterator[str]:
    found = of_type(template, "AWS::CloudWatch::Alarm")
    for name, alarm in found.items():
        if [target(action) for action in alarm.get("AlarmActions", [])] != ["AlarmTopic"]:
            yield f"{name} tells nobody"
        if alarm.get("ComparisonOperator") != "GreaterThanThreshold":
            yield f"{name} compares the other way round"
        if alarm.get("TreatMissingData") != "notBreaching":
            yield f"{name} is undecided while nothing happens"
        if alarm.get("MetricName") == "Duration" and alarm.get("ExtendedStatistic") != "p99":
            yield f"{name} is not of the 99th percentile"


def watched(template: dict) -> Iterator[str]:
    found = of_type(template, "AWS::CloudWatch::Alarm")
    metrics: dict[str, set[str]] = {}
    for alarm in found.values():
        for dimension in alarm.get("Dimensions", []):
            metrics.setdefault(alarm["MetricName"], set()).add(target(dimension["Value"]))
    if metrics != ALARMS:
        yield "alarms are missing, or not in these rules"
    unknown = found.get("UnknownAlarm", {}).get("Metrics", [])
    names = {m["Id"]: m["MetricStat"]["Metric"]["MetricName"] for m in unknown if "MetricStat" in m}
    if names != {"unknown": "unknown", "classified": "classified"}:
        yield "there is no alarm for unknown images"


def topic_policy(template: dict) -> Iterator[str]:
    [topic] = of_type(template, "AWS::SNS::TopicPolicy").values()
    [statement] = topic["PolicyDocument"]["Statement"]
    if statement["Principal"] != {"Service": "cloudwatch.amazonaws.com"}:
        yield "alarms may not be published"


def bucket(template: dict) -> Iterator[str]:
    [found] = of_type(template, "AWS::S3::Bucket").values()
    if template["Resources"]["ImageBucket"].get("DeletionPolicy") != "Retain":
        yield "the images are deleted with the stack"
    if set(found.get("PublicAccessBlockConfiguration", {}).values()) != {True}:
        yield "the images may become public"
    events = found.get("NotificationConfiguration", {}).get("EventBridgeConfiguration", {})
    if events.get("EventBridgeEnabled") is not True:
        yield "new images are not told to EventBridge"


def is_connected(definition: dict) -> bool:
    """Return whether each state leads to another or ends, and each is led to."""
    states = definition["States"]
    led_to = {state["Next"] for state in states.values() if "Next" in state}
    ends = all("Next" in state or state.get("End") is True for state in states.values())
    inner = [state["ItemProcessor"] for state in states.values() if "ItemProcessor" in state]
    return (
        ends and led_to | {definition["StartAt"]} == set(states) and all(map(is_connected, inner))
    )


def machine(template: dict) -> Iterator[str]:
    [found] = of_type(template, "AWS::StepFunctions::StateMachine").values()
    if not is_connected(found["Definition"]):
        yield "states of the state machine lead nowhere"
    used = set(re.findall(r"\$\{(\w+)\}", json.dumps(found["Definition"])))
    if used != set(found["DefinitionSubstitutions"]):
        yield "the state machine's substitutions are not those of its definition"
    if target(found["DefinitionSubstitutions"].get("Function")) != "MapFunction":
        yield "the state machine calls another function"


def distributed_map(template: dict) -> Iterator[str]:
    [found] = of_type(template, "AWS::StepFunctions::StateMachine").values()
    lists = found["Definition"]["States"]["Lists"]
    if lists["ItemProcessor"]["ProcessorConfig"]["Mode"] != "DISTRIBUTED":
        yield "the map is not distributed"
    if not {"MaxConcurrencyPath", "ToleratedFailurePercentagePath"} <= set(lists):
        yield "the map has no limit of functions or of failures"
    if not lists["ItemReader"]["Parameters"]["Prefix.$"].startswith(
        "States.Format('jobs/{}/lists/"
    ):
        yield "the map reads all objects"
    label = lists["ItemProcessor"]["States"]["Label"]
    if label.get("ResultSelector") != {} or lists.get("ResultPath", "") is not None:
        yield "the map's result grows with its lists, and AWS takes 256 kB"
    retried = [error for retry in label.get("Retry", []) for error in retry["ErrorEquals"]]
    if "Lambda.TooManyRequestsException" not in retried:
        yield "a throttled list fails"
    timeout = template["Resources"]["MapFunction"]["Properties"]["Timeout"]
    if label.get("TimeoutSeconds", 0) <= timeout:
        yield "the map gives up before the function's timeout"


def parameters(template: dict, text: str) -> Iterator[str]:
    for name, parameter in template["Parameters"].items():
        if not parameter.get("Description"):
            yield f"the parameter {name} has no description"
        if not {"AllowedValues", "AllowedPattern", "MinValue"} & set(parameter):
            yield f"the parameter {name} takes anything"
        if len(re.findall(rf"\b{name}\b", text)) < 2:
            yield f"the parameter {name} does nothing"
    asserted = json.dumps(template["Rules"])
    for name in ("StartFrom", "Architecture", "Runtime"):
        if f'"Ref": "{name}"' not in asserted:
            yield f"nothing checks {name}"


def read() -> tuple[dict, str]:
    """Return the template and its text."""
    text = Path(TEMPLATE).read_text(encoding="utf-8")
    return load(text), text
