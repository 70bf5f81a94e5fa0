"""Batches of every kind as Arrow columns, and back again.

A batch is anything that has rows of token ids: a pyarrow Table, RecordBatch or (chunked) array; any object with
``__arrow_c_array__`` or ``__arrow_c_stream__`` (polars, nanoarrow, ...); a mapping of columns; a list of mappings, one a
row; or rows alone, as lists, NumPy or torch arrays. What comes back has the container and the dtype that came in.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from toedit import _bridge
from toedit._errors import InputError, ScoresError

__all__ = ["IDS", "SCORES_TYPE", "Batch", "open_batch", "rechunk"]

IDS = "input_ids"
LABELS = "labels"
SCORES = "scores"
# The label of tokens that no loss is taken of (the ignore_index of PyTorch's cross_entropy).
IGNORED = -100
# The columns with a value for each token.
TOKEN_COLUMNS = (
    IDS, "labels", "attention_mask", "special_tokens_mask", "protected_mask", "assistant_masks", "document_ids", "position_ids",
)  # fmt: skip
# The columns of pairs: ranges of characters, and the characters of each token.
RANGES = "protected_ranges"
PAIR_COLUMNS = (RANGES, "offset_mapping")
# The columns that scoring reads: the last three say where documents begin in rows that hold several.
SCORING_COLUMNS = (IDS, "attention_mask", "document_ids", "position_ids", "seq_lengths")

SCORES_TYPE = pa.struct(
    [
        pa.field("logp", pa.list_(pa.float32())),
        pa.field("topk_pos", pa.list_(pa.int32())),
        pa.field("topk_ids", pa.list_(pa.int32())),
        pa.field("topk_logp", pa.list_(pa.float32())),
        pa.field("k", pa.int32()),
        pa.field("ids_hash", pa.uint64()),
        pa.field("prior", pa.string()),
    ]
)
"""The Arrow type of a scores column, version 1: one struct a document."""


def scores_column(column: pa.Array) -> pa.Array:
    """A scores column in its canonical type: files and frameworks change list widths and half floats."""
    if column.type.equals(SCORES_TYPE):
        return column
    if not pa.types.is_struct(column.type):
        raise ScoresError(f"column 'scores' is {column.type}; it must be the struct that Prior.score returns")
    missing = [f.name for f in SCORES_TYPE if column.type.get_field_index(f.name) < 0]
    if missing:
        raise ScoresError(f"column 'scores' has no field {missing[0]!r}; make it with Prior.score")
    try:
        fields_ = [column.field(f.name).cast(f.type) for f in SCORES_TYPE]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ScoresError(f"column 'scores' cannot be read: {error}; make it with Prior.score") from None
    mask = column.is_null() if column.null_count else None
    return pa.StructArray.from_arrays(fields_, fields=list(SCORES_TYPE), mask=mask)


# Puts an edited column into the container and dtype that its original came in.
Back = Callable[[pa.Array], Any]


@dataclass
class Batch:
    """A batch, opened.

    Attributes:
        names: its columns.
        column: the Arrow form of a column by name, and the way back.
        rebuild: the batch with some columns replaced.
        get: a column of a batch as its container has it.
    """

    names: list[str]
    column: Callable[[str], tuple[pa.Array, Back]]
    rebuild: Callable[[dict[str, Any]], Any]
    get: Callable[[Any, str], Any]


_pyarrow_has_imported = False


def pyarrow_imports() -> None:
    """Let pyarrow import what it does for its first array and its first value (pandas and dateutil, where they are installed)
    now, under the lock that forks wait for."""
    global _pyarrow_has_imported
    if not _pyarrow_has_imported:
        with _bridge.no_fork:
            pa.array(np.zeros(1)).to_numpy(zero_copy_only=False)
            pa.array([0])
            _pyarrow_has_imported = True


def open_batch(batch: Any) -> Batch:
    """Open a batch of any kind.

    Raises:
        InputError: it is none of the kinds above.
    """
    pyarrow_imports()
    if isinstance(batch, (pa.Table, pa.RecordBatch)):
        return _open_table(batch, lambda table: table)
    if isinstance(batch, pa.StructArray):
        return _open_table(pa.RecordBatch.from_struct_array(batch), lambda b: b.to_struct_array())
    if isinstance(batch, (pa.Array, pa.ChunkedArray)):
        return _open_ids(batch)
    if isinstance(batch, Mapping):
        return _open_mapping(batch)
    if isinstance(batch, np.ndarray) or _is_torch(batch):
        return _open_ids(batch)
    if hasattr(batch, "__arrow_c_stream__") or hasattr(batch, "__arrow_c_array__"):
        return _open_foreign(batch)
    if isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        if len(batch) > 0 and isinstance(batch[0], Mapping):
            return _open_rows(batch)
        return _open_ids(batch)
    raise InputError(
        f"a batch of type {type(batch).__name__} is not known; pass Arrow data, a mapping with {IDS}, a list of rows, "
        "NumPy or torch"
    )


def _open_table(table: pa.Table | pa.RecordBatch, wrap: Callable[[Any], Any]) -> Batch:
    def column(name: str) -> tuple[pa.Array, Back]:
        original = table.column(name)
        if isinstance(original, pa.ChunkedArray):
            chunk_lengths = [len(c) for c in original.chunks]
            return _one_chunk(original), lambda a: rechunk(a, chunk_lengths)
        return original, lambda a: a

    def rebuild(columns: dict[str, Any]) -> Any:
        result = table
        for name, values in columns.items():
            index = table.schema.get_field_index(name)
            field = table.schema.field(index).with_type(values.type)
            result = result.set_column(index, field, values)
        return wrap(result)

    def get(result: Any, name: str) -> Any:
        return result.field(name) if isinstance(result, pa.StructArray) else _get(result, name)

    return Batch(table.schema.names, column, rebuild, get)


def _get(container: Any, name: str) -> Any:
    return container[name]


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def rechunk(array: pa.Array, lengths: list[int]) -> pa.ChunkedArray:
    chunks, start = [], 0
    for n in lengths:
        chunks.append(array.slice(start, n))
        start += n
    return pa.chunked_array(chunks, type=array.type)


def _open_foreign(batch: Any) -> Batch:
    """Any producer of the Arrow PyCapsule interface. polars comes back as polars, others as pyarrow."""
    polars = sys.modules.get("polars")
    if polars is not None and isinstance(batch, polars.DataFrame):
        return _open_polars(batch, lambda frame: frame)
    if polars is not None and isinstance(batch, polars.Series):
        if batch.dtype == polars.Struct:
            return _open_polars(batch.struct.unnest(), lambda frame: frame.to_struct(batch.name))
        return _open_ids(batch)
    imported = _import(batch)
    if not pa.types.is_struct(imported.type):
        return _open_ids(imported)
    if isinstance(imported, pa.ChunkedArray):
        return _open_table(pa.Table.from_struct_array(imported), lambda table: table)
    return _open_table(pa.RecordBatch.from_struct_array(imported), lambda table: table)


def _import(data: Any) -> pa.Array | pa.ChunkedArray:
    """What another library holds, as pyarrow's: an array or, of a stream, a chunked one."""
    try:
        return pa.chunked_array(data) if hasattr(data, "__arrow_c_stream__") else pa.array(data)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise InputError(f"Arrow data of {type(data).__name__} cannot be imported: {error}") from None


def _open_polars(frame: Any, wrap: Callable[[Any], Any]) -> Batch:
    """Column by column, so that what is not edited keeps the types that only polars knows."""

    def column(name: str) -> tuple[pa.Array, Back]:
        return to_arrow(frame.get_column(name), name)

    def rebuild(columns: dict[str, Any]) -> Any:
        return wrap(frame.with_columns(**columns))

    def get(result: Any, name: str) -> Any:
        return result.get_column(name) if isinstance(result, type(frame)) else result.struct.field(name)

    return Batch(frame.columns, column, rebuild, get)


def _open_ids(ids: Any) -> Batch:
    """Rows of ids without anything beside them."""

    def column(name: str) -> tuple[pa.Array, Back]:
        return to_arrow(ids, name)

    def rebuild(columns: dict[str, Any]) -> Any:
        return columns.get(IDS, ids)

    return Batch([IDS], column, rebuild, lambda result, name: result)


def _open_mapping(batch: Mapping[str, Any]) -> Batch:
    def column(name: str) -> tuple[pa.Array, Back]:
        return to_arrow(batch[name], name)

    def rebuild(columns: dict[str, Any]) -> Any:
        # The original's own type where it can be copied (transformers' BatchEncoding, say), else a dict.
        result: Any = dict(batch)
        copy = getattr(batch, "copy", None)
        if callable(copy) and type(batch) is not dict:
            result = copy()
        for name, values in columns.items():
            result[name] = values
        return result

    return Batch([str(name) for name in batch], column, rebuild, _get)


def _open_rows(rows: Sequence[Mapping[str, Any]]) -> Batch:
    names = [str(name) for name in rows[0]]

    def values(name: str) -> list[Any]:
        try:
            return [row[name] for row in rows]
        except KeyError:
            lacking = next(i for i, row in enumerate(rows) if name not in row)
            raise InputError(f"row {lacking} has no {name!r}, but row 0 has; give every row the same columns") from None
        except TypeError:
            n, row = next((n, row) for n, row in enumerate(rows) if not isinstance(row, Mapping))
            raise InputError(f"row {n} is a {type(row).__name__}, but row 0 a mapping") from None

    def column(name: str) -> tuple[pa.Array, Back]:
        return to_arrow(values(name), name)

    def rebuild(columns: dict[str, Any]) -> list[dict[str, Any]]:
        return [{**row, **{name: v[i] for name, v in columns.items()}} for i, row in enumerate(rows)]

    return Batch(names, column, rebuild, lambda result, name: [row[name] for row in result])


def to_arrow(values: Any, name: str) -> tuple[pa.Array, Back]:
    """One column as an Arrow array, without a copy where its memory allows, and the way back.

    Raises:
        InputError: its values have no common type, or one that no column has.
    """
    pyarrow_imports()
    if isinstance(values, pa.Array):
        return values, lambda a: a
    if isinstance(values, pa.ChunkedArray):
        lengths = [len(c) for c in values.chunks]
        return _one_chunk(values), lambda a: rechunk(a, lengths)
    if name in PAIR_COLUMNS and (isinstance(values, np.ndarray) or _is_torch(values)):
        values = values.tolist()
    if _is_torch(values):
        array, back = _from_numpy(_torch_to_numpy(values), name)
        return array, lambda a: _numpy_to_torch(back(a), values)
    if isinstance(values, np.ndarray) and values.dtype != object:
        return _from_numpy(values, name)
    if hasattr(values, "__arrow_c_array__") or hasattr(values, "__arrow_c_stream__"):
        array, back = to_arrow(_import(values), name)
        polars = sys.modules.get("polars")
        if polars is not None and isinstance(values, polars.Series):
            return array, lambda a: polars.Series(values.name, back(a), dtype=values.dtype)
        return array, back
    if not isinstance(values, (Sequence, np.ndarray)) or isinstance(values, (str, bytes)):
        raise InputError(f"column {name!r} is a {type(values).__name__}; it must be a list, NumPy, torch or Arrow array")
    rows = list(values)
    if name == "scores" or (len(rows) > 0 and isinstance(rows[0], (Mapping, pa.StructScalar))):
        return _from_structs(rows, name), lambda a: a.to_pylist()
    if len(rows) > 0 and (isinstance(rows[0], np.ndarray) or _is_torch(rows[0])) and name not in PAIR_COLUMNS:
        return _from_arrays(rows, name)
    return _from_lists(rows, name)


def _is_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _torch_to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = tensor.detach().cpu().numpy()
    return array


def _numpy_to_torch(array: np.ndarray[Any, Any], like: Any) -> Any:
    return sys.modules["torch"].from_numpy(array).to(device=like.device)


def _from_numpy(array: np.ndarray[Any, Any], name: str) -> tuple[pa.Array, Back]:
    if array.ndim == 1:
        return pa.array(array), lambda a: a.to_numpy(zero_copy_only=False)
    if array.ndim != 2:
        raise InputError(f"column {name!r} has {array.ndim} dimensions; token ids have two, rows and positions")
    rows, length = array.shape
    if length == 0:
        empty = pa.ListArray.from_arrays(pa.array(np.zeros(rows + 1, np.int32)), pa.array(array.reshape(-1)))
        return empty, lambda a: array.copy()
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))

    def back(a: pa.Array) -> np.ndarray[Any, Any]:
        values: np.ndarray[Any, Any] = a.flatten().to_numpy(zero_copy_only=False)
        # The Arrow memory is read-only and may be shared; training code writes into its batches.
        return values.astype(array.dtype, copy=True).reshape(rows, length)

    return pa.FixedSizeListArray.from_arrays(flat, length), back


def _from_arrays(rows: list[Any], name: str) -> tuple[pa.Array, Back]:
    arrays = [_torch_to_numpy(r) if _is_torch(r) else np.asarray(r) for r in rows]
    if arrays[0].ndim == 0:  # a column of numbers: keys, offsets
        return _inferred([a.item() for a in arrays]), lambda a: a.to_pylist()
    # Without elements the dtype says nothing: NumPy and torch make an empty list an array of floats.
    first = next((i for i, a in enumerate(arrays) if a.size > 0), 0)
    dtype = arrays[first].dtype if arrays[first].size > 0 else np.dtype(np.int64)
    for i, a in enumerate(arrays):
        if a.ndim != 1 or (a.size > 0 and a.dtype != dtype):
            raise InputError(
                f"row {i}: {name} is an array of {a.dtype} with {a.ndim} dimensions; it must have one, and row {first}'s "
                f"dtype {dtype}"
            )
    offsets = np.zeros(len(arrays) + 1, np.int64)
    np.cumsum([len(a) for a in arrays], out=offsets[1:])
    flat = pa.array(np.concatenate([a.astype(dtype, copy=False) for a in arrays]))
    result = pa.LargeListArray.from_arrays(pa.array(offsets), flat)

    def back(a: pa.Array) -> list[Any]:
        values = a.flatten().to_numpy(zero_copy_only=False).astype(dtype, copy=True)
        ends = a.offsets.to_numpy()[1:-1] - a.offsets[0].as_py()  # rows may have become shorter
        parts = [p.astype(r.dtype, copy=False) for p, r in zip(np.split(values, ends), arrays, strict=True)]
        return [_numpy_to_torch(p, r) if _is_torch(r) else p for p, r in zip(parts, rows, strict=True)]

    return result, back


def _from_lists(rows: list[Any], name: str) -> tuple[pa.Array, Back]:
    rows = [r.tolist() if isinstance(r, np.ndarray) or _is_torch(r) else r for r in rows]
    integers = _integer_lists(rows)
    if integers is not None:
        return integers, to_lists
    try:
        array = _inferred(rows)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise InputError(_unreadable(rows, name, error)) from None
    if name == IDS and pa.types.is_integer(array.type):
        raise InputError(f"{IDS} is one row of ids; a batch is a list of rows: [ids]")
    # Without a single token there is nothing to tell the type from.
    if pa.types.is_list(array.type) and pa.types.is_null(array.type.value_type):
        array = array.cast(pa.list_(pa.int64()))
    if pa.types.is_null(array.type) and name in TOKEN_COLUMNS:
        array = array.cast(pa.list_(pa.int64()))
    return array, to_lists


def _integer_lists(rows: list[Any]) -> pa.Array | None:
    """Lists of integers as a list<int64> array, or None where they are anything else.

    The columns of nearly every batch of Python objects. pyarrow would find the type by itself, but where there is no dateutil
    it tries to import that at every call: such an import looks into every folder of sys.path, and drops an interrupt that
    comes meanwhile.
    """
    try:
        # The sum tells at once that there are floats or nulls among them, and the conversion that there are bools.
        if rows and all(type(row) is list and type(sum(row)) is int for row in rows):
            return pa.array(rows, pa.list_(pa.int64()))
    except (TypeError, OverflowError, pa.ArrowInvalid):
        pass
    return None


def to_lists(column: pa.Array) -> list[Any]:
    """What ``to_pylist`` returns, for lists of numbers in a tenth of the time that pyarrow takes before version 26."""
    values: list[Any]
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        flat, element = column.flatten(), column.type.value_type
        plain = pa.types.is_integer(element) or pa.types.is_float32(element) or pa.types.is_float64(element)
        if plain and column.null_count == 0 and flat.null_count == 0:
            values = flat.to_numpy(zero_copy_only=False).tolist()
            offsets = column.offsets.to_numpy()
            ends = (offsets - offsets[:1]).tolist()
            return [values[start:end] for start, end in itertools.pairwise(ends)]
    values = column.to_pylist()
    return values


def _inferred(values: list[Any]) -> pa.Array:
    """Python objects in the type that pyarrow finds for them. For that it imports dateutil, at each call where there is
    none."""
    with _bridge.no_fork:
        return pa.array(values)


def _unreadable(rows: list[Any], name: str, error: Exception) -> str:
    """What is wrong with a column of Python objects, with the row where one row alone cannot be read."""
    for i, row in enumerate(rows):
        try:
            _inferred([row])
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as of_row:
            for value in row if isinstance(row, Sequence) else [row]:
                if isinstance(value, int) and not -(2**63) <= value < 2**63:
                    return f"row {i}: {name} holds {value}, which is no int64"
            return f"row {i}: {name} cannot be read: {of_row}"
    return f"column {name!r} cannot be read: {error}"


def _from_structs(rows: list[Any], name: str) -> pa.Array:
    if name == "scores" and any(isinstance(row, bytes) for row in rows):
        return _from_bytes(rows)
    try:
        if name == "scores" and any(isinstance(row, (list, np.ndarray)) for row in rows):  # of packed rows, a list each
            return pa.array(rows, type=pa.list_(SCORES_TYPE))
        return pa.array(rows, type=SCORES_TYPE if name == "scores" else None)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise InputError(f"column {name!r} is not a scores column: {error}") from None


def _from_bytes(rows: list[Any]) -> pa.Array:
    """Scores that were written by :func:`toedit.scores_to_bytes`, one document or one packed row each.

    Raises:
        ScoresError: a row holds something else.
    """
    read: list[pa.Array] = []
    for n, row in enumerate(rows):
        try:
            if not isinstance(row, bytes):
                raise TypeError(f"they are a {type(row).__name__}")
            column = pa.ipc.open_stream(row).read_all().column(SCORES).combine_chunks()
            column.validate(full=True)
            if len(column) != 1:
                raise ValueError(f"they hold {len(column)} rows")
            read.append(column if read == [] else column.cast(read[0].type))
        # What damaged bytes, or other ones, can be to Arrow.
        except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
            raise ScoresError(f"row {n}: {SCORES} are not what scores_to_bytes makes: {error}") from None
    return pa.concat_arrays(read)


def key_columns(batch: Batch, key: str | None, offset: str | None) -> dict[str, pa.Array]:
    """The columns that say which document a row is of and where in it, as the native library takes them: key, large_string or
    int64, and offset, int64.

    Raises:
        InputError: a column is not there, or holds neither.
    """
    columns = {}
    for name, role in ((key, "key"), (offset, "offset")):
        if name is not None:
            if name not in batch.names:
                raise InputError(f"the batch has no column {name!r}, which is to be its {role}, only {batch.names}")
            columns[role] = _key_column(batch.column(name)[0], name, integers=role == "offset")
    return columns


def _key_column(column: pa.Array, name: str, integers: bool) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        if pa.types.is_integer(column.type) or pa.types.is_null(column.type):  # no rows, or nothing but nulls
            return column.cast(pa.int64())
        if not integers and not pa.types.is_floating(column.type):
            return column.cast(pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"column {name!r}: {error}") from None
    wanted = "integers" if integers else "strings or integers"
    raise InputError(f"column {name!r} holds {column.type}; it must hold {wanted}")
