"""Editing inside PyTorch data loading: a collate function, a dataset and a loader; and scoring with a PyTorch model
(:func:`score`).

The first two edit in whatever process the DataLoader runs them in, with the same result. ``set_epoch`` reaches workers that are
alive already (``persistent_workers=True``), and counts add up across workers: both live in shared memory. The loader edits what
any other loader has collated, in a thread beside the training step.
"""

from __future__ import annotations

import copy
import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

from toedit._errors import MissingDependencyError

try:
    import torch
    from torch.utils.data import Dataset, IterableDataset, default_collate
except ImportError as error:  # pragma: no cover - depends on the environment
    raise MissingDependencyError("toedit.torch needs PyTorch: pip install 'toedit[torch]'") from error

from toedit._align import set_labels
from toedit._background import Background
from toedit._editing import Editing, NothingLeft
from toedit._rows import Fields, mapping
from toedit._torch_score import score
from toedit.editor import Editor, _integer

__all__ = ["EditCollator", "EditedDataset", "EditingLoader", "score"]


class EditCollator(Editing):
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
        fields: what the elements of rows are that are no mappings with the names that editing knows: the names of a tuple's
            elements in order (``("input_ids", "labels")``; None: no matter), or a name for each index or key that has one
            (``{"tokens": "input_ids"}``), or the index or key of the ids alone. Rows keep their form.
        targets: "aligned": labels are the ids at the same places (as Hugging Face has them). "shifted": each label is the
            next id (x and y of nanoGPT). Then inputs and targets are read as one row of length + 1, which is what scores must
            be of, and come back as inputs x' and targets y' with ``y'[t] == x'[t + 1]``, where y was not masked.
        on_error: what becomes of a row that cannot be edited (an id that is out of the vocabulary, scores of other ids):
            "keep" passes it on unedited, "drop" leaves it out, "raise" raises. The first one is warned of, all are counted in
            :attr:`errors`. Where none of the first rows can be edited, that is an error always.
        error_column: the name of a column that is added to rows (mappings): what was wrong with it, "" where nothing was.

    Raises (when called):
        InputError: a row or a value cannot be used, or the policy's labels cannot be set because a row is not there, as it
            was edited, in what collate_fn returned; the message names the row, and what differs.
        ScoresError: the scores are of other ids, another prior, or do not hold what the policy needs.
    """

    def __init__(
        self,
        editor: Editor,
        collate_fn: Callable[[Any], Any] | None = None,
        *,
        fields: Fields | None = None,
        targets: str = "aligned",
        on_error: str = "keep",
        error_column: str | None = None,
    ) -> None:
        super().__init__(editor, fields, targets, on_error, error_column)
        self.collate_fn = default_collate if collate_fn is None else collate_fn

    def __call__(self, rows: Any) -> Any:
        # Shifted targets are columns of the rows, and were set there.
        later = self._sets_labels and not self._form.shifted
        edited = self._edit(rows, self.epoch, targets=later)
        batch = self.collate_fn(edited.batch)
        return batch if edited.targets is None else set_labels(batch, *edited.targets)


class EditedDataset(Editing, Dataset[Any]):
    """A dataset whose rows are edited as they are read: map-style or iterable, as the one it wraps.

    Scores, key and offset columns are removed, as :class:`EditCollator` does. Where rows carry no scores, prefer
    EditCollator: it scores a whole batch at a time, a dataset only the rows that are asked for together.

    It has ``state_dict`` and ``load_state_dict`` where the dataset has, and its iterators where the dataset's have: editing
    itself has no state but the epoch, which is set by :meth:`set_epoch` after a restart as before it.

    Args:
        dataset: rows are mappings with ``input_ids``, ids alone, or what *fields* says. They must have ``labels`` where the
            policy has ``labels="original"`` or a band that masks loss; a collate function must then take them as they are.
        editor: what edits.
        fields, targets, on_error, error_column: as for :class:`EditCollator`. A row that is asked for alone, by its index,
            cannot be left out: with "drop" that raises.
    """

    def __new__(cls, dataset: Any, *_: Any, **__: Any) -> EditedDataset:
        if cls is not EditedDataset:
            return super().__new__(cls)
        iterable = isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")
        if _stateful(dataset):
            return super().__new__(_StatefulIterableDataset if iterable else _StatefulDataset)
        return super().__new__(_EditedIterableDataset if iterable else cls)

    def __getnewargs__(self) -> tuple[Any]:
        return (self.dataset,)

    def __init__(
        self,
        dataset: Any,
        editor: Editor,
        *,
        fields: Fields | None = None,
        targets: str = "aligned",
        on_error: str = "keep",
        error_column: str | None = None,
    ) -> None:
        super().__init__(editor, fields, targets, on_error, error_column)
        self.dataset = dataset

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch here, in every worker, and in the wrapped dataset if it has one."""
        super().set_epoch(epoch)
        _set_epoch(self.dataset, epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self._edit([self.dataset[index]], self.epoch).batch[0]

    def __getitems__(self, indices: list[Any]) -> list[Any]:
        many = getattr(self.dataset, "__getitems__", None)
        rows = many(indices) if callable(many) else [self.dataset[i] for i in indices]
        edited: list[Any] = self._edit(rows, self.epoch).batch
        return edited


class _EditedIterableDataset(EditedDataset, IterableDataset[Any]):
    """EditedDataset over a dataset that can only be iterated."""

    def __iter__(self) -> Iterator[Any]:
        rows = iter(self.dataset)
        return _StatefulRows(self, rows) if _stateful(rows) else _Rows(self, rows)


class _Rows:
    """The edited rows of an iterable dataset."""

    def __init__(self, editing: Editing, rows: Iterator[Any]) -> None:
        self._editing = editing
        self._rows = rows

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        for row in self._rows:
            try:
                return self._editing._edit([row], self._editing.epoch).batch[0]
            except NothingLeft:
                continue
        raise StopIteration


# Frameworks ask whether a class has both methods, so there is one of each kind.


class _StatefulRows(_Rows):
    def state_dict(self) -> Any:
        return self._rows.state_dict()  # type: ignore[attr-defined]

    def load_state_dict(self, state: Any) -> None:
        self._rows.load_state_dict(state)  # type: ignore[attr-defined]


class _StatefulDataset(EditedDataset):
    def state_dict(self, *args: Any, **options: Any) -> Any:
        return self.dataset.state_dict(*args, **options)

    def load_state_dict(self, state: Any) -> None:
        self.dataset.load_state_dict(state)


class _StatefulIterableDataset(_StatefulDataset, _EditedIterableDataset):
    pass


def _stateful(source: Any) -> bool:
    return all(callable(getattr(source, name, None)) for name in ("state_dict", "load_state_dict"))


def _set_epoch(source: Any, epoch: int) -> None:
    inner = getattr(source, "set_epoch", None)
    if callable(inner):
        inner(epoch)


class EditingLoader(Editing):
    """Edits the batches of any loader, in a thread beside the training step.

    The next batches are fetched from the loader in the thread that iterates, and edited (scored, where they carry no scores)
    in the background, while that thread is busy with its step; Python's lock is released there. So scoring costs no time where
    the step leaves the prior its resources: a GPU that waits for data, or cores that the step does not use
    (``Prior(path, threads=n)`` bounds those that scoring takes). For training data only.

    Each pass is another epoch, counted from 0 or from what :meth:`set_epoch` set. Every other attribute is the loader's. Where
    the loader has ``state_dict`` and ``load_state_dict`` (torchdata's StatefulDataLoader) so has this one: the state is that
    of the batches that were handed out, not of those that are prefetched.

    Args:
        loader: gives collated batches: mappings with ``input_ids`` (and ``attention_mask``, where rows are padded; ``labels``
            where the policy sets them), ids alone, or what *fields* says (``("input_ids", "labels")`` for pairs). They may have
            the columns that editing knows (key, offset, scores), which are removed.
        editor: what edits.
        prefetch: how many batches may be edited before they are asked for. 0: nothing is done in the background.
        fields, targets, on_error, error_column: as for :class:`EditCollator`, of whole batches. With "drop" a batch of which
            nothing is left is passed over.

    Raises (when iterated):
        InputError, ScoresError: as :class:`EditCollator`, where the batch is handed out.
    """

    def __new__(cls, loader: Any, *_: Any, **__: Any) -> EditingLoader:
        return super().__new__(_StatefulLoader if cls is EditingLoader and _stateful(loader) else cls)

    def __init__(
        self,
        loader: Any,
        editor: Editor,
        prefetch: int = 2,
        *,
        fields: Fields | None = None,
        targets: str = "aligned",
        on_error: str = "keep",
        error_column: str | None = None,
    ) -> None:
        super().__init__(editor, fields, targets, on_error, error_column)
        if not hasattr(loader, "__iter__"):
            raise TypeError(f"loader is a {type(loader).__name__}, which cannot be iterated")
        self.loader = loader
        self.prefetch = _integer("prefetch", prefetch, 2**16)
        self._begun = False  # a pass of this epoch
        self._resumed: bool | None = None  # the next pass: from between two epochs, from within one, or not at all
        self._shared.epochs_move[0] = True

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, here and in the loader, its samplers and its dataset where they have one.

        Args:
            epoch: 0 to 2**32 - 1.
        """
        super().set_epoch(epoch)
        self._begun = False
        samplers = [getattr(self.loader, name, None) for name in ("sampler", "batch_sampler")]
        samplers += [getattr(sampler, "sampler", None) for sampler in samplers]
        for source in (self.loader, *samplers, getattr(self.loader, "dataset", None)):
            _set_epoch(source, epoch)

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "loader" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        return _Batches(self, iter(self.loader))

    def _begin(self) -> tuple[int, bool | None]:
        """The epoch of a pass whose first batch is asked for, and what it resumes. Not before: frameworks make iterators to see
        whether they can (Lightning)."""
        if self._begun:
            super().set_epoch(self.epoch + 1)
        self._begun = True
        resumed, self._resumed = self._resumed, None
        return self.epoch, resumed

    def _job(self, batch: Any, epoch: int) -> Any:
        edited = self._edit(batch, epoch, collated=True).batch
        return _pinned_like(batch, edited) if getattr(self.loader, "pin_memory", False) else edited

    def _state(self) -> Any:
        """The loader's state now, if it has any."""

    def _handed_out(self, epoch: int, state: Any, between: bool) -> None:
        """Take note of the state behind the batch that was handed out last, of the next one's epoch, and whether this is
        between two epochs."""


class _StatefulLoader(EditingLoader):
    _last: tuple[int, Any, bool] | None = None

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if self._last is not None:
            self._last = self.epoch, *self._last[1:]

    def state_dict(self) -> dict[str, Any]:
        epoch, state, between = self._last or (self.epoch, self._state(), True)
        return {"epoch": epoch, "between": between, "loader": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        Editing.set_epoch(self, state["epoch"])
        self._begun = False
        self._resumed = state["between"]
        self._last = None
        self.loader.load_state_dict(state["loader"])

    def _state(self) -> Any:
        # What a loader returns may be its own, which goes on.
        return copy.deepcopy(self.loader.state_dict())

    def _handed_out(self, epoch: int, state: Any, between: bool) -> None:
        self._last = epoch, state, between


class _Batches:
    """One pass of an EditingLoader.

    Batches are fetched by the thread that iterates: loaders may draw random numbers, fork and take note of their state there,
    as they do without toedit, and Ctrl-C ends them. Only editing is left to the background.
    """

    def __init__(self, loader: EditingLoader, batches: Iterator[Any]) -> None:
        self._loader = loader
        self._batches = batches
        self._epoch = -1  # it has not begun
        self._background = Background() if loader.prefetch > 0 else None
        # What is being edited, with the loader's state behind it.
        self._ahead: deque[tuple[Future[Any], Any]] = deque()
        self._end: tuple[int, Any, bool] | None = None  # what to note behind the last batch, once all were fetched
        self._may_be_empty = False
        self._done = False
        loader._handed_out(loader.epoch + loader._begun, loader._state(), loader._resumed is not False)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._epoch < 0:
            self._epoch, resumed = self._loader._begin()
            # What a state of between two epochs resumes may be the end of the one before, without batches (mosaicml-streaming).
            self._may_be_empty = resumed is True
        while not self._done:
            while self._end is None and len(self._ahead) <= self._loader.prefetch:
                self._fetch()
            if not self._ahead:
                self._finish()
                break
            future, state = self._ahead[0]
            batch = None
            try:
                batch = future.result()  # Ctrl-C leaves it where it is
            except NothingLeft:
                pass
            except Exception:
                self._close()
                raise
            self._ahead.popleft()
            self._loader._handed_out(self._epoch, state, False)
            if batch is not None:
                return batch
        raise StopIteration

    def _fetch(self) -> None:
        """Fetch a batch and have it edited. What goes wrong is raised where the batch would have been handed out."""
        future: Future[Any]
        try:
            batch = next(self._batches)
        except StopIteration:
            if self._may_be_empty:
                self._may_be_empty = False
                self._batches = iter(self._loader.loader)
            else:
                self._end = self._epoch + 1, self._loader._state(), True
            return
        except Exception as error:
            future = Future()
            future.set_exception(error)
            self._end = self._epoch, None, False
            self._ahead.append((future, None))
        else:
            self._may_be_empty = False
            job = functools.partial(self._loader._job, batch, self._epoch)
            if self._background is None:
                future = Future()
                try:
                    future.set_result(job())
                except Exception as error:
                    future.set_exception(error)
            else:
                future = self._background.submit(job)
            self._ahead.append((future, self._loader._state()))

    def _finish(self) -> None:
        if self._end is not None:
            self._loader._handed_out(*self._end)
        self._close()

    def _close(self) -> None:
        self._done = True
        self._ahead.clear()
        if self._background is not None:
            self._background.stop()


def _pinned_like(before: Any, after: Any) -> Any:
    """A batch in which tensors are in pinned memory where they were before they were edited."""
    if isinstance(after, torch.Tensor):
        pins = isinstance(before, torch.Tensor) and before.is_pinned() and not after.is_pinned()
        return after.pin_memory() if pins else after
    if isinstance(after, Mapping):
        changed = {name: _pinned_like(before.get(name), value) for name, value in after.items()}
        return mapping(after, changed, ())
    if isinstance(after, (tuple, list)) and len(after) == len(before):
        elements = [_pinned_like(b, a) for b, a in zip(before, after, strict=True)]
        return type(after)(*elements) if hasattr(after, "_fields") else type(after)(elements)
    return after
