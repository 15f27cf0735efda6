"""Logs one JSON line for each request to standard output, for CloudWatch.

Lines never contain an image, nor of a URL what may be a password or a signature.
"""

import json
import os
import re
import time
import traceback
from dataclasses import dataclass
from urllib.parse import urlsplit

# The fields that become CloudWatch metrics. METRICS_NAMESPACE turns them on, because they cost.
METRICS = {
    "ms": "Milliseconds",
    "fetch_ms": "Milliseconds",
    "decode_ms": "Milliseconds",
    "infer_ms": "Milliseconds",
    "errors": "Count",
    "classified": "Count",  # images; only if the model tells which it does not know
    "unknown": "Count",  # of these
}
MAX_MESSAGE = 2000  # characters of an exception's message: more may be an image
MAX_SHOWN = 200  # characters of a URL
MAX_PARSED = 1000  # characters of a URL: urlsplit keeps the last 128 texts that it was given
_HOST = re.compile(r"(?:[\w.-]+|\[[0-9a-f:.]+])(?::\d*)?", re.IGNORECASE)  # and port
# An @, wide ones and percent-escapes included, which some programs turn into it.
_AT = r"(?:[@\ufe6b\uff20]|%(?:25)*40)"
# What ends the path proper: parameters (;jsessionid=...), a query or a fragment.
_AFTER_PATH = re.compile(r"(?:[;?#]|%(?:25)*(?:3b|3f|23)).*", re.IGNORECASE | re.DOTALL)
# Of a text, what ends in user info. Passwords may contain spaces.
_USER_INFO = re.compile(rf"(?<!\S)(?:\S*?https?:.*|\S*){_AT}\S*", re.IGNORECASE | re.DOTALL)
_CLASS_NAME = re.compile(r"\A(?:[\w.]{,100}: )?")
_QUERY = re.compile(r"\?\S*")


@dataclass
class ImageLog:
    """What the log says about one image; None is omitted."""

    source: str | None = None  # "url" or "image"
    url: str | None = None  # as `loggable` returns it
    bytes: int | None = None
    format: str | None = None
    width: int | None = None  # pixels, as stored
    height: int | None = None
    decode_ms: float | None = None  # to decode and preprocess
    infer_ms: float | None = None
    known: float | None = None  # conformal p-value, 0 to 1
    unknown: bool | None = None  # whether that is below UNKNOWN_BELOW
    error: str | None = None  # class name

    def to_json(self) -> dict:
        """Return the fields that are set."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass
class RequestLog:
    """The line of one request; None is omitted, except for `request_id`."""

    request_id: str | None
    cold_start: bool  # the first request of this process
    event: str = "direct"  # "http" and the payload format, "warm-up", or another AWS service
    ms: float = 0.0
    method: str | None = None
    status: int | None = None
    error: str | None = None  # class name, unless a list is returned
    images: list[ImageLog] | None = None
    fetch_ms: float | None = None

    def to_json(self) -> dict:
        """Return the fields that are set, and totals over the images."""
        line = vars(self) | {"errors": int(self.error is not None)}
        if self.images is not None:
            line["images"] = [image.to_json() for image in self.images]
            line["errors"] = sum(image.error is not None for image in self.images)
            for name in ("decode_ms", "infer_ms"):
                line[name] = round(sum(getattr(image, name) or 0 for image in self.images), 1)
            told = [image.unknown for image in self.images if image.unknown is not None]
            if told:
                line["classified"], line["unknown"] = len(told), sum(told)
        return {name: v for name, v in line.items() if v is not None or name == "request_id"}

    def timings(self) -> dict[str, float]:
        """Return {step: milliseconds} of the steps that were taken, summed over the images."""
        images = self.images or []
        steps = {
            "fetch": [self.fetch_ms for image in images if image.source == "url"][:1],
            "decode": [image.decode_ms for image in images],
            "infer": [image.infer_ms for image in images],
            "total": [self.ms],
        }
        taken = {step: [ms for ms in values if ms is not None] for step, values in steps.items()}
        return {step: round(sum(values), 1) for step, values in taken.items() if values}


def write(level: str, message: str, **fields: object) -> None:
    """Print one line of JSON, in one piece: other threads may print as well."""
    line = json.dumps({"level": level, "message": message, **fields})
    print(line + "\n", end="", flush=True)


def write_request(request: RequestLog) -> None:
    """Print the line of a request, with CloudWatch metrics if turned on."""
    line = request.to_json()
    if namespace := os.environ.get("METRICS_NAMESPACE"):
        metrics = [{"Name": name, "Unit": unit} for name, unit in METRICS.items() if name in line]
        line["_aws"] = {
            "Timestamp": int(time.time() * 1000),
            "CloudWatchMetrics": [{"Namespace": namespace, "Dimensions": [[]], "Metrics": metrics}],
        }
    write("INFO", "request", **line)


def log_exception(request_id: str | None, error: Exception) -> None:
    """Print the line of an unexpected `error`, with its traceback."""
    trace = "".join(map(without_secrets, traceback.format_exception(error)))
    write("ERROR", "defect", request_id=request_id, exception=trace)


def without_secrets(text: str) -> str:
    """Return `text` with dots in place of URLs' user info and query strings."""
    if len(text) > MAX_MESSAGE:
        [name] = _CLASS_NAME.findall(text)
        return f"{name}... ({len(text)} characters)\n"
    return _QUERY.sub("?...", _USER_INFO.sub("...", text))


def loggable(url: str) -> str:
    """Return `url` up to the end of its path, or "unreadable" if it may contain a password.

    A password may contain anything, so an @ anywhere may end one: in http://rose:1/2@host/ too,
    where urlsplit sees the host "rose".
    """
    try:
        parts = urlsplit(url[:MAX_PARSED])
    except ValueError:
        return "unreadable"
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(parts.netloc):
        return "unreadable"
    if re.search(_AT, url):
        return "unreadable"
    return f"{parts.scheme}://{parts.netloc}{_AFTER_PATH.sub('', parts.path)}"[:MAX_SHOWN]


def milliseconds(started: float) -> float:
    """Return the milliseconds since `started` (of time.monotonic), with one decimal."""
    return round((time.monotonic() - started) * 1000, 1)
