"""The only place that touches process state: seeds, threads, precision, determinism, distribution strategy, library noise.

In: `RuntimeConfig`. Out: a `tf.distribute.Strategy` in whose scope the model is built. Refuses: a TensorFlow that runs Keras 3, and settings
that come too late in the life of the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

from tfpipeline import workers
from tfpipeline.config import RuntimeConfig
from tfpipeline.errors import ConfigError, DependencyError

logger = logging.getLogger(__name__)

# glibc's malloc.h: parameter to value.
_KEEP_MEMORY = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 64 * 2**20)}


def quiet() -> None:
    """Silences what TensorFlow, Keras and transformers say about themselves; call before they are imported. Warnings about the user's data stay."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for module in ("tensorflow", "tf_keras", "keras", "transformers", "google", "numpy", "huggingface_hub"):
        warnings.filterwarnings("ignore", module=rf"{module}(\..*)?")
    for name in ("tensorflow", "absl", "transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)


def check() -> None:
    """Raises DependencyError when the training stack is missing or TensorFlow already runs with Keras 3."""
    keep_memory()
    try:
        with _quiet_stderr():
            import tensorflow as tf
            import tensorflow_text  # noqa: F401
            import tf_keras
            import transformers  # noqa: F401

            tf.config.list_physical_devices()  # looks for devices now, and says so now
    except ImportError as error:
        raise DependencyError(
            f"{error.name or error} is not installed. Training needs the extra: pip install 'tfpipeline[train]'."
        ) from error
    if tf.keras.Model is not tf_keras.Model:
        raise DependencyError(
            "TensorFlow runs with Keras 3; the TF classes of transformers need Keras 2. Import tfpipeline before tensorflow, "
            "or set TF_USE_LEGACY_KERAS=1 before the first import."
        )


def keep_memory() -> None:
    """Has the allocator keep what TensorFlow frees, for TensorFlow to take again.

    By its own rules glibc gives every buffer above 32 MiB back to the kernel at once, and a gradient of the word embeddings is 45 MiB: each training step then
    faults in, and has the kernel clear, hundreds of MiB that it just had. On two virtual cores that was half of the time of a step (benchmarks/README.md). The price
    is memory that stays with the process while it lives. Does nothing where the C library is not glibc, or where `MALLOC_MMAP_MAX_` says what to do.
    """
    if not sys.platform.startswith("linux") or "MALLOC_MMAP_MAX_" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _KEEP_MEMORY.values():
            mallopt(parameter, value)


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Holds back what native code writes to file descriptor 2 before TensorFlow has set up its logging, which no setting silences.

    Shown after all when the block fails: then it may be the explanation.
    """
    if "tensorflow" in sys.modules:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(kept, 2)
            held.seek(0)
            os.write(2, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def apply(config: RuntimeConfig) -> Any:
    """Sets the process up and returns the strategy. With `multiworker` it returns when all workers of `TF_CONFIG` are there.

    Raises:
        ConfigError: threads, devices or workers can no longer be changed because TensorFlow has already run something; `TF_CONFIG` is wrong.
        WorkerLost: a worker came and went before all were there.
    """
    check()
    cluster = None
    if config.strategy == "multiworker":
        cluster = workers.read_cluster()
        workers.check_port(cluster)
    import tensorflow as tf
    import tf_keras

    if config.threads:
        try:
            tf.config.threading.set_intra_op_parallelism_threads(config.threads)
            tf.config.threading.set_inter_op_parallelism_threads(config.threads)
        except RuntimeError as error:
            if tf.config.threading.get_intra_op_parallelism_threads() != config.threads:
                raise ConfigError(
                    f"`runtime.threads` = {config.threads} comes too late: TensorFlow has already started in this process."
                ) from error
    tf_keras.utils.set_random_seed(config.seed)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}[config.precision]
    tf_keras.mixed_precision.set_global_policy(policy)
    match config.strategy:
        case "mirrored":
            return tf.distribute.MirroredStrategy()
        case "multiworker":
            return _join(cluster)
        case _:
            return tf.distribute.get_strategy()


def team(config: RuntimeConfig, strategy: Any) -> workers.Team:
    """This process among those that train the same model; a team of one, unless the strategy is `multiworker`."""
    return workers.Team(strategy, workers.read_cluster() if config.strategy == "multiworker" else None)


def _join(cluster: workers.Cluster | None) -> Any:
    import tensorflow as tf

    assert cluster is not None
    logger.info("worker %d of %d, waiting for the others: %s", cluster.index, len(cluster.addresses), ", ".join(cluster.addresses))
    options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=workers.ANSWER_TIMEOUT_S)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    except RuntimeError as error:
        raise ConfigError(
            f"`runtime.strategy` = multiworker comes too late: TensorFlow has already started in this process ({error})."
        ) from error
    except tf.errors.OpError as error:
        raise workers.lost(error, None) from error


def describe() -> dict[str, Any]:
    """What the run is recorded with."""
    import tensorflow as tf

    return {
        "devices": [device.name for device in tf.config.list_logical_devices()],
        "cpus": os.cpu_count(),
        "threads": tf.config.threading.get_intra_op_parallelism_threads(),
    }
