"""Edited rows in the batch that a collate function made of them, and the labels that belong there.

A collate function that makes labels takes the edited ids for them. Where labels are to be others, each row is looked up in
its output: in a row of its own, padded on either side, or one behind the other in fewer rows (flattened, packed).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from toedit._arrow import IDS, IGNORED, LABELS, _is_torch, _numpy_to_torch, _torch_to_numpy
from toedit._errors import InputError

__all__ = ["set_labels"]

Array = np.ndarray[Any, np.dtype[Any]]


def _refused(what: str, row: int | None = None) -> InputError:
    where = "" if row is None else f"row {row}: "
    return InputError(
        f"{where}collate_fn returned {what}, so the policy's labels cannot be set; it must return a mapping (or a list of "
        "them) with each row's input_ids as it got them, in order, and labels beside them. Truncate rows before they are "
        "scored, and shift labels or mask tokens afterwards; or give the rows labels, edit them with EditedDataset and pass "
        "those labels on"
    )


def set_labels(batch: Any, ids: pa.Array, labels: pa.Array) -> Any:
    """Set the labels of a collated batch.

    Args:
        batch: what a collate function returned for edited rows: a mapping with ``input_ids`` and ``labels`` (torch, NumPy or
            lists, in one or two dimensions), or a list of such mappings. Its labels are replaced in it; the arrays that it
            holds stay as they are.
        ids: the edited rows, lists of integers, as the collate function got them.
        labels: what their labels are to be, lists of as many integers.

    Returns:
        The batch. A label of -100 stays what it is; one that is the row's id becomes the row's label.

    Raises:
        InputError: a row is not there as it was, or a label is neither -100, nor the row's id, nor the row's label.
    """
    parts = _parts(batch)
    outputs = [_Output.of(part) for part in parts]
    out_ids = [row for output in outputs for row in output.ids]
    out_labels = [row for output in outputs for row in output.labels]
    masks = [row for output in outputs for row in output.masks]
    rows, wanted = _rows_of(ids), _rows_of(labels)
    places = _places(rows, wanted, out_ids, masks)
    for n, (place, row, want) in enumerate(zip(places, rows, wanted, strict=True)):
        at = slice(place.start, place.start + len(row))
        label = out_labels[place.row][at]
        follows = label == row
        strange = np.flatnonzero(~(follows | (label == want) | (label == IGNORED)))
        if len(strange):
            i = int(strange[0])
            raise _refused(f"the label {label[i]} for its token {i}, which is neither {IGNORED} nor the token's id {row[i]}", n)
        label[follows] = want[follows]
    for part, output in zip(parts, outputs, strict=True):
        part[LABELS] = output.back()
    return batch


def _parts(batch: Any) -> list[MutableMapping[str, Any]]:
    """The mappings that a batch consists of."""
    parts = [batch] if isinstance(batch, Mapping) else batch
    if not isinstance(parts, Sequence) or not all(isinstance(part, MutableMapping) for part in parts):
        raise _refused(f"a {type(batch).__name__}")
    return list(parts)


@dataclass
class _Output:
    """A mapping that a collate function returned: its rows, and the way back for its labels, which may be written to."""

    ids: list[Array]
    labels: list[Array]
    masks: list[Array | None]
    back: Callable[[], Any]

    @classmethod
    def of(cls, part: Mapping[str, Any]) -> _Output:
        for name in (IDS, LABELS):
            if part.get(name) is None:
                raise _refused(f"no {name!r}, only {list(part)}")
        ids, _ = _open(part[IDS], IDS)
        labels, back = _open(part[LABELS], LABELS)
        if [len(row) for row in labels] != [len(row) for row in ids]:
            raise _refused("labels of another shape than its input_ids")
        return cls(ids, labels, _masks(part, ids), back)


def _masks(part: Mapping[str, Any], ids: list[Array]) -> list[Array | None]:
    """The attention mask of each row, where it is one value a token."""
    try:
        masks, _ = _open(part["attention_mask"], "attention_mask")
    except (KeyError, InputError):  # none, or of another kind
        masks = []
    if [len(row) for row in masks] != [len(row) for row in ids]:
        return [None] * len(ids)
    return list(masks)


def _open(values: Any, name: str) -> tuple[list[Array], Callable[[], Any]]:
    """The rows of a column of integers, which may be written to, and what makes a column of the same kind of them."""
    if _is_torch(values):
        rows, back = _open(_torch_to_numpy(values), name)
        return rows, lambda: _numpy_to_torch(back(), values)
    if isinstance(values, np.ndarray) and values.ndim in (1, 2) and values.dtype.kind in "iub":
        array = values.copy()
        return list(array) if array.ndim == 2 else [array], lambda: array
    if isinstance(values, Sequence) and not isinstance(values, (str, bytes)):
        if all(isinstance(value, (int, np.integer)) for value in values):
            array = np.array(values, np.int64)
            return [array], array.tolist
        parts = [_open(value, name) for value in values]
        return [row for rows, _ in parts for row in rows], lambda: [back() for _, back in parts]
    raise _refused(f"{name} that are neither torch, nor NumPy, nor lists of integers")


def _rows_of(lists: pa.Array) -> list[Array]:
    values = lists.flatten().to_numpy(zero_copy_only=False)
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    return np.split(values, np.cumsum(lengths)[:-1]) if len(lists) else []


@dataclass
class _Place:
    """Where a row lies in a collate function's output."""

    row: int
    start: int


def _places(rows: list[Array], wanted: list[Array], out: list[Array], masks: list[Array | None]) -> list[_Place]:
    if len(out) != len(rows):
        return _places_in_line(rows, out)
    return [_Place(n, _start(n, *row)) for n, row in enumerate(zip(rows, wanted, out, masks, strict=True))]


def _start(n: int, row: Array, want: Array, out: Array, mask: Array | None) -> int:
    """Where row n lies in its row of the output."""
    most = len(out) - len(row)
    if most < 0:
        raise _refused(f"{len(out)} input_ids for its {len(row)} tokens", n)
    if len(row) == 0:
        return 0
    starts = [int(s) for s in np.flatnonzero(out[: most + 1] == row[0]) if np.array_equal(out[s : s + len(row)], row)]
    if len(starts) > 1 and mask is not None:
        # Padding that is equal to tokens of the row.
        starts = [s for s in starts if not mask[:s].any() and not mask[s + len(row) :].any()] or starts
    if not starts:
        padded_left = _first_difference(row, out[most:])
        i = max(_first_difference(row, out), padded_left)
        start = most if i == padded_left else 0
        raise _other_id(n, row, i, out[start + i])
    if len(starts) > 1 and not np.array_equal(row, want):
        raise _refused("its tokens in several places, and no attention_mask to tell them from padding", n)
    return starts[0]


def _places_in_line(rows: list[Array], out: list[Array]) -> list[_Place]:
    """The places of rows that lie one behind the other, and go on in the next row of the output where one does not fit."""
    places = []
    at, start = 0, 0
    for n, row in enumerate(rows):
        if at < len(out) and len(row) > len(out[at]) - start and start > 0:
            at, start = at + 1, 0
        if at >= len(out) or len(row) > len(out[at]):
            raise _refused(f"{len(out)} rows of input_ids for {len(rows)}, and in them no place for its {len(row)} tokens", n)
        i = _first_difference(row, out[at][start:])
        if i < len(row) and start > 0 and at + 1 < len(out) and np.array_equal(out[at + 1][: len(row)], row):
            at, start, i = at + 1, 0, len(row)  # what is left of the row of the output is padding
        if i < len(row):
            raise _other_id(n, row, i, out[at][start + i])
        places.append(_Place(at, start))
        start += len(row)
    return places


def _first_difference(row: Array, out: Array) -> int:
    """The first index at which a row is not what the output begins with; its length where there is none."""
    same = row == out[: len(row)]
    return len(row) if same.all() else int(np.argmin(same))


def _other_id(n: int, row: Array, i: int, found: int) -> InputError:
    return _refused(f"the id {found} where the edited row has {row[i]} (its token {i} of {len(row)})", n)
