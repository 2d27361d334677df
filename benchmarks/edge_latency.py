"""Milliseconds a text on LiteRT, dynamic int8, one text at a time at its true length: against ONNX Runtime with the same weights and against a file of fixed length 64.

All sides answer the same texts in turns, in one run; tokens are made beforehand, so that only the models are compared. What it does not show: phones
(other kernels), batches, and the time to tokenise (`tfpipeline edge --time` includes it).

    python benchmarks/edge_latency.py --run runs/latest --peer-python PEER/bin/python [--texts 200] [--threads 2] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tfpipeline import runs, runtime

PEER = Path(__file__).with_name("edge_onnx_peer.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="latest")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--peer-python", default="")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    runtime.quiet()
    run = runs.find(options.run, options.runs)
    runtime.check()
    from tfpipeline.data import open_prepared
    from tfpipeline.edge.convert import convert
    from tfpipeline.edge.runner import EdgeModel
    from tfpipeline.trained import load

    trained = load(run)
    corpus = open_prepared(run.path / "data")
    validation = corpus.validation
    # As the recipes do: real texts tell which columns are long.
    calibration, _ = corpus.train.text_batch(np.arange(min(len(corpus.train), 256)))
    texts, _ = validation.text_batch(np.arange(min(len(validation), options.texts)))
    # The length that the fixed file has is the one of the reference measurement; longer texts are left out on all sides.
    settings: dict[str, dict[str, Any]] = {
        "any length": {"mode": "dynamic", "calibration": calibration},
        "any length, word pieces in 4 bits": {"mode": "dynamic", "calibration": calibration, "table_bits": 4},
        "16/32/64/128": {"mode": "dynamic", "lengths": (16, 32, 64, 128), "calibration": calibration},
        "fixed 64": {"mode": "dynamic", "lengths": (64,), "calibration": calibration},
        "float32, any length": {"mode": "float32", "lengths": ()},
    }
    files = {name: convert(trained, **arguments) for name, arguments in settings.items()}
    models = {name: EdgeModel(file.data, threads=options.threads) for name, file in files.items()}
    tokenizer = next(iter(models.values()))
    rows = [tokens for tokens in (tokenizer._tokens(text, None) for text in texts) if tokens.full_length <= 64]
    sides: dict[str, Any] = {name: lambda row, model=model: model._engine(row, 0) for name, model in models.items()}
    with tempfile.TemporaryDirectory() as folder:
        peer = _Peer(options.peer_python, trained, Path(folder), options.threads) if options.peer_python else None
        times: dict[str, list[list[float]]] = {name: [] for name in [*sides, *(["ONNX Runtime"] if peer else [])]}
        answers: dict[str, Any] = {}
        for number in range(options.rounds + 1):
            first = number % len(times)  # another one each round: who comes after whom costs up to a tenth
            for name in [*times][first:] + [*times][:first]:
                took, found = [], []
                for row in rows:
                    if name == "ONNX Runtime":
                        assert peer
                        answer, ms = peer(row)
                    else:
                        started = time.perf_counter()
                        answer = sides[name](row)
                        ms = (time.perf_counter() - started) * 1e3
                    took.append(ms)
                    found.append(answer)
                answers[name] = np.array(found)
                if number:  # the first round warms up
                    times[name].append(took)
        peer_bytes = peer.bytes if peer else 0
        if peer:
            peer.close()
    medians = {name: [statistics.median(took) for took in rounds] for name, rounds in times.items()}
    means = {name: [statistics.fmean(took) for took in rounds] for name, rounds in times.items()}
    ours = means["any length"]
    document = {
        "benchmark": "edge_latency",
        "machine": {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
        "git": runs.git_state(),
        "threads": options.threads,
        "texts": len(rows),
        "mean_tokens": round(statistics.fmean(len(row.ids) for row in rows), 1),
        "rounds": options.rounds,
        "bytes": {name: len(file.data) for name, file in files.items()} | ({"ONNX Runtime": peer_bytes} if peer_bytes else {}),
        "ms": {
            name: {
                "p50": round(statistics.median(medians[name]), 3),
                "mean": round(statistics.median(means[name]), 3),
                "p95": round(float(np.percentile(np.concatenate(times[name]), 95)), 3),
                "spread_of_means": [round(min(means[name]), 3), round(max(means[name]), 3)],
            }
            for name in times
        },
        # mean over the same texts, round by round
        "against": {
            name: round(statistics.median(a / b for a, b in zip(ours, means[name], strict=True)), 3)
            for name in times
            if name != "any length"
        },
        "same_label_as_float32": {
            name: float((found.argmax(1) == answers["float32, any length"].argmax(1)).mean()) for name, found in answers.items()
        },
    }
    print(json.dumps(document, indent=1))


class _Peer:
    """The peer's process: a row in, probabilities and its own milliseconds out."""

    def __init__(self, python: str, trained: Any, folder: Path, threads: int) -> None:
        write_weights(trained, folder)
        self._process = subprocess.Popen(
            [python, str(PEER), str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            stderr=subprocess.DEVNULL,
        )
        while True:  # the exporter prints as well
            line = self._process.stdout.readline()  # type: ignore[union-attr]
            if not line:
                raise SystemExit("the peer ended: run it by hand on a folder to see why (edge_onnx_peer.py)")
            if line.startswith('{"ready"'):
                break
        self.bytes = json.loads(line)["bytes"]

    def __call__(self, row: Any) -> tuple[list[float], float]:
        self._process.stdin.write(json.dumps({"ids": row.ids, "types": row.types}) + "\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        answer = json.loads(self._process.stdout.readline())  # type: ignore[union-attr]
        return answer["probabilities"], answer["ms"]

    def close(self) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait(30)


def write_weights(trained: Any, folder: Path) -> None:
    """The weights under the names of transformers' PyTorch classes."""
    bert = trained.model.bert
    embeddings = bert.embeddings
    found: dict[str, Any] = {
        "bert.embeddings.word_embeddings.weight": embeddings.weight,
        "bert.embeddings.position_embeddings.weight": embeddings.position_embeddings,
        "bert.embeddings.token_type_embeddings.weight": embeddings.token_type_embeddings,
    }

    def dense(name: str, layer: Any) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = layer.kernel.numpy().T, layer.bias

    def norm(name: str, layer: Any) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = layer.gamma, layer.beta

    norm("bert.embeddings.LayerNorm", embeddings.LayerNorm)
    for number, layer in enumerate(bert.encoder.layer):
        name = f"bert.encoder.layer.{number}"
        attention = layer.attention.self_attention
        for part in ("query", "key", "value"):
            dense(f"{name}.attention.self.{part}", getattr(attention, part))
        dense(f"{name}.attention.output.dense", layer.attention.dense_output.dense)
        norm(f"{name}.attention.output.LayerNorm", layer.attention.dense_output.LayerNorm)
        dense(f"{name}.intermediate.dense", layer.intermediate.dense)
        dense(f"{name}.output.dense", layer.bert_output.dense)
        norm(f"{name}.output.LayerNorm", layer.bert_output.LayerNorm)
    dense("classifier", trained.model.classifier)
    np.savez(folder / "weights.npz", **{name: np.ascontiguousarray(value) for name, value in found.items()})
    keys = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "type_vocab_size",
        "layer_norm_eps",
        "hidden_act",
    )
    architecture = {key: getattr(trained.model.config, key) for key in keys}
    (folder / "model.json").write_text(json.dumps({"architecture": architecture, "classes": len(trained.labels)}))


if __name__ == "__main__":
    main()
