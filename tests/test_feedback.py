"""Human labels joined to requests: attached durably, asked for where they teach most, collected into a file that training reads like any other."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import multiprocessing
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from serving import journal
from serving.errors import ConfigError, RequestError
from serving.feedback import Labels, attach, attach_file, collect, queue, text_digest, uncertainty
from serving.feedback import labels as feedback_labels
from serving.journal import to_time
from tfpipeline import config, data, runs
from tfpipeline.data.intake import normalise

MANIFEST: dict[str, Any] = {
    "name": "bank",
    "version": 20261124130622,
    "run": "20261124-130000-bank-abcdef",
    "labels": ["negative", "neutral", "positive"],
    "task": "single_label",
    "has_pairs": False,
    "config": {
        "data": {
            "label_separator": "|",
            "slice_columns": ["topic"],
            "validation_fraction": 0.1,
            "test_fraction": 0.2,
            "split_salt": "tfpipeline",
        }
    },
}


def request(number: int, text: str | None, positive: float = 0.9, **values: Any) -> dict[str, Any]:
    """A record as the journal writes it."""
    record = {
        "kind": "request", "time": f"2026-11-24T13:{number // 60 % 60:02}:{number % 60:02}.000+00:00", "id": f"r{number}:0", "model": "bank",
        "version": 20261124130622, "source": "server", "code": "OK", "ms": 1.0, "label": "positive" if positive >= 0.5 else "negative",
        "score": max(positive, 1 - positive), "probabilities": {"negative": 1 - positive, "neutral": 0.0, "positive": positive},
    }  # fmt: skip
    return {**record, **({} if text is None else {"text": text}), **values}


def write(folder: Path, *records: Mapping[str, Any], name: str = "20261124T130000.000Z-1_aa-000001.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / name).open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A journal of three answers."""
    return write(tmp_path / "journal", request(1, "great app"), request(2, "lost my card"), request(3, "hmm, so so", 0.52))


def feedback_of(folder: Path) -> Iterator[dict[str, Any]]:
    return (record for record in journal.read(folder) if record["kind"] == "feedback")


# ---- attach ----


def test_a_label_is_on_disk_when_attach_returns(folder: Path) -> None:
    attached = attach(folder, "r2:0", "negative", "it was lost", "anna", manifest=MANIFEST)
    assert attached.to_dict() == {"id": "r2:0", "label": "negative", "predicted": "positive", "agrees": False}
    assert attached.render() == "r2:0: 'negative' recorded; the model said 'positive'."
    [record] = feedback_of(folder)
    assert record.pop("time")[:10] == datetime.now(timezone.utc).date().isoformat()
    assert record == {"kind": "feedback", "id": "r2:0", "label": "negative", "comment": "it was lost", "by": "anna"}


def test_the_row_may_be_left_out_where_there_is_one(folder: Path) -> None:
    assert attach(folder, "r2", "negative").id == "r2:0"
    write(folder, request(4, "one", id="many:0"), request(4, "two", id="many:1"))
    with pytest.raises(RequestError, match=r"^id 'many': that request had 2 texts. Say which: many:0, many:1.$"):
        attach(folder, "many", "negative")


def test_an_id_that_is_the_start_of_another_is_not_taken_for_it(folder: Path) -> None:
    write(folder, request(10, "ten"), request(100, "hundred"))
    assert attach(folder, "r1", "negative").id == "r1:0"
    assert attach(folder, "r10", "negative").id == "r10:0"


@pytest.mark.parametrize(
    ("id_", "label", "comment", "message"),
    [
        ("r9:0", "negative", "", "^id 'r9:0': no such record in "),
        ("", "negative", "", "^id '': expected `<request id>:<row>`"),
        ("r1:0\n", "negative", "", "expected `<request id>:<row>`"),
        ("../../x:0", "negative", "", "expected `<request id>:<row>`"),
        ("r1:0", "negativ", "", "^label 'negativ': expected one of negative, neutral, positive. Nothing was recorded"),
        ("r1:0", "", "", "^label '': expected one of"),
        ("r1:0", "negative|positive", "", "^label 'negative|positive': expected one of"),
        ("r1:0", "negative", "x" * 2001, "^comment of 2001 characters, name of 0: expected Unicode, at most 2000 and 200. Shorten it.$"),
        ("r1:0", "negative", "\ud800", "expected Unicode"),
    ],
)
def test_what_is_no_feedback_is_refused_and_not_written(folder: Path, id_: str, label: str, comment: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        attach(folder, id_, label, comment, manifest=MANIFEST)
    assert not list(feedback_of(folder))


def test_a_comment_is_kept_without_identifiers(folder: Path) -> None:
    attach(folder, "r1:0", "neutral", "call anna@example.com")
    assert next(feedback_of(folder))["comment"] == "call [EMAIL]"


def test_several_labels_have_one_form() -> None:
    labels = Labels(("a", "b", "c"), multi=True, separator="|")
    assert labels.parse(" c | a ") == labels.parse("a|c") == "a|c"
    assert labels.parse("") == ""
    assert labels.parse("a|d") is None


def test_a_record_that_was_just_seen_is_not_looked_for(folder: Path) -> None:
    assert attach(folder, "unflushed:3", "negative", known=True).predicted is None
    with pytest.raises(RequestError, match="received no row"):
        attach(folder, "unflushed", "negative", known=True)


def test_a_folder_that_is_no_journal_is_said(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such record in"):
        attach(tmp_path / "nowhere", "r1:0", "x")
    with pytest.raises(ConfigError, match=r"feedback cannot be written: No such file or directory\. Nothing was recorded\."):
        attach(tmp_path / "nowhere", "r1:0", "x", known=True)


def test_a_torn_line_before_it_spoils_nothing(folder: Path) -> None:
    attach(folder, "r1:0", "negative")
    [path] = folder.glob("*-feedback-*.jsonl")
    with path.open("a") as stream:
        stream.write('{"kind":"feedback","time":"20')
    attach(folder, "r2:0", "positive")
    assert [record["id"] for record in feedback_of(folder)] == ["r1:0", "r2:0"]
    assert path.stat().st_mode & 0o777 == 0o600


def _attach_many(folder: Path, who: str) -> None:
    for number in range(25):
        attach(folder, f"{who}{number}:0", "negative", by=who, known=True)


def test_threads_processes_and_a_deletion_at_once_lose_nothing(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers: list[Any] = [context.Process(target=_attach_many, args=(folder, f"p{number}x")) for number in range(2)]
    workers += [threading.Thread(target=_attach_many, args=(folder, f"t{number}x")) for number in range(2)]
    for worker in workers:
        worker.start()
    gone = 0
    while any(worker.is_alive() for worker in workers):
        gone += journal.delete(folder, ids=["t0x0:0", "p0x0"])
    for worker in workers:
        worker.join()
    gone += journal.delete(folder, ids=["t0x0:0", "p0x0"])
    found = journal.read(folder)
    kept = [record["id"] for record in found if record["kind"] == "feedback"]
    assert (gone, len(kept), len(set(kept)), found.torn) == (2, 98, 98, 0)


# ---- what to label next ----


def reasons(folder: Path, **values: Any) -> list[tuple[str, str]]:
    return [(item["id"], item["reason"]) for item in queue(folder, **values).items]


def test_the_least_certain_come_first_and_the_labelled_not_at_all(folder: Path) -> None:
    assert [item["id"] for item in queue(folder).items] == ["r3:0", "r1:0", "r2:0"]
    attach(folder, "r3:0", "positive")
    found = queue(folder, count=1)
    assert [item["id"] for item in found.items] == ["r1:0"]
    assert found.counts == {"requests": 3, "texts": 3, "labelled": 1}
    assert found.items[0] == {
        "id": "r1:0", "text": "great app", "predicted": "positive", "score": 0.9, "uncertainty": 0.2, "reason": "uncertain", "label": "", "comment": "",
    }  # fmt: skip


def test_one_label_against_the_model_asks_for_a_second_opinion(folder: Path) -> None:
    attach(folder, "r2:0", "negative", by="anna")
    assert ("r2:0", "one label against the model") in reasons(folder)
    attach(folder, "r2:0", "negative", by="bert")
    assert "r2:0" not in dict(reasons(folder))
    attach(folder, "r2:0", "neutral", by="carl")
    assert reasons(folder)[0] == ("r2:0", "labelled differently")


def test_one_label_of_a_record_that_client_and_server_wrote_is_one_label(folder: Path) -> None:
    write(folder, request(2, "lost my card", source="client"), name="20261124T130000.000Z-2_bb-000001.jsonl")
    attach(folder, "r2:0", "negative", by="anna")
    assert dict(reasons(folder))["r2:0"] == "one label against the model"


def test_somebody_who_corrects_himself_is_not_in_dispute_with_himself(folder: Path) -> None:
    attach(folder, "r1:0", "negative", by="anna")
    attach(folder, "r1:0", "positive", by="anna")
    assert "r1:0" not in dict(reasons(folder))


def test_near_twins_that_are_answered_differently_are_disputed_and_listed_once(folder: Path) -> None:
    write(folder, request(5, "Great app!!! 🙂", 0.2), request(6, "great  app", 0.9))
    found = queue(folder)
    assert [(item["id"], item["reason"]) for item in found.items] == [
        ("r5:0", "a near-twin has another answer or label"), ("r3:0", "uncertain"), ("r2:0", "uncertain"),
    ]  # fmt: skip
    assert found.counts["texts"] == 4  # r6 is the text of r1


def test_a_label_of_a_near_twin_puts_the_other_in_doubt(folder: Path) -> None:
    write(folder, request(5, "GREAT APP", 0.99))
    attach(folder, "r1:0", "negative", by="anna")
    attach(folder, "r1:0", "negative", by="bert")
    assert reasons(folder)[0] == ("r5:0", "a near-twin has another answer or label")


def test_disputed_ones_leave_room_for_uncertain_ones(tmp_path: Path) -> None:
    folder = write(tmp_path / "j", *(request(number, f"text {'abcdefghij'[number]}", 0.51) for number in range(10)))
    for number in range(6):
        attach(folder, f"r{number}:0", "negative")
    found = [reason for _, reason in reasons(folder, count=4)]
    assert found == ["one label against the model"] * 2 + ["uncertain"] * 2
    assert [reason for _, reason in reasons(folder, count=8)].count("one label against the model") == 4


def test_texts_that_were_not_kept_are_counted(tmp_path: Path) -> None:
    failed = request(3, "x", code="UNAVAILABLE", label=None, score=None, probabilities=None)
    folder = write(tmp_path / "j", request(1, None), request(2, "yes"), failed, request(4, "other", model="hotel"))
    assert queue(folder, manifest=MANIFEST).counts == {"requests": 3, "texts": 1, "without text": 1, "without answer": 1}
    later = datetime(2026, 11, 24, 13, 0, 3, tzinfo=timezone.utc)
    assert reasons(folder, since=later) == [("r4:0", "uncertain")]


@pytest.mark.parametrize(
    ("probabilities", "by", "multi", "expected"),
    [
        ((1.0, 0.0, 0.0), "margin", False, 0.0),
        ((0.5, 0.5, 0.0), "margin", False, 1.0),
        ((1 / 3, 1 / 3, 1 / 3), "entropy", False, 1.0),
        ((1.0, 0.0), "entropy", False, 0.0),
        ((0.99, 0.5, 0.01), "margin", True, 1.0),
        ((0.99, 0.01), "margin", True, 0.02),
        ((1.0,), "margin", False, 0.0),
        ((), "margin", True, 0.0),
    ],
)
def test_uncertainty(probabilities: tuple[float, ...], by: str, multi: bool, expected: float) -> None:
    assert uncertainty(probabilities, by, multi=multi) == pytest.approx(expected)


def test_the_labelled_file_goes_back_and_a_slip_costs_one_row(folder: Path, tmp_path: Path) -> None:
    write(folder, request(4, '=HYPERLINK("x"), said\nthe "card"', 0.5))
    queue(folder).write(tmp_path / "queue.csv")
    with (tmp_path / "queue.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0]["text"] == '\'=HYPERLINK("x"), said\nthe "card"'  # no formula
    for row, label in zip(rows, ("neutral", "positiv", "", "positive"), strict=True):
        row["label"] = label
    with (tmp_path / "queue.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    found = attach_file(folder, tmp_path / "queue.csv", "anna", manifest=MANIFEST)
    assert [(one.id, one.label) for one in found.attached] == [("r4:0", "neutral"), (rows[3]["id"], "positive")]
    assert (found.unlabelled, [one["line"] for one in found.problems]) == (1, [4])
    assert found.render().startswith(
        "2 labels recorded, 1 of them what the model said; 1 rows without a label.\n  line 4: label 'positiv': expected one of"
    )


def test_the_queue_as_json_lines_goes_back_too(folder: Path, tmp_path: Path) -> None:
    queue(folder, count=1).write(tmp_path / "queue.jsonl")
    item = json.loads((tmp_path / "queue.jsonl").read_text())
    (tmp_path / "queue.jsonl").write_text(json.dumps({**item, "label": "neutral"}) + "\n")
    assert [one.to_dict() for one in attach_file(folder, tmp_path / "queue.jsonl").attached] == [
        {"id": "r3:0", "label": "neutral", "predicted": "positive", "agrees": False}
    ]
    (tmp_path / "queue.csv").write_text("text,label\na,b\n")
    with pytest.raises(RequestError, match="expected columns id and label"):
        attach_file(folder, tmp_path / "queue.csv")


# ---- collect ----


def labelled(folder: Path, *given: tuple[int, str]) -> Path:
    for number, label in given:
        attach(folder, f"r{number}:0", label, by="anna")
    return folder


def read_back(path: Path, **settings: Any) -> dict[str, str]:
    """Text to label, as `tfpipeline data` reads the file."""
    wanted = config.load(overrides=[f"data.{name}={json.dumps(value)}" for name, value in settings.items()]).data
    found = {}
    for rows in data.read_examples([str(path)], wanted, ("negative", "neutral", "positive"), need_labels=True):
        for number in range(len(rows)):
            assert isinstance(rows[number].label, str)
            found[rows[number].text] = str(rows[number].label)
    return found


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_training_reads_what_was_collected(folder: Path, tmp_path: Path, ending: str) -> None:
    text = 'he said "no", 🙂 then left'
    write(folder, request(4, text))
    labelled(folder, (2, "negative"), (4, "neutral"))
    found = collect(folder, tmp_path / f"feedback.{ending}", manifest=MANIFEST)
    assert read_back(found.path, weight="weight", id="id", slice_columns=["topic", "source"]) == {
        "lost my card": "negative",
        text: "neutral",
    }
    assert (found.rows, found.labels, found.left_out, found.pseudo_path) == (2, {"negative": 1, "neutral": 1}, {}, None)
    assert found.path.stat().st_mode & 0o777 == 0o600


def test_the_provenance_says_where_the_rows_come_from(folder: Path, tmp_path: Path) -> None:
    labelled(folder, (2, "negative"), (3, "neutral"))
    found = collect(folder, tmp_path / "feedback.csv", manifest=MANIFEST, weight=2.0)
    said = runs.read_json(tmp_path / "feedback.csv.provenance")
    assert said["kind"] == "feedback"
    assert (said["rows"], said["labels"], said["weighted"]) == (2, {"negative": 1, "neutral": 1}, True)
    assert said["labelled_by"] == {"anna": 2}
    assert said["answered_by"] == {"bank 20261124130622": 2}
    assert said["answered"] == {"from": "2026-11-24T13:00:02.000+00:00", "to": "2026-11-24T13:00:03.000+00:00"}
    assert said["model"] == {"name": "bank", "version": 20261124130622, "run": "20261124-130000-bank-abcdef"}
    assert said["sha256"] == hashlib.sha256(found.path.read_bytes()).hexdigest()
    assert {one["name"]: one["sha256"] for one in said["journal"]} == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.jsonl")
    }
    assert "lost my card" not in (tmp_path / "feedback.csv.provenance").read_text()


def test_every_label_is_accounted_for(folder: Path, tmp_path: Path) -> None:
    write(folder, request(4, None), request(5, " great\tapp "), request(6, "of the hotel", model="hotel"), request(7, "\u200b "))
    labelled(folder, (1, "positive"), (2, "negative"), (4, "negative"), (5, "positive"), (6, "negative"), (7, "negative"))
    attach(folder, "gone:0", "negative", known=True)
    attach(folder, "r3:0", "of another model")
    found = collect(folder, tmp_path / "feedback.csv", manifest=MANIFEST)
    assert read_back(found.path) == {" great\tapp ": "positive", "lost my card": "negative"}
    assert found.left_out == {
        "text not kept": 1, "of another model": 1, "empty text": 1, "record not in the journal any more": 1, "label that the model has not": 1,
        "same text again": 1,
    }  # fmt: skip
    assert sum(found.left_out.values()) + found.rows == 8


def test_a_record_of_both_client_and_server_counts_once_and_with_its_text(tmp_path: Path) -> None:
    folder = write(tmp_path / "j", request(1, None, source="client"), name="20261124T130000.000Z-1_aa-000001.jsonl")
    write(folder, request(1, "great app", source="server"), name="20261124T130000.000Z-2_bb-000001.jsonl")
    labelled(folder, (1, "negative"))
    found = collect(folder, tmp_path / "f.csv", manifest=MANIFEST)
    assert (found.rows, found.left_out) == (1, {})


def test_of_different_labels_the_last_one_counts_or_none(folder: Path, tmp_path: Path) -> None:
    write(folder, request(4, "lost my  card"))
    labelled(folder, (1, "positive"), (4, "neutral"), (2, "positive"), (2, "negative"))
    found = collect(folder, tmp_path / "f.csv")
    assert read_back(found.path) == {"great app": "positive", "lost my card": "negative"}
    assert found.conflicts == 1
    assert found.examples["conflicts"] == [{"ids": ["r4:0", "r2:0"], "labels": ["neutral", "negative"], "kept": "negative"}]
    found = collect(folder, tmp_path / "f.csv", conflicts="drop")
    assert read_back(found.path) == {"great app": "positive"}
    assert (found.conflicts, found.left_out) == (1, {"labelled differently": 2})


@pytest.mark.parametrize("step", [0.0, -2.0], ids=["in one millisecond", "while the clock is set back"])
def test_the_last_label_is_the_one_that_was_given_last(folder: Path, tmp_path: Path, step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, request(4, "lost my  card"))
    moments = itertools.count(datetime(2026, 5, 4, 12, tzinfo=timezone.utc).timestamp(), step)
    monkeypatch.setattr(feedback_labels, "to_time", lambda seconds: to_time(next(moments)))
    labelled(folder, (4, "neutral"), (2, "negative"))
    assert read_back(collect(folder, tmp_path / "f.csv").path) == {"lost my card": "negative"}
    labelled(folder, (4, "positive"))
    assert read_back(collect(folder, tmp_path / "f.csv").path) == {"lost my  card": "positive"}


@pytest.mark.parametrize("kind", ["file", "run"])
def test_what_training_knows_is_not_told_again_and_what_contradicts_it_is_reported(folder: Path, tmp_path: Path, kind: str) -> None:
    training = tmp_path / "train.csv"
    filler = [(f"filler {number}", ("positive", "negative")[number % 2]) for number in range(60)]
    with training.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), ("great  app", "positive"), ("lost my card", "positive"), *filler])
    if kind == "run":
        data.prepare(config.load(overrides=[f"data.path={training}"]).data, tmp_path / "run" / "data")
    labelled(folder, (1, "positive"), (2, "negative"), (3, "neutral"))
    found = collect(folder, tmp_path / "f.csv", training=[training if kind == "file" else tmp_path / "run"])
    assert read_back(found.path) == {"lost my card": "negative", "hmm, so so": "neutral"}
    assert (found.left_out, found.contradictions) == ({"already in the training set": 1}, 1)
    assert found.examples["contradictions"] == [{"id": "r2:0", "label": "negative", "training": "positive"}]


def test_too_few_rows_are_an_error_that_says_why_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    write(folder, request(4, None))
    labelled(folder, (1, "positive"), (4, "negative"))
    with pytest.raises(RequestError, match=r"1 usable labelled texts, expected at least 5. Left out: 1 text not kept. Label more"):
        collect(folder, tmp_path / "f.csv", minimum=5)
    with pytest.raises(RequestError, match=r"0 usable labelled texts, expected at least 1. Left out: nothing, there is no feedback"):
        collect(tmp_path, tmp_path / "f.csv")
    assert not list(tmp_path.glob("*f.csv*"))


def test_only_labels_of_a_time_and_requests_of_any(folder: Path, tmp_path: Path) -> None:
    given = [("r1:0", "2026-11-24T14:00:00.000+00:00"), ("r2:0", "2026-11-24T15:00:00.000+00:00")]
    write(folder, *({"kind": "feedback", "time": time, "id": id_, "label": "negative", "comment": "", "by": ""} for id_, time in given))
    found = collect(folder, tmp_path / "f.csv", since=datetime(2026, 11, 24, 15, tzinfo=timezone.utc))
    assert read_back(found.path) == {"lost my card": "negative"}


def test_files_without_a_header_get_rows_without_one(folder: Path, tmp_path: Path) -> None:
    settings = {"format": "tsv", "header": "no", "text": "0", "label": "2"}
    manifest = {**MANIFEST, "config": {"data": {**MANIFEST["config"]["data"], **settings, "slice_columns": []}}}
    labelled(folder, (2, "negative"))
    with pytest.raises(ConfigError, match=r"f.csv: is csv, but the model's training config reads tsv alone"):
        collect(folder, tmp_path / "f.csv", manifest=manifest)
    found = collect(folder, tmp_path / "f.tsv", manifest=manifest)
    assert found.path.read_text() == "lost my card\t\tnegative\t1.0\tfeedback\tr2:0\n"
    assert read_back(found.path, **settings) == {"lost my card": "negative"}


def test_pairs_and_several_labels_are_collected(tmp_path: Path) -> None:
    manifest = {
        **MANIFEST,
        "has_pairs": True,
        "task": "multi_label",
        "config": {"data": {"text": "question", "text_pair": "answer", "label": "topics"}},
    }
    folder = write(tmp_path / "j", request(1, "why?", text_pair="because"), request(2, "alone"))
    attach(folder, "r1:0", "positive|negative", manifest=manifest)
    attach(folder, "r2:0", "", manifest=manifest)
    found = collect(folder, tmp_path / "f.jsonl", manifest=manifest)
    assert json.loads(found.path.read_text()) == {
        "question": "why?", "answer": "because", "topics": "negative|positive", "weight": 1.0, "source": "feedback", "id": "r1:0",
    }  # fmt: skip
    assert found.left_out == {"one text, where the model takes two": 1}


# ---- pseudo-labels ----


def test_what_the_model_is_sure_of_becomes_pseudo_labels_that_never_reach_the_test_split(tmp_path: Path) -> None:
    records = [request(number, f"text number {number}", 0.99 if number % 2 else 0.005) for number in range(200)]
    records += [request(300, "unsure", 0.6), request(301, "of an older version", 0.999, version=1), request(302, "corrected", 0.999)]
    folder = labelled(write(tmp_path / "j", *records), (302, "negative"))
    found = collect(folder, tmp_path / "f.csv", manifest=MANIFEST, pseudo_label_above=0.98, pseudo_per_class=1000)
    assert found.pseudo_path == tmp_path / "f.pseudo.csv"
    pseudo = read_back(found.pseudo_path)
    assert not {"unsure", "of an older version", "corrected"} & set(pseudo)
    assert all(label == ("positive" if int(text.split()[-1]) % 2 else "negative") for text, label in pseudo.items())
    assert 110 < found.pseudo_rows < 165  # 70 % of 200
    settings = {"validation_fraction": 0.1, "test_fraction": 0.2, "near_duplicates": "off", "weight": "weight"}
    everything = tmp_path / "all.csv"
    with everything.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label", "weight"), *((record["text"], record["label"], 1) for record in records[:200])])
    corpus = data.prepare(
        config.load(overrides=[f"data.path={everything}", *(f"data.{name}={value}" for name, value in settings.items())]).data
    )
    assert set(pseudo) == set(corpus.train.texts.to_pylist())
    said = runs.read_json(tmp_path / "f.pseudo.csv.provenance")
    assert (said["kind"], said["weighted"], said["rows"]) == ("pseudo", True, found.pseudo_rows)
    capped = collect(folder, tmp_path / "f.csv", manifest=MANIFEST, pseudo_label_above=0.98, pseudo_per_class=7)
    assert capped.pseudo_rows == 14
    again = read_back(tmp_path / "f.pseudo.csv")
    collect(folder, tmp_path / "f.csv", manifest=MANIFEST, pseudo_label_above=0.98, pseudo_per_class=7)
    assert read_back(tmp_path / "f.pseudo.csv") == again
    assert collect(folder, tmp_path / "f.csv", manifest=MANIFEST).pseudo_path is None
    assert not (tmp_path / "f.pseudo.csv").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pseudo_label_above": 0.98}, "pseudo-labels need the manifest of the model"),
        ({"pseudo_label_above": 0.3, "manifest": MANIFEST}, "expected a probability from 0.5 to 1, such as 0.98"),
        ({"conflicts": "first"}, "conflicts 'first': expected last or drop"),
        ({"weight": float("nan")}, "weight nan: expected a number above 0"),
        ({"training": ["train.parquet"]}, "train.parquet: expected the folder of a run, or a .csv, .tsv or .jsonl"),
    ],
)
def test_settings_that_cannot_work(folder: Path, tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        collect(folder, tmp_path / "f.csv", **values)


@pytest.mark.parametrize(
    "text", ["plain", " a\tb \n c", "e\u0301mile", "zero\u200bwidth", "\ufeffbom", "a\x07b", "中文 🙂", "\u2028x", "ﬁ"]
)
def test_the_same_text_means_the_same_as_in_training(text: str) -> None:
    assert text_digest(text) == hashlib.blake2b(normalise(text).encode(), digest_size=16).digest()
    assert text_digest(text, "b") == hashlib.blake2b(f"{normalise(text)}\x1fb".encode(), digest_size=16).digest()
