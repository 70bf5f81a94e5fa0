"""What goes with a token that is taken out of a row: its values in every other column that has one for each token."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toedit._arrow import Batch, to_arrow, to_lists
from toedit._cut import from_offsets
from toedit._errors import InputError
from toedit._pieces import offsets_of

__all__ = ["follow", "refuse_places"]

# Columns that say where tokens stand, which are other places once one is gone.
_PLACES = ("position_ids", "seq_lengths")
# What tokens have that come back: they were real, and nothing protected them.
_CAME_BACK = {"attention_mask": 1, "special_tokens_mask": 0, "protected_mask": 0}


def refuse_places(names: list[str]) -> None:
    """Refuse a batch with columns that no dropped token can be taken out of.

    Raises:
        InputError: there is one.
    """
    for name in names:
        if name in _PLACES:
            raise InputError(f"column {name!r} cannot follow where tokens are dropped; make it after editing")


def follow(batch: Batch, container: Any, ids: pa.Array, kept: pa.Array, names: list[str]) -> dict[str, Any]:
    """The columns that have a value for each token, without those of dropped tokens, and with those of tokens that come back.

    Args:
        batch: the batch, opened, that container is.
        ids: its ids, before.
        kept: list<int32>, the indexes of each row's values that are left; -1 for a token that comes back.
        names: the columns to look at.

    Returns:
        By name, each list column whose rows are as long as those of the ids, in the container that it came in.

    Raises:
        InputError: one of them cannot follow.
    """
    columns = {name: batch.get(container, name) for name in names}
    rows = {name: lengths for name, values in columns.items() if (lengths := _row_lengths(values)) is not None}
    if not rows:  # most batches; what follows looks at every token
        return {}
    lengths = pc.list_value_length(ids)
    shorter = not lengths.cast(pa.int64()).equals(pc.list_value_length(kept).cast(pa.int64()))
    comes_back = pc.any(pc.less(kept.flatten(), 0)).as_py()
    if not (shorter or comes_back):
        return {}
    follows = [name for name, of_rows in rows.items() if of_rows == lengths.to_pylist()]
    for name in follows:
        if comes_back and name not in _CAME_BACK:
            raise InputError(
                f"column {name!r} has a value for each token, but the log has none for tokens that come back; take the "
                "column out"
            )
    return {name: _take(columns[name], kept, name, _CAME_BACK[name] if comes_back else None) for name in follows}


def _row_lengths(values: Any) -> list[int | None] | None:
    """The lengths of a column's rows; None where it has no lists."""
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
            return None
        lengths: list[int | None] = pc.list_value_length(values).to_pylist()
        return lengths
    if _is_polars(values):
        return _row_lengths(values.to_arrow())
    if not isinstance(values, list) or any(isinstance(row, (str, bytes, dict)) for row in values):
        return None
    try:
        return [len(row) for row in values]
    except TypeError:
        return None


def _is_polars(values: Any) -> bool:
    polars = sys.modules.get("polars")
    return polars is not None and isinstance(values, polars.Series)


def _take(values: Any, kept: pa.Array, name: str, fill: int | None) -> Any:
    if isinstance(values, list) and fill is None:
        return [_take_row(row, indexes) for row, indexes in zip(values, to_lists(kept), strict=True)]
    array, back = to_arrow(values, name)
    starts = array.offsets.to_numpy()
    # From indexes in the row to indexes in the values.
    lengths = pc.list_value_length(kept).to_numpy()
    in_row = kept.flatten().to_numpy()
    indexes = pa.array(in_row + np.repeat(starts[:-1], lengths), mask=in_row < 0)
    taken = array.values.take(indexes)
    if fill is not None:
        taken = taken.fill_null(pa.scalar(fill).cast(taken.type))
    return back(from_offsets(array.type, offsets_of(lengths), taken))


def _take_row(row: Any, indexes: list[int]) -> Any:
    if isinstance(row, (list, tuple)):
        return type(row)([row[i] for i in indexes])
    return row[indexes]  # NumPy and torch
