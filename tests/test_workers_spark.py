"""The Spark recipe of docs/scaling.md, as it stands there, scores a file as the model itself does."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfpipeline.export import open_model

RECIPES = re.findall(
    r"^```python\n(.*?)^```$", (Path(__file__).parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8"), re.M | re.S
)


def test_the_recipes_are_python() -> None:
    assert len(RECIPES) == 2
    for recipe in RECIPES:
        compile(recipe, "docs/scaling.md", "exec")


@pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="pyspark is missing: pip install pyspark")
@pytest.mark.skipif(shutil.which("java") is None, reason="Java is missing, which Spark runs on: install a JRE, 17 or newer")
def test_spark_scores_as_the_model_does(tiny_model, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (script,) = (recipe for recipe in RECIPES if "pyspark" in recipe)
    (tmp_path / "score.py").write_text(script, encoding="utf-8")
    texts = [f"the {thing} was {word} today" for thing in ("app", "card", "loan") for word in ("great", "awful", "kind")] * 10 + [""]
    pq.write_table(pa.table({"text": pa.array([*texts, None])}), tmp_path / "in.parquet")
    done = subprocess.run(
        [sys.executable, "score.py", str(tiny_model.path), "in.parquet", "out.parquet"], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1", "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    model = open_model(tiny_model.path)
    probabilities = model.predict([*texts, ""])
    assert [row["text"] for row in found] == [*texts, None]
    assert [row["label"] for row in found] == [model.labels[index] for index in probabilities.argmax(axis=1)]
    assert [row["score"] for row in found] == pytest.approx(probabilities.max(axis=1).tolist(), abs=1e-5)
