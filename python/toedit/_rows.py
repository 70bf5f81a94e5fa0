"""Rows and batches in the forms that datasets and loaders have: as the columns that editing reads, in parts, and back again.

A *record* is a row of a dataset or a batch of columns that a loader has collated: a mapping, or a tuple whose elements
are given names. Shifted targets are along the last axis of either, so both are treated alike.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from toedit._arrow import IDS, IGNORED, LABELS, PAIR_COLUMNS, RANGES, _is_torch, _numpy_to_torch, _torch_to_numpy
from toedit._errors import InputError

__all__ = ["TARGETS", "Fields", "Form", "SetupError", "count", "joined", "mapping", "part"]

Array = np.ndarray[Any, np.dtype[Any]]
Fields = str | int | Sequence[str | None] | Mapping[str, str] | Mapping[int, str]

TARGETS = ("aligned", "shifted")


class SetupError(InputError):
    """What cannot be used is not one row: no row could be."""


class Form:
    """How records are laid out.

    Args:
        fields: where a record has the columns that editing knows; None: it is a mapping that has them by their names.
        targets: "aligned": labels are the ids. "shifted": each label is the next id, the last one an id more.
        spent: names of the columns that only editing needs. Where there are protected ranges, so are they and the characters
            that they are of.

    Raises:
        InputError: an argument is none of these.
    """

    def __init__(self, fields: Fields | None, targets: str, spent: Collection[str]) -> None:
        if targets not in TARGETS:
            raise InputError(f"targets is {targets!r}; it must be one of {', '.join(map(repr, TARGETS))}")
        self.names = _names(fields)
        self.shifted = targets == "shifted"
        self.spent = frozenset(spent)

    @property
    def plain(self) -> bool:
        """Whether records have what editing knows as it knows it."""
        return not self.names and not self.shifted

    def gone(self, names: Iterable[str]) -> set[str]:
        """Those of a record's columns that only editing needs, and that do not go back."""
        names = set(names)
        return names & (self.spent | set(PAIR_COLUMNS) if RANGES in names else self.spent)

    def ids(self, record: Any) -> Any:
        """The ids of a record as it has them; None where it has none."""
        place = next((place for place, name in self.names.items() if name == IDS), IDS)
        if isinstance(record, Mapping):
            return record.get(place, record.get(IDS))
        if self.names and isinstance(record, (tuple, list)):
            return record[place] if isinstance(place, int) and place < len(record) else None
        return record

    def open(self, record: Any) -> dict[str, Any]:
        """The columns of a record by their names; with shifted targets, those of the ids that they and the inputs make.

        Raises:
            InputError: the record has another form.
        """
        columns = self._columns(record)
        return _lengthened(columns) if self.shifted else columns

    def close(self, record: Any, columns: Mapping[str, Any]) -> Any:
        """The record with its columns replaced, without the spent ones."""
        return self._replaced(record, _shortened(columns, self._columns(record)) if self.shifted else columns)

    def bare(self, record: Any) -> Any:
        """The record as it is, without the spent columns; a row that is no record at all as it is."""
        try:
            columns = self._columns(record)
        except InputError:
            return record
        return self._replaced(record, columns)

    def _columns(self, record: Any) -> dict[str, Any]:
        if isinstance(record, Mapping):
            pairs = [(str(self.names.get(place, place)), value) for place, value in record.items()]
        elif isinstance(record, (tuple, list)) and self.names:
            pairs = [(self._name(place), value) for place, value in enumerate(record)]
        else:
            wanted = f"with the fields {self.names}" if self.names else f"with {IDS!r} and {LABELS!r}, or fields must be given"
            raise InputError(f"a row is a {type(record).__name__}; it must be a mapping {wanted}")
        columns = dict(pairs)
        if len(columns) < len(pairs):
            raise SetupError(f"fields give two columns one name: {[name for name, _ in pairs]}")
        return columns

    def _name(self, place: int) -> str:
        return str(self.names.get(place, f"element {place}"))

    def _replaced(self, record: Any, columns: Mapping[str, Any]) -> Any:
        if isinstance(record, Mapping):
            places = {place: str(self.names.get(place, place)) for place in record}
            gone = self.gone(places.values())
            new = {place: columns[name] for place, name in places.items() if name in columns and name not in gone}
            return mapping(record, new, [place for place, name in places.items() if name in gone])
        names = [self._name(place) for place in range(len(record))]
        gone = self.gone(names)
        elements = [columns[name] for name in names if name not in gone]
        if hasattr(record, "_fields"):  # a named tuple, unless it lost an element
            return type(record)(*elements) if len(elements) == len(record) else tuple(elements)
        return type(record)(elements)


def _names(fields: Fields | None) -> dict[Any, str]:
    """Names by place: an index of tuples or a key of mappings."""
    if fields is None:
        return {}
    if isinstance(fields, (str, int)) and not isinstance(fields, bool):
        names: dict[Any, Any] = {fields: IDS}
    elif isinstance(fields, Mapping):
        names = dict(fields)
    elif isinstance(fields, Sequence):
        names = {place: name for place, name in enumerate(fields) if name is not None}
    else:
        names = {}
    if IDS not in names.values() or not all(isinstance(name, str) for name in names.values()):
        raise InputError(
            f"fields is {fields!r}; it must be the index or key of the ids, the names of a tuple's elements in order, such as "
            f"({IDS!r}, {LABELS!r}), or such a name for each index or key; one of the names is {IDS!r}"
        )
    return names


def mapping(record: Mapping[str, Any], new: Mapping[str, Any], gone: Collection[str]) -> Any:
    """A copy of its own type where it can be copied (transformers' BatchEncoding, say), else a dict."""
    copy = getattr(record, "copy", None)
    result: Any = copy() if callable(copy) else dict(record)
    for name, value in new.items():
        result[name] = value
    for name in gone:
        del result[name]
    return result


# Shifted targets

# What a column of token values goes on with behind the inputs' last token.
_NEXT: dict[str, Callable[[Array], Array]] = {
    "special_tokens_mask": np.zeros_like,
    "protected_mask": np.zeros_like,
    "assistant_masks": lambda last: last,
    "document_ids": lambda last: last,
    "position_ids": lambda last: last + 1,
}


def _lengthened(columns: dict[str, Any]) -> dict[str, Any]:
    """The ids that inputs and targets make together, one longer than either, and their labels.

    Where the last target is masked its id is not known: there the last place is padding. The first id is nobody's target;
    it is context where the second one is.
    """
    for name in (IDS, LABELS):
        if name not in columns:
            raise InputError(f"a row has no {name!r}, only {list(columns)}; shifted targets need both {IDS!r} and {LABELS!r}")
    inputs, targets = _array(columns[IDS], IDS), _array(columns[LABELS], LABELS)
    if inputs.shape != targets.shape:
        raise InputError(f"a row has {inputs.shape[-1]} inputs and {targets.shape[-1]} targets; it must have as many")
    last = targets[..., -1:].copy()
    known = last != IGNORED
    last[~known] = 0
    first = inputs[..., :1].astype(targets.dtype)
    masked = targets[..., :1] == IGNORED
    if masked.any():
        first[masked] = IGNORED
    mask = (
        _array(columns["attention_mask"], "attention_mask") if "attention_mask" in columns else np.ones_like(inputs, np.int64)
    )
    longer = {
        IDS: _behind(inputs, last),
        LABELS: np.concatenate([first, targets], -1),
        "attention_mask": _behind(mask, known),
    }
    for name, following in _NEXT.items():
        if name in columns:
            values = _array(columns[name], name)
            longer[name] = _behind(values, following(values[..., -1:]))
    return {**columns, **longer}


def _shortened(columns: Mapping[str, Any], originals: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs and targets out of edited ids and labels, in the kinds that the originals have."""
    shorter = dict(columns)
    for name in (IDS, "attention_mask", *_NEXT):
        if name in originals:
            shorter[name] = _like(columns[name][..., :-1], originals[name])
    shorter[LABELS] = _like(columns[LABELS][..., 1:], originals[LABELS])
    return shorter


def _behind(values: Array, last: Array) -> Array:
    return np.concatenate([values, last.astype(values.dtype)], -1)


def _array(values: Any, name: str) -> Array:
    try:
        array = _torch_to_numpy(values) if _is_torch(values) else np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise InputError(f"{name} cannot be read: {error}") from None
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim == 0 or array.dtype.kind not in "iub":
        raise InputError(f"{name} is an array of {array.dtype} with {array.ndim} dimensions; it must be integers")
    return array


def _like(array: Array, original: Any) -> Any:
    if _is_torch(original):
        return _numpy_to_torch(np.ascontiguousarray(array), original).to(original.dtype)
    if isinstance(original, np.ndarray):
        return array.astype(original.dtype)
    values = array.tolist()
    return tuple(values) if isinstance(original, tuple) else values


# Parts of batches


def count(batch: Any) -> int | None:
    """How many rows a batch has, where it is of a kind that can be taken apart."""
    if isinstance(batch, Mapping):
        ids = batch.get(IDS)
        return None if ids is None else count(ids)
    if isinstance(batch, pa.StructArray):
        return len(batch)
    if isinstance(batch, (pa.Table, pa.RecordBatch)):
        return int(batch.num_rows)
    return len(batch) if _by_rows(batch) else None


def _by_rows(values: Any) -> bool:
    if _is_torch(values) or isinstance(values, np.ndarray):
        return bool(values.ndim)
    return isinstance(values, (pa.Array, pa.ChunkedArray)) or (
        isinstance(values, Sequence) and not isinstance(values, (str, bytes))
    )


def part(batch: Any, start: int, stop: int) -> Any:
    """Rows start to stop - 1 of a batch."""
    if isinstance(batch, Mapping):
        rows = count(batch)
        return {name: v[start:stop] if _by_rows(v) and len(v) == rows else v for name, v in batch.items()}
    if isinstance(batch, (pa.Table, pa.RecordBatch, pa.Array, pa.ChunkedArray)):
        return batch.slice(start, stop - start)
    return batch[start:stop]


def joined(batch: Any, parts: list[Any]) -> Any:
    """Parts of a batch as one, in its container."""
    if isinstance(batch, Mapping):
        rows = count(batch)
        by_rows = [name for name in parts[0] if _by_rows(batch[name]) and len(batch[name]) == rows]
        gone = [name for name in batch if name not in parts[0]]
        return mapping(batch, {name: joined(batch[name], [p[name] for p in parts]) for name in by_rows}, gone)
    if _is_torch(batch):
        return sys.modules["torch"].cat(parts)
    if isinstance(batch, np.ndarray):
        return np.concatenate(parts)
    if isinstance(batch, pa.Table):
        return pa.concat_tables(parts)
    if isinstance(batch, pa.RecordBatch):
        return pa.Table.from_batches(parts).combine_chunks().to_batches()[0]
    if isinstance(batch, pa.ChunkedArray):
        return pa.chunked_array([chunk for p in parts for chunk in p.chunks], type=parts[0].type)
    if isinstance(batch, pa.Array):
        return pa.concat_arrays(parts)
    return [row for rows in parts for row in rows]
