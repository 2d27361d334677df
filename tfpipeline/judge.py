"""A trained model and its corpus to a verdict: predictions, metrics, the baseline's row, the report, the gate.

In: a `Trained` and a `Corpus` (or other labelled files). Out: the dict of `metrics.json`; beside it `evaluation/` with predictions and report.
The mathematics is `tfpipeline.evaluate`'s; this room only knows where things lie in a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tfpipeline import evaluate
from tfpipeline.config import EvaluateConfig
from tfpipeline.data import Corpus, Examples
from tfpipeline.data.intake import keys_of, row_keys
from tfpipeline.errors import GateError, RunError
from tfpipeline.runs import Run, find, read_json, write_json
from tfpipeline.trained import Trained, count_tokens


def judge(trained: Trained, run: Run, corpus: Corpus, *, split: str = "test") -> dict[str, Any]:
    """Evaluates on one split of the run's own corpus and writes `metrics.json`, predictions and `evaluation/report.html`."""
    config = trained.config
    examples = corpus.split(split)
    folder = run.path / "evaluation"
    found = _answered(trained, corpus, split)
    validation, probabilities, metrics = found.validation, found.probabilities, found.metrics
    shared = _shared(trained)
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
    history = _history(run)
    result = {
        "split": split,
        "best_epoch": max((event["epoch"] for event in history["epochs"] if event["best"]), default=None),
        "metrics": metrics,
        "validation": evaluate.evaluate(corpus.validation, validation, temperature=found.temperature, **shared),
        "baseline": baseline,
        "comparison": comparison,
        "gate": gate,
        "reference": reference(probabilities, trained.labels),
    }
    write_json(run.path / "metrics.json", result)
    write_report(run, result, corpus.report)
    return result


def judge_variant(trained: Trained, corpus: Corpus, found: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """`metrics.json` of the run with what a smaller variant of it answers on the same split, and with the variant's budget among the gate's checks.

    Args:
        trained: the variant, in its float form.
        corpus: of the run.
        found: the run's own `metrics.json`; the temperature is fitted anew.
        report: the variant's `report.json`.
    """
    answered = _answered(trained, corpus, found["split"])
    reasons = (
        [] if report["passes"] else [f"variant {report['variant']} lost {report['drop_points']:.2f} points, allowed {report['max_drop']:g}"]
    )
    reasons += found["gate"]["reasons"]
    checks = {**found["gate"]["checks"], "max_drop": {"most": report["max_drop"], "value": report["drop_points"]}}
    gate = {"passed": not reasons, "reasons": reasons, "checks": checks}
    return {**found, "metrics": answered.metrics, "gate": gate, "reference": reference(answered.probabilities, trained.labels)}


@dataclass(frozen=True)
class _Answered:
    """What a model says of validation and of a split, and how good that is."""

    validation: Any
    temperature: float
    probabilities: Any
    metrics: dict[str, Any]


def _answered(trained: Trained, corpus: Corpus, split: str) -> _Answered:
    examples, batch_size = corpus.split(split), trained.config.evaluate.batch_size
    validation = trained.predict_examples(corpus.validation, batch_size=batch_size)
    temperature = evaluate.fit_temperature(validation, corpus.validation.labels, trained.task)
    probabilities = trained.predict_examples(examples, batch_size=batch_size, progress=True)
    lengths, _ = count_tokens(trained.preprocessor, examples)
    metrics = evaluate.evaluate(examples, probabilities, temperature=temperature, token_lengths=lengths, **_shared(trained))
    return _Answered(validation, temperature, probabilities, metrics)


def _shared(trained: Trained) -> dict[str, Any]:
    """What `evaluate.evaluate` takes of a model, whatever the rows."""
    return {"labels": trained.labels, "task": trained.task, "config": trained.config.evaluate, "seed": trained.config.runtime.seed}


def write_report(run: Run, result: dict[str, Any], data_report: dict[str, Any], compression: dict[str, Any] | None = None) -> None:
    """`evaluation/report.html` from what `judge` found, and what has become of the run since."""
    evaluate.write_report(
        run.path / "evaluation" / "report.html",
        title=f"{run.config.name}: {run.path.name}",
        metrics=result["metrics"],
        baseline=result["baseline"],
        comparison=result["comparison"],
        history=_history(run),
        config_dict=run.config.to_dict(),
        data_report=data_report,
        compression=compression,
    )


def _history(run: Run) -> dict[str, Any]:
    """Epochs and steps; of one that a resumed run did again, the last line counts."""
    return {f"{name}s": list({event[name]: event for event in run.events(name)}.values()) for name in ("epoch", "step")}


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


@dataclass(frozen=True)
class Added:
    """Ids of the rows that a retraining added to the former ones."""

    feedback: frozenset[str]
    pseudo: frozenset[str]


def compare_with_former(run: Run, corpus: Corpus, former: Any, name: str, seen: Corpus | None, added: Added) -> dict[str, Any]:
    """Whether a retrained run is not worse than the model it would replace; the answer becomes a check of the run's gate.

    Both models answer the same test rows, and neither was trained on one of them: rows whose text is in the training or validation split of either
    are left out and counted. Rows that came from feedback do not decide: people correct what the former model got wrong, so on those it
    loses whatever the new one is like. They are a slice of their own.

    Args:
        run: the new run, evaluated on test.
        corpus: its corpus.
        former: what answers `predict(texts, pairs)`: a `Trained` or an exported model.
        name: of the former model, for messages.
        seen: what the former model was trained on; None: it was split by the same hash with the same salt, which keeps test rows out of training.
        added: which rows are new.

    Returns:
        `names`, `rows` (how many are in test, compared, from feedback, left out), `same_rows` and `feedback` (each as `evaluate.compare`, new - former;
        None without rows), `margin`, `verdict` ("not worse", "worse", "not shown"), `passed`, `reasons`.

    Raises:
        RunError: the two have other labels.
    """
    config = run.config
    mine = _predictions(run, "test")
    _same_labels(mine.labels, former.labels, (run.path.name, name))
    test = corpus.test
    texts, pairs = test.text_batch(np.arange(len(test)))
    trained_on = set(keys_of(corpus.train)).union(*(keys_of(split) for split in (seen.train, seen.validation)) if seen else ())
    ids = test.ids.to_pylist()
    left_out = np.array([key in trained_on for key in row_keys(texts, pairs)], bool)
    from_feedback = np.array([row in added.feedback for row in ids], bool)
    pseudo = np.array([row in added.pseudo for row in ids], bool)
    groups = {"same_rows": ~left_out & ~from_feedback & ~pseudo, "feedback": ~left_out & from_feedback}
    theirs = former.predict(texts, pairs, batch_size=config.evaluate.batch_size, progress=True)
    result: dict[str, Any] = {
        "names": [run.path.name, name],
        "rows": {
            "test": len(test),
            "compared": int(groups["same_rows"].sum()),
            "from_feedback": int(groups["feedback"].sum()),
            "seen_in_training": int(left_out.sum()),
            "pseudo_labels": int(pseudo.sum()),
        },
    }
    for group, mask in groups.items():
        result[group] = (
            evaluate.compare(
                mine.probabilities[mask],
                theirs[mask],
                test.labels[mask],
                mine.task,
                config=config.evaluate,
                seed=config.runtime.seed,
                names=(run.path.name, name),
            )
            if mask.any()
            else None
        )
    margin = config.evaluate.not_worse_margin
    result |= {"margin": margin, **not_worse(result["same_rows"], margin)}
    metrics = read_json(run.path / "metrics.json")
    gate, earlier = metrics["gate"], metrics["gate"]["checks"].pop("former", {"reasons": []})
    reasons = [reason for reason in gate["reasons"] if reason not in earlier["reasons"]] + result["reasons"]
    metrics["gate"] = {"passed": not reasons, "reasons": reasons, "checks": {**gate["checks"], "former": result}}
    write_json(run.path / "metrics.json", metrics)
    return result


def not_worse(found: dict[str, Any] | None, margin: float) -> dict[str, Any]:
    """`verdict`, `passed` and `reasons` from a paired comparison (new - former) and the loss that its interval may reach down to.

    | paired test | lower end of the interval | verdict | passed |
    |---|---|---|---|
    | says worse | anywhere | worse | no |
    | does not | at or above -margin | not worse | yes |
    | does not | below -margin | not shown: too few rows, or too many changes | no |
    """
    if found is None:
        reason = "no test row is left to compare on: all came from feedback or were in the training of one of the two. Add labelled rows"
        return {"verdict": "not shown", "passed": False, "reasons": [reason]}
    difference = found["accuracy_difference"]
    told = (
        f"accuracy {difference['value']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}], McNemar p = {found['mcnemar_p']:.3g}"
    )
    where = f"{found['names'][1]} on the same {found['n']} rows"
    if found["verdict"] == "worse":
        return {"verdict": "worse", "passed": False, "reasons": [f"worse than {where}: {told}"]}
    if difference["low"] < -margin:
        reason = f"not shown to be as good as {where}: {told}; the interval may reach down to -{margin:g} (evaluate.not_worse_margin) and no further"
        return {"verdict": "not shown", "passed": False, "reasons": [reason]}
    return {"verdict": "not worse", "passed": True, "reasons": []}


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
    _same_labels(labels, theirs.labels, names)
    order = evaluate.align(ids, theirs.ids, names)
    return evaluate.compare(probabilities, theirs.probabilities[order], targets, task, config=config, names=names)


def _same_labels(ours: tuple[str, ...], theirs: tuple[str, ...], names: tuple[str, str]) -> None:
    if tuple(ours) != tuple(theirs):
        raise RunError(
            f"{names[0]} and {names[1]} cannot be compared: their labels are {list(ours)} and {list(theirs)}. Give both the same data.labels."
        )


def reference(probabilities: Any, labels: tuple[str, ...]) -> dict[str, Any]:
    """What the answers to a served model's traffic are later compared with; export adds what the texts look like.

    With several labels a text, `predicted` counts the likeliest one of each row, so that the counts add up to `rows` for every task.
    """
    chosen = probabilities.argmax(axis=1)
    return {
        "rows": len(probabilities),
        "predicted": {label: int((chosen == number).sum()) for number, label in enumerate(labels)},
        "confidence": {
            "edges": [round(i / 20, 2) for i in range(21)],
            "counts": np.histogram(probabilities.max(axis=1), bins=20, range=(0, 1))[0].tolist(),
        },
    }
