"""Corrections that come in through the page; the journal is real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving.errors import ConfigError, RequestError
from serving.journal import Journal, read
from serving.server import page
from serving.server.page import PageSettings
from tests.page.conftest import EVIL, SAME


def test_a_correction_is_handed_on_as_it_is(ask: Any) -> None:
    given: list[Any] = []
    settings = PageSettings(feedback=lambda *correction: given.append(correction))
    answer = ask("POST", "/feedback", settings=settings, json={"id": "3f-2_a.b:12", "label": EVIL, "comment": f" {EVIL} "}, headers=SAME)
    assert answer.json() == {"recorded": {"id": "3f-2_a.b:12", "label": EVIL}}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    ask("POST", "/feedback", settings=settings, json={"id": "a:0", "label": "good"})
    assert given == [("3f-2_a.b:12", EVIL, EVIL, "page"), ("a:0", "good", "", "http")]


_ID = "expected an answer's X-Request-Id with its row, such as '3f2a:0'"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"id": "a", "label": "x"}, f"id: {_ID}; received 'a'. Send the id of an answer."),
        ({"label": "x"}, f"id: {_ID}; received nothing. Send the id of an answer."),
        ({"id": "a\n:0", "label": "x"}, f"id: {_ID}; received 'a\\n:0'. Send the id of an answer."),
        ({"id": "a" * 65 + ":0", "label": "x"}, f"id: {_ID}; received {repr('a' * 65)[:60]}. Send the id of an answer."),
        ({"id": "a:0"}, "label: expected a text of 1 to 200 characters; received nothing."),
        ({"id": "a:0", "label": "  "}, "label: expected a text of 1 to 200 characters; received '  ', 2 characters."),
        ({"id": "a:0", "label": ["x"]}, "label: expected a text of 1 to 200 characters; received ['x']."),
        (
            {"id": "a:0", "label": "x" * 201},
            f"label: expected a text of 1 to 200 characters; received {repr('x' * 99)[:60]}, 201 characters.",
        ),
        ({"id": "a:0", "label": "x", "comment": None}, "comment: expected a text of 0 to 2000 characters; received nothing."),
        ({"id": "a:0", "label": "x", "by": "me"}, "unknown field 'by': expected id, label, comment."),
    ],
)
def test_a_correction_that_is_none_is_refused_in_words(ask: Any, document: dict[str, Any], message: str) -> None:
    answer = ask("POST", "/feedback", settings=PageSettings(feedback=lambda *_: None), json=document)
    assert answer.status_code == 400
    assert answer.json() == {"error": message}


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"[" * 10_000, b'{"id": "a:0", "label": "\xff"}', b'{"id": "a:0", "label": "\\ud800"}']
)
def test_a_body_that_is_no_object_is_refused(ask: Any, body: bytes) -> None:
    settings = PageSettings(feedback=lambda *_: None)
    answer = ask("POST", "/feedback", settings=settings, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("JSON ")


@pytest.mark.parametrize(("error", "http"), [(RequestError("no such record"), 400), (ConfigError("the journal cannot be written"), 503)])
def test_a_correction_that_could_not_be_kept_is_said(ask: Any, error: Exception, http: int) -> None:
    def refusing(*_: str) -> None:
        raise error

    answer = ask("POST", "/feedback", settings=PageSettings(feedback=refusing), json={"id": "a:0", "label": "x"})
    assert (answer.status_code, answer.json()) == (http, {"error": str(error)})


def test_without_a_journal_there_is_nothing_to_correct(ask: Any) -> None:
    answer = ask("POST", "/feedback", json={"id": "a:0", "label": "x"})
    assert answer.status_code == 400
    assert answer.json() == {"error": "This server keeps no journal, so there is nothing to correct. Start it with --journal."}


def test_corrections_reach_the_journal_even_before_its_flush_and_refusals_name_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    with Journal(folder, source="server", flush_s=0.3) as journal:
        store = page.feedback_into(journal)
        journal.append({"kind": "request", "id": "r1:0", "model": "m", "label": "bad"})
        store("r1:0", "good", "it is good", "page")
        with pytest.raises(RequestError, match=r"^id 'r2:0': no such record in the journal\. ") as refused:
            store("r2:0", "good", "", "page")
        assert str(tmp_path) not in str(refused.value)
    kept = [record for record in read(folder) if record["kind"] == "feedback"]
    assert [(one["id"], one["label"], one["comment"], one["by"]) for one in kept] == [("r1:0", "good", "it is good", "page")]
