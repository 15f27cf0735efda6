"""What no linter and no AWS on one machine holds of the template: each rule returns sentences."""

import json
import math
import re
from collections.abc import Iterator
from itertools import product
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
TRACES = {("xray:PutTraceSegments", "*"), ("xray:PutTelemetryRecords", "*")}
MACHINE = {  # what the state machine does, besides its log and traces
    ("lambda:InvokeFunction", "MapFunction"),
    ("s3:ListBucket", "ImageBucket"),
    ("states:StartExecution", "stateMachine:AWS::StackName-label"),
    ("states:DescribeExecution", "execution:AWS::StackName-label/*"),
    ("states:StopExecution", "execution:AWS::StackName-label/*"),
}
# For its log and traces: AWS's guide to Step Functions, "Using CloudWatch Logs" and "X-Ray".
MACHINE_LOGS = {"CreateLogDelivery", "GetLogDelivery", "UpdateLogDelivery", "DeleteLogDelivery"}
MACHINE_LOGS |= {"ListLogDeliveries", "PutResourcePolicy", "DescribeResourcePolicies"}
MACHINE_LOGS |= {"DescribeLogGroups"}
MACHINE_TRACES = {"PutTraceSegments", "PutTelemetryRecords", "GetSamplingRules"}
MACHINE_TRACES |= {"GetSamplingTargets"}
RETRIED = {"ServiceException", "AWSLambdaException", "SdkClientException"}  # as AWS recommends
RETRIED = {f"Lambda.{name}" for name in (*RETRIED, "TooManyRequestsException")}
LAMBDA = ("AWS/Lambda", "FunctionName")
ALARMS = {  # (namespace, dimension, metric, resource): (statistic, threshold)
    (*LAMBDA, "Errors", "ClassifyFunction"): ("Sum", 0),
    (*LAMBDA, "Errors", "LabelFunction"): ("Sum", 0),
    (*LAMBDA, "Errors", "MapFunction"): ("Sum", 0),
    (*LAMBDA, "Throttles", "ClassifyFunction"): ("Sum", 0),
    (*LAMBDA, "Throttles", "LabelFunction"): ("Sum", 0),
    (*LAMBDA, "Throttles", "MapFunction"): ("Sum", 0),
    (*LAMBDA, "Duration", "ClassifyFunction"): ("p99", {"Ref": "SlowestMs"}),
    (*LAMBDA, "Duration", "LabelFunction"): (
        "p99",
        {"Fn::FindInMap": ["Alarms", "SlowBatchMs", {"Ref": "Timeout"}]},
    ),
    ("AWS/SQS", "QueueName", "ApproximateNumberOfMessagesVisible", "DeadLetterQueue"): (
        "Maximum",
        0,
    ),
    ("AWS/SQS", "QueueName", "ApproximateAgeOfOldestMessage", "ImageQueue"): ("Maximum", 3600),
    ("AWS/States", "StateMachineArn", "ExecutionsFailed", "MapStateMachine"): ("Sum", 0),
}
CONDITIONS = {  # name: a parameter, a value where it holds, and one where it does not
    "HasReservedConcurrency": ("ReservedConcurrency", 1, 0),
    "HasSnapStart": ("StartFrom", "snapshot", "provisioned"),
    "HasProvisionedConcurrency": ("StartFrom", "provisioned", "snapshot"),
    "HasFunctionUrl": ("FunctionUrlAuthorization", "AWS_IAM", "off"),
    "HasPublicUrl": ("FunctionUrlAuthorization", "NONE", "AWS_IAM"),
    "HasAlarmEmail": ("AlarmEmail", "a@b.c", ""),
}
RULED = ("Runtime", "StartFrom", "Architecture")
DELETED = ("Deletion", "UpdateReplace")
NO_VALUE = {"Ref": "AWS::NoValue"}


class _Loader(yaml.CSafeLoader):
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
        *(
            queues,
            senders,
            new_images,
            queue_source,
            documents,
            trust,
            roles,
            rights,
            map_role,
            functions,
        ),
        *(
            classify,
            versions,
            permissions,
            function_url,
            api,
            routes,
            logs,
            alarms,
            watched,
            unknown,
        ),
        *(topic, bucket, tls_only, machine, machine_log, map_lists, map_input, map_label),
        *(conditions, runtimes),
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


def holds(condition: dict, values: dict) -> bool:
    """Return whether `condition` is true where parameters have these `values`."""
    match condition:
        case {"Fn::Not": [inner]}:
            return not holds(inner, values)
        case {"Fn::Equals": [one, other]}:
            known = [values[x["Ref"]] if isinstance(x, dict) else x for x in (one, other)]
            return known[0] == known[1]
    raise ValueError(condition)


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
    [source] = of_type(template, "AWS::Lambda::EventSourceMapping").values()
    gathering = source.get("MaximumBatchingWindowInSeconds", 0)
    if images.get("VisibilityTimeout", 30) < 6 * longest + gathering:
        yield "the queue hides a message for less than six times the function's timeout"
    redrive = images.get("RedrivePolicy", {})
    if target(redrive.get("deadLetterTargetArn")) != "DeadLetterQueue":
        yield "the queue has no dead-letter queue"
    if not 5 <= redrive.get("maxReceiveCount", 0) <= 10:
        yield "an image is tried too seldom, though it may only have come late, or too often"
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


def documents(template: dict) -> Iterator[str]:
    """Policies without a version are of 2008, and know no variables."""

    def of(node: object) -> Iterator[dict]:
        if isinstance(node, dict):
            yield from [node] if "Statement" in node else []
        inner = node.values() if isinstance(node, dict) else node
        for each in inner if isinstance(node, dict | list) else []:
            yield from of(each)

    if {document.get("Version") for document in of(template["Resources"])} != {"2012-10-17"}:
        yield "a policy is of another version of AWS's language"


def trust(template: dict) -> Iterator[str]:
    for name, role in of_type(template, "AWS::IAM::Role").items():
        service = "states" if name == "MapRole" else "lambda"
        expected = {
            "Effect": "Allow",
            "Principal": {"Service": f"{service}.amazonaws.com"},
            "Action": "sts:AssumeRole",
        }
        if name == "MapRole":
            account = {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}
            expected["Condition"] = {"StringEquals": account}
        if role.get("AssumeRolePolicyDocument", {}).get("Statement") != [expected]:
            yield f"{name} may be taken by others, or not by {service}"


def roles(template: dict) -> Iterator[str]:
    found = of_type(template, "AWS::IAM::Role")
    for name, role in found.items():
        if role.get("ManagedPolicyArns"):
            yield f"{name} has a policy of AWS, which allows more than it needs"
        statements = [s for p in role["Policies"] for s in p["PolicyDocument"]["Statement"]]
        if {statement.get("Effect") for statement in statements} != {"Allow"}:
            yield f"{name} forbids something"
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
        own = {r for r in allowed(role) if not r[0].startswith("logs:")}
        for action, resource in own ^ (FUNCTIONS[name] | TRACES):
            yield f"{name}: {action} on {resource} is missing, or too much"


def map_role(template: dict) -> Iterator[str]:
    role = of_type(template, "AWS::IAM::Role")["MapRole"]
    own = "arn:${AWS::Partition}:states:${AWS::Region}:${AWS::AccountId}:"
    text = json.dumps(role).replace(own, "").replace("${AWS::StackName}", "AWS::StackName")
    found = set(allowed(json.loads(text)))
    logged = {(f"logs:{name}", "*") for name in MACHINE_LOGS}
    traced = {(f"xray:{name}", "*") for name in MACHINE_TRACES}
    if found != MACHINE | logged | traced:
        yield "the state machine's role allows other things than it does"


def functions(template: dict) -> Iterator[str]:
    found = of_type(template, "AWS::Serverless::Function")
    if set(found) != set(FUNCTIONS):
        yield "there are other functions than these rules know"
    timeouts = {name: target(function.get("Timeout")) for name, function in found.items()}
    if timeouts != dict.fromkeys(FUNCTIONS, "Timeout") | {"MapFunction": "900"}:
        yield "functions do not end when the parameter says"
    for name, function in found.items():
        if function.get("PackageType") != "Image" or target(function["ImageUri"]) != "ImageUri":
            yield f"{name} does not run the container image"
        variables = function.get("Environment", {}).get("Variables", {})
        if (target(variables.get("LABEL_BUCKET")) == "ImageBucket") != bool(FUNCTIONS[name]):
            yield f"{name} takes events of AWS's services that are not meant for it, or none"
        if "Policies" in function or "Events" in function:
            yield f"{name} has resources that only SAM sees"
        build = template["Resources"][name].get("Metadata", {})
        if (
            (build.get("DockerContext"), build.get("Dockerfile")) != ("..", "Dockerfile")
            or target(build.get("DockerTag")) != "Runtime"
            or target(build.get("DockerBuildArgs", {}).get("RUNTIME")) != "Runtime"
        ):
            yield f"sam build makes another container image for {name} than make deploy"


def classify(template: dict) -> Iterator[str]:
    variables = template["Globals"]["Function"]["Environment"]["Variables"]
    if target(variables.get("METRICS_NAMESPACE")) != "AWS::StackName":
        yield "the functions send no metrics of unknown images"
    function = template["Resources"]["ClassifyFunction"]["Properties"]
    if function.get("ReservedConcurrentExecutions") != {
        "Fn::If": ["HasReservedConcurrency", {"Ref": "ReservedConcurrency"}, NO_VALUE]
    }:
        yield "the Function URL has no limit at all"
    kept = {"ProvisionedConcurrentExecutions": {"Ref": "ProvisionedConcurrency"}}
    if function.get("ProvisionedConcurrencyConfig") != {
        "Fn::If": ["HasProvisionedConcurrency", kept, NO_VALUE]
    }:
        yield "provisioned concurrency is not where the parameter says"


def versions(template: dict) -> Iterator[str]:
    function = template["Resources"]["ClassifyFunction"]["Properties"]
    if function.get("AutoPublishAlias") != "live":
        yield "SnapStart has no version, and callers no alias"
    if target(function.get("Description")) != "ImageUri":
        yield "a version of an image with the same content would be refused"
    settings = "${MemorySize} MB, ${Timeout} s"
    if function.get("VersionDescription") != {
        "Fn::If": [
            "HasSnapStart",
            {"Fn::Sub": f"{settings}, from a snapshot"},
            {"Fn::Sub": settings},
        ]
    }:
        yield "other settings would wait for the next container image, or be refused"
    if template["Resources"]["ClassifyFunction"].get("DeletionPolicy") != "Delete":
        yield "versions of before stay, and their snapshots cost"
    if function.get("SnapStart", {}).get("ApplyOn") != {
        "Fn::If": ["HasSnapStart", "PublishedVersions", "None"]
    }:
        yield "SnapStart is not where the parameter says"


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
    if target(url["TargetFunctionArn"]) != "ClassifyFunction":
        yield "the Function URL is another function's"
    if template["Resources"]["FunctionUrl"].get("Condition") != "HasFunctionUrl":
        yield "there is a Function URL whatever the parameter says"
    if template["Parameters"]["FunctionUrlAuthorization"]["Default"] != "AWS_IAM":
        yield "the Function URL is open by default"


def api(template: dict) -> Iterator[str]:
    [found] = of_type(template, "AWS::ApiGatewayV2::Api").values()
    if (found.get("ProtocolType"), target(found.get("Name"))) != ("HTTP", "AWS::StackName"):
        yield "the API is of another kind, or has no name"
    [stage] = of_type(template, "AWS::ApiGatewayV2::Stage").values()
    limits = stage.get("DefaultRouteSettings", {})
    throttled = [target(limits.get(f"Throttling{name}Limit")) for name in ("Rate", "Burst")]
    if throttled != ["ApiRate", "ApiBurst"]:
        yield "the API has no throttling"
    if (stage.get("StageName"), stage.get("AutoDeploy")) != ("$default", True):
        yield "the API's routes are not deployed at its address"
    if target(stage.get("AccessLogSettings", {}).get("DestinationArn")) != "ApiLog":
        yield "the API has no access log"
    else:
        json.loads(stage["AccessLogSettings"]["Format"])


def routes(template: dict) -> Iterator[str]:
    [integration] = of_type(template, "AWS::ApiGatewayV2::Integration").values()
    if (integration.get("PayloadFormatVersion"), target(integration["IntegrationUri"])) != (
        "2.0",
        "ClassifyFunction:live",
    ):
        yield "the API does not send events of format 2.0 to the alias"
    for name in ("ApiIntegration", "FunctionUrl"):
        if template["Resources"][name].get("DependsOn") != "ClassifyFunctionAliaslive":
            yield f"{name} does not wait for the alias"
    found = of_type(template, "AWS::ApiGatewayV2::Route").values()
    of_keys = {route["RouteKey"]: target(route["AuthorizationType"]) for route in found}
    if of_keys != {
        "OPTIONS /": "NONE",
        "OPTIONS /{proxy+}": "NONE",
        "ANY /": "ApiAuthorization",
        "ANY /{proxy+}": "ApiAuthorization",
    }:
        yield "the API's routes or their authorization are others"
    if {target(route["Target"]) for route in found} != {"integrations/ApiIntegration"}:
        yield "a route leads elsewhere"


def logs(template: dict) -> Iterator[str]:
    groups = of_type(template, "AWS::Logs::LogGroup")
    for name, group in groups.items():
        if target(group.get("RetentionInDays")) != "LogRetention":
            yield f"{name} is kept forever"
        kept = {template["Resources"][name].get(f"{when}Policy") for when in DELETED}
        if kept != {"Delete"}:
            yield f"{name} does not say that it is deleted with the stack"
    for name, function in of_type(template, "AWS::Serverless::Function").items():
        group = target(function.get("LoggingConfig", {}).get("LogGroup"))
        role = template["Resources"].get(target(function.get("Role")), {}).get("Properties", {})
        if group not in groups:
            yield f"{name} logs to a group that nobody deletes"
        if {(action, group) for action in LOG_STREAMS} - set(allowed(role)):
            yield f"{name} may not log"


def alarms(template: dict) -> Iterator[str]:
    for name, alarm in of_type(template, "AWS::CloudWatch::Alarm").items():
        if [target(action) for action in alarm.get("AlarmActions", [])] != ["AlarmTopic"]:
            yield f"{name} tells nobody"
        if alarm.get("ComparisonOperator") != "GreaterThanThreshold":
            yield f"{name} compares the other way round"
        if alarm.get("TreatMissingData") != "notBreaching":
            yield f"{name} is undecided while nothing happens"
        times = (alarm.get("Period"), alarm.get("EvaluationPeriods"))
        usual = (300, 3 if alarm.get("MetricName") == "Duration" else 1)
        if times != (usual if "MetricName" in alarm else (None, 1)):
            yield f"{name} looks at another time"


def watched(template: dict) -> Iterator[str]:
    found = {}
    for alarm in of_type(template, "AWS::CloudWatch::Alarm").values():
        if "MetricName" in alarm:
            [dimension] = alarm.get("Dimensions") or [{}]
            value = json.dumps(dimension.get("Value"))
            metric = (alarm.get("Namespace"), dimension.get("Name"), alarm["MetricName"], value)
            statistic = alarm.get("Statistic") or alarm.get("ExtendedStatistic")
            found[metric] = (statistic, alarm.get("Threshold"))
    for *metric, resource in ALARMS:
        queue = metric[1] == "QueueName"
        value = {"Fn::GetAtt": [resource, "QueueName"]} if queue else {"Ref": resource}
        if found.pop((*metric, json.dumps(value)), None) != ALARMS[*metric, resource]:
            yield f"no alarm, or of another statistic or threshold: {' '.join(metric)}"
    if found:
        yield "there are alarms that these rules do not know"
    slow = template["Mappings"]["Alarms"]["SlowBatchMs"]
    timeouts = template["Parameters"]["Timeout"]["AllowedValues"]
    if slow != {str(seconds): seconds * 800 for seconds in timeouts}:
        yield "the alarm for slow batches is not at 80 % of the timeout"


def unknown(template: dict) -> Iterator[str]:
    """Compute the alarm's expression for hours with and without images."""
    alarm = of_type(template, "AWS::CloudWatch::Alarm").get("UnknownAlarm", {"Metrics": []})
    inputs = [m for m in alarm["Metrics"] if "MetricStat" in m]
    source = {"Period": 3600, "Stat": "Sum"}
    if inputs != [
        {
            "Id": name,
            "ReturnData": False,
            "MetricStat": source
            | {"Metric": {"Namespace": {"Ref": "AWS::StackName"}, "MetricName": name}},
        }
        for name in ("unknown", "classified")
    ]:
        yield "there is no alarm for unknown images"
    [percent] = [m for m in alarm["Metrics"] if "MetricStat" not in m] or [{}]
    nothing = float("nan")  # where a metric has no data
    functions = {
        "IF": lambda condition, yes, no: yes if condition else no,
        "FILL": lambda value, other: other if math.isnan(value) else value,
    }
    for images, strange, share in (
        *((nothing, nothing, 0), (19, 19, 0), (20, nothing, 0), (20, 5, 25), (200, 200, 100)),
    ):
        values = {"classified": images, "unknown": strange}
        expression = percent.get("Expression", "-1")
        if eval(expression, {"__builtins__": {}} | functions, values) != share:  # noqa: S307
            yield f"of {images} images, {strange} unknown: not {share} percent"
    if target(alarm.get("Threshold")) != "UnknownPercent":
        yield "the alarm for unknown images is not where the parameter says"


def topic(template: dict) -> Iterator[str]:
    [policy] = of_type(template, "AWS::SNS::TopicPolicy").values()
    account = {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}
    expected = {
        "Effect": "Allow",
        "Principal": {"Service": "cloudwatch.amazonaws.com"},
        "Action": "sns:Publish",
        "Resource": {"Ref": "AlarmTopic"},
        "Condition": {"StringEquals": account},
    }
    if (policy["Topics"], policy["PolicyDocument"]["Statement"]) != (
        [{"Ref": "AlarmTopic"}],
        [expected],
    ):
        yield "alarms may not be published, or others may publish"
    [mail] = of_type(template, "AWS::SNS::Subscription").values()
    if template["Resources"]["AlarmSubscription"].get("Condition") != "HasAlarmEmail":
        yield "there is a subscription without an address"
    if [target(mail.get(name)) for name in ("TopicArn", "Endpoint", "Protocol")] != [
        *("AlarmTopic", "AlarmEmail", "email")
    ]:
        yield "the alarms are not sent to the address"


def bucket(template: dict) -> Iterator[str]:
    [found] = of_type(template, "AWS::S3::Bucket").values()
    resource = template["Resources"]["ImageBucket"]
    if resource.get("DeletionPolicy") != "RetainExceptOnCreate":
        yield "the images are deleted with the stack, or a failed deployment leaves a bucket"
    if resource.get("UpdateReplacePolicy") != "Retain":
        yield "the images are deleted where the bucket is replaced"
    blocked = found.get("PublicAccessBlockConfiguration", {})
    if list(blocked.values()) != [True] * 4:
        yield "the images may become public"
    if found.get("OwnershipControls") != {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}:
        yield "the images may belong to others"
    encryption = found.get("BucketEncryption", {}).get("ServerSideEncryptionConfiguration")
    if encryption != [{"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]:
        yield "the images are not encrypted, or by a key that costs"
    [rule] = found.get("LifecycleConfiguration", {}).get("Rules") or [{}]
    if rule.get("Status") != "Enabled" or "AbortIncompleteMultipartUpload" not in rule:
        yield "unfinished uploads are kept, and paid for"
    events = found.get("NotificationConfiguration", {}).get("EventBridgeConfiguration", {})
    if events.get("EventBridgeEnabled") is not True:
        yield "new images are not told to EventBridge"


def tls_only(template: dict) -> Iterator[str]:
    found = of_type(template, "AWS::S3::BucketPolicy").get("ImageBucketPolicy", {})
    [statement] = found.get("PolicyDocument", {}).get("Statement") or [{}]
    resources = {target(resource) for resource in statement.get("Resource", [])}
    if (
        target(found.get("Bucket")) != "ImageBucket"
        or (statement.get("Effect"), statement.get("Principal")) != ("Deny", "*")
        or (statement.get("Action"), resources) != ("s3:*", {"ImageBucket", "ImageBucket/*"})
        or statement.get("Condition") != {"Bool": {"aws:SecureTransport": "false"}}
    ):
        yield "the bucket answers without TLS, or not at all"


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
    if target(found.get("RoleArn")) != "MapRole":
        yield "the state machine has another role"
    if found.get("StateMachineName") != {"Fn::Sub": "${AWS::StackName}-label"}:
        yield "the state machine has another name than its role allows"


def machine_log(template: dict) -> Iterator[str]:
    [found] = of_type(template, "AWS::StepFunctions::StateMachine").values()
    [log] = found.get("LoggingConfiguration", {}).get("Destinations") or [{}]
    group = target(log.get("CloudWatchLogsLogGroup", {}).get("LogGroupArn"))
    if (found.get("LoggingConfiguration", {}).get("Level"), group) != ("ERROR", "MapLog"):
        yield "the state machine has no log of errors"
    named = of_type(template, "AWS::Logs::LogGroup")["MapLog"].get("LogGroupName", {})
    if not named.get("Fn::Sub", "").startswith("/aws/vendedlogs/"):
        yield "the log's name takes room in a policy of the account that has little"
    if found.get("TracingConfiguration") != {"Enabled": True}:
        yield "the state machine has no traces"


def map_lists(template: dict) -> Iterator[str]:
    [found] = of_type(template, "AWS::StepFunctions::StateMachine").values()
    lists = found["Definition"]["States"]["Lists"]
    config = lists["ItemProcessor"]["ProcessorConfig"]
    if config.get("Mode") != "DISTRIBUTED":
        yield "the map is not distributed"
    if (config.get("ExecutionType"), found.get("StateMachineType")) != ("STANDARD", "STANDARD"):
        yield "a list has five minutes instead of 15"
    if not {"MaxConcurrencyPath", "ToleratedFailurePercentagePath"} <= set(lists):
        yield "the map has no limit of functions or of failures"
    if not lists["ItemReader"]["Parameters"]["Prefix.$"].startswith(
        "States.Format('jobs/{}/lists/"
    ):
        yield "the map reads all objects"
    if not lists["ItemReader"]["Resource"].startswith("arn:${Partition}:"):
        yield "the map runs in one of AWS's partitions only"
    if lists.get("ResultPath", "") is not None:
        yield "the map's result grows with its lists, and AWS takes 256 kB"


def map_input(template: dict) -> Iterator[str]:
    [found] = of_type(template, "AWS::StepFunctions::StateMachine").values()
    states = found["Definition"]["States"]
    if states["Settings"]["Parameters"].get("job.$") != "$.job":
        yield "the map is not told the job"
    if states["Lists"].get("ItemSelector") != {"list.$": "$$.Map.Item.Value.Key"}:
        yield "the function gets no list"


def map_label(template: dict) -> Iterator[str]:
    [found] = of_type(template, "AWS::StepFunctions::StateMachine").values()
    label = found["Definition"]["States"]["Lists"]["ItemProcessor"]["States"]["Label"]
    if label.get("Resource") != "${Function}":
        yield "the map does not call the function"
    if label.get("ResultSelector") != {}:
        yield "a list's result grows with its images, and AWS takes 256 kB"
    [retry] = label.get("Retry") or [{}]
    if set(retry.get("ErrorEquals", [])) != RETRIED:
        yield "a throttled list fails, or errors of ours are tried again"
    times = [retry.get(name, 0) for name in ("MaxAttempts", "IntervalSeconds", "BackoffRate")]
    if times < [6, 2, 2] or retry.get("JitterStrategy") != "FULL":
        yield "lists are not tried again for two minutes"
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


def conditions(template: dict) -> Iterator[str]:
    if set(template["Conditions"]) != set(CONDITIONS):
        yield "there are other conditions than these rules know"
    for name, (parameter, yes, no) in CONDITIONS.items():
        condition = template["Conditions"].get(name, {"Fn::Equals": [0, 0]})
        if [holds(condition, {parameter: value}) for value in (yes, no)] != [True, False]:
            yield f"{name} does not hold as {parameter} says"


def runtimes(template: dict) -> Iterator[str]:
    """Try the template's own rules with each runtime."""
    values = {name: template["Parameters"][name]["AllowedValues"] for name in RULED}
    for found in (dict(zip(RULED, each, strict=True)) for each in product(*values.values())):
        refused = any(
            not holds(assertion["Assert"], found)
            for rule in template["Rules"].values()
            if holds(rule["RuleCondition"], found)
            for assertion in rule["Assertions"]
        )
        other = found["StartFrom"] == "snapshot" or found["Architecture"] == "arm64"
        if refused != (found["Runtime"] == "tflite-runtime" and other):
            yield f"nothing checks {found}, or it is refused"


def read() -> tuple[dict, str]:
    """Return the template and its text."""
    text = Path(TEMPLATE).read_text(encoding="utf-8")
    return load(text), text
