"""Hugging Face: scoring and editing of datasets, cutting and packing of documents with their scores, and Trainer.

What is stored is scored or edited once, by ``Dataset.map``, and cached (:func:`score`, :func:`edit`). To edit anew in each
epoch, training reads the scored dataset through :class:`toedit.torch.EditedDataset` (with :class:`EpochCallback` in Trainer),
:class:`EditTransform` or, with :func:`arrow`, :class:`toedit.torch.EditCollator`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from toedit._arrow import IDS, SCORES_TYPE
from toedit._errors import InputError, MissingDependencyError
from toedit.editor import SCORES, Editor, _integer
from toedit.policy import Policy
from toedit.prior import Prior, wanted

try:
    from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict
    from datasets.fingerprint import Hasher
except ImportError as error:  # pragma: no cover - depends on the environment
    raise MissingDependencyError("toedit.hf needs Hugging Face datasets: pip install 'toedit[hf]'") from error

if TYPE_CHECKING:
    from toedit._trainer import EditTransform, EpochCallback

__all__ = ["ArrowView", "EditTransform", "EpochCallback", "arrow", "edit", "over_rows", "rows", "score"]

# Goes into fingerprints: another number where the same arguments would give other values.
_VERSION = 1


def __getattr__(name: str) -> Any:
    """What needs torch and transformers, which take seconds to load, at its first use."""
    if name in ("EditTransform", "EpochCallback"):
        from toedit import _trainer

        return getattr(_trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def score(
    dataset: Any,
    prior: Prior,
    policy: Policy | Iterable[tuple[float, float]] | None = None,
    *,
    k: int | None = None,
    **options: Any,
) -> Any:
    """Score a dataset: the same with a column ``scores``.

    A ``Dataset`` that lies on disk is scored once: the result's fingerprint follows from the prior's, k and what is kept, so
    that a second run reads the cache, whatever its batch size and number of processes.

    Args:
        dataset: a ``datasets.Dataset``, ``IterableDataset`` (scored as it is read) or a dictionary of them, with ``input_ids``.
        prior: scores; see :meth:`Prior.score` for the columns that are understood.
        policy: where top-k is stored: a policy or ranges of P; by default P >= 0.9.
        k: how many of the most probable tokens are stored there; the policy's k, else 8.
        options: for ``map``: ``batch_size``, ``num_proc``, ``load_from_cache_file``, ...

    Returns:
        A dataset of the same kind and format. With torch's, TensorFlow's or JAX's format the scores stay Python objects, since
        these have no unsigned integers of 64 bits.

    Raises:
        InputError: it is no dataset, has no ``input_ids``, or has a transform, which would not be applied; as
            :meth:`Prior.score` besides.
    """
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        return type(dataset)({name: score(part, prior, policy, k=k, **options) for name, part in dataset.items()})
    if not isinstance(prior, Prior):
        raise InputError(f"prior is a {type(prior).__name__}; it must be a toedit.Prior")
    k, ranges = wanted(k, policy)
    features = _features(dataset)
    if features is not None:
        features = Features({**features, **Features.from_arrow_schema(pa.schema([(SCORES, SCORES_TYPE)]))})
    settings = ("score", prior.fingerprint, k, ranges)
    return _map(dataset, _Score(prior, k, tuple(ranges)), settings, features, options)


@dataclass(frozen=True)
class _Score:
    """What ``map`` calls; picklable, for its processes."""

    prior: Prior
    k: int
    ranges: tuple[tuple[float, float], ...]

    def __call__(self, table: pa.Table) -> pa.Table:
        if SCORES in table.column_names:
            table = table.drop_columns([SCORES])
        return table.append_column(SCORES, self.prior.score(table, k=self.k, keep=self.ranges))


def edit(dataset: Any, editor: Editor, *, epoch: int, **options: Any) -> Any:
    """Edit a dataset once, for one epoch: the same with other ids (and labels), without its scores.

    A ``Dataset`` that lies on disk is edited once: its fingerprint follows from the editor's settings and the epoch, so that a
    second run reads the cache. To edit anew in every epoch use :class:`toedit.torch.EditedDataset` or :class:`EditTransform`.

    Args:
        dataset: a ``datasets.Dataset``, or an ``IterableDataset``, whose every pass is then edited for this epoch. Training
            data only: a dictionary of splits is refused.
        editor: edits; a column ``scores`` is used, else rows are scored.
        epoch: 0 to 2**32 - 1. It has no default: the result stays what it is in later epochs.
        options: for ``map``: ``batch_size``, ``num_proc``, ``load_from_cache_file``, ...

    Raises:
        InputError: it is no dataset, several splits, or has a transform, which would not be applied; as :class:`Editor`
            besides.
    """
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        raise InputError(f"a {type(dataset).__name__} holds evaluation data, which is never edited; edit its training split")
    if not isinstance(editor, Editor):
        raise InputError(f"editor is a {type(editor).__name__}; it must be a toedit.Editor")
    epoch = _integer("epoch", epoch, 2**32 - 1)
    features = _features(dataset)
    if features is not None:
        features = Features({name: feature for name, feature in features.items() if name != SCORES})
    e = editor
    settings = ("edit", e.prior.fingerprint, e.policy.to_json(), e.seed, e.key, e.offset, e.generations, epoch)
    return _map(dataset, _Edit(editor, epoch), settings, features, options)


@dataclass(frozen=True)
class _Edit:
    """What ``map`` calls; picklable, for its processes."""

    editor: Editor
    epoch: int

    def __call__(self, table: pa.Table) -> pa.Table:
        edited = self.editor(table, self.epoch).batch
        # They are the original ids' scores.
        return edited.drop_columns([SCORES]) if SCORES in edited.column_names else edited


def _features(dataset: Any) -> Features | None:
    """The types of a dataset's columns; None where a stream does not know them yet.

    Raises:
        InputError: it is no dataset, or its columns cannot be read as they are stored.
    """
    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise InputError(f"dataset is a {type(dataset).__name__}; it must be a datasets.Dataset or IterableDataset")
    _check_no_transform(dataset)
    if dataset.column_names is not None and IDS not in dataset.column_names:
        raise InputError(f"the dataset has no column {IDS!r}, only {dataset.column_names}; tokenize it first")
    return dataset.features


def _check_no_transform(dataset: Any) -> None:
    if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
        raise InputError("the dataset has a transform, which is not applied to stored rows; use it before set_transform")


def _map(
    dataset: Any,
    function: Callable[[pa.Table], pa.Table],
    settings: tuple[Any, ...],
    features: Features | None,
    options: dict[str, Any],
) -> Any:
    """Map Arrow tables, in the format that the dataset has."""
    if isinstance(dataset, IterableDataset):
        formatting = dataset._formatting
        form = None if formatting is None else formatting.format_type
        mapped = dataset.with_format("arrow").map(function, batched=True, features=features, **options)
        return mapped.with_format(form)
    # Over what decides the values, where `map` would take the pickle of the function, with paths and threads.
    fingerprint = Hasher.hash((dataset._fingerprint, "toedit", _VERSION, *settings))
    arrow_rows = dataset.with_format("arrow")
    mapped = arrow_rows.map(function, batched=True, features=features, **{"new_fingerprint": fingerprint, **options})
    form = dataset.format
    if form["type"] is None:
        return mapped.with_format(None)
    columns = [name for name in form["columns"] if name in mapped.column_names and name != SCORES]
    return mapped.with_format(form["type"], columns=columns, output_all_columns=True, **form["format_kwargs"])


class ArrowView:
    """A map-style view of a dataset that hands rows over as they are stored, without Python lists (:func:`arrow`)."""

    def __init__(self, dataset: Dataset) -> None:
        self._rows = dataset.with_format("arrow")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> pa.Table:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> pa.Table:
        # Rows from different places are a chunk each.
        return self._rows[list(indices)].combine_chunks()


def arrow(dataset: Any) -> ArrowView:
    """A map-style view whose rows are Arrow tables: for a DataLoader with :class:`toedit.torch.EditCollator`.

    DataLoader asks it for a whole batch at a time, which comes without a Python object for each number and stays Arrow until
    the collate function has it. One that wants a list of rows is wrapped by :func:`over_rows`.

        loader = DataLoader(arrow(dataset), 64, collate_fn=EditCollator(editor, over_rows(collate)))

    Args:
        dataset: a ``datasets.Dataset``; its format does not matter.

    Raises:
        InputError: it is another kind of dataset, or has a transform, which would not be applied.
    """
    if not isinstance(dataset, Dataset):
        raise InputError(f"dataset is a {type(dataset).__name__}; it must be a datasets.Dataset")
    _check_no_transform(dataset)
    return ArrowView(dataset)


def rows(batch: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of Arrow data for collate functions: numbers in lists become NumPy arrays that may be written to, everything
    else Python objects."""
    columns = [_values(batch.column(name)) for name in batch.schema.names]
    return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    lists = pa.types.is_list(array.type) or pa.types.is_large_list(array.type)
    if not lists or not _is_number(array.type.value_type) or array.null_count or array.flatten().null_count:
        values: list[Any] = array.to_pylist()
        return values
    flat = array.flatten().to_numpy(zero_copy_only=False).copy()
    ends = np.cumsum(array.value_lengths().to_numpy(zero_copy_only=False))
    return np.split(flat, ends[:-1]) if len(array) else []


def _is_number(t: pa.DataType) -> bool:
    return bool(pa.types.is_integer(t) or pa.types.is_floating(t) or pa.types.is_boolean(t))


def over_rows(collate_fn: Callable[[list[dict[str, Any]]], Any]) -> Callable[[pa.Table], Any]:
    """A collate function that takes a list of rows, for Arrow data (:func:`rows`). Picklable if it is."""
    return _OverRows(collate_fn)


@dataclass(frozen=True)
class _OverRows:
    collate_fn: Callable[[list[dict[str, Any]]], Any]

    def __call__(self, batch: pa.Table) -> Any:
        return self.collate_fn(rows(batch))
