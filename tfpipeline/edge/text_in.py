"""Runs a file of form `text`: splitting into word pieces is inside its graph. Needs TensorFlow Text, whose registerer brings the operators, and with it
TensorFlow.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from tfpipeline.errors import DependencyError


class TextIn:
    """A cleaned text to probabilities float32 `[classes]`."""

    def __init__(self, data: bytes, threads: int) -> None:
        try:
            from tensorflow.lite.python.interpreter import InterpreterWithCustomOps
            from tensorflow_text.core.pybinds import tflite_registrar
        except ImportError as error:
            raise DependencyError(
                f"{error.name} is not installed. A file of form 'text' holds TensorFlow Text's operators: pip install 'tfpipeline[train]', or write the "
                "file with form 'ids', which needs LiteRT only."
            ) from error
        with warnings.catch_warnings():
            # TensorFlow says that its interpreter moved to LiteRT; TensorFlow Text's registerer still needs this one (tensorflow-text 2.21).
            warnings.simplefilter("ignore")
            interpreter = InterpreterWithCustomOps(
                custom_op_registerers=tflite_registrar.SELECT_TFTEXT_OPS, model_content=data, num_threads=threads
            )
        self._interpreter = interpreter
        self._runner = interpreter.get_signature_runner("serving_default")

    def __call__(self, text: str) -> Any:
        return self._runner(text=np.array([text]))["probabilities"][0]
