"""One command per stage, in flow order. Frees the rooms from arguments, printing and exit codes.

Results go to stdout, progress and messages to stderr; with `--json` stdout is exactly one JSON document. Exit codes: 0 done, 2 your mistake,
3 a quality gate said no, 4 a server cannot be reached, 130 stopped with Ctrl-C, 1 a fault of ours (with a traceback, to report).

Only the standard library is imported until a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfpipeline import __version__, config
from tfpipeline.config import Config
from tfpipeline.errors import ConfigError, PipelineError

DESCRIPTION = """Raw labelled text in, a published BERT classifier out. The stages, in the order of the flow:"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.command:
        parser.print_help()
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from tfpipeline.runtime import quiet

    quiet()
    try:
        result, text = options.run(options)
        exit_code = 0
    except KeyboardInterrupt as error:
        result, text, exit_code = {"error": "Interrupted", "message": str(error)}, "", 130
        print(f"\nInterrupted: {error}" if str(error) else "\nInterrupted.", file=sys.stderr)
    except BrokenPipeError:
        return 0
    except Exception as error:
        # Both trees of errors, ours and that of `serving`, say what to exit with; anything else is a fault.
        if not hasattr(error, "exit_code"):
            raise
        result, text, exit_code = {"error": type(error).__name__, "message": str(error)}, "", int(error.exit_code)
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    if options.json:
        # A bad byte that a message quotes is a lone surrogate here, which UTF-8 cannot carry.
        print(json.dumps(result, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8"))
    elif text:
        print(text)
    return exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tfpipeline", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"tfpipeline {__version__}")
    parser.set_defaults(command="", json=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, run: Any, summary: str, example: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=summary, description=summary, epilog=f"example:\n  {example}", formatter_class=argparse.RawDescriptionHelpFormatter
        )
        added.add_argument("--json", action="store_true", help="print exactly one JSON document on stdout")
        added.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of run directories (default: runs)")
        added.set_defaults(run=run)
        return added

    def configured(added: argparse.ArgumentParser, *, data: bool = True) -> None:
        added.add_argument("--preset", default="", metavar="NAME", help="start from a preset (bank, scratch, sst2)")
        added.add_argument("--config", default="", metavar="FILE", help="a TOML file over the preset")
        if data:
            added.add_argument("--data", action="append", default=[], metavar="PATH", help="training files (data.path); repeatable")
        added.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting; repeatable")

    data = command(
        "data", _data, "report on raw files before training", "tfpipeline data reviews.csv --set data.text=review --set data.label=stars"
    )
    data.add_argument("path", nargs="*", help="files, globs or folders (data.path)")
    configured(data, data=False)

    train = command("train", _train, "train, evaluate, keep the best epoch", "tfpipeline train --preset bank --set train.epochs=3")
    configured(train)
    train.add_argument("--resume", default="", metavar="RUN", help="go on with a run that was stopped: a path, a name, or latest")

    evaluate = command(
        "evaluate", _evaluate, "metrics of a run, or of an exported model on labelled files", "tfpipeline evaluate latest --split test"
    )
    evaluate.add_argument("model", metavar="RUN_OR_MODEL", help="a run (path, name, latest) or a folder of exported models")
    evaluate.add_argument(
        "--data", action="append", default=[], metavar="PATH", help="labelled files instead of the run's own split; repeatable"
    )
    evaluate.add_argument("--split", default="test", choices=("train", "validation", "test"), help="which split of the run (default: test)")
    evaluate.add_argument("--against", default="", metavar="RUN", help="also compare with this run on the same rows (paired test)")

    predict = command("predict", _predict, "label and probabilities of texts", 'tfpipeline predict models "the app lost my payment"')
    predict.add_argument("model", metavar="RUN_OR_MODEL", help="a run (path, name, latest) or a folder of exported models")
    predict.add_argument("text", nargs="*", help="texts to classify (for a pair model: first and second text)")
    predict.add_argument("--input", action="append", default=[], metavar="FILE", help="score the rows of a file instead; repeatable")
    predict.add_argument("--output", default="", metavar="FILE", help="where the scored rows go: .jsonl, .csv or .parquet")

    export = command(
        "export", _export, "publish a run as a SavedModel that takes raw text", "tfpipeline export latest --to models/sentiment"
    )
    export.add_argument("model", metavar="RUN", nargs="?", default="latest", help="a run: path, name, or latest (default)")
    export.add_argument("--to", default="", metavar="models/NAME", help="where to publish (default: export.root / export.name)")

    command("runs", _runs, "list the runs", "tfpipeline runs")

    settings = command("config", _config, "look at settings and presets", "tfpipeline config --explain train.learning_rate")
    settings.add_argument("--explain", default="", metavar="KEY", help="meaning, unit, default and source of one setting")
    configured(settings)
    return parser


def _load_config(options: argparse.Namespace) -> Config:
    overrides = list(options.set)
    paths = [*getattr(options, "data", ()), *getattr(options, "path", ())]
    if paths:
        overrides.insert(0, f"data.path={json.dumps(paths)}")
    preset = options.preset if options.preset or options.config or paths or overrides else config.DEFAULT_PRESET
    return config.load(preset, options.config, overrides)


# ---- the commands: each returns (document for --json, text for people) ----


def _data(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from tfpipeline import data

    loaded = _load_config(options)
    corpus = data.prepare(loaded.data)
    note = ""
    try:
        from tfpipeline import backbone, runtime

        runtime.check()
        from tfpipeline import text, trained

        found = backbone.find(loaded.model.backbone)
        vocabulary = text.known_vocabulary(loaded.text, found)
        if vocabulary is None:
            note = "Token lengths: not counted, because the vocabulary of a scratch backbone is learned while training."
        else:
            trained.count_corpus(text.Preprocessor(vocabulary, loaded.text, text.lower_cases(loaded.text, found)), corpus)
    except PipelineError as error:  # a data report does not need a backbone
        note = f"Token lengths: not counted: {error}"
    return corpus.report, data.render(corpus.report) + (f"\n\n{note}" if note else "")


def _train(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from tfpipeline import runs, runtime

    started = time.monotonic()
    resume = None
    if options.resume:
        if options.preset or options.config or options.set or options.data:
            raise ConfigError(
                "--resume goes on with the run's own config. Leave out --preset, --config, --set and --data, or start a new run."
            )
        resume = runs.find(options.resume, options.runs)
        loaded = resume.config
    else:
        loaded = _load_config(options)
    runtime.check()
    from tfpipeline import evaluate
    from tfpipeline.train import train

    result = train(loaded, root=options.runs, resume=resume)
    metrics = result.metrics
    document = {
        "run": str(result.run.path),
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "seconds": round(time.monotonic() - started, 1),
        "examples_per_second": round(result.examples_per_second, 1),
        "metrics": metrics["metrics"],
        "baseline": metrics["baseline"],
        "comparison": metrics["comparison"],
        "gate": metrics["gate"],
    }
    accuracy = metrics["metrics"]["accuracy"]
    text = "\n".join(
        [
            evaluate.render(metrics["metrics"], metrics["baseline"], metrics["comparison"]),
            "",
            f"Run:       {result.run.path}",
            f"Report:    {result.run.path / 'evaluation' / 'report.html'}",
            f"Accuracy:  {100 * accuracy['value']:.1f} % [{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}] on {metrics['metrics']['n']} test texts"
            f" (best epoch {result.best_epoch} of {result.epochs})",
            f"Time:      {document['seconds']:.0f} s, {result.examples_per_second:.0f} examples a second while training",
            "",
            "Next:      make export            publish it as a SavedModel that takes raw text",
            '           make predict TEXT="the app lost my payment"',
        ]
    )
    return document, text


def _evaluate(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from tfpipeline import data, evaluate, judge

    kind, opened = _open(options)
    if kind == "model" or options.data:
        if not options.data:
            raise ConfigError("an exported model has no split of its own. Give labelled files: --data PATH.")
        loaded = opened.config
        parts = list(data.read_examples(options.data, loaded.data, opened.labels, need_labels=True))
        if not parts:
            raise ConfigError(f"{', '.join(options.data)}: no usable row.")
        examples = data.Examples.concatenate(parts)
        metrics = judge.judge_files(
            opened.predict, examples, labels=opened.labels, task=opened.task, config=loaded.evaluate, seed=loaded.runtime.seed
        )
        return {"metrics": metrics}, evaluate.render(metrics)
    from tfpipeline import runs

    run = runs.find(options.model, options.runs)
    corpus = data.open_prepared(run.path / "data")
    with run.writing():
        result = judge.judge(opened, run, corpus, split=options.split)
    text = evaluate.render(result["metrics"], result["baseline"], result["comparison"])
    if options.against:
        result["against"] = judge.compare_runs(run, runs.find(options.against, options.runs), options.split)
        found = result["against"]["accuracy_difference"]
        text += (
            f"\n\nAgainst {result['against']['names'][1]} on the same {result['against']['n']} rows: accuracy {100 * found['value']:+.2f} points "
            f"[{100 * found['low']:+.2f}, {100 * found['high']:+.2f}], McNemar p = {result['against']['mcnemar_p']:.3g}: {result['against']['verdict']}"
        )
    judge.hold_gate(result)
    return result, text + f"\n\nReport: {run.path / 'evaluation' / 'report.html'}"


def _predict(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    if bool(options.text) == bool(options.input):
        raise ConfigError('give texts (tfpipeline predict MODEL "a text"), or --input FILE, not both and not neither.')
    if options.input and not options.output:
        raise ConfigError("--input needs --output FILE (.jsonl, .csv or .parquet).")
    _, opened = _open(options)
    from tfpipeline.export import answers, to_json_line

    loaded = opened.config
    if options.input:
        from tfpipeline import score

        return score.score_files(opened, loaded, options.input, Path(options.output))
    texts, pairs = list(options.text), None
    if opened.has_pairs:
        if len(texts) % 2:
            raise ConfigError(
                f"this model takes pairs of texts; received {len(texts)} texts. Give first and second text, one after the other."
            )
        texts, pairs = texts[0::2], texts[1::2]
    rows = list(answers(opened.labels, opened.task, loaded.data.label_separator, opened.predict(texts, pairs)))
    document = {"model": str(getattr(getattr(opened, "published", None), "path", options.model)), "predictions": rows}
    lines = []
    for text, row in zip(texts, rows, strict=True):
        shares = "  ".join(f"{name} {value:.3f}" for name, value in sorted(row["probabilities"].items(), key=lambda item: -item[1])[:8])
        lines.append(f"{row['label'] or '(none)'}\t{shares}" + (f"\t{to_json_line({'text': text})}" if len(texts) > 1 else ""))
    return document, "\n".join(lines)


def _export(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from tfpipeline import runs, runtime

    run = runs.find(options.model, options.runs)
    runtime.check()
    from tfpipeline.export import export

    target = Path(options.to) if options.to else None
    published = export(run, root=target.parent if target else None, name=target.name if target else "")
    manifest = published.manifest
    size = sum(file["bytes"] for file in manifest["files"].values())
    document = {
        "model": str(published.path),
        "name": published.name,
        "version": published.version,
        "bytes": size,
        "parity": manifest["parity"],
    }
    differences = max(manifest["parity"][key] for key in ("serving_default", "tokens", "classify"))
    text = "\n".join(
        [
            f"Published: {published.path} ({size / 1e6:.1f} MB)",
            f"Parity:    the three signatures agree with the trained model to {differences:.1e} on {manifest['parity']['texts']} texts",
            f"Ops:       {len(manifest['ops'])} kinds, all in stock TensorFlow Serving; {manifest['warmup_records']} warm-up records replayed",
            "",
            'Next:      make predict TEXT="the app lost my payment"',
        ]
    )
    return document, text


def _runs(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from tfpipeline import runs

    rows = []
    for run in runs.list_runs(options.runs):
        info = run.info
        accuracy = None
        if (run.path / "metrics.json").is_file():
            accuracy = runs.read_json(run.path / "metrics.json")["metrics"]["accuracy"]["value"]
        rows.append(
            {"run": run.path.name, "status": info["status"], "accuracy": accuracy, "seconds": info.get("seconds"), "reason": info["reason"]}
        )
    if not rows:
        return {"runs": []}, f"No run in {options.runs} yet. Make one: tfpipeline train"
    lines = [f"{'run':<48} {'status':<12} {'accuracy':>8} {'seconds':>8}"]
    for row in rows:
        accuracy = f"{row['accuracy']:.4f}" if row["accuracy"] is not None else "-"
        lines.append(f"{row['run']:<48} {row['status']:<12} {accuracy:>8} {row['seconds'] if row['seconds'] is not None else '-':>8}")
    return {"runs": rows}, "\n".join(lines)


def _config(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    if options.explain:
        setting = config.explain(options.explain)
        lines = [
            f"{setting.key} ({setting.type})",
            f"  {setting.meaning}",
            f"  unit: {setting.unit or 'none'}",
            f"  default: {json.dumps(setting.default)}",
            f"  source: {setting.source or 'our choice'}",
        ]
        if setting.bounds:
            lines.append(f"  bounds: {setting.bounds}")
        if setting.choices:
            lines.append(f"  choices: {', '.join(setting.choices)}")
        document = {key: getattr(setting, key) for key in ("key", "type", "default", "meaning", "unit", "bounds", "source", "choices")}
        return document, "\n".join(lines)
    loaded = _load_config(options)
    values = loaded.to_dict()
    lines = []
    for key, setting in config.settings().items():
        section, _, name = key.rpartition(".")
        value = values[section][name] if section else values[name]
        mark = "" if value == json.loads(json.dumps(setting.default)) else "  # changed"
        lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}{mark}")
    return values, "\n".join(lines)


def _open(options: argparse.Namespace) -> tuple[str, Any]:
    """A run's trained model, or an exported one; both answer `predict(texts, pairs)`.

    A folder that holds neither is an error that says what both look like.
    """
    from tfpipeline import runs, runtime
    from tfpipeline.errors import RunError

    path = Path(options.model)
    run = None
    with contextlib.suppress(RunError):
        run = runs.find(options.model, options.runs)
    if run is None and not path.is_dir():
        runs.find(options.model, options.runs)  # raises, naming the runs
    runtime.check()
    if run is not None:
        from tfpipeline.trained import load

        return "run", load(run)
    from tfpipeline.export import open_model

    return "model", open_model(path)


if __name__ == "__main__":
    sys.exit(main())
