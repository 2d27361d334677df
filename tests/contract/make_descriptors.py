"""Writes `serving/tensorflow_serving_api.binpb`: the descriptors of TensorFlow Serving's messages, from the installed official package.

Run `python tests/contract/make_descriptors.py` after raising the version of tensorflow-serving-api; the contract test says when that is due.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[2] / "serving" / "tensorflow_serving_api.binpb"


def descriptors() -> bytes:
    """A FileDescriptorSet, dependencies first, without comments; the same bytes whenever the official package is the same."""
    from google.protobuf import descriptor_pb2
    from tensorflow_serving.apis import model_service_pb2, prediction_log_pb2, prediction_service_pb2
    from tensorflow_serving.config import model_server_config_pb2

    result = descriptor_pb2.FileDescriptorSet()
    done: set[str] = set()

    def add(file: Any) -> None:
        if file.name in done:
            return
        done.add(file.name)
        for dependency in file.dependencies:
            add(dependency)
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        proto.ClearField("source_code_info")
        result.file.append(proto)

    for module in (prediction_service_pb2, model_service_pb2, prediction_log_pb2, model_server_config_pb2):
        add(module.DESCRIPTOR)
    return bytes(result.SerializeToString(deterministic=True))


if __name__ == "__main__":
    TARGET.write_bytes(descriptors())
    sys.stderr.write(f"{TARGET}: {TARGET.stat().st_size} bytes\n")
