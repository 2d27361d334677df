"""Process state is set in one place, and says when it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import tensorflow as tf

from tfpipeline import runtime
from tfpipeline.config import RuntimeConfig
from tfpipeline.errors import ConfigError
from tfpipeline.progress import Progress


def test_one_device_is_the_default_strategy() -> None:
    assert runtime.apply(RuntimeConfig()).num_replicas_in_sync == 1


def test_the_seed_repeats_the_numbers() -> None:
    runtime.apply(RuntimeConfig(seed=5))
    first = tf.random.uniform([3]).numpy().tolist()
    runtime.apply(RuntimeConfig(seed=5))
    assert tf.random.uniform([3]).numpy().tolist() == first


def test_threads_that_come_too_late() -> None:
    tf.constant(1.0) + 1.0
    with pytest.raises(ConfigError, match=r"^`runtime.threads` = 63 comes too late: TensorFlow has already started in this process\.$"):
        runtime.apply(RuntimeConfig(threads=63))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator alone has these settings")
@pytest.mark.parametrize(("kept", "given"), [(True, {}), (False, {"MALLOC_MMAP_MAX_": "65536"})], ids=["as we want it", "as the user says"])
def test_a_large_buffer_that_was_freed_is_not_faulted_in_again(kept: bool, given: dict[str, str]) -> None:
    """45 MiB are a gradient of BERT's word embeddings: 11,520 pages of 4 KiB."""
    code = (
        "import resource; from tfpipeline import runtime; runtime.keep_memory()\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(5): before = faults(); b'x' * (45 << 20); after = faults()\n"
        "print(after - before)"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")} | given
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert (int(found.stdout) < 500) is kept, found.stdout


def test_keras_3_is_refused_with_the_way_out() -> None:
    code = "import tfpipeline, tensorflow\nfrom tfpipeline import runtime\nruntime.check()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "TF_USE_LEGACY_KERAS": "0"}, capture_output=True, text=True, timeout=120
    )
    assert done.stderr.splitlines()[-1] == (
        "tfpipeline.errors.DependencyError: TensorFlow runs with Keras 3; the TF classes of transformers need Keras 2. Import tfpipeline before tensorflow, "
        "or set TF_USE_LEGACY_KERAS=1 before the first import."
    )


def test_progress_speaks_on_stderr_alone_and_not_too_often(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with Progress("training", total=100, unit="rows") as bar:
        for _ in range(10):
            clock[0] += 4.0
            bar.update(10, loss="0.5")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "training: 30/100 (30 %) rows, 2.5/s, 28 s left, loss 0.5",
        "training: 60/100 (60 %) rows, 2.5/s, 16 s left, loss 0.5",
        "training: 90/100 (90 %) rows, 2.5/s, 4 s left, loss 0.5",
        "training: 100/100 (100 %) rows, 2.5/s, 0 s left, loss 0.5",
    ]
