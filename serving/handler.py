"""Answers Lambda events and logs a line for each."""

import time

from serving import aws_events, bucket_events, events, http_events, log
from serving.errors import EventSourceError, InternalError, ServingError
from serving.http_events import HttpRequest
from serving.service import Result, Service


class Handler:
    """Answers Lambda events: direct invocations and HTTP requests."""

    def __init__(self, service: Service):
        """Let `service` classify the images.

        Raises:
            SettingError: CORS_ORIGIN, CORS_HEADERS, PAGE or LABEL_BUCKET is malformed.
        """
        http_events.cors()
        http_events.shows_page()
        self.service = service
        self._bucket = bucket_events.read_bucket()
        self._cold = True

    def handle(self, event: object, context: object = None) -> dict | list:
        """Return the answer to `event`, ready for JSON.

        Of Lambda's `context`, the remaining time and the request's ID are used.

        Raises:
            EventSourceError: `event` is one of another AWS service, to which an answer would mean
                success.
            StoreError: the shard of a large job cannot be labelled. Nothing else raises.
        """
        started = time.monotonic()
        line = log.RequestLog(getattr(context, "aws_request_id", None), self._cold)
        self._cold = False
        http = http_events.read_event(event)
        if http is None and self._bucket and (sender := bucket_events.find_sender(event)):
            line.event = sender
            return self._label(event, line, started, context)
        if http is None:
            _refuse_other_services(event, line, started)
        try:
            due = deadline(context, started, http)
            result = self._classify(event, http, due, line.request_id)
        except ServingError as error:
            result = Result.failed(error)
        except Exception as defect:
            log.log_exception(line.request_id, defect)  # the caller learns no details
            message = "The service failed on this request; its log says why."
            result = Result.failed(InternalError(message))
        if result.error is not None:
            line.error = type(result.error).__name__
        if result.images is not None:
            line.images = [image.log for image in result.images]
        line.fetch_ms, line.ms = result.fetch_ms, log.milliseconds(started)
        answer = result.body
        if http is not None:
            answer = http_events.write_response(http, result, line.timings())
            line.event, line.method = f"http {http.payload_format}", http.method[:16]
            line.status = answer["statusCode"]
        log.write_request(line)
        return answer

    def _label(self, event: object, line: log.RequestLog, started: float, context: object) -> dict:
        """Label the images of a bucket that `event` names, and write the `line`."""
        due = deadline(context, started)
        try:
            return bucket_events.answer(event, self.service, self._bucket, due, line)
        except Exception as error:
            line.error = type(error).__name__
            raise
        finally:
            line.ms = log.milliseconds(started)
            log.write_request(line)

    def _classify(
        self, event: object, http: HttpRequest | None, due: float, request_id: str | None
    ) -> Result:
        """Return the result for `event`, or for the `http` in it."""
        if http is None and aws_events.is_warm_up(event):
            return Result(self.service.health())
        if http is None:
            request = events.parse(aws_events.unwrap(event))
        elif page := http_events.find_page(http, self.service):
            return page
        else:
            request = http_events.parse_body(http)
        return self.service.classify(request, due, request_id)


def _refuse_other_services(event: object, line: log.RequestLog, started: float) -> None:
    """Log and raise an EventSourceError if `event` is one of another AWS service."""
    if aws_events.is_warm_up(event):
        line.event = "warm-up"
    elif service := aws_events.find_service(event):
        line.event, line.error = service, EventSourceError.__name__
        line.ms = log.milliseconds(started)
        log.write_request(line)
        raise aws_events.refuse(service)


def deadline(context: object, started: float, http: HttpRequest | None = None) -> float:
    """Return when Lambda ends the invocation that `started` (both of time.monotonic).

    Or when the gateway of an `http` request gives up, if that is sooner.
    """
    remaining = getattr(context, "get_remaining_time_in_millis", None)
    seconds = remaining() / 1000 if remaining else float("inf")
    return started + min(seconds, http.seconds if http else seconds)
