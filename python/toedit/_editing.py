"""What the collator, the dataset and the loader of :mod:`toedit.torch` have in common: the epoch, counts, forms of rows, and
rows that cannot be edited."""

from __future__ import annotations

import ctypes
import sys
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import get_worker_info

from toedit import _bridge
from toedit._arrow import IDS, LABELS, SCORES, _is_torch, open_batch
from toedit._errors import EpochWarning, InputError, RowErrorWarning, ScoresError
from toedit._rows import Fields, Form, SetupError, count, joined, mapping, part
from toedit.editor import Counts, Editor, _integer, few_expected, warn_if_few_expected
from toedit.store import Lookups

__all__ = ["Editing", "FirstBatch", "NothingLeft", "Result", "logged"]

ON_ERROR = ("raise", "keep", "drop")

# Ids at the beginning of a row by which it is known again before the rest is looked at.
_HEAD = 16

# Rows that could not be edited, and none that could, after which this is no matter of single rows.
_HOPELESS = 16

_FIELDS = [f.name for f in fields(Counts)]
# Shared counters are integers, which processes can add to atomically and in any order; expected changes are counted in
# millionths.
_EXPECTED_UNIT = 1e-6


def _in_shared_memory(tensor: torch.Tensor) -> torch.Tensor:
    shared: torch.Tensor = tensor.share_memory_()  # type: ignore[no-untyped-call]
    return shared


class _Shared:
    """The epoch of one collator or dataset and its counts, a row for each generation, seen by all its workers.

    torch's own pickling for workers hands the memory over; plain pickling copies the values.
    """

    def __init__(self, generations: int) -> None:
        self.epoch = _in_shared_memory(torch.zeros(1, dtype=torch.int64))
        self.counters = _in_shared_memory(torch.zeros(generations, len(_FIELDS), dtype=torch.int64))
        self.errors = _in_shared_memory(torch.zeros(1, dtype=torch.int64))
        self.lookups = _in_shared_memory(torch.zeros(len(Lookups._fields), dtype=torch.int64))
        self.warned = _in_shared_memory(torch.zeros(1, dtype=torch.bool))
        self.warned_of_errors = _in_shared_memory(torch.zeros(1, dtype=torch.bool))
        # Whether epochs are set or counted; else the first row (its length, first ids and a checksum) is known again.
        self.epochs_move = _in_shared_memory(torch.zeros(1, dtype=torch.bool))
        self.first_row = _in_shared_memory(torch.zeros(1 + _HEAD + 1, dtype=torch.int64))

    def __setstate__(self, state: dict[str, torch.Tensor]) -> None:
        self.__dict__.update({name: _in_shared_memory(tensor) for name, tensor in state.items()})

    def add(self, generations: list[Counts]) -> None:
        _add(self.counters, [self._stored(name, getattr(c, name)) for c in generations for name in _FIELDS])

    @staticmethod
    def _stored(name: str, value: float) -> int:
        return round(value / _EXPECTED_UNIT) if name == "expected_changes" else int(value)

    def generations(self) -> list[Counts]:
        rows = [dict(zip(_FIELDS, row, strict=True)) for row in self.counters.tolist()]
        return [Counts(**{**row, "expected_changes": row["expected_changes"] * _EXPECTED_UNIT}) for row in rows]

    def counts(self) -> Counts:
        return Counts.of_generations(self.generations())

    def look_for_first_row(self, rows: Iterable[Any]) -> None:
        """Warn where the first row comes again and no epoch was set. Only rows that are unlikely twice in a corpus count."""
        length, *head, checksum = self.first_row.tolist()
        for ids in rows:
            if not isinstance(ids, (list, tuple, np.ndarray, torch.Tensor)) or len(ids) < _HEAD:
                continue
            if length == 0:
                length, *head, checksum = len(ids), *map(int, ids[:_HEAD]), _checksum(ids)
                self.first_row.copy_(torch.tensor([length, *head, checksum]))
            elif len(ids) == length and list(map(int, ids[:_HEAD])) == head and _checksum(ids) == checksum:
                self.epochs_move[0] = True  # said once
                warnings.warn(
                    "the first row that was edited has come again, and set_epoch was never called: every pass makes the same "
                    "edits. Call set_epoch(epoch) before each; set_epoch(0), once, if that is meant, or if the data have this "
                    "row twice",
                    EpochWarning,
                    stacklevel=5,
                )
                return

    def warn_once(self) -> None:
        """Worker 0 speaks for all, of which two could not tell who of them is first."""
        worker = get_worker_info()
        if self.warned or (worker is not None and worker.id > 0):
            return
        counts = self.counts()
        if few_expected(counts.tokens, counts.expected_changes) is not None:
            self.warned[0] = True
            warn_if_few_expected(counts.tokens, counts.expected_changes, stacklevel=5)

    def add_errors(self, errors: list[InputError | ScoresError | None], done: str) -> None:
        """Count rows that could not be edited, and speak of the first.

        Raises:
            InputError, ScoresError: not one row could be edited so far.
        """
        bad = [(row, error) for row, error in enumerate(errors) if error is not None]
        _add(self.errors, [len(bad)])
        row, error = bad[0]
        failed = int(self.errors[0])
        if failed >= _HOPELESS and self.generations()[0].rows == 0:
            raise type(error)(f"none of the first {failed} rows could be edited: {_of_row(row, error)}") from None
        if not self.warned_of_errors:
            self.warned_of_errors[0] = True
            warnings.warn(
                f"a row could not be edited and was {done}: {_of_row(row, error)}. Further ones are only counted (.errors); "
                'on_error="raise" stops at them',
                RowErrorWarning,
                stacklevel=5,
            )


def logged(counts: Counts) -> dict[str, float]:
    """Counts as training logs have them."""
    return {f"toedit/{name}": getattr(counts, name) for name in ("tokens", "candidates", "changes", "expected_changes")}


def _checksum(ids: Any) -> int:
    return zlib.crc32(np.asarray(ids, np.int64).tobytes())


def _add(counters: torch.Tensor, values: list[int]) -> None:
    given = (ctypes.c_int64 * len(values))(*values)
    _bridge.call("AddCounters", counters.data_ptr(), ctypes.addressof(given), len(values))


def _of_row(row: int, error: Exception) -> str:
    """What an error says, which a batch of this one row gave."""
    return f"row {row}: {str(error).removeprefix('row 0: ')}"


def _leave_out_of_fingerprints() -> None:
    """Keep epoch and counts out of Hugging Face datasets' fingerprints, which hash the pickle of what they cache."""
    dill = sys.modules.get("datasets.utils._dill")
    if dill is not None and _Shared not in dill.Pickler.dispatch:
        dill.pklregister(_Shared)(lambda pickler, obj: pickler.save_reduce(_Shared, (len(obj.counters),), obj=obj))


class NothingLeft(InputError):
    """All rows of a batch were left out."""


@dataclass
class _Piece:
    """Rows that were edited together, or one that could not be edited."""

    batch: Any
    rows: int
    targets: pa.RecordBatch | None = None
    error: InputError | ScoresError | None = None


@dataclass
class Result:
    """Edited rows.

    Attributes:
        batch: the rows, in the container that they came in.
        rows: how many.
        targets: their ids and labels as Arrow lists, where they were asked for.
    """

    batch: Any
    rows: int
    targets: tuple[pa.Array, pa.Array] | None


class Editing:
    """Edits rows or batches of an epoch, and counts.

    Args:
        editor: what edits.
        fields, targets: the form of rows, see :class:`toedit._rows.Form`.
        on_error: what becomes of a row that cannot be edited: "raise", "keep" or "drop".
        error_column: the name of a column that says of each row what was wrong with it; None: there is none.
    """

    def __init__(self, editor: Editor, fields: Fields | None, targets: str, on_error: str, error_column: str | None) -> None:
        if not isinstance(editor, Editor):
            raise TypeError(f"editor is a {type(editor).__name__}; it must be a toedit.Editor")
        if on_error not in ON_ERROR:
            raise InputError(f"on_error is {on_error!r}; it must be one of {', '.join(map(repr, ON_ERROR))}")
        if error_column is not None and not isinstance(error_column, str):
            raise InputError(f"error_column is {error_column!r}; it must be the name of a column, or None")
        self.editor = editor
        self.on_error = on_error
        self.error_column = error_column
        policy = editor.policy
        # Whether labels are to be others than the edited ids.
        self._sets_labels = policy.labels == "original" or any(b.action == "mask_loss" for b in policy.candidate_bands)
        spent = {SCORES, "protected_mask", editor.key, editor.offset} - {None}
        self._form = Form(fields, targets, {str(name) for name in spent})
        self._shared = _Shared(editor.generations)

    def __getstate__(self) -> dict[str, Any]:
        _leave_out_of_fingerprints()
        return self.__dict__

    @property
    def epoch(self) -> int:
        """The epoch that batches are edited for."""
        return int(self._shared.epoch[0])

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, in every worker. Call it before ``iter(loader)``: what workers have prefetched keeps its own.

        Args:
            epoch: 0 to 2**32 - 1.
        """
        self._shared.epoch[0] = _integer("epoch", epoch, 2**32 - 1)
        self._shared.epochs_move[0] = True

    def stats(self) -> Counts:
        """What was met and done so far, by all workers of all epochs. Rows that could not be edited are not among it."""
        return self._shared.counts()

    def generation_stats(self) -> list[Counts]:
        """The same for each generation of the editor."""
        return self._shared.generations()

    def store_stats(self) -> dict[str, int]:
        """What the editor's store had of the rows that were edited so far, by all workers of all epochs: rows read there
        (``hits``), rows that the prior scored (``misses``), and documents that it scored and that could not be stored
        (``unstored``). An epoch in which ``misses`` stays as it is did not run the prior."""
        return Lookups(*self._shared.lookups.tolist())._asdict()

    @property
    def errors(self) -> int:
        """Rows that could not be edited so far, in all workers of all epochs."""
        return int(self._shared.errors[0])

    def _edit(self, batch: Any, epoch: int, *, targets: bool = False, collated: bool = False) -> Result:
        """Edit rows and count what was done.

        Args:
            batch: rows, or columns.
            epoch: the epoch.
            targets: labels are set later, by those who get the rows. Otherwise rows must have them where they are to be others
                than the ids.
            collated: what has no names is columns, not rows.

        Raises:
            InputError, ScoresError: by on_error, or whatever the row.
            NothingLeft: all rows were left out.
        """
        form = self._form
        if form.plain:
            _check_plain(batch, collated)
        of_columns = not form.plain and (collated or isinstance(batch, Mapping))
        columns = form.open(batch) if of_columns else batch
        pieces = self._pieces(columns, epoch, targets)
        if isinstance(batch, list) and not self._shared.epochs_move:
            self._shared.look_for_first_row(map(form.ids, batch))
        errors = [piece.error for piece in pieces for _ in range(piece.rows)]
        if any(errors):
            self._shared.add_errors(errors, "left out" if self.on_error == "drop" else "passed on as it is")
            if self.on_error == "drop":
                first = errors[0]
                pieces = [piece for piece in pieces if piece.error is None]
                if not pieces and first is not None:
                    raise NothingLeft(f"no row of a batch could be edited, so nothing is left of it: {_of_row(0, first)}")
                errors = [None for error in errors if error is None]
        result = pieces[0].batch if len(pieces) == 1 else joined(columns, [piece.batch for piece in pieces])
        if of_columns:
            result = form.close(batch, result)
        if self.error_column is not None:
            result = _with_errors(result, self.error_column, errors)
        self._shared.warn_once()
        return Result(result, len(errors), _joined_targets(pieces) if targets else None)

    def _pieces(self, batch: Any, epoch: int, targets: bool) -> list[_Piece]:
        """The rows, edited in as few pieces as those allow that cannot be edited."""
        try:
            return [self._piece(batch, epoch, targets)]
        except SetupError:
            raise
        except (InputError, ScoresError) as error:
            rows = None if self.on_error == "raise" else count(batch)
            if not rows:
                raise
            if rows == 1:
                return [_Piece(self._bare(batch), 1, _targets_of(batch, error) if targets else None, error)]
        halves = (0, rows // 2), (rows // 2, rows)
        return [piece for half in halves for piece in self._pieces(part(batch, *half), epoch, targets)]

    def _piece(self, batch: Any, epoch: int, targets: bool) -> _Piece:
        form = self._form
        records = not form.plain and not isinstance(batch, Mapping)
        edited = self.editor.edit([form.open(row) for row in batch] if records else batch, epoch, targets)
        if self._sets_labels and not targets and LABELS not in edited:
            raise SetupError(
                f"the policy sets labels, but the rows have no column {LABELS!r}; give them labels, or edit with EditCollator, "
                "which sets those that its collate_fn makes"
            )
        self._shared.add(edited.generations)
        if edited._lookups is not None:
            _add(self._shared.lookups, list(edited._lookups))
        if records:
            rows: Any = [form.close(row, new) for row, new in zip(batch, edited.batch, strict=True)]
        else:
            rows = _without(edited.batch, form)
        return _Piece(rows, edited.counts.rows, edited.targets)

    def _bare(self, batch: Any) -> Any:
        """A batch of one row as it is, without the columns that only editing needs."""
        if isinstance(batch, (Mapping, pa.Table, pa.RecordBatch)):
            return _without(batch, self._form)
        return [self._form.bare(batch[0])] if isinstance(batch, Sequence) else batch


class FirstBatch:
    """The first batch of a run in a trainer, which must have gone through what edits: trainers read what they were given, and
    training on unedited text goes well."""

    def __init__(self, editing: Editing) -> None:
        self._editing = editing
        self._before: int | None = None  # rows before it, until it is there

    def _rows(self) -> int:
        return int(self._editing.stats().rows) + self._editing.errors

    def awaited(self) -> None:
        self._before = self._rows()

    def is_there(self, way_out: str) -> None:
        """Raise, at the first call after :meth:`awaited`, where not one row was edited in between."""
        before, self._before = self._before, None
        if before is not None and before == self._rows():
            raise InputError(
                f"the first batch has no row that went through the {type(self._editing).__name__} of this callback: the "
                f"trainer reads other data, unedited. {way_out}"
            )


def _check_plain(batch: Any, collated: bool) -> None:
    """Refuse tuples of columns of which nobody said what they are."""
    if not isinstance(batch, Sequence) or len(batch) == 0:
        return
    first = batch[0]
    if (isinstance(first, tuple) and len(first) > 0 and not isinstance(first[0], int)) or (
        collated and _is_torch(first) and first.ndim > 1
    ):
        what = "batches" if collated else "rows"
        raise SetupError(
            f'{what} are tuples; say what their elements are, such as fields=("input_ids", "labels"), with targets="shifted" '
            "where each label is the next id"
        )


def _without(batch: Any, form: Form) -> Any:
    """A batch without the columns that only editing needs."""
    if isinstance(batch, (pa.Table, pa.RecordBatch)):
        gone = form.gone(batch.schema.names)
        return batch.drop_columns(list(gone)) if gone else batch
    if isinstance(batch, Mapping):
        gone = form.gone(batch)
        return mapping(batch, {}, gone) if gone else batch
    if isinstance(batch, list) and len(batch) > 0 and isinstance(batch[0], Mapping):
        gone = form.gone(batch[0])
        return [{name: value for name, value in row.items() if name not in gone} for row in batch]
    return batch


def _with_errors(batch: Any, name: str, errors: Sequence[Exception | None]) -> Any:
    """The batch with a column that says of each row what was wrong with it."""
    texts = ["" if error is None else _of_row(row, error) for row, error in enumerate(errors)]
    if isinstance(batch, (pa.Table, pa.RecordBatch)):
        return batch.append_column(name, pa.array(texts, pa.string()))
    if isinstance(batch, Mapping):
        return mapping(batch, {name: texts}, ())
    if isinstance(batch, list) and all(isinstance(row, Mapping) for row in batch):
        return [mapping(row, {name: text}, ()) for row, text in zip(batch, texts, strict=True)]
    raise SetupError(f"rows that are no mappings cannot get an error_column ({name!r})")


def _targets_of(batch: Any, error: Exception) -> pa.RecordBatch:
    """The ids and labels of one row that was not edited, for those who set labels.

    Raises:
        the error: the row has no ids that could be found again.
    """
    try:
        opened = open_batch(batch)
        columns = [opened.column(name)[0].cast(pa.large_list(pa.int64())) for name in (IDS, LABELS) if name in opened.names]
        return pa.RecordBatch.from_arrays([columns[0], columns[-1]], names=[IDS, LABELS])
    except (InputError, IndexError, pa.ArrowException):
        raise error from None


def _joined_targets(pieces: list[_Piece]) -> tuple[pa.Array, pa.Array]:
    wide = pa.large_list(pa.int64())
    columns = [[p.targets.column(name) for p in pieces if p.targets is not None] for name in (IDS, LABELS)]
    ids, labels = (c[0] if len(c) == 1 else pa.concat_arrays([a.cast(wide) for a in c]) for c in columns)
    return ids, labels
