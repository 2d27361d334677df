"""`python -m serving`: exit codes, one JSON document, and one clear message for every mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.cli import main
from tests.fake_tf_serving import FakeServer, make_model

COMMANDS = ("serve", "push", "status", "predict", "promote", "rollback")
MODEL = "sentiment"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `models/` in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def export(here: Path, version: int, **settings: Any) -> Path:
    return make_model(here / "models", version, shift=version / 10, **settings).path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([command, "--help"])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert code == 0
    assert f"example:\n  python -m serving {command}" in capsys.readouterr().out


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = "import sys, serving.cli as cli\ncli.main([])\nprint(sorted({m.split('.')[0] for m in sys.modules} & {'numpy', 'grpc', 'google', 'tensorflow', 'fsspec'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(re.search(rf"^    {command} ", done.stdout, re.MULTILINE) for command in COMMANDS)


def test_help_answers_at_once() -> None:
    """The best of three: a busy machine is slow, not wrong."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "serving", "push", "--help"], capture_output=True, timeout=60, check=True)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.3


def test_push_takes_the_newest_export_and_says_what_was_done(here: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    export(here, 1)
    export(here, 2)
    assert main(["push", "--target", server.address]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Pushed:    sentiment version 2 on {server.address}"
    assert lines[1] == "Labels:    stable 2"
    assert re.fullmatch(r"Probes:    3 texts answered as at export, to \d\.\de-\d\d \(allowed 0\.001\)", lines[2])
    assert lines[3].startswith("Seconds:   check ")
    assert server.labels(MODEL) == {"stable": 2}


def test_the_whole_story_in_json(here: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    to = ["--target", server.address, "--json"]

    def document(*arguments: str, code: int = 0) -> Any:
        assert main([*arguments, *to]) == code
        return json.loads(capsys.readouterr().out)

    document("push", str(export(here, 1)))
    document("push", str(export(here, 2)), "--label", "canary")
    assert server.labels(MODEL) == {"stable": 1, "canary": 2}
    assert document("promote")["outcomes"][0]["labels"] == {"stable": 2, "previous": 1}
    assert document("rollback", MODEL)["outcomes"][0]["labels"] == {"stable": 1, "previous": 2}
    assert document("promote", MODEL, "--version", "2")["outcomes"][0]["labels"] == {"stable": 2, "previous": 1}
    (target,) = document("status")["targets"]
    assert target["models"][0]["labels"] == {"stable": 2, "previous": 1}
    failed = document("push", str(export(here, 3, broken="no such op")), code=4)
    assert failed["error"] == "PushError"
    assert "no such op" in failed["message"]
    refused = document("push", str(export(here, 4, gate={"passed": False, "reasons": ["too bad"]})), code=3)
    assert refused["error"] == "GateRefused"
    forced = document("push", "models/sentiment", "--force", "the demo is today")
    assert forced["outcomes"][0]["checks"]["gate"]["forced"] == "the demo is today"


def test_a_dry_run_prints_plan_and_diff(here: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    main(["push", "--target", server.address, str(export(here, 1))])
    capsys.readouterr()
    assert main(["push", "--target", server.address, "--dry-run", str(export(here, 2))]) == 0
    assert capsys.readouterr().out == (
        f"Plan for {here}/models/sentiment on {server.address} (nothing was changed):\n"
        "  publish  is there already: version 2\n"
        "  label    stable 1 -> previous 1, stable 2\n"
        "  retire   nothing\n"
        "\n"
        "--- now\n"
        "+++ after\n"
        "@@ -6,11 +6,12 @@\n"
        "     model_version_policy {\n"
        "       specific {\n"
        "         versions: 1\n"
        "+        versions: 2\n"
        "       }\n"
        "     }\n"
        "     version_labels {\n"
        '       key: "stable"\n'
        "-      value: 1\n"
        "+      value: 2\n"
        "     }\n"
        "   }\n"
        " }\n"
    )
    assert server.labels(MODEL) == {"stable": 1}


def test_status_is_a_table_with_labels_and_the_last_push(here: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    main(["push", "--target", server.address, str(export(here, 1))])
    main(["push", "--target", server.address, str(export(here, 2, broken="INVALID_ARGUMENT: no such op"))])
    capsys.readouterr()
    assert main(["status", "--target", server.address]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        f"{server.address}, models under {here}/models",
        "  sentiment",
        "    2                  END          UNKNOWN: INVALID_ARGUMENT: no such op",
        "    1                  AVAILABLE  stable",
    ]
    assert re.fullmatch(r"    last: push of 2 by .+@.+ at 20.+: undone", lines[4])


def test_predict_prints_labels_and_probabilities(here: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    main(["push", "--target", server.address, str(export(here, 1))])
    capsys.readouterr()
    assert main(["predict", "--target", server.address, "--model", MODEL, "--label", "stable", "the app lost my payment"]) == 0
    assert re.fullmatch(r"(positive|negative)\t(positive|negative) 0\.\d{3}  (positive|negative) 0\.\d{3}\n", capsys.readouterr().out)
    assert main(["predict", "--target", server.address, "--json", "one", "two"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["model"], document["version"], len(document["predictions"])) == (MODEL, 1, 2)
    assert set(document["predictions"][0]) == {"label", "score", "probabilities"}


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """The code, nothing on stdout, no traceback; returns the last message."""
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err.strip().splitlines()[-1]


def test_nothing_exported_yet(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(capsys, 2, "push").startswith(f"RegistryError: {here}/models: no such folder.")


def test_nobody_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(here, 1)
    with FakeServer() as gone:
        pass
    assert fails(capsys, 4, "push", "--target", gone.address).startswith(
        f"Unavailable: {gone.address}: model 'sentiment': nobody answers there"
    )


def test_an_address_that_is_none(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(here, 1)
    assert fails(capsys, 2, "push", "--target", "localhost").startswith("ConfigError: target 'localhost': expected HOST:PORT")


def test_a_model_from_elsewhere_needs_a_place(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "saved_model.pb").write_bytes(b"graph")
    assert fails(capsys, 2, "push", "mine", "--force", "a test") == (
        f"ConfigError: {here}/mine: is not in a folder of models (ROOT/NAME/VERSION). Say where to publish it: --models ROOT."
    )


def test_roots_that_do_not_fit_the_targets(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(here, 1)
    assert fails(capsys, 2, "push", "--models", "a", "--models", "b", "--target", "x:1") == (
        "ConfigError: --models: received 2 roots for 1 targets. Give one for all, or one for each."
    )


def test_which_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(capsys, 2, "promote") == (
        f"ConfigError: {here}/models: which model? Expected one name, found: none. Give it, or --models ROOT."
    )


def test_half_a_pair(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(capsys, 2, "predict", "--pairs", "--model", MODEL, "one") == (
        "ConfigError: --pairs: received 1 texts. Give first and second text, one after the other."
    )


def test_a_flag_of_the_server_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no_such_flag" in fails(capsys, 2, "serve", "--no_such_flag=1")


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "serving", "status", "--models"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "expected one argument" in done.stderr
