"""One command per thing a person does with a served model. Frees the rooms from arguments, printing and exit codes.

Results go to stdout, progress and messages to stderr; with `--json` stdout is exactly one JSON document. Exit codes: 0 done, 2 your mistake,
3 the evaluation's verdict said no, 4 a server cannot be reached or refuses, or a push was undone, 130 stopped with Ctrl-C, 1 a fault of ours
(with a traceback, to report).

Only the standard library is imported until a command runs, so that `--help` answers at once. `serve` takes tensorflow_model_server's own
flags: its arguments are not looked at here.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.operate import add_commands

DESCRIPTION = """A published model behind a server, and everything one does with it:"""
TARGET = "localhost:8500"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["serve"]:
        return _serve(arguments[1:])
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.command:
        parser.print_help()
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        result, text, *rest = options.run(options)
        exit_code = rest[0] if rest else 0
    except KeyboardInterrupt as error:
        result, text, exit_code = {"error": "Interrupted", "message": str(error)}, "", 130
        print(f"\nInterrupted: {error}" if str(error) else "\nInterrupted.", file=sys.stderr)
    except BrokenPipeError:
        return 0
    except Exception as error:
        # Errors of `serving` say what to exit with; anything else is a fault.
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


def _serve(arguments: list[str]) -> int:
    from serving.errors import ServingError

    try:
        if arguments in (["--help"], ["-h"]):  # without the server, which takes longer to import
            from serving.server.flags import usage

            print(usage())
            return 0
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        from serving.server.app import main as serve

        return int(serve(arguments))
    except ServingError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(command="", json=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, run: Any, summary: str, example: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=summary, description=summary, epilog=f"example:\n  {example}", formatter_class=argparse.RawDescriptionHelpFormatter
        )
        added.add_argument("--json", action="store_true", help="print exactly one JSON document on stdout")
        added.set_defaults(run=run)
        return added

    def connected(added: argparse.ArgumentParser, *, several: bool = True) -> None:
        if several:
            added.add_argument(
                "--target",
                action="append",
                default=[],
                metavar="HOST:PORT",
                help=f"a server's gRPC address (default: {TARGET}); repeatable",
            )
        else:
            added.add_argument("--target", default=TARGET, metavar="HOST:PORT", help=f"the server's gRPC address (default: {TARGET})")
        added.add_argument("--tls", action="store_true", help="encrypt, and trust the usual certificates")
        added.add_argument("--tls-ca", type=Path, metavar="FILE", help="encrypt, and trust these certificates (PEM)")
        added.add_argument("--tls-certificate", type=Path, metavar="FILE", help="own certificate, for a server that asks for one (PEM)")
        added.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key (PEM)")
        added.add_argument("--tls-server-name", default="", metavar="NAME", help="the name in the server's certificate")

    def placed(added: argparse.ArgumentParser, default: str) -> None:
        added.add_argument(
            "--models",
            action="append",
            default=[],
            metavar="ROOT",
            help=f"folder or URL of models the server reads (default: {default}); one for all targets, or one for each",
        )

    def changing(added: argparse.ArgumentParser) -> None:
        added.add_argument(
            "--server-path",
            default="",
            metavar="PATH",
            help="the model's folder as the server sees it (default: as last time, else the same path)",
        )
        added.add_argument(
            "--keep", type=int, default=3, metavar="N", help="pushed versions that stay loaded (default: 3); labelled ones always do"
        )
        added.add_argument("--load-timeout", type=float, default=600, metavar="S", help="seconds for loading (default: 600)")
        added.add_argument("--lock-timeout", type=float, default=60, metavar="S", help="seconds to wait for another push (default: 60)")

    command(
        "serve", None, "a server on this machine, with tensorflow_model_server's own flags", "python -m serving serve --models_root=models"
    )
    push = command(
        "push",
        _push,
        "bring a model into service, or leave everything as it was",
        "python -m serving push models/sentiment --target localhost:8500 --label canary",
    )
    push.add_argument(
        "source",
        nargs="?",
        type=Path,
        default=Path("models"),
        metavar="MODEL",
        help="models/NAME/VERSION, models/NAME, or models (default): the newest",
    )
    connected(push)
    placed(push, "where MODEL lies")
    push.add_argument("--name", default="", metavar="NAME", help="serve it under this name (default: its own)")
    push.add_argument("--label", default="stable", choices=("stable", "canary"), help="what the version becomes (default: stable)")
    push.add_argument(
        "--force", default="", metavar="REASON", help="serve it although the evaluation said no, or without a manifest; recorded"
    )
    push.add_argument("--without-op", action="append", default=[], metavar="OP", help="an op that this server does not have; repeatable")
    push.add_argument("--dry-run", action="store_true", help="change nothing: check, and print the plan and the config's diff")
    changing(push)

    status = command(
        "status", _status, "what a server has of each model, and the labels", "python -m serving status sentiment --target localhost:8500"
    )
    status.add_argument("model", nargs="?", default="", metavar="NAME", help="one model (default: all under ROOT)")
    connected(status)
    placed(status, "models")

    predict = command(
        "predict", _predict, "ask a server", 'python -m serving predict --target localhost:8500 --model sentiment "the app lost my payment"'
    )
    predict.add_argument("text", nargs="+", help="texts to classify (with --pairs: first and second text, one after the other)")
    predict.add_argument("--model", default="", metavar="NAME", help="the model (default: the newest under models/)")
    which = predict.add_mutually_exclusive_group()
    which.add_argument("--version", type=int, default=None, metavar="N", help="this version (default: the newest that is loaded)")
    which.add_argument("--label", default="", metavar="LABEL", help="the version with this label: stable, canary")
    predict.add_argument("--pairs", action="store_true", help="the model takes two texts")
    predict.add_argument("--timeout", type=float, default=10, metavar="S", help="seconds for the answer (default: 10)")
    connected(predict, several=False)

    promote = command(
        "promote", _promote, "make the canary the stable version", "python -m serving promote sentiment --target localhost:8500"
    )
    promote.add_argument("--version", type=int, default=None, metavar="N", help="this version instead, if it was pushed before")
    rollback = command(
        "rollback",
        _rollback,
        "make the previous version the stable one again",
        "python -m serving rollback sentiment --target localhost:8500",
    )
    for added in (promote, rollback):
        added.add_argument("model", nargs="?", default="", metavar="NAME", help="the model (default: the only one under ROOT)")
        connected(added)
        placed(added, "models")
        changing(added)
    add_commands(command)
    return parser


# ---- the commands: each returns (document for --json, text for people) ----


def _push(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from serving import push

    roots = options.models or [_root_of(options)]
    outcomes = push.push(
        options.source,
        _targets(options, roots),
        name=options.name,
        label=options.label,
        force=options.force,
        without_ops=options.without_op,
        dry_run=options.dry_run,
        **_common(options),
    )
    document = {"dry_run": options.dry_run, "outcomes": [outcome.to_dict() for outcome in outcomes]}
    return document, "\n\n".join(_planned(outcome) if options.dry_run else _done(outcome, "Pushed") for outcome in outcomes)


def _promote(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from serving import push

    targets = _targets(options, options.models or ["models"])
    outcomes = push.promote(targets, options.model or _only_model(targets), version=options.version, **_common(options))
    return {"outcomes": [outcome.to_dict() for outcome in outcomes]}, "\n\n".join(_done(outcome, "Promoted") for outcome in outcomes)


def _rollback(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from serving import push

    targets = _targets(options, options.models or ["models"])
    outcomes = push.rollback(targets, options.model or _only_model(targets), **_common(options))
    return {"outcomes": [outcome.to_dict() for outcome in outcomes]}, "\n\n".join(_done(outcome, "Back to") for outcome in outcomes)


def _status(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from serving import push

    found = push.server_status(_targets(options, options.models or ["models"]), name=options.model, client_factory=_factory(options))
    lines = []
    for target in found["targets"]:
        lines.append(f"{target['address']}, models under {target['root']}")
        if not target["models"]:
            lines.append("  none; push one: python -m serving push")
        for model in target["models"]:
            labels = {
                version: ", ".join(sorted(name for name, one in model["labels"].items() if one == version))
                for version in model["labels"].values()
            }
            lines.append(f"  {model['name']}")
            for version in model["versions"]:
                words = f"  {version['code']}: {version['message']}" if version["code"] != "OK" else ""
                lines.append(f"    {version['version']:<18} {version['state']:<10} {labels.get(version['version'], '')}{words}".rstrip())
            if not model["versions"]:
                lines.append("    not served")
            lines += [f"    note: {note}" for note in model["notes"]]
            if last := model["last"]:
                lines.append(f"    last: {last['command']} of {last['version']} by {last['by']} at {last['time']}: {last['outcome']}")
    return found, "\n".join(lines)


def _predict(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from serving.client import Client
    from serving.errors import ConfigError
    from serving.registry import Registry

    texts, pairs = list(options.text), None
    if options.pairs:
        if len(texts) % 2:
            raise ConfigError(f"--pairs: received {len(texts)} texts. Give first and second text, one after the other.")
        texts, pairs = texts[0::2], texts[1::2]
    model = options.model or Registry(Path("models")).newest().name
    with Client(options.target, timeout_s=options.timeout, tls=_tls(options)) as client:
        answers = client.predict(texts, pairs, model=model, version=options.version, version_label=options.label)
    rows: list[dict[str, Any]] = [
        {
            "label": answer.label,
            "score": round(float(answer.score), 6),
            "probabilities": {name: round(value, 6) for name, value in answer.probabilities.items()},
        }
        for answer in answers
    ]
    lines = []
    for text, row in zip(texts, rows, strict=True):
        shares = "  ".join(f"{name} {value:.3f}" for name, value in sorted(row["probabilities"].items(), key=lambda item: -item[1])[:8])
        lines.append(f"{row['label'] or '(none)'}\t{shares}" + (f"\t{json.dumps(text, ensure_ascii=False)}" if len(texts) > 1 else ""))
    return {"model": model, "version": answers.version, "predictions": rows}, "\n".join(lines)


def _targets(options: argparse.Namespace, roots: Sequence[str | Path]) -> list[Any]:
    """Each server with the root it reads: one root for all, or one for each."""
    from serving.change import Target
    from serving.errors import ConfigError
    from serving.stores import open_store

    addresses = options.target or [TARGET]
    if len(roots) not in (1, len(addresses)):
        raise ConfigError(f"--models: received {len(roots)} roots for {len(addresses)} targets. Give one for all, or one for each.")
    stores = [open_store(root) for root in roots]
    path = getattr(options, "server_path", "")
    return [Target(address, stores[number % len(stores)], path) for number, address in enumerate(addresses)]


def _root_of(options: argparse.Namespace) -> Path:
    """Where MODEL lies is where the server reads, unless --models says otherwise."""
    from serving.checks import open_source
    from serving.errors import ConfigError
    from serving.stores import is_version

    path = open_source(options.source, name=options.name, force=options.force).path
    if not is_version(path.name):
        raise ConfigError(f"{path}: is not in a folder of models (ROOT/NAME/VERSION). Say where to publish it: --models ROOT.")
    return path.parents[1]


def _only_model(targets: Sequence[Any]) -> str:
    from serving.errors import ConfigError

    names = targets[0].store.names()
    if len(names) != 1:
        raise ConfigError(
            f"{targets[0].store.location}: which model? Expected one name, found: {', '.join(names) or 'none'}. Give it, or --models ROOT."
        )
    return str(names[0])


def _common(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "retention": options.keep,
        "load_timeout_s": options.load_timeout,
        "lock_timeout_s": options.lock_timeout,
        "client_factory": _factory(options),
    }


def _factory(options: argparse.Namespace) -> Any:
    from serving.push import default_client

    return functools.partial(default_client, tls=_tls(options))


def _tls(options: argparse.Namespace) -> Any:
    from serving.client import Tls

    if not (options.tls or options.tls_ca or options.tls_certificate or options.tls_key or options.tls_server_name):
        return None
    return Tls(ca=options.tls_ca, certificate=options.tls_certificate, key=options.tls_key, server_name=options.tls_server_name)


def _planned(outcome: Any) -> str:
    lines = [f"Plan for {outcome.base_path} on {', '.join(outcome.targets)} (nothing was changed):"]
    lines.append(f"  publish  {'copy as' if outcome.published else 'is there already:'} version {outcome.version}")
    lines.append(f"  label    {_labels(outcome.before)} -> {_labels(outcome.labels)}")
    lines.append(f"  retire   {', '.join(str(version) for version in outcome.retired) or 'nothing'}")
    return "\n".join([*lines, "", outcome.diff or "The servers' config stays as it is."])


def _done(outcome: Any, word: str) -> str:
    lines = [
        f"{word}:".ljust(11) + f"{outcome.model} version {outcome.version} on {', '.join(outcome.targets)}",
        f"Labels:    {_labels(outcome.labels)}",
    ]
    if probes := outcome.checks.get("probes"):
        lines.append(
            f"Probes:    {probes['texts']} texts answered as at export, to {probes['largest_difference']:.1e} (allowed {probes['tolerance']:g})"
        )
    if outcome.retired:
        lines.append(f"Retired:   {', '.join(str(version) for version in outcome.retired)}")
    lines.append(f"Seconds:   {', '.join(f'{step} {seconds:.1f}' for step, seconds in outcome.seconds.items())}")
    return "\n".join([*lines, *(f"Note:      {note}" for note in outcome.notes)])


def _labels(labels: dict[str, int]) -> str:
    return ", ".join(f"{label} {version}" for label, version in sorted(labels.items())) or "no labels"


if __name__ == "__main__":
    sys.exit(main())
