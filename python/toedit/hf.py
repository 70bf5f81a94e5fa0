"""Hugging Face: scoring and editing of datasets, cutting and packing of documents with their scores, and Trainer.

What is stored is scored or edited once, by ``Dataset.map``, and cached (:func:`score`, :func:`edit`). To edit anew in each
epoch, training reads the scored dataset through :class:`toedit.torch.EditedDataset` (with :class:`EpochCallback` in Trainer),
:class:`EditTransform` or, with :func:`arrow`, :class:`toedit.torch.EditCollator`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from toedit._arrow import IDS, SCORES, SCORES_TYPE, TOKEN_COLUMNS, scores_column
from toedit._cut import check_lengths, cut_lists, cut_scores, group, join, lists
from toedit._errors import InputError, MissingDependencyError
from toedit._pieces import WAYS, Ints, Pieces, offsets_of
from toedit.editor import Editor, _integer
from toedit.policy import Policy
from toedit.prior import Prior, wanted

try:
    import xxhash
    from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, Value
    from datasets.fingerprint import Hasher
except ImportError as error:  # pragma: no cover - depends on the environment
    raise MissingDependencyError("toedit.hf needs Hugging Face datasets: pip install 'toedit[hf]'") from error

if TYPE_CHECKING:
    from toedit._trainer import EditTransform, EpochCallback

__all__ = [
    "ArrowView",
    "EditTransform",
    "EpochCallback",
    "arrow",
    "chunk",
    "edit",
    "over_rows",
    "pack",
    "rows",
    "score",
    "truncate",
]

# Goes into fingerprints: another number where the same arguments would give other values.
_VERSION = 2

# Columns with a value for each token, beside those that the user names: toedit's own, and those of tokenizers and of TRL.
_TOKENS = (*TOKEN_COLUMNS, "offset_mapping", "token_type_ids", "completion_mask")
_STRATEGIES = ("bfd", "bfd_split", "wrapped")


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


def chunk(dataset: Any, length: int, *, offset: str = "offset", columns: Sequence[str] = (), **options: Any) -> Any:
    """Cut documents into rows of at most *length* tokens; none are lost.

    Ids, labels, masks and scores are cut together, every other column is repeated. A column named *offset* is added: the
    position of a row's first token in its document. ``Editor(..., key="id", offset="offset")``, with a column ``id`` that names
    the documents, then makes the edits that the whole documents would get. (Without a key each chunk is a document by itself.)

    Args:
        dataset: a ``datasets.Dataset`` or ``IterableDataset``, before it is padded or packed.
        length: tokens, at least 1.
        offset: the column's name. Where the dataset has it, its values are added to.
        columns: further columns with a value for each token.
        options: for ``map``.

    Returns:
        A dataset of the same kind and format.

    Raises:
        InputError: an argument is out of its range; a row is padded or packed, or a column does not have a value for each
            of its tokens.
        ScoresError: the scores of a row are not those of its ids.
    """
    return _cut(dataset, _Cut("chunk", _length(length), offset, tuple(columns)), options)


def truncate(
    dataset: Any, length: int, *, side: str = "right", offset: str = "offset", columns: Sequence[str] = (), **options: Any
) -> Any:
    """Cut documents down to *length* tokens.

    Args:
        side: what is cut off: "right" keeps a document's beginning, "left" its end.

    The other arguments, the result and the errors are those of :func:`chunk`.
    """
    if side not in ("right", "left"):
        raise InputError(f"side is {side!r}; it must be 'right' or 'left'")
    return _cut(dataset, _Cut("truncate_" + side, _length(length), offset, tuple(columns)), options)


def pack(
    dataset: Any,
    length: int,
    strategy: str = "bfd",
    *,
    offset: str = "offset",
    columns: Sequence[str] = (),
    **options: Any,
) -> Any:
    """Put documents together into rows of at most *length* tokens.

    Columns with a value for each token lie one behind the other. Of every other column a row has a list, with a value for each
    of its documents: so of keys, of *offset* and of ``scores``. ``seq_lengths`` (tokens of each document) and ``position_ids``
    are added. An editor edits each document by itself, with the edits that it would get unpacked. Documents without tokens are
    left out.

    Args:
        strategy: "bfd": best fit decreasing, of documents truncated to *length*; "bfd_split": the same of chunks of them;
            "wrapped": all one behind the other, cut wherever a row is full.
        options: for ``map``. Documents are packed that are in one batch of its ``batch_size`` (1000).

    The other arguments, the result and the errors are those of :func:`chunk`.
    """
    if strategy not in _STRATEGIES:
        raise InputError(f"strategy is {strategy!r}; it must be one of {', '.join(map(repr, _STRATEGIES))}")
    return _cut(dataset, _Cut(strategy, _length(length), offset, tuple(columns)), options)


def _length(length: Any) -> int:
    return _integer("length", length, 2**31 - 1, least=1)


def _cut(dataset: Any, how: _Cut, options: dict[str, Any]) -> Any:
    features = _features(dataset)
    if features is not None:
        features = how.features(features)
    return _map(dataset, how, (how.way, how.length, how.offset, how.columns), features, options)


@dataclass(frozen=True)
class _Cut:
    """What ``map`` calls; picklable, for its processes."""

    way: str
    length: int
    offset: str
    columns: tuple[str, ...]

    def of_tokens(self, names: Iterable[str]) -> list[str]:
        """The columns with a value for each token."""
        return [name for name in names if name in _TOKENS or name in self.columns]

    def features(self, features: Features) -> Features:
        """The types of the result's columns."""
        tokens = self.of_tokens(features)
        result = {**features, self.offset: Value("int64")}
        for name in tokens:
            if getattr(features[name], "length", -1) != -1:  # lists of one length are of any now
                result[name] = [features[name].feature]
        if self.way in _STRATEGIES:
            result = {name: feature if name in tokens else [feature] for name, feature in result.items()}
            result |= {"seq_lengths": [Value("int32")], "position_ids": [Value("int32")]}
        return Features(result)

    def __call__(self, table: pa.Table) -> pa.Table:
        if "seq_lengths" in table.column_names:
            raise InputError("the rows are packed (seq_lengths); cut documents before they are packed")
        ids = lists(table.column(IDS), IDS)
        if "attention_mask" in table.column_names:
            _check_not_padded(lists(table.column("attention_mask"), "attention_mask"))
        lengths = np.diff(ids.offsets.to_numpy()).astype(np.int64)
        pieces, rows_ = WAYS[self.way](lengths, self.length)
        cut = {name: self._cut(table.column(name), name, ids, pieces) for name in table.column_names if name != self.offset}
        before = table.column(self.offset).to_numpy()[pieces.row] if self.offset in table.column_names else 0
        cut[self.offset] = pa.array(pieces.start + before, pa.int64())
        if rows_ is None:
            return pa.table(cut)
        tokens = self.of_tokens(cut)
        packed = {name: join(column, rows_) if name in tokens else group(column, rows_) for name, column in cut.items()}
        packed["seq_lengths"] = group(pa.array(pieces.lengths, pa.int32()), rows_)
        packed["position_ids"] = join(_counted(pieces.lengths), rows_)
        return pa.table(packed)

    def _cut(self, column: pa.ChunkedArray, name: str, ids: pa.Array, pieces: Pieces) -> pa.Array:
        if name == SCORES:
            return cut_scores(scores_column(column.combine_chunks()), ids, pieces, _hashes)
        if name in self.of_tokens([name]):
            array = lists(column, name)
            check_lengths(name, array, ids)
            return cut_lists(array, pieces)
        return column.combine_chunks().take(pa.array(pieces.row))


def _check_not_padded(masks: pa.Array) -> None:
    zeros = np.flatnonzero(masks.flatten().to_numpy(zero_copy_only=False) == 0)
    if len(zeros):
        row = int(np.searchsorted(offsets_of(masks.value_lengths().to_numpy()), zeros[0], side="right")) - 1
        raise InputError(f"row {row}: attention_mask says that it is padded; cut documents before they are padded")


def _hashes(ids: pa.Array) -> pa.UInt64Array:
    """The low halves of the document hashes."""
    flat = ids.flatten().to_numpy(zero_copy_only=False).astype("<u4")
    ends = offsets_of(ids.value_lengths().to_numpy())
    low = (xxhash.xxh3_128_intdigest(flat[a:b]) % 2**64 for a, b in itertools.pairwise(ends))
    return pa.array(np.fromiter(low, np.uint64, len(ids)))


def _counted(lengths: Ints) -> pa.ListArray:
    """0, 1, 2, ... for each of some lengths."""
    ends = offsets_of(lengths)
    return pa.ListArray.from_arrays(
        pa.array(ends, pa.int32()), pa.array(np.arange(ends[-1]) - np.repeat(ends[:-1], lengths), pa.int32())
    )


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
