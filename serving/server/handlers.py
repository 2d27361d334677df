"""What a request means: checks, the signature it names, running it, and the answer's messages. Frees the gRPC and REST edges from all of that.

In: TensorFlow Serving's request messages. Out: its response messages, or `Status` with the code and the message of the real server, because clients
depend on both. Sources: tensorflow/serving, `servables/tensorflow/{predict_util,classifier,regressor,multi_inference}.cc`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from serving import wire
from serving.server.configs import models_of
from serving.server.metrics import Metrics
from serving.server.models import Loaded, Models
from serving.server.status import NUMBERS, Status, invalid
from serving.wire import Array

DEFAULT_SIGNATURE = "serving_default"
CLASSIFY, REGRESS, PREDICT = "tensorflow/serving/classify", "tensorflow/serving/regress", "tensorflow/serving/predict"
WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
MAX_WARMUP_RECORDS = 1000
# A few bytes can claim a huge shape, because a missing value repeats the last one: no more elements than bytes came, or this many.
MAX_REPEATED = 1 << 22


class Handlers:
    """The services' methods over the loaded models."""

    def __init__(self, models: Models, metrics: Metrics, *, tensor_content: bool = False, check_method_name: bool = False) -> None:
        """Args are the server's flags: `--enable_serialization_as_tensor_content` and `--enable_signature_method_name_check`."""
        self.models, self.metrics = models, metrics
        self._tensor_content, self._check_method_name = tensor_content, check_method_name

    def acquire(self, name: str, version: int | None, version_label: str) -> AbstractContextManager[Loaded]:
        """A loaded version, for the REST edge's predict."""
        return self.models.acquire(name, version, version_label)

    def is_ready(self) -> bool:
        """Whether every configured model answers."""
        return self.models.is_ready()

    def _acquire(self, request: Any) -> AbstractContextManager[Loaded]:
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        return self.acquire(*_named(request.model_spec))

    # ---- PredictionService

    def predict(self, request: Any, deadline: float | None) -> Any:
        """A `PredictResponse`."""
        with self._acquire(request) as loaded:
            return predict_on(loaded, request, deadline, tensor_content=self._tensor_content, check_method_name=self._check_method_name)

    def classify(self, request: Any, deadline: float | None) -> Any:
        """A `ClassificationResponse`."""
        with self._acquire(request) as loaded:
            return classify_on(loaded, request, deadline, check_method_name=self._check_method_name)

    def regress(self, request: Any, deadline: float | None) -> Any:
        """A `RegressionResponse`."""
        with self._acquire(request) as loaded:
            return regress_on(loaded, request, deadline, check_method_name=self._check_method_name)

    def multi_inference(self, request: Any, deadline: float | None) -> Any:
        """A `MultiInferenceResponse`: all tasks in one run of the model."""
        spec = request.tasks[0].model_spec if request.tasks else wire.ModelSpec()
        with self.acquire(*_named(spec)) as loaded:
            return multi_inference_on(loaded, request, deadline)

    def metadata(self, request: Any) -> Any:
        """A `GetModelMetadataResponse`."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        with self._acquire(request) as loaded:
            response = wire.GetModelMetadataResponse()
            _fill_spec(response.model_spec, loaded)
            stored = wire.SignatureDefMap()
            for name, signature in loaded.signatures.items():
                stored.signature_def[name].CopyFrom(signature)
            response.metadata["signature_def"].Pack(stored)
            return response

    # ---- ModelService

    def model_status(self, request: Any) -> Any:
        """A `GetModelStatusResponse`; a version label in the request is ignored, as the real server does."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        spec = request.model_spec
        version = spec.version.value if spec.WhichOneof("version_choice") == "version" else None
        response = wire.GetModelStatusResponse()
        for entry in self.models.statuses(spec.name, version):
            one = response.model_version_status.add(version=entry.version)
            one.state = wire.ModelVersionStatus.State.Value(entry.state)
            one.status.error_code = NUMBERS[entry.code]
            one.status.error_message = entry.message
        return response

    def reload_config(self, request: Any, deadline: float | None) -> Any:
        """A `ReloadConfigResponse`, after the new models are loaded or have failed."""
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid("ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently supported")
        self.models.reload(models_of(request.config, self.models.configs()), deadline=deadline)
        return wire.ReloadConfigResponse()


def _named(spec: Any) -> tuple[str, int | None, str]:
    choice = spec.WhichOneof("version_choice")
    return spec.name, (spec.version.value if choice == "version" else None), (spec.version_label if choice == "version_label" else "")


def _fill_spec(spec: Any, loaded: Loaded, signature_name: str = "") -> None:
    spec.name = loaded.name
    spec.version.value = loaded.version
    spec.signature_name = signature_name


# ---- Predict


def predict_on(
    loaded: Loaded, request: Any, deadline: float | None, *, tensor_content: bool = False, check_method_name: bool = False
) -> Any:
    """A `PredictResponse` of a version."""
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = loaded.signatures.get(name)
    if signature is None:
        raise Status("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
    if check_method_name and signature.method_name not in (PREDICT, CLASSIFY, REGRESS):
        raise invalid(
            f"Expected prediction signature method_name to be one of {{{PREDICT}, {CLASSIFY}, {REGRESS}}}. Was: {signature.method_name}"
        )
    inputs = _inputs_of(request.inputs, signature)
    outputs = _outputs_of(request.output_filter, signature)
    values = loaded.run(name, inputs, outputs, deadline)
    response = wire.PredictResponse()
    _fill_spec(response.model_spec, loaded, name)
    for alias, value in values.items():
        try:
            response.outputs[alias].CopyFrom(wire.to_tensor(value, typed_fields=not tensor_content))
        except ValueError as error:
            raise Status("UNIMPLEMENTED", f"output {alias}: {error}") from error
    return response


def _inputs_of(given: Mapping[str, Any], signature: Any) -> dict[str, Array]:
    sent, declared, defaults = set(given), set(signature.inputs), set(signature.defaults)
    missing = declared - sent - defaults
    if len(sent) != len(declared) and (sent - declared or missing):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(declared)} len({_braced(sent)}) != len({_braced(declared)}). "
            f"Sent extra: {_braced(sent - declared)}. Missing but required: {_braced(missing)}."
        )
    inputs = {}
    for alias in sorted(declared):
        tensor = given[alias] if alias in sent else signature.defaults[alias] if alias in defaults else None
        if tensor is None:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {signature.inputs[alias].name}) not found in request and no default value provided. "
                f"Inputs expected to be in the request {_braced(sent)}, or default input alias set: {','.join(sorted(defaults))}"
            )
        try:
            array = wire.to_array(tensor, max_elements=max(tensor.ByteSize(), MAX_REPEATED) + 1)
        except (ValueError, OverflowError) as error:
            raise invalid(f"tensor parsing error: {alias}") from error
        # Read as float32, without loss; the graph takes nothing but its own type.
        inputs[alias] = array.astype(ml_dtypes.bfloat16) if tensor.dtype == wire.DT_BFLOAT16 else array
    return inputs


def _outputs_of(wished: Sequence[str], signature: Any) -> list[str]:
    seen: set[str] = set()
    for alias in wished:
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set {_braced(set(signature.outputs))}."
            )
        if alias in seen:
            raise invalid(f"duplicate output tensor alias: {alias}")
        seen.add(alias)
    return list(wished) or sorted(signature.outputs)


def _braced(names: set[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


# ---- Classify, Regress, MultiInference


def _signature(loaded: Loaded, name: str, *, in_graph: bool = False) -> Any:
    signature = loaded.signatures.get(name or DEFAULT_SIGNATURE)
    if signature is None:
        where = "Requested signature not found in model graph" if in_graph else "No signature was found with the name"
        raise invalid(f"{where}: {name or DEFAULT_SIGNATURE}")
    return signature


def _examples(message: Any) -> Array:
    """Serialized examples, object `[n]`: with a context, each is the context and itself one after the other, which merges them."""
    kind = message.WhichOneof("kind")
    context = b""
    if kind == "example_list":
        examples = message.example_list.examples
    elif kind == "example_list_with_context":
        examples = message.example_list_with_context.examples
        context = message.example_list_with_context.context.SerializeToString()
    else:
        examples = []
    if not examples:
        raise invalid("Input is empty.")
    serialized = np.empty(len(examples), np.object_)
    serialized[:] = [context + example.SerializeToString() for example in examples]
    return serialized


def _only_input(signature: Any, kind: str) -> str:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if "inputs" not in signature.inputs:
        raise invalid(f"No {kind} inputs found in SignatureDef: {signature}")
    return str(signature.inputs["inputs"].name)


def _check_method(signature: Any, expected: str, kind: str) -> None:
    if signature.method_name != expected:
        raise invalid(f"Expected {kind} signature method_name to be {expected}. Was: {signature.method_name}")


def _classify_tensors(signature: Any) -> tuple[str, dict[str, str]]:
    feed = _only_input(signature, "classification")
    fetches = {name: signature.outputs[name].name for name in ("classes", "scores") if name in signature.outputs}
    if not fetches:
        raise invalid(
            'Expected classification signature outputs to contain at least one of "classes" or "scores". Signature was: ' + str(signature)
        )
    return feed, fetches


def _regress_tensors(signature: Any) -> tuple[str, dict[str, str]]:
    feed = _only_input(signature, "regression")
    if "outputs" not in signature.outputs:
        raise invalid(f"No regression outputs found in SignatureDef: {signature}")
    return feed, {"outputs": signature.outputs["outputs"].name}


def classify_on(loaded: Loaded, request: Any, deadline: float | None, *, check_method_name: bool = False) -> Any:
    """A `ClassificationResponse` of a version."""
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = _signature(loaded, name)
    if check_method_name:
        _check_method(signature, CLASSIFY, "classification")
    feed, fetches = _classify_tensors(signature)
    examples = _examples(request.input)
    values = loaded.run_named({feed: examples}, fetches, deadline)
    response = wire.ClassificationResponse()
    _fill_classifications(response.result, values, len(examples))
    _fill_spec(response.model_spec, loaded, name)
    return response


def _fill_classifications(result: Any, values: Mapping[str, Array], rows: int) -> None:
    classes, scores = values.get("classes"), values.get("scores")
    for name, value, kind in (("classes", classes, "DT_STRING"), ("scores", scores, "DT_FLOAT")):
        if value is None:
            continue
        if value.ndim != 2:
            raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {name}[0]: {list(value.shape)}")
        if value.dtype != (np.object_ if kind == "DT_STRING" else np.float32):
            raise invalid(f"Expected {name} Tensor of {kind}. Got: {value.dtype}")
        if value.shape[0] != rows:
            raise invalid(f"Expected {name} output batch size of {rows}. Got: {value.shape[0]}")
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise invalid(f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. {scores.shape[1]}")
    for row in range(rows):
        one = result.classifications.add()
        labels = classes[row].tolist() if classes is not None else []
        numbers = scores[row].tolist() if scores is not None else []
        for column in range(max(len(labels), len(numbers))):
            added = one.classes.add()
            if labels:
                # The field is a proto string; bytes that are not UTF-8 cannot be carried by it.
                added.label = labels[column].decode("utf-8", "replace")
            if numbers:
                added.score = numbers[column]


def regress_on(loaded: Loaded, request: Any, deadline: float | None, *, check_method_name: bool = False) -> Any:
    """A `RegressionResponse` of a version."""
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = _signature(loaded, name)
    if check_method_name:
        _check_method(signature, REGRESS, "regression")
    feed, fetches = _regress_tensors(signature)
    examples = _examples(request.input)
    values = loaded.run_named({feed: examples}, fetches, deadline)
    response = wire.RegressionResponse()
    _fill_regressions(response.result, values["outputs"], len(examples))
    _fill_spec(response.model_spec, loaded, name)
    return response


def _fill_regressions(result: Any, value: Array, rows: int) -> None:
    if value.ndim not in (1, 2) or (value.ndim == 2 and value.shape[1] != 1):
        raise invalid(f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {list(value.shape)}")
    if value.dtype != np.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT. Got: {value.dtype}")
    if value.shape[0] != rows:
        raise invalid(f"Input batch size did not match output batch size: {rows} vs. {value.shape[0]}")
    for number in value.ravel().tolist():
        result.regressions.add(value=number)


def multi_inference_on(loaded: Loaded, request: Any, deadline: float | None) -> Any:
    """A `MultiInferenceResponse` of a version."""
    feed = ""
    fetches: dict[str, str] = {}
    seen: set[str] = set()
    for task in request.tasks:
        if task.model_spec.name != loaded.name:
            raise invalid(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name. "
                f"Expected model: {loaded.name} but got model: {task.model_spec.name}"
            )
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if name in seen:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        seen.add(name)
        signature = _signature(loaded, name, in_graph=True)
        if task.method_name not in (CLASSIFY, REGRESS):
            raise Status("UNIMPLEMENTED", f"Unsupported signature method_name: {task.method_name}")
        one, wanted = _classify_tensors(signature) if task.method_name == CLASSIFY else _regress_tensors(signature)
        if feed and one != feed:
            raise invalid(f"Input tensor must be the same for all Signatures. Got: {one} vs. {feed}")
        feed = one
        fetches |= {f"{name}/{alias}": tensor for alias, tensor in wanted.items()}
    examples = _examples(request.input)
    values = loaded.run_named({feed: examples}, fetches, deadline)
    response = wire.MultiInferenceResponse()
    for task in request.tasks:
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        result = response.results.add()
        _fill_spec(result.model_spec, loaded, name)
        mine = {alias: values[f"{name}/{alias}"] for alias in ("classes", "scores", "outputs") if f"{name}/{alias}" in values}
        if task.method_name == CLASSIFY:
            _fill_classifications(result.classification_result, mine, len(examples))
        else:
            _fill_regressions(result.regression_result, mine["outputs"], len(examples))
    return response


# ---- warm-up


def warm_up(loaded: Loaded, records: Any, iterations: int) -> int:
    """Runs every record as the first requests will; names in them are not checked. Returns how many there were.

    Raises:
        Status: one failed, there are too many, or one is of a kind that cannot be replayed: the load fails with it.
    """
    kinds = {"predict_log": predict_on, "classify_log": classify_on, "regress_log": regress_on, "multi_inference_log": _multi_warm}
    count = 0
    for record in records:
        count += 1
        if count > MAX_WARMUP_RECORDS:
            raise invalid(
                f"Number of warmup records exceeds the maximum ({MAX_WARMUP_RECORDS}). Please reduce the number of warmup records."
            )
        try:
            log = wire.PredictionLog.FromString(record)
        except Exception as error:  # protobuf's DecodeError class differs between its implementations
            raise invalid("Failed to parse warmup record. Please verify your warmup data is in TFRecord format.") from error
        kind = log.WhichOneof("log_type")
        if kind is None:
            continue
        if kind not in kinds:
            raise Status("UNIMPLEMENTED", f"Unsupported log_type for warmup: {kind}")
        for _ in range(max(1, iterations)):
            kinds[kind](loaded, getattr(log, kind).request, time.monotonic() + 600)
    return count


def _multi_warm(loaded: Loaded, request: Any, deadline: float | None) -> Any:
    for task in request.tasks:
        task.model_spec.name = loaded.name
    return multi_inference_on(loaded, request, deadline)
