"""Files of any supported format to one stream of rows, each with the number of the line it came from.

CSV and TSV are read by the standard library's `csv`, JSONL by `json`, Parquet by pyarrow, TFRecord by TensorFlow. `csv` and not pyarrow for
CSV, because only `csv` knows on which line a record ended, and every message of this package names `file:line`
(docs/decisions/0003-readers.md).
"""

from __future__ import annotations

import csv
import difflib
import glob
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any

from tfpipeline.config import DataConfig
from tfpipeline.errors import DataError, DependencyError

_ENDINGS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".txt": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".tfrecord": "tfrecord",
    ".tfrecords": "tfrecord",
}
_SURROGATE = re.compile("[\ud800-\udfff]")
_SAMPLES = ("bank_feedback",)
_CSV_FIELD_LIMIT = 1 << 30


@dataclass(frozen=True)
class Columns:
    """Which columns a row consists of; "" means: not there."""

    text: str
    text_pair: str
    label: str
    weight: str
    id: str
    slices: tuple[str, ...]

    @classmethod
    def of(cls, config: DataConfig, *, need_labels: bool = True) -> Columns:
        """As configured; without labels for rows that are to be scored."""
        return cls(
            config.text,
            config.text_pair,
            config.label if need_labels else "",
            config.weight if need_labels else "",
            config.id,
            config.slice_columns,
        )

    def names(self) -> list[str]:
        """Every column in the order of `Row.values`."""
        return [self.text, self.text_pair, self.label, self.weight, self.id, *self.slices]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a row cannot be used."""

    reason: str
    expected: str
    received: str


# A row is (line, values in the order of Columns.names()) or (line, Problem). Tuples, because a million of them are made.
Row = tuple[int, Any]


def expand(paths: Sequence[str]) -> list[str]:
    """Paths, globs and folders to a sorted list of files; `sample:`, `hf:` and `tfds:` names stay as they are.

    Raises:
        DataError: a path that does not exist, naming the nearest one that does.
    """
    if not paths:
        raise DataError("no data: `data.path` is empty. Give files with --data PATH, or data.path in the config.")
    files: list[str] = []
    for path in paths:
        if path.startswith(("hf:", "tfds:")):
            files.append(path)
        elif path.startswith("sample:"):
            name = path.removeprefix("sample:")
            if name not in _SAMPLES:
                raise DataError(f"{path}: no such sample corpus. There is: {', '.join(f'sample:{s}' for s in _SAMPLES)}.")
            files.append(path)
        elif Path(path).is_dir():
            try:
                inside = sorted(str(p) for p in Path(path).iterdir() if p.is_file() and _format_of(p.name))
            except OSError as error:
                raise DataError(f"{path}: the folder cannot be read: {error.strerror}. Check its permissions.") from error
            if not inside:
                raise DataError(
                    f"{path}: this folder holds no data file. Expected files ending in {', '.join(sorted(_ENDINGS))} (or those with .gz)."
                )
            files += inside
        elif Path(path).is_file():
            files.append(path)
        else:
            is_pattern = any(sign in path for sign in "*?[")
            found = sorted(p for p in glob.glob(path, recursive=True) if Path(p).is_file()) if is_pattern else []  # noqa: PTH207
            if not found and is_pattern:
                raise DataError(f"{path}: no file matches this pattern. Check it with: ls {path}")
            if not found:
                raise DataError(f"{path}: no such file.{_nearest_path(Path(path))}")
            files += found
    return files


def read(file: str, config: DataConfig, columns: Columns) -> Iterator[Row]:
    """Rows of one file, in order.

    Raises:
        DataError: the file as a whole cannot be read (missing column, binary, not what its ending says).
    """
    if file.startswith("hf:"):
        yield from _read_hugging_face(file, columns)
        return
    if file.startswith("tfds:"):
        yield from _read_tfds(file, columns)
        return
    if file.startswith("sample:"):
        resource = resources.files("tfpipeline") / "samples" / f"{file.removeprefix('sample:')}.csv"
        with resource.open("rb") as stream:
            yield from _read_delimited(stream, file, config, columns, ",")
        return
    kind = config.format if config.format != "auto" else _format_of(Path(file).name)
    if not kind:
        raise DataError(f"{file}: the format is not clear from the ending. Set data.format to csv, tsv, jsonl, parquet or tfrecord.")
    try:
        if kind == "parquet":
            yield from _read_parquet(file, columns)
        elif kind == "tfrecord":
            yield from _read_tfrecord(file, columns)
        else:
            with _open(file) as stream:
                _refuse_binary(stream, file)
                if kind == "jsonl":
                    yield from _read_jsonl(stream, file, config, columns)
                else:
                    yield from _read_delimited(stream, file, config, columns, "," if kind == "csv" else "\t")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read: {error}. Check the file and its permissions.") from error


def _format_of(name: str) -> str:
    return _ENDINGS.get(Path(name.removesuffix(".gz")).suffix.lower(), "")


def _open(file: str) -> IO[bytes]:
    return gzip.open(file, "rb") if file.endswith(".gz") else Path(file).open("rb")  # type: ignore[return-value]


def _refuse_binary(stream: IO[bytes], file: str) -> None:
    head = stream.read(8192)
    stream.seek(0)
    if b"\x00" in head:
        what = "UTF-16 text" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "a binary file"
        raise DataError(f"{file}: looks like {what} (zero bytes at the start). Expected UTF-8 text; convert it, or set data.format.")
    if not head:
        raise DataError(f"{file}: the file is empty. Expected at least a few labelled rows.")


class _Lines:
    """The lines of a text stream, at most `limit` characters of each, for `csv.reader` to draw from.

    Of a longer line only the start is handed on (the rest is read and forgotten), and `cut` is set. A record of several lines ends, with
    `_RecordTooLongError`, when they are longer than that together: a quote that nobody closes would collect the rest of the file.
    """

    def __init__(self, stream: IO[str], limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self.number = 0  # of the line handed on last
        self.cut = False  # since start_record()
        self.ended = False
        self._left = limit

    def start_record(self) -> None:
        self.cut = False
        self._left = self._limit

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._left <= 0:
            raise _RecordTooLongError
        line = self._stream.readline(self._limit)
        if not line:
            self.ended = True
            raise StopIteration
        self.number += 1
        self._left -= len(line)
        if len(line) == self._limit and line[-1] not in "\r\n" and self._skip():
            self.cut = True
            line += "\n"
        return line

    def _skip(self) -> bool:
        """Reads up to the end of the line; whether there was any more of it."""
        some = False
        while part := self._stream.readline(1 << 16):
            some = some or bool(part.strip("\r\n"))
            if part[-1] in "\r\n":
                break
        return some


class _RecordTooLongError(Exception):
    """A record of several lines is longer than any row may be."""


def _line_limit(config: DataConfig) -> int:
    # A line of JSON needs up to six characters for one of the text; a pair is two texts; and other columns want room.
    return 12 * config.max_text_bytes + (1 << 20)


def _read_delimited(stream: IO[bytes], file: str, config: DataConfig, columns: Columns, delimiter: str) -> Iterator[Row]:
    if csv.field_size_limit() < _CSV_FIELD_LIMIT:
        # The default, 128 KiB, raises in the middle of a record. _Lines bounds what the reader gets. Not lowered again: another reader may be open.
        csv.field_size_limit(_CSV_FIELD_LIMIT)
    # surrogateescape: a bad byte reaches its own row and spoils no other.
    with io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        yield from _read_records(_Lines(text, _line_limit(config)), file, config, columns, delimiter)


def _read_records(lines: _Lines, file: str, config: DataConfig, columns: Columns, delimiter: str) -> Iterator[Row]:
    # TSV as in the public corpora: no quoting, a quote character is text. Strict: a quote out of place is a bad row and not a silent repair.
    reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE, strict=True)
    records = _records(reader, lines, config)
    start, first = next(((line, cells) for line, cells in records if cells), (0, None))
    if first is None:
        raise DataError(f"{file}: the file holds no row. Expected at least a few labelled rows.")
    if isinstance(first, Problem):
        raise DataError(
            f"{file}:{start}: {first.reason}: expected {first.expected}, received {first.received}. The first row has to be whole."
        )
    wanted = [name for name in columns.names() if name]
    stripped = [cell.strip() for cell in first]
    has_header = config.header == "yes" or (config.header == "auto" and any(name in stripped for name in wanted if not name.isdigit()))
    width = len(first)
    indices = _locate(columns, stripped if has_header else None, width, file, stripped)
    if not has_header:
        yield _pick(start, first, indices, width)
    for line, cells in records:
        if cells:  # a blank line is no row
            yield _pick(line, cells, indices, width)


def _records(reader: Any, lines: _Lines, config: DataConfig) -> Iterator[tuple[int, Any]]:
    """`(first line, cells)` or `(first line, Problem)` of each record."""
    too_long = Problem(
        "line too long", f"at most {_line_limit(config):,} characters a row (12 x data.max_text_bytes + 1 MiB)", "a longer line"
    )
    while True:
        start = lines.number + 1
        lines.start_record()
        try:
            cells: Any = next(reader)
        except StopIteration:
            return
        except _RecordTooLongError:
            cells = Problem("unclosed quote", "a closing quote", f"none up to line {lines.number}")
        except csv.Error as error:
            if lines.ended:
                cells = Problem("unclosed quote", "a closing quote", f"none up to the end of the file, line {lines.number}")
            else:
                cells = Problem("not valid CSV", "a quoted cell to end with its quote", f"{error}, line {lines.number}")
        if lines.cut:
            cells = too_long
        yield start, cells


def undecodable(text: str) -> bool:
    """Whether bytes that are no UTF-8 (or half a surrogate pair in JSON) are in it; they cannot be written as UTF-8 either."""
    return not text.isascii() and _SURROGATE.search(text) is not None


def _pick(line: int, cells: Any, indices: list[int | None], width: int) -> Row:
    if isinstance(cells, Problem):
        return line, cells
    if len(cells) != width:
        return line, Problem("wrong column count", f"{width} columns, as in the first row", f"{len(cells)} columns")
    values = [None if index is None else cells[index] for index in indices]
    for value in values:
        if value is not None and undecodable(value):
            return line, Problem("undecodable bytes", "UTF-8 text", repr(value[:80]))
    return line, values


def _locate(columns: Columns, header: list[str] | None, width: int, file: str, first: Sequence[str]) -> list[int | None]:
    """The index of each column; None for one that is not configured."""
    indices: list[int | None] = []
    for name in columns.names():
        if not name:
            indices.append(None)
        elif header is not None and name in header:
            if header.count(name) > 1:
                raise DataError(
                    f"{file}: {header.count(name)} columns are called '{name}'. Give the one you mean by its number, counted from 0."
                )
            indices.append(header.index(name))
        elif name.isdigit() and int(name) < width:
            indices.append(int(name))
        else:
            raise _no_column(name, header, file, width, first)
    return indices


def _require(columns: Columns, present: Sequence[str], file: str) -> None:
    """Every configured column is among the names of the first record."""
    for name in columns.names():
        if name and name not in present:
            raise _no_column(name, present, file, len(present), [])


def _no_column(name: str, header: Sequence[str] | None, file: str, width: int, first: Sequence[str]) -> DataError:
    if name.isdigit():
        return DataError(f"{file}: no column number {name}: rows have {width} columns, counted from 0.")
    if header is not None:
        near = difflib.get_close_matches(name, header, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return DataError(f"{file}: no column '{name}'.{hint} Columns: {', '.join(header)}. Set data.text, data.label to the right ones.")
    shown = ", ".join(repr(cell[:30]) for cell in list(first)[:6])
    near = difflib.get_close_matches(name, list(first), n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return DataError(
        f"{file}: no column '{name}': the first row ({shown}) is not a header with that name.{hint} "
        "Without a header, give columns by number, for example --set data.text=0 --set data.label=1."
    )


def _read_jsonl(stream: IO[bytes], file: str, config: DataConfig, columns: Columns) -> Iterator[Row]:
    names = columns.names()
    seen = False
    limit = _line_limit(config)
    line = 0
    while raw := stream.readline(limit):
        line += 1
        if len(raw) == limit and not raw.endswith(b"\n"):
            more = False
            while rest := stream.readline(1 << 16):
                more = more or bool(rest.strip())
                if rest.endswith(b"\n"):
                    break
            if more:
                expected = f"at most {limit:,} bytes a row (12 x data.max_text_bytes + 1 MiB)"
                yield line, Problem("line too long", expected, "a longer line")
                continue
        if line == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        raw = raw.strip()
        if not raw:
            continue
        try:
            record = json.loads(raw)
        except UnicodeDecodeError:
            yield line, Problem("undecodable bytes", "UTF-8 text", repr(raw[:80]))
            continue
        except (ValueError, RecursionError) as error:
            yield line, Problem("not a JSON object", "one JSON object a line", f"{str(error)[:80]}: {raw[:80].decode(errors='replace')!r}")
            continue
        if not isinstance(record, dict):
            yield line, Problem("not a JSON object", "one JSON object a line", repr(record)[:80])
            continue
        if not seen:
            seen = True
            _require(columns, list(record), file)
        yield line, [record.get(name) if name else None for name in names]


def _read_parquet(file: str, columns: Columns) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.endswith(".gz"):
        raise DataError(f"{file}: Parquet compresses inside; a gzipped Parquet file cannot be read in pieces. Unpack it.")
    try:
        source = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise DataError(f"{file}: not a Parquet file: {error}. Set data.format if the ending is wrong.") from error
    with source:
        names = source.schema_arrow.names
        indices = _locate(columns, names, len(names), file, names)
        needed = sorted({names[index] for index in indices if index is not None})
        line = 0
        batches = source.iter_batches(batch_size=8192, columns=needed)
        while True:
            try:
                batch = next(batches, None)
            except pa.ArrowException as error:
                raise DataError(f"{file}: damaged after row {line}: {error}. Write the file again.") from error
            if batch is None:
                return
            lists = [[None] * batch.num_rows if index is None else _values(batch.column(names[index])) for index in indices]
            for values in zip(*lists, strict=True):
                line += 1
                problem = next((value for value in values if isinstance(value, Problem)), None)
                yield line, problem or list(values)


def _values(column: Any) -> list[Any]:
    """Python values of an Arrow column; a Problem in place of a string that is not UTF-8."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        pass
    values: list[Any] = []
    for scalar in column:
        try:
            values.append(scalar.as_py())
        except UnicodeDecodeError:
            values.append(Problem("undecodable bytes", "UTF-8 text", repr(scalar.as_buffer().to_pybytes()[:80])))
    return values


def _read_tfrecord(file: str, columns: Columns) -> Iterator[Row]:
    try:
        import tensorflow as tf
    except ImportError as error:
        raise DependencyError("reading TFRecord files needs TensorFlow: pip install 'tfpipeline[train]'.") from error
    names = columns.names()
    line = 0
    try:
        for record in tf.data.TFRecordDataset(file, compression_type="GZIP" if file.endswith(".gz") else "").as_numpy_iterator():
            line += 1
            example = tf.train.Example()
            try:
                example.ParseFromString(record)
            except Exception:  # protobuf's DecodeError, which moves between releases
                yield line, Problem("not a tf.Example", "a serialized tf.train.Example", repr(record[:40]))
                continue
            features = example.features.feature
            if line == 1:
                _require(columns, sorted(features), file)
            try:
                yield line, [_feature(features[name]) if name and name in features else None for name in names]
            except UnicodeDecodeError:
                yield line, Problem("undecodable bytes", "UTF-8 text", repr(record[:40]))
    except tf.errors.DataLossError as error:
        raise DataError(f"{file}: record {line + 1} is damaged or this is not a TFRecord file: {str(error)[:120]}.") from error


def _feature(feature: Any) -> Any:
    kind = feature.WhichOneof("kind")
    values = list(getattr(feature, kind).value) if kind else []
    values = [value.decode("utf-8") if isinstance(value, bytes) else value for value in values]
    return values[0] if len(values) == 1 else values or None


def _read_hugging_face(name: str, columns: Columns) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        raise DependencyError(f"{name}: reading Hugging Face data sets needs: pip install datasets.") from error
    path, _, config = name.removeprefix("hf:").partition(":")
    stream = datasets.load_dataset(path, config or None, split="train", streaming=True)
    classes = getattr((stream.features or {}).get(columns.label), "names", None)
    for line, record in enumerate(stream, start=1):
        yield line, _named(record, columns, name, classes)


def _read_tfds(name: str, columns: Columns) -> Iterator[Row]:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DependencyError(f"{name}: reading TensorFlow Datasets needs: pip install tensorflow-datasets.") from error
    rows, info = tfds.load(name.removeprefix("tfds:"), split="train", with_info=True)
    classes = getattr(info.features.get(columns.label), "names", None)
    for line, record in enumerate(tfds.as_numpy(rows), start=1):
        decoded = {key: value.decode("utf-8") if isinstance(value, bytes) else value for key, value in record.items()}
        yield line, _named(decoded, columns, name, classes)


def _named(record: dict[str, Any], columns: Columns, name: str, classes: list[str] | None) -> list[Any]:
    _require(columns, list(record), name)
    values = [record.get(column) if column else None for column in columns.names()]
    if classes and isinstance(values[2], int) and 0 <= values[2] < len(classes):
        values[2] = classes[values[2]]
    return values


def _nearest_path(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else None
    if folder is None:
        return f" The folder {path.parent} does not exist either."
    near = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=1, cutoff=0.5)
    return f" Did you mean '{folder / near[0]}'?" if near else f" The folder {folder.resolve()} is there, but holds nothing of that name."
