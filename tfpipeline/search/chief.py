"""Serves one oracle to workers on other machines, by Keras Tuner's own protocol.

Keras Tuner's own loop (`oracle_chief.start_server`) waits for ever for a worker that died, and looks only every 20 seconds; this one takes back what a
silent worker held. The service and its messages are Keras Tuner's: workers show that they are alive by its `GetTrial`.

| what dies | what happens |
|---|---|
| a worker that comes back under its name | it gets its trial again, and goes on from the trial's checkpoint |
| a worker that stays away | after `--worker-timeout` seconds its trial goes to another worker, which goes on from the checkpoint; at most twice, then the trial is failed |
| a worker between two trials | it is forgotten after the same time |
| the chief | the workers finish their trials and wait up to an hour for it; started again, it knows who was running what |
| all workers | the chief waits for one |
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from concurrent import futures

import grpc
from keras_tuner.src import protos
from keras_tuner.src.distribute.oracle_chief import OracleServicer

from tfpipeline.errors import RunError
from tfpipeline.search.oracles import Kept

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.25


def serve(oracle: Kept, watch: Callable[[], str]) -> None:
    """Answers workers until every trial has ended and every worker has gone.

    Args:
        oracle: whose trials are given out.
        watch: called between two looks; what it returns, if anything, is why the search must end now.

    Raises:
        RunError: the port is in use, or `watch` gave a reason.
    """
    address = f"{os.environ['KERASTUNER_ORACLE_IP']}:{os.environ['KERASTUNER_ORACLE_PORT']}"
    # One thread: the oracle is not made for two. Without SO_REUSEPORT a second chief on the port is noticed.
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1), options=[("grpc.so_reuseport", 0)])
    protos.get_service_grpc().add_OracleServicer_to_server(OracleServicer(oracle), server)
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise RunError(
            f"{address}: the chief cannot listen there; the port is in use or the address is not this machine's. "
            "Stop the other process, or set KERASTUNER_ORACLE_PORT to a free port for the chief and all workers."
        ) from error
    server.start()
    logger.info("chief: waiting for workers at %s", address)
    try:
        while not oracle.over():
            time.sleep(POLL_SECONDS)
            oracle.take_back()
            reason = watch()
            if reason:
                raise RunError(reason)
    finally:
        server.stop(grace=2.0).wait()
