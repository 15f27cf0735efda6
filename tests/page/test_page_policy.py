"""The Content-Security-Policy holds in the browser, and these tests would notice if it did not."""

import re
from collections.abc import Callable

import pytest

from tests.page.browser import Watch
from tests.page.conftest import Front

GET = {
    "version": "2.0",
    "rawPath": "/",
    "requestContext": {"http": {"method": "GET"}},
    "headers": {"accept": "text/html"},
}
POLICY = re.compile("Content.Security.Policy")  # in a message
INJECTED = {
    "an inline handler": '<img src="data:," onerror="document.title = \'ran\'">',
    "a script": "<script>document.title = 'ran'</script>",
    "a style": "<style>body { color: red }</style>",
    "a style attribute": '<p style="color: red">',
    "an outside script": '<script src="https://example.com/a.js"></script>',
    "an outside style sheet": '<link rel="stylesheet" href="https://example.com/a.css">',
    "a frame": '<iframe src="/health"></iframe>',
    "a base": '<base href="https://example.com/">',
}


def page_with(front: Front, addition: str) -> Front:
    """Return a front whose page has `addition` and the policy of the real one."""

    def intercept(event: dict, answer: Callable[[dict], dict]) -> dict:
        given = answer(event)
        if event["rawPath"] == "/":
            assert "</body>" in given["body"]
            given |= {"body": given["body"].replace("</body>", f"{addition}</body>")}
        return given

    other = Front(front.handler)
    other.intercept = intercept
    return other


@pytest.mark.parametrize("what", INJECTED)
def test_what_somebody_injects_does_not_run_and_is_noticed(front, chromium, what):
    watch = Watch()
    with page_with(front, INJECTED[what]) as changed:
        watch.allow(changed.url)
        context = watch.context(chromium)
        page = context.new_page()
        with page.expect_console_message(lambda message: POLICY.search(message.text)):
            page.goto(changed.url)
        assert page.title() != "ran"
        context.close()
    with pytest.raises(AssertionError, match=POLICY.pattern):
        watch.check()


def test_an_error_in_a_script_is_noticed(front, chromium):
    watch = Watch()
    watch.allow(front.url)
    context = watch.context(chromium)
    page = context.new_page()
    page.goto(front.url)
    with page.expect_event("pageerror"):
        page.evaluate("setTimeout(() => { throw new Error('broken'); })")
    context.close()
    with pytest.raises(AssertionError, match="broken"):
        watch.check()


def test_a_request_to_another_host_is_noticed(front, chromium, http_server):
    watch = Watch()
    watch.allow(front.url)
    context = watch.context(chromium)
    page = context.new_page()
    page.goto(front.url)
    with page.expect_request("**/pixel.png"):
        page.evaluate(f"new Image().src = '{http_server({})}/pixel.png'")
    context.close()
    with pytest.raises(AssertionError, match="Request: GET .*/pixel.png"):
        watch.check()


def test_the_page_refers_to_nothing_outside(front, page):
    found = page.evaluate(
        "[...document.querySelectorAll('[src], [href]')].map(e => e.src || e.href)"
    )
    outside = [url for url in found if not re.match(rf"(data:|blob:|{re.escape(front.url)})", url)]
    assert not outside


def test_opening_it_asks_for_two_things(page, watch):
    page.wait_for_load_state("networkidle")
    assert sorted(watch.requests) == ["GET /", "GET /health"]


def test_it_is_small(front):
    assert len(front.handler.handle(GET)["body"].encode()) < 60_000
