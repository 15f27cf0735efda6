"""Send an image to the running container and check the predicted class.

    python docker_test.py                                    # Wikimedia's rose; expects "rose"
    python docker_test.py --file tulip.jpg --expect tulip    # send a file
    python docker_test.py --url https://example.com/a.jpg    # accept any label
    python docker_test.py --details                          # and print what else the model tells

The exit code is 0 if the expected label has the highest score. Otherwise it is 1, and one sentence
says why.
"""

import argparse
import base64
import http.client
import io
import json
import math
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, TypeGuard

ENDPOINT = "http://localhost:8080/2015-03-31/functions/function/invocations"
IMAGE = "https://upload.wikimedia.org/wikipedia/commons/5/51/Small_Red_Rose.JPG"
IMAGE_LABEL = "rose"  # what IMAGE shows

WAIT = 30.0  # seconds for the container to come up
RETRY = 0.2  # seconds between two tries
ANSWER_TIMEOUT = 60.0  # seconds for one answer
HEAT = ".:-=+*#%@"  # characters of a heat map, from 0 to 1
MAX_PAYLOAD = 6 * 1024 * 1024  # bytes; Lambda takes no larger event
NOT_STARTED = "Start it with `make run`, or pass another --endpoint."
DROPPED = (
    "The connection was dropped: probably the container is still starting, or the emulator in it "
    "has ended. See the container's log, and restart it with `make run`."
)
# Containers on this machine are not behind the proxy that the environment may name.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class CheckError(Exception):
    """The service does not answer as expected; `str(error)` is one sentence."""


def main(arguments: list[str] | None = None) -> int:
    """Send the image, print its scores and return the exit code."""
    options = parse_arguments(arguments)
    for stream in (sys.stdout, sys.stderr):  # a name or label may not be in the terminal's encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    image = str(options.file or options.url or IMAGE)
    expected = options.expect or (IMAGE_LABEL if image == IMAGE else None)
    try:
        event = file_event(options.file) if options.file else {"url": image}
        question = event | {"details": True} if options.details else event
        answer = parse_answer(invoke(options.endpoint, question, options.wait), event.get("url"))
        scores, more = parse_details(answer) if options.details else (parse_scores(answer), [])
        print_scores(image, scores)
        print(*more, sep="\n", end="\n" * bool(more), flush=True)
        check_label(scores, expected)
    except CheckError as error:
        print(f"docker_test.py: {error}", file=sys.stderr)
        return 1
    return 0


def file_event(path: Path) -> dict[str, str]:
    """Return the event that contains the file at `path`.

    Raises:
        CheckError: it cannot be read, or exceeds Lambda's payload limit.
    """
    try:
        # One byte more than could fit, so a huge file is not read completely.
        with path.open("rb") as file:
            data = file.read(MAX_PAYLOAD + 1)
    except OSError as error:
        raise CheckError(
            f"Expected a file that can be read. Received: {path} ({error.strerror}). "
            "Check the path."
        ) from None
    event = {"image": base64.b64encode(data).decode()}
    if len(json.dumps(event)) > MAX_PAYLOAD:
        raise CheckError(
            f"Expected at most {MAX_PAYLOAD * 3 / 4 / 1e6:.1f} MB, for Lambda's payload of 6 MB. "
            f"Received: {path} with {path.stat().st_size / 1e6:.1f} MB. "
            "Send a smaller image, or its address with --url."
        )
    return event


def invoke(endpoint: str, event: dict, wait: float) -> bytes:
    """Return the response body for `event` once a service listens.

    Raises:
        CheckError: none listens after `wait` seconds, or it does not answer in time.
    """
    deadline = time.monotonic() + wait
    tries, dropped = 0, False
    while True:
        try:
            return post(endpoint, event)
        except (ConnectionError, http.client.BadStatusLine, http.client.IncompleteRead) as error:
            # Refused, or accepted by Docker and dropped because the service is not up yet.
            reason = error
            dropped = dropped or not isinstance(error, ConnectionRefusedError)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise CheckError(
                f"Expected an answer from {endpoint}. Received: {sentence_part(error)}. "
                "Check --endpoint, and the container's log."
            ) from None
        if time.monotonic() >= deadline:
            raise CheckError(
                f"Expected a service at {endpoint} within {wait:g} second{'s' * (wait != 1)}. "
                f"Received: {sentence_part(reason)}. {DROPPED if dropped else NOT_STARTED}"
            )
        if tries == 0:
            print(f"Waiting for {endpoint} ...", file=sys.stderr, flush=True)
        tries += 1
        time.sleep(min(RETRY, max(0.0, deadline - time.monotonic())))


def post(endpoint: str, event: dict) -> bytes:
    """Return the response body for `event`, whatever its status.

    Raises:
        OSError, ValueError or http.client.HTTPException: the response is missing or incomplete.
    """
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(endpoint, json.dumps(event).encode(), headers)
    try:
        with OPENER.open(request, timeout=ANSWER_TIMEOUT) as response:
            return response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.read()
    except urllib.error.URLError as error:
        raise error.reason if isinstance(error.reason, OSError) else error from None


def sentence_part(error: Exception) -> str:
    """Return the reason in `error`, to be used inside a sentence."""
    if isinstance(error, TimeoutError):
        return f"none within {ANSWER_TIMEOUT:g} seconds"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.rstrip(".")


def parse_answer(body: bytes, url: str | None = None) -> object:
    """Return the JSON in a response body, to an event with `url` if that is given.

    Raises:
        CheckError: it is an error, or no JSON.
    """
    text = body.decode(errors="replace").strip()
    if text[:1] == "<":
        raise CheckError(
            "Expected scores ({label: score}). Received: a web page, so another server listens "
            "there. Check --endpoint and its port."
        )
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict):
        # Errors of our handler, then of Lambda: a crash, no memory left, a timeout.
        error = answer.get("error")
        if isinstance(error, dict) and "message" in error:
            sentence = f"Expected scores. Received: {error.get('type')}: {error['message']}"
            raise CheckError(sentence + private_advice(url, error))
        if "errorMessage" in answer:
            name = answer.get("errorType", "an error")
            raise CheckError(
                f"Expected scores. Received: {name}: {answer['errorMessage']}. "
                "See the container's log."
            )
    if answer is None:
        raise unexpected("scores ({label: score})", text)
    return answer


def unexpected(expected: str, received: str) -> CheckError:
    """Return the error of an answer that is not as `expected`."""
    return CheckError(
        f"Expected {expected}. Received: {received[:200] or 'nothing'}. Check --endpoint."
    )


def parse_scores(answer: object) -> dict[str, float]:
    """Return `answer` if it is {label: score}.

    Raises:
        CheckError: it is something else.
    """
    if not is_scores(answer):
        raise unexpected("scores ({label: score})", json.dumps(answer))
    return answer


def parse_details(answer: Any) -> tuple[dict[str, float], list[str]]:
    """Return {label: score} of an `answer` with details, and lines about the rest of it.

    Raises:
        CheckError: it is something else.
    """
    if is_scores(answer):
        raise CheckError(
            "Expected details. Received: scores only, as before there were details. "
            "Build and start the container again, or leave out --details."
        )
    try:
        keys = ("scores", "known", "unknown", "prediction_set", "heatmap")
        scores, known, unknown, chosen, heatmap = (answer[key] for key in keys)
        lines = [
            f"  known: {tell(known)}",
            f"  unknown: {tell(unknown)}",
            f"  prediction set: {tell(None if chosen is None else ', '.join(chosen))}",
            f"  heat map: {tell(None if heatmap is None else f'from {HEAT[0]} to {HEAT[-1]}')}",
            *(f"    {row}" for row in heat_rows(heatmap)),
        ]
    except (LookupError, TypeError, ValueError, OverflowError):
        raise unexpected("details ({label, scores, known, ...})", json.dumps(answer)) from None
    return parse_scores(scores), lines


def tell(value: object) -> str:
    """Return `value` in words; None is what the model does not tell."""
    words = {None: "the model does not tell", True: "yes", False: "no"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def heat_rows(heatmap: dict | None) -> list[str]:
    """Return the rows of a heat map, a character of `HEAT` for each value; none without one."""
    if heatmap is None:
        return []
    rows, columns = heatmap["rows"], heatmap["columns"]
    marks = [HEAT[round(value * (len(HEAT) - 1))] for value in heatmap["values"]]
    return [" ".join(marks[row * columns : (row + 1) * columns]) for row in range(rows)]


def private_advice(url: str | None, error: dict) -> str:
    """Return how the service may fetch `url` where that failed and the host is not public."""
    kind = error.get("type")
    # Other addresses are never allowed, such as those with a password.
    may_allow = kind == "AddressError" and "FETCH_ALLOW" in str(error["message"])
    if not may_allow and kind not in ("FetchError", "FetchTimeoutError"):
        return ""
    host = urllib.parse.urlsplit(url or "").hostname or ""
    local = host in ("localhost", "::1", "host.docker.internal") or host.startswith("127.")
    if local:
        return (
            " In a container, localhost is the container itself. To fetch from this machine, write "
            "host.docker.internal in the URL, and start the container with: make run "
            'ARGS="--add-host host.docker.internal:host-gateway '
            '-e FETCH_ALLOW=host.docker.internal". The program that serves the image has to listen '
            "on all interfaces."
        )
    if may_allow:
        return f' If you trust it, start the container with: make run ARGS="-e FETCH_ALLOW={host}"'
    return ""


def is_scores(answer: object) -> TypeGuard[dict[str, float]]:
    """Return whether `answer` is {label: score} with at least one label."""
    return (
        isinstance(answer, dict)
        and len(answer) > 0
        and all(type(score) in (int, float) and math.isfinite(score) for score in answer.values())
    )


def print_scores(image: str, scores: dict[str, float]) -> None:
    """Print the label of `image` and all `scores`, highest first."""
    width = max(map(len, scores))
    print(f"{image}: {best_label(scores)}")
    for label, score in sorted(scores.items(), key=lambda item: -item[1]):
        print(f"  {label:{width}} {score:.5f}", flush=True)


def check_label(scores: dict[str, float], expected: str | None) -> None:
    """Compare the label with `expected`; None accepts any.

    Raises:
        CheckError: the label is another one.
    """
    label = best_label(scores)
    if expected in (None, label):
        return
    known = "" if expected in scores else f", and the classes are {', '.join(scores)}"
    raise CheckError(f"Expected the label {expected}. Received: {label}{known}.")


def best_label(scores: dict[str, float]) -> str:
    """Return the label with the highest score."""
    return max(scores, key=scores.__getitem__)


def http_address(text: str) -> str:
    """Return `text` if it is an http or https URL; for argparse."""
    if not text.lower().startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(
            f"expected an address that begins with http:// or https://, received: {text}"
        )
    return text


def home_path(text: str) -> Path:
    """Return `text` as a path, in which a ~ at its beginning is one's home; for argparse."""
    return Path(os.path.expanduser(text))


def seconds(text: str) -> float:
    """Return the number in `text`, from 0 on and finite; for argparse."""
    number = float(text)
    if not (math.isfinite(number) and number >= 0):
        raise argparse.ArgumentTypeError(f"expected seconds from 0, received: {text}")
    return number


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--endpoint", type=http_address, default=ENDPOINT, help="[%(default)s]")
    image = parser.add_mutually_exclusive_group()
    image.add_argument(
        "--url", type=http_address, metavar="IMAGE_URL", help="image to fetch [Wikimedia's rose]"
    )
    image.add_argument("--file", type=home_path, metavar="PATH", help="image file to send instead")
    parser.add_argument(
        "--expect",
        metavar="LABEL",
        help=f"correct label [{IMAGE_LABEL} for Wikimedia's rose, otherwise any]",
    )
    parser.add_argument(
        "--details", action="store_true", help="print all that the model tells, not only scores"
    )
    parser.add_argument(
        "--wait",
        type=seconds,
        default=WAIT,
        metavar="SECONDS",
        help="how long to wait for the container [%(default)g]",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
