"""Trials for TensorBoard's HParams page: one event file each, written without TensorFlow.

tensorboard --logdir runs/searches/sst2-bayesian/tensorboard
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfpipeline.errors import DependencyError
from tfpipeline.runs import atomic_folder
from tfpipeline.search.objective import Objective


def write(folder: Path, record: Mapping[str, Any], objective: Objective) -> None:
    """The values and numbers of one trial; what was written of it before is replaced.

    Args:
        folder: of all trials.
        record: of the trial.
        objective: of the search.
    """
    try:
        from tensorboard.compat.proto import event_pb2, summary_pb2  # type: ignore[import-untyped]
        from tensorboard.plugins.hparams import summary_v2  # type: ignore[import-untyped]
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]
    except ImportError as error:
        raise DependencyError("the HParams page needs TensorBoard: pip install 'tfpipeline[train]'") from error
    name = f"{record['number']:03d}"
    values = {key: value if isinstance(value, bool | int | float | str) else json.dumps(value) for key, value in record["changed"].items()}
    numbers = {**record["validation"], "latency_ms": record["latency_ms"], "megabytes": record["megabytes"], "seconds": record["seconds"]}
    if objective.metric not in numbers:
        numbers[objective.metric] = record["value"]
    now = time.time()
    shutil.rmtree(folder / name, ignore_errors=True)
    with atomic_folder(folder / name) as place:
        writer = EventFileWriter(str(place))
        writer.add_event(event_pb2.Event(wall_time=now, summary=summary_v2.hparams_pb(values, trial_id=name, start_time_secs=now)))
        for key, value in numbers.items():
            if value is not None:
                scalar = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=f"trial/{key}", simple_value=float(value))])
                writer.add_event(event_pb2.Event(wall_time=now, step=0, summary=scalar))
        writer.close()
