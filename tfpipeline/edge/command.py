"""`tfpipeline edge`: answers, verifies, times and scores with one edge file. Needs LiteRT and numpy; only `--verify` against a SavedModel or a run needs
TensorFlow.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from tfpipeline.errors import ConfigError

VERIFY_TEXTS = 200
# Written here, not taken from any corpus: short, long, and what people type.
_SAMPLES = (
    "ok",
    "the app lost my payment",
    "Great service, thank you so much!",
    "I have been waiting on hold for forty minutes and nobody could tell me where my transfer went.",
    "don't go there... ever again :(",
    "Visit https://example.com/a?b=c or write to help@example.com, @support never answers &amp; it shows",
    "",
    "It is a film that I would gladly see again, if only for the second half, where the two leads finally stop explaining themselves to each other.",
)


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    added = command("edge", run, "answer, verify and time with a .tflite file", 'tfpipeline edge model.tflite "the app lost my payment"')
    added.add_argument("model", metavar="MODEL", help="a .tflite, or a published version (or model) folder that holds model.tflite")
    added.add_argument("text", nargs="*", help="texts to classify (for a pair model: first and second text)")
    added.add_argument("--verify", action="store_true", help="hash, metadata, and the same answers as the SavedModel beside it")
    added.add_argument("--against", default="", metavar="RUN", help="with --verify: compare with this run, on its own texts")
    added.add_argument("--time", action="store_true", help="milliseconds a text, warm and cold, with one thread and more")
    added.add_argument(
        "--threads", type=int, default=0, metavar="N", help="threads of LiteRT (default: all cores; with --time: 1, 2 and all)"
    )
    added.add_argument("--input", default="", metavar="FILE", help="score the rows of a file: .txt, .csv, .tsv or .jsonl")
    added.add_argument("--output", default="", metavar="FILE", help="where the scored rows go: .csv or .jsonl")


def run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """What was asked for: (document for --json, text for people).

    Raises:
        ConfigError: the arguments do not fit together.
        DataError: the file is not an edge file of ours, or not whole.
        GateError: `--verify` found other answers than the model's.
    """
    if not (options.text or options.verify or options.time or options.input):
        raise ConfigError('give texts (tfpipeline edge MODEL "a text"), --input FILE, --verify or --time.')
    if bool(options.input) != bool(options.output):
        raise ConfigError("--input FILE and --output FILE belong together.")
    if options.input and options.text:
        raise ConfigError("give texts or --input FILE, not both.")
    if options.against and not options.verify:
        raise ConfigError("--against RUN belongs to --verify.")
    if options.threads < 0:
        raise ConfigError(f"--threads {options.threads}: expected 0 (all cores) or more.")
    from tfpipeline.edge import verify

    path = verify.find_file(Path(options.model))
    document: dict[str, Any] = {"file": str(path)}
    lines: list[str] = []
    steps = ((options.verify, _verify), (options.time, _time), (options.text, _answer), (options.input, _score))
    for asked, step in steps:
        if asked:
            part, text = step(path, options)
            document |= part
            lines.append(text)
    return document, "\n".join(lines)


def _answer(path: Path, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from tfpipeline.answers import answers, line, paired
    from tfpipeline.edge.runner import EdgeModel

    model = EdgeModel(path, threads=options.threads)
    texts, pairs = paired(model.has_pairs, options.text)
    rows = list(answers(model.labels, model.task, model.description["label_separator"], model.predict(texts, pairs)))
    lines = [line(row) + (f"\t{text}" if len(texts) > 1 else "") for text, row in zip(texts, rows, strict=True)]
    return {"predictions": rows, "truncated": model.truncated}, "\n".join(lines)


def _score(path: Path, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from tfpipeline.edge import files
    from tfpipeline.edge.runner import EdgeModel
    from tfpipeline.progress import Progress

    model = EdgeModel(path, threads=options.threads)
    with Progress("scoring", unit="texts") as bar:
        result = files.score(model, Path(options.input), Path(options.output), bar.update)
    cut = f"; {result['truncated']} were longer than {model.max_length} tokens and were cut" if result["truncated"] else ""
    return result, f"Scored {result['rows']:,} texts into {result['output']}{cut}."


def _verify(path: Path, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from tfpipeline.edge import verify
    from tfpipeline.edge.runner import EdgeModel

    document = verify.check(path)
    products = document["matmuls"]
    lines = [
        f"File:      {path} ({document['bytes'] / 1e6:.1f} MB), sha256 {document['sha256'][:12]}... as written",
        f"Holds:     {document['mode']}, form {document['form']}, signatures {', '.join(document['signatures'])}; labels {', '.join(document['labels'])}",
        f"Products:  {products['int8']} int8, {products['dynamic']} int8 with ranges found while running, {products['float']} float",
    ]
    if options.against:
        from tfpipeline import runs, runtime

        run = runs.find(options.against, options.runs)
        runtime.check()
        from tfpipeline.trained import load

        name, predict = f"run {run.path.name}", cast("Any", load(run).predict)
        texts, pairs = _texts_of(run)
    else:
        beside = verify.saved_model_of(path)
        if beside is None:
            lines.append("Answers:   not compared: no SavedModel lies beside the file. Compare with its run: --against RUN")
            return {"verified": document}, "\n".join(lines)
        name, (predict, manifest) = "the SavedModel beside it", beside
        texts, pairs = _texts_beside(manifest, options.runs)
    model = EdgeModel(path, threads=options.threads)
    parity = verify.compare(model, predict, texts, pairs)
    lines.append(
        f"Answers:   {parity['agreement']:.1%} of {parity['texts']} labels are those of {name}; probabilities differ by "
        f"{parity['mean_difference']:.1e} on average, {parity['largest_difference']:.1e} at most"
    )
    return {"verified": {**document, "parity": parity}}, "\n".join(lines)


def _texts_of(run: Any) -> tuple[list[str], list[str] | None]:
    """The first texts of the run's test, validation and training splits."""
    from tfpipeline.data import open_prepared

    return open_prepared(run.path / "data").some_texts(VERIFY_TEXTS)


def _texts_beside(manifest: dict[str, Any], root: Path) -> tuple[list[str], list[str] | None]:
    """Those of the run that the manifest names, while it still lies in `root`; else the manifest's own probes and the samples."""
    from tfpipeline import runs
    from tfpipeline.errors import RunError

    try:
        return _texts_of(runs.find(manifest["run"], root))
    except RunError:
        probes = manifest["golden_probes"]
        texts = [*probes["texts"], *_SAMPLES]
        return texts, [*probes["text_pairs"], *reversed(_SAMPLES)] if manifest["has_pairs"] else None


def _time(path: Path, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    import os

    from tfpipeline.edge import metadata, verify

    threads = [options.threads] if options.threads else sorted({1, 2, os.cpu_count() or 1})
    pairs = list(reversed(_SAMPLES)) if metadata.read(path).description["has_pairs"] else None
    result = verify.measure(path, list(_SAMPLES), pairs, threads)
    lines = [
        f"Warm:      {row['p50_ms']:.2f} ms median, {row['p95_ms']:.2f} ms p95, {row['threads']} threads, n = {row['n']}"
        for row in result["warm"]
    ]
    lines.append(f"Cold:      {result['cold_ms']['median']:.0f} ms from the start of a process to its first answer")
    return {"time": result}, "\n".join(lines)
