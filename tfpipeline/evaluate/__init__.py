"""How good is a model, how sure is that, and where does it fail: for any model that answers with probabilities.

In: examples and probabilities (arrays; TensorFlow is never imported here). Out: plain JSON types, a table for the terminal, one HTML
page, one Parquet file.
Reads in the order of the flow: `rows` (the door), `scores` and `intervals`, `calibration`, `slices`, `metrics`; beside them `baseline`
and `compare`; then `predictions`, `terminal` and `report` carry the result out. Does not predict, does not choose a threshold, does not
weigh rows.
"""

from tfpipeline.evaluate.baseline import tfidf_baseline
from tfpipeline.evaluate.calibration import apply_temperature, fit_temperature
from tfpipeline.evaluate.compare import align, compare
from tfpipeline.evaluate.metrics import evaluate
from tfpipeline.evaluate.predictions import Predictions, load_predictions, save_predictions
from tfpipeline.evaluate.report import write_report
from tfpipeline.evaluate.terminal import render

__all__ = [
    "Predictions",
    "align",
    "apply_temperature",
    "compare",
    "evaluate",
    "fit_temperature",
    "load_predictions",
    "render",
    "save_predictions",
    "tfidf_baseline",
    "write_report",
]
