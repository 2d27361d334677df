"""The page itself: its headers, weight and sentences, and when it is there."""

from __future__ import annotations

import base64
import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from serving.server import page
from serving.server.page import PageSettings

HTML = page.FILE.read_text(encoding="utf-8")


def _content(kind: str) -> str:
    [found] = re.findall(f"<{kind}>(.*?)</{kind}>", HTML, re.DOTALL)
    return str(found)


def test_the_page_comes_with_headers_that_allow_its_own_script_and_style_and_nothing_else(ask: Any) -> None:
    answer = ask("GET", "/")
    assert answer.status_code == 200
    assert answer.text == HTML

    def hashed(kind: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(_content(kind).encode()).digest()).decode() + "'"

    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == (
        f"default-src 'none'; script-src {hashed('script')}; style-src {hashed('style')}; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["cache-control"] == "no-store"
    assert "set-cookie" not in answer.headers


def test_head_gives_the_same_headers_without_the_page(ask: Any) -> None:
    whole, head = ask("GET", "/"), ask("HEAD", "/")
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-security-policy"] == whole.headers["content-security-policy"]


def test_the_page_is_light_and_asks_no_other_host() -> None:
    assert len(HTML.encode()) < 100_000
    assert set(re.findall(r"https?://[^'\" ]+", HTML)) == {"http://www.w3.org/2000/svg"}  # the name of SVG in the icon; nobody goes there
    assert not re.search(r"<(link|script|img|iframe|object|embed)[^>]+(src|href)=\"(?!data:)", HTML)


def test_nothing_on_the_page_needs_what_the_policy_forbids() -> None:
    body = HTML[HTML.index("<body>") : HTML.index("<script>")]
    assert not re.search(r"\s(style|on\w+)=", body)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|cookie", _content("script"))


def _translations() -> dict[str, dict[str, str]]:
    blocks = re.search(r"const TEXT = \{\n  en: \{(.*?)\n  \},\n  zh: \{(.*?)\n  \},\n\};", _content("script"), re.DOTALL)
    assert blocks
    return {language: dict(re.findall(r"(\w+): '([^']*)'", block)) for language, block in zip(("en", "zh"), blocks.groups(), strict=True)}


def test_every_sentence_is_there_in_both_languages() -> None:
    translations = _translations()
    english, chinese = translations["en"], translations["zh"]
    assert len(english) > 60
    assert set(english) == set(chinese)
    for key, sentence in english.items():
        assert sorted(re.findall(r"\{\d\}", sentence)) == sorted(re.findall(r"\{\d\}", chinese[key])), key
    script = _content("script")
    used = set(re.findall(r'data-t="(\w+)"', HTML)) | set(re.findall(r"\bt\('(\w+)'", script))
    assert used <= set(english)
    for key in set(re.findall(r'data-t="(\w+)"', HTML)):
        shown = re.search(rf'data-t="{key}">([^<]*)<', HTML)
        assert shown
        assert shown[1] == english[key], "what is there before the script has run"


@pytest.mark.parametrize(
    ("flag", "client_certificates", "expected"),
    [("auto", False, True), ("auto", True, False), ("on", True, True), ("on", False, True), ("off", False, False), ("off", True, False)],
)
def test_the_page_is_on_unless_clients_need_certificates(flag: str, client_certificates: bool, expected: bool) -> None:
    assert page.is_on(flag, client_certificates=client_certificates) is expected


def test_without_the_page_feedback_stays_and_without_both_the_paths_are_as_in_the_real_server(ask: Any) -> None:
    only_feedback = PageSettings(page=False, feedback=lambda *_: None)
    assert ask("GET", "/", settings=only_feedback).status_code == 404
    assert ask("GET", "/page/state", settings=only_feedback).status_code == 404
    assert ask("POST", "/feedback", settings=only_feedback, json={"id": "a:0", "label": "x"}).status_code == 200
    nothing = ask("POST", "/feedback", settings=PageSettings(page=False), json={"id": "a:0", "label": "x"})
    assert nothing.status_code == 404
    assert "<H1>Not Found</H1>" in nothing.text


def test_a_server_that_stops_says_so(app: Any, ask: Any, pool: ThreadPoolExecutor) -> None:
    application = app()
    pool.shutdown()
    answer = ask("GET", "/page/state", application=application)
    assert (answer.status_code, answer.json()) == (503, {"error": "Server is shutting down. Try again later."})
