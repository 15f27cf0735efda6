"""Ask the running container about an image, and say whether it was right.

python docker_test.py                                    # a rose from Wikimedia; expects "rose"
python docker_test.py --file tulip.jpg --expect tulip    # a file, sent along
python docker_test.py --url https://example.com/a.jpg    # any label will do

Exit code 0: it answered scores, and the expected label first. 1: anything else, with one sentence.
"""

import argparse
import base64
import http.client
import json
import math
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ENDPOINT = "http://localhost:8080/2015-03-31/functions/function/invocations"
IMAGE = "https://upload.wikimedia.org/wikipedia/commons/5/51/Small_Red_Rose.JPG"
IMAGE_LABEL = "rose"  # what IMAGE shows

WAIT = 30.0  # seconds for the container to come up
RETRY = 0.2  # seconds between two tries
ANSWER_TIMEOUT = 60.0  # seconds for one answer
MAX_PAYLOAD = 6 * 1024 * 1024  # bytes; Lambda takes no larger event
# A proxy of the environment is not meant for a container on this machine.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class CheckError(Exception):
    """The service is not there or not right; `str(error)` is one sentence for the user."""


def main(arguments: list[str] | None = None) -> int:
    """Ask, print the scores and return the exit code."""
    options = parse_arguments(arguments)
    image = str(options.file or options.url or IMAGE)
    expected = options.expect or (IMAGE_LABEL if image == IMAGE else None)
    try:
        event = file_event(options.file) if options.file else {"url": image}
        scores = parse_scores(ask(options.endpoint, event, options.wait))
        show(image, scores)
        check(scores, expected)
    except CheckError as error:
        print(f"docker_test.py: {error}", file=sys.stderr)
        return 1
    return 0


def file_event(path: Path) -> dict[str, str]:
    """Return the event that carries the file at `path`.

    Raises:
        CheckError: it cannot be read, or is more than Lambda takes.
    """
    try:
        # One byte more than could ever fit, so that a huge file is not read to its end.
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


def ask(endpoint: str, event: dict[str, str], wait: float) -> bytes:
    """Return the body of the answer to `event`, once there is a service at `endpoint`.

    Raises:
        CheckError: there is none after `wait` seconds, or it does not answer in time.
    """
    deadline = time.monotonic() + wait
    tries = 0
    while True:
        try:
            return post(endpoint, event)
        except (ConnectionError, http.client.BadStatusLine, http.client.IncompleteRead) as error:
            # Refused, or taken by Docker before anything listens behind it, then dropped.
            reason = error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise CheckError(
                f"Expected an answer of {endpoint}. Received: {sentence_part(error)}. "
                "Check --endpoint, and the container's log."
            ) from None
        if time.monotonic() >= deadline:
            raise CheckError(
                f"Expected a service at {endpoint} within {wait:g} seconds. "
                f"Received: {sentence_part(reason)}. "
                "Start it with `make run`, or name another --endpoint."
            )
        if tries == 0:
            print(f"Waiting for {endpoint} ...", file=sys.stderr, flush=True)
        tries += 1
        time.sleep(min(RETRY, max(0.0, deadline - time.monotonic())))


def post(endpoint: str, event: dict[str, str]) -> bytes:
    """Return the body of the answer to `event`, whatever its status.

    Raises:
        OSError, ValueError or http.client.HTTPException: there is no whole answer.
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
    """Return what went wrong as it may stand within a sentence."""
    if isinstance(error, TimeoutError):
        return f"none within {ANSWER_TIMEOUT:g} seconds"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.rstrip(".")


def parse_scores(body: bytes) -> dict[str, float]:
    """Return the {label: score} that the service answered.

    Raises:
        CheckError: it answered an error or something else.
    """
    text = body.decode(errors="replace")
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        # Our handler's errors, and those of Lambda itself: a crash, no memory, no time.
        error = answer.get("error")
        if isinstance(error, dict) and "message" in error:
            raise CheckError(f"Expected scores. Received: {error.get('type')}: {error['message']}")
        if "errorMessage" in answer:
            name = answer.get("errorType", "an error")
            raise CheckError(
                f"Expected scores. Received: {name}: {answer['errorMessage']}. "
                "See the container's log."
            )
    if not is_scores(answer):
        raise CheckError(
            f"Expected scores ({{label: score}}). Received: {text.strip()[:200] or 'nothing'}. "
            "Check --endpoint."
        )
    return answer


def is_scores(answer: object) -> bool:
    """Return whether `answer` is {label: score} with at least one label."""
    return (
        isinstance(answer, dict)
        and len(answer) > 0
        and all(type(score) in (int, float) and math.isfinite(score) for score in answer.values())
    )


def show(image: str, scores: dict[str, float]) -> None:
    """Print the label of `image` and all `scores`, the highest first."""
    width = max(map(len, scores))
    print(f"{image}: {best_label(scores)}")
    for label, score in sorted(scores.items(), key=lambda item: -item[1]):
        print(f"  {label:{width}} {score:.5f}", flush=True)


def check(scores: dict[str, float], expected: str | None) -> None:
    """Compare the first answer with `expected`; None expects nothing.

    Raises:
        CheckError: it is another label.
    """
    label = best_label(scores)
    if expected in (None, label):
        return
    known = "" if expected in scores else f", and no such class among {', '.join(scores)}"
    raise CheckError(f"Expected the label {expected}. Received: {label}{known}.")


def best_label(scores: dict[str, float]) -> str:
    """Return the label with the highest score."""
    return max(scores, key=scores.__getitem__)


def http_address(text: str) -> str:
    """Return `text` if it is an http or https address; argparse reports if it is not."""
    if not text.lower().startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(
            f"expected an address that begins with http:// or https://, received: {text}"
        )
    return text


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
    image.add_argument("--file", type=Path, metavar="PATH", help="image to send along")
    parser.add_argument(
        "--expect",
        metavar="LABEL",
        help=f"the label that is right [{IMAGE_LABEL} for Wikimedia's rose, else any]",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=WAIT,
        metavar="SECONDS",
        help="for the container to come up [%(default)g]",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
