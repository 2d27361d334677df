"""What a person wants to know about the data before training: as a dict, and as text for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_BAR = 40


def describe_split(rows: int, counts: Counter[str], labels: Sequence[str], sizes: Sequence[int]) -> dict[str, Any]:
    """Rows, label balance and text sizes (bytes) of one split; sizes may be those of its first 100,000 rows."""
    described: dict[str, Any] = {"rows": rows, "labels": {label: int(counts.get(label, 0)) for label in labels}}
    if sizes:
        described["text_bytes"] = _quantiles(np.array(sizes))
    return described


def add_token_statistics(
    report: dict[str, Any], lengths: Mapping[str, npt.NDArray[Any]], unknown: Mapping[str, npt.NDArray[Any]], max_length: int
) -> None:
    """Completes the report with what only the tokenizer knows.

    Args:
        report: of `prepare`; gets a key `tokens`.
        lengths: true token counts of each split, before any cut, int `[rows]`.
        unknown: `[UNK]` pieces of each text, int `[rows]`.
        max_length: the configured length.
    """
    tokens: dict[str, Any] = {"max_length": max_length, "splits": {}}
    for name, counted in lengths.items():
        if not len(counted):
            continue
        pieces = int(np.maximum(counted - 2, 0).sum())
        tokens["splits"][name] = {
            **_quantiles(counted),
            "truncated_share": round(float((counted > max_length).mean()), 6),
            "unknown_share": round(float(unknown[name].sum() / max(1, pieces)), 6),
        }
    every = np.concatenate([counted for counted in lengths.values() if len(counted)])
    edges = [2, 9, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513]
    counts = np.histogram(every, bins=[*edges, max(int(every.max()) + 1, edges[-1] + 1)])[0]
    tokens["histogram"] = [
        {"from": low, "to": high - 1 if high else None, "rows": int(count)}
        for low, high, count in zip(edges, [*edges[1:], 0], counts, strict=True)
    ]
    report["tokens"] = tokens


def render(report: Mapping[str, Any]) -> str:
    """The report as text, at most 100 columns wide where the texts allow it."""
    lines = [f"Rows read: {report['rows_read']:,}"]
    for reason, count in report["rejects"]["reasons"].items():
        lines.append(f"  set aside: {count:,} x {reason}")
    for reject in report["rejects"]["examples"][:5]:
        lines.append(f"    {reject['source']}: {reject['reason']}: {_cut(str(reject['received']), 70)}")
    duplicates, conflicts, near = report["duplicates"]["rows"], report["conflicts"], report["near_duplicates"]
    lines.append(f"Exact duplicates removed: {duplicates:,}")
    lines.append(f"Texts with conflicting labels: {conflicts['texts']:,} (the first label is kept)")
    for conflict in conflicts["examples"][:5]:
        lines.append(f"    {', '.join(conflict['sources'])}: {' / '.join(map(str, conflict['labels']))}: {_cut(conflict['text'], 60)}")
    if near["searched"] == "off":
        lines.append("Near-duplicates: not searched (data.near_duplicates = off)")
    else:
        part = f"a sample of {near['rows_searched']:,} of {near['rows_total']:,} rows" if near["searched"] == "sample" else "all rows"
        lines.append(
            f"Near-duplicates ({part} searched): {near['groups']:,} groups, {near['rows']:,} rows; {near['rows_moved_to_train']:,} moved to train"
        )
        for group in near["examples"][:3]:
            lines.append(f"    {' ~ '.join(member['source'] for member in group)}: {_cut(group[0]['text'], 60)}")
    for name, leak in report["leakage"].items():
        left = " (given splits are left as they are)" if leak["rows"] else ""
        lines.append(f"Leakage: {leak['rows']:,} {name} texts are also in {' or '.join(leak['also_in'])}{left}")
        lines += [f"    {example['source']} = {example['also']}" for example in leak["examples"][:3]]
        if near["searched"] != "off":
            lines.append(f"Leakage: {leak['near']['rows']:,} {name} texts have a near-duplicate in train")
        lines += [f"    {example['source']} ~ {example['also']}" for example in leak["near"]["examples"][:3]]
    if report.get("absent_from_training"):
        lines.append(f"Labels without a training row: {', '.join(report['absent_from_training'])}")
    lines += ["", *_split_table(report)]
    if "tokens" in report:
        lines += ["", *_token_lines(report["tokens"])]
    return "\n".join(lines)


def _split_table(report: Mapping[str, Any]) -> list[str]:
    splits = report["splits"]
    width = max([5, *(min(len(label), 30) for label in report["labels"])])
    lines = [f"{'':{width}}" + "".join(f"{name:>18}" for name in splits)]
    lines.append(f"{'rows':{width}}" + "".join(f"{split['rows']:>18,}" for split in splits.values()))
    for label in report["labels"][:30]:
        cells = []
        for split in splits.values():
            count = split["labels"][label]
            cells.append(f"{count:,} ({100 * count / max(1, split['rows']):4.1f} %)")
        lines.append(f"{_cut(label, 30):{width}}" + "".join(f"{cell:>18}" for cell in cells))
    if len(report["labels"]) > 30:
        lines.append(f"... and {len(report['labels']) - 30} more labels")
    return lines


def _token_lines(tokens: Mapping[str, Any]) -> list[str]:
    lines = [f"Tokens a text (with [CLS] and [SEP]; the model sees {tokens['max_length']})"]
    rows = tokens["histogram"]
    while rows and not rows[-1]["rows"]:
        rows = rows[:-1]
    most = max([1, *(row["rows"] for row in rows)])
    for row in rows:
        span = f"{row['from']}-{row['to']}" if row["to"] else f"{row['from']}+"
        bar = "#" * max(round(_BAR * row["rows"] / most), 1 if row["rows"] else 0)
        lines.append(f"  {span:>8} {row['rows']:>9,} {bar}")
    for name, split in tokens["splits"].items():
        lines.append(
            f"  {name}: median {split['median']}, 95 % under {split['p95']}, longest {split['max']}; "
            f"cut off {100 * split['truncated_share']:.2f} %, unknown pieces {100 * split['unknown_share']:.3f} %"
        )
    return lines


def _quantiles(values: npt.NDArray[Any]) -> dict[str, int]:
    middle, high = np.quantile(values, [0.5, 0.95])
    return {"min": int(values.min()), "median": int(middle), "p95": int(high), "max": int(values.max())}


def _cut(text: str, width: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"
