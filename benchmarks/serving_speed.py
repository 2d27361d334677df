"""How many single texts a second does the embedded server answer for 32 clients at once, and how long does one client wait?

Against (1) a Flask app around the Hugging Face pipeline with the same weights, (2) calling the SavedModel in one process on sorted batches of 32,
(3) calling it there text by text. All in turns in the same run, `--rounds` times.

Two servers, because one setting cannot serve both aims: the crowd asks one with a thread inside each op (`--tensorflow_intra_op_parallelism=1`) and as many batches
at once as there are cores; the single client asks one that was started without flags, where an op may use every core. `--intra 0` gives the crowd the second
kind, too.

    python benchmarks/serving_speed.py --run runs/latest --texts ../shared/data/sst2/dev.tsv --peer-python /path/to/python-with-torch-and-flask
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

CLIENTS = 32
BATCHING = (
    "max_batch_size { value: 64 } batch_timeout_micros { value: 0 } max_enqueued_batches { value: 32 } num_batch_threads { value: %d }"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="a trained run")
    parser.add_argument("--texts", type=Path, required=True, help="a TSV whose first column is the text")
    parser.add_argument("--peer-python", default="", help="a Python with torch, transformers and flask; empty: no peer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="num_batch_threads")
    parser.add_argument(
        "--intra", type=int, default=1, help="tensorflow_intra_op_parallelism of the server that the crowd asks; 0: all cores"
    )
    options = parser.parse_args()
    texts = [line.split("\t")[0] for line in options.texts.read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        version, peer_model = prepare(options.run, Path(folder))
        direct = Direct(version)
        port, alone_port, peer_port = free_port(), free_port(), free_port()
        batching = Path(folder) / "batching.config"
        batching.write_text(BATCHING % options.threads)
        flags = ["--enable_batching", f"--batching_parameters_file={batching}", f"--tensorflow_intra_op_parallelism={options.intra}"]
        stack.enter_context(embedded_server(version.parent.parent, port, Path(folder), flags))
        stack.enter_context(embedded_server(version.parent.parent, alone_port, Path(folder), []))
        if options.peer_python:
            stack.enter_context(flask_peer(options.peer_python, peer_model, peer_port))
        report(measure(texts, direct, (port, alone_port, peer_port if options.peer_python else 0), options.rounds), options)


def prepare(name: str, folder: Path) -> tuple[Path, Path]:
    """The run's SavedModel, and the same weights as a Hugging Face folder that PyTorch loads."""
    from safetensors.numpy import save_file
    from transformers.modeling_tf_pytorch_utils import convert_tf_weight_name_to_pt_weight_name

    from tfpipeline import runs, trained
    from tfpipeline.export import export

    run = runs.find(name, Path("runs"))
    published = export(run, root=folder / "models")
    model = trained.load(run)
    peer = folder / "peer"
    peer.mkdir()
    weights = {}
    for variable in model.model.weights:
        pytorch_name, transpose = convert_tf_weight_name_to_pt_weight_name(variable.name, tf_weight_shape=tuple(variable.shape))
        value = variable.numpy()
        weights[pytorch_name] = np.ascontiguousarray(value.T if getattr(transpose, "value", transpose) == "simple" else value)
    save_file(weights, peer / "model.safetensors", {"format": "pt"})
    model.model.config.save_pretrained(peer)
    (peer / "vocab.txt").write_text("\n".join(model.preprocessor.vocabulary) + "\n", encoding="utf-8")
    (peer / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 128})
    )
    return published.path, peer


class Direct:
    """The SavedModel in this process, called as TensorFlow users do."""

    def __init__(self, folder: Path) -> None:
        import tensorflow as tf
        import tensorflow_text  # noqa: F401

        self._constant = tf.constant
        self._signature = tf.saved_model.load(str(folder)).signatures["serving_default"]

    def __call__(self, texts: Sequence[str]) -> list[str]:
        return [label.decode() for label in self._signature(text=self._constant(list(texts)))["label"].numpy()]


@contextlib.contextmanager
def embedded_server(root: Path, port: int, folder: Path, flags: Sequence[str]) -> Iterator[None]:
    from serving import Client

    log = (folder / f"server-{port}.log").open("w")
    command = [sys.executable, "-m", "serving", "serve", f"--models_root={root}", f"--port={port}", *flags]
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with Client(f"127.0.0.1:{port}", model=next(root.iterdir()).name) as client:
            client.wait_until_available(timeout_s=120)
        yield
    finally:
        process.terminate()
        process.wait(30)
        log.close()


@contextlib.contextmanager
def flask_peer(python: str, model: Path, port: int) -> Iterator[None]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "USE_TF": "0"}
    process = subprocess.Popen([python, str(Path(__file__).with_name("flask_peer.py")), str(model), str(port)], env=environment)
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit("the Flask peer did not start")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(30)


def measure(texts: list[str], direct: Direct, ports: tuple[int, int, int], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """One round after the other; in each, every contestant."""
    port, alone_port, peer_port = ports
    by_length = sorted(texts, key=len)
    batches = [by_length[start : start + 32] for start in range(0, len(texts), 32)]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in ("grpc", "flask", "sorted batches", "one client", "in process")}
    shuffled = [texts[index] for index in np.random.default_rng(0).permutation(len(texts))]
    labels = dict(zip(by_length, itertools.chain.from_iterable(direct(batch) for batch in batches), strict=True))
    for number in range(rounds + 1):
        started = time.perf_counter()
        for batch in batches:
            direct(batch)
        one_round = {"sorted batches": {"rate": len(texts) / (time.perf_counter() - started)}}
        one_round["grpc"] = crowd(shuffled, lambda: grpc_client(port), labels)
        if peer_port:
            one_round["flask"] = crowd(shuffled, lambda: http_client(peer_port), None)
        one_round["in process"], one_round["one client"] = alone(shuffled[:200], direct, alone_port)
        if number:  # the first round warms up
            for name, value in one_round.items():
                results[name].append(value)
    return results


def grpc_client(port: int) -> Callable[[str], str]:
    from serving import Client

    client = Client(f"127.0.0.1:{port}", model="sst2", timeout_s=60)
    return lambda text: client.predict([text]).labels[0]


def http_client(port: int) -> Callable[[str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(text: str) -> str:
        connection.request("POST", "/predict", json.dumps({"text": text}), {"Content-Type": "application/json"})
        return str(json.loads(connection.getresponse().read())[0]["label"])

    return ask


def crowd(texts: list[str], make_client: Callable[[], Callable[[str], str]], labels: dict[str, str] | None) -> dict[str, float]:
    """Texts a second and latencies, by 32 threads that each wait for their answer before the next question."""
    waiting, seconds, lock = iter(texts), [], threading.Lock()
    failed: list[str] = []

    def work() -> None:
        ask = make_client()
        while True:
            with lock:
                text = next(waiting, None)
            if text is None:
                return
            started = time.perf_counter()
            label = ask(text)
            with lock:
                seconds.append(time.perf_counter() - started)
                if labels is not None and labels[text] != label:
                    failed.append(text)

    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - started
    if failed or len(seconds) != len(texts):
        raise SystemExit(f"{len(failed)} answers differ from the model's own, {len(texts) - len(seconds)} are missing")
    return {"rate": len(texts) / took, "p50_ms": percentile(seconds, 50), "p99_ms": percentile(seconds, 99)}


def alone(texts: list[str], direct: Direct, port: int) -> tuple[dict[str, float], dict[str, float]]:
    """Latency of single texts, in this process and over gRPC, text by text in turns."""
    ask = grpc_client(port)
    here, there = [], []
    for text in texts:
        started = time.perf_counter()
        direct([text])
        here.append(time.perf_counter() - started)
        started = time.perf_counter()
        ask(text)
        there.append(time.perf_counter() - started)
    return (
        {"p50_ms": percentile(here, 50), "p99_ms": percentile(here, 99)},
        {"p50_ms": percentile(there, 50), "p99_ms": percentile(there, 99)},
    )


def percentile(seconds: list[float], which: int) -> float:
    return float(np.percentile(seconds, which)) * 1000


def report(results: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    def spread(values: list[float]) -> dict[str, float]:
        return {"median": round(statistics.median(values), 2), "min": round(min(values), 2), "max": round(max(values), 2)}

    figures: dict[str, Any] = {
        name: {key: spread([one[key] for one in rounds]) for key in rounds[0]} for name, rounds in results.items() if rounds
    }

    def ratios(above: str, below: str, key: str) -> dict[str, float]:
        return spread([over[key] / under[key] for over, under in zip(results[above], results[below], strict=True)])

    figures["grpc / sorted batches"] = ratios("grpc", "sorted batches", "rate")
    if results["flask"]:
        figures["grpc / flask"] = ratios("grpc", "flask", "rate")
        figures["grpc p99 / flask p99"] = ratios("grpc", "flask", "p99_ms")
    figures["one client minus in process, p50 ms"] = spread(
        [there["p50_ms"] - here["p50_ms"] for there, here in zip(results["one client"], results["in process"], strict=True)]
    )
    print(
        json.dumps(
            {
                "benchmark": "serving_speed",
                "clients": CLIENTS,
                "rounds": options.rounds,
                "batch_threads": options.threads,
                "intra_op_threads": options.intra,
                "figures": figures,
            }
        )
    )


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


if __name__ == "__main__":
    main()
