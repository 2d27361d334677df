"""What does a journal cost a request, and what does redaction find and leave?

python benchmarks/journal.py [latency] [redaction] [disk] [--calls 2000] [--rounds 5]

`latency`: a server in a process of its own answers every request with the same bytes. Two clients ask it over loopback in turns, one with a journal
that keeps every request with its redacted text, one without; the difference of the medians is what the journal adds. Wanted: < 0.1 ms. The 99th
percentiles say what the writing thread takes now and then.
`redaction`: 2,000 made-up identifiers in sentences of several languages, and 2,000 numbers that identify nobody, from a seed. Wanted: >= 99 % of the
former wholly gone, < 0.5 % of the latter touched. The generator knows each identifier's own rules and shares no code with what is measured.
`disk`: records a second through the writing thread, and 1,000,000 records read back.

It does not show: real users' spelling (the identifiers are well-formed), names and addresses (not taken out), several threads, a slow disk.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

SEED = 20261124
COUNT = 2000


class Sample(NamedTuple):
    """`before + value + after` is the text."""

    kind: str
    before: str
    value: str
    after: str

    @property
    def text(self) -> str:
        return self.before + self.value + self.after


# ------------------------------------------------------------------------------------------------------------------- made-up identifiers

PHONES = (
    "+44 20 #### ####", "+1 (###) ###-####", "+1-###-###-####", "+86 1## #### ####", "+861##########"[:14], "+49 30 ########", "+49 151 ########", "+33 6 ## ## ## ##",
    "+34 6## ### ###", "+81 90-####-####", "+55 11 9####-####", "+91 9#### #####", "0044 20 #### ####", "+61 4## ### ###", "+7 (9##) ###-##-##", "+358 40 #######",
    "(###) ###-####", "###-###-####", "###.###.####", "1-800-###-####", "1-###-###-####", "138########", "15# #### ####", "186-####-####", "010-########", "0755-########",
    "020 7### ####", "07### ######", "07#########", "0161 ### ####", "06 ## ## ## ##", "01.##.##.##.##", "030 ########", "0151 ########", "089/#######", "090-####-####", "03-####-####",
    "04## ### ###", "6## ## ## ##", "347 #######", "(11) 9####-####", "98### #####", "8 (9##) ###-##-##",
)  # fmt: skip
WORDS = (
    "anna",
    "li.wei",
    "j.smith",
    "o'neill",
    "support+42",
    "maría.lópez",
    "müller",
    "x_1988",
    "hans-peter",
    "zhang.san",
    "ivan.petrov",
    "k9",
)
HOSTS = ("example.com", "mail.example.co.uk", "bank.example", "qq.com", "example-shop.de", "exámple.es", "uni.example.edu.cn", "163.com")
AROUND = (
    ("please contact me at ", " today"), ("My data: ", "."), ("", " is what I gave you"), ("I sent it twice (", ") and nobody answered"), ("Mein Konto, ", ", ist gesperrt"),
    ("Escríbanme: ", ", gracias"), ("我的信息是", "，请处理"), ("请联系", "谢谢"), ("お客様情報：", "です"), ("c'est ", " !"), ("Refund to ", "\nThanks"), ("\"", "\""), ("on 24.11.2026 I gave ", " to the clerk at 13:05"),
)  # fmt: skip


def _filled(form: str, draw: random.Random) -> str:
    """Every # a digit; the first after a bracket, a space or at the start is no 0 or 1, as in area codes."""
    made = ""
    for index, character in enumerate(form):
        low = 2 if not form[:index].strip("+1- (") else 0
        made += str(draw.randint(low, 9)) if character == "#" else character
    return made


def _with_luhn(body: str) -> str:
    for check in "0123456789":
        total = 0
        for place, digit in enumerate((body + check)[::-1]):
            value = int(digit) << (place & 1)
            total += value % 10 + value // 10
        if total % 10 == 0:
            return body + check
    raise AssertionError


def card(draw: random.Random) -> str:
    prefix, size = draw.choice(
        (
            ("4", 16),
            ("51", 16),
            ("55", 16),
            ("2221", 16),
            ("34", 15),
            ("37", 15),
            ("6011", 16),
            ("62", 16),
            ("62", 19),
            ("3530", 16),
            ("36", 14),
            ("4", 13),
        )
    )
    digits = _with_luhn(prefix + "".join(str(draw.randint(0, 9)) for _ in range(size - len(prefix) - 1)))
    groups = {16: (4, 4, 4, 4), 15: (4, 6, 5), 14: (4, 6, 4), 19: (4, 4, 4, 4, 3), 13: (4, 4, 5)}[size]
    separator, parts, start = draw.choice(("", " ", "-")), [], 0
    for group in groups:
        parts.append(digits[start : start + group])
        start += group
    return separator.join(parts)


def iban(draw: random.Random) -> str:
    country, form = draw.choice(
        (
            ("DE", "#" * 18),
            ("GB", "AAAA" + "#" * 14),
            ("FR", "#" * 23),
            ("ES", "#" * 20),
            ("IT", "A" + "#" * 22),
            ("NL", "AAAA" + "#" * 10),
            ("CH", "#" * 17),
            ("PL", "#" * 24),
            ("NO", "#" * 11),
        )
    )
    body = "".join(str(draw.randint(0, 9)) if one == "#" else draw.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for one in form)
    number = "".join(one if one.isdigit() else str(ord(one) - 55) for one in body + country + "00")
    whole = f"{country}{98 - int(number) % 97:02}{body}"
    return whole if draw.random() < 0.5 else " ".join(whole[start : start + 4] for start in range(0, len(whole), 4))


def _day(draw: random.Random, low: int = 1940, high: int = 2005) -> date:
    return date(low, 1, 1) + timedelta(days=draw.randrange((high - low) * 365))


def chinese(draw: random.Random) -> str:
    body = f"{draw.choice(('110101', '310115', '440305', '510107', '330106'))}{_day(draw):%Y%m%d}{draw.randint(0, 999):03}"
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return body + "10X98765432"[sum(int(a) * b for a, b in zip(body, weights, strict=True)) % 11]


def spanish(draw: random.Random) -> str:
    letters = "TRWAGMYFPDXBNJZSQVHLCKE"
    if draw.random() < 0.3:
        kind, number = draw.randint(0, 2), draw.randint(0, 9_999_999)
        return f"{'XYZ'[kind]}{draw.choice(('', '-'))}{number:07}{draw.choice(('', '-'))}{letters[(kind * 10_000_000 + number) % 23]}"
    number = draw.randint(10_000_000, 99_999_999)
    return f"{number}{draw.choice(('', '-'))}{letters[number % 23]}"


def italian(draw: random.Random) -> str:
    letters = "".join(draw.choice("BCDFGLMNPRSTVZ") for _ in range(6))
    day = _day(draw)
    body = f"{letters}{day:%y}{'ABCDEHLMPRST'[day.month - 1]}{day.day + draw.choice((0, 40)):02}{draw.choice('ABCDEFGHIL')}{draw.randint(1, 999):03}"
    odd = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
    total = 0
    for place, one in enumerate(body):
        value = int(one) if one.isdigit() else ord(one) - 65
        total += value if place % 2 else odd[value]
    return body + chr(65 + total % 26)


def german(draw: random.Random) -> str:
    digits = list("0123456789")
    draw.shuffle(digits)
    digits[draw.randrange(1, 10)] = digits[0]
    if digits[0] == "0":
        digits = ["1" if one == "0" else "0" if one == "1" else one for one in digits]
    sum_, product = 0, 10
    for one in digits:
        sum_ = (int(one) + product) % 10
        product = (10 if sum_ == 0 else sum_) * 2 % 11
    whole = "".join(digits) + str(0 if 11 - product == 10 else 11 - product)
    return whole if draw.random() < 0.5 else f"{whole[:2]} {whole[2:5]} {whole[5:8]} {whole[8:]}"


def french(draw: random.Random) -> str:
    day = _day(draw)
    body = f"{draw.choice('12')}{day:%y}{day:%m}{draw.randint(1, 95):02}{draw.randint(1, 900):03}{draw.randint(1, 999):03}"
    whole = f"{body}{97 - int(body) % 97:02}"
    return whole if draw.random() < 0.5 else f"{whole[0]} {whole[1:3]} {whole[3:5]} {whole[5:7]} {whole[7:10]} {whole[10:13]} {whole[13:]}"


def brazilian(draw: random.Random) -> str:
    digits = [draw.randint(0, 9) for _ in range(9)]
    for size in (10, 11):
        rest = sum(digit * weight for digit, weight in zip(digits, range(size, 1, -1), strict=True)) % 11
        digits.append(0 if rest < 2 else 11 - rest)
    whole = "".join(map(str, digits))
    return f"{whole[:3]}.{whole[3:6]}.{whole[6:9]}-{whole[9:]}" if draw.random() < 0.8 else whole


def american(draw: random.Random) -> str:
    area = draw.choice([one for one in range(1, 900) if one != 666])
    return f"{area:03}-{draw.randint(1, 99):02}-{draw.randint(1, 9999):04}"


def british(draw: random.Random) -> str:
    pair = draw.choice(("AB", "CE", "JK", "PR", "SW", "YZ", "HM", "LA"))
    digits = f"{draw.randint(0, 999_999):06}"
    last = draw.choice("ABCD")
    return f"{pair}{digits}{last}" if draw.random() < 0.5 else f"{pair} {digits[:2]} {digits[2:4]} {digits[4:]} {last}"


def korean(draw: random.Random) -> str:
    return f"{_day(draw):%y%m%d}-{draw.randint(1, 2)}{draw.randint(0, 999_999):06}"


def indian(draw: random.Random) -> str:
    multiply = (
        "0123456789",
        "1234067895",
        "2340178956",
        "3401289567",
        "4012395678",
        "5987604321",
        "6598710432",
        "7659821043",
        "8765932104",
        "9876543210",
    )
    permute = ("0123456789", "1576283094", "5803796142", "8916043527", "9453126870", "4286573901", "2793806415", "7046913258")
    body = str(draw.randint(2, 9)) + "".join(str(draw.randint(0, 9)) for _ in range(10))
    check = 0
    for place, digit in enumerate(reversed(body), 1):
        check = int(multiply[check][int(permute[place % 8][int(digit)])])
    whole = body + "0432156789"[check]
    return f"{whole[:4]} {whole[4:8]} {whole[8:]}"


def mail(draw: random.Random) -> str:
    return f"{draw.choice(WORDS)}{draw.choice(('', str(draw.randint(1, 999))))}@{draw.choice(HOSTS)}"


def phone(draw: random.Random) -> str:
    return _filled(draw.choice(PHONES), draw)


KINDS: dict[str, tuple[int, Callable[[random.Random], str]]] = {
    "mail": (5, mail), "phone": (6, phone), "card": (4, card), "iban": (3, iban), "chinese": (2, chinese), "spanish": (1, spanish), "italian": (1, italian),
    "german": (1, german), "french": (1, french), "brazilian": (1, brazilian), "american": (1, american), "british": (1, british), "korean": (1, korean), "indian": (1, indian),
}  # fmt: skip


def identifiers(count: int = COUNT, seed: int = SEED) -> list[Sample]:
    """Made-up identifiers, each in a sentence."""
    draw = random.Random(seed)
    kinds = [kind for kind, (weight, _) in KINDS.items() for _ in range(weight)]
    made = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        made.append(Sample(kind, *(lambda around, value: (around[0], value, around[1]))(draw.choice(AROUND), KINDS[kind][1](draw))))
    return made


# ------------------------------------------------------------------------------------------------------------------------ harmless numbers


def _harmless(draw: random.Random) -> tuple[str, str]:
    n, day = draw.randint, _day(draw, 1990, 2030)
    amount = n(1, 10 ** n(2, 10))
    forms: tuple[tuple[str, str], ...] = (
        ("amount", f"${amount:,}.{n(0, 99):02}"), ("amount", f"{amount:,}".replace(",", ".") + f",{n(0, 99):02} €"), ("amount", f"{amount:,}".replace(",", " ") + " EUR"),
        ("amount", f"CHF {amount:,}".replace(",", "'")), ("amount", f"¥{amount}"), ("amount", f"{amount}元"), ("amount", f"{n(1, 999)}万元"), ("amount", f"-{amount / 100:.2f}"),
        ("date", f"{day:%Y-%m-%d}"), ("date", f"{day:%d.%m.%Y}"), ("date", f"{day:%m/%d/%Y}"), ("date", f"{day:%d-%m-%Y}"), ("date", f"{day.year}年{day.month}月{day.day}日"), ("date", f"{day:%Y%m%d}"),
        ("date", f"{day:%d %B %Y}"), ("date", f"{day:%d.%m.%y}"), ("date", f"{day:%Y/%m/%d} - {day + timedelta(days=7):%Y/%m/%d}"),
        ("time", f"{n(0, 23):02}:{n(0, 59):02}"), ("time", f"{n(0, 23):02}:{n(0, 59):02}:{n(0, 59):02}.{n(0, 999):03}"), ("time", f"{day:%Y-%m-%d}T{n(0, 23):02}:{n(0, 59):02}:07.123+00:00"),
        ("time", f"{day:%d.%m.%Y} {n(0, 23):02}:{n(0, 59):02} {n(100, 9999)}"), ("time", str(n(1_500_000_000, 1_900_000_000))), ("time", str(n(1_500_000_000_000, 1_900_000_000_000))),
        ("version", f"{n(0, 20)}.{n(0, 99)}.{n(0, 99)}"), ("version", f"v{n(0, 9)}.{n(0, 9)}.{n(0, 9)}.{n(0, 9)}"), ("version", f"version {n(1, 130)}.0.{n(1000, 7000)}.{n(1, 200)}"),
        ("version", f"{n(1, 4)}.{n(0, 14)}.{n(0, 12)}.{n(0, 9)}"), ("version", f"{day:%Y%m%d}{n(0, 23):02}{n(0, 59):02}{n(0, 59):02}"),
        ("count", f"{amount:,} customers"), ("count", f"{n(1, 9_999_999)} orders"), ("count", f"order #{n(100_000, 99_999_999)}"), ("count", f"第{n(1, 9999)}次"), ("count", f"{n(1, 99)} of {n(100, 999)}"),
        ("count", f"order {n(1_000_000_000, 9_999_999_999)}"), ("count", f"共{n(1, 99_999_999)}条"), ("count", f"{n(1, 9)}, {n(1, 9)}, {n(1, 9)} and {n(10, 99)}"), ("count", f"ticket INC{n(0, 9_999_999):07}"),
        ("year", str(day.year)), ("year", f"{n(1900, 1999)}-{n(2000, 2030)}"), ("share", f"{n(0, 100)}.{n(0, 99)}%"), ("share", f"0.{n(10**15, 10**16 - 1)}"), ("share", f"{n(1, 9)}.{n(0, 10**6)}e-{n(1, 12):02}"),
        ("place", f"{n(10_000, 99_999)}-{n(1000, 9999)}"), ("place", f"{n(-90, 90)}.{n(0, 999_999):06}, {n(-180, 180)}.{n(0, 999_999):06}"), ("place", f"{n(1, 99)} Main Street, {n(10_000, 99_999)}"),
        ("size", f"{n(100, 4000)}x{n(100, 4000)}"), ("size", f"{n(1, 40)}-{n(41, 99)} °C"), ("size", f"{n(1, 999)} km/h"), ("score", f"{n(0, 9)}:{n(0, 9)}"), ("model", f"A{n(1, 9)}-{n(100, 9999)}"),
        ("model", f"flight LH{n(100, 9999)}"), ("model", f"ISBN 978-3-{n(10, 99)}-{n(100_000, 999_999)}-{n(0, 9)}"), ("model", f"{n(0, 2**64):016x}{n(0, 2**64):016x}"),
    )  # fmt: skip
    return draw.choice(forms)


def harmless(count: int = COUNT, seed: int = SEED + 1) -> list[Sample]:
    """Numbers that identify nobody, each in a sentence."""
    draw = random.Random(seed)
    around = (
        ("It was ", " in the end."),
        ("", ""),
        ("我看到", "，谢谢"),
        ("(", ")"),
        ("Es waren ", ", sagt man"),
        ("about ", " and counting"),
        ("Total: ", "\nRegards"),
    )
    made = []
    for _ in range(count):
        kind, value = _harmless(draw)
        before, after = draw.choice(around)
        made.append(Sample(kind, before, value, after))
    return made


def is_gone(sample: Sample, redacted: str) -> bool:
    """Whether nothing but tags stands where the identifier was, and the sentence is whole."""
    if not (redacted.startswith(sample.before) and redacted.endswith(sample.after)):
        return False
    middle = redacted[len(sample.before) : len(redacted) - len(sample.after)]
    return middle.startswith("[") and middle.endswith("]") and not any(one.isdigit() for one in middle)


def measure_redaction() -> dict[str, object]:
    from serving.redact import redact

    found, left = identifiers(), harmless()
    missed = [one for one in found if not is_gone(one, redact(one.text))]
    touched = [one for one in left if redact(one.text) != one.text]
    started = time.perf_counter()
    for one in left:
        redact(one.text)
    per_text = (time.perf_counter() - started) / len(left)
    for name, samples in (("missed", missed), ("touched", touched)):
        for one in samples[:20]:
            print(json.dumps({"benchmark": "redaction", name: one.kind, "text": one.text, "became": redact(one.text)}, ensure_ascii=False))
    return {
        "benchmark": "redaction", "seed": SEED, "identifiers": len(found), "removed": round(1 - len(missed) / len(found), 4), "wanted_removed": ">= 0.99",
        "harmless": len(left), "touched": round(len(touched) / len(left), 4), "wanted_touched": "< 0.005", "ms_per_text": round(1000 * per_text, 4),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------------------- latency and disk


def measure_latency(target: str, calls: int, folder: Path) -> dict[str, float]:
    """Milliseconds, off and on, in turns after a warm-up of both."""
    from client_overhead import TEXT

    from serving import Client
    from serving.journal import Journal

    times: dict[str, list[float]] = {"off": [], "on": []}
    with (
        Journal(folder, text="redacted") as journal,
        Client(target, model="sentiment") as off,
        Client(target, model="sentiment", on_response=journal.on_response) as on,
    ):
        for number in range(calls + 100):
            for name, client in (("off", off), ("on", on)) if number % 2 else (("on", on), ("off", off)):
                started = time.perf_counter()
                client.predict([TEXT])
                if number >= 100:
                    times[name].append(1000 * (time.perf_counter() - started))
    assert journal.counts.written == calls + 100, journal.counts
    p50 = {name: statistics.median(values) for name, values in times.items()}
    p99 = {name: statistics.quantiles(values, n=100)[98] for name, values in times.items()}
    return {
        "off_p50_ms": round(p50["off"], 4), "on_p50_ms": round(p50["on"], 4), "added_p50_ms": round(p50["on"] - p50["off"], 4),
        "off_p99_ms": round(p99["off"], 4), "on_p99_ms": round(p99["on"], 4),
    }  # fmt: skip


def latency(calls: int, rounds: int) -> None:
    import client_overhead

    found = []
    with subprocess.Popen(
        [sys.executable, client_overhead.__file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        target = f"127.0.0.1:{int(server.stdout.readline())}"
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                found.append(measure_latency(target, calls, Path(folder)))
            print(json.dumps({"benchmark": "journal_latency", "n": calls, **found[-1]}), flush=True)
        server.stdin.close()
    added = [one["added_p50_ms"] for one in found]
    spread = {"median": statistics.median(added), "min": min(added), "max": max(added)}
    print(json.dumps({"benchmark": "journal_latency", "rounds": rounds, "added_p50_ms": spread, "wanted": "< 0.1 ms"}))


def disk(records: int = 1_000_000) -> None:
    from serving.journal import Journal, read

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with Journal(folder, max_queued=100_000) as journal:
            for number in range(records):
                record = {
                    "kind": "request", "id": f"{number:032x}:0", "model": "bank", "version": 20261124130622, "version_label": "stable", "source": "server", "code": "OK",
                    "ms": 8.1, "label": "negative", "score": 0.779, "probabilities": {"negative": 0.779, "positive": 0.221}, "tokens": 8, "unknown": 0.0, "length": 23, "text_key": f"{number:064x}",
                }  # fmt: skip
                while not journal.append(record):
                    time.sleep(0.01)
        written = time.perf_counter() - started
        size = sum(path.stat().st_size for path in Path(folder).glob("*.jsonl"))
        started = time.perf_counter()
        count = sum(1 for record in read(folder) if record["kind"] == "request")
        took = time.perf_counter() - started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps(
            {
                "benchmark": "journal_disk", "records": count, "bytes_each": round(size / count), "written_per_s": round(records / written), "read_s": round(took, 2),
                "read_per_s": round(count / took), "peak_mb": round(peak_mb),
            }
        )
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", choices=["latency", "redaction", "disk"], default=["latency", "redaction", "disk"])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if "redaction" in options.what:
        print(json.dumps(measure_redaction()), flush=True)
    if "latency" in options.what:
        latency(options.calls, options.rounds)
    if "disk" in options.what:
        disk()


if __name__ == "__main__":
    main()
