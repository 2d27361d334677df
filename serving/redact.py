"""Takes identifiers out of a text before it is kept. Frees the journal, and everybody who reads it, from other people's data.

    >>> redact("mail anna@example.com, card 4111 1111 1111 1111, due 2026-11-24")
    'mail [EMAIL], card [CARD], due 2026-11-24'

In: a text in any language, with or without spaces. Out: the same text with tags in place of what was found. Numbers that are no identifiers (amounts,
dates, times, versions, counts) stay, because checksums and shapes decide, not the mere number of digits.

| tag | what | what decides |
|---|---|---|
| `[EMAIL]` | mail addresses, also with `[at]` and `(dot)` | shape |
| `[PHONE]` | `+` or `00` and a country; national forms of North America, China, Japan, Korea, Brazil, India and Europe | shape; or a word like *tel* in front |
| `[CARD]` | 13 to 19 digits, whole or in the usual groups | issuer's first digits and Luhn |
| `[IBAN]` | with or without spaces | the country's length and mod 97 |
| `[ID]` | China's resident id, Spain's DNI and NIE, Italy's codice fiscale, Germany's tax id, France's NIR, Brazil's CPF, India's Aadhaar, Poland's PESEL | checksum |
| `[ID]` | United States' SSN and ITIN, United Kingdom's NINO, Korea's RRN | shape and the ranges in use |
| `[ID]`, `[ACCOUNT]` | a number after a word like *passport* or *account number* | the word |
| `[IP]` | IPv4 and IPv6 addresses | ranges; four small numbers are a version |
| `[CREDENTIALS]` | user and password in a URL, tokens in its query | shape |
| `[NAME]` | names of people: only with `names=`, see `spacy_names` | a model's guess |

**It cannot catch** names and postal addresses (names only as far as a model sees them), user names and handles, birthdays, licence plates, phone
numbers that look like any other number and that no word announces (bare digits, groups of three), ids of other countries or without a form of
their own, identifiers with a typing error (their checksum fails), digits written as words or spread over several messages, mail addresses with
Chinese or Japanese characters in them, and what only the meaning gives away. A redacted text is less dangerous, not harmless: keep it as shortly and
as privately as the original.

**It takes too much** now and then: one in ten 16-digit numbers passes Luhn, and an 11-digit number that begins like a Chinese mobile goes as one.

Every pattern is bounded or starts only where a run of characters starts, so the time grows with the length of the text and not with its square.
"""

from __future__ import annotations

import datetime
import functools
import importlib
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator

from serving.errors import ConfigError

Names = Callable[[str], Iterable[tuple[int, int]]]  # text to (start, end) of each name
Check = Callable[[str], int]  # a candidate to the length of what is to go, 0 for nothing


def redact(text: str, names: Names | None = None) -> str:
    """The text with a tag in place of every identifier found. Redacting the result again changes nothing.

    Args:
        text: any text.
        names: also takes out what this finds, such as `spacy_names()`.
    """
    if _WORTH_A_LOOK.search(text):
        if "://" in text or "=" in text:
            text = _SECRET.sub("[CREDENTIALS]", text)
        text = _without_numbers(_without_addresses(text))
        if "::" in text or text.count(":") > 6:
            text = _IPV6.sub(_ip_or_not, text)
    return text if names is None else _without(text, names(text))


def spacy_names(pipeline: str = "en_core_web_sm") -> Names:
    """Finds names of people with spaCy: a statistical model, which misses some and takes some other words for names.

    Args:
        pipeline: an installed spaCy pipeline of the texts' language, with an entity recogniser.

    Raises:
        ConfigError: spaCy or the pipeline is not installed.
    """
    try:
        spacy = importlib.import_module("spacy")
    except ImportError as error:
        raise ConfigError(
            f"redacting names needs spaCy: pip install spacy && python -m spacy download {pipeline}. Or leave names as they are."
        ) from error
    try:
        model = spacy.load(pipeline)
    except OSError as error:
        raise ConfigError(
            f"spaCy has no pipeline {pipeline!r}: python -m spacy download {pipeline}. Or name one that is installed."
        ) from error

    def find(text: str) -> Iterator[tuple[int, int]]:
        # Longer than spaCy takes at once: cut, so that a name across the cut may be missed.
        for offset in range(0, len(text), _MOST_FOR_SPACY):
            for entity in model(text[offset : offset + _MOST_FOR_SPACY]).ents:
                if entity.label_ in ("PERSON", "PER"):
                    yield offset + entity.start_char, offset + entity.end_char

    return find


_MOST_FOR_SPACY = 100_000


def _without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    parts, end = [], 0
    for start, stop in sorted(spans):
        if start >= end and "[" not in text[start:stop]:  # not a tag that was taken for a name
            parts += [text[end:start], "[NAME]"]
            end = stop
    return "".join([*parts, text[end:]])


def _without_addresses(text: str) -> str:
    """From each `@domain` to the left as far as the name goes: from the left, a long run of letters would be read again and again."""
    parts, end = [], 0
    for match in _AT_DOMAIN.finditer(text):
        start = match.start()
        if match[0][0] not in "@＠" and text[start - 1 : start] == " ":  # name (at) example
            start -= 1
        name = start
        while name > end and text[name - 1] in _LOCAL:
            name -= 1
        if name < start:
            parts += [text[end:name], "[EMAIL]"]
            end = match.end()
    return "".join([*parts, text[end:]])


def _without_numbers(text: str) -> str:
    parts, end, position = [], 0, 0
    while match := _START.search(text, position):
        start = match.start()
        tag, length = _judged(text, start) if match["glued"] is None else _announced(text, start)
        if length:
            parts += [text[end:start], tag]
            position = end = start + length
        else:
            # Not behind the candidate: what was no card may have begun with a year, and the card is still to come.
            position = start + 1
    return "".join([*parts, text[end:]])


def _judged(text: str, start: int) -> tuple[str, int]:
    """The tag and the length of the identifier that begins here; no length if none does."""
    wordlike, first = text[start].isalpha(), 0
    while match := _together(wordlike, first).match(text, start):  # nearly always nothing, and known in one step
        number = int((match.lastgroup or "")[1:])
        tag, _, check = (_WORDLIKE if wordlike else _NUMBERS)[number]
        length = len(match[0]) if check is None else check(match[0])
        if length:
            return tag, length
        first = number + 1
    return _announced(text, start)


def _announced(text: str, start: int) -> tuple[str, int]:
    """A number that the word in front of it gives away."""
    before = text[max(0, start - 40) : start]
    last = before.rstrip()[-1:]
    if not (last.isalpha() or (last and last in ".:：#=＝")):
        return "", 0
    if (value := _ANNOUNCED.match(text, start)) and (word := _ANNOUNCEMENT.search(before)):
        tag = word.lastgroup or ""
        least = {"PHONE": 7, "ID": 5, "ACCOUNT": 6}[tag]
        if len(_bare(value[0])) >= least and not _DATE.match(value[0]):
            return f"[{tag}]", len(value[0])
    return "", 0


# ------------------------------------------------------------------------------------------------------------------------------- checks


def _bare(whole: str) -> str:
    """Digits and capital letters, as ASCII: full-width and Arabic digits count too."""
    code = _BETWEEN.sub("", whole)
    return code.upper() if code.isascii() else "".join(str(int(one)) if one.isdecimal() else one.upper() for one in code)


def _luhn(digits: str) -> bool:
    doubled = digits[-2::-2].translate(_DOUBLED)
    return (sum(map(int, digits[-1::-2])) + sum(map(int, doubled))) % 10 == 0


def _is_card(digits: str) -> bool:
    size, first = len(digits), digits[0]
    if size == 16:
        # 2 begins a card only in these ranges, and the year in a date and time that is written without separators.
        issued = "2200" <= digits[:4] <= "2204" or "2221" <= digits[:4] <= "2720" if first == "2" else first in "3456789"
    elif size in (14, 15):
        issued = first == "3" or digits.startswith(("2131", "1800"))
    else:
        issued = first in {13: "4", 17: "56", 18: "56", 19: "3456"}.get(size, "")
    return issued and _luhn(digits)


def _card(whole: str) -> int:
    digits = _bare(whole)
    if _is_card(digits):
        return len(whole)
    # The last group may be what follows the number, such as its expiry.
    tail = _TAIL.search(whole)
    return tail.start() if tail and _is_card(digits[: 1 - len(tail[0])]) else 0


def _iban(whole: str) -> int:
    compact = ""
    wanted = _IBAN_LENGTHS.get(whole[:2].upper(), 0)
    for index, character in enumerate(whole):
        if not character.isalnum():
            continue
        compact += character.upper()
        if len(compact) == wanted:
            if whole[index + 1 : index + 2].isalnum():
                return 0
            number = "".join(str(int(one, 36)) for one in compact[4:] + compact[:4])
            return index + 1 if int(number) % 97 == 1 else 0
    return 0


def _is_day(year: str, month: str, day: str) -> bool:
    try:
        return 1890 <= datetime.date(int(year), int(month), int(day)).year <= 2100
    except ValueError:
        return False


def _is_chinese(code: str) -> bool:
    if not _is_day(code[6:10], code[10:12], code[12:14]):
        return False
    total = sum(int(digit) * 2 ** (17 - place) for place, digit in enumerate(code[:17]))
    return "10X98765432"[total % 11] == code[17].upper()


def _is_spanish(code: str) -> bool:
    number = {"X": "0", "Y": "1", "Z": "2"}.get(code[0], code[0]) + code[1:-1]
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == code[-1]


def _is_italian(code: str) -> bool:
    characters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    odd = {character: ord(value) - ord("A") for character, value in zip(characters, _CODICE_ODD, strict=True)}
    even = {character: index if index < 10 else index - 10 for index, character in enumerate(characters)}
    total = sum((even if place % 2 else odd)[character] for place, character in enumerate(code[:15]))
    return chr(ord("A") + total % 26) == code[15]


def _is_german(code: str) -> bool:
    counts = sorted((code[:10].count(digit) for digit in set(code[:10])), reverse=True)
    if code[0] == "0" or counts[0] not in (2, 3) or counts[1] > 1:
        return False
    product = 10
    for digit in code[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(code[10])


def _is_french(code: str) -> bool:
    number = int(code[:13].replace("2A", "19").replace("2B", "18"))
    return 97 - number % 97 == int(code[13:])


def _is_brazilian(code: str) -> bool:
    if len(set(code)) == 1:
        return False
    for size in (9, 10):
        total = sum(int(digit) * (size + 1 - place) for place, digit in enumerate(code[:size]))
        if total * 10 % 11 % 10 != int(code[size]):
            return False
    return True


def _is_indian(code: str) -> bool:
    """Verhoeff's checksum."""
    check = 0
    for place, digit in enumerate(reversed(code)):
        check = _PENTAGON[check][_SHUFFLED[place % 8][int(digit)]]
    return check == 0


def _is_polish(code: str) -> bool:
    century = {8: "18", 0: "19", 2: "20", 4: "21"}.get(int(code[2]) // 2 * 2, "")
    total = sum(int(digit) * weight for digit, weight in zip(code, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1), strict=True))
    return total % 10 == 0 and _is_day(century + code[:2], f"{int(code[2]) % 2}{code[3]}", code[4:6])


def _is_korean(code: str) -> bool:
    century = "20" if code[6] in "3478" else "19"
    return _is_day(century + code[:2], code[2:4], code[4:6])


def _coded(check: Callable[[str], bool]) -> Check:
    """A check of the bare code: ASCII digits and capital letters."""

    def judge(whole: str) -> int:
        return len(whole) if check(_bare(whole)) else 0

    return judge


def _international(whole: str) -> int:
    # E.164 has at most 15 digits with the country; the shortest whole ones have 9. A zero-padded number is no phone.
    number = _bare(whole.lower().partition("x")[0].partition("e")[0])  # without an extension
    least, most = (11, 17) if whole.lstrip("(").startswith("00") else (9, 15)
    return len(whole) if least <= len(number) <= most else 0


def _ipv4(whole: str) -> int:
    octets = whole.split(".")
    if any(int(octet) > 255 for octet in octets):
        return 0
    # 1.2.3.4 and 3.10.12.1 are versions; an address nearly always has a part of three digits.
    long = sum(len(octet) >= 2 for octet in octets)
    return len(whole) if any(len(octet) == 3 for octet in octets) or (len(octets[0]) == 2 and long >= 3) else 0


def _ip_or_not(match: re.Match[str]) -> str:
    text = match[0]
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return text
    return "[IP]" if len(text) >= 6 and any(one.isdigit() for one in text) else text


# ------------------------------------------------------------------------------------------------------------------------------ patterns

_S = r"[ .\-\u00a0\u2009\u202f\u2010-\u2013]"  # between the groups of a number
# Letters are ASCII here, so that a number may stand between Chinese characters. A digit with a point in front is the end of a decimal.
_END = r"(?![A-Za-z_\d])(?![.,]\d)"
_NO_MONEY, _NO_UNIT = r"(?<![$€£¥￥])(?<![$€£¥￥] )", r"(?! ?(?:元|円|万|亿|%|％|€|EUR|USD|GBP|CNY|RMB))"
# Where an identifier may begin; `glued` is a number behind a letter, as in QQ123456789.
_START = re.compile(
    rf"(?<![A-Za-z_\d])(?<!\d[.,])(?:\d|[+(](?=[+ \d])|(?:[A-Za-z]{{3}}{_S}?[A-Za-z]{{3}}|[A-Za-z]{{1,2}}){_S}?\d)|(?<=[A-Za-z])(?P<glued>\d{{6}})"
)
_WORTH_A_LOOK = re.compile(r"[\d@＠]|://|[\[({] ?at ?[\])}]", re.IGNORECASE)
_TAIL, _BETWEEN = re.compile(r"\D\d+$"), re.compile(r"[^A-Za-z\d]+")
_EXTENSION = r"(?: ?(?:[xX]|[eE]xt\.?) ?\d{1,6})?"
_DATE = re.compile(r"(?:19|20)\d\d[-/.]\d\d?[-/.]\d")
_DOUBLED = str.maketrans("0123456789", "0246813579")  # twice the digit, and of that the sum of the digits
# Verhoeff: the turns and mirrorings of a pentagon, one after the other; and how digits are shuffled by their place.
_PENTAGON = tuple(tuple(((a + b) if a < 5 else (a - b)) % 5 + 5 * ((a >= 5) != (b >= 5)) for b in range(10)) for a in range(10))
_SHUFFLED = tuple(
    tuple(map(int, row))
    for row in ("0123456789", "1576283094", "5803796142", "8916043527", "9453126870", "4286573901", "2793806415", "7046913258")
)
_CODICE_ODD = "BAFHJNPRTVBAFHJNPRTVCESULDGIMOQKWZYX"  # values of 0-9 and A-Z in odd places, A being 0

_SECRET = re.compile(
    r"(?<=://)[^\s/@:?#]{1,256}:[^\s/@?#]{1,256}(?=@)"
    r"|(?:(?<=[?&]token=)|(?<=[?&]key=)|(?<=[?&]api_key=)|(?<=[?&]apikey=)|(?<=[?&]access_token=)|(?<=[?&]password=)|(?<=[?&]pwd=)|(?<=[?&]secret=)"
    r"|(?<=[?&]sig=)|(?<=[?&]signature=))[^\s&#]{1,4096}",
    re.IGNORECASE,
)
# Letters of addresses: all alphabets, but not the scripts that need no spaces, or the sentence around the address would go with it.
_L = "A-Za-z\\d\u00c0-\u1fff"
_LOCAL = {chr(code) for code in range(0xC0, 0x2000)} | set(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._%+'&*/=?^`{|}~!#$-"
)
_AT_DOMAIN = re.compile(
    rf"(?:[@＠]|[\[({{] ?(?:at|@) ?[\])}}] ?)(?:[{_L}-]+(?:[.．]| ?[\[({{] ?(?:dot|punkt|point) ?[\])}}] ?))+[{_L}-]*[A-Za-z\u00c0-\u1fff]",
    re.IGNORECASE,
)
_IPV6 = re.compile(r"(?<![\w:.])[\dA-F]{0,4}:[\dA-F:]{1,38}[\dA-F](?![\w:.])", re.IGNORECASE)

_PHONE_WORDS = (
    r"(?:tele)?phones?|tel|telefono|teléfono|telefon|téléphone|tél|mobile|móvil|cell(?:ulare)?|handy|call(?: me| us)?|fax|whatsapp|sms|ring"
    r"|contact|llam[ae](?:me)?(?: al)?|联系电话|电话|手机号?|致电|拨打|联系方式|微信|WeChat|QQ"
)
_ID_WORDS = r"ssn|social security|passport|national id|tax id|tin|driver'?s licen[cs]e|身份证|护照|社保|税号"
_ACCOUNT_WORDS = r"account|acct|a/c|card|konto|cuenta|compte|customer id|银行卡|卡号|账号|帐号|账户"
_ANNOUNCEMENT = re.compile(
    rf"(?<![A-Za-z])(?:(?P<PHONE>{_PHONE_WORDS})|(?P<ID>{_ID_WORDS})|(?P<ACCOUNT>{_ACCOUNT_WORDS}))"
    r"(?:[ \t]?(?:numbers?|no|nr|num|is|was|[.:：#=＝]|号码|号|是|为)){0,4}[ \t]?$",
    re.IGNORECASE,
)
_ANNOUNCED = re.compile(r"[+(]{0,2}(?:[A-Za-z]{1,2})?\d(?:[ ().\-/]{0,2}\d){4,18}(?!\d)")

# Of SWIFT's IBAN registry: length, and who has it.
_IBAN_COUNTRIES = {
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
_IBAN_LENGTHS = {country: length for length, countries in _IBAN_COUNTRIES.items() for country in countries.split()}


Rule = tuple[str, "re.Pattern[str]", Check | None]


def _rule(tag: str, pattern: str, check: Check | None = None, end: str = _END, flags: int = 0) -> Rule:
    return f"[{tag}]", re.compile(f"(?:{pattern}){end}", flags), check


@functools.cache
def _together(wordlike: bool, first: int) -> re.Pattern[str]:
    """One pattern for all rules from the given one; the group that matched says which it was. They share their flags."""
    rules = _WORDLIKE if wordlike else _NUMBERS
    named = (f"(?P<_{number}>{rules[number][1].pattern})" for number in range(first, len(rules)))
    return re.compile("|".join(named) or "(?!)", rules[0][1].flags)


# Of two that match at the same place the first one is right: what is longer, or surer. They are asked where `_START` says, and all are bounded.
_WORDLIKE = (
    _rule("IBAN", rf"[A-Z]{{2}}\d\d(?:{_S}?[A-Z\d]){{11,30}}", _iban, "", re.IGNORECASE),
    _rule(
        "ID",
        rf"[A-Z]{{3}}{_S}?[A-Z]{{3}}{_S}?[\dLMNP-V]{{2}}[A-EHLMPRST][\dLMNP-V]{{2}}{_S}?[A-Z][\dLMNP-V]{{3}}[A-Z]",
        _coded(_is_italian),
        flags=re.IGNORECASE,
    ),
    _rule(
        "ID",
        rf"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]{_S}?\d\d{_S}?\d\d{_S}?\d\d{_S}?[A-D]",  # NINO
        flags=re.IGNORECASE,
    ),
    _rule("ID", r"[XYZ]-?\d{7}[- ]?[A-Z]", _coded(_is_spanish), flags=re.IGNORECASE),  # NIE
)
_NUMBERS = (
    _rule("ID", r"\d\d\.?\d{3}\.?\d{3}(?:-?[A-Za-z]| [A-Z])", _coded(_is_spanish)),  # DNI
    _rule("ID", rf"\d{{6}}{_S}?\d{{8}}{_S}?\d{{3}}[\dXx]", _coded(_is_chinese)),
    _rule(
        "CARD",
        rf"\d{{13,19}}|\d{{4}}{_S}\d{{4}}{_S}\d{{4}}{_S}\d{{4}}(?:{_S}\d{{1,3}})?|\d{{4}}{_S}\d{{6}}{_S}\d{{4,5}}|\d{{4}}{_S}\d{{4}}{_S}\d{{5}}"
        rf"|\d{{6}}{_S}\d{{7,13}}|\d{{8}}{_S}\d{{8}}",
        _card,
    ),
    _rule("ID", rf"[12]{_S}?\d\d{_S}?\d\d{_S}?\d[\dABab]{_S}?\d{{3}}{_S}?\d{{3}}{_S}?\d\d", _coded(_is_french)),
    _rule("ID", rf"\d\d{_S}?\d{{3}}{_S}?\d{{3}}{_S}?\d{{3}}", _coded(_is_german)),
    _rule("ID", r"\d{3}\.?\d{3}\.?\d{3}-?\d\d", _coded(_is_brazilian)),
    _rule("ID", rf"[2-9]\d{{3}}{_S}\d{{4}}{_S}\d{{4}}(?!{_S}\d)", _coded(_is_indian)),
    _rule("ID", r"\d{6}-[1-8]\d{6}", _coded(_is_korean)),
    # SSN, and ITIN, which begins with 9.
    _rule("ID", r"(?!000|666|9\d\d[- ](?:[0-4]|6[6-9]|89|93))\d{3}(?P<ssn>[- ])(?!00)\d\d(?P=ssn)(?!0000)\d{4}"),
    _rule("ID", r"\d{11}", _coded(_is_polish)),
    _rule("IP", r"(?<!version )(?<!release )(?<!版本)\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", _ipv4, r"(?![A-Za-z_\d])(?!\.\d)"),
    _rule(
        "PHONE",
        r"(?:(?:\+|00) ?[1-9]|\((?:\+|00)[1-9]\d{0,2}\))(?:[ ().\-/\u00a0\u2010-\u2013]{0,3}\d){7,16}" + _EXTENSION,
        _international,
        r"(?!\d)(?![.,]\d)",
    ),
    _rule("PHONE", rf"{_NO_MONEY}(?:86{_S})?1[3-9]\d(?:{_S}?\d{{4}}){{2}}{_NO_UNIT}"),  # China
    _rule("PHONE", rf"{_NO_MONEY}(?:1[-. ])?\d{{3}}(?P<us>[-. \u2010-\u2013])\d{{3}}(?P=us)\d{{4}}{_EXTENSION}"),
    # A leading zero: Europe, Japan, Korea, Australia, and China's landlines.
    _rule("PHONE", r"0\d{1,4}(?P<zero>[-. /\u2010-\u2013])\d{3,4}(?P=zero)\d{3,4}|0\d{1,4} ?[-/ \u2010-\u2013] ?\d{5,8}(?:-\d{1,4})?"),
    _rule("PHONE", r"0[1-9](?P<two>[ .\-]?)\d\d(?:(?P=two)\d\d){3}|0[1-9]\d{8,10}"),
    # Spain, Italy, India, Brazil, Russia: in these groups no amount is written.
    _rule("PHONE", rf"{_NO_MONEY}(?:[6-9]\d\d \d\d \d\d \d\d|3\d\d[ -]\d{{6,7}}|[6-9]\d{{4}} \d{{5}})"),
    _rule("PHONE", r"[1-9]\d[ -](?!(?:19|20)\d\d-(?:19|20)\d\d)9?\d{4}-\d{4}|8[ -]\d{3}[ -]\d{3}[ -]\d\d[ -]?\d\d|89\d{9}"),
    _rule(
        "PHONE",
        r"(?:[178][- ]?)?\((?!(?:19|20)\d\d\))(?:[1-9]\d{1,4}|0\d{1,4})\)[ .\-]{0,2}\d{3,5}(?:[ .\-]?\d{2,5}){1,2}" + _EXTENSION,
        None,
        r"(?!\d)(?![.,]\d)",
    ),
)
