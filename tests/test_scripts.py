"""The script of a text."""

from __future__ import annotations

import pytest

from serving.scripts import LOOKED_AT, SCRIPTS, main_script


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("the app lost my payment", "Latin"),
        ("Größe, naïve, Łódź", "Latin"),
        ("ｆｕｌｌ　ｗｉｄｔｈ", "Latin"),
        ("приложение не работает", "Cyrillic"),
        ("房间很干净", "Han"),
        ("𠀋𠀋", "Han"),
        ("これは日本語です", "Kana"),
        ("東京都庁舎前交差点に着", "Kana"),  # one Kana for ten Han: Japanese
        ("中文里偶尔出现的一个假名字母の", "Han"),  # one for more than ten is a quotation
        ("앱이 느려요", "Hangul"),
        ("التطبيق لا يعمل", "Arabic"),
        ("האפליקציה איטית", "Hebrew"),
        ("ऐप धीमा है", "Devanagari"),
        ("η εφαρμογή", "Greek"),
        ("แอปช้า", "Thai"),
        ("ამხანაგო", "other"),
        ("Ω app", "Latin"),
        ("", "none"),
        ("12:30 😤 !!", "none"),
        ("½ ² ° ×", "none"),
        ("\ud800", "none"),
        ("a房", "Latin"),  # a tie goes to the first in the list
    ],
)
def test_the_script_of_most_letters(text: str, script: str) -> None:
    assert main_script(text) == script
    assert script in SCRIPTS


def test_only_the_beginning_of_a_long_text_is_looked_at() -> None:
    assert main_script("a" * LOOKED_AT + "房" * 10 * LOOKED_AT) == "Latin"
