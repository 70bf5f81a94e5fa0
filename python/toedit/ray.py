"""Ray Data: scoring and editing of datasets by a pool of actors, on one machine or many.

Ray moves the rows, restarts what dies and, with its own checkpoints, goes on after a stop (``DataContext.checkpoint_config``).
Scores and edits do not depend on who makes them, so that whatever is made twice is the same bytes, and is kept once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from toedit._arrow import IDS, LABELS, SCORES, TOKEN_COLUMNS
from toedit._cut import is_lists
from toedit._errors import InputError, MissingDependencyError, ScoresError
from toedit.editor import Edited, Editor, _integer
from toedit.policy import Policy
from toedit.prior import Prior, wanted

try:
    import ray.data
except ImportError as error:  # pragma: no cover - depends on the environment
    raise MissingDependencyError("toedit.ray needs Ray Data: pip install 'toedit[ray]'") from error

__all__ = ["edit_dataset", "score_dataset"]

# The columns that editing adds.
_COUNTS = (pa.field("candidates", pa.int64()), pa.field("changes", pa.int64()), pa.field("expected_changes", pa.float64()))


def score_dataset(
    ds: Any,
    prior: Prior | str | os.PathLike[str],
    policy: Policy | Iterable[tuple[float, float]] | None = None,
    *,
    k: int | None = None,
    concurrency: int | tuple[int, int] | None = None,
    num_gpus: float | None = None,
    batch_size: int = 256,
    **options: Any,
) -> Any:
    """Score a dataset: the same rows, in the same order, with a column ``scores``.

    Args:
        ds: a ``ray.data.Dataset`` with ``input_ids``. Its ``context`` is set to keep the order of rows.
        prior: a prior, or the path of its folder, which every node must have: what the actors find in it must be what this
            process found. Where it says nothing of threads, an actor takes as many as it has CPUs.
        policy: where top-k is stored: a policy or ranges of P; by default P >= 0.9.
        k: how many of the most probable tokens are stored there; the policy's k, else 8.
        concurrency: how many actors, or (least, most) between which Ray chooses; by default (1, no limit). CPUs must be left
            over for what reads and writes.
        num_gpus: cards an actor, or a part of one. For a prior that was exported for CUDA, which needs it.
        batch_size: rows that an actor scores at a time. Scores do not depend on it.
        options: for ``map_batches``: ``num_cpus`` (1), ``memory``, ``runtime_env``, ...

    Raises:
        InputError: an argument cannot be used.
        PriorError: the prior's folder is missing or damaged.

    What fails while Ray runs it comes as Ray's error, with toedit's in its text; to catch toedit's own, set
    ``ds.context.raise_original_map_exception = True``.
    """
    _columns(ds)
    prior = _for_actors(prior, options.get("num_cpus"), num_gpus)
    if not num_gpus and _on_cuda(prior):
        raise InputError(_needs_card(prior))
    k, ranges = wanted(k, policy)
    return _map(ds, _Score, (prior, k, ranges), concurrency, num_gpus, batch_size, options)


def edit_dataset(
    ds: Any,
    prior: Prior | str | os.PathLike[str],
    policy: Policy | None = None,
    *,
    epoch: int,
    seed: int = 0,
    key: str | None = None,
    offset: str | None = None,
    counts: bool = True,
    concurrency: int | tuple[int, int] | None = None,
    num_gpus: float | None = None,
    batch_size: int = 256,
    **options: Any,
) -> Any:
    """Edit a dataset for one epoch: the same rows, in the same order, with other ids (and labels), without their scores.

    A row's edits are those that ``Editor(prior, policy, seed, key, offset)`` makes of it anywhere else.

    Args:
        ds: training data: a ``ray.data.Dataset`` with ``input_ids``. A column ``scores`` is used, for which actors need no ONNX
            Runtime and no card; else rows are scored. ``input_ids`` and the other columns with a value for each token are lists
            or tensors of one dimension, and stay so, unless the policy drops tokens: then they are lists.
        policy, seed, key, offset: see :class:`toedit.Editor`.
        epoch: 0 to 2**32 - 1. It has no default: the result stays what it is in later epochs.
        counts: add the columns ``candidates``, ``changes`` (int64) and ``expected_changes`` (float64), of each row, whose sums
            are the run's totals, whatever was made twice on the way. Rows are then edited one by one, at about 50 µs each
            instead of about 5.

    The other arguments and the errors are those of :func:`score_dataset`.
    """
    names = _columns(ds)
    if counts:
        _check_counts(names)
    prior = _for_actors(prior, options.get("num_cpus"), num_gpus)
    editor = Editor(prior, policy, seed, key, offset)
    may_score = bool(num_gpus) or not _on_cuda(prior)
    settings = (editor, _integer("epoch", epoch, 2**32 - 1), bool(counts), may_score)
    return _map(ds, _Edit, settings, concurrency, num_gpus, batch_size, options)


def _columns(ds: Any) -> list[str]:
    """The columns of a dataset, as far as they are known without running it.

    Raises:
        InputError: it is none, or has no ids.
    """
    if not isinstance(ds, ray.data.Dataset):
        raise InputError(f"ds is a {type(ds).__name__}; it must be a ray.data.Dataset")
    names = ds.columns(fetch_if_missing=False)
    if names is not None and IDS not in names:
        raise InputError(f"the dataset has no column {IDS!r}, only {names}; tokenize it first")
    return names or []


def _for_actors(prior: Any, num_cpus: float | None, num_gpus: float | None) -> Prior:
    """The prior as actors open it.

    Raises:
        InputError: they could not.
    """
    if isinstance(prior, (str, os.PathLike)):
        prior = Prior(prior)
    if not isinstance(prior, Prior):
        raise InputError(f"prior is a {type(prior).__name__}; it must be a toedit.Prior, or the path of one")
    if num_gpus and prior.device not in (None, "cuda"):
        raise InputError(
            f"the prior's device is {prior.device!r}, but with num_gpus an actor sees the cards alone that Ray gives it; leave "
            "the device out"
        )
    opened = Prior(
        prior.path.absolute(),  # actors have another working directory
        device="cuda" if num_gpus else prior.device,
        # By default a prior takes every core, which an actor has not.
        threads=max(1, int(num_cpus or 1)) if prior.threads is None else prior.threads,
        memory_limit=prior.memory_limit,
        windows=prior.windows,
        min_context=prior.min_context,
        cross_documents=prior.cross_documents,
    )
    if num_gpus and not _on_cuda(opened):
        raise InputError(
            f"num_gpus is {num_gpus}, but {prior!r} was exported for the CPU; leave num_gpus out, or export the model for CUDA "
            "(toedit export --dtype bf16)"
        )
    return opened


def _on_cuda(prior: Prior) -> bool:
    return bool(prior.describe()["device"] == "cuda")


def _needs_card(prior: Prior) -> str:
    return f"{prior!r} was exported for CUDA, so scoring with it needs a card for each actor: num_gpus=1"


def _map(
    ds: Any,
    actor: type[_Score] | type[_Edit],
    settings: tuple[Any, ...],
    concurrency: int | tuple[int, int] | None,
    num_gpus: float | None,
    batch_size: int,
    options: dict[str, Any],
) -> Any:
    ds.context.execution_options.preserve_order = True
    if concurrency is None:
        pool = ray.data.ActorPoolStrategy(min_size=1)
    elif isinstance(concurrency, int):
        pool = ray.data.ActorPoolStrategy(size=concurrency)
    else:
        least, most = concurrency
        pool = ray.data.ActorPoolStrategy(min_size=least, max_size=most)
    return ds.map_batches(
        actor,
        fn_constructor_args=settings,
        compute=pool,
        num_gpus=num_gpus,
        batch_size=batch_size,
        batch_format="pyarrow",
        zero_copy_batch=True,
        udf_modifying_row_count=False,
        **options,
    )


class _Score:
    """An actor that scores."""

    def __init__(self, prior: Prior, k: int, ranges: list[tuple[float, float]]) -> None:
        self._prior, self._k, self._ranges = prior, k, ranges

    def __call__(self, table: pa.Table) -> pa.Table:
        if SCORES in table.column_names:
            table = table.drop_columns([SCORES])
        return table.append_column(SCORES, self._prior.score(_plain(table), k=self._k, keep=self._ranges))


class _Edit:
    """An actor that edits."""

    def __init__(self, editor: Editor, epoch: int, counts: bool, may_score: bool) -> None:
        self._editor, self._epoch, self._counts, self._may_score = editor, epoch, counts, may_score
        self._drops = any(band.action == "drop" for band in editor.policy.candidate_bands)

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._counts:
            _check_counts(table.column_names)
        plain = _plain(table)
        if SCORES not in plain.column_names:
            if not self._may_score:
                raise InputError(_needs_card(self._editor.prior))
            plain = plain.append_column(SCORES, self._editor.prior.score(plain, keep=self._editor.policy))
        parts = [self._row(plain, row) for row in range(len(plain))] if self._counts else [self._editor(plain, self._epoch)]
        # What is not edited stays where it lies, in Ray's store.
        changed = [
            field.name for field in plain.schema if field.name in (IDS, LABELS) or (self._drops and is_lists(field.type))
        ]
        edited = pa.concat_tables([part.batch.select(changed) for part in parts]).combine_chunks()
        for name in changed:
            column = edited.column(name)
            table = _with(table, name, column if self._drops else _like(column, table.column(name)))
        if SCORES in table.column_names:  # the original ids' scores
            table = table.drop_columns([SCORES])
        if self._counts:
            for field in _COUNTS:
                table = table.append_column(field, pa.array([getattr(part, field.name) for part in parts], field.type))
        return table

    def _row(self, table: pa.Table, row: int) -> Edited:
        try:
            return self._editor(table.slice(row, 1), self._epoch)
        except (InputError, ScoresError) as error:
            key = self._editor.key
            of = f", {key} {table.column(key)[row].as_py()!r}" if key in table.column_names else ""
            raise type(error)(f"row {row} of a batch{of}: {str(error).removeprefix('row 0: ')}") from None


def _check_counts(names: Iterable[str]) -> None:
    taken = [field.name for field in _COUNTS if field.name in names]
    if taken:
        raise InputError(f"the dataset has a column {taken[0]!r} already; rename or drop it, or give counts=False")


def _plain(table: pa.Table) -> pa.Table:
    """The batch with lists where tensors have a value for each token."""
    for name in table.column_names:
        if name in TOKEN_COLUMNS or name == "seq_lengths":
            column = table.column(name)
            plain = _lists(column, name)
            if plain is not column:
                table = _with(table, name, plain)
    return table


def _lists(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    t = column.type
    if isinstance(t, pa.BaseExtensionType) and hasattr(t, "shape"):  # Ray's tensors and Arrow's
        if len(t.shape) != 1:
            raise InputError(f"column {name!r} holds tensors of {len(t.shape)} dimensions; a row of tokens has one")
        storage = column.combine_chunks().storage
        if pa.types.is_struct(storage.type):  # of several lengths: the values and the shape of each
            storage = storage.flatten()[storage.type.get_field_index("data")]
        if pa.types.is_fixed_size_list(storage.type):
            storage = storage.cast(pa.list_(storage.type.value_type))
        return pa.chunked_array([storage])
    # Ray makes blocks of few rows, and those that have no tokens have no type.
    if pa.types.is_null(t) or (pa.types.is_list(t) and pa.types.is_null(t.value_type)):
        return column.cast(pa.list_(pa.int64()))
    return column


def _like(column: pa.ChunkedArray, before: pa.ChunkedArray) -> pa.ChunkedArray:
    """Edited lists as the tensors that they were."""
    t = before.type
    if not isinstance(t, pa.BaseExtensionType):
        return column
    values = column.combine_chunks()
    if pa.types.is_struct(t.storage_type):
        shapes = before.combine_chunks().storage.field("shape")
        values = pa.StructArray.from_arrays([values, shapes], fields=list(t.storage_type))
    return pa.chunked_array([pa.ExtensionArray.from_storage(t, values.cast(t.storage_type))])


def _with(table: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(at).with_type(column.type), column)
