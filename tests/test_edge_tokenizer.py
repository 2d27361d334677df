"""The edge's own cleaning and tokenising equals the graph's, character by character and on anything that a user can type."""

from __future__ import annotations

import unicodedata
from dataclasses import asdict, replace
from typing import Any

import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.test_text import HARD, UNCLEANED
from tfpipeline import text
from tfpipeline.config import TextConfig
from tfpipeline.edge.tokenizer import Tokenizer

LETTERS = [chr(code) for code in range(33, 127)] + list("éüßñøłabcабвγδ中文日本，。！")
PIECES = [
    *dict.fromkeys([*LETTERS, *(f"##{letter}" for letter in LETTERS), "the", "app", "##ing", "user", "url", "email", "don", "not", "n't"])
]
VOCABULARY = [*text.SPECIAL_TOKENS, *PIECES]
BARE = replace(UNCLEANED, max_length=TextConfig().max_length)
CONFIGS = {
    "as delivered": (TextConfig(), True),
    "cased": (TextConfig(), False),
    "folding": (TextConfig(unicode="NFKC"), True),
    "nothing cleaned": (BARE, True),
    "nothing cleaned, cased": (BARE, False),
    "everything": (TextConfig(rejoin_contractions=True, stop_words=("not", "the", "c++")), True),
}
# What people type, and what breaks tokenizers: taken apart and put together again at random.
FRAGMENTS = [
    "the app", "don't", "DO N'T", "sha n't", "a@b.co", "x.y+z@mail.example.org", "@user", "hi@", "@@", "https://a.b/c?d=e", "WWW.x", "http://", "httpſ://a",
    "<br>", "<b class='x'>", "</p>", "<3", "a < b", "<!-- c -->", "<a" + "x" * 501 + ">", "&amp;", "&amp;lt;", "&#39;", "&#x1F600;", "&nbsp;", "&eacute;",
    "&", ";", "\t", "\n", "\r\n", "\v", "\f", "\x00", "\x1f", "\x7f", "\x85", "\xa0", "\u200b", "\u2028", "\u3000", "\ufeff", "\ufffd", "\ue000",
    "é", "e\u0301", "ﬁ", "Ａ", "İ", "ẞ", "Σ", "ΑΣ", "ς", "中文", "日本語。", "한국어", "ไทย", "नमस्ते", "🙂", "👩‍👩‍👧", "a" * 401, "я" * 201, "[MASK]", "##s", "c++",
]  # fmt: skip


def _pair(config: TextConfig, lower_case: bool) -> tuple[text.Preprocessor, Tokenizer]:
    settings_of_file = {**asdict(config), "lower_case": lower_case}
    return text.Preprocessor(VOCABULARY, config, lower_case), Tokenizer(VOCABULARY, settings_of_file)


def _differences(config: TextConfig, lower_case: bool, strings: list[str]) -> dict[str, Any]:
    graph, edge = _pair(config, lower_case)
    theirs = graph.tokenize(tf.constant(strings)).to_list()
    return {string: (ours, ids) for string, ids in zip(strings, theirs, strict=True) if (ours := edge.tokenize(string)) != ids}


@pytest.mark.parametrize("name", CONFIGS)
def test_hard_strings_give_the_same_ids(name: str) -> None:
    assert not _differences(*CONFIGS[name], [*HARD, *FRAGMENTS])


@pytest.mark.parametrize("name", ["as delivered", "nothing cleaned", "nothing cleaned, cased", "folding"])
def test_every_character_is_treated_as_in_the_graph(name: str) -> None:
    """All assigned characters outside the large, uniform blocks, and every 50th of those; between letters, where dropping, parting and keeping differ."""
    codes = [
        code
        for code in range(0x30000)
        if unicodedata.category(chr(code)) not in ("Cs", "Cn", "Co")
        and (not (0x3400 <= code <= 0x9FFF or 0xAC00 <= code <= 0xD7A3 or 0x17000 <= code <= 0x18D08 or code >= 0x1B170) or code % 50 == 0)
    ]
    assert len(codes) > 25_000
    different: dict[str, Any] = {}
    for start in range(0, len(codes), 8192):
        different |= _differences(*CONFIGS[name], [f"a{chr(code)}b {chr(code)}" for code in codes[start : start + 8192]])
    assert not different, [f"U+{ord(string[1]):04X}" for string in different][:50]


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=60)
@given(st.lists(st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=6)), max_size=8), min_size=20, max_size=40))
@example([["<", "b", ">", "@", "é"], []])
def test_random_strings_give_the_same_ids(name: str, drawn: list[list[str]]) -> None:
    """Some thousands of strings a setting, whole batches at a time."""
    known = [
        "".join(character for part in parts for character in part if unicodedata.category(character) not in ("Cs", "Cn")) for parts in drawn
    ]
    assert not _differences(*CONFIGS[name], [*known, *(" ".join(known[i : i + 3]) for i in range(0, len(known), 3))])


def test_rows_and_pairs_are_packed_and_cut_as_in_the_graph() -> None:
    config = TextConfig(max_length=12)
    graph, edge = _pair(config, True)
    texts = ["", "the app", "a b c d e f g h i j k l m n", "a b c d e f g h i j k l m n", "a b", "a b c d e"]
    pairs = ["", "a", "x", "n m l k j i h g f e d c b a", "a b c d e f g h i j k l m n", "a b c d e f"]
    for partners in (None, pairs):
        columns = [tf.constant(texts)] + ([] if partners is None else [tf.constant(partners)])
        packed = {name: value.numpy() for name, value in graph(*columns).items()}
        for row, string in enumerate(texts):
            tokens = edge(string, None if partners is None else partners[row], 12)
            length = int(packed["attention_mask"][row].sum())
            assert tokens.ids == packed["input_ids"][row][:length].tolist()
            assert tokens.types == packed["token_type_ids"][row][:length].tolist()
        counted = graph.count(*columns)[0].numpy()
        assert [
            edge(string, None if partners is None else partners[row], 12).full_length for row, string in enumerate(texts)
        ] == counted.tolist()


def test_bytes_and_halves_of_surrogates_are_replaced_not_refused() -> None:
    graph, edge = _pair(replace(TextConfig()), True)
    assert (
        edge.tokenize("a\ud83db")
        == edge.tokenize("a\ufffdb")
        == edge.tokenize(b"a\xff\xfeb")
        == graph.tokenize(tf.constant([b"a\xff\xfeb"])).to_list()[0]
    )
