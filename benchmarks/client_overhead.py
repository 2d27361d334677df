"""What does `Client.predict(["one text"])` cost on top of a bare gRPC stub that sends a request built beforehand?

python benchmarks/client_overhead.py [--calls 2000] [--rounds 5]

A server in a process of its own answers every request with the same bytes. Both sides ask it over loopback in turns, in one process; the difference
is what the client adds: building the request, deadline and retries around the call, reading the answer into arrays. Wanted: < 0.3 ms at the median.
It does not show the model, the network, large requests, many threads, or the asyncio client.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from concurrent import futures
from typing import Any

import grpc
import numpy as np

from serving import Client, wire

TEXT = "the app lost my payment and nobody answers"


def answer() -> Any:
    """One text's answer of a model with two classes, in typed fields, as TensorFlow Serving gives it."""
    arrays = {
        "label": np.array([b"negative"], object),
        "score": np.array([0.9], np.float32),
        "probabilities": np.array([[0.9, 0.1]], np.float32),
        "classes": np.array([[b"negative", b"positive"]], object),
    }
    outputs = {name: wire.to_tensor(array, typed_fields=True) for name, array in arrays.items()}
    response = wire.PredictResponse(model_spec=wire.ModelSpec(name="sentiment", signature_name="serving_default"), outputs=outputs)
    response.model_spec.version.value = 20261123144012
    return response


class Canned(grpc.GenericRpcHandler):
    """The same bytes for every request, which is not even parsed."""

    def __init__(self) -> None:
        data = answer().SerializeToString()
        self._handler = grpc.unary_unary_rpc_method_handler(lambda request, context: data)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return self._handler


def serve() -> None:
    """Answers until the parent closes its end of the pipe."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Canned(),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(None).wait()


def measure(target: str, calls: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each call: bare stub, client; in turns, after a warm-up of both."""
    path, request_class, response_class = wire.METHODS["Predict"]
    request = wire.PredictRequest(
        model_spec=wire.ModelSpec(name="sentiment", signature_name="serving_default"),
        inputs={"text": wire.to_tensor(np.array([TEXT.encode()], object))},
    )
    bare: list[float] = []
    ours: list[float] = []
    with grpc.insecure_channel(target) as channel, Client(target, model="sentiment") as client:
        stub = channel.unary_unary(
            path, request_serializer=request_class.SerializeToString, response_deserializer=response_class.FromString
        )
        for number in range(calls + 100):
            started = time.perf_counter()
            stub(request, timeout=10.0)
            between = time.perf_counter()
            client.predict([TEXT])
            ended = time.perf_counter()
            if number >= 100:
                bare.append(1000 * (between - started))
                ours.append(1000 * (ended - between))
    return bare, ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help="be the server; the benchmark starts it itself")
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    rounds = []
    with subprocess.Popen([sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        target = f"127.0.0.1:{int(server.stdout.readline())}"
        for _ in range(options.rounds):
            bare, ours = (statistics.median(values) for values in measure(target, options.calls))
            rounds.append({"bare_ms": round(bare, 4), "client_ms": round(ours, 4), "overhead_ms": round(ours - bare, 4)})
            print(json.dumps({"benchmark": "client_overhead", "n": options.calls, "p50": rounds[-1]}), flush=True)
        assert server.stdin is not None
        server.stdin.close()
    overheads = [one["overhead_ms"] for one in rounds]
    spread = {"median": statistics.median(overheads), "min": min(overheads), "max": max(overheads)}
    print(json.dumps({"benchmark": "client_overhead", "rounds": len(rounds), "overhead_ms": spread, "wanted": "< 0.3 ms"}))


if __name__ == "__main__":
    main()
