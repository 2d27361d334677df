"""The monitor on real texts, both ways: quiet on what the model was made for, loud within 500 requests on what it was not.

SST-2 is what the model was made for. Another topic: the bank corpus. Another language: Chinese hotel reviews. Another mix of labels: SST-2 itself
with other shares of the classes, which the monitor does not see but in the model's answers. The model is TF-IDF with naive Bayes, right in
82 of 100 texts, so a tenth of positive texts looks like a quarter in its answers; `benchmarks/monitor.py --proof` takes answers of any model.
"""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from tests import monitor_texts as real
from tests.monitor_texts import Row, Scorer

WINDOWS, REQUESTS, REFERENCE = 50, 500, 1_000

pytestmark = pytest.mark.skipif(
    not (real.CORPORA / "sst2" / "train.tsv").is_file() or not (real.CORPORA / "chnsenticorp" / "hotel.csv").is_file(),
    reason="the corpora SST-2 and ChnSentiCorp are not beside this checkout (../shared/data); TFPIPELINE_DATA names their folder",
)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(real.read_sst2())


@pytest.fixture(scope="module")
def foreign(scorer: Scorer) -> dict[str, list[Row]]:
    return {"topic": scorer.score(real.read_bank()), "language": scorer.score(real.read_hotel())}


@pytest.mark.parametrize("texts", [True, False], ids=["texts kept", "no texts kept"])
def test_fifty_windows_of_the_training_distribution_give_at_most_two_alarms(scorer: Scorer, texts: bool) -> None:
    levels: Counter[str] = Counter()
    for number in range(WINDOWS):
        # Five references, so that it is not one lucky one.
        reference, rest = real.split(scorer.held_out, REFERENCE, seed=number % 5)
        levels[real.judged(random.Random(number).sample(rest, REQUESTS), reference, texts).verdict.level] += 1
    assert levels["alarm"] <= 2
    assert levels["warn"] <= 5
    assert levels.total() == WINDOWS


@pytest.mark.parametrize("reference_rows", [200, 1_000])
@pytest.mark.parametrize("texts", [True, False], ids=["texts kept", "no texts kept"])
@pytest.mark.parametrize("kind", ["topic", "language"])
def test_another_topic_and_another_language_alarm_within_200_requests(
    scorer: Scorer, foreign: dict[str, list[Row]], kind: str, texts: bool, reference_rows: int
) -> None:
    reference, _ = real.split(scorer.held_out, reference_rows, seed=0)
    for seed in range(3):
        report = real.judged(random.Random(seed).sample(foreign[kind], 200), reference, texts)
        assert report.verdict.level == "alarm"
        alarms = {check.name for check in report.verdict.checks if check.level == "alarm"}
        assert "length" in alarms or "confidence" in alarms
        if texts:
            assert "texts" in alarms
            assert ("script" in alarms) == (kind == "language")


@pytest.mark.parametrize("shares", [{"positive": 0.9, "negative": 0.1}, {"positive": 0.1, "negative": 0.9}], ids=["positive", "negative"])
def test_another_mix_of_labels_alarms_within_500_requests(scorer: Scorer, shares: dict[str, float]) -> None:
    for seed in range(5):
        reference, rest = real.split(scorer.held_out, REFERENCE, seed)
        report = real.judged(real.mixed(rest, shares, REQUESTS, seed), reference, texts=False)
        assert report.verdict.level == "alarm"
        assert "predicted" in {check.name for check in report.verdict.checks if check.level == "alarm"}


def test_the_reasons_name_what_a_person_would(scorer: Scorer, foreign: dict[str, list[Row]]) -> None:
    reference, _ = real.split(scorer.held_out, REFERENCE, seed=0)
    topic = real.judged(random.Random(0).sample(foreign["topic"], REQUESTS), reference)
    assert {"bank", "card", "account", "fee"} & set(
        next(check for check in topic.verdict.checks if check.name == "texts").evidence.detail["words"]
    )
    language = " ".join(real.judged(random.Random(0).sample(foreign["language"], REQUESTS), reference).verdict.reasons)
    assert re.search(r"script: (Latin: 100\.0% -> 0\.\d%|Han: 0\.0% -> 99\.\d%)", language)
