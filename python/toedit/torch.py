"""Editing inside PyTorch data loading: a collate function and a dataset; and scoring with a PyTorch model (:func:`score`).

The first two edit in whatever process the DataLoader runs them in, with the same result. ``set_epoch`` reaches workers that are
alive already (``persistent_workers=True``), and counts add up across workers: both live in shared memory.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

import pyarrow as pa

from toedit import _bridge
from toedit._align import set_labels
from toedit._arrow import PAIR_COLUMNS, RANGES
from toedit._errors import InputError, MissingDependencyError
from toedit.editor import LABELS, SCORES, Counts, Edited, Editor, _integer, few_expected, warn_if_few_expected

try:
    import torch
    from torch.utils.data import Dataset, IterableDataset, default_collate, get_worker_info
except ImportError as error:  # pragma: no cover - depends on the environment
    raise MissingDependencyError("toedit.torch needs PyTorch: pip install 'toedit[torch]'") from error

from toedit._torch_score import score

__all__ = ["EditCollator", "EditedDataset", "score"]

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
        self.warned = _in_shared_memory(torch.zeros(1, dtype=torch.bool))

    def __setstate__(self, state: dict[str, torch.Tensor]) -> None:
        self.__dict__.update({name: _in_shared_memory(tensor) for name, tensor in state.items()})

    def add(self, generations: list[Counts]) -> None:
        n = self.counters.numel()
        values = (ctypes.c_int64 * n)(*(self._stored(name, getattr(c, name)) for c in generations for name in _FIELDS))
        _bridge.call("AddCounters", self.counters.data_ptr(), ctypes.addressof(values), n)

    @staticmethod
    def _stored(name: str, value: float) -> int:
        return round(value / _EXPECTED_UNIT) if name == "expected_changes" else int(value)

    def generations(self) -> list[Counts]:
        rows = [dict(zip(_FIELDS, row, strict=True)) for row in self.counters.tolist()]
        return [Counts(**{**row, "expected_changes": row["expected_changes"] * _EXPECTED_UNIT}) for row in rows]

    def counts(self) -> Counts:
        return Counts.of_generations(self.generations())

    def warn_once(self) -> None:
        """Worker 0 speaks for all, of which two could not tell who of them is first."""
        worker = get_worker_info()
        if self.warned or (worker is not None and worker.id > 0):
            return
        counts = self.counts()
        if few_expected(counts.tokens, counts.expected_changes) is not None:
            self.warned[0] = True
            warn_if_few_expected(counts.tokens, counts.expected_changes, stacklevel=4)


def _leave_out_of_fingerprints() -> None:
    """Keep epoch and counts out of Hugging Face datasets' fingerprints, which hash the pickle of what they cache."""
    dill = sys.modules.get("datasets.utils._dill")
    if dill is not None and _Shared not in dill.Pickler.dispatch:
        dill.pklregister(_Shared)(lambda pickler, obj: pickler.save_reduce(_Shared, (len(obj.counters),), obj=obj))


class _Editing:
    """What the collator and the dataset have in common."""

    def __init__(self, editor: Editor) -> None:
        if not isinstance(editor, Editor):
            raise TypeError(f"editor is a {type(editor).__name__}; it must be a toedit.Editor")
        self.editor = editor
        policy = editor.policy
        # Whether labels are to be others than the edited ids.
        self._sets_labels = policy.labels == "original" or any(b.action == "mask_loss" for b in policy.candidate_bands)
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

    def stats(self) -> Counts:
        """What was met and done so far, by all workers of all epochs."""
        return self._shared.counts()

    def generation_stats(self) -> list[Counts]:
        """The same for each generation of the editor."""
        return self._shared.generations()

    def _edit(self, rows: Any, targets: bool = False) -> Edited:
        """Edit rows and count what was done."""
        edited = self.editor.edit(rows, self.epoch, targets)
        self._shared.add(edited.generations)
        self._shared.warn_once()
        return edited

    def _left(self, edited: Edited) -> Any:
        """The edited rows without the columns that only editing needs."""
        spent = {SCORES, "protected_mask", self.editor.key, self.editor.offset}
        if RANGES in edited:
            spent |= set(PAIR_COLUMNS)
        return _without(edited.batch, [name for name in edited if name in spent])


def _without(batch: Any, names: list[str]) -> Any:
    if not names:
        return batch
    if isinstance(batch, (pa.Table, pa.RecordBatch)):
        return batch.drop_columns(names)
    if isinstance(batch, Mapping):
        return {name: values for name, values in batch.items() if name not in names}
    return [{name: value for name, value in row.items() if name not in names} for row in batch]


class EditCollator(_Editing):
    """A collate function that edits rows before another one makes a batch of them.

    ``labels`` follow ``input_ids``: they stay -100 where they are, and such tokens are not edited. Collate functions that
    pad, or that make labels themselves, see edited rows. Scores, key and offset columns are removed,
    ``protected_mask`` and ``protected_ranges`` too. For training data only: give evaluation loaders the inner collate
    function.

    Where the policy has ``labels="original"`` or a band that masks loss, labels are not the edited ids. Then each row is
    looked up in what ``collate_fn`` returned (padded on either side, or several rows in one), and the labels that it made
    of the ids become the row's: the original ids, and -100 where loss is masked. Its own -100 stay.

    Args:
        editor: what edits.
        collate_fn: makes a batch of the edited rows; torch's ``default_collate`` without one.

    Raises (when called):
        InputError: a row or a value cannot be used, or the policy's labels cannot be set because a row is not there, as it
            was edited, in what collate_fn returned; the message names the row, and what differs.
    """

    def __init__(self, editor: Editor, collate_fn: Callable[[Any], Any] | None = None) -> None:
        super().__init__(editor)
        self.collate_fn = default_collate if collate_fn is None else collate_fn

    def __call__(self, rows: Any) -> Any:
        edited = self._edit(rows, self._sets_labels)
        batch = self.collate_fn(self._left(edited))
        return batch if edited.targets is None else set_labels(batch, *edited.targets.columns)


class EditedDataset(_Editing, Dataset[Any]):
    """A dataset whose rows are edited as they are read: map-style or iterable, as the one it wraps.

    Scores, key and offset columns are removed, as :class:`EditCollator` does. Where rows carry no scores, prefer
    EditCollator: it scores a whole batch at a time, a dataset only the rows that are asked for together.

    Args:
        dataset: rows are mappings with ``input_ids``, or ids alone. They must have ``labels`` where the policy has
            ``labels="original"`` or a band that masks loss; a collate function must then take them as they are.
        editor: what edits.
    """

    def __new__(cls, dataset: Any, editor: Editor) -> EditedDataset:
        iterable = isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")
        return super().__new__(_EditedIterableDataset if cls is EditedDataset and iterable else cls)

    def __getnewargs__(self) -> tuple[Any, Editor]:
        return self.dataset, self.editor

    def __init__(self, dataset: Any, editor: Editor) -> None:
        super().__init__(editor)
        self.dataset = dataset

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch here, in every worker, and in the wrapped dataset if it has one."""
        super().set_epoch(epoch)
        inner = getattr(self.dataset, "set_epoch", None)
        if callable(inner):
            inner(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self._labelled(self._edit([self.dataset[index]]))[0]

    def __getitems__(self, indices: list[Any]) -> list[Any]:
        many = getattr(self.dataset, "__getitems__", None)
        rows = many(indices) if callable(many) else [self.dataset[i] for i in indices]
        edited: list[Any] = self._labelled(self._edit(rows))
        return edited

    def _labelled(self, edited: Edited) -> Any:
        """The edited rows. Labels that a collate function makes later would be the edited ids."""
        if self._sets_labels and LABELS not in edited:
            raise InputError(
                f"the policy sets labels, but the rows have no column {LABELS!r}; give them labels, or edit with EditCollator, "
                "which sets those that its collate_fn makes"
            )
        return self._left(edited)


class _EditedIterableDataset(EditedDataset, IterableDataset[Any]):
    """EditedDataset over a dataset that can only be iterated."""

    def __iter__(self) -> Iterator[Any]:
        for row in self.dataset:
            yield self._labelled(self._edit([row]))[0]
