"""Every format gives the same rows with the right line numbers, and every file that cannot be read gives one clear message."""

from __future__ import annotations

import csv
import gzip
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tfpipeline import config
from tfpipeline.data import read_examples
from tfpipeline.data.readers import Columns, Problem, expand, read
from tfpipeline.errors import DataError, DependencyError

ROWS = [
    ("the app is great", "positive"),
    ("café ☕, never again", "negative"),
    ('they "lost" my card', "negative"),
    ("two\nlines", "positive"),
]
SST2 = Path(__file__).parents[1].parent / "shared" / "data" / "sst2"


def settings(**values: Any) -> config.DataConfig:
    """Data settings that differ from the defaults as given."""
    return config.load(overrides=[f"data.{name}={json.dumps(value)}" for name, value in values.items()]).data


def rows(file: Path | str, **values: Any) -> list[tuple[int, Any]]:
    """What `read` gives for one file."""
    chosen = settings(**values)
    return list(read(str(file), chosen, Columns.of(chosen)))


def pairs(file: Path | str, **values: Any) -> list[tuple[int, str, str]]:
    """`(line, text, label)` of each row."""
    return [(line, found[0], found[2]) for line, found in rows(file, **values)]


def refusal(file: Path | str, **values: Any) -> str:
    """The message of the DataError that reading one file ends with."""
    with pytest.raises(DataError) as caught:
        rows(file, **values)
    return str(caught.value)


def write_csv(file: Path, found: list[tuple[str, ...]], header: tuple[str, ...] = ("text", "label")) -> Path:
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *found] if header else found)
    return file


def write_tsv(file: Path) -> None:
    file.write_text(
        "text\tlabel\n" + "".join(f"{text}\t{label}\n".replace("two\nlines", "two lines") for text, label in ROWS), encoding="utf-8"
    )


def write_jsonl(file: Path) -> None:
    file.write_text("".join(json.dumps({"label": label, "text": text}) + "\n" for text, label in ROWS), encoding="utf-8")


def write_parquet(file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}), file)


def write_tfrecord(file: Path, options: str = "") -> None:
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(file), options) as writer:
        for text, label in ROWS:
            features = {
                name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()]))
                for name, value in (("text", text), ("label", label))
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def zipped(write: Callable[[Path], object]) -> Callable[[Path], None]:
    def both(file: Path) -> None:
        plain = file.with_suffix("")
        write(plain)
        file.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()

    return both


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.csv", lambda file: write_csv(file, ROWS)),
        ("a.csv.gz", zipped(lambda file: write_csv(file, ROWS))),
        ("a.tsv", write_tsv),
        ("a.tsv.gz", zipped(write_tsv)),
        ("a.jsonl", write_jsonl),
        ("a.jsonl.gz", zipped(write_jsonl)),
        ("a.parquet", write_parquet),
        ("a.tfrecord", write_tfrecord),
        ("a.tfrecord.gz", lambda file: write_tfrecord(file, "GZIP")),
    ],
)
def test_every_format_plain_and_gzipped_gives_the_same_rows(tmp_path: Path, name: str, write: Callable[[Path], object]) -> None:
    write(tmp_path / name)
    found = [(text.replace("\n", " "), label) for _, text, label in pairs(tmp_path / name)]
    assert found == [(text.replace("\n", " "), label) for text, label in ROWS]


def test_the_format_can_be_said_where_the_ending_does_not(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.data", ROWS)
    assert refusal(tmp_path / "rows.data") == (
        f"{tmp_path}/rows.data: the format is not clear from the ending. Set data.format to csv, tsv, jsonl, parquet or tfrecord."
    )
    assert len(rows(tmp_path / "rows.data", format="csv")) == 4


# ---- columns and lines ----


def test_line_numbers_count_the_lines_inside_quotes_and_the_blank_ones(tmp_path: Path) -> None:
    """A record is named by its first line, as an editor counts."""
    file = tmp_path / "a.csv"
    file.write_bytes(b'text,label\r\n"one\r\ntwo\r\nthree",a\r\n\r\nfour,b\r\n"five\n",a\nsix,b')
    assert [(line, text) for line, text, _ in pairs(file)] == [(2, "one\r\ntwo\r\nthree"), (6, "four"), (7, "five\n"), (9, "six")]


@pytest.mark.parametrize(
    ("content", "values"),
    [
        ("first,second\n", {"text": "0", "label": "1"}),
        ("first,second\n", {"text": "0", "label": "1", "header": "no"}),
        ("text,label\nfirst,second\n", {"text": "0", "label": "1", "header": "yes"}),
        ("label,text\nsecond,first\n", {}),
        ("label,text\nsecond,first\n", {"text": "1", "label": "label"}),
        (" label , text \nsecond,first\n", {}),
        ("\ufefftext,label\nfirst,second\n", {}),
        ("\n\ntext,label\nfirst,second\n", {}),
    ],
    ids=["numbers", "numbers-no-header", "numbers-header", "names", "both", "spaces-in-header", "byte-order-mark", "blank-lines-first"],
)
def test_columns_by_name_and_by_number_with_and_without_header(tmp_path: Path, content: str, values: dict[str, str]) -> None:
    (tmp_path / "a.csv").write_text(content, encoding="utf-8")
    assert [found[1:] for found in pairs(tmp_path / "a.csv", **values)] == [("first", "second")]


def test_tsv_takes_quotes_as_text(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tlabel\n"oh\ta\nno"\tb\n', encoding="utf-8")
    assert pairs(tmp_path / "a.tsv") == [(2, '"oh', "a"), (3, 'no"', "b")]


def test_parquet_integers_and_floats_become_label_names(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["one", "two"], "label": pa.array([0, 1]), "more": [1.0, 2.5]}), tmp_path / "a.parquet")
    chosen = settings()
    for column, names in (("label", ("0", "1")), ("more", ("1", "2.5"))):
        batches = list(read_examples([str(tmp_path / "a.parquet")], settings(label=column), names, need_labels=True))
        assert [[batch[row].label for row in range(len(batch))] for batch in batches] == [list(names)]
    assert chosen.label == "label"


def test_tfrecord_integers_become_values(tmp_path: Path) -> None:
    import tensorflow as tf

    feature = {
        "text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"hello"])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[3])),
    }
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
        writer.write(b"\xff\xff no example")
    good, bad = rows(tmp_path / "a.tfrecord")
    assert (good[0], good[1][0], good[1][2]) == (1, "hello", 3)
    assert bad == (2, Problem("not a tf.Example", "a serialized tf.train.Example", "b'\\xff\\xff no example'"))


def test_sst2_reads_whole() -> None:
    files = sorted(SST2.glob("*.tsv")) + sorted(SST2.glob("*.csv")) if SST2.is_dir() else []
    if not files:
        pytest.skip("the SST-2 files are not beside this checkout (../shared/data/sst2)")
    found = rows(files[0], text="0", label="1")
    assert len(found) > 800
    assert not [values for _, values in found if isinstance(values, Problem)]


# ---- paths ----


def test_files_globs_and_folders_expand_in_a_fixed_order(tmp_path: Path) -> None:
    for name in ("b.csv", "a.jsonl", "c.csv.gz", "notes.md"):
        (tmp_path / name).touch()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "d.csv").touch()
    whole = [str(tmp_path / name) for name in ("a.jsonl", "b.csv", "c.csv.gz")]
    assert expand([str(tmp_path)]) == whole
    assert expand([str(tmp_path / "[ab].*")]) == whole[:2]
    assert expand([str(tmp_path / "**" / "*.csv")]) == [whole[1], str(tmp_path / "deep" / "d.csv")]
    assert expand([whole[2], whole[0], "hf:imdb"]) == [whole[2], whole[0], "hf:imdb"]


def test_a_path_that_leads_nowhere_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").touch()
    (tmp_path / "empty").mkdir()
    cases = {
        "": "no data: `data.path` is empty. Give files with --data PATH, or data.path in the config.",
        f"{tmp_path}/review.csv": f"{tmp_path}/review.csv: no such file. Did you mean '{tmp_path}/reviews.csv'?",
        f"{tmp_path}/zzz": f"{tmp_path}/zzz: no such file. The folder {tmp_path} is there, but holds nothing of that name.",
        f"{tmp_path}/no/where.csv": f"{tmp_path}/no/where.csv: no such file. The folder {tmp_path}/no does not exist either.",
        f"{tmp_path}/*.tsv": f"{tmp_path}/*.tsv: no file matches this pattern. Check it with: ls {tmp_path}/*.tsv",
        f"{tmp_path}/empty": (
            f"{tmp_path}/empty: this folder holds no data file. Expected files ending in .csv, .json, .jsonl, .ndjson, .parquet, .pq, .tab, .tfrecord, "
            ".tfrecords, .tsv, .txt (or those with .gz)."
        ),
        "sample:bank": "sample:bank: no such sample corpus. There is: sample:bank_feedback.",
    }
    for path, message in cases.items():
        with pytest.raises(DataError) as caught:
            expand([path] if path else [])
        assert str(caught.value) == message


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DependencyError) as caught:
        rows("hf:imdb")
    assert str(caught.value) == "hf:imdb: reading Hugging Face data sets needs: pip install datasets."
    with pytest.raises(DependencyError) as caught:
        rows("tfds:imdb_reviews")
    assert str(caught.value) == "tfds:imdb_reviews: reading TensorFlow Datasets needs: pip install tensorflow-datasets."


# ---- the whole file is wrong ----


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"label": "lable"},
            "no column 'lable'. Did you mean 'label'? Columns: text, label. Set data.text, data.label to the right ones.",
        ),
        ({"label": "2"}, "no column number 2: rows have 2 columns, counted from 0."),
        (
            {"text": "texts", "label": "labels"},
            "no column 'texts': the first row ('text', 'label') is not a header with that name. Did you mean 'text'? "
            "Without a header, give columns by number, for example --set data.text=0 --set data.label=1.",
        ),
        (
            {"header": "no"},
            "no column 'text': the first row ('text', 'label') is not a header with that name. Did you mean 'text'? "
            "Without a header, give columns by number, for example --set data.text=0 --set data.label=1.",
        ),
    ],
    ids=["typo", "number", "two-typos", "told-there-is-no-header"],
)
def test_a_wrong_column_is_named_with_the_right_ones(tmp_path: Path, values: dict[str, str], message: str) -> None:
    file = write_csv(tmp_path / "a.csv", ROWS)
    assert refusal(file, **values) == f"{file}: {message}"


@pytest.mark.parametrize(("name", "write"), [("a.jsonl", write_jsonl), ("a.parquet", write_parquet), ("a.tfrecord", write_tfrecord)])
def test_a_wrong_column_is_named_in_the_other_formats_too(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    names = "text, label" if name == "a.parquet" else "label, text"
    assert refusal(tmp_path / name, text="txt") == (
        f"{tmp_path / name}: no column 'txt'. Did you mean 'text'? Columns: {names}. Set data.text, data.label to the right ones."
    )


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label,text\na,b,c\n")
    assert refusal(tmp_path / "a.csv") == (
        f"{tmp_path}/a.csv: 2 columns are called 'text'. Give the one you mean by its number, counted from 0."
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "the file is empty. Expected at least a few labelled rows."),
        ("a.csv.gz", gzip.compress(b""), "the file is empty. Expected at least a few labelled rows."),
        ("a.csv", b"\n\n", "the file holds no row. Expected at least a few labelled rows."),
        (
            "a.csv",
            b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
            "looks like a binary file (zero bytes at the start). Expected UTF-8 text; convert it, or set data.format.",
        ),
        (
            "a.csv",
            "text,label\nhello,a\n".encode("utf-16"),
            "looks like UTF-16 text (zero bytes at the start). Expected UTF-8 text; convert it, or set data.format.",
        ),
        ("a.csv.gz", b"text,label\n", "cannot be read: Not a gzipped file (b'te'). Check the file and its permissions."),
        (
            "a.csv.gz",
            gzip.compress(random.Random(1).randbytes(50_000).hex().encode())[:-20_000],
            "cannot be read: Compressed file ended before the end-of-stream marker was reached. Check the file and its permissions.",
        ),
        ("a.parquet.gz", b"PAR1", "Parquet compresses inside; a gzipped Parquet file cannot be read in pieces. Unpack it."),
    ],
    ids=["empty", "empty-gz", "blank", "binary", "utf-16", "not-gzip", "cut-gzip", "parquet-gz"],
)
def test_a_file_of_another_kind_is_one_message(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name, text="0", label="0") == f"{tmp_path / name}: {message}"


def test_damaged_gzip_parquet_and_tfrecord_are_data_errors(tmp_path: Path) -> None:
    """Their libraries' own exceptions do not reach the user; the exact words are theirs."""
    packed = bytearray(gzip.compress(b"text,label\n" + b"hello,a\n" * 5000))
    packed[20:24] = b"\xff" * 4
    (tmp_path / "a.csv.gz").write_bytes(packed)
    assert refusal(tmp_path / "a.csv.gz").startswith(f"{tmp_path}/a.csv.gz: cannot be read: ")
    (tmp_path / "a.parquet").write_bytes(b"text,label\nhello,a\n")
    assert refusal(tmp_path / "a.parquet").startswith(f"{tmp_path}/a.parquet: not a Parquet file: ")
    (tmp_path / "a.tfrecord").write_bytes(b"text,label\nhello,a\n")
    assert refusal(tmp_path / "a.tfrecord").startswith(f"{tmp_path}/a.tfrecord: record 1 is damaged or this is not a TFRecord file: ")
    (tmp_path / "a").mkdir()
    assert refusal(tmp_path / "a", format="csv") == (
        f"{tmp_path}/a: cannot be read: [Errno 21] Is a directory: '{tmp_path}/a'. Check the file and its permissions."
    )


# ---- one row is wrong, and only that one ----


def kinds(found: list[tuple[int, Any]]) -> list[tuple[int, str]]:
    """`(line, text or reason)`."""
    return [(line, values.reason if isinstance(values, Problem) else values[0]) for line, values in found]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"one,a\ntwo,a,more\nthree,b\n", [(2, "one"), (3, "wrong column count"), (4, "three")]),
        (b"one,a\ncaf\xe9,a\nthree,b\n", [(2, "one"), (3, "undecodable bytes"), (4, "three")]),
        (b'one,a\n"two" and more,a\nthree,b\n', [(2, "one"), (3, "not valid CSV"), (4, "three")]),
        (b'one,a\n5" screen,a\nthree,b\n', [(2, "one"), (3, '5" screen'), (4, "three")]),
        (b'one,a\n"two,a\nthree,b\n', [(2, "one"), (3, "unclosed quote")]),
        (b'one,"a\ntwo,b\n', [(2, "unclosed quote")]),
    ],
    ids=["columns", "bytes", "quote-inside", "inch", "unclosed-text", "unclosed-label"],
)
def test_a_bad_csv_row_spoils_no_other(tmp_path: Path, content: bytes, expected: list[tuple[int, str]]) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\n" + content)
    assert kinds(rows(tmp_path / "a.csv")) == expected


def test_a_quote_never_closed_does_not_swallow_the_file(tmp_path: Path) -> None:
    """It costs as many lines as one row may be long; reading goes on after them, and nothing of them is taken for a text."""
    with (tmp_path / "a.csv").open("w") as stream:
        stream.write('text,label\none,a\n"two,a\n')
        stream.writelines(f"{'word ' * 20}{number},b\n" for number in range(15_000))
    found = rows(tmp_path / "a.csv", max_text_bytes=1000)
    assert kinds(found[:2]) == [(2, "one"), (3, "unclosed quote")]
    assert found[1][1].received == f"none up to line {found[2][0] - 1}"
    assert 1000 < len(found) < 10_000
    assert all(len(values[0]) < 120 for _, values in found[2:])


@pytest.mark.parametrize(
    ("raw", "reason", "received"),
    [
        (b'{"text": "two"', "not a JSON object", "Expecting ',' delimiter: line 1 column 15 (char 14): '{\"text\": \"two\"'"),
        (b'["two", "a"]', "not a JSON object", "['two', 'a']"),
        (b'{"text": "caf\xe9", "label": "a"}', "undecodable bytes", 'b\'{"text": "caf\\xe9", "label": "a"}\''),
        (b"[" * 100_000, "not a JSON object", None),
    ],
    ids=["cut", "list", "bytes", "nested"],
)
def test_a_bad_json_line_spoils_no_other(tmp_path: Path, raw: bytes, reason: str, received: str | None) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one", "label": "a"}\n\n' + raw + b'\n{"text": "three", "label": "b"}\n')
    found = rows(tmp_path / "a.jsonl")
    assert kinds(found) == [(1, "one"), (3, reason), (4, "three")]
    if received:
        assert found[1][1].received == received


def test_bytes_in_a_parquet_string_spoil_no_other_row(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = pa.array([b"one", b"caf\xe9", b"three"], pa.binary())
    pq.write_table(pa.table({"text": raw.view(pa.string()), "label": ["a", "b", "a"]}), tmp_path / "a.parquet")
    found = rows(tmp_path / "a.parquet")
    assert kinds(found) == [(1, "one"), (2, "undecodable bytes"), (3, "three")]
    assert found[1][1].received == "b'caf\\xe9'"


# ---- a line of 50 MB ----

LONG_LINE = """
import resource, sys
import tfpipeline
from tfpipeline import config
from tfpipeline.data.readers import Columns, read
settings = config.load(overrides=["data.format=" + sys.argv[2]]).data
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for line, values in read(sys.argv[1], settings, Columns.of(settings)):
        print(line, getattr(values, "reason", values))
except tfpipeline.errors.DataError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize(
    ("kind", "start", "end", "expected"),
    [
        (
            "csv",
            b"text,label\nbefore,a\n",
            b",a\nafter,b\n",
            ["2 ['before', None, 'a', None, None]", "3 line too long", "4 ['after', None, 'b', None, None]"],
        ),
        (
            "csv",
            b'text,label\nbefore,a\n"with ""quotes"" ',
            b'",a\nafter,b\n',
            ["2 ['before', None, 'a', None, None]", "3 line too long", "4 ['after', None, 'b', None, None]"],
        ),
        (
            "jsonl",
            b'{"text": "before", "label": "a"}\n{"text": "',
            b'", "label": "a"}\n{"text": "after", "label": "b"}\n',
            ["1 ['before', None, 'a', None, None]", "2 line too long", "3 ['after', None, 'b', None, None]"],
        ),
        (
            "csv",
            b"",
            b"",
            [
                "FILE:1: line too long: expected at most 13,048,576 characters a row (12 x data.max_text_bytes + 1 MiB), received a longer line. "
                "The first row has to be whole."
            ],
        ),
    ],
    ids=["csv", "csv-quoted", "jsonl", "nothing-else"],
)
def test_a_line_of_50_mb_is_one_bad_row_and_little_memory(tmp_path: Path, kind: str, start: bytes, end: bytes, expected: list[str]) -> None:
    """Memory is bounded by the longest row that is allowed (13 MB by default), not by the line."""
    file = tmp_path / "long"
    file.write_bytes(start + b"long words " * 4_600_000 + end)
    answer = subprocess.run(
        [sys.executable, "-c", LONG_LINE, str(file), kind], check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    ).stdout
    *found, mib = answer.replace(str(file), "FILE").splitlines()
    assert found == expected
    assert int(mib) < 120


def test_a_long_cell_below_the_limit_is_read_whole(tmp_path: Path) -> None:
    """Beyond the 128 KiB at which the standard library's reader would stop by itself."""
    text = "word " * 100_000
    write_csv(tmp_path / "a.csv", [(text, "a")])
    assert pairs(tmp_path / "a.csv") == [(2, text, "a")]


def test_rows_come_before_the_file_has_been_read(tmp_path: Path) -> None:
    """The end of the file is broken, and its first row is there all the same."""
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"text,label\n" + b"".join(b"number %d,a\n" % i for i in range(200_000)))[:-1000])
    chosen = settings()
    reader = read(str(tmp_path / "a.csv.gz"), chosen, Columns.of(chosen))
    assert next(reader) == (2, ["number 0", None, "a", None, None])
    with pytest.raises(DataError, match="ended before the end-of-stream marker"):
        list(reader)
