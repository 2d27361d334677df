"""The embedded server as a process: flags in, ports open, SIGTERM drains. Frees the rooms from each other: only this module knows all of them.

Models load before any port is opened, then gRPC, then REST. Every failure before that is one line on stdout, `Failed to start server. Error: ...`,
and exit status 255, as in the real server.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving import wire
from serving.errors import ConfigError
from serving.journal import Journal
from serving.redact import spacy_names
from serving.server import configs
from serving.server.flags import CPUS, Flags, parse
from serving.server.status import Status

logger = logging.getLogger(__name__)

FAILED = 255
M_ARENA_MAX = -8  # glibc's malloc.h
TRIM_S = 10.0


def main(arguments: Sequence[str]) -> int:
    """Runs a server until SIGTERM or SIGINT; returns the exit status."""
    flags, ignored = parse(arguments)
    if flags.version:
        from serving.server.servable import TENSORFLOW_VERSION

        sys.stdout.write(f"tfpipeline embedded model server\nTensorFlow Library: {TENSORFLOW_VERSION}\n")
        return 0
    if (libc := _libc()) is not None:
        # glibc gives every thread a heap of its own and keeps what large requests leave there: hundreds of MiB with a hundred threads.
        libc.mallopt(M_ARENA_MAX, 2)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr, force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # it tells of its own start; ours is enough
    if flags.use_installed:
        from serving.server.installed import hand_over

        hand_over(flags, _desired(flags.models_root))
        logger.info("tensorflow_model_server is not on the PATH: starting the embedded server.")
    if ignored:
        logger.warning("accepted without effect here: %s", ", ".join(f"--{name}" for name in ignored))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        with running(flags, stop) as ports:
            logger.info("Running gRPC ModelServer at %s:%d ...", flags.host, ports.grpc)
            if ports.rest:
                logger.info("Exporting HTTP/REST API at: %s:%d ...", flags.host, ports.rest)
            ports.wait(stop)
            logger.info("Stopping: new requests are refused, running ones finish.")
    except Status as error:
        if stop.is_set() and error.code == "CANCELLED":
            return 0
        sys.stdout.write(f"Failed to start server. Error: {error}\n")
        sys.stdout.flush()
        return FAILED
    return 0


def _libc() -> Any:
    """glibc, to be asked for its memory back; None where there is none."""
    with contextlib.suppress(OSError):
        library = ctypes.CDLL(None)
        if hasattr(library, "malloc_trim"):
            return library
    return None


@dataclass
class Running:
    """A server that listens.

    Attributes:
        grpc: its TCP port, 0 for none.
        rest: its REST port, 0 for none.
        server: what it is made of.
    """

    grpc: int
    rest: int
    server: _Server

    def wait(self, stop: threading.Event) -> None:
        """Until `stop`; meanwhile reads the config file again when asked to."""
        self.server.poll_config(stop)


@contextlib.contextmanager
def running(flags: Flags, stop: threading.Event | None = None) -> Iterator[Running]:
    """A server inside this process, drained at the end of the `with`.

    Raises:
        Status: it cannot start, with the real server's message.
        ConfigError: a package of the extra is missing.
    """
    server = _Server(flags)
    try:
        yield server.start(stop)
    finally:
        server.stop()


class _Server:
    def __init__(self, flags: Flags) -> None:
        self._flags = flags
        self._tls = configs.read_tls(flags.ssl_config_file) if flags.ssl_config_file else None
        self._metrics_path = configs.read_monitoring(flags.monitoring_config_file) if flags.monitoring_config_file else ""
        self._batching = None
        if flags.enable_batching:
            file = flags.batching_parameters_file
            self._batching = configs.read_batching(file, CPUS) if file else configs.Batching(threads=CPUS)
        try:
            with _native_noise_held_back():
                from serving.server import servable
            from serving.server.grpc_edge import AccessLog, GrpcEdge
        except ImportError as error:
            raise ConfigError(f"the embedded server needs {error.name}: pip install 'tfpipeline[server]'") from error
        from serving.server.handlers import Handlers
        from serving.server.metrics import Metrics
        from serving.server.models import LoadSettings, Models

        self._servable = servable
        self._options = servable.session_options(
            intra=flags.tensorflow_intra_op_parallelism or flags.tensorflow_session_parallelism,
            inter=flags.tensorflow_inter_op_parallelism or flags.tensorflow_session_parallelism,
            text=_text(flags.tensorflow_session_config_file),
        )
        self._models = Models(
            self._load,
            LoadSettings(
                poll_s=flags.file_system_poll_wait_seconds,
                retries=flags.max_num_load_retries,
                retry_s=flags.load_retry_interval_micros / 1e6,
                labels_of_unavailable=flags.allow_version_labels_for_unavailable_models or bool(flags.models_root),
            ),
            on_change=self._on_change,
        )
        self._metrics = Metrics(self._models.summary, self._gauges)
        self._handlers = Handlers(
            self._models,
            self._metrics,
            tensor_content=flags.enable_serialization_as_tensor_content,
            check_method_name=flags.enable_signature_method_name_check,
        )
        self._log_stream = _open_log(flags.access_log)
        log = AccessLog(self._log_stream) if self._log_stream is not None else None
        self._journal = _open_journal(flags)
        self._grpc = GrpcEdge(self._handlers, flags, self._tls, log, self._journal)
        self._log = log
        self._rest: _Rest | None = None

    def start(self, stop: threading.Event | None) -> Running:
        flags = self._flags
        self._models.start(self._configured(), stop)
        port = self._grpc.start()
        rest_port = 0
        if flags.rest_api_port and flags.rest_api_port == flags.port:
            logger.error("--rest_api_port is the same as --port: REST is off")
        elif flags.rest_api_port:
            self._rest = _Rest(self._handlers, flags, self._metrics_path, self._log, self._journal, self._tls)
            rest_port = self._rest.start()
        self._grpc.set_ready(self._models.is_ready())
        return Running(port, rest_port, self)

    def stop(self) -> None:
        if self._rest is not None:
            self._rest.refuse()  # both edges drain at the same time
        self._grpc.stop(self._flags.drain_seconds)
        if self._rest is not None:
            self._rest.stop()
        self._models.close()
        if self._journal is not None:
            self._journal.close()
        if self._log_stream is not None and self._log_stream is not sys.stderr:
            self._log_stream.close()

    def poll_config(self, stop: threading.Event) -> None:
        """Waits for `stop`; a config file that changed and is good is applied, a bad one is logged."""
        pause = self._flags.model_config_file_poll_wait_seconds
        if not (pause > 0 and self._flags.model_config_file):
            libc = _libc()
            while not stop.wait(TRIM_S):
                if libc is not None:
                    libc.malloc_trim(0)
            return
        while not stop.wait(pause):
            try:
                self._models.reload(self._configured(self._models.configs()), wait=False)
            except Status as error:
                logger.error("%s: not applied: %s", self._flags.model_config_file, error)

    # ---- models

    def _configured(self, before: Any = None) -> dict[str, configs.ModelConfig]:
        flags = self._flags
        if flags.model_config_file:
            return configs.models_of(configs.read_text(flags.model_config_file, wire.ModelServerConfig), before)
        if flags.models_root:
            return configs.models_of(_desired(flags.models_root), before)
        config = wire.ModelServerConfig()
        config.model_config_list.config.add(name=flags.model_name, base_path=flags.model_base_path, model_platform="tensorflow")
        return configs.models_of(config, before)

    def _load(self, name: str, version: int, path: Path) -> Any:
        from serving.server.handlers import WARMUP_FILE, warm_up
        from serving.server.models import Limits, Loaded

        flags = self._flags
        tags = frozenset(flags.saved_model_tags.split(","))
        batching = self._batching_of(path)
        runnable = self._servable.load(path, tags=tags, prefer_tflite=flags.prefer_tflite_model, options=self._options)
        loaded = Loaded(
            name,
            version,
            runnable.signatures,
            runnable.run_tensors,
            runnable.close,
            Limits(flags.max_request_rows, flags.max_text_bytes, flags.max_request_ids),
        )
        try:
            if flags.enable_model_warmup and (path / WARMUP_FILE).exists():
                warm_up(loaded, self._servable.read_records(path / WARMUP_FILE), flags.num_request_iterations_for_warmup)
        except Exception:
            runnable.close()
            raise
        if batching is not None:
            self._put_queue(loaded, batching)
        return loaded

    def _put_queue(self, loaded: Any, batching: configs.Batching) -> None:
        from serving.server.batching import BatchingQueue

        close = loaded.close
        queue = BatchingQueue(
            loaded.run_tensors, batching, lambda batch: self._metrics.batch(loaded.name, loaded.version, batch.rows, batch.waited_s)
        )

        def close_all() -> None:
            queue.close()
            close()

        loaded.run_tensors, loaded.close = queue.run_tensors, close_all

    def _batching_of(self, path: Path) -> configs.Batching | None:
        if self._batching is None or not self._flags.enable_per_model_batching_parameters:
            return self._batching
        file = path / "batching_params.pbtxt"
        return configs.read_batching(str(file), CPUS) if file.is_file() else None

    def _on_change(self) -> None:
        self._grpc.set_ready(self._models.is_ready())

    def _gauges(self) -> dict[str, float]:
        found = {"serving_requests_in_flight": float(self._grpc.in_flight), "serving_ready": float(self._models.is_ready())}
        if self._journal is not None:
            found |= {f"serving_journal_{name}_records": float(count) for name, count in self._journal.counts._asdict().items()}
        return found


class _Rest:
    """uvicorn in a thread of its own."""

    def __init__(self, handlers: Any, flags: Flags, metrics_path: str, log: Any, journal: Journal | None, tls: configs.Tls | None) -> None:
        try:
            import uvicorn
        except ImportError as error:
            raise ConfigError("REST needs uvicorn: pip install 'tfpipeline[server]'") from error
        from serving.server import page
        from serving.server.rest import RestSettings, application

        self._flags = flags
        self._executor = ThreadPoolExecutor(flags.rest_api_num_threads, thread_name_prefix="rest")
        settings = RestSettings(
            timeout_s=flags.rest_api_timeout_in_ms / 1000,
            cors=flags.rest_api_enable_cors_support,
            max_body_bytes=flags.max_message_bytes,
            max_pending=flags.max_concurrent_requests,
            metrics_path=metrics_path,
            access_log=log,
            journal=journal,
        )
        shown = page.PageSettings(
            page=page.is_on(flags.page, client_certificates=tls is not None and tls.verify_client),
            host=flags.host,
            hosts=tuple(filter(None, flags.page_hosts.split(","))),
            feedback=page.feedback_into(journal) if journal is not None else None,
            journal=functools.partial(_journal_state, journal, flags) if journal is not None else None,
            drift=page.drift_from(Path(flags.drift_report)) if flags.drift_report else None,
            timeout_s=flags.rest_api_timeout_in_ms / 1000,
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                application(handlers, settings, self._executor, page.routes(handlers, shown, self._executor)),
                # Named, so that it does not depend on what else is installed: httptools has no limit on the size of headers.
                http="h11",
                h11_max_incomplete_event_size=64 << 10,
                ws="none",
                proxy_headers=False,  # or anybody on this machine could name the peer of the access log
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=max(1, int(flags.drain_seconds)),
            )
        )
        self._thread = threading.Thread(target=self._run, name="rest", daemon=True)
        self._socket: socket.socket | None = None

    def start(self) -> int:
        family = socket.AF_INET6 if ":" in self._flags.host else socket.AF_INET
        self._socket = socket.socket(family)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((self._flags.host, self._flags.rest_api_port))
        except OSError as error:
            self._socket.close()
            raise Status("UNKNOWN", f"cannot listen on {self._flags.host}:{self._flags.rest_api_port}: {error.strerror}") from error
        self._socket.listen(1024)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)
        return int(self._socket.getsockname()[1])

    def _run(self) -> None:
        assert self._socket is not None
        self._server.run(sockets=[self._socket])

    def refuse(self) -> None:
        """Takes no more connections; requests that run go on."""
        self._server.should_exit = True

    def stop(self) -> None:
        self.refuse()
        if self._thread.is_alive():
            self._thread.join(self._flags.drain_seconds + 2)
        if self._socket is not None:
            self._socket.close()
        self._executor.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _native_noise_held_back() -> Iterator[None]:
    """TensorFlow's import writes to file descriptor 2 before any setting can silence it; shown after all when it fails."""
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
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _desired(root: str) -> Any:
    """The models under a root, with the versions and labels that pushes left there."""
    from serving.desired import desired_config, read_snapshot, wanted
    from serving.push import RETENTION
    from serving.stores import FolderStore

    folder = Path(root).absolute()
    store = FolderStore(folder)
    return desired_config([(name, str(folder / name), wanted(read_snapshot(store, name), RETENTION)) for name in store.names()])


def _text(path: str) -> str:
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise Status("NOT_FOUND", f"{path}; {error.strerror}") from error


def _open_journal(flags: Flags) -> Journal | None:
    if not flags.journal:
        return None
    return Journal(
        flags.journal,
        sampling=flags.journal_sampling,
        text=flags.journal_text,
        names=spacy_names(flags.journal_names) if flags.journal_names else None,
        source="server",
        key_file=flags.journal_key_file,
        retention_days=flags.journal_retention_days,
    )


def _journal_state(journal: Journal, flags: Flags) -> dict[str, Any]:
    return {**journal.counts._asdict(), "texts": flags.journal_text != "none", "sampling": flags.journal_sampling}


def _open_log(path: str) -> Any:
    if not path:
        return None
    if path == "-":
        return sys.stderr
    try:
        return Path(path).open("a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--access_log={path}: cannot be written: {error.strerror}.") from error
