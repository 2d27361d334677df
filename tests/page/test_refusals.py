"""Who may ask, and how much: the routes of the page look at where a request comes from."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.server import page, rest
from serving.server.page import PageSettings
from tests.page.conftest import SAME, _explain


@pytest.mark.parametrize(
    ("headers", "http"),
    [
        ({}, 200),  # a program
        (SAME, 200),
        ({"origin": "http://127.0.0.1:8501", "sec-fetch-site": "same-origin"}, 200),
        ({"origin": "https://proxy.example", "sec-fetch-site": "same-origin"}, 200),  # a proxy that changes Host; browsers do not lie here
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:8502"}, 403),  # another server on this machine
        ({"origin": "null"}, 403),
        ({"origin": "file://127.0.0.1:8501"}, 403),
        ({"origin": ""}, 403),
        ({**SAME, "sec-fetch-site": "same-site"}, 403),
        ({**SAME, "sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "none"}, 403),
        ({"host": "localhost:9000"}, 200),  # a tunnel
        ({"host": "LOCALHOST."}, 200),
        ({"host": "[::1]:8501"}, 200),
        ({"host": "127.8.8.8"}, 200),
        ({"host": "evil.example:8501", "origin": "http://evil.example:8501", "sec-fetch-site": "same-origin"}, 403),  # its name points here
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "10.0.0.7"}, 403),
        ({"host": ""}, 403),
        ({"host": "[::1"}, 403),
    ],
)
def test_other_sites_cannot_correct_through_a_browser(ask: Any, headers: dict[str, str], http: int) -> None:
    given: list[Any] = []
    settings = PageSettings(feedback=lambda *correction: given.append(correction))
    answer = ask("POST", "/feedback", settings=settings, json={"id": "a:0", "label": "good"}, headers=headers)
    assert answer.status_code == http
    assert len(given) == (http == 200)
    if http == 403:
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("HEAD", "/"), ("GET", "/page/state"), ("POST", "/page/explain")])
def test_under_a_foreign_name_nothing_is_shown(ask: Any, method: str, path: str) -> None:
    answer = ask(method, path, headers={"host": "evil.example"}, json={})
    assert answer.status_code == 403
    if method != "HEAD":
        assert answer.json()["error"] == (
            "Host 'evil.example' is not this server, which listens on 127.0.0.1 for this machine alone. Open it as http://127.0.0.1, or start the "
            "server with this name among its own."
        )


@pytest.mark.parametrize(
    ("listening", "hosts", "host", "refused"),
    [
        ("0.0.0.0", (), "models.example", False),  # which names lead here is not known
        ("10.0.0.7", (), "10.0.0.7:8501", False),
        ("localhost", (), "evil.example", True),
        ("::1", (), "[::1]:8501", False),
        ("127.0.0.1", ("Models.example",), "models.EXAMPLE:80", False),
        ("127.0.0.1", ("models.example",), "other.example", True),
    ],
)
def test_the_name_is_looked_at_while_the_server_listens_on_loopback(listening: str, hosts: Any, host: str, refused: bool) -> None:
    request = rest.Request("GET", "/", "", {"host": host}, b"")
    assert bool(page.refusal(request, listening, hosts)) is refused


@pytest.mark.parametrize(("origin", "host", "refused"), [
    ("http://models.example", "models.example:80", False), ("https://models.example", "models.example:443", False),
    ("http://MODELS.example:80", "models.example", False), ("http://models.example", "models.example:8080", True),
])  # fmt: skip
def test_default_ports_are_the_same_origin(origin: str, host: str, refused: bool) -> None:
    request = rest.Request("POST", "/feedback", "", {"host": host, "origin": origin}, b"")
    assert bool(page.refusal(request, "0.0.0.0")) is refused


@pytest.mark.parametrize("path", ["/feedback", "/page/explain"])
@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; x=application/json", "text/json"]
)
def test_what_a_form_of_another_site_could_send_is_refused(ask: Any, path: str, kind: str) -> None:
    body = json.dumps({"id": "a:0", "label": "good"})
    answer = ask(
        "POST", path, settings=PageSettings(feedback=lambda *_: None), content=body, headers={"content-type": kind} if kind else {}
    )
    assert answer.status_code == 415
    message = f"Content-Type {kind.partition(';')[0]!r}: expected application/json. Send the header Content-Type: application/json."
    assert answer.json() == {"error": message}


def test_sizes_are_bounded_and_compressed_bodies_refused(ask: Any) -> None:
    settings = PageSettings(feedback=lambda *_: None)
    big = json.dumps({"id": "a:0", "label": "good", "comment": "x" * page.MAX_FEEDBACK_BYTES})
    json_type = {"content-type": "application/json"}
    assert ask("POST", "/feedback", settings=settings, content=big, headers=json_type).status_code == 413
    assert _explain(ask, "x" * page.MAX_EXPLAIN_BYTES).status_code == 413
    assert ask("POST", "/feedback", settings=settings, content=b"{}", headers={**json_type, "content-encoding": "gzip"}).status_code == 415


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/feedback"), ("POST", "/"), ("PUT", "/"), ("POST", "/page/state"), ("OPTIONS", "/feedback")]
)
def test_other_methods_are_not_there(ask: Any, method: str, path: str) -> None:
    answer = ask(method, path, settings=PageSettings(feedback=lambda *_: None))
    assert answer.status_code == 404
    assert "access-control-allow-origin" not in answer.headers
