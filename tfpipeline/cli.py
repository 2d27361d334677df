"""One command per stage, in flow order. Frees the rooms from arguments, printing and exit codes.

Results go to stdout, progress and messages to stderr; with `--json` stdout is exactly one JSON document. Exit codes: 0 done, 2 your mistake,
3 a quality gate said no, 4 a server cannot be reached, 75 another worker of a distributed training is gone (start all again with --resume),
130 stopped with Ctrl-C, 1 a fault of ours (with a traceback, to report).

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
from tfpipeline.compress import command as compress_command
from tfpipeline.config import Config
from tfpipeline.edge import command as edge_command
from tfpipeline.errors import ConfigError, PipelineError
from tfpipeline.search import command as search_command

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

    retrain = command(
        "retrain",
        _retrain,
        "go on from a run with more rows; publish the model if it is not worse",
        "tfpipeline retrain --data feedback.csv",
    )
    retrain.add_argument("model", metavar="RUN", nargs="?", default="", help="a run: path or name (default: the newest finished one)")
    retrain.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="PATH",
        help="the new labelled rows, with the columns of the run's own files; repeatable",
    )
    retrain.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting of the run; repeatable")
    retrain.add_argument("--against", default="", metavar="MODEL", help="an exported model to compare with (default: the run's own)")
    retrain.add_argument("--no-export", action="store_true", help="train and compare only")
    retrain.add_argument("--to", default="", metavar="models/NAME", help="where to publish (default: export.root / export.name)")

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
    predict.add_argument("--shard", default="", metavar="K/N", help="score part K of N only, into FILE-0000K-of-0000N: for many machines")

    explain = command(
        "explain",
        _explain,
        "which words of a text spoke for its label, and how much",
        'tfpipeline explain models "the app lost my payment"',
    )
    explain.add_argument("model", metavar="RUN_OR_MODEL", help="a run (path, name, latest) or a folder of exported models")
    explain.add_argument("text", nargs="+", help="texts to explain (for a pair model: first and second text)")
    explain.add_argument("--html", default="", metavar="FILE", help="also write one self-contained page")
    explain.add_argument("--color", default="auto", choices=("auto", "always", "never"), help="colour the words (default: on a terminal)")

    export = command(
        "export", _export, "publish a run as a SavedModel that takes raw text", "tfpipeline export latest --to models/sentiment"
    )
    export.add_argument("model", metavar="RUN", nargs="?", default="latest", help="a run: path, name, or latest (default)")
    export.add_argument("--to", default="", metavar="models/NAME", help="where to publish (default: export.root / export.name)")
    export.add_argument(
        "--sagemaker", default="", metavar="FILE.tar.gz", help="also pack it as SageMaker's TensorFlow Serving container expects it"
    )

    export.add_argument(
        "--variant", default="", metavar="NAME", help="a smaller variant of the run (see compress) instead of the run itself"
    )
    # Each of these rooms brings its own command; the modules import nothing heavy before they run.
    for room in (search_command, compress_command, edge_command):
        room.add(command)

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
    if resume is not None and "retrained" in resume.info:
        from tfpipeline import retrain

        retrain.finish(result.run)
        metrics = runs.read_json(result.run.path / "metrics.json")
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


def _retrain(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    if not options.data:
        raise ConfigError(
            "no new rows. Give the files: tfpipeline retrain --data feedback.csv (python -m serving feedback collect writes one)."
        )
    from tfpipeline import runs, runtime

    former = runs.find(options.model, options.runs) if options.model else _newest_finished(options.runs)
    runtime.check()
    from tfpipeline.retrain import retrain

    result, found = retrain(former, options.data, root=options.runs, overrides=options.set, against=options.against)
    document: dict[str, Any] = {
        "run": str(result.run.path),
        "parent": str(former.path),
        "comparison": found,
        "gate": result.metrics["gate"],
        "exported": None,
    }
    lines = [_compared(found), "", f"Run:       {result.run.path}, started from {former.path.name}"]
    if options.no_export:
        return document, "\n".join([*lines, "", f"Next:      tfpipeline export {result.run.path}"])
    published, text = _publish(result.run, options.to)
    document["exported"] = published
    return document, "\n".join([*lines, text])


def _newest_finished(root: Path) -> Any:
    """`latest` may be a run that a gate refused or that was stopped: nothing to go on from."""
    from tfpipeline import runs

    finished = [run for run in runs.list_runs(root) if run.info["status"] == "finished"]
    return finished[-1] if finished else runs.find("latest", root)


def _compared(found: dict[str, Any]) -> str:
    """The comparison of a retrained model, for people."""
    rows = found["rows"]
    lines = [f"Compared with {found['names'][1]}, which trained on none of these rows either: {found['verdict']}"]
    for group, title in (("same_rows", "same rows"), ("feedback", "from feedback")):
        if found[group] is not None:
            one = found[group]
            difference = one["accuracy_difference"]
            lines.append(
                f"  {title:<14} {one['n']:>6}   {100 * one['accuracy_b']:5.1f} % -> {100 * one['accuracy_a']:5.1f} %   "
                f"{100 * difference['value']:+.1f} points [{100 * difference['low']:+.1f}, {100 * difference['high']:+.1f}]"
            )
    lines.append(f"  Only the same rows decide: down to {-100 * found['margin']:g} points at the lower end (evaluate.not_worse_margin).")
    if rows["from_feedback"]:
        lines.append("  Rows from feedback do not: people correct what the former model got wrong.")
    left = rows["seen_in_training"] + rows["pseudo_labels"]
    if left:
        lines.append(f"  {left} test rows were left out: in the training of one of the two, or labelled by a model.")
    return "\n".join(lines)


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
    if options.shard and not options.input:
        raise ConfigError("--shard is for --input FILE.")
    shard = None
    if options.shard:
        from tfpipeline.score import Shard

        shard = Shard.parse(options.shard)
    _, opened = _open(options)
    from tfpipeline.answers import answers, line, paired

    loaded = opened.config
    if options.input:
        from tfpipeline import score

        return score.score_files(opened, loaded, options.input, Path(options.output), shard)
    texts, pairs = paired(opened.has_pairs, options.text)
    rows = list(answers(opened.labels, opened.task, loaded.data.label_separator, opened.predict(texts, pairs)))
    document = {"model": str(getattr(getattr(opened, "published", None), "path", options.model)), "predictions": rows}
    lines = [
        line(row) + (f"\t{json.dumps({'text': text}, ensure_ascii=False)}" if len(texts) > 1 else "")
        for text, row in zip(texts, rows, strict=True)
    ]
    return document, "\n".join(lines)


def _explain(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    _, opened = _open(options)
    from tfpipeline import explain
    from tfpipeline.answers import paired

    found = explain.explain(opened, *paired(opened.has_pairs, options.text))
    model = str(getattr(getattr(opened, "published", None), "path", options.model))
    text = explain.render(found, color=explain.wants_color(options.color, sys.stdout))
    if options.html:
        explain.write_html(Path(options.html), found, model)
        text += f"\n\nPage: {options.html}"
    return {"model": model, "explanations": found}, text


def _export(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from tfpipeline import runs, runtime

    run = runs.find(options.model, options.runs)
    packed = Path(options.sagemaker) if options.sagemaker else None
    if packed is not None:
        from tfpipeline import sagemaker

        sagemaker.check_target(packed)
    runtime.check()
    document, text = _publish(run, options.to, options.variant)
    if packed is not None:
        from serving.registry import open_published

        sagemaker.pack(open_published(Path(document["model"])), packed)
        document["sagemaker"] = str(packed)
        text = f"SageMaker: {packed} ({packed.stat().st_size / 1e6:.1f} MB)\n{text}"
    return document, text


def _publish(run: Any, to: str, variant: str = "") -> tuple[dict[str, Any], str]:
    from tfpipeline.export import export

    target = Path(to) if to else None
    published = export(run, root=target.parent if target else None, name=target.name if target else "", variant=variant)
    manifest = published.manifest
    size = sum(file["bytes"] for file in manifest["files"].values())
    document = {
        "model": str(published.path),
        "name": published.name,
        "version": published.version,
        "bytes": size,
        "parity": manifest["parity"],
        "edge": str(published.path / "model.tflite") if "model.tflite" in manifest["files"] else None,
    }
    differences = max(manifest["parity"][key] for key in ("serving_default", "tokens", "classify"))
    explained = manifest["explanations"]
    words = (
        f"attributions add up to within {explained['largest_gap']:.1e}"
        if explained["steps"]
        else "no explanations (export.explain_steps = 0)"
    )
    text = "\n".join(
        [
            f"Published: {published.path} ({size / 1e6:.1f} MB)",
            f"Parity:    the three signatures agree with the trained model to {differences:.1e} on {manifest['parity']['texts']} texts",
            f"Ops:       {len(manifest['ops'])} kinds, all in stock TensorFlow Serving; {manifest['warmup_records']} warm-up records replayed",
            f"Words:     {words}; `tfpipeline explain` shows which ones mattered",
            f"Card:      {published.path / 'MODEL_CARD.md'}",
            *([f"Edge:      {document['edge']}"] if document["edge"] else []),
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
            lines.append(f"  choices: {', '.join(map(str, setting.choices))}")
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
