"""Pieces of documents: ids, what there is for each token beside them, and scores, cut together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toedit._arrow import IDS, SCORES_TYPE
from toedit._errors import InputError, ScoresError
from toedit._pieces import Ints, Pieces, offsets_of

__all__ = ["check_lengths", "cut_lists", "cut_scores", "from_offsets", "group", "join", "lists"]

# The hashes of rows of ids, as scores carry them.
Hash = Callable[[pa.Array], pa.UInt64Array]


def is_lists(t: pa.DataType) -> bool:
    return bool(pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t))


def lists(column: pa.Array | pa.ChunkedArray, name: str) -> pa.ListArray | pa.LargeListArray:
    """A column of lists, in one piece, none of them null.

    Raises:
        InputError: it holds something else.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not is_lists(array.type):
        raise InputError(f"column {name!r} holds {array.type}; it must hold lists")
    if array.null_count:
        raise InputError(f"row {array.is_null().index(True).as_py()}: {name} is null; give it an empty list")
    return array.cast(pa.list_(array.type.value_type)) if pa.types.is_fixed_size_list(array.type) else array


def _lengths(array: pa.Array) -> Ints:
    lengths: Ints = pc.list_value_length(array).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths


def cut_lists(array: Any, pieces: Pieces) -> Any:
    """The pieces of a column with a value for each token, in its type."""
    starts = array.offsets.to_numpy()[:-1].astype(np.int64)[pieces.row]
    values = array.values.take(pa.array(_ranges(starts + pieces.start, starts + pieces.end)))
    return from_offsets(array.type, offsets_of(pieces.lengths), values)


def from_offsets(t: pa.DataType, offsets: Ints, values: pa.Array) -> pa.Array:
    """Lists of a type out of values, and where each begins and ends in them."""
    kind, width = (pa.LargeListArray, np.int64) if pa.types.is_large_list(t) else (pa.ListArray, np.int32)
    if offsets[-1] > np.iinfo(width).max:
        raise InputError(f"a batch with {offsets[-1]} values is too large for list columns; use a smaller batch_size")
    return kind.from_arrays(pa.array(offsets.astype(width)), values, type=t)


def _ranges(low: Ints, high: Ints) -> Ints:
    """The integers from each low to its high, one range behind the other."""
    offsets = offsets_of(high - low)
    return np.arange(offsets[-1]) + np.repeat(low - offsets[:-1], high - low)


def cut_scores(scores: pa.StructArray, ids: pa.Array, pieces: Pieces, hash_of: Hash) -> pa.StructArray:
    """The scores of pieces of documents, each with the hash of its own ids; ln P and top-k stay the whole document's.

    Args:
        scores: of :data:`toedit.SCORES_TYPE`, one for each row of *ids*.
        ids: the documents.
        pieces: what is wanted of them.
        hash_of: hashes rows of ids.

    Raises:
        ScoresError: scores are not those of their row's ids; a piece of them would look as if they were.
    """
    if scores.null_count:
        raise ScoresError(f"row {scores.is_null().index(True).as_py()}: it has no scores; make them with Prior.score")
    hashes, lengths = scores.field("ids_hash"), _lengths(ids)
    logp, pos, top_ids, top_logp = (scores.field(name) for name in ("logp", "topk_pos", "topk_ids", "topk_logp"))
    k = scores.field("k").to_numpy(zero_copy_only=False).astype(np.int64)
    wrong = (_lengths(logp) != lengths) | (hashes.to_numpy(zero_copy_only=False) != hash_of(ids).to_numpy())
    if wrong.any():
        raise ScoresError(
            f"row {int(np.argmax(wrong))}: its scores are of other ids; cut rows before they are padded or changed, or score "
            "them again"
        )
    wrong = (_lengths(top_ids) != _lengths(pos) * k) | (_lengths(top_logp) != _lengths(pos) * k)
    if wrong.any():
        raise ScoresError(f"row {int(np.argmax(wrong))}: its scores do not have k values for each position; score again")
    # Positions counted through all rows ascend.
    tokens, positions = offsets_of(lengths), offsets_of(_lengths(pos))
    through = pos.flatten().to_numpy().astype(np.int64) + np.repeat(tokens[:-1], np.diff(positions))
    low = np.searchsorted(through, tokens[pieces.row] + pieces.start) - positions[pieces.row]
    high = np.searchsorted(through, tokens[pieces.row] + pieces.end) - positions[pieces.row]
    at = Pieces(pieces.row, low, high)
    top = Pieces(pieces.row, low * k[pieces.row], high * k[pieces.row])
    cut_pos = cut_lists(pos, at)
    moved = cut_pos.values.to_numpy() - np.repeat(pieces.start, at.lengths).astype(np.int32)
    rows = pa.array(pieces.row)
    fields = [
        cut_lists(logp, pieces),
        pa.ListArray.from_arrays(cut_pos.offsets, pa.array(moved), type=pos.type),
        cut_lists(top_ids, top),
        cut_lists(top_logp, top),
        scores.field("k").take(rows),
        hash_of(cut_lists(ids, pieces)),
        scores.field("prior").take(rows),
    ]
    return pa.StructArray.from_arrays(fields, fields=list(SCORES_TYPE))


def join(array: pa.Array, offsets: Ints) -> pa.Array:
    """Rows of a column with a value for each token, one behind the other: row i of the result is made of rows ``offsets[i]``
    to ``offsets[i + 1]``."""
    return from_offsets(array.type, offsets_of(_lengths(array))[offsets], array.flatten())


def group(array: pa.Array, offsets: Ints) -> pa.ListArray:
    """Lists of the values of any column: row i of the result has values ``offsets[i]`` to ``offsets[i + 1]``."""
    return from_offsets(pa.list_(array.type), offsets, array)


def check_lengths(name: str, array: pa.Array, ids: pa.Array) -> None:
    """Raise unless a column has a value for each token."""
    got, want = _lengths(array), _lengths(ids)
    if (wrong := got != want).any():
        row = int(np.argmax(wrong))
        raise InputError(f"row {row}: {name} has {got[row]} values, but {IDS} has {want[row]}")
