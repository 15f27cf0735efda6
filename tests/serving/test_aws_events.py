"""serving.aws_events: whose an event of a direct invocation is."""

import base64
import json
from types import SimpleNamespace

import pytest

from serving.aws_events import find_service, is_warm_up, unwrap
from serving.details import Details
from serving.errors import EventSourceError, InvalidRequestError
from serving.events import EXPECTED
from serving.handler import Handler
from serving.service import Service
from tools.emulator import EmulatorError, sample_event

URL = {"url": "ftp://a"}  # refused before anything is fetched
# AWS's own examples in the emulator's package.
SAMPLES = {
    "sqs/Sqs": "Amazon SQS",
    "sns/Sns": "Amazon SNS",
    "s3/S3Put": "Amazon S3",
    "s3/S3BatchInvocation": "Amazon S3",
    "ses/SesEmailReceiving": "Amazon SES",
    "kinesis/Kinesis": "Amazon Kinesis",
    "kinesis/KinesisFirehose": "Amazon Data Firehose",
    "kinesis/KinesisAnalytics": "Amazon Managed Service for Apache Flink",
    "dynamodb/DynamoDBUpdate": "Amazon DynamoDB",
    "cloudwatch/CloudwatchLogs": "CloudWatch Logs",
    "cloudformation/CfnCreateRequest": "AWS CloudFormation",
    "cloudfront/CloudFrontSimpleRemoteCall": "Amazon CloudFront",
    "cognito/CognitoSyncTrigger": "Amazon Cognito",
    "config/PeriodicRule": "AWS Config",
    "codepipeline/CodePipeline": "AWS CodePipeline",
    "apigateway/ApiGatewayAuthorizer": "an API Gateway authorizer",
    "appsync/AppSyncDirectResolver": "AWS AppSync",
    "lex/LexOrderFlowers": "Amazon Lex",
    "lex-v2/LexBookCar": "Amazon Lex",
    "alexa-skills-kit/AlexaStartSession": "Alexa",
    "connect/ConnectContactFlowEvent": "Amazon Connect",
}
FOREIGN = [
    ({"Records": [{"eventSource": "aws:sqs", "body": json.dumps(URL)}]}, "Amazon SQS"),
    ({"Records": [{"EventSource": "aws:sns", "Sns": {}}]}, "Amazon SNS"),
    ({"Records": [{"eventSource": "aws:s3", "s3": {}}]}, "Amazon S3"),
    ({"Records": [{"eventSource": "aws:kinesis"}]}, "Amazon Kinesis"),
    ({"Records": [{"eventSource": "aws:dynamodb"}]}, "Amazon DynamoDB"),
    ({"Records": [{"eventSource": "aws:new-one"}]}, "aws:new-one"),
    ({"Records": [{"eventSource": "a\n" * 99}]}, "an AWS service"),
    ({"Records": [{"new": {}}]}, "an AWS service"),
    ({"Records": []}, "an AWS service"),
    ({"Records": None}, "an AWS service"),
    ([{"eventSource": "aws:sqs"}], "Amazon SQS"),  # EventBridge Pipes
    ({"eventSource": "aws:kafka", "records": {}}, "Apache Kafka"),
    ({"awslogs": {"data": "H4s"}}, "CloudWatch Logs"),
    ({"source": "aws.s3", "detail-type": "Object Created", "detail": {}}, "Amazon EventBridge"),
    ({"source": "mine", "detail-type": "Scheduled Event"}, "Amazon EventBridge"),
    ({"triggerSource": "PreSignUp_SignUp", "userPoolId": "a"}, "Amazon Cognito"),
    ({"deliveryStreamArn": "arn", "records": []}, "Amazon Data Firehose"),
    ({"RequestType": "Create", "ResponseURL": "https://a"}, "AWS CloudFormation"),
    ({"requestContext": {}, "requestPayload": URL, "responsePayload": {}}, "a Lambda destination"),
    (
        {"requestContext": {"connectionId": "a", "eventType": "MESSAGE"}, "body": json.dumps(URL)},
        "an API Gateway WebSocket",
    ),
    *(
        (
            {"type": "REQUEST", arn: "arn", "httpMethod": "POST", "requestContext": {"stage": "a"}},
            "an API Gateway authorizer",
        )
        for arn in ("methodArn", "routeArn")
    ),
    ({"authorizationToken": "a", "requestContext": {"apiId": "a"}}, "AWS AppSync"),
    ({"typeName": "Query", "fieldName": "a", "arguments": {}}, "AWS AppSync"),
    ({"version": "1.0", "context": {}, "request": {"type": "LaunchRequest"}}, "Alexa"),
    ({"directive": {"header": {}}}, "Alexa"),
    ({"messageVersion": "1.0", "flow": {}, "node": {}}, "Amazon Bedrock"),
    ({"fragment": {}, "transformId": "a"}, "AWS CloudFormation"),
    ({"DeploymentId": "a", "LifecycleEventHookExecutionId": "b"}, "AWS CodeDeploy"),
    ({"Type": "Notification", "TopicArn": "arn", "Message": "a"}, "Amazon SNS"),
    ({"list": "jobs/a/lists/0123/00007.jsonl"}, "AWS Step Functions"),
    ({"serverId": "a", "username": "b", "password": "c"}, "AWS Transfer Family"),
]
WARM_UPS = [
    {"warmup": True},
    {"warmer": True, "concurrency": 3},
    {"source": "serverless-plugin-warmup"},
    {"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}},
    {"source": "aws.scheduler", "detail-type": "Scheduled Event", "detail": "{}"},
]
OURS = [
    *({}, URL, [], None, "a", 1, [URL], {"warmup": False}, {"source": "a"}, {"body": "{}"}),
    {**URL, "Records": [{"eventSource": "aws:sqs"}], "warmup": True},
]


@pytest.fixture
def handler():
    classifier = SimpleNamespace(
        labels=("rose",), runtime="none", input_size=(9, 9), details=Details(), card=None
    )
    return Handler(Service(classifier, "small", None))


@pytest.fixture
def log(capsys):
    return lambda: [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(("event", "service"), FOREIGN, ids=range(len(FOREIGN)))
def test_an_event_of_another_service_fails_the_invocation_by_name(event, service, handler, log):
    context = SimpleNamespace(aws_request_id="id-1")
    with pytest.raises(EventSourceError) as caught:
        handler.handle(event, context)
    assert str(caught.value) == (
        f"{EXPECTED} Received: an event of {service}, which this function does not read. "
        "Remove the trigger, or send one of these."
    )
    [line] = log()
    assert (line["event"], line["error"], line["errors"]) == (service, "EventSourceError", 1)
    assert (line["request_id"], line["level"], line["cold_start"]) == ("id-1", "INFO", True)


@pytest.mark.parametrize(("name", "service"), SAMPLES.items())
def test_aws_s_own_examples_are_recognized(name, service):
    try:
        event = sample_event(name)
    except EmulatorError as error:
        pytest.skip(str(error))
    assert find_service(event) == service
    assert not is_warm_up(event)
    assert is_warm_up(sample_event("cloudwatch/ScheduledEvent"))


@pytest.mark.parametrize("event", WARM_UPS, ids=range(len(WARM_UPS)))
def test_warm_up_calls_are_answered_and_are_no_errors(event, handler, log):
    assert handler.handle(event) == handler.service.health()
    [line] = log()
    assert (line["event"], line["errors"], "error" in line) == ("warm-up", 0, False)


@pytest.mark.parametrize("event", OURS, ids=range(len(OURS)))
def test_all_others_are_requests(event, handler, log):
    assert find_service(event) is None
    assert not is_warm_up(event)
    assert handler.handle(event)["error"]["type"] == "InvalidRequestError"
    [line] = log()
    assert (line["event"], line["errors"]) == ("direct", 1)


@pytest.mark.parametrize(
    "event",
    [*(event for event, _ in FOREIGN), *WARM_UPS],
    ids=range(len(FOREIGN) + len(WARM_UPS)),
)
def test_over_http_none_of_them_is_anything_but_a_wrong_body(event, handler):
    body = json.dumps(event)
    http = {"requestContext": {}, "httpMethod": "POST", "path": "/", "body": body}
    answer = handler.handle(http)
    assert answer["statusCode"] == 400
    assert json.loads(answer["body"])["error"]["type"] == "InvalidRequestError"


@pytest.mark.parametrize(
    "event",
    [
        {"body": json.dumps(URL)},
        {"body": json.dumps(URL), "headers": {}, "httpMethod": "POST"},
        {"body": "eyJ1cmwiOiAiZnRwOi8vYSJ9", "isBase64Encoded": True},
        {"body": URL},
        {**URL},
    ],
    ids=range(5),
)
def test_the_console_s_events_have_their_json_in_a_body(event, handler):
    assert unwrap(event)["url"] == URL["url"]
    assert "Received: another scheme" in handler.handle(event)["error"]["message"]


def test_the_console_s_events_may_have_an_image_as_body():
    text = base64.b64encode(b"\xff\xd8\xff\xe0").decode()
    assert unwrap({"body": text, "isBase64Encoded": True}) == {"image": text}


@pytest.mark.parametrize("body", ["", "{", "[" * 100_000, "rose"])
def test_a_body_that_is_no_json_is_told(body):
    with pytest.raises(InvalidRequestError, match="Received: a body that is not JSON"):
        unwrap({"body": body})
    with pytest.raises(InvalidRequestError, match="Received: a body that is not JSON"):
        unwrap({"body": "?", "isBase64Encoded": True})


@pytest.mark.parametrize("event", [{"body": 7}, {"body": None}, {"body": "a", **URL}, [], "a"])
def test_nothing_else_is_unwrapped(event):
    assert unwrap(event) == event
