"""A trained model and its corpus to a verdict: predictions, metrics, the baseline's row, the report, the gate.

In: a `Trained` and a `Corpus` (or other labelled files). Out: the dict of `metrics.json`; beside it `evaluation/` with predictions and report.
The mathematics is `tfpipeline.evaluate`'s; this room only knows where things lie in a run.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfpipeline import evaluate
from tfpipeline.config import EvaluateConfig
from tfpipeline.data import Corpus, Examples
from tfpipeline.errors import GateError, RunError
from tfpipeline.runs import Run, find, write_json
from tfpipeline.trained import Trained, count_tokens


def judge(trained: Trained, run: Run, corpus: Corpus, *, split: str = "test") -> dict[str, Any]:
    """Evaluates on one split of the run's own corpus and writes `metrics.json`, predictions and `evaluation/report.html`."""
    config = trained.config
    examples = corpus.split(split)
    folder = run.path / "evaluation"
    validation = trained.predict_examples(corpus.validation, batch_size=config.evaluate.batch_size)
    temperature = evaluate.fit_temperature(validation, corpus.validation.labels, trained.task)
    probabilities = trained.predict_examples(examples, batch_size=config.evaluate.batch_size, progress=True)
    lengths, unknown = count_tokens(trained.preprocessor, examples)
    shared: dict[str, Any] = {"labels": trained.labels, "task": trained.task, "config": config.evaluate, "seed": config.runtime.seed}
    metrics = evaluate.evaluate(examples, probabilities, temperature=temperature, token_lengths=lengths, **shared)
    evaluate.save_predictions(folder / f"{split}.parquet", examples, probabilities, trained.labels)
    evaluate.save_predictions(folder / "validation.parquet", corpus.validation, validation, trained.labels)

    baseline = comparison = None
    if config.evaluate.tfidf_baseline:
        answers, description = evaluate.tfidf_baseline(corpus.train, examples, trained.labels, trained.task, config.runtime.seed)
        baseline = evaluate.evaluate(examples, answers, **shared)
        baseline["description"] = description
        comparison = evaluate.compare(
            probabilities,
            answers,
            examples.labels,
            trained.task,
            config=config.evaluate,
            seed=config.runtime.seed,
            names=("BERT", "TF-IDF"),
        )
    gate = _gate(trained, run, examples, probabilities, metrics, split)
    # Of an epoch or step that a resumed run did again, the last line counts.
    epochs = list({event["epoch"]: event for event in run.events("epoch")}.values())
    steps = list({event["step"]: event for event in run.events("step")}.values())
    result = {
        "split": split,
        "best_epoch": max((event["epoch"] for event in epochs if event["best"]), default=None),
        "metrics": metrics,
        "validation": evaluate.evaluate(corpus.validation, validation, temperature=temperature, **shared),
        "baseline": baseline,
        "comparison": comparison,
        "gate": gate,
        "reference": _reference(probabilities, lengths, unknown, trained.labels),
    }
    write_json(run.path / "metrics.json", result)
    evaluate.write_report(
        folder / "report.html",
        title=f"{config.name}: {run.path.name}",
        metrics=metrics,
        baseline=baseline,
        comparison=comparison,
        history={"epochs": epochs, "steps": steps},
        config_dict=config.to_dict(),
        data_report=corpus.report,
    )
    return result


def judge_files(predict: Any, examples: Examples, *, labels: tuple[str, ...], task: str, config: Any, seed: int) -> dict[str, Any]:
    """Metrics on labelled rows from anywhere. `predict(texts, pairs)` gives probabilities float32 `[rows, classes]`."""
    texts, pairs = examples.text_batch(np.arange(len(examples)))
    return evaluate.evaluate(examples, predict(texts, pairs), labels=labels, task=task, config=config, seed=seed)


def compare_runs(first: Run, second: Run, split: str = "test") -> dict[str, Any]:
    """A paired test of two runs on the rows of one split.

    Raises:
        RunError: one of them was not evaluated on it.
        DataError: their rows differ.
    """
    mine = _predictions(first, split)
    return _against(
        second, split, mine.ids, mine.probabilities, mine.targets, mine.labels, mine.task, first.config.evaluate, first.path.name
    )


def hold_gate(result: dict[str, Any]) -> None:
    """Raises GateError when the gate in a result of `judge` says no."""
    if result["gate"]["passed"] is False:
        raise GateError("; ".join(result["gate"]["reasons"]))


def _gate(trained: Trained, run: Run, examples: Examples, probabilities: Any, metrics: dict[str, Any], split: str) -> dict[str, Any]:
    """`passed` is None where no gate is set."""
    config = trained.config
    reasons: list[str] = []
    checks: dict[str, Any] = {}
    least = config.evaluate.min_accuracy
    if least:
        value = metrics["accuracy"]["value"]
        checks["min_accuracy"] = {"least": least, "value": value}
        if value < least:
            reasons.append(f"accuracy {value:.4f} on {split} is below evaluate.min_accuracy = {least:g}")
    if config.train.baseline_run:
        other = find(config.train.baseline_run, run.path.parent)
        ids, name = examples.ids.to_pylist(), "this run"
        found = _against(other, split, ids, probabilities, examples.labels, trained.labels, trained.task, config.evaluate, name)
        checks["baseline_run"] = found
        if found["verdict"] == "worse":
            difference = found["accuracy_difference"]
            reasons.append(
                f"worse than {other.path.name} on the same {found['n']} rows: accuracy {difference['value']:+.4f} "
                f"[{difference['low']:+.4f}, {difference['high']:+.4f}], McNemar p = {found['mcnemar_p']:.3g}"
            )
    return {"passed": (not reasons) if checks else None, "reasons": reasons, "checks": checks}


def _predictions(run: Run, split: str) -> evaluate.Predictions:
    path = run.path / "evaluation" / f"{split}.parquet"
    if not path.is_file():
        raise RunError(f"{run.path}: has no predictions of split {split!r}. Make them: tfpipeline evaluate {run.path} --split {split}")
    return evaluate.load_predictions(path)


def _against(
    other: Run,
    split: str,
    ids: list[str],
    probabilities: Any,
    targets: Any,
    labels: tuple[str, ...],
    task: str,
    config: EvaluateConfig,
    name: str,
) -> dict[str, Any]:
    """The paired test of these predictions, called `name`, against those of another run."""
    theirs = _predictions(other, split)
    names = (name, other.path.name)
    if tuple(labels) != tuple(theirs.labels):
        raise RunError(
            f"{names[0]} and {names[1]} cannot be compared: their labels are {list(labels)} and {list(theirs.labels)}. Give both the same data.labels."
        )
    order = evaluate.align(ids, theirs.ids, names)
    return evaluate.compare(probabilities, theirs.probabilities[order], targets, task, config=config, names=names)


def _reference(probabilities: Any, lengths: Any, unknown: Any, labels: tuple[str, ...]) -> dict[str, Any]:
    """What the served model's traffic is later compared with: shares and histograms on this split."""
    chosen = probabilities.argmax(axis=1)
    edges = [0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1_000_000]
    return {
        "rows": len(probabilities),
        "predicted": {label: int((chosen == number).sum()) for number, label in enumerate(labels)},
        "confidence": {
            "edges": [round(i / 20, 2) for i in range(21)],
            "counts": np.histogram(probabilities.max(axis=1), bins=20, range=(0, 1))[0].tolist(),
        },
        "tokens": {"edges": edges, "counts": np.histogram(lengths, bins=edges)[0].tolist()},
        "unknown_share": round(float(unknown.sum() / max(1, int(lengths.sum()))), 6),
    }
