"""Columns of starts and ends: of tokens in their text, as tokenizers give them, and of ranges of characters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toedit._errors import InputError

__all__ = ["flat_pairs"]


def flat_pairs(column: pa.Array, name: str) -> pa.Array:
    """A column of pairs as the native library reads it.

    Args:
        column: a list of pairs of integers for each row; a pair is a list of two, or a struct with ``start`` and ``end``.
        name: its name, for errors.

    Returns:
        large_list<int64>: the two numbers of each pair, one pair behind the other.

    Raises:
        InputError: it holds something else.
    """
    if column.null_count:
        raise InputError(f"row {column.is_null().index(True).as_py()}: {name} is null; give it an empty list")
    if len(column) == 0:
        return pa.array([], pa.large_list(pa.int64()))
    unusable = InputError(f"column {name!r} holds {column.type}; a row must be a list of pairs of integers, a start and an end")
    if not _is_list(column.type):
        raise unusable
    pairs = column.flatten()
    if len(pairs) == 0:  # of a type that may say nothing
        numbers = [pa.array([], pa.int64())]
    elif pa.types.is_struct(pairs.type) and {f.name for f in pairs.type} == {"start", "end"}:
        numbers = [pc.struct_field(pairs, "start"), pc.struct_field(pairs, "end")]
    elif _is_list(pairs.type):
        _check_twos(column, pairs, name)
        numbers = [pairs.flatten()]
    else:
        raise unusable
    if not all(pa.types.is_integer(n.type) for n in numbers):
        raise unusable
    try:
        values = pa.concat_arrays([n.cast(pa.int64()) for n in numbers])
    except pa.ArrowInvalid as error:
        raise InputError(f"column {name!r}: {error}") from None
    if len(numbers) == 2:
        values = values.take(pa.array(np.arange(len(values)).reshape(2, -1).T.reshape(-1)))
    offsets = np.zeros(len(column) + 1, np.int64)
    np.cumsum(2 * _lengths(column), out=offsets[1:])
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


def _is_list(t: pa.DataType) -> bool:
    return bool(pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t))


def _lengths(lists: pa.Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The lengths of lists, 0 for null."""
    lengths: np.ndarray[Any, np.dtype[np.int64]] = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    return lengths


def _check_twos(column: pa.Array, pairs: pa.Array, name: str) -> None:
    sizes = _lengths(pairs)
    wrong = np.flatnonzero(sizes != 2)
    if len(wrong) > 0:
        ends = np.cumsum(_lengths(column))
        row = int(np.searchsorted(ends, wrong[0], side="right"))
        at = int(wrong[0]) - (int(ends[row - 1]) if row > 0 else 0)
        raise InputError(f"row {row}: {name}[{at}] has {sizes[wrong[0]]} values; it must have two, a start and an end")
