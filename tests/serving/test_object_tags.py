"""Tags of objects: requests that S3 accepts, and tags that stay."""

import re
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from serving.errors import StoreError
from serving.object_tags import add_tags, sign, tag_value

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"  # noqa: S105 - of AWS's documentation
NONE = b'<Tagging xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><TagSet/></Tagging>'


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)


@pytest.fixture
def s3(monkeypatch):
    """A server with the tags of one object, and what it was asked."""
    with S3() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


class S3:
    """Answers requests for the tags of any object."""

    def __init__(self):
        self.tags, self.statuses, self.requests = NONE, [], []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                owner.requests.append((self.command, self.path, dict(self.headers), body))
                status = owner.statuses.pop(0) if owner.statuses else 200
                if self.command == "PUT" and status == 200:
                    owner.tags = body
                answer = owner.tags if self.command == "GET" else b""
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_PUT = do_GET  # noqa: N815 - http.server's name

            def log_message(self, *_):
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def found(self):
        pairs = re.findall(r"<Key>(.*?)</Key><Value>(.*?)</Value>", self.tags.decode())
        return dict(pairs)


def test_the_signature_is_that_of_aws_s_example():
    """GET Object of "Signature Calculations for the Authorization Header" in S3's API reference."""
    url, range_header = "https://examplebucket.s3.amazonaws.com/test.txt", {"Range": "bytes=0-9"}
    when = datetime(2013, 5, 24, tzinfo=UTC)
    assert sign("GET", url, range_header, b"", "us-east-1", when)["authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )


def test_the_signature_of_a_query_is_that_of_aws_s_example():
    """GET Bucket Lifecycle, on the same page."""
    url, when = (
        "https://examplebucket.s3.amazonaws.com/?lifecycle=",
        datetime(2013, 5, 24, tzinfo=UTC),
    )
    signed = sign("GET", url, {}, b"", "us-east-1", when)["authorization"]
    assert signed.endswith(
        "Signature=fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
    )


def test_a_role_s_token_is_signed_too(monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    signed = sign("GET", "https://a/", {}, b"", "us-east-1", datetime(2013, 5, 24, tzinfo=UTC))
    assert signed["x-amz-security-token"] == "token"
    assert ";x-amz-security-token," in signed["authorization"]


def test_an_object_gets_tags(s3):
    assert add_tags("b", "new/a b+ü.jpg", {"label": "rose", "score": "0.99610"})
    assert s3.found() == {"label": "rose", "score": "0.99610"}
    [(_, path, _, _), (_, _, headers, _)] = s3.requests
    assert path == "/b/new/a%20b%2B%C3%BC.jpg?tagging="
    headers = {name.lower(): value for name, value in headers.items()}
    assert headers["content-md5"]
    assert headers["host"] == s3.url.removeprefix("http://")


def test_other_tags_stay_and_ours_are_renewed(s3):
    add_tags("b", "a", {"owner": "me", "label": "tulip"})
    assert add_tags("b", "a", {"label": "rose & <thorn>"})
    assert s3.found() == {"owner": "me", "label": "rose _ _thorn_"}


def test_nothing_is_written_twice(s3):
    add_tags("b", "a", {"label": "rose"})
    add_tags("b", "a", {"label": "rose"})
    assert [method for method, *_ in s3.requests] == ["GET", "PUT", "GET"]


def test_without_room_for_tags_nothing_is_changed(s3):
    others = {str(number): "a" for number in range(9)}
    add_tags("b", "a", others)
    assert not add_tags("b", "a", {"label": "rose", "score": "1"})
    assert s3.found() == others
    assert add_tags("b", "a", {"label": "rose"})


def test_what_fails_in_passing_is_tried_again(s3):
    s3.statuses = [503, 200, 500]
    assert add_tags("b", "a", {"label": "rose"})
    assert s3.found() == {"label": "rose"}


@pytest.mark.parametrize("status", [301, 403, 404])
def test_what_is_refused_is_told(s3, status):
    s3.statuses = [status]
    with pytest.raises(StoreError, match=f"s3://b/a. Received: status {status}. Let the function"):
        add_tags("b", "a", {"label": "rose"})


def test_no_answer_is_told(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreError, match="Received: MaxRetryError"):
        add_tags("b", "a", {})


def test_names_of_classes_become_values_that_s3_takes():
    assert tag_value("Löwenzahn, gelb (2)*") == "Löwenzahn_ gelb _2__"
    assert tag_value("a" * 300) == "a" * 256
