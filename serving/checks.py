"""What can be known of a model before a server loads it. Frees `push` from formats; needs no TensorFlow and loads nothing.

In: a local folder with a SavedModel. Out: a `Source`, checked. Refuses files that are not those of the manifest, links out of the folder, a
manifest without signatures, ops that the server does not have, warm-up records that would fail the load, and a verdict of the evaluation that
says no. What only running the graph can show, the server shows at load: a warm-up record that fails there fails the load.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from serving import wire
from serving.errors import GateRefused, IntegrityError, RegistryError
from serving.registry import MANIFEST, Published, checked_name, files_of, open_published, sha256_of
from serving.stores import MODEL_FILES, checked_path, is_version

# What stock TensorFlow Serving (TensorFlow's and TF Text's ops) cannot run: it has no Python and is built without these parts of XLA.
NOT_SERVED = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc", "XlaLaunch", "XlaLaunchV2", "XlaHostCompute"})
WARMUP = "assets.extra/tf_serving_warmup_requests"
MAX_WARMUP_RECORDS = 1000  # more fail the load (saved_model_warmup_util.cc)

# The names of numpy and TensorFlow in a manifest, those of the wire in a request.
_WIRE_NAMES = {"float32": "float", "float64": "double", "float16": "half"}


@dataclass(frozen=True)
class Source:
    """A model to push.

    Attributes:
        path: the local folder.
        name: the model.
        version: the number it asks for.
        files: name to bytes and sha256, as in a manifest.
        manifest: None for a SavedModel that no export of ours made.
    """

    path: Path
    name: str
    version: int
    files: Mapping[str, Any]
    manifest: Mapping[str, Any] | None

    @property
    def probes(self) -> Mapping[str, Any] | None:
        """Texts with the answers that the server must give; None when there are none."""
        return (self.manifest or {}).get("golden_probes") or None


def open_source(path: Path, *, name: str = "", force: str = "") -> Source:
    """Finds the model: a version, a model (its newest version), a root of models (the newest of all), or any SavedModel with `force`.

    Raises:
        RegistryError: there is none, or it has no manifest and no reason was given.
    """
    path = path.resolve()
    if any((path / file).is_file() for file in MODEL_FILES) and not (path / MANIFEST).is_file():
        if not force:
            raise RegistryError(
                f"{path}: has no {MANIFEST}, so neither its files nor its evaluation can be checked. Export it with tfpipeline, or give a reason: "
                '--force "reason" (recorded).'
            )
        numbered = is_version(path.name)
        version = int(path.name) if numbered else int(f"{datetime.now(timezone.utc):%Y%m%d%H%M%S}")
        hashed = {file.relative_to(path).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in files_of(path)}
        return Source(path, checked_name(name or (path.parent.name if numbered else path.name)), version, hashed, None)
    published = open_published(path)
    manifest = published.manifest
    files = manifest.get("files")
    if not isinstance(files, dict) or not files:
        raise IntegrityError(f"{published.path / MANIFEST}: lists no files. Do not load this folder; export the run again.")
    return Source(published.path, checked_name(name or published.name), published.version, files, manifest)


def check(source: Source, without_ops: Collection[str] = ()) -> dict[str, Any]:
    """Hashes, SavedModel, signatures, ops and warm-up records; returns how much of each was looked at.

    Args:
        source: the model.
        without_ops: further ops that this server does not have.

    Raises:
        IntegrityError: a file is not what the manifest says, or leads out of the folder.
        RegistryError: it can be known now that the server will not load or run it.
    """
    for file in source.files:
        if not (source.path / checked_path(file)).resolve().is_relative_to(source.path):
            raise IntegrityError(
                f"{source.path / file}: is a link that leads out of the folder. Copy the file itself there and export again."
            )
    if source.manifest is not None:
        Published(source.path, source.name, source.version).verify()
    if not any((source.path / file).is_file() for file in MODEL_FILES):
        raise RegistryError(f"{source.path}: holds no model ({' or '.join(MODEL_FILES)}). Export the run again.")
    signatures = None if source.manifest is None else _signatures(source)
    checks: dict[str, Any] = {"files": len(source.files), "bytes": sum(entry["bytes"] for entry in source.files.values())}
    if signatures is not None:
        checks["signatures"] = sorted(signatures)
        checks["ops"] = _check_ops(source, without_ops)
        _check_probes(source)
    checks["warmup_records"] = check_warmup(source.path / WARMUP, signatures)
    return checks


def hold_gate(source: Source, force: str = "") -> dict[str, Any]:
    """The verdict of the evaluation, for the journal.

    Raises:
        GateRefused: it says no, or there is none, and no reason to go on was given.
    """
    gate = None if source.manifest is None else source.manifest.get("gate")
    passed: Any
    if not isinstance(gate, dict):
        passed, reasons = False, ["the manifest holds no verdict of an evaluation"]
    else:
        passed, reasons = gate.get("passed"), [str(reason) for reason in gate.get("reasons") or ["the evaluation gave no reason"]]
    if passed in (True, None):
        return {"passed": passed}
    if not force:
        raise GateRefused(
            f'{source.path}: {"; ".join(reasons)}. Nothing was changed. Train a better model, or give a reason to serve it all the same: --force "reason" (recorded).'
        )
    return {"passed": False, "reasons": reasons, "forced": force}


def check_warmup(path: Path, signatures: Mapping[str, Any] | None) -> int:
    """Counts the warm-up records. One that fails makes the server refuse the whole version, so what can be known is refused here.

    Args:
        path: a TFRecord file of `PredictionLog`; none is fine.
        signatures: those of the manifest; None when they are not known.

    Raises:
        RegistryError: naming the record and what is wrong with it.
    """
    if not path.is_file():
        return 0
    count = 0
    for count, data in enumerate(read_records(path), 1):
        problem = "more than 1000 records" if count > MAX_WARMUP_RECORDS else _record_problem(data, signatures)
        if problem:
            raise RegistryError(
                f"{path}: record {count - 1}: {problem}. The server would refuse to load this version; export the run again."
            )
    return count


def read_records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file.

    Raises:
        RegistryError: it is not one, or it is damaged.
    """
    with path.open("rb") as stream:
        size, place = path.stat().st_size, 0
        while place < size:
            head = stream.read(12)
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else size
            if length > size - place - 16 or struct.unpack("<I", head[8:])[0] != masked_crc32c(head[:8]):
                raise RegistryError(
                    f"{path}: not a TFRecord file at byte {place}. The server would refuse to load this version; export the run again."
                )
            data = stream.read(length)
            if struct.unpack("<I", stream.read(4))[0] != masked_crc32c(data):
                raise RegistryError(
                    f"{path}: the record at byte {place} is damaged (its checksum differs). Copy or export the version again."
                )
            yield data
            place += length + 16


def masked_crc32c(data: bytes) -> int:
    """The checksum of a TFRecord: CRC-32C, rotated and shifted so that checksums of checksums stay useful."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _crc_table() -> tuple[int, ...]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = (number >> 1) ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return tuple(table)


_CRC_TABLE = _crc_table()


def _signatures(source: Source) -> Mapping[str, Any]:
    signatures = (source.manifest or {}).get("signatures")
    good = isinstance(signatures, dict) and all(
        isinstance(entry, dict) and isinstance(entry.get("inputs"), dict) and isinstance(entry.get("outputs"), dict)
        for entry in signatures.values()
    )
    if not good or not signatures:
        raise RegistryError(f"{source.path / MANIFEST}: expected `signatures` with inputs and outputs. Export the run again.")
    return signatures


def _check_ops(source: Source, without_ops: Collection[str]) -> int:
    ops = (source.manifest or {}).get("ops")
    if not isinstance(ops, list) or not ops:
        raise RegistryError(f"{source.path / MANIFEST}: expected `ops`, the list of all ops of the graph. Export the run again.")
    bad = sorted(set(ops) & (NOT_SERVED | set(without_ops)))
    if bad:
        raise RegistryError(
            f"{source.path}: the graph needs {', '.join(bad)}, which this server does not have. Export the model without it."
        )
    return len(ops)


def _check_probes(source: Source) -> None:
    probes = source.probes
    if probes is None:
        return
    texts, expected = probes.get("texts"), probes.get("probabilities")
    good = (
        isinstance(texts, list)
        and isinstance(expected, list)
        and len(texts) == len(expected)
        and len(probes.get("text_pairs") or texts) == len(texts)
        and isinstance(probes.get("tolerance"), (int, float))
        and probes["tolerance"] > 0
    )
    if not good:
        raise RegistryError(
            f"{source.path / MANIFEST}: `golden_probes` expects as many probabilities as texts, and a tolerance above 0. Export the run again."
        )


def _record_problem(data: bytes, signatures: Mapping[str, Any] | None) -> str:
    """What is wrong with one record, in words; empty when nothing is."""
    try:
        log = wire.PredictionLog.FromString(data)
    except DecodeError:
        return "is not a PredictionLog"
    kind = log.WhichOneof("log_type")
    if kind is None:
        return ""  # the server skips it
    if kind not in ("predict_log", "classify_log", "regress_log", "multi_inference_log"):
        return f"is a {kind}, which the server does not replay"
    request = getattr(log, kind).request
    if kind == "predict_log":
        for alias, tensor in request.inputs.items():
            try:
                wire.to_array(tensor)
            except ValueError as error:
                return f"input {alias!r}: {str(error).rstrip('.')}"
    elif request.input.WhichOneof("kind") is None:
        return "has no examples"
    if signatures is None:
        return ""
    specs = [task.model_spec for task in request.tasks] if kind == "multi_inference_log" else [request.model_spec]
    for spec in specs:
        name = spec.signature_name or "serving_default"
        if name not in signatures:
            return f"asks signature {name!r}; the model has {', '.join(sorted(signatures))}"
        inputs = signatures[name]["inputs"]
        given = (
            {alias: wire.DTYPE_NAMES[tensor.dtype] for alias, tensor in request.inputs.items()}
            if kind == "predict_log"
            else {"inputs": "string"}
        )
        expected = {alias: _WIRE_NAMES.get(entry["dtype"], entry["dtype"]) for alias, entry in inputs.items()}
        if given != expected:
            return f"gives signature {name!r} {_shown(given)}; it takes {_shown(expected)}"
    return ""


def _shown(inputs: Mapping[str, str]) -> str:
    return ", ".join(f"{alias} ({dtype})" for alias, dtype in sorted(inputs.items())) or "nothing"
