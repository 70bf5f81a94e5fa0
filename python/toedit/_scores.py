"""Scores from elsewhere: the scores column out of arrays that another program made."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from toedit import _arrow, _bridge
from toedit._arrow import IDS, SCORES, SCORES_TYPE
from toedit._errors import InputError
from toedit.prior import Prior

__all__ = ["Rows", "Top", "check_top", "column", "hash_rows", "inside", "prior_of", "read_rows", "scores", "scores_to_bytes"]

_MASK = "attention_mask"
_NULL_HINT = "a token that was not scored is null (None; in NumPy numpy.ma.masked_invalid(logp))"

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[Any]
Words = npt.NDArray[np.uint64]


def scores(
    input_ids: Any,
    logp: Any,
    topk_pos: Any,
    topk_ids: Any,
    topk_logp: Any,
    *,
    prior: Prior,
    attention_mask: Any = None,
    k: int | None = None,
) -> pa.StructArray:
    """The scores column out of log-probabilities that another program computed with the prior's model.

    Every argument has a row for each document, as a list of lists, a NumPy or torch array, a list of arrays, or Arrow. All
    are about the rows as they are in *input_ids*, padding included; the padding is then left out.

    Args:
        input_ids: the token ids, integers [tokens] a row.
        logp: ln P(x_i given x_<i), [tokens] a row, at most 0. A token that was not scored is null: None, or masked in a
            ``numpy.ma.MaskedArray``. NaN is an error.
        topk_pos: the positions whose top-k is given, ascending integers a row; None where it is given at every position,
            as ``torch.topk`` over all of them does (those that were not scored are left out).
        topk_ids: the ids of the k most probable tokens at each of them: [positions, k] a row, or flat.
        topk_logp: their ln P, in the same shape. Each is rounded once to the nearest float16 value. What does not come in
            order (most probable first, ties by lower id) is sorted by the values as they are given.
        prior: the prior whose model it was; its vocabulary and fingerprint are used, and the rows have to be scored by its
            rules (BOS id in front or not, context, windows).
        attention_mask: 0 or False where *input_ids* is padding.
        k: needed only where it cannot be told, because no position is given.

    Returns:
        A struct column of :data:`toedit.SCORES_TYPE`.

    Raises:
        InputError: lengths do not fit, a value is out of its range; the message names row, position and value.
    """
    prior_of(prior)
    given = {IDS: _arrow.to_arrow(input_ids, IDS)[0]}
    if attention_mask is not None:
        given[_MASK] = _arrow.to_arrow(attention_mask, _MASK)[0]
    rows = read_rows(prior, given)
    offsets = _offsets(pc.list_value_length(given[IDS]))
    real = np.ones(offsets[-1], dtype=bool)
    if attention_mask is not None:
        real = np.asarray(given[_MASK].flatten().cast(pa.bool_()).to_numpy(zero_copy_only=False))
    scored, valid = _logp(_Ragged.of(logp, "logp"), offsets, real)
    ids = _Ragged.of(topk_ids, "topk_ids", integers=True)
    values = _Ragged.of(topk_logp, "topk_logp")
    if topk_pos is None:
        at = Ragged(np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets)), offsets)
    else:
        pos = _Ragged.of(topk_pos, "topk_pos", integers=True)
        at = Ragged(pos.whole().astype(np.int64), pos.offsets)
        _check_rows(at.offsets, offsets, "topk_pos")
    k = _k(k, at.offsets, ids, values)
    ids_k, values_k = ids.whole().reshape(-1, k), values.whole().reshape(-1, k)
    flat = at.flat + np.repeat(offsets[:-1], np.diff(at.offsets))
    if topk_pos is None:
        wanted = real & valid
        ids_k, values_k, flat = ids_k[wanted], values_k[wanted], flat[wanted]
        at = Ragged(at.flat[wanted], _selected(offsets, wanted))
    else:
        _check_positions(at, offsets, real, valid)
    check_top(Top(at.flat, at.offsets, ids_k, values_k), prior.describe()["vocab_size"])
    rank = np.concatenate([[0], np.cumsum(real)])  # how many real tokens stand before each position
    first = np.repeat(offsets[:-1], np.diff(at.offsets))
    top = Top(rank[flat] - rank[first], at.offsets, ids_k, values_k)
    return column(rows, scored[real], valid[real], top, prior)


def scores_to_bytes(scores: pa.StructArray | pa.ChunkedArray) -> list[bytes]:
    """Scores for formats that keep bytes beside a document: shards of mosaicml-streaming and webdataset, key-value stores.

    A row's ``scores`` may be such bytes wherever it may be a struct; nothing has to read them back.

    Args:
        scores: what :meth:`Prior.score` or :func:`toedit.scores` made; or, of packed rows, lists with one for each document.

    Returns:
        Of each row an Arrow IPC stream: one record batch with one row and one column, ``scores``. About 1.5 kB more than the
        values, which compression takes away where a shard holds many.

    Raises:
        InputError, ScoresError: it is no such column.
    """
    chunks = scores.chunks if isinstance(scores, pa.ChunkedArray) else [scores]
    result = []
    for chunk in chunks:
        if not isinstance(chunk, pa.Array):
            raise InputError(f"scores are a {type(chunk).__name__}; they must be the column that Prior.score returns")
        if chunk.type != pa.list_(SCORES_TYPE):
            chunk = _arrow.scores_column(chunk)
        for n in range(len(chunk)):
            sink = pa.BufferOutputStream()
            row = pa.RecordBatch.from_arrays([chunk.slice(n, 1)], [SCORES])
            with pa.ipc.new_stream(sink, row.schema) as writer:
                writer.write_batch(row)
            result.append(sink.getvalue().to_pybytes())
    return result


def prior_of(prior: Any) -> Prior:
    """*prior*, if it is one."""
    if not isinstance(prior, Prior):
        raise InputError(f"prior is a {type(prior).__name__}; it must be the toedit.Prior whose model made the scores")
    return prior


def inside(logp: Numbers, ranges: list[tuple[float, float]]) -> Flags:
    """Where P lies in one of the ranges, decided as bands are: in float64 from the stored ln P."""
    found = np.zeros(len(logp), dtype=bool)
    with np.errstate(divide="ignore"):
        for low, high in ranges:
            found |= (logp.astype(np.float64) >= np.log(low)) & (logp.astype(np.float64) <= np.log(high))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# the column


@dataclass(frozen=True)
class Rows:
    """Rows as scoring sees them: their real ``ids`` (flat, row i is ``ids[offsets[i]:offsets[i + 1]]``), the document
    ``hashes``, and the ``windows`` that the prior reads them in, each (row, start, first, end, prefix)."""

    ids: npt.NDArray[np.int32]
    offsets: Ints
    hashes: pa.UInt64Array
    windows: Ints


@dataclass(frozen=True)
class Top:
    """Stored top-k: ``pos`` [M] in its row, ``offsets`` [rows + 1] of the rows in it, ``ids`` and ``logp`` [M, k]."""

    pos: Ints
    offsets: Ints
    ids: Numbers
    logp: Numbers


def read_rows(prior: Prior, columns: dict[str, pa.Array], split_after: int | None = None) -> Rows:
    """What the native library makes of a batch's ids: real tokens, hashes, windows.

    Raises:
        InputError: as :meth:`Prior.score` does.
    """
    given, out = _bridge.ArrowIn(columns), _bridge.ArrowOut()
    options = json.dumps({} if split_after is None else {"split_after": split_after})
    _bridge.call("ReadRows", prior.handle, given.array, given.schema, options, out.array, out.schema)
    read = out.take()
    ids, windows = read.column(IDS), read.column("windows")
    table = windows.flatten().to_numpy().reshape(-1, 4).astype(np.int64)
    row = np.repeat(np.arange(len(ids)), np.diff(_offsets(pc.list_value_length(windows))) // 4)
    return Rows(
        ids.flatten().to_numpy(), _offsets(pc.list_value_length(ids)), read.column("ids_hash"), np.column_stack([row, table])
    )


def column(rows: Rows, logp: Numbers, valid: Flags, top: Top, prior: Prior) -> pa.StructArray:
    """The column of values that were checked; *logp* and *valid* are as long as ``rows.ids``."""
    n, k = len(rows.offsets) - 1, top.ids.shape[1]
    largest = max(len(logp), top.ids.size)
    if largest >= 2**31:
        raise InputError(f"a batch with {largest} values is too large for list columns; build fewer rows at a time")
    ids, values = _in_order(top.ids, top.logp)
    with np.errstate(over="ignore"):  # below float16's range: no chance at all
        halves = values.astype(np.float16).astype(np.float32)
    fields = [
        _list(rows.offsets, pa.array(np.where(valid, logp, 0).astype(np.float32), mask=None if valid.all() else ~valid)),
        _list(top.offsets, pa.array(top.pos.astype(np.int32))),
        _list(top.offsets * k, pa.array(ids.astype(np.int32).reshape(-1))),
        _list(top.offsets * k, pa.array(halves.reshape(-1))),
        pa.repeat(pa.scalar(k, pa.int32()), n),
        rows.hashes,
        pa.repeat(pa.scalar(prior.fingerprint), n),
    ]
    return pa.StructArray.from_arrays(fields, fields=list(SCORES_TYPE))


def _list(offsets: Ints, values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def _in_order(ids: Numbers, values: Numbers) -> tuple[Numbers, Numbers]:
    """Each row of k most probable first, ties by lower id, by values that are not rounded yet."""
    falls = (values[:, 1:] < values[:, :-1]) | ((values[:, 1:] == values[:, :-1]) & (ids[:, 1:] > ids[:, :-1]))
    wrong = ~falls.all(axis=1)
    if wrong.any():
        ids, values = ids.copy(), values.copy()
        order = np.lexsort((ids[wrong], -values[wrong]), axis=-1)
        ids[wrong] = np.take_along_axis(ids[wrong], order, axis=1)
        values[wrong] = np.take_along_axis(values[wrong], order, axis=1)
    return ids, values


# ---------------------------------------------------------------------------------------------------------------------
# checks


def _logp(given: _Ragged, offsets: Ints, real: Flags) -> tuple[Numbers, Flags]:
    _check_rows(given.offsets, offsets, "logp")
    lengths, ids = np.diff(given.offsets), np.diff(offsets)
    if (lengths != ids).any():
        row = int(np.argmax(lengths != ids))
        raise InputError(
            f"row {row}: logp has {lengths[row]} values for {ids[row]} ids; logp[i] is ln P of input_ids[i] given those before "
            f"it, and {_NULL_HINT}"
        )
    valid = real if given.valid is None else given.valid & real
    logp = np.where(valid, given.flat, 0)
    if (wrong := np.isnan(logp)).any():
        row, at = _first(wrong, offsets)
        raise InputError(f"row {row}: logp[{at}] is NaN; {_NULL_HINT}")
    if (wrong := logp > 0).any():
        row, at = _first(wrong, offsets)
        raise InputError(
            f"row {row}: logp[{at}] is {logp[wrong][0]:g}, but a log-probability is at most 0; where it is an error of "
            "rounding, clip it with numpy.minimum(logp, 0)"
        )
    return logp, valid


def _k(asked: int | None, at: Ints, ids: _Ragged, values: _Ragged) -> int:
    """k, equal for all positions, and as many ids and values as it asks for in every row."""
    for name, given in (("topk_ids", ids), ("topk_logp", values)):
        _check_rows(given.offsets, at, name)
    if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int) or asked < 1):
        raise InputError(f"k is {asked!r}; it must be an integer of at least 1, or None")
    if ids.k is not None and values.k is not None and ids.k != values.k:
        raise InputError(f"topk_ids has {ids.k} ids at a position, but topk_logp {values.k} values")
    k = asked or ids.k or values.k
    positions, total = np.diff(at), int(at[-1])
    if not k:
        if not total:
            raise InputError("k cannot be told, since no position has a top-k; pass k=")
        row = int(np.argmax(positions > 0))
        k = max(int(np.diff(ids.offsets)[row]) // int(positions[row]), 1)
    for name, given in (("topk_ids", ids), ("topk_logp", values)):
        lengths = np.diff(given.offsets)
        if (wrong := lengths != positions * k).any():
            row = int(np.argmax(wrong))
            raise InputError(
                f"row {row}: {name} has {lengths[row]} values for {positions[row]} positions of k = {k}; k must be the same "
                "everywhere"
            )
    return k


def _check_positions(at: Ragged, offsets: Ints, real: Flags, valid: Flags) -> None:
    lengths = np.repeat(np.diff(offsets), np.diff(at.offsets))
    outside = (at.flat < 0) | (at.flat >= lengths)
    if outside.any():
        row, i = _first(outside, at.offsets)
        raise InputError(f"row {row}: topk_pos[{i}] is {at.flat[outside][0]}, but the row has {lengths[outside][0]} ids")
    falls = np.concatenate([[False], at.flat[1:] <= at.flat[:-1]])[: len(at.flat)]
    falls[at.offsets[:-1][at.offsets[:-1] < len(falls)]] = False  # a row's first position follows nothing
    if falls.any():
        row, i = _first(falls, at.offsets)
        before, here = at.flat[at.offsets[row] + i - 1 : at.offsets[row] + i + 1]
        raise InputError(f"row {row}: topk_pos[{i}] is {here} after {before}; positions must ascend")
    flat = at.flat + np.repeat(offsets[:-1], np.diff(at.offsets))
    for wrong, what in ((~real[flat], "padding"), (~valid[flat], "a token whose logp is null")):
        if wrong.any():
            row, i = _first(wrong, at.offsets)
            raise InputError(f"row {row}: topk_pos[{i}] is {at.flat[wrong][0]}, which is {what}; leave it out")


def check_top(top: Top, vocabulary: int) -> None:
    """Raise unless every top-k is one: ids of the vocabulary, each once, and log-probabilities."""
    ids, values = top.ids, top.logp

    def refuse(wrong: Flags, what: str) -> None:
        if wrong.any():
            place = int(np.argmax(wrong.any(axis=1)))
            row, _ = _first(np.arange(len(wrong)) == place, top.offsets)
            j = int(np.argmax(wrong[place]))
            raise InputError(f"row {row}: " + what.format(at=top.pos[place], j=j, id=ids[place, j], value=values[place, j]))

    refuse(
        (ids < 0) | (ids >= vocabulary),
        f"topk_ids has id {{id}} at position {{at}}, but the prior's vocabulary is 0 to {vocabulary - 1}",
    )
    order = np.argsort(ids, axis=1)
    ordered = np.take_along_axis(ids, order, axis=1)
    twice = np.zeros(ids.shape, dtype=bool)
    np.put_along_axis(twice, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    refuse(twice, "topk_ids has id {id} twice at position {at}")
    refuse(np.isnan(values), "topk_logp is NaN for id {id} at position {at}")
    refuse(values > 0, "topk_logp is {value:g} for id {id} at position {at}, but a log-probability is at most 0")


def _check_rows(got: Ints, want: Ints, name: str) -> None:
    if len(got) != len(want):
        raise InputError(f"{name} has {len(got) - 1} rows, but {IDS} has {len(want) - 1}")


def _first(wrong: Flags, offsets: Ints) -> tuple[int, int]:
    """The row of the first flag that is set, and its index there."""
    at = int(np.argmax(wrong))
    row = int(np.searchsorted(offsets, at, side="right")) - 1
    return row, at - int(offsets[row])


# ---------------------------------------------------------------------------------------------------------------------
# rows of numbers of every kind


@dataclass(frozen=True)
class Ragged:
    """Rows one behind the other: row i is ``flat[offsets[i]:offsets[i + 1]]``."""

    flat: Numbers
    offsets: Ints


@dataclass(frozen=True)
class _Ragged(Ragged):
    """The same as it was given: ``valid`` where not all are there, ``k`` where each row was a table of k columns."""

    name: str
    valid: Flags | None = None
    k: int | None = None

    def whole(self) -> Numbers:
        """The values, none of which may be null."""
        if self.valid is not None and not self.valid.all():
            row, at = _first(~self.valid, self.offsets)
            raise InputError(f"row {row}: {self.name}[{at}] is null; every value is needed")
        return self.flat

    @classmethod
    def of(cls, values: Any, name: str, *, integers: bool = False) -> _Ragged:
        values = _numpy(values)
        rows = list(values) if isinstance(values, Sequence) and not isinstance(values, (str, bytes)) else None
        if isinstance(values, np.ndarray) and values.dtype != object:
            found = cls._of_array(values, name)
        elif rows and all(isinstance(_numpy(row), np.ndarray) for row in rows):
            found = cls._of_arrays([_numpy(row) for row in rows], name)
        else:
            found = cls._of_arrow(_arrow.to_arrow(values, name)[0], name)
        kinds = "iu" if integers else "iuf"
        if found.flat.size and found.flat.dtype.kind not in kinds:
            raise InputError(f"{name} holds {found.flat.dtype}; it must hold {'integers' if integers else 'numbers'}")
        if found.flat.dtype.kind not in kinds:
            found = cls(found.flat.astype(np.int64 if integers else np.float32), found.offsets, name, found.valid, found.k)
        return found

    @classmethod
    def _of_array(cls, array: Numbers, name: str) -> _Ragged:
        if array.ndim not in (2, 3):
            raise InputError(f"{name} has {array.ndim} dimensions; it must have two, or three with the last of k")
        k = array.shape[2] if array.ndim == 3 else None
        offsets = np.arange(len(array) + 1, dtype=np.int64) * int(np.prod(array.shape[1:]))
        valid = ~np.ma.getmaskarray(array).reshape(-1) if isinstance(array, np.ma.MaskedArray) else None
        return cls(np.asarray(array).reshape(-1), offsets, name, valid, k)

    @classmethod
    def _of_arrays(cls, rows: list[Numbers], name: str) -> _Ragged:
        tables = {row.shape[1] for row in rows if row.ndim == 2}
        if len(tables) > 1 or any(row.ndim not in (1, 2) for row in rows):
            raise InputError(f"{name} has rows of the shapes {sorted({row.shape for row in rows})}; k must be equal everywhere")
        offsets = np.concatenate([[0], np.cumsum([row.size for row in rows])]).astype(np.int64)
        valid = None
        if any(isinstance(row, np.ma.MaskedArray) for row in rows):
            valid = np.concatenate([~np.ma.getmaskarray(row).reshape(-1) for row in rows])
        # An empty array's dtype says nothing: NumPy makes it of floats.
        full = [np.asarray(row).reshape(-1) for row in rows if row.size] or [np.asarray(rows[0]).reshape(-1)]
        return cls(np.concatenate(full), offsets, name, valid, next(iter(tables), None))

    @classmethod
    def _of_arrow(cls, array: pa.Array, name: str) -> _Ragged:
        if pa.types.is_null(array.type) and len(array) == 0:
            array = array.cast(pa.list_(pa.null()))
        if not _is_list(array.type):
            raise InputError(f"{name} is {array.type}; it must have a row of values for each row of {IDS}")
        if array.null_count:
            raise InputError(f"row {int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))}: {name} is null")
        offsets, flat, k = _offsets(pc.list_value_length(array)), array.flatten(), None
        if _is_list(flat.type):
            lengths = pc.list_value_length(flat)
            sizes = np.unique(lengths.fill_null(-1).to_numpy(zero_copy_only=False))
            if len(sizes) > 1 or (len(sizes) and sizes[0] < 0):
                raise InputError(
                    f"{name} has rows of {', '.join(map(str, sizes))} values at a position; k must be equal everywhere"
                )
            k = int(sizes[0]) if len(sizes) else getattr(flat.type, "list_size", None)
            offsets, flat = offsets * (k or 0), flat.flatten()
        if pa.types.is_null(flat.type):
            flat = flat.cast(pa.float32())
        if not (pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type)):
            raise InputError(f"{name} holds {flat.type}; it must hold numbers")
        valid = flat.is_valid().to_numpy(zero_copy_only=False) if flat.null_count else None
        # Filled before NumPy sees them, which would make floats of integers with nulls.
        return cls((flat.fill_null(0) if flat.null_count else flat).to_numpy(zero_copy_only=False), offsets, name, valid, k)


def _is_list(t: pa.DataType) -> bool:
    return bool(pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t))


def _numpy(values: Any) -> Any:
    """A torch tensor as NumPy, which has no bfloat16; everything else as it is."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(values, torch.Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _offsets(lengths: pa.Array) -> Ints:
    return np.concatenate([[0], np.cumsum(lengths.to_numpy(zero_copy_only=False))]).astype(np.int64)


def _selected(offsets: Ints, wanted: Flags) -> Ints:
    """Offsets of the rows that are left of flat values when only the wanted ones are."""
    before: Ints = np.concatenate([[0], np.cumsum(wanted)])[offsets]
    return before


def hash_rows(prior: Prior, columns: dict[str, pa.Array]) -> tuple[Words, Words, Words]:
    """The low and the high half of each row's document hash, and its number of tokens."""
    given = _bridge.ArrowIn(columns)
    words = np.empty((3, len(columns[IDS])), np.uint64)
    _bridge.call("HashRows", prior.handle, given.array, given.schema, words.ctypes.data, words.shape[1])
    low, high, tokens = words
    return low, high, tokens
