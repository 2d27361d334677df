"""An edge file that answers: raw texts in, probabilities out, on LiteRT. Imports neither TensorFlow nor transformers, nor anything beyond LiteRT and numpy.

In: a file written by `tfpipeline.edge.convert`. Refuses what `tfpipeline.edge.metadata` refuses. A file of form `text` splits words inside its graph
and is the one exception: its operators come with TensorFlow Text (see `tfpipeline.edge.text_in`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfpipeline.edge import metadata
from tfpipeline.edge.tokenizer import Tokenizer, Tokens
from tfpipeline.errors import ConfigError, DependencyError

_logger = logging.getLogger(__name__)

Probabilities = npt.NDArray[np.float32]
INPUTS = ("ids", "mask", "segment_ids")


class EdgeModel:
    """One file, ready to answer. Not safe for several threads at once: LiteRT's interpreter holds one set of buffers. Give each thread its own.

    Args:
        source: path of a `.tflite`, or its bytes.
        threads: of LiteRT; 0: all cores.

    Attributes:
        labels: class names in order.
        task: `single_label` or `multi_label`.
        has_pairs: whether a row is two texts.
        description: what the file says about itself.
        truncated: how many texts of the last `predict` were longer than the model reads, and were cut.
    """

    def __init__(self, source: Path | str | bytes, *, threads: int = 0) -> None:
        if threads < 0:
            raise ConfigError(f"threads: expected 0 (all cores) or more, received {threads}.")
        contents = metadata.read(source)
        self.description = contents.description
        self.sha256 = contents.sha256
        self.labels: tuple[str, ...] = tuple(self.description["labels"])
        self.task: str = self.description["task"]
        self.has_pairs: bool = self.description["has_pairs"]
        self.max_length: int = self.description["max_length"]
        self.lengths: tuple[int, ...] = tuple(self.description["lengths"])
        self.truncated = 0
        self._tokenizer = Tokenizer(contents.vocabulary, self.description["text"])
        threads = threads or os.cpu_count() or 1
        if self.description["form"] == "text":
            from tfpipeline.edge.text_in import TextIn

            self._engine: Any = TextIn(contents.data, threads)
        else:
            self._engine = _Fixed(contents.data, threads, self.lengths) if self.lengths else _AnyLength(contents.data, threads)

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Probabilities:
        """Probabilities float32 `[rows, classes]`, in the order of the texts; any number of rows, also none."""
        if self.has_pairs != (pairs is not None):
            expected = "two texts a row" if self.has_pairs else "one text a row"
            raise ConfigError(f"this model takes {expected}, received {'two' if pairs is not None else 'one'}.")
        if pairs is not None and len(pairs) != len(texts):
            raise ConfigError(f"expected as many second texts as first ones ({len(texts)}), received {len(pairs)}.")
        result = np.zeros((len(texts), len(self.labels)), np.float32)
        self.truncated = 0
        for row, text in enumerate(texts):
            tokens = self._tokens(text, None if pairs is None else pairs[row])
            self.truncated += tokens.full_length > self.max_length
            if self.description["form"] == "text":
                result[row] = self._engine(self._tokenizer.readable(text))
            else:
                result[row] = self._engine(tokens, self._tokenizer.pad_id)
        if self.truncated:
            _logger.warning("%d of %d texts are longer than %d tokens; the rest was cut off.", self.truncated, len(texts), self.max_length)
        return result

    def token_lengths(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> npt.NDArray[np.int32]:
        """True token counts, special tokens included, before any cut: int32 `[rows]`."""
        partners = [None] * len(texts) if pairs is None else list(pairs)
        return np.array([self._tokens(text, pair).full_length for text, pair in zip(texts, partners, strict=True)], np.int32)

    def _tokens(self, text: str, pair: str | None) -> Tokens:
        return self._tokenizer(text, pair, self.max_length)


def interpreter(data: bytes, threads: int) -> Any:
    """LiteRT's interpreter over the bytes of a file.

    Raises:
        DependencyError: LiteRT is not installed.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise DependencyError("ai-edge-litert is not installed. Edge files need the extra: pip install 'tfpipeline[edge]'.") from error
    return Interpreter(model_content=data, num_threads=threads)


class _AnyLength:
    """One graph that is resized to each text: nothing is padding."""

    def __init__(self, data: bytes, threads: int) -> None:
        self._interpreter = interpreter(data, threads)
        # The names of the tensors are the converter's; those of the signature are ours.
        details = self._interpreter.get_signature_runner(self._interpreter.get_signature_list().__iter__().__next__()).get_input_details()
        self._inputs = [details[name]["index"] for name in INPUTS]
        self._output = self._interpreter.get_output_details()[0]["index"]
        self._length = 0

    def __call__(self, tokens: Tokens, pad_id: int) -> Any:
        del pad_id
        length = len(tokens.ids)
        if length != self._length:
            for index in self._inputs:
                self._interpreter.resize_tensor_input(index, (1, length))
            self._interpreter.allocate_tensors()
            self._length = length
        for index, values in zip(self._inputs, (tokens.ids, [1] * length, tokens.types), strict=True):
            self._interpreter.set_tensor(index, np.array([values], np.int32))
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._output)[0]


class _Fixed:
    """One graph a length, over the same weights: a text goes to the smallest that holds it."""

    def __init__(self, data: bytes, threads: int, lengths: tuple[int, ...]) -> None:
        self._interpreter = interpreter(data, threads)
        self._lengths = lengths
        self._runners: dict[int, Any] = {}

    def __call__(self, tokens: Tokens, pad_id: int) -> Any:
        real = len(tokens.ids)
        length = next(length for length in self._lengths if length >= real)
        runner = self._runners.get(length)
        if runner is None:
            runner = self._runners[length] = self._interpreter.get_signature_runner(f"serving_{length}")
        ids, mask, types = np.full((1, length), pad_id, np.int32), np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
        ids[0, :real], mask[0, :real], types[0, :real] = tokens.ids, 1, tokens.types
        return runner(ids=ids, mask=mask, segment_ids=types)["probabilities"][0]
