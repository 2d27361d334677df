"""The sample corpus is what its data card says."""

from __future__ import annotations

import collections
import csv
import re
from importlib import resources

from tfpipeline import config, data

ROWS = list(
    csv.DictReader((resources.files("tfpipeline") / "samples" / "bank_feedback.csv").read_text(encoding="utf-8").splitlines(keepends=True))
)


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)} or {tuple(words) or (text,)}


def test_at_least_1200_different_messages_in_three_labels_and_seven_topics() -> None:
    assert len({row["text"] for row in ROWS}) >= 1200
    assert {row["label"] for row in ROWS} == {"negative", "neutral", "positive"}
    assert {row["topic"] for row in ROWS} == {"app", "cards", "transfers", "loans", "branches", "staff", "fees"}
    counts = collections.Counter(row["label"] for row in ROWS)
    assert min(counts.values()) > len(ROWS) / 4


def test_no_two_messages_come_from_one_template() -> None:
    """No two different texts share more than 70 % of the smaller one's 3-word shingles."""
    texts = sorted({row["text"] for row in ROWS})
    sets = [_shingles(text) for text in texts]
    holders = collections.defaultdict(list)
    worst = (0.0, "", "")
    for number, parts in enumerate(sets):
        shared = collections.Counter(other for part in parts for other in holders[part])
        for other, count in shared.items():
            worst = max(worst, (count / min(len(parts), len(sets[other])), texts[number], texts[other]))
        for part in parts:
            holders[part].append(number)
    assert worst[0] <= 0.7, worst


def test_the_mess_of_real_life_is_there() -> None:
    texts = [row["text"] for row in ROWS]
    kinds = {
        "emoji": r"[\U0001F300-\U0001FAFF☀❤☕]",
        "entities": r"&(?:amp|lt|gt|quot|#39);",
        "tags": r"<(?:br|b|i)>",
        "accents": r"[À-ſ]",
        "shouting": r"\b[A-Z]{4,}(?: [A-Z']{2,}){2,}",
        "Cyrillic": r"[Ѐ-ӿ]",
        "Chinese": r"[一-鿿]",
        "Arabic": r"[؀-ۿ]",
        "Greek": r"[Ͱ-Ͽ]",
        "links": r"https?://",
        "mentions": r"@\w+",
        "line breaks": r"\n",
    }
    missing = [kind for kind, pattern in kinds.items() if not any(re.search(pattern, text) for text in texts)]
    assert not missing
    assert max(len(text.split()) for text in texts) > 400


def test_the_data_report_finds_what_was_hidden() -> None:
    report = data.prepare(config.load("bank").data).report
    assert report["rows_read"] == len(ROWS)
    assert report["duplicates"]["rows"] == len(ROWS) - len({row["text"] for row in ROWS}) == 7
    assert report["conflicts"]["texts"] == 2
    assert report["splits"]["train"]["text_bytes"]["max"] > 2500
    text = data.render(report)
    assert "Exact duplicates removed: 7" in text
    assert "Texts with conflicting labels: 2 (the first label is kept)" in text
