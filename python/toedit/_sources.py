"""Files of documents as record batches: Parquet, JSON lines, Arrow, plain text. Nothing is read whole but a text file that is
one document."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from toedit._errors import InputError

__all__ = ["TEXT", "Source", "open_sources"]

TEXT = "text"
# Rows that are read at a time.
ROWS = 512

# A batch, and the share of its file that lies behind it.
Batches = Iterator[tuple[pa.RecordBatch, float]]

_ARROW_MAGIC = b"ARROW1"
_COMPRESSIONS = ("gz", "zst")


@dataclass(frozen=True)
class Source:
    """A file, looked into.

    Attributes:
        path: where it is.
        schema: of all its batches.
        size: in bytes.
        batches: reads it from the beginning.
    """

    path: Path
    schema: pa.Schema
    size: int
    batches: Callable[[], Batches]


def open_sources(paths: Iterable[str | Path], *, lines: bool = False) -> list[Source]:
    """Look into files and see that they have the same columns.

    Args:
        paths: what a file is, its name's ending says.
        lines: a plain text file holds a document a line, not one altogether.

    Raises:
        InputError: a file is missing, damaged or of an unknown kind, or its columns are not those of the first.
    """
    sources = [_open(Path(path), lines) for path in paths]
    # JSON has no types but those that are found: a field may be null in all of one file and a number in another.
    loose = [source for source in sources if _kind(source.path)[0] in _JSON]
    if len(loose) > 1:
        schema = loose[0].schema
        for source in loose[1:]:
            schema = _unified(schema, source.schema, f"{source.path} and {loose[0].path}")
        sources = [_json(source.path, schema) if source in loose else source for source in sources]
    for source in sources[1:]:
        if (difference := _difference(sources[0].schema, source.schema)) is not None:
            raise InputError(f"{source.path} does not have the columns of {sources[0].path}: {difference}; score it by itself")
    return sources


def _difference(want: pa.Schema, got: pa.Schema) -> str | None:
    for field in want:
        if got.get_field_index(field.name) < 0:
            return f"it lacks {field.name!r}"
        if not got.field(field.name).type.equals(field.type):
            return f"{field.name!r} is {got.field(field.name).type}, not {field.type}"
    if len(got) > len(want):
        return f"it has {next(name for name in got.names if name not in want.names)!r} besides"
    return None if got.names == want.names else f"they are in the order {', '.join(got.names)}"


def _kind(path: Path) -> tuple[str, str | None]:
    """The ending that says what a file is, and how it is compressed."""
    *_, before, last = ["", "", *path.name.lower().split(".")]
    return (before, last) if last in _COMPRESSIONS else (last, None)


def _open(path: Path, lines: bool) -> Source:
    ending, compression = _kind(path)
    if not path.is_file():
        raise InputError(f"{path} is no file" if path.exists() else f"{path} does not exist")
    try:
        if ending in _JSON:
            return _json(path)
        if ending in _TEXT:
            return _text(path, lines)
        if ending in ("parquet", "pq") and compression is None:
            return _parquet(path)
        if ending in ("arrow", "arrows", "feather", "ipc") and compression is None:
            return _arrow(path)
    except (pa.ArrowException, OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    raise InputError(
        f"{path} is of no kind that is known by its name; known are .parquet, .arrow, .arrows, .feather, .ipc, and .jsonl, "
        ".ndjson, .txt also with .gz or .zst"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Parquet and Arrow


def _parquet(path: Path) -> Source:
    with pq.ParquetFile(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows

    def batches() -> Batches:
        done = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS):
                done += len(batch)
                yield batch, done / rows

    return Source(path, schema, path.stat().st_size, batches)


def _arrow(path: Path) -> Source:
    size = path.stat().st_size
    with pa.OSFile(str(path)) as file:
        whole = file.read(len(_ARROW_MAGIC)) == _ARROW_MAGIC
        file.seek(0)
        schema = (pa.ipc.open_file(file) if whole else pa.ipc.open_stream(file)).schema

    def read() -> Batches:
        with pa.OSFile(str(path)) as file:
            if whole:
                reader = pa.ipc.open_file(file)
                for i in range(reader.num_record_batches):
                    yield reader.get_batch(i), (i + 1) / reader.num_record_batches
            else:
                for batch in pa.ipc.open_stream(file):
                    yield batch, file.tell() / size

    def batches() -> Batches:
        before = 0.0
        for batch, share in read():
            for at in range(0, len(batch), ROWS):
                part = batch.slice(at, ROWS)
                yield part, before + (share - before) * (at + len(part)) / len(batch)
            before = share

    return Source(path, schema, size, batches)


# ---------------------------------------------------------------------------------------------------------------------
# lines of JSON and of text

_JSON = ("jsonl", "ndjson")
_TEXT = ("txt",)


def _lines(path: Path, newline: str = "\n") -> Iterator[tuple[str, float]]:
    """The lines of a file without their ends, and the share of the file that was read so far."""
    size = max(path.stat().st_size, 1)
    # Both are closed here: where Python finds an open file that nobody holds, it drops an exception, and so a Ctrl-C.
    with path.open("rb") as raw, io.TextIOWrapper(_decompressed(path, raw), encoding="utf-8", newline=newline) as lines:
        for line in lines:
            yield line.removesuffix("\n"), raw.tell() / size


def _decompressed(path: Path, raw: Any) -> Any:
    compression = _kind(path)[1]
    if compression == "gz":
        return gzip.GzipFile(fileobj=raw)
    if compression == "zst":
        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"))
    return raw


def _objects(path: Path) -> Iterator[tuple[list[dict[str, Any]], int, float]]:
    """The objects of a file of JSON lines, some at a time, with the number of the first one's line."""
    objects: list[dict[str, Any]] = []
    number, share, first = 0, 0.0, 1
    for line, share in _lines(path):
        number += 1
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(value, dict):
            raise InputError(f"{path}, line {number}: a {type(value).__name__}, not an object")
        first = first if objects else number
        objects.append(value)
        if len(objects) == ROWS:
            yield objects, first, share
            objects = []
    if objects:
        yield objects, first, share


def _json(path: Path, schema: pa.Schema | None = None) -> Source:
    """Read once for the types and again for the values: beside scoring both cost nothing, and no file has to fit memory."""
    found = _schema(path) if schema is None else schema

    def batches() -> Batches:
        for objects, first, share in _objects(path):
            try:
                arrays = [pa.array([row.get(field.name) for row in objects], field.type) for field in found]
            except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
                raise InputError(f"{path}, from line {first}: {error}") from None
            yield pa.RecordBatch.from_arrays(arrays, schema=found), share

    return Source(path, found, path.stat().st_size, batches)


def _schema(path: Path) -> pa.Schema:
    schema = pa.schema([])
    for objects, first, _ in _objects(path):
        names = dict.fromkeys(name for row in objects for name in row)
        where = f"{path}, from line {first}"
        fields = []
        for name in names:
            try:
                fields.append(pa.field(name, pa.array([row.get(name) for row in objects]).type))
            except (pa.ArrowException, OverflowError) as error:
                raise InputError(f"{where}: the values of {name!r} have no common type ({error})") from None
        schema = _unified(schema, pa.schema(fields), where)
    return schema


def _unified(a: pa.Schema, b: pa.Schema, where: str) -> pa.Schema:
    for field in b:
        both = pa.schema([a.field(field.name)]) if a.get_field_index(field.name) >= 0 else None
        try:
            if both is not None:
                pa.unify_schemas([both, pa.schema([field])], promote_options="permissive")
        except pa.ArrowException:
            raise InputError(f"{where}: {field.name!r} is {field.type}, but {a.field(field.name).type} before") from None
    return pa.unify_schemas([a, b], promote_options="permissive")


def _text(path: Path, lines: bool) -> Source:
    schema = pa.schema([pa.field(TEXT, pa.large_string())])

    def documents() -> Iterator[tuple[str, float]]:
        if lines:
            return _lines(path)
        with path.open("rb") as raw:
            return iter([(_decompressed(path, raw).read().decode("utf-8"), 1.0)])

    def batches() -> Batches:
        texts = documents()
        while some := list(islice(texts, ROWS)):
            yield pa.RecordBatch.from_arrays([pa.array([t for t, _ in some], pa.large_string())], schema=schema), some[-1][1]

    return Source(path, schema, path.stat().st_size, batches)
