"""The other side of `edge_latency.py`: the same weights as a dynamically quantized ONNX Runtime model. Imports nothing of this project.

Builds BERT from a `.npz` and a JSON description (transformers' PyTorch classes), exports it with dynamic axes, lets ONNX Runtime's own optimizer for
transformers fuse attention, layer normalisation and gelu, quantizes the weights to int8, then answers rows of token ids read from stdin, one JSON line each:
`{"ids": [...], "types": [...]}` gives `{"probabilities": [...], "ms": 1.23}`.

    PEER/bin/pip install torch transformers onnx onnxruntime onnxscript
    PEER/bin/python benchmarks/edge_onnx_peer.py FOLDER THREADS
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np


def main() -> None:
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    warnings.simplefilter("ignore")
    import onnxruntime

    path = folder / "int8.onnx"
    if not path.exists():
        build(folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    print(json.dumps({"ready": onnxruntime.__version__, "bytes": path.stat().st_size}), flush=True)
    for line in sys.stdin:
        row = json.loads(line)
        started = time.perf_counter()
        ids = np.array([row["ids"]], np.int64)
        logits = session.run(None, {"ids": ids, "mask": np.ones_like(ids), "segment_ids": np.array([row["types"]], np.int64)})[0][0]
        took = (time.perf_counter() - started) * 1e3
        share = np.exp(logits - logits.max())
        print(json.dumps({"probabilities": (share / share.sum()).tolist(), "ms": took}), flush=True)


def build(folder: Path) -> None:
    import onnx
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer
    from transformers import BertConfig, BertModel

    described = json.loads((folder / "model.json").read_text())
    weights = np.load(folder / "weights.npz")
    config = BertConfig(**described["architecture"], attn_implementation="eager")

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel(config, add_pooling_layer=False)
            self.classifier = torch.nn.Linear(config.hidden_size, described["classes"])

        def forward(self, ids, mask, segment_ids):  # type: ignore[no-untyped-def]
            hidden = self.bert(input_ids=ids, attention_mask=mask, token_type_ids=segment_ids).last_hidden_state
            keep = mask.unsqueeze(-1).to(hidden.dtype)
            return self.classifier((hidden * keep).sum(1) / keep.sum(1))

    model = Classifier().eval()
    model.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files}, strict=True)
    example = torch.ones(1, 12, dtype=torch.int64)
    axes = {name: {0: "batch", 1: "length"} for name in ("ids", "mask", "segment_ids")}
    torch.onnx.export(
        model,
        (example, example, torch.zeros_like(example)),
        str(folder / "float.onnx"),
        input_names=list(axes),
        output_names=["logits"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
    fused = optimizer.optimize_model(
        str(folder / "float.onnx"), model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size, opt_level=1
    )
    fused.save_model_to_file(str(folder / "fused.onnx"))
    onnx.checker.check_model(str(folder / "float.onnx"))
    # Behind fused nodes shape inference gives up; everything there is float.
    known = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    quantize_dynamic(
        str(folder / "fused.onnx"), str(folder / "int8.onnx"), weight_type=QuantType.QInt8, per_channel=True, extra_options=known
    )


if __name__ == "__main__":
    main()
