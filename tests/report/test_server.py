"""The dashboard: what it answers to whom, and that the page follows the study."""

from __future__ import annotations

import gzip
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from report_cases import Shown, facts, records, until

from ranksearch.errors import InvalidArgument, StoreError
from ranksearch.report.data import page_data
from ranksearch.report.server import COOKIE, Dashboard, Feed, check_address

TOKEN = "a-secret_token"


@pytest.fixture
def study() -> Shown:
    return Shown(records(20))


@pytest.fixture
def served(study: Shown) -> Iterator[Callable[..., Dashboard]]:
    running: list[Dashboard] = []

    def serve(**options: Any) -> Dashboard:
        running.append(Dashboard("made up", Feed(study.version, study.data, every=0.05), **options))
        return running[-1]

    yield serve
    for dashboard in running:
        dashboard.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ranksearch-")]


def ask(dashboard: Dashboard, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", int(dashboard.url.split(":")[2].split("/")[0]), timeout=20)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    connection.close()
    return found


def news(dashboard: Dashboard, after: int) -> dict[str, Any]:
    """The next data with another number."""
    for _ in range(400):
        status, _, body = ask(dashboard, f"/data.json?after={after}")
        if status == 200:
            return json.loads(body)
        assert status == 204 and body == b""
        threading.Event().wait(0.025)
    raise AssertionError("nothing new came")


def test_pages_and_data(served: Callable[..., Dashboard], study: Shown) -> None:
    dashboard = served()
    status, headers, page = ask(dashboard, "/")
    assert status == 200 and b"<title>made up: ranksearch dashboard</title>" in page
    assert headers["cache-control"] == "no-store" and "frame-ancestors 'none'" in headers["content-security-policy"]
    status, headers, packed = ask(dashboard, "/plotly.js", **{"Accept-Encoding": "gzip"})
    assert status == 200 and headers["content-encoding"] == "gzip" and b"Plotly" in gzip.decompress(packed)
    first = json.loads(ask(dashboard, "/data.json")[2])
    assert first["study"] == json.loads(json.dumps(study.data())) and first["problem"] is None
    assert ask(dashboard, f"/data.json?after={first['number']}")[0] == 204
    assert ask(dashboard, "/etc/passwd")[0] == 404 and ask(dashboard, "/", "POST")[0] == 501
    status, headers, body = ask(dashboard, "/", "HEAD")
    assert (status, body) == (200, b"") and int(headers["content-length"]) == len(page)


def test_what_changes_is_told_and_what_cannot_be_read_for_a_while_too(served: Callable[..., Dashboard], study: Shown) -> None:
    dashboard = served()
    first = json.loads(ask(dashboard, "/data.json")[2])
    study.rows = records(25)
    second = news(dashboard, first["number"])
    ids, before = second["study"]["networks"]["id"], first["study"]["networks"]["id"]
    assert ids == page_data(facts(study.rows))["networks"]["id"] and len(ids) > len(before)
    study.problem = StoreError("the server is\naway")
    third = news(dashboard, second["number"])
    assert third["problem"] == "the server is away" and third["study"] is None
    study.problem = None
    assert news(dashboard, third["number"])["problem"] is None


def test_many_questions_ask_the_store_once(served: Callable[..., Dashboard], study: Shown) -> None:
    dashboard = served()
    for _ in range(20):
        ask(dashboard, "/data.json")
    assert study.read == 1


def test_a_token(served: Callable[..., Dashboard]) -> None:
    dashboard = served(token=TOKEN)
    assert dashboard.url.endswith(f"/?token={TOKEN}")
    for path in ("/", "/data.json", "/plotly.js", "/?token=another-token"):
        assert ask(dashboard, path)[0] == 403
    status, headers, _ = ask(dashboard, f"/?token={TOKEN}")
    assert status == 303 and headers["location"] == "/"
    assert "HttpOnly" in headers["set-cookie"] and "SameSite=Strict" in headers["set-cookie"]
    assert ask(dashboard, "/data.json", Cookie=headers["set-cookie"].split(";")[0])[0] == 200
    assert ask(dashboard, "/data.json", Authorization=f"Bearer {TOKEN}")[0] == 200
    assert ask(dashboard, "/data.json", Cookie=f"{COOKIE}={TOKEN[:-1]}", Authorization=f"Bearer {TOKEN}x")[0] == 403


def test_a_name_of_another_site_that_points_here_is_refused(served: Callable[..., Dashboard]) -> None:
    dashboard = served()
    assert ask(dashboard, "/data.json", Host="evil.example")[0] == 421
    assert ask(dashboard, "/data.json", Host="localhost:1")[0] == 200


def test_other_addresses_need_a_token() -> None:
    for host in ("0.0.0.0", "192.0.2.7", "::", "machine"):
        with pytest.raises(InvalidArgument, match="token"):
            check_address(host, None)
        check_address(host, TOKEN)
    for host in ("127.0.0.1", "127.3.2.1", "::1", "localhost"):
        check_address(host, None)
    for token in ("short", "with space and\n", "ümlaute-sind-es"):
        with pytest.raises(InvalidArgument, match="token"):
            check_address("127.0.0.1", token)


def test_the_page_follows_the_study(served: Callable[..., Dashboard], study: Shown, browser: Any) -> None:
    dashboard = served(token=TOKEN)
    page = browser.new_context().new_page()
    errors, requests = [], []
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(dashboard.url)
    page.wait_for_selector("main[aria-busy=false]")
    assert TOKEN not in page.url
    assert "Searching (pid 7 on here) · 23 evaluations of 100" in page.inner_text("#live")
    ids = page.eval_on_selector_all("#front-table tbody tr", "rows => rows.map((row) => row.dataset.id)")
    page.fill("#most-macs", "90")
    page.focus(f"#front-table tr[data-id='{ids[0]}'] button")
    page.keyboard.press("Enter")
    study.rows = [*study.rows, *records(6, seed=1)[1:-2]]
    until(page, "document.getElementById('live').innerText.includes('29 evaluations of 100')")
    page.wait_for_selector("main[aria-busy=false]")
    assert page.evaluate("study.count") == 27 and page.inner_text("aside h3").split()[0] == ids[0], "what was chosen stays"
    assert page.input_value("#most-macs") == "90" and errors == []
    assert page.evaluate("document.activeElement.dataset.key") == ids[0], "and the focus"
    dashboard.close()
    page.wait_for_selector("#problem:not([hidden])")
    assert "does not answer" in page.inner_text("#problem")
    port = dashboard.url.split(":")[2].split("/")[0]
    assert {url.split("/")[2] for url in requests} == {f"127.0.0.1:{port}"}
    page.context.close()
