"""Tells events of AWS's services and warm-up calls from requests in direct invocations."""

import base64
import binascii
import json
import re

from serving import bucket_events, events
from serving.bodies import is_binary
from serving.errors import EventSourceError

SCHEDULERS = ("aws.events", "aws.scheduler")  # EventBridge's rules and its Scheduler
# {"warmup": true} is the usual event; lambda-warmer and serverless-plugin-warmup send the others.
WARM_UP_KEYS = ("warmup", "warmer")
WARM_UP_SOURCE = "serverless-plugin-warmup"
# Services whose events are lists of records: {what the records say: name}.
RECORDS = {
    "aws:sqs": "Amazon SQS",
    "aws:sns": "Amazon SNS",
    "aws:s3": "Amazon S3",
    "aws:kinesis": "Amazon Kinesis",
    "aws:dynamodb": "Amazon DynamoDB",
    "aws:ses": "Amazon SES",
    "aws:kafka": "Apache Kafka",
    "SelfManagedKafka": "Apache Kafka",
    "aws:mq": "Amazon MQ",
    "aws:rmq": "Amazon MQ",
    "aws:docdb": "Amazon DocumentDB",
    "aws:codecommit": "AWS CodeCommit",
}
# Other services: {keys that only their events have: name}.
KEYS = {
    ("awslogs",): "CloudWatch Logs",
    ("detail-type", "source"): "Amazon EventBridge",
    ("triggerSource", "userPoolId"): "Amazon Cognito",
    ("identityPoolId", "eventType"): "Amazon Cognito",
    ("deliveryStreamArn", "records"): "Amazon Data Firehose",
    ("applicationArn", "records"): "Amazon Managed Service for Apache Flink",
    ("invocationId", "records"): "Amazon Data Firehose",
    ("RequestType", "ResponseURL"): "AWS CloudFormation",
    ("Service", "Event", "Bucket"): "Amazon S3",
    ("getObjectContext",): "Amazon S3",
    ("invocationSchemaVersion", "tasks"): "Amazon S3",
    ("methodArn", "type"): "an API Gateway authorizer",
    ("routeArn", "type"): "an API Gateway authorizer",
    ("invokingEvent", "configRuleName"): "AWS Config",
    ("CodePipeline.job",): "AWS CodePipeline",
    ("SecretId", "ClientRequestToken"): "AWS Secrets Manager",
    ("alarmData", "alarmArn"): "CloudWatch alarms",
    ("bot", "sessionState"): "Amazon Lex",
    ("bot", "currentIntent"): "Amazon Lex",
    ("context", "request", "version"): "Alexa",
    ("session", "request", "version"): "Alexa",
    ("directive",): "Alexa",
    ("Name", "Details"): "Amazon Connect",
    ("labelingJobArn",): "Amazon SageMaker",
    ("summaryVersion", "envelope"): "Amazon WorkMail",
    ("Error", "Cause"): "AWS Step Functions",
    ("cf",): "Amazon CloudFront",
    ("messageVersion", "agent"): "Amazon Bedrock",
    ("messageVersion", "flow"): "Amazon Bedrock",
    ("arguments", "info"): "AWS AppSync",
    ("arguments", "fieldName"): "AWS AppSync",
    ("authorizationToken", "requestContext"): "AWS AppSync",
    ("fragment", "transformId"): "AWS CloudFormation",
    ("DeploymentId", "LifecycleEventHookExecutionId"): "AWS CodeDeploy",
    ("TopicArn", "Type"): "Amazon SNS",
    ("serverId", "username"): "AWS Transfer Family",
    ("serverId", "token"): "AWS Transfer Family",
    ("requestPayload", "responsePayload"): "a Lambda destination",
}
UNKNOWN = "an AWS service"
_NAME = re.compile(r"[\w:.-]{1,40}", re.ASCII)


def is_warm_up(event: object) -> bool:
    """Return whether `event` only keeps the function warm: a schedule, or a warm-up plugin."""
    if not isinstance(event, dict) or events.named_keys(event):
        return False
    if event.get("source") == WARM_UP_SOURCE or any(event.get(k) is True for k in WARM_UP_KEYS):
        return True
    return event.get("detail-type") == "Scheduled Event" and event.get("source") in SCHEDULERS


def find_service(event: object) -> str | None:
    """Return the name of the AWS service that sent `event`; None if it is none's."""
    if isinstance(event, dict) and events.named_keys(event):
        return None
    if bucket_events.find_sender(event) == bucket_events.MAP:
        return bucket_events.MAP
    has_records = isinstance(event, dict) and "Records" in event
    # EventBridge Pipes passes records on in a list.
    records = event.get("Records", [event]) if isinstance(event, dict) else event
    first = records[0] if isinstance(records, list) and records else None
    if not isinstance(first, dict):
        return UNKNOWN if has_records else None
    said = first.get("eventSource", first.get("EventSource"))
    if isinstance(said, str):
        return RECORDS.get(said, said if _NAME.fullmatch(said) else UNKNOWN)
    if is_web_socket(first):
        return "an API Gateway WebSocket"
    by_keys = (name for keys, name in KEYS.items() if all(key in first for key in keys))
    return next(by_keys, UNKNOWN if has_records else None)


def is_web_socket(event: dict) -> bool:
    """Return whether `event` is one of API Gateway's WebSocket APIs."""
    context = event.get("requestContext")
    return isinstance(context, dict) and "connectionId" in context


def refuse(service: str) -> EventSourceError:
    """Return the error that fails the invocation by an event of `service`."""
    return EventSourceError(
        f"{events.EXPECTED} Received: an event of {service}, which this function does not read. "
        "Remove the trigger, or send one of these."
    )


def unwrap(event: object) -> object:
    """Return the request in the `body` of an `event` without HTTP, as tests in the console have it.

    Raises:
        InvalidRequestError: there is a body, but it is neither JSON nor an image.
    """
    if not isinstance(event, dict) or events.named_keys(event):
        return event
    body = event.get("body")
    if not isinstance(body, str):
        return body if isinstance(body, dict) else event
    try:
        if event.get("isBase64Encoded") is not True:
            return json.loads(body)
        data = base64.b64decode(body, validate=True)
        return {"image": body} if is_binary(data) else json.loads(data)
    except (ValueError, RecursionError, binascii.Error):
        raise events.refusal("a body that is not JSON") from None
