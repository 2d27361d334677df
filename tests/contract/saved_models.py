"""Small SavedModels of every kind that TensorFlow Serving's own tests use. Frees the contract tests from TensorFlow's two ways of exporting.

Each builder writes one version's folder. TensorFlow 1 exports are made as upstream makes its test data: placeholders, signatures by tensor name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

CLASSIFY, REGRESS, PREDICT = "tensorflow/serving/classify", "tensorflow/serving/regress", "tensorflow/serving/predict"
v1 = tf.compat.v1

# Every dtype that TensorFlow Serving carries.
ECHO_DTYPES = (
    "float", "double", "int32", "uint8", "int16", "int8", "string", "complex64", "int64", "bool", "bfloat16", "uint16", "complex128", "half", "uint32", "uint64",
)  # fmt: skip


def signature(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any], method: str = PREDICT, defaults: Mapping[str, Any] | None = None
) -> Any:
    """A SignatureDef from tensors, or from ready-made TensorInfo messages."""

    def infos(tensors: Mapping[str, Any]) -> dict[str, Any]:
        info = v1.saved_model.build_tensor_info
        return {name: info(tensor) if hasattr(tensor, "graph") else tensor for name, tensor in tensors.items()}

    made = v1.saved_model.build_signature_def(infos(inputs), infos(outputs), method)
    for name, value in (defaults or {}).items():
        made.defaults[name].CopyFrom(tf.make_tensor_proto(value))
    return made


def export(path: Path, graph: Callable[[], Mapping[str, Any]], tags: tuple[str, ...] = ("serve",)) -> Path:
    """A TensorFlow 1 export: `graph` builds into the default graph and returns the signatures."""
    with tf.Graph().as_default(), v1.Session() as session:
        signatures = dict(graph())
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, list(tags), signature_def_map=signatures)
        builder.save()
    return path


def _parsed() -> tuple[Any, Any, Any]:
    """Serialized tf.Examples, and their float features `x` and `x2`."""
    examples = v1.placeholder(tf.string, name="tf_example")
    features = {"x": tf.io.FixedLenFeature([1], tf.float32), "x2": tf.io.FixedLenFeature([1], tf.float32, default_value=[0.0])}
    parsed = tf.io.parse_example(examples, features)
    return examples, tf.identity(parsed["x"], name="x"), tf.identity(parsed["x2"], name="x2")


def half_plus(path: Path, constant: float = 2.0) -> Path:
    """y = x / 2 + constant, as upstream's `half_plus_two`: predict, regress and classify over the same graph, state in variables."""

    def graph() -> dict[str, Any]:
        examples, x, x2 = _parsed()
        a, b, c = (v1.get_variable(name, initializer=value) for name, value in (("a", 0.5), ("b", constant), ("c", 3.0)))
        y = tf.add(tf.multiply(a, x), b, name="y")
        y3 = tf.add(tf.multiply(a, x2), c, name="y3")
        labels = tf.tile([["low", "high"]], [tf.shape(x)[0], 1])
        scores = tf.concat([1.0 - x, x], axis=1)
        return {
            "serving_default": signature({"x": x}, {"y": y}),
            "regress_x_to_y": signature({"inputs": examples}, {"outputs": y}, REGRESS),
            "regress_x_to_y2": signature({"inputs": examples}, {"outputs": tf.reshape(y3, [-1])}, REGRESS),
            "regress_x2_to_y3": signature({"inputs": x2}, {"outputs": y3}, REGRESS),
            "classify_x_to_y": signature({"inputs": examples}, {"scores": y}, CLASSIFY),
            "classify_both": signature({"inputs": examples}, {"classes": labels, "scores": scores}, CLASSIFY),
            "classify_labels": signature({"inputs": examples}, {"classes": labels}, CLASSIFY),
        }

    return export(path, graph)


def half_plus_three(path: Path) -> Path:
    """As upstream's `saved_model_half_plus_three`: x is (None, 1) but is sent as [1]; the regress signature declares float for a string placeholder."""

    def graph() -> dict[str, Any]:
        examples, x, _ = _parsed()
        y = tf.add(tf.multiply(v1.get_variable("a", initializer=0.5), x), v1.get_variable("b", initializer=3.0), name="y")
        wrong = v1.saved_model.build_tensor_info(examples)
        wrong.dtype = tf.float32.as_datatype_enum
        return {
            "serving_default": signature({"x": x}, {"y": y}),
            "tensorflow/serving/regress": signature({"inputs": wrong}, {"outputs": y}, REGRESS),
        }

    return export(path, graph)


def counter(path: Path) -> Path:
    """State that lives between requests, in a TensorFlow 1 ref variable; signatures without inputs."""

    def graph() -> dict[str, Any]:
        state = v1.get_variable("counter", initializer=0.0, use_resource=False)
        delta = v1.placeholder(tf.float32, name="delta")
        return {
            "get_counter": signature({}, {"output": tf.identity(state)}),
            "incr_counter": signature({}, {"output": v1.assign_add(state, 1.0)}),
            "incr_counter_by": signature({"delta": delta}, {"output": v1.assign_add(state, delta)}),
            "reset_counter": signature({}, {"output": v1.assign(state, 0.0)}),
        }

    return export(path, graph)


def plus(path: Path, constant: int) -> Path:
    """y = x + constant, the smallest model there is: versions of it are told apart by their answers."""

    def graph() -> dict[str, Any]:
        x = v1.placeholder(tf.float32, name="x")
        return {"serving_default": signature({"x": x}, {"y": x + float(constant)})}

    return export(path, graph)


def echo(path: Path) -> Path:
    """One signature for each dtype that answers what it is sent, of any shape."""

    def graph() -> dict[str, Any]:
        placeholders = {name: v1.placeholder(tf.as_dtype(name)) for name in ECHO_DTYPES}
        return {name: signature({"x": placeholder}, {"y": tf.identity(placeholder)}) for name, placeholder in placeholders.items()}

    return export(path, graph)


def several(path: Path) -> Path:
    """Several inputs and outputs, defaults, a matrix product, a scalar output, and one output whose node fails when it is computed."""

    def graph() -> dict[str, Any]:
        a, b = v1.placeholder(tf.float32, name="a"), v1.placeholder(tf.float32, name="b")
        matrix = v1.placeholder(tf.float32, [None, 3], name="matrix")
        rows = v1.placeholder(tf.float32, [None], name="rows")
        with tf.control_dependencies([v1.assert_less(a, 1000.0, message="a is too large")]):
            fails = tf.identity(a)
        return {
            "serving_default": signature({"a": a, "b": b}, {"sum": a + b, "product": a * b}),
            "defaults": signature({"a": a, "b": b}, {"sum": a + b}, defaults={"b": [10.0]}),
            "one": signature({"x": a}, {"y": a * 2.0, "checked": fails}),
            "matrix": signature({"x": matrix}, {"y": tf.matmul(matrix, tf.ones([3, 2]))}),
            "scalar": signature({"x": rows}, {"y": tf.reduce_sum(rows)}),
            "no_method": signature({"x": a}, {"y": a + 1.0}, ""),
        }

    return export(path, graph)


def odd(path: Path) -> Path:
    """Classify and Regress signatures that are wrong, each in one way."""

    def graph() -> dict[str, Any]:
        examples, x, x2 = _parsed()
        labels = tf.tile([["low", "high"]], [tf.shape(x)[0], 1])
        pair = tf.concat([x, x2], axis=1)
        triple = tf.concat([pair, x], axis=1)

        def classify(inputs: Mapping[str, Any] | None = None, **outputs: Any) -> Any:
            return signature(inputs or {"inputs": examples}, outputs, CLASSIFY)

        def regress(inputs: Mapping[str, Any] | None = None, **outputs: Any) -> Any:
            return signature(inputs or {"inputs": examples}, outputs, REGRESS)

        return {
            "two_inputs": classify({"inputs": examples, "more": x2}, scores=pair),
            "other_input": classify({"examples": examples}, scores=pair),
            "no_outputs": classify(y=x),
            "scores_rank": classify(scores=tf.reshape(x, [-1])),
            "scores_dtype": classify(scores=tf.cast(x, tf.float64)),
            "scores_rows": classify(scores=tf.constant([[0.5]])),
            "classes_rank": classify(classes=tf.reshape(labels, [-1])),
            "classes_dtype": classify(classes=pair),
            "columns": classify(classes=labels, scores=triple),
            "regress_other_input": regress({"examples": examples}, outputs=x),
            "regress_no_outputs": regress(y=x),
            "regress_shape": regress(outputs=pair),
            "regress_dtype": regress(outputs=tf.cast(x, tf.float64)),
            "regress_rows": regress(outputs=tf.constant([0.5])),
        }

    return export(path, graph)


def slow(path: Path) -> Path:
    """Counts to the largest of `x`, about 100,000 steps a second, and answers `x`; a run can be cancelled between two steps."""

    def graph() -> dict[str, Any]:
        x = v1.placeholder(tf.int32, [None], name="x")
        end = tf.reduce_max(x)
        (counted,) = tf.while_loop(lambda step: step < end, lambda step: (step + 1,), (tf.constant(0),), parallel_iterations=1)
        with tf.control_dependencies([counted]):
            return {"serving_default": signature({"x": x}, {"y": tf.identity(x)})}

    return export(path, graph)


def keras_sequential(path: Path) -> Path:
    """A Keras `Sequential` that adds up its two features, saved by Keras."""
    import tf_keras

    model = tf_keras.Sequential([tf_keras.layers.Dense(1, input_shape=(2,), kernel_initializer="ones", name="sum")])
    model.save(path, save_format="tf")
    return path


def module(path: Path) -> Path:
    """A `tf.Module` with two signatures that return scalars, one that takes a list, and one with strings in and out."""

    class Several(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.three = tf.Variable(3.0)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def total(self, x: Any) -> dict[str, Any]:
            return {"total": tf.reduce_sum(x) + self.three}

        @tf.function(input_signature=[tf.TensorSpec([], tf.float32, name="x")])
        def triple(self, x: Any) -> dict[str, Any]:
            return {"tripled": x * self.three}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
        def shout(self, text: Any) -> dict[str, Any]:
            return {"text": tf.strings.upper(text, encoding="utf-8")}

    built = Several()
    tf.saved_model.save(built, str(path), signatures={"serving_default": built.total, "triple": built.triple, "shout": built.shout})
    return path


def text(path: Path) -> Path:
    """Splits text with an op of TensorFlow Text."""
    import tensorflow_text

    class Splits(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
        def count(self, text: Any) -> dict[str, Any]:
            words = tensorflow_text.UnicodeScriptTokenizer().tokenize(text)
            return {"words": words.to_tensor(""), "count": words.row_lengths()}

    built = Splits()
    tf.saved_model.save(built, str(path), signatures={"serving_default": built.count})
    return path


def tflite(path: Path, constant: float = 5.0) -> Path:
    """`model.tflite` in a folder: y = 2 x + constant, float [n, 2]."""

    class Doubles(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")])
        def double(self, x: Any) -> Any:
            return tf.identity(2.0 * x + constant, name="y")

    built = Doubles()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([built.double.get_concrete_function()], built)
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.tflite").write_bytes(converter.convert())
    return path


def corrupt(path: Path) -> Path:
    """A version whose graph is no protobuf message."""
    path.mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(b"\xff\xff not a SavedModel")
    return path
