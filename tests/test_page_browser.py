"""The page in a real Chromium over a real embedded server with a trained model and a journal: as a person uses it, with mouse, keyboard and phone."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from serving.journal import read
from tests import browser
from tests.browser import Browser, Page

pytestmark = pytest.mark.skipif(
    not browser.find(), reason="no Chromium: apt-get install chromium, or name one in the environment variable CHROMIUM"
)

EVIL = '<img src=x onerror="hacked=1"><script>hacked=2</script>'
EVIL_LABELS = ("<b onmouseover=hacked=3>bad</b>", "${hacked=4}'\"good")
TEXT = "the app was lovely again"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _save(path: Path, labels: Sequence[str], *, pair: bool = False, separator: str = "") -> None:
    """A model that always says its second label, surer the longer the text; with a separator, one whose texts have several labels."""
    import tensorflow as tf

    class Says(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name) for name in (["text", "text_pair"] if pair else ["text"])])
        def answer(self, text: tf.Tensor, *_: tf.Tensor) -> dict[str, tf.Tensor]:
            length = tf.cast(tf.strings.length(text), tf.float32)
            share, rest = length / (1.0 + length), 1.0 / (1.0 + length) / (len(labels) - 1)
            classes = tf.tile(tf.constant([list(labels)]), [tf.shape(text)[0], 1])
            probabilities = tf.stack([share if label == labels[1] else rest for label in labels], axis=1)
            return {"label": classes[:, 1], "score": share, "classes": classes, "probabilities": probabilities}

    model = Says()
    tf.saved_model.save(model, str(path), signatures={"serving_default": model.answer})
    task = {"task": "multi_label", "config": {"data": {"label_separator": separator}}} if separator else {"task": "single_label"}
    (path / "manifest.json").write_text(json.dumps({"labels": list(labels), **task}), encoding="utf-8")


class _Site:
    """The server's address, and what its journal holds."""

    def __init__(self, address: str, journal: Path) -> None:
        self.address, self._journal = address, journal

    def records(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in read(self._journal) if record["kind"] == kind]

    def corrections_of(self, text: str) -> list[dict[str, Any]]:
        """Feedback on the answers for a text, as soon as the journal has brought both to the disk."""
        deadline = time.monotonic() + 20
        while True:
            ids = {record["id"] for record in self.records("request") if record.get("text") == text}
            found = [record for record in self.records("feedback") if record["id"] in ids]
            if found or time.monotonic() > deadline:
                return found
            time.sleep(0.05)


@pytest.fixture(scope="module")
def site(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Site]:
    from serving.server.app import running
    from serving.server.flags import parse

    folder = tmp_path_factory.mktemp("page")
    _save(folder / "evil" / "1", EVIL_LABELS)
    _save(folder / "many" / "1", [f"class {number}" for number in range(20)])
    _save(folder / "topics" / "1", ["app", "card", "loan"], pair=True, separator="|")
    drift = folder / "drift.json"
    reasons = ["predicted classes: more 'positive' than in training; population stability index 0.21", EVIL]
    drift.write_text(json.dumps({"level": "warn", "reasons": reasons, "model": "tiny", "version": 1}), encoding="utf-8")
    models = [(tiny_model.name, tiny_model.path.parent, tiny_model.version), (EVIL, folder / "evil", 1)]
    models += [(name, folder / name, 1) for name in ("many", "topics")]
    config = "".join(
        f"config {{ name: {json.dumps(name)} base_path: {json.dumps(str(path))} model_platform: 'tensorflow' "
        f"version_labels {{ key: 'stable' value: {version} }} }}\n"
        for name, path, version in models
    )
    (folder / "models.config").write_text(f"model_config_list {{ {config} }}", encoding="utf-8")
    arguments = {
        "model_config_file": folder / "models.config", "port": _free_port(), "rest_api_port": _free_port(), "page": "auto",
        "journal": folder / "journal", "journal_text": "redacted", "drift_report": drift, "max_text_bytes": 5000, "drain_seconds": 1,
        "allow_version_labels_for_unavailable_models": "true", "max_num_load_retries": 0,
    }  # fmt: skip
    flags, _ = parse([f"--{name}={value}" for name, value in arguments.items()])
    with running(flags) as server:
        yield _Site(f"http://127.0.0.1:{server.rest}/", folder / "journal")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.running() as found:
        yield found


@pytest.fixture
def page(chromium: Browser, site: _Site, tiny_model: Any) -> Iterator[Page]:
    """The page, open and filled, in a window for itself. Nothing in red is the promise of every test, unless the test expects it and takes it away."""
    opened = chromium.page()
    opened.size(1100, 900)
    opened.open(site.address)
    opened.until("document.getElementById('version').value")
    _choose(opened, tiny_model.name)
    yield opened
    assert opened.complaints == []
    assert {request.partition("?")[0] for request in opened.requests if not request.startswith((site.address, "data:"))} == set()
    assert opened.js("document.cookie") == ""
    assert opened.call("Network.getCookies")["cookies"] == []
    opened.call("Page.close")


def _choose(page: Page, model: str) -> None:
    page.js(
        f"(() => {{ const e = document.getElementById('model'); e.value = {json.dumps(model)}; e.dispatchEvent(new Event('change')); }})()"
    )


def _predict(page: Page, text: str) -> None:
    page.js("document.getElementById('input-0').value = ''")
    page.click("#input-0")
    page.write(text)
    page.click("#predict")
    page.until("!document.getElementById('result').hidden && document.querySelectorAll('#words .w').length")


def _seen(page: Page, selector: str) -> str:
    return str(page.js(f"document.querySelector({json.dumps(selector)}).innerText"))


# ------------------------------------------------------------------------------------------------------------------------ as it is meant


def test_type_predict_see_which_words_mattered_correct_and_find_it_in_the_journal(page: Page, site: _Site, tiny_model: Any) -> None:
    assert _seen(page, "h1") == "Try the model"
    assert page.js("document.getElementById('version').value") == "l:stable"
    _predict(page, TEXT)
    answer = _seen(page, "#label")
    assert answer in ("positive", "negative")
    bars = page.js("[...document.querySelectorAll('#bars li')].map(one => one.innerText.split('\\n').filter(Boolean))")
    assert bars[0][0] == answer
    assert sum(float(number.rstrip("%")) for _, number in bars) == pytest.approx(100, abs=0.2)
    assert re.fullmatch(rf"{answer}, \d+(\.\d)?%\. Answered in \d+ ms\.", _seen(page, "#status"))
    # Which words: shade, line and, when asked for, number.
    words = page.js(
        "[...document.querySelectorAll('#words .w')].map(one => [one.firstChild.data, one.className, getComputedStyle(one).borderBottomStyle])"
    )
    assert "".join(word for word, *_ in words).startswith("theappwas")
    assert {(kind, line) for _, kind, line in words} <= {("w for", "solid"), ("w against", "dashed"), ("w", "none")}
    assert any(kind != "w" for _, kind, _ in words)
    assert page.js("getComputedStyle(document.querySelector('#words small')).display") == "none"
    page.click("#show-numbers")
    assert page.js("document.getElementById('show-numbers').getAttribute('aria-pressed')") == "true"
    assert re.fullmatch(r"[+-]?\d(\.\d+)?", _seen(page, "#words small"))
    assert "explain" in tiny_model.manifest["signatures"]
    said = re.search(
        r"probability is ([\d.]+), with the text it is ([\d.]+): ([+-]?[\d.]+)\. The words add up to ([+-]?[\d.]+); .* gap\): ([+-]?[\d.]+)\.$",
        _seen(page, "#sum"),
    )
    assert said
    hidden, score, difference, total, gap = map(float, said.groups())
    assert score - hidden == pytest.approx(difference, abs=0.002)
    assert total + gap == pytest.approx(difference, abs=0.002)
    # The correction.
    wrong = "negative" if answer == "positive" else "positive"
    page.click("#comment")
    page.write("a person said so")
    page.click(f"#choices button[value={wrong}]")
    page.until("document.getElementById('feedback-status').textContent.startsWith('Recorded')")
    assert _seen(page, "#feedback-status") == f"Recorded: {wrong}. Thank you."
    pressed = page.js("[...document.querySelectorAll('#choices button')].map(one => [one.value, one.getAttribute('aria-pressed')])")
    assert sorted(pressed) == sorted([[answer, "false"], [wrong, "true"]])
    [kept] = site.corrections_of(TEXT)
    assert (kept["label"], kept["comment"], kept["by"]) == (wrong, "a person said so", "page")
    [asked] = [record for record in site.records("request") if record["id"] == kept["id"]]
    assert (asked["model"], asked["version"], asked["version_label"], asked["label"]) == (
        tiny_model.name,
        tiny_model.version,
        "stable",
        answer,
    )
    # To explain is not to ask: one record.
    assert len([record for record in site.records("request") if record.get("text") == TEXT]) == 1


def test_the_server_is_shown_as_it_is_now(page: Page, site: _Site, tiny_model: Any) -> None:
    path = f"[...document.querySelectorAll('#models > div')].find(one => one.innerText.startsWith({json.dumps(tiny_model.name)})).innerText"
    count = f"Number(({path}).match(/In all\\s+([\\d,]+)/)[1].replace(',', ''))"
    before = page.js(count)
    _predict(page, "the card was slow")
    page.until(f"{count} === {before + 1}", 20)
    shown = page.js(path)
    assert str(tiny_model.version) in shown
    assert "AVAILABLE" in shown
    assert "stable" in shown
    assert re.search(r"Median time\s+[\d.,]+ ms", shown)
    assert re.search(r"Requests / s\s+\d", shown)
    assert _seen(page, "#ready") == "ready"
    page.until("/On\\. [1-9]\\d* written, 0 dropped/.test(document.getElementById('journal').innerText)", 20)
    assert "warning" in _seen(page, "#drift")
    assert "population stability index 0.21" in _seen(page, "#drift")


def test_a_version_can_be_chosen_and_an_answer_confirmed(page: Page, site: _Site, tiny_model: Any) -> None:
    page.js(f"document.getElementById('version').value = 'v:{tiny_model.version}'")
    text = "the loan was perfect today"
    _predict(page, text)
    assert any(request.endswith(f"/versions/{tiny_model.version}:predict") for request in page.requests)
    answer = _seen(page, "#label")
    page.click("#choices button")
    page.until("document.getElementById('feedback-status').textContent.startsWith('Recorded')")
    [kept] = site.corrections_of(text)
    assert kept["label"] == answer


def test_many_labels_are_chosen_from_a_list(page: Page, site: _Site) -> None:
    _choose(page, "many")
    _predict(page, "one of many")
    assert page.js("document.querySelectorAll('#bars li').length") == 13
    assert _seen(page, "#bars li:last-child") == "and 8 more"
    assert page.js("document.querySelectorAll('#choices button').length") == 2
    assert page.js("[...document.getElementById('other').options].map(one => one.value)") == [f"class {n}" for n in range(20) if n != 1]
    page.js("document.getElementById('other').value = 'class 17'")
    page.click("#choices button:last-child")
    page.until("document.getElementById('feedback-status').textContent === 'Recorded: class 17. Thank you.'")
    assert [record["label"] for record in site.corrections_of("one of many")] == ["class 17"]


def test_pairs_of_texts_with_several_labels_are_asked_and_corrected(page: Page, site: _Site) -> None:
    page.click("#input-0")
    page.write("the card")
    _choose(page, "topics")
    assert page.js("document.getElementById('input-0').value") == "the card", "another model, the same text"
    assert page.js("[...document.querySelectorAll('#inputs label')].map(one => one.innerText)") == ["Text", "Second text"]
    page.click("#predict")
    assert _seen(page, "#problem") == "Write a text first."
    assert page.js("document.activeElement.id") == "input-1"
    page.write("and the loan")
    page.press("Enter", control=True)
    page.until("!document.getElementById('result').hidden && document.querySelectorAll('#words .w').length")
    assert page.js("[...document.querySelectorAll('#choices input')].map(one => [one.value, one.checked])") == [
        ["app", False], ["card", True], ["loan", False],
    ]  # fmt: skip
    assert _seen(page, "#words-note").startswith("What the probability of “card” loses when a word is left out. An approximation")
    page.click("#choices label:last-of-type")
    page.click("#choices button:last-child")
    page.until("document.getElementById('feedback-status').textContent === 'Recorded: card|loan. Thank you.'")
    assert [record["label"] for record in site.corrections_of("the card")] == ["card|loan"]


def test_the_keyboard_is_enough(page: Page, site: _Site) -> None:
    stops = []
    for _ in range(4):
        page.press("Tab")
        outline = "getComputedStyle(document.activeElement).outlineStyle !== 'none' && parseFloat(getComputedStyle(document.activeElement).outlineWidth) >= 2"
        stops.append(page.js(f"[document.activeElement.id, {outline}]"))
    assert stops == [["language", True], ["model", True], ["version", True], ["input-0", True]]
    text = "the clerk was rude again"
    page.write(text)
    page.press("Enter", control=True)
    page.until("!document.getElementById('result').hidden && document.querySelectorAll('#words .w').length")
    assert page.js("document.activeElement.id") == "input-0", "an answer takes nobody's focus away"
    answer = _seen(page, "#label")
    order = []
    for _ in range(4):
        page.press("Tab")
        order.append(page.js("document.activeElement.id || document.activeElement.value"))
    assert order == ["predict", "show-numbers", "comment", answer]
    page.press("Tab")
    chosen = page.js("document.activeElement.value")
    assert chosen not in ("", answer)
    page.press("Enter")
    page.until("document.getElementById('feedback-status').textContent.startsWith('Recorded')")
    assert page.js("document.activeElement.value") == chosen, "the focus stays where it was"
    page.press("Tab", shift=True)
    page.press(" ")
    page.until(f"document.getElementById('feedback-status').textContent.startsWith('Recorded: {answer}')")
    labels = [record["label"] for record in site.corrections_of(text)]
    assert labels == [chosen, answer]


def test_what_people_and_models_write_is_shown_as_text(page: Page, site: _Site) -> None:
    _choose(page, EVIL)
    _predict(page, EVIL)
    assert _seen(page, "#label") == EVIL_LABELS[1]
    for label in EVIL_LABELS:
        assert label in _seen(page, "#bars")
        assert label in _seen(page, "#choices")
    assert EVIL in _seen(page, "#models")
    assert EVIL in _seen(page, "#drift")
    page.click("#comment")
    page.write(EVIL)
    page.click("#choices button:last-child")
    page.until("document.getElementById('feedback-status').textContent.startsWith('Recorded')")
    assert EVIL_LABELS[0] in _seen(page, "#feedback-status")
    [kept] = site.corrections_of(EVIL)
    assert (kept["label"], kept["comment"]) == (EVIL_LABELS[0], EVIL)
    assert page.js("typeof hacked") == "undefined"
    assert page.js("document.querySelectorAll('main img, main script, main b').length") == 0


def test_the_browser_itself_would_stop_markup_and_foreign_hosts(page: Page) -> None:
    refused = page.js("(() => { try { document.body.innerHTML = '<p>x</p>'; return ''; } catch (error) { return error.name; } })()")
    assert refused == "TypeError"
    foreign = page.js("fetch('http://127.0.0.1:1/').then(() => 'went', error => error.name)")
    assert foreign == "TypeError"
    added = "(() => { const one = document.createElement('script'); one.append('hacked = 5'); document.body.append(one); return typeof hacked; })()"
    assert page.js(added) == "undefined"
    for words in ("requires 'TrustedHTML' assignment", "connect-src 'self'", "script"):
        assert any(words in one for one in page.complaints), words
    page.complaints.clear()
    page.requests[:] = [request for request in page.requests if request != "http://127.0.0.1:1/"]


# ------------------------------------------------------------------------------------------------------------------------------ trouble


def test_a_refusal_is_shown_in_words(page: Page) -> None:
    page.click("#predict")
    assert _seen(page, "#problem") == "Write a text first."
    assert page.js("document.activeElement.id") == "input-0"
    page.js("document.getElementById('input-0').value = 'long '.repeat(2000)")
    page.click("#predict")
    page.until("document.getElementById('problem').textContent.includes(':')")
    assert re.fullmatch(r"The request was refused: input .*: a string of 10000 bytes; this server takes 5000\.", _seen(page, "#problem"))
    assert page.js("document.getElementById('result').hidden")
    assert len(page.complaints) == 1  # the browser's own line about a 400
    page.complaints.clear()
    _predict(page, TEXT)
    assert page.js("document.getElementById('problem').textContent") == ""


def test_a_server_that_is_gone_is_said_and_its_return_is_seen(page: Page) -> None:
    def network(offline: bool) -> None:
        page.call("Network.emulateNetworkConditions", offline=offline, latency=0, downloadThroughput=-1, uploadThroughput=-1)

    network(True)
    page.until("document.getElementById('live-problem').textContent === 'The server does not answer. Asking again …'", 20)
    assert _seen(page, "#ready") == "no answer"
    page.click("#input-0")
    page.write(TEXT)
    page.click("#predict")
    page.until("document.getElementById('problem').textContent === 'The server could not be reached. Is it running?'")
    network(False)
    page.until("document.getElementById('ready').textContent === 'ready' && !document.getElementById('live-problem').textContent", 20)
    assert page.complaints
    assert all("ERR_INTERNET_DISCONNECTED" in one for one in page.complaints)
    page.complaints.clear()


# ------------------------------------------------------------------------------------------------------------------------- for everybody

# Every text that can be seen, with its contrast against what is behind it (WCAG 2), and what AA wants of its size.
_CONTRAST = """(() => {
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const light = (rgb) => { const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (element) => { const up = []; for (let e = element; e; e = e.parentElement) up.unshift(parse(getComputedStyle(e).backgroundColor)); return up.reduce((below, top) => over(top, below), [255, 255, 255]); };
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) || element.matches('textarea, select, input');
    if (!own || !element.checkVisibility() || element.closest('script, noscript')) continue;
    const style = getComputedStyle(element), below = behind(element), a = light(over(parse(style.color), below)), b = light(below);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), size = parseFloat(style.fontSize);
    found.push([element.tagName + '#' + element.id + '.' + element.className + ' ' + element.textContent.slice(0, 30), Math.round(ratio * 100) / 100, size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5]);
  }
  return found;
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast_in_light_and_dark(page: Page, scheme: str) -> None:
    page.media(prefers_color_scheme=scheme)
    _predict(page, "the app was lovely but the clerk was rude")
    page.click("#show-numbers")
    page.click("#choices button:last-child")
    page.until("document.getElementById('feedback-status').textContent.startsWith('Recorded')")
    page.js(
        "document.getElementById('problem').replaceChildren(Object.assign(document.createElement('strong'), {textContent: 'wrong'}), ': so')"
    )
    found = page.js(_CONTRAST)
    assert len(found) > 40
    assert [one for one in found if one[1] < one[2]] == []
    # Lines of fields and buttons, and the lines under the words, are seen too.
    dark = page.js("getComputedStyle(document.body).backgroundColor") == "rgb(16, 19, 24)"
    assert dark is (scheme == "dark")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_it_fits_a_narrow_phone(page: Page, language: str) -> None:
    page.size(360, 740, scale=2, phone=True)
    if language == "zh":
        page.click("#language")
    _predict(page, "the app was lovely " + "x" * 120)
    page.click("#show-numbers")
    assert page.js("document.documentElement.scrollWidth") == 360
    too_wide = "[...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && e.getBoundingClientRect().right > 360.5).map(e => e.outerHTML.slice(0, 80))"
    assert page.js(too_wide) == []
    small = "[...document.querySelectorAll('button, select, textarea, input[type=text]')].filter(e => e.checkVisibility() && e.getBoundingClientRect().height < 24).length"
    assert page.js(small) == 0


def test_a_screen_reader_finds_names_regions_and_news(page: Page) -> None:
    _predict(page, TEXT)
    nodes = [node for node in page.call("Accessibility.getFullAXTree")["nodes"] if not node.get("ignored")]
    named: dict[str, list[str]] = {}
    for node in nodes:
        named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    nameless = {role for role in ("button", "combobox", "textbox", "region", "group", "form") if "" in named.get(role, [])}
    assert nameless == set()
    assert {"Model", "Version"} <= set(named["combobox"])
    assert "Text" in named["textbox"]
    assert {"Ask", "Answer", "This server, now"} <= set(named["region"])
    assert "Is this right?" in named["group"]
    assert {"Predict", "Show numbers"} <= set(named["button"])
    assert len(named["heading"]) >= 6
    # An answer is told once, in one sentence; numbers that change every two seconds are not told at all.
    assert page.js("document.getElementById('status').getAttribute('role')") == "status"
    assert _seen(page, "#status")
    assert page.js("document.querySelector('#models').closest('[aria-live], [role=status], [role=alert]')") is None
    assert page.js("document.querySelectorAll('main [role=alert]').length") == 3


def test_languages_are_switched_and_remembered(page: Page, site: _Site) -> None:
    _predict(page, TEXT)
    answer = _seen(page, "#label")
    page.click("#language")
    assert page.js("[document.documentElement.lang, document.title]") == ["zh", "试用模型"]
    assert _seen(page, "#predict") == "预测"
    assert _seen(page, "#status").startswith(f"{answer}，")
    assert "服务器现状" in page.text()
    left = re.sub(
        r"Ctrl \+ Enter|English|AVAILABLE|stable|ms\b",
        "",
        page.js("[...document.querySelectorAll('[data-t], dt, .badge')].map(e => e.innerText).join('\\n')"),
    )
    assert not re.search(r"[A-Za-z]{3,}", left), left
    page.open(site.address)
    page.until("document.getElementById('version').value")
    assert page.js("document.documentElement.lang") == "zh"
    page.click("#language")
    assert _seen(page, "h1") == "Try the model"


def test_nothing_moves_for_who_does_not_want_it(page: Page) -> None:
    duration = "(() => { const one = document.createElement('div'); one.className = 'fill'; document.body.append(one); const found = getComputedStyle(one).transitionDuration; one.remove(); return found; })()"
    assert page.js(duration) == "0.25s"
    page.media(prefers_reduced_motion="reduce")
    assert page.js(duration) == "0s"


def test_the_page_is_light_and_fast(chromium: Browser, site: _Site) -> None:
    opened = chromium.page()
    opened.open(site.address)
    opened.until("document.getElementById('version').value")
    paint = opened.until("performance.getEntriesByName('first-contentful-paint').map(one => one.startTime)[0]")
    assert paint < 1000
    assert 0 < opened.received < 150_000
    assert opened.complaints == []
    opened.call("Page.close")
