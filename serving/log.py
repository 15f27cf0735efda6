"""One JSON line a request, for CloudWatch or any other reader of standard output.

Never the image, and never a URL's query string, where passwords and signatures stand.
"""

import json
import os
import re
import time
import traceback

# Of each request, as CloudWatch metrics; METRICS_NAMESPACE switches them on, since they cost.
METRICS = {
    "ms": "Milliseconds",
    "fetch_ms": "Milliseconds",
    "decode_ms": "Milliseconds",
    "infer_ms": "Milliseconds",
    "errors": "Count",
}
_QUERY = re.compile(r"\?\S*")


def write(level: str, message: str, **facts: object) -> None:
    """Print `facts`, fit for JSON, as one line."""
    print(json.dumps({"level": level, "message": message, **facts}), flush=True)


def write_request(**facts: object) -> None:
    """Print the line of a request; with its `METRICS` in CloudWatch's embedded metric format."""
    if namespace := os.environ.get("METRICS_NAMESPACE"):
        metrics = [{"Name": name, "Unit": unit} for name, unit in METRICS.items() if name in facts]
        facts["_aws"] = {
            "Timestamp": int(time.time() * 1000),
            "CloudWatchMetrics": [
                {"Namespace": namespace, "Dimensions": [[]], "Metrics": metrics},
            ],
        }
    write("INFO", "request", **facts)


def log_exception(request_id: str | None, error: Exception) -> None:
    """Print the line of an `error` that is a defect of ours."""
    trace = "".join(traceback.format_exception(error))
    write("ERROR", "defect", request_id=request_id, exception=without_query(trace))


def without_query(text: str) -> str:
    """Return `text` without what follows a question mark up to the next space."""
    return _QUERY.sub("?...", text)
