"""Which texts a person should label next. Frees people from reading what the model already knows.

In: a journal. Out: a `Queue`, one entry a text. Refuses nothing; what has no text or no answer is counted. Two passes over the journal: in memory is a
small entry for each text, never the texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from serving.errors import ConfigError
from serving.feedback.labels import Labels, votes
from serving.feedback.texts import kind_of, near_digest, table, text_digest, uncertainty, write_whole
from serving.journal import normalised, read, to_time

DIFFERENT, AGAINST, TWIN = "labelled differently", "one label against the model", "a near-twin has another answer or label"
_REASONS = (DIFFERENT, AGAINST, TWIN)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass
class Queue:
    """Texts worth a label, the most disputed first.

    Attributes:
        items: one dict a text: `id`, `text` (and `text_pair`), `predicted`, `score`, `uncertainty` in [0, 1], `reason`; `label` and `comment` are empty,
            to be filled in.
        counts: what was looked at and what was left out.
    """

    items: list[dict[str, Any]]
    counts: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def render(self) -> str:
        """For people: one line a text."""
        lines = [
            f"{item['id']}  {item['predicted']}  {item['uncertainty']:.2f}  {item['reason']}\n    {item['text'][:120]!r}"
            for item in self.items
        ]
        told = ", ".join(f"{what} {count:,}" for what, count in self.counts.items())
        return "\n".join([*lines, f"{len(self.items)} texts to label ({told})."])

    def write(self, path: str | Path) -> None:
        """As `.jsonl`, or as `.csv` / `.tsv` for a spreadsheet: fill in `label`, save, and give the file to `attach_file`.

        For a spreadsheet, a cell it would take for a formula gets an apostrophe in front: the id says what is labelled, so the text may differ.
        """
        kind = kind_of(Path(path))
        columns = ["id", "text", *(["text_pair"] if any("text_pair" in item for item in self.items) else [])]
        columns += ["predicted", "score", "uncertainty", "reason", "label", "comment"]
        rows = [[item.get(name, "") for name in columns] for item in self.items]
        if kind != "jsonl":
            rows = [[f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell for cell in row] for row in rows]
        write_whole(Path(path), table(kind, columns, rows))


@dataclass(slots=True)
class _Seen:
    """One text over all its records; its last answer counts."""

    id: str = ""
    predicted: str = ""
    uncertainty: float = 0.0
    near: bytes = b""
    labels: list[str] = field(default_factory=list)
    reason: str = "uncertain"


def queue(
    folder: str | Path,
    *,
    count: int = 100,
    by: str = "margin",
    manifest: Mapping[str, Any] | None = None,
    since: datetime | None = None,
    disputed_share: float = 0.5,
) -> Queue:
    """The texts whose label would teach most: disputed ones, then those the model was least certain of.

    | a text | is |
    |---|---|
    | that people labelled differently | disputed |
    | with one label, which is not what the model said | disputed: a second opinion settles it |
    | with labels otherwise | done |
    | without a label, of whose near-twins (the same letters, case aside) one was answered or labelled differently | disputed |
    | any other | as uncertain as its last answer |

    Of near-twins only one is listed.

    Args:
        folder: of the journal.
        count: most texts.
        by: `margin` (between the two most probable labels) or `entropy`.
        manifest: of the model: only its records count, and its labels say what differs.
        since: only texts asked from this time on.
        disputed_share: of `count`, as long as there are enough others.
    """
    if by not in ("margin", "entropy") or count < 1 or not 0 <= disputed_share <= 1:
        raise ConfigError(
            f"by {by!r}, count {count}, disputed share {disputed_share}: expected margin or entropy, 1 or more, 0 to 1. Leave them out for the defaults."
        )
    counts = Counter({"requests": 0, "texts": 0, "disputed": 0, "labelled": 0})
    texts = _texts(Path(folder), by, Labels.of(manifest), (manifest or {}).get("name"), to_time(since.timestamp()) if since else "", counts)
    families: dict[bytes, set[str]] = {}
    for seen in texts.values():
        families.setdefault(seen.near, set()).update(seen.labels or [seen.predicted])
    disputed, uncertain = [], []
    for seen in texts.values():
        dispute = _dispute(seen, families[seen.near])
        seen.reason = dispute or seen.reason
        if dispute:
            disputed.append(seen)
        elif not seen.labels:
            uncertain.append(seen)
    counts.update({"texts": len(texts), "disputed": len(disputed), "labelled": len(texts) - len(disputed) - len(uncertain)})
    chosen = _one_of_each(sorted(disputed, key=lambda one: (_REASONS.index(one.reason), -one.uncertainty, one.id)), count, set())
    others = _one_of_each(sorted(uncertain, key=lambda one: (-one.uncertainty, one.id)), count, {one.near for one in chosen})
    chosen = chosen[: max(round(count * disputed_share), count - len(others))]
    chosen += others[: count - len(chosen)]
    wanted = {one.id for one in chosen}
    found = {
        record["id"]: record for record in read(folder) if record.get("kind") == "request" and record["id"] in wanted and "text" in record
    }
    return Queue(
        [_item(found[one.id], one) for one in chosen if one.id in found], {what: number for what, number in counts.items() if number}
    )


def _texts(folder: Path, by: str, labels: Labels, model: str | None, since: str, counts: Counter[str]) -> dict[bytes, _Seen]:
    given = votes(folder)
    texts: dict[bytes, _Seen] = {}
    for record in read(folder):
        if record.get("kind") != "request" or (model and record.get("model") != model):
            continue
        counts["requests"] += 1
        text, pair, answer = record.get("text"), record.get("text_pair"), record.get("probabilities")
        if not isinstance(text, str):
            counts["without text"] += 1
        elif not answer or not normalised(text):
            counts["without answer"] += 1
        elif record["time"] >= since or record["id"] in given:
            seen = texts.setdefault(text_digest(text, pair), _Seen())
            seen.id, seen.predicted, seen.near = record["id"], labels.parse(record.get("label") or "") or "", near_digest(text, pair)
            seen.uncertainty = uncertainty(list(answer.values()), by, multi=labels.multi)
            # Taken out, because client and server may both have written the record.
            seen.labels += [parsed for vote in given.pop(record["id"], []) if (parsed := labels.parse(vote["label"])) is not None]
    return texts


def _dispute(seen: _Seen, family: set[str]) -> str:
    if len(set(seen.labels)) > 1:
        return DIFFERENT
    if seen.labels:
        return AGAINST if len(seen.labels) == 1 and seen.labels[0] != seen.predicted else ""
    return TWIN if len(family) > 1 else ""


def _one_of_each(ranked: Iterable[_Seen], count: int, taken: set[bytes]) -> list[_Seen]:
    """The first of each family of near-twins: a label for one says most about the others."""
    chosen: list[_Seen] = []
    for seen in ranked:
        if len(chosen) < count and seen.near not in taken:
            taken.add(seen.near)
            chosen.append(seen)
    return chosen


def _item(record: Mapping[str, Any], seen: _Seen) -> dict[str, Any]:
    return {
        "id": record["id"],
        "text": record["text"],
        **({"text_pair": record["text_pair"]} if isinstance(record.get("text_pair"), str) else {}),
        "predicted": record.get("label"),
        "score": record.get("score"),
        "uncertainty": round(seen.uncertainty, 4),
        "reason": seen.reason,
        "label": "",
        "comment": "",
    }
