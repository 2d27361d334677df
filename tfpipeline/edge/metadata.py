"""What an edge file says about itself: labels, vocabulary and settings, inside the `.tflite`, with a hash over all of it.

In: the bytes of a converted model and a description. Out: one file that is three things at once: a TFLite flatbuffer, a zip archive (`unzip -l` works
on it), and, for MediaPipe, a model with its documented metadata. Reading needs the standard library only. Refuses files without this description,
files of another project, truncated ones and ones with a changed byte.

    flatbuffer   a new root table in front of the converter's bytes, which stay as they are, aligned as they were; it adds one buffer, `TFLITE_METADATA`
    zip          vocab.txt, labels.txt (both named in the TFLite metadata), tfpipeline.json (our own description)
    zip comment  64 hex digits: sha256 of every byte before them

The layout of the metadata is that of tensorflow/tflite-support, `metadata_schema.fbs` (identifier M001); the numbers below are its field numbers.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfpipeline.edge import flat
from tfpipeline.errors import DataError

FORMAT = 1
PRODUCER = "tfpipeline"
DESCRIPTION = "tfpipeline.json"
_DIGEST_BYTES = 64
_WRITE_AGAIN = "Write it again: tfpipeline export RUN, or tfpipeline compress RUN --recipe NAME."
_VOCABULARY, _AXIS_LABELS = 5, 2  # AssociatedFileType
_BERT_TOKENIZER = 4  # ProcessUnitOptions
_FEATURE = 1  # ContentProperties


@dataclass(frozen=True)
class Contents:
    """An edge file, read.

    Attributes:
        data: the whole file; LiteRT reads it as it is.
        description: `tfpipeline.json`.
        vocabulary: word pieces; the index is the id.
        sha256: of everything before the last 64 bytes.
    """

    data: bytes
    description: dict[str, Any]
    vocabulary: list[str]
    sha256: str


def read(source: Path | str | bytes) -> Contents:
    """Opens a file and checks every byte of it.

    Raises:
        DataError: not readable, not a `.tflite`, without our description, truncated, or changed.
    """
    name = "the edge file" if isinstance(source, bytes) else str(source)
    if isinstance(source, bytes):
        data = source
    else:
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise DataError(f"{name}: cannot be read ({error.strerror or error}). Give the path of a .tflite file.") from error
    if data[4:8] != b"TFL3":
        raise DataError(f"{name}: not a .tflite file (expected 'TFL3' at byte 4, received {data[4:8]!r}). {_WRITE_AGAIN}")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{name}: has no labels, vocabulary and settings at its end: it is truncated, or was not written by this project "
            f"({len(data):,} bytes). {_WRITE_AGAIN}"
        ) from error
    with archive:
        if DESCRIPTION not in archive.namelist():
            held = ", ".join(archive.namelist()) or "nothing"
            raise DataError(f"{name}: written by another project: expected {DESCRIPTION} among its files, received {held}. {_WRITE_AGAIN}")
        digest = hashlib.sha256(memoryview(data)[:-_DIGEST_BYTES]).hexdigest()
        if archive.comment.decode("ascii", "replace") != digest:
            raise DataError(
                f"{name}: its bytes changed after it was written (expected sha256 {archive.comment[:12].decode('ascii', 'replace')}..., "
                f"received {digest[:12]}...). Copy it again; else: {_WRITE_AGAIN}"
            )
        description = json.loads(archive.read(DESCRIPTION))
        vocabulary = archive.read("vocab.txt").decode("utf-8").split("\n")[:-1]
    if description.get("producer") != PRODUCER or description.get("format") != FORMAT:
        raise DataError(
            f"{name}: expected format {FORMAT} of {PRODUCER}, received format {description.get('format')} of {description.get('producer')!r}. "
            "Install the version of tfpipeline that wrote it, or write it again."
        )
    return Contents(data, description, vocabulary, digest)


def attach(model: bytes, description: dict[str, Any], vocabulary: Sequence[str], inputs: Sequence[str]) -> bytes:
    """The finished file.

    Args:
        model: what the converter wrote.
        description: becomes `tfpipeline.json`; `labels` and `name` are also written as TFLite metadata.
        vocabulary: the word pieces.
        inputs: names of the first subgraph's inputs, in its order: `ids`, `mask`, `segment_ids` in any order, or `text`.
    """
    described = _with_buffer(model, "TFLITE_METADATA", _model_metadata(description, inputs))
    files = {
        "vocab.txt": "".join(f"{piece}\n" for piece in vocabulary),
        "labels.txt": "".join(" ".join(label.split()) + "\n" for label in description["labels"]),
        DESCRIPTION: json.dumps({"producer": PRODUCER, "format": FORMAT, **description}, indent=1, ensure_ascii=False) + "\n",
    }
    stream = io.BytesIO()
    stream.write(described)
    # Stored, not compressed: MediaPipe reads the files where they lie.
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            # A fixed date, so that the same model is the same bytes.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content.encode("utf-8"))
        archive.comment = b"0" * _DIGEST_BYTES
    body = stream.getvalue()[:-_DIGEST_BYTES]
    return body + hashlib.sha256(body).hexdigest().encode()


def _model_metadata(description: dict[str, Any], inputs: Sequence[str]) -> bytes:
    """ModelMetadata for one subgraph: what MediaPipe's TextClassifier asks for."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)

    def table(*fields: tuple[int, str, Any]) -> int:
        """A table of (field number, kind, value); offsets must exist already."""
        builder.StartObject(12)
        for slot, kind, value in fields:
            if kind == "byte":
                builder.PrependUint8Slot(slot, value, 0)
            else:
                builder.PrependUOffsetTRelativeSlot(slot, value, 0)
        return int(builder.EndObject())

    def vector(offsets: Sequence[int]) -> int:
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())

    def file(name: str, meaning: str, kind: int) -> int:
        fields = [(0, "", builder.CreateString(name)), (1, "", builder.CreateString(meaning)), (2, "byte", kind)]
        return table(*fields)

    def tensor(name: str, meaning: str, files: Sequence[int] = ()) -> int:
        content = table((0, "byte", _FEATURE), (1, "", table()))
        fields = [(0, "", builder.CreateString(name)), (1, "", builder.CreateString(meaning)), (3, "", content)]
        return table(*fields, *([(6, "", vector(files))] if files else []))

    meanings = {
        "ids": "Token ids, [CLS] first, [SEP] last",
        "mask": "1 for a token, 0 for padding",
        "segment_ids": "1 for tokens of the second text",
        "text": "The raw text",
    }
    vocabulary = vector([file("vocab.txt", "Word pieces, one a line", _VOCABULARY)])
    unit = table((0, "byte", _BERT_TOKENIZER), (1, "", table((0, "", vocabulary))))
    input_tensors = vector([tensor(name, meanings[name]) for name in inputs])
    labels = file("labels.txt", "Class names, one a line", _AXIS_LABELS)
    output_tensors = vector([tensor("probability", "Probability of each class", [labels])])
    subgraph = [(2, "", input_tensors), (3, "", output_tensors)]
    if "ids" in inputs:
        subgraph.append((5, "", vector([unit])))
    subgraphs = vector([table(*subgraph)])
    strings = [builder.CreateString(text) for text in (description["name"], f"Text classifier written by {PRODUCER}", "1.3.0")]
    root = table((0, "", strings[0]), (1, "", strings[1]), (3, "", subgraphs), (7, "", strings[2]))
    builder.Finish(root, b"M001")
    return bytes(builder.Output())


# ---- one more buffer, without rewriting the model ----

_FIELDS = ("version", "operator_codes", "subgraphs", "description", "buffers", "metadata_buffer", "metadata", "signature_defs")


def _with_buffer(model: bytes, name: str, content: bytes) -> bytes:
    """The model with one more named buffer.

    References in a flatbuffer point forward only, so a new root table goes in front and points into the old bytes. Those are not touched: they keep
    the converter's alignment of weights, which Python's own writer would lose.
    """
    root = flat.root(model)
    old = {field: root.place(number) for number, field in enumerate(_FIELDS)}
    buffers, metadata = root.tables(_FIELDS.index("buffers")), root.tables(_FIELDS.index("metadata"))
    if root.number(0) != 3 or not buffers:
        raise DataError(
            "the model is not a version 3 .tflite with buffers: the converter changed. Install the tested version of tensorflow."
        )

    front = bytearray(b"\0\0\0\0TFL3")
    patches: list[tuple[int, int]] = []  # (place of a reference, its target); a target below zero is -1 - (position in the old file)

    def refer(target: int) -> None:
        patches.append((len(front), target))
        front.extend(b"\0\0\0\0")

    def align(size: int, after: int = 0) -> None:
        while (len(front) + after) % size:
            front.append(0)

    # the root table: vtable first, its fields in order
    present = [field for field in _FIELDS if old[field] is not None or field == "metadata"]
    vtable = len(front)
    places = {field: 4 + 4 * number for number, field in enumerate(present)}
    front += struct.pack("<HH8H", 4 + 2 * 8, 4 + 4 * len(present), *(places.get(field, 0) for field in _FIELDS))
    align(4)
    table = len(front)
    struct.pack_into("<I", front, 0, table)
    front += struct.pack("<i", table - vtable)
    slots: dict[str, int] = {}
    for field in present:
        if field == "version":
            front += struct.pack("<I", 3)
        elif field in ("buffers", "metadata"):
            slots[field] = len(front)
            front.extend(b"\0\0\0\0")
        else:
            refer(-1 - root.target(_FIELDS.index(field)))
    # the two lists that grow by one
    new_items: dict[str, int] = {}
    for field, items in (("buffers", buffers), ("metadata", metadata)):
        patches.append((slots[field], len(front)))
        front += struct.pack("<I", len(items) + 1)
        for item in items:
            refer(-1 - item.position)
        new_items[field] = len(front)
        front.extend(b"\0\0\0\0")
    # Metadata {name, buffer}
    front += struct.pack("<HHHH", 8, 12, 4, 8)
    patches.append((new_items["metadata"], len(front)))
    front += struct.pack("<i", 8)
    name_place = len(front)
    front.extend(b"\0\0\0\0")
    front += struct.pack("<I", len(buffers))
    patches.append((name_place, len(front)))
    front += struct.pack("<I", len(name)) + name.encode() + b"\0"
    # Buffer {data}, the data on a multiple of 16
    align(4)
    front += struct.pack("<HHHH", 6, 8, 4, 0)
    patches.append((new_items["buffers"], len(front)))
    front += struct.pack("<i", 8)
    data_place = len(front)
    front.extend(b"\0\0\0\0")
    align(16, after=4)
    patches.append((data_place, len(front)))
    front += struct.pack("<I", len(content)) + content
    align(64)
    for place, target in patches:
        position = target if target >= 0 else len(front) - 1 - target
        struct.pack_into("<I", front, place, position - place)
    return bytes(front) + model
