"""The script a text is mostly written in: the cheapest sign that traffic has changed its language.

In: a text. Out: one of `SCRIPTS`. Export counts a model's own test texts with it, monitoring counts what is asked: the same function, so the two can
be compared. Tells scripts apart, not languages: English and German are both Latin. Imports the standard library only.
"""

from __future__ import annotations

import bisect
import re
import unicodedata

SCRIPTS = ("Latin", "Han", "Cyrillic", "Arabic", "Devanagari", "Hangul", "Kana", "Greek", "Hebrew", "Thai", "other", "none")
LOOKED_AT = 2000  # characters of one text; nobody's script changes after that

# (first, last, script) of the blocks with letters, ascending (Unicode 15, Blocks.txt); letters outside of them are "other".
_BLOCKS = (
    (0x0041, 0x024F, "Latin"), (0x0250, 0x02AF, "Latin"), (0x0370, 0x03FF, "Greek"), (0x0400, 0x052F, "Cyrillic"), (0x0590, 0x05FF, "Hebrew"),
    (0x0600, 0x06FF, "Arabic"), (0x0750, 0x077F, "Arabic"), (0x0870, 0x08FF, "Arabic"), (0x0900, 0x097F, "Devanagari"), (0x0E00, 0x0E7F, "Thai"),
    (0x1100, 0x11FF, "Hangul"), (0x1C80, 0x1C8F, "Cyrillic"), (0x1E00, 0x1EFF, "Latin"), (0x1F00, 0x1FFF, "Greek"), (0x2C60, 0x2C7F, "Latin"),
    (0x2DE0, 0x2DFF, "Cyrillic"), (0x2E80, 0x2FDF, "Han"), (0x3005, 0x3007, "Han"), (0x3040, 0x30FF, "Kana"), (0x3130, 0x318F, "Hangul"),
    (0x31F0, 0x31FF, "Kana"), (0x3400, 0x4DBF, "Han"), (0x4E00, 0x9FFF, "Han"), (0xA640, 0xA69F, "Cyrillic"), (0xA720, 0xA7FF, "Latin"),
    (0xA8E0, 0xA8FF, "Devanagari"), (0xA960, 0xA97F, "Hangul"), (0xAB30, 0xAB6F, "Latin"), (0xAC00, 0xD7FF, "Hangul"), (0xF900, 0xFAFF, "Han"),
    (0xFB00, 0xFB06, "Latin"), (0xFB1D, 0xFB4F, "Hebrew"), (0xFB50, 0xFDFF, "Arabic"), (0xFE70, 0xFEFF, "Arabic"), (0xFF21, 0xFF5A, "Latin"),
    (0xFF66, 0xFF9F, "Kana"), (0xFFA0, 0xFFDC, "Hangul"), (0x1B000, 0x1B16F, "Kana"), (0x20000, 0x323AF, "Han"),
)  # fmt: skip
_FIRSTS = tuple(first for first, _, _ in _BLOCKS)
_ASCII_LETTER = re.compile("[A-Za-z]")
_MARKS = {script: chr(ord("A") + number) for number, script in enumerate(SCRIPTS)}


class _Table(dict[int, str]):
    """Code point -> the mark of its script, filled as characters come: `str.translate` then counts at the speed of C."""

    def __missing__(self, code: int) -> str:
        script = "none"
        if unicodedata.category(chr(code)).startswith("L"):
            place = bisect.bisect_right(_FIRSTS, code) - 1
            script = _BLOCKS[place][2] if place >= 0 and code <= _BLOCKS[place][1] else "other"
        self[code] = _MARKS[script]
        return self[code]


_TABLE = _Table()


def main_script(text: str) -> str:
    """The script of most letters; on a tie the first in `SCRIPTS`.

    | text | script |
    |---|---|
    | no letter at all: empty, digits, emoji | `none` |
    | Japanese, which mixes Kana and Han | `Kana`, from one Kana for ten Han on |
    | letters of any other script | `other` |

    Args:
        text: of any length; the first 2,000 characters are looked at.
    """
    text = text[:LOOKED_AT]
    if text.isascii():
        return "Latin" if _ASCII_LETTER.search(text) else "none"
    marks = text.translate(_TABLE)
    counts = {script: marks.count(mark) for script, mark in _MARKS.items() if script != "none"}
    if counts["Kana"] * 10 >= counts["Han"] and counts["Kana"]:
        counts["Kana"] += counts.pop("Han")
    best = max(counts, key=lambda script: counts[script])
    return best if counts[best] else "none"
