"""Strings to token ids without TensorFlow: what `tfpipeline.text.Preprocessor` does in the graph, in plain Python, for files that take ids.

In: texts and the settings that the edge file carries. Out: ids, mask and segment ids, lists of int. This is the one place where the house has a
second implementation of cleaning and tokenising, because a phone has neither TensorFlow nor its text ops; it is held to the first by a test over
every Unicode character, the hard strings and random ones. Standard library only, a few microseconds a word.

Known difference: characters that are newer than this Python's Unicode tables (`unicodedata.unidata_version`) or than the graph's are ordinary letters
to the older of the two. No word piece of a published BERT holds one.

| case | what comes out |
|---|---|
| text longer than the longest signature | cut at the end, `[SEP]` kept |
| pair that is too long | the longer text gives way first, token by token |
| word that the vocabulary cannot spell, or of over 400 bytes | one `[UNK]` |
| empty or blank text | `[CLS] [SEP]` |
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tfpipeline.cleaning import EMAIL, ENTITIES, LONGEST_WORD_BYTES, TAG

# RE2, which the graph uses, knows only ASCII letters at `\b`, and only five characters as `\s`; Python's `\w` is RE2's `[\pL\pN_]`.
_BOUNDARY = r"(?-i:(?<=[A-Za-z0-9_])(?![A-Za-z0-9_])|(?<![A-Za-z0-9_])(?=[A-Za-z0-9_]))"
_TAG = re.compile(TAG)
_URL = re.compile(rf"(?i:{_BOUNDARY}(?:https?://|www\.)(?-i:[^\t\n\f\r <>\"'])+)")
_EMAIL = re.compile(EMAIL)
_MENTION = re.compile(r"(^|[^\w@./])@\w+")
_TORN = re.compile(
    rf"(?i:{_BOUNDARY}(ai|are|ca|could|did|do|does|had|has|have|is|might|must|need|ought|sha|should|was|were|wo|would) n't{_BOUNDARY})"
)
_SPACES = re.compile("[\t\n\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
_ASCII_SPACE = "\t\n\v\f\r "
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd]")
_ENTITIES = tuple((re.compile(pattern), replacement) for pattern, replacement in ENTITIES)


class Tokens(NamedTuple):
    """One row, not padded.

    Attributes:
        ids: with `[CLS]` and `[SEP]`.
        types: 1 for the second text.
        full_length: how many there were before the cut.
    """

    ids: list[int]
    types: list[int]
    full_length: int


class _ByCharacter(dict[int, str]):
    """A table for `str.translate` that is filled as characters are met: the whole of Unicode would take a tenth of a second at every start."""

    def __init__(self, rule: Callable[[str], str]) -> None:
        super().__init__()
        self._rule = rule

    def __missing__(self, code: int) -> str:
        self[code] = value = self._rule(chr(code))
        return value


class Tokenizer:
    """See the module's docstring.

    Args:
        vocabulary: the word pieces; the index is the id.
        settings: `text` of the file's description: the switches of `tfpipeline.config.TextConfig` and `lower_case` as a bool.
    """

    def __init__(self, vocabulary: Sequence[str], settings: dict[str, Any]) -> None:
        self._ids = {piece: number for number, piece in enumerate(vocabulary)}
        self._settings = settings
        self.cls_id, self.sep_id, self.pad_id, self.unk_id = (self._ids[token] for token in ("[CLS]", "[SEP]", "[PAD]", "[UNK]"))
        self._longest_piece = max(map(len, vocabulary))
        self._words: dict[str, tuple[int, ...]] = {}
        self._visible = _ByCharacter(_visible)
        self._unmarked = _ByCharacter(_unmarked)
        self._spaced = _ByCharacter(_spaced)
        self._steps = self._cleaning()

    def _cleaning(self) -> list[Callable[[str], str]]:
        """The steps that are switched on, in the order of `Preprocessor._clean_all`; the comments on their order stand there."""
        settings = self._settings
        steps: list[Callable[[str], str]] = []
        if settings["unicode"] != "none":
            steps.append(lambda text: unicodedata.normalize(settings["unicode"], text))
        if settings["strip_html"]:
            steps += [
                lambda text: _TAG.sub(" ", text) if "<" in text else text,
                lambda text: _decode_entities(text) if "&" in text else text,
            ]
        if settings["replace_urls"]:
            steps.append(lambda text: _URL.sub("url", text))
        if settings["replace_emails"]:
            steps.append(lambda text: _EMAIL.sub("email", text) if "@" in text else text)
        if settings["replace_mentions"]:
            steps.append(lambda text: _MENTION.sub(r"\1user", text) if "@" in text else text)
        if settings["strip_control"]:
            steps.append(lambda text: _CONTROL.sub("", text))
        if settings["rejoin_contractions"]:
            steps.append(lambda text: _TORN.sub(r"\1n't", text))
        if settings["stop_words"]:
            words = "|".join(re.escape(word) for word in sorted(settings["stop_words"], key=len, reverse=True))
            pattern = re.compile(rf"(?i:{_BOUNDARY}(?:{words}){_BOUNDARY})")
            steps.append(lambda text: pattern.sub(" ", text))
        if settings["collapse_spaces"]:
            steps.append(lambda text: _SPACES.sub(" ", text).strip(_ASCII_SPACE))
        return steps

    def clean(self, text: str | bytes) -> str:
        """The cleaned text; bytes that are not UTF-8, and halves of surrogate pairs, become U+FFFD."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        elif not text.isascii():
            text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        for step in self._steps:
            text = step(text)
        return text

    def readable(self, text: str | bytes) -> str:
        """Cleaned, and then as BERT's reference tokenizer has it before it splits."""
        cleaned = self.clean(text).translate(self._visible)
        if not self._settings["lower_case"]:
            return cleaned
        if not cleaned.isascii():
            cleaned = unicodedata.normalize("NFD", cleaned).translate(self._unmarked)
        return cleaned.lower()

    def tokenize(self, text: str | bytes) -> list[int]:
        """Ids of one text, without special tokens, not cut."""
        ids: list[int] = []
        for word in self.readable(text).translate(self._spaced).split(" "):
            if word:
                ids += self._words.get(word) or self._spell(word)
        return ids

    def __call__(self, text: str | bytes, text_pair: str | bytes | None, max_length: int) -> Tokens:
        """One row, cut to `max_length`."""
        segments = [self.tokenize(part) for part in (text, text_pair) if part is not None]
        full_length = sum(map(len, segments)) + 1 + len(segments)
        ids, types = [self.cls_id], [0]
        for number, (segment, keep) in enumerate(zip(segments, _kept(segments, max_length), strict=True)):
            ids += [*segment[:keep], self.sep_id]
            types += [number] * (keep + 1)
        return Tokens(ids, types, full_length)

    def _spell(self, word: str) -> tuple[int, ...]:
        """Longest piece first, as in BERT; remembered, because a few thousand words make up most texts."""
        found = self._longest_first(word)
        if len(self._words) < 100_000:
            self._words[word] = found
        return found

    def _longest_first(self, word: str) -> tuple[int, ...]:
        if len(word.encode()) > LONGEST_WORD_BYTES:
            return (self.unk_id,)
        ids: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(min(len(word), start + self._longest_piece), start, -1):
                piece = self._ids.get(prefix + word[start:end])
                if piece is not None:
                    break
            else:
                return (self.unk_id,)
            ids.append(piece)
            start = end
        return tuple(ids)


def _kept(segments: list[list[int]], max_length: int) -> list[int]:
    """How many pieces of each text stay; see `Preprocessor._kept_lengths`."""
    budget = max_length - 1 - len(segments)
    if len(segments) == 1:
        return [min(len(segments[0]), budget)]
    first, second = map(len, segments)
    half = (budget + 1) // 2 if first > second else budget // 2
    keep_first = min(first, max(budget - second, half))
    return [keep_first, min(second, budget - keep_first)]


def _decode_entities(text: str) -> str:
    for pattern, replacement in _ENTITIES:
        text = pattern.sub(replacement, text)
    return text


def _visible(character: str) -> str:
    if character in "\t\n\r":
        return character
    return "" if unicodedata.category(character) in ("Cc", "Cf", "Co") or character == "\ufffd" else character


def _unmarked(character: str) -> str:
    return "" if unicodedata.category(character) == "Mn" else character


def _spaced(character: str) -> str:
    """Blanks part words; punctuation and Chinese characters are words of their own."""
    code, category = ord(character), unicodedata.category(character)
    if character in "\t\n\r" or category in ("Zs", "Zl", "Zp"):
        return " "
    punctuation = category.startswith("P") or 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return f" {character} " if punctuation or any(first <= code <= last for first, last in _CHINESE) else character


# BERT's own list (google-research/bert, tokenization.py).
_CHINESE = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
