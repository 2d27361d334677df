"""Going on from a run: warm start, the comparison on rows that neither model was trained on, and the gate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from serving.registry import Published
from tests.conftest import TINY
from tfpipeline import cli, config, data, judge, retrain, runs, trained
from tfpipeline.errors import ConfigError, DataError, GateError, RunError
from tfpipeline.train import train

# Two dozen rows cannot show much, so the margin is wide.
QUICK = ("train.epochs=1", "evaluate.not_worse_margin=0.5")
CORRECTED = "the app was great today"  # a row of the tiny corpus, and not a positive one any more


@pytest.fixture(scope="module")
def feedback(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty corrections, as they are collected, and their provenance."""
    path = tmp_path_factory.mktemp("feedback") / "feedback.csv"
    words = (("splendid", "positive"), ("dreadful", "negative"), ("great", "positive"), ("awful", "negative"), ("okay", "positive"))
    rows = [(f"my {thing} felt {word} {when}", label) for thing in ("kiosk", "advice", "website", "reader", "mortgage", "counter")
            for word, label in words for when in ("now", "then")]  # fmt: skip
    rows.append((CORRECTED, "negative"))
    lines = [f"{text},{label},1.0,feedback,r{number}:0" for number, (text, label) in enumerate(rows)]
    path.write_text("\n".join(["text,label,weight,source,id", *lines, ""]), encoding="utf-8")
    path.with_name("feedback.csv.provenance").write_text(json.dumps({"kind": "feedback", "rows": len(rows), "weighted": False}))
    return path


@pytest.fixture(scope="module")
def retrained(tiny_run: runs.Run, feedback: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[runs.Run, dict[str, Any]]:
    """The tiny run, gone on with the corrections, in a folder of runs of its own."""
    result, comparison = retrain.retrain(tiny_run, [str(feedback)], root=tmp_path_factory.mktemp("runs"), overrides=QUICK)
    return result.run, comparison


class Says:
    """A model that answers as it is told."""

    def __init__(self, answers: npt.NDArray[Any], labels: tuple[str, ...] = ("negative", "positive")) -> None:
        self.answers, self.labels = answers, labels

    def predict(self, texts: list[str], pairs: list[str] | None = None, **_: Any) -> npt.NDArray[Any]:
        del pairs
        assert len(texts) == len(self.answers)
        return self.answers


def copy_of(run: runs.Run, folder: Path) -> runs.Run:
    """One that a test may write to."""
    return runs.Run(Path(shutil.copytree(run.path, folder / run.path.name)))


def one_hot(targets: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.eye(2, dtype=np.float32)[targets]


# ---- the new run ----


def test_a_retrained_run_says_where_it_comes_from(tiny_run: runs.Run, retrained: tuple[runs.Run, dict[str, Any]], feedback: Path) -> None:
    run, comparison = retrained
    info = run.info
    assert info["status"] == "finished"
    assert info["parent"]["run"] == tiny_run.path.name
    assert info["parent"]["config_digest"] == tiny_run.info["config_digest"]
    assert len(info["parent"]["weights_sha256"]) == 1
    [added] = info["retrained"]["added"]
    assert (added["file"], added["provenance"]["rows"]) == (str(feedback), 61)
    assert run.config.data.path == (str(feedback), *tiny_run.config.data.path)
    assert run.config.data.labels == ("negative", "positive")
    metrics = runs.read_json(run.path / "metrics.json")
    assert metrics["gate"] == {"passed": True, "reasons": [], "checks": {"former": comparison}}
    assert [event["verdict"] for event in run.events("compared")] == ["not worse"]


def test_test_rows_stay_in_test_and_training_rows_never_come_there(tiny_run: runs.Run, retrained: tuple[runs.Run, dict[str, Any]]) -> None:
    run, comparison = retrained
    before, after = data.open_prepared(tiny_run.path / "data"), data.open_prepared(run.path / "data")
    for split in ("train", "validation", "test"):
        assert set(before.split(split).ids.to_pylist()) <= set(after.split(split).ids.to_pylist())
    assert not set(before.train.ids.to_pylist()) & set(after.test.ids.to_pylist())
    rows = comparison["rows"]
    assert rows["compared"] + rows["from_feedback"] == rows["test"] == len(after.test)
    assert rows["compared"] >= len(before.test) - 1  # less the corrected one, should it be there
    assert (rows["seen_in_training"], rows["pseudo_labels"]) == (0, 0)
    assert (comparison["same_rows"]["n"], comparison["feedback"]["n"]) == (rows["compared"], rows["from_feedback"])


def test_a_correction_of_a_training_text_counts(tiny_run: runs.Run, retrained: tuple[runs.Run, dict[str, Any]]) -> None:
    def labels(run: runs.Run) -> list[Any]:
        corpus = data.open_prepared(run.path / "data")
        found = [examples[row] for examples in corpus.splits.values() for row in range(len(examples))]
        return [example.label for example in found if example.text == CORRECTED]

    assert (labels(tiny_run), labels(retrained[0])) == (["positive"], ["negative"])


def test_a_learned_vocabulary_is_kept_because_the_weights_belong_to_it(
    tiny_run: runs.Run, retrained: tuple[runs.Run, dict[str, Any]]
) -> None:
    vocabulary = [(run.path / "data" / "vocab.txt").read_text() for run in (tiny_run, retrained[0])]
    assert vocabulary[0] == vocabulary[1]


def test_training_starts_from_the_former_best_weights(tiny_run: runs.Run, tmp_path: Path) -> None:
    """With a rate at which nothing moves, the new run answers as the old one."""
    overrides = [
        "train.learning_rate=1e-12",
        "train.optimizer=sgd",
        "train.epochs=1",
        f"train.initial_weights={tiny_run.path}",
        "runtime.seed=7",
    ]
    result = train(config.load_dict(tiny_run.config.to_dict(), "test", overrides), root=tmp_path)
    texts = ["the app was great today", "my card is lost", "nothing"]
    former = trained.load(tiny_run).predict(texts)
    np.testing.assert_allclose(trained.load(result.run).predict(texts), former, atol=1e-5)
    assert result.run.info["parent"]["run"] == tiny_run.path.name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.backbone=scratch:mini", r"hidden_size: expected 128, received 256; num_hidden_layers: expected 2, received 4"),
        (
            "model.pooling=cls",
            r"model.pooling: expected mean, received cls\. Give this run the same model, text and label settings, or leave",
        ),
        (
            "data.labels=['negative', 'positive', 'mixed']",
            r"labels: expected \['negative', 'positive'\], received \['negative', 'positive', 'mixed'\]",
        ),
        ("text.lower_case=no", r"lower-casing: expected True, received False"),
        ("text.vocabulary=VOCABULARY", r"vocabulary: expected \d+ word pieces, received 6 word pieces, 1 of them unknown to it"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_training(tiny_run: runs.Run, tmp_path: Path, override: str, message: str) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nunheardof\n")
    override = override.replace("VOCABULARY", str(tmp_path / "vocab.txt"))
    loaded = config.load_dict(tiny_run.config.to_dict(), "test", [f"train.initial_weights={tiny_run.path}", override])
    with pytest.raises(
        RunError, match=rf"^train.initial_weights = .*: the weights of {tiny_run.path.name} do not fit this run\. .*{message}"
    ):
        train(loaded, root=tmp_path / "runs")
    assert not runs.list_runs(tmp_path / "runs")


def test_weights_of_a_run_that_is_not_there(tiny_csv: Path, tmp_path: Path) -> None:
    loaded = config.load(overrides=[*TINY, f"data.path={tiny_csv}", "train.initial_weights=nowhere"])
    with pytest.raises(RunError, match=r"^nowhere: no such run"):
        train(loaded, root=tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\nnew,mixed\n", r"feedback.csv:2: unknown label: expected one of \('negative', 'positive'\), received 'mixed'"),
        ("text,etiquette\nnew,negative\n", r"no column 'label'"),
        ("text,label\n", r"no usable row. Expected labelled texts"),
    ],
)
def test_a_bad_new_file_is_said_before_training(tiny_run: runs.Run, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "feedback.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        retrain.retrain(tiny_run, [str(tmp_path / "feedback.csv")], root=tmp_path / "runs")
    assert not runs.list_runs(tmp_path / "runs")


def config_of(former: runs.Run, feedback: Path, **provenance: Any) -> config.Config:
    return retrain._config(former, [{"file": str(feedback), "provenance": provenance}], ("negative", "positive"), QUICK)


def test_new_rows_that_weigh_less_do_so_although_the_former_files_have_no_weights(
    tiny_run: runs.Run, feedback: Path, tmp_path: Path
) -> None:
    run = copy_of(tiny_run, tmp_path)
    assert config_of(run, feedback, kind="feedback", weighted=False).data.weight == ""
    light = tmp_path / "light.csv"
    light.write_text(feedback.read_text().replace(",1.0,", ",0.25,"))
    loaded = config_of(run, light, kind="pseudo", weighted=True)
    before, after = data.open_prepared(run.path / "data"), data.prepare(loaded.data)
    new = retrain._ids([{"file": str(light), "provenance": {}}], loaded, ("negative", "positive"))["feedback"]
    for split, examples in after.splits.items():
        former = {row for row in before.split(split).ids.to_pylist() if row not in new}
        assert {row for row in examples.ids.to_pylist() if row not in new} == former
        assert {(row in new, float(weight)) for row, weight in zip(examples.ids.to_pylist(), examples.weights, strict=True)} == {
            (True, 0.25), (False, 1.0),
        }  # fmt: skip


def test_files_that_are_gone_are_replaced_by_the_rows_of_the_run(tmp_path: Path) -> None:
    """With all that a config can ask for: pairs, ids, weights, slices, several labels, class weights, a given test split."""
    columns = "question,answer,topics,trust,number,channel"
    lines = [f"why {number},because {number},{('a', 'b', 'a|b', '')[number % 4]},{0.5 + number % 3},n{number},web" for number in range(90)]
    for name, part in (("train.csv", lines[:70]), ("test.csv", lines[70:])):
        (tmp_path / name).write_text("\n".join([columns, *part, ""]))
    named = {"text": "question", "text_pair": "answer", "label": "topics", "weight": "trust", "id": "number"}
    overrides = [f"data.{name}={value}" for name, value in named.items()]
    overrides += ["data.slice_columns=channel", "data.task=multi_label", "data.class_weights=given", "data.class_weight_values=[2.0, 3.0]"]
    overrides += [f"data.path={tmp_path / 'train.csv'}", f"data.test_path={tmp_path / 'test.csv'}", "data.format=csv"]
    run = runs.create(config.load(overrides=[*TINY, *overrides]), tmp_path / "runs")
    before = data.prepare(run.config.data, run.path / "data")
    (tmp_path / "train.csv").unlink()
    (tmp_path / "new.csv").write_text(f"{columns}\nnew,one,b,1,x1,\n")
    loaded = retrain._config(run, [{"file": str(tmp_path / "new.csv"), "provenance": {}}], ("a", "b"), ())
    after = data.prepare(loaded.data)

    def rows(corpus: data.Corpus, split: str) -> set[Any]:
        examples = corpus.split(split)
        channel = examples.slices["channel"].to_pylist()
        found = [(examples[number], channel[number]) for number in range(len(examples))]
        return {(row.id, row.text, row.text_pair, row.label, row.weight, slice_) for row, slice_ in found if row.id != "x1"}

    for split in ("train", "validation", "test"):
        assert rows(before, split) == rows(after, split)
    assert sum(after.split(split).ids.to_pylist().count("x1") for split in before.splits) == 1


def test_files_without_names_that_are_gone_are_said(tiny_run: runs.Run, tmp_path: Path) -> None:
    run = copy_of(tiny_run, tmp_path)
    settings = run.config.to_dict()
    runs.write_json(run.path / "config.json", {**settings, "data": {**settings["data"], "path": ["gone.tsv"], "text": "0", "label": "1"}})
    with pytest.raises(ConfigError, match=r"its files have no column names \(columns 0, 1\) and are gone, so its rows cannot be read"):
        config_of(run, tmp_path / "feedback.tsv")


def test_rows_are_known_by_who_labelled_them(tiny_run: runs.Run, feedback: Path) -> None:
    for kind in ("feedback", "pseudo"):
        ids = retrain._ids([{"file": str(feedback), "provenance": {"kind": kind}}], tiny_run.config, ("negative", "positive"))
        assert {name: len(found) for name, found in ids.items()} == {"feedback": 0, "pseudo": 0, kind: 61}


# ---- the comparison ----


def compared(
    run: runs.Run, says: Says, *, seen: Any = None, feedback: frozenset[str] = frozenset(), pseudo: frozenset[str] = frozenset()
) -> Any:
    corpus = data.open_prepared(run.path / "data")
    return judge.compare_with_former(run, corpus, says, "former", seen, judge.Added(feedback, pseudo))


def test_a_run_that_lost_is_worse_and_the_gate_holds_it(tiny_run: runs.Run, tmp_path: Path) -> None:
    run = copy_of(tiny_run, tmp_path)
    test = data.open_prepared(run.path / "data").test
    lost = evaluate_as(run, 1 - test.labels)
    found = compared(lost, Says(one_hot(test.labels)))
    assert (found["verdict"], found["passed"]) == ("worse", False)
    result = runs.read_json(run.path / "metrics.json")
    assert result["gate"]["passed"] is False
    with pytest.raises(
        GateError, match=rf"^worse than former on the same {len(test)} rows: accuracy -1.0000 \[-1.0000, -1.0000\], McNemar p = "
    ):
        judge.hold_gate(result)
    # Asked again, of a former model that is as bad: what the first answer said is gone.
    assert compared(lost, Says(one_hot(1 - test.labels)))["verdict"] == "not worse"
    assert runs.read_json(run.path / "metrics.json")["gate"]["reasons"] == []


def evaluate_as(run: runs.Run, predicted: npt.NDArray[Any]) -> runs.Run:
    """Puts predictions of the test split into the run."""
    from tfpipeline import evaluate

    test = data.open_prepared(run.path / "data").test
    evaluate.save_predictions(run.path / "evaluation" / "test.parquet", test, one_hot(predicted), ("negative", "positive"))
    return run


def test_rows_from_feedback_do_not_decide(tiny_run: runs.Run, tmp_path: Path) -> None:
    """The former model is wrong on all of them, or it would not have been corrected: that must not outweigh what the new one lost elsewhere."""
    run = copy_of(tiny_run, tmp_path)
    test = data.open_prepared(run.path / "data").test
    ids = test.ids.to_pylist()
    corrected = np.arange(len(test)) < len(test) * 2 // 3
    evaluate_as(run, np.where(corrected, test.labels, 1 - test.labels))
    former = Says(one_hot(np.where(corrected, 1 - test.labels, test.labels)))
    assert compared(run, former)["same_rows"]["accuracy_difference"]["value"] > 0
    found = compared(run, former, feedback=frozenset(np.array(ids)[corrected]))
    assert (found["verdict"], found["passed"]) == ("worse", False)
    assert (found["same_rows"]["accuracy_a"], found["same_rows"]["accuracy_b"]) == (0.0, 1.0)
    assert (found["feedback"]["accuracy_a"], found["feedback"]["accuracy_b"]) == (1.0, 0.0)


def test_rows_that_one_of_the_two_was_trained_on_are_left_out_and_so_are_pseudo_labels(tiny_run: runs.Run, tmp_path: Path) -> None:
    run = copy_of(tiny_run, tmp_path)
    corpus = data.open_prepared(run.path / "data")
    ids = corpus.test.ids.to_pylist()
    seen = data.Corpus(
        corpus.task, False, corpus.labels, corpus.test.take(np.arange(3)), corpus.test.take(np.arange(3, 5)), corpus.test, {}, {}
    )
    found = compared(run, Says(one_hot(corpus.test.labels)), seen=seen, pseudo=frozenset(ids[5:6]))
    assert found["rows"] == {"test": len(ids), "compared": len(ids) - 6, "from_feedback": 0, "seen_in_training": 5, "pseudo_labels": 1}
    assert found["feedback"] is None
    found = compared(run, Says(one_hot(corpus.test.labels)), feedback=frozenset(ids))
    assert (found["verdict"], found["same_rows"]) == ("not shown", None)
    with pytest.raises(RunError, match="cannot be compared: their labels are"):
        compared(run, Says(one_hot(corpus.test.labels), ("a", "b")))


@pytest.mark.parametrize(
    ("low", "said", "margin", "verdict", "passed"),
    [
        (0.0, "no difference shown", 0.0, "not worse", True),
        (-0.03, "no difference shown", 0.05, "not worse", True),
        (-0.06, "no difference shown", 0.05, "not shown", False),
        (0.01, "better", 0.0, "not worse", True),
        (-0.03, "worse", 0.05, "worse", False),  # a loss that is shown is one, however small
    ],
)
def test_not_worse(low: float, said: str, margin: float, verdict: str, passed: bool) -> None:
    interval = {"value": low + 0.01, "low": low, "high": low + 0.02}
    found = {"n": 9, "names": ["new", "old"], "accuracy_difference": interval, "mcnemar_p": 0.5, "verdict": said}
    answer = judge.not_worse(found, margin)
    assert (answer["verdict"], answer["passed"], bool(answer["reasons"])) == (verdict, passed, not passed)
    if verdict == "not shown":
        assert answer["reasons"] == [
            "not shown to be as good as old on the same 9 rows: accuracy -0.0500 [-0.0600, -0.0400], McNemar p = 0.5; the interval may reach down to "
            "-0.05 (evaluate.not_worse_margin) and no further"
        ]


# ---- against a published model ----


def test_what_a_published_model_was_trained_on_is_found_or_follows_from_the_split(
    tiny_run: runs.Run, tiny_model: Published, tmp_path: Path
) -> None:
    lineage = {"former": str(tiny_run.path), "against": str(tiny_model.path), "added": []}
    model, name, seen = retrain._rival(lineage, tiny_run.config, tiny_run.path.parent)
    assert (name, model.labels) == (f"tiny {tiny_model.version}", ("negative", "positive"))
    assert len(seen.train) == len(data.open_prepared(tiny_run.path / "data").train)
    moved = copy_of(tiny_run, tmp_path)
    elsewhere = moved.path.rename(tmp_path / "under-another-name")
    lineage["former"] = str(elsewhere)
    assert retrain._rival(lineage, tiny_run.config, tmp_path)[2] is None
    other = config.load_dict(tiny_run.config.to_dict(), "test", ["data.split_salt=another"])
    with pytest.raises(
        ConfigError, match=rf"^{name}: whether it was trained on rows of this test split cannot be told: .* \(data.split_salt\)"
    ):
        retrain._rival(lineage, other, tmp_path)


# ---- the command ----


def test_the_command_refuses_a_worse_model_with_exit_3_and_the_next_one_does_not_start_from_it(
    tiny_run: runs.Run, feedback: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    former = copy_of(tiny_run, tmp_path)
    monkeypatch.setattr(cli, "_publish", lambda *_: pytest.fail("a worse model was published"))
    wreck = ["train.epochs=1", "train.learning_rate=0.3", "train.warmup_fraction=0"]
    settings = [part for one in wreck for part in ("--set", one)]
    assert cli.main(["retrain", "--runs", str(tmp_path), "--data", str(feedback), *settings, "--json"]) == 3
    said = json.loads(capsys.readouterr().out)
    assert said["error"] == "GateError"
    assert f"{former.path.name} on the same" in said["message"]
    new = runs.list_runs(tmp_path)[-1]
    assert new.info["status"] == "failed"
    assert said["message"] == new.info["reason"]
    assert runs.read_json(new.path / "metrics.json")["gate"]["checks"]["former"]["passed"] is False
    assert (tmp_path / "latest").resolve() == new.path.resolve()
    assert cli._newest_finished(tmp_path).path == former.path


def test_the_command_publishes_a_model_that_is_not_worse(
    tiny_run: runs.Run,
    retrained: tuple[runs.Run, dict[str, Any]],
    feedback: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, comparison = retrained
    result = type("Result", (), {"run": run, "metrics": runs.read_json(run.path / "metrics.json")})()
    monkeypatch.setattr(retrain, "retrain", lambda *_, **__: (result, comparison))
    monkeypatch.setattr(cli, "_publish", lambda found, to: ({"model": f"{to}/1", "run": found.path.name}, "Published: it"))
    command = ["retrain", str(tiny_run.path), "--data", str(feedback), "--to", "models/bank"]
    assert cli.main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["exported"] == {"model": "models/bank/1", "run": run.path.name}
    assert document["comparison"] == json.loads(json.dumps(comparison))
    assert cli.main([*command, "--no-export"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Compared with {tiny_run.path.name}, which trained on none of these rows either: not worse\n  same rows")
    assert "Rows from feedback do not: people correct what the former model got wrong." in text
    assert "Published" not in text


def test_the_command_without_new_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["retrain"]) == 2
    assert "no new rows. Give the files: tfpipeline retrain --data feedback.csv" in capsys.readouterr().err


def test_a_retraining_that_was_stopped_is_compared_when_it_is_resumed(
    retrained: tuple[runs.Run, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resuming is `train`'s, the verdict is not: a run that `retrain` began must not end without it."""
    run = copy_of(retrained[0], tmp_path)
    metrics = runs.read_json(run.path / "metrics.json")
    runs.write_json(run.path / "metrics.json", {**metrics, "gate": {"passed": None, "reasons": [], "checks": {}}})
    assert cli.main(["train", "--resume", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gate"]["checks"]["former"]["verdict"] == "not worse"
