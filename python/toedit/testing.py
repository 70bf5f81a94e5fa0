"""Assertions for the tests of a training pipeline.

Under pytest they are fixtures too: see :mod:`toedit.pytest_plugin`.
"""

from __future__ import annotations

import copy
import itertools
import random
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from toedit import _arrow
from toedit._arrow import IDS, IGNORED, LABELS, SCORES
from toedit._errors import InputError
from toedit.editor import Editor

__all__ = ["assert_deterministic", "assert_only_candidates_changed"]

_MASK = "attention_mask"
_SEQ_LENGTHS = "seq_lengths"
# The parts of a loader that may have an epoch or a random generator of their own.
_EPOCHS = ("collate_fn", "dataset")
_SAMPLERS = ("sampler", "batch_sampler")


def assert_deterministic(
    loader: Iterable[Any],
    *,
    set_epoch: Callable[[int], object] | None = None,
    epoch: int = 0,
    epochs: int = 3,
    batches: int | None = None,
) -> None:
    """Assert that two passes over a loader in the same epoch give the same bytes, and that another epoch gives others.

    Every pass begins with the same state of ``random``, ``numpy.random``, ``torch`` and the generators of the loader and its
    samplers, so loaders that shuffle repeat as well; only the states of persistent workers go on from pass to pass. Afterwards
    these states are what they were, and the epoch is *epoch*.

    Batches are compared by value, dtype, shape and bit (NaN equals NaN, 0.0 is not -0.0): tensors, NumPy, Arrow and polars,
    numbers and strings, in mappings, lists, tuples and the attributes of other objects.

    Args:
        loader: what gives the batches; it is read from its beginning for each pass.
        set_epoch: what the training loop calls as an epoch begins. By default every ``set_epoch`` of the loader, its
            ``collate_fn`` and its ``dataset``. Not those of its samplers: another order of the rows would hide that the epoch
            does not reach what edits.
        epoch: the epoch that is read twice.
        epochs: of so many epochs after it at least one must give other batches. A policy that is expected to change next to
            nothing in these batches gives the same ones in every epoch: test with one that changes more. 0: epochs are not
            looked at, as for evaluation data.
        batches: how many batches of a pass are read; all of them by default.

    Raises:
        AssertionError: the batches of two passes differ, which names the first difference; or they are equal in all epochs; or
            there are none.
        InputError: epochs are to be looked at, but there is no ``set_epoch``.
        TypeError: the loader is an iterator, which can be read only once, or a batch holds what cannot be compared.
    """
    __tracebackhide__ = True
    if isinstance(loader, Iterator):
        raise TypeError("loader is an iterator, which can be read only once; pass what it was made from")
    parts: list[Any] = [loader, *(getattr(loader, name, None) for name in _EPOCHS)]
    setters = [part.set_epoch for part in parts if callable(getattr(part, "set_epoch", None))]
    if set_epoch is not None:
        setters = [set_epoch]
    if epochs > 0 and not setters:
        raise InputError(
            "neither the loader nor its collate_fn or dataset has set_epoch; say with set_epoch= how your training loop sets "
            "the epoch, or with epochs=0 that its batches are the same in every epoch"
        )

    def begin(number: int) -> None:
        for setter in setters:
            setter(number)

    with _replay(loader) as rewind:
        begin(epoch)  # before each pass: there are loaders that count passes as epochs
        # Copies: a collate function may write its next batch over the last one.
        first = [copy.deepcopy(batch) for batch in itertools.islice(loader, batches)]
        if not first:
            raise AssertionError("the loader gives no batches")
        try:
            rewind()
            begin(epoch)
            difference = _of_passes(first, loader, batches)
            if difference is not None:
                raise AssertionError(
                    f"two passes in epoch {epoch} differ: {difference}. Both began with the same state of random, "
                    "numpy.random, torch and the loader's generators; what made the difference has another source"
                )
            for number in range(epoch + 1, epoch + 1 + epochs):
                rewind()
                begin(number)
                if _of_passes(first, loader, batches) is not None:
                    return
        finally:
            begin(epoch)
    if epochs > 0:
        counted = [f" So far {part.stats()}." for part in parts if callable(getattr(part, "stats", None))]
        raise AssertionError(
            f"the batches of the epochs {epoch} to {epoch + epochs} are the same: set_epoch does not reach what edits, or the "
            f"policy changes too little in these batches; test with one that changes more.{''.join(counted)}"
        )


@contextmanager
def _replay(loader: Any) -> Iterator[Callable[[], None]]:
    """Gives a function that puts the random states back to what they are now, and puts them back at the end."""
    states: list[tuple[Callable[[Any], object], Any]] = [
        (random.setstate, random.getstate()),
        (np.random.set_state, np.random.get_state()),
    ]
    torch = sys.modules.get("torch")
    if torch is not None:
        states.append((torch.set_rng_state, torch.get_rng_state()))
        samplers = [getattr(loader, name, None) for name in _SAMPLERS]
        for owner in (loader, *samplers, *(getattr(sampler, "sampler", None) for sampler in samplers)):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                states.append((generator.set_state, generator.get_state()))

    def rewind() -> None:
        for put, state in states:
            put(state)

    try:
        yield rewind
    finally:
        rewind()


def _of_passes(first: list[Any], loader: Iterable[Any], limit: int | None) -> str | None:
    """The first difference between the batches of a pass and those of another one."""
    missing = object()
    for n, (one, other) in enumerate(itertools.zip_longest(first, itertools.islice(loader, limit), fillvalue=missing)):
        if one is missing or other is missing:
            return f"one has {len(first)} batches, the other {'more' if one is missing else n}"
        difference = _difference(one, other, f"batch {n}")
        if difference is not None:
            return difference
    return None


def _difference(one: Any, other: Any, at: str) -> str | None:
    """Where two values differ first; None where they are the same."""
    if type(one) is not type(other):
        return f"{at} is a {type(one).__name__} and a {type(other).__name__}"
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(one, torch.Tensor):
        return _of_arrays(one, other, at, _tensor_bytes)
    if isinstance(one, (np.ndarray, np.generic)) and one.dtype != object:
        return _of_arrays(np.asarray(one), np.asarray(other), at, _array_bytes)
    if isinstance(one, np.ndarray):
        return _difference(one.tolist(), other.tolist(), at)
    if hasattr(one, "__arrow_c_stream__") or hasattr(one, "__arrow_c_array__"):
        one, other = _imported(one), _imported(other)
        if one.type != other.type:
            return f"{at} holds {one.type} and {other.type}"
        return _difference(one.to_pylist(), other.to_pylist(), at)
    if isinstance(one, Mapping):
        return _of_mappings(one, other, at, lambda key: f"[{key!r}]")
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return f"{at} has {len(one)} and {len(other)} elements"
        return _first(_difference(a, b, f"{at}[{i}]") for i, (a, b) in enumerate(zip(one, other, strict=True)))
    if isinstance(one, float):
        return None if repr(one) == repr(other) else f"{at} is {one!r} and {other!r}"
    attributes = getattr(one, "__dict__", None)
    if attributes and not callable(one):
        return _of_mappings(attributes, vars(other), at, lambda name: f".{name}")
    equal = one == other
    if not isinstance(equal, bool):
        raise TypeError(f"{at} is a {type(one).__name__}, which cannot be compared")
    return None if equal else f"{at} is {one!r} and {other!r}"


def _of_mappings(one: Mapping[Any, Any], other: Mapping[Any, Any], at: str, place: Callable[[Any], str]) -> str | None:
    if list(one) != list(other):
        return f"{at} has {list(one)} and {list(other)}"
    return _first(_difference(one[key], other[key], at + place(key)) for key in one)


def _imported(data: Any) -> Any:
    return pa.chunked_array(data) if hasattr(data, "__arrow_c_stream__") else pa.array(data)


def _first(differences: Iterable[str | None]) -> str | None:
    return next((difference for difference in differences if difference is not None), None)


Bytes = npt.NDArray[np.uint8]


def _of_arrays(one: Any, other: Any, at: str, as_bytes: Callable[[Any], Bytes]) -> str | None:
    """The same for two tensors or NumPy arrays."""
    shapes = [tuple(values.shape) for values in (one, other)]
    if one.dtype != other.dtype or shapes[0] != shapes[1]:
        return f"{at} is {one.dtype} of shape {shapes[0]} and {other.dtype} of shape {shapes[1]}"
    if 0 in shapes[0]:
        return None
    differ = np.flatnonzero((as_bytes(one) != as_bytes(other)).any(axis=1))
    if len(differ) == 0:
        return None
    index = tuple(int(i) for i in np.unravel_index(differ[0], shapes[0]))
    values = f"{one[index].tolist()!r} and {other[index].tolist()!r}"
    return f"{at}{list(index) if index else ''} is {values} ({len(differ)} of {int(np.prod(shapes[0]))} values differ)"


def _array_bytes(array: Any) -> Bytes:
    """The bytes of each value: [values, bytes]."""
    return np.frombuffer(array.tobytes(), np.uint8).reshape(array.size, -1)


def _tensor_bytes(tensor: Any) -> Bytes:
    """The same. NumPy has no bfloat16."""
    torch = sys.modules["torch"]
    dense = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    found: Bytes = dense.cpu().contiguous().reshape(-1, 1).view(torch.uint8).numpy()
    return found


@dataclass
class _Rows:
    """A batch as Python values.

    Attributes:
        ids: the ids of each row, without padding.
        real: their places in the rows as they came.
        others: other columns.
        by_token: those of them that have a value for each token, padding included.
    """

    ids: list[list[int]]
    real: list[list[int]]
    others: dict[str, list[Any]]
    by_token: set[str]

    @classmethod
    def of(cls, batch: Any, names: Collection[str | None]) -> _Rows:
        """A batch, with those of these columns that it has."""
        opened = _arrow.open_batch(batch)
        if IDS not in opened.names:
            raise InputError(f"the batch has no column {IDS!r}, only {opened.names}")
        columns = {name: opened.column(name)[0].to_pylist() for name in opened.names if name in {IDS, _MASK, *names}}
        rows = columns.pop(IDS)
        masks = columns.get(_MASK) or [[1] * len(row) for row in rows]
        real = [[i for i, is_real in enumerate(mask) if is_real] for mask in masks]
        lengths = [len(row) for row in rows]
        by_token = {
            name
            for name, values in columns.items()
            if all(isinstance(value, list) for value in values) and [len(value) for value in values] == lengths
        }
        return cls([[row[i] for i in at] for row, at in zip(rows, real, strict=True)], real, columns, by_token)

    def value(self, name: str, row: int) -> Any:
        """A row's value of a column, without padding."""
        value = self.others[name][row]
        return [value[i] for i in self.real[row]] if name in self.by_token else value


def assert_only_candidates_changed(before: Any, after: Any, *, editor: Editor, pad_id: int | None = None) -> int:
    """Assert that a pipeline changed nothing but candidates of the policy.

    Every token that differs is one that the policy draws anew, every token that is missing one that it drops, and those that
    it always drops are missing; labels are what the policy says; the other columns that both have are the same, without the
    values of dropped tokens. Floating-point values are compared as float32.

    Args:
        before: the rows that went in: as for :class:`toedit.Editor`, with their scores, or scored here. Packed rows
            (``seq_lengths``) too; in messages their tokens are counted from the row's first.
        after: what came out, row for row: of any kind too, also padded and with other columns.
        editor: what edited, of one generation. Candidates follow from its policy and the scores, not from seed or epoch.
        pad_id: the id that *after* was filled up with on the right, if it has no ``attention_mask``.

    Returns:
        How many tokens were changed or dropped; 0 if the pipeline edited nothing.

    Raises:
        AssertionError: something else differs; the message names row and position.
        InputError, ScoresError: a row or a value cannot be used, as where it is edited.
    """
    __tracebackhide__ = True
    if editor.generations != 1:
        raise InputError(
            f"the editor makes {editor.generations} generations; only the first one's candidates follow from before"
        )
    common = {*_arrow.open_batch(before).names} & {*_arrow.open_batch(after).names} - {SCORES}
    was, now = _Rows.of(before, [*common, editor.offset, _SEQ_LENGTHS]), _Rows.of(after, common)
    if len(was.ids) != len(now.ids):
        raise AssertionError(f"{len(was.ids)} rows went in, {len(now.ids)} came out")
    policy = editor.policy
    limited = policy.edit_probability < 1 or policy.max_edit_rate < 1
    done = 0
    for row, bands in enumerate(_candidates(before, was, editor)):
        old, new = was.ids[row], now.ids[row]
        actions = {at: policy.candidate_bands[band].action for at, band in bands.items()}
        kept = _alignment(old, new, actions, limited, pad_id, f"row {row}")
        now.real[row] = now.real[row][: len(kept)]
        for name in sorted(common - {IDS}):
            expected, value = was.value(name, row), now.value(name, row)
            if name in was.by_token:
                expected = [expected[i] for i in kept]
            if name == LABELS:
                follow = new if policy.labels == "edited" else expected
                allowed = [
                    _allowed(label, followed, actions.get(i), limited)
                    for i, label, followed in zip(kept, expected, follow[: len(kept)], strict=True)
                ]
                _check_labels(value, allowed, f"row {row}")
            elif not _same(expected, value):
                raise AssertionError(f"row {row}: {name} was {expected} for the tokens that are left, and is {value}")
        done += len(old) - len(kept) + sum(new[j] != old[i] for j, i in enumerate(kept))
    return done


def _allowed(label: int, followed: int, action: str | None, limited: bool) -> set[int]:
    """What the label of a token may have become."""
    if label == IGNORED:
        return {IGNORED}
    if action != "mask_loss":
        return {followed}
    return {IGNORED, followed} if limited else {IGNORED}


def _check_labels(labels: Any, allowed: list[set[int]], at: str) -> None:
    if not isinstance(labels, list) or len(labels) != len(allowed):
        raise AssertionError(f"{at}: {len(allowed)} tokens have the labels {labels}")
    for i, (label, may_be) in enumerate(zip(labels, allowed, strict=True)):
        if label not in may_be:
            raise AssertionError(f"{at}: the label of token {i} is {label}; it must be {' or '.join(map(str, sorted(may_be)))}")


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal, whatever float type they went through."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return bool(np.array_equal(np.float32(one), np.float32(other), equal_nan=True))
    return bool(one == other)


def _candidates(before: Any, was: _Rows, editor: Editor) -> list[dict[int, int]]:
    """For each row the bands of its candidates, by index. A band that masks loss leaves an entry in the log for each of its
    candidates, whatever is drawn, so the editor is asked with bands that do nothing else."""
    bands = tuple(replace(band, action="mask_loss") for band in editor.policy.candidate_bands)
    policy = replace(editor.policy, threshold=None, bands=bands, edit_probability=1.0, max_edit_rate=1.0)
    log = Editor(editor.prior, policy, offset=editor.offset).edit(before).log
    # The log has a row for each document: in which of these rows it is, at which index, and with which position it begins.
    documents = [(row, 0) for row in range(len(was.ids))]
    offsets = [0] * len(documents) if editor.offset is None else was.others[editor.offset]
    if _SEQ_LENGTHS in was.others and not editor.prior.cross_documents:
        lengths = was.others[_SEQ_LENGTHS]
        documents = [(row, at) for row, of in enumerate(lengths) for at in list(itertools.accumulate(of, initial=0))[:-1]]
        offsets = [0] * len(documents) if editor.offset is None else list(itertools.chain(*offsets))
    found: list[dict[int, int]] = [{} for _ in was.ids]
    for n, position, band in zip(*(log.column(name).to_pylist() for name in ("row", "position", "band")), strict=True):
        row, at = documents[n]
        found[row][at + position - offsets[n]] = band
    return found


_WHY_NOT = {
    None: "it is no candidate",
    "mask_loss": "the policy masks its loss and does not change it",
    "resample": "the policy draws it anew and does not drop it",
}


def _alignment(
    old: list[int], new: list[int], actions: dict[int, str], limited: bool, pad_id: int | None, at: str
) -> list[int]:
    """The indexes of the old tokens that are still there, in whatever form.

    Args:
        actions: what the policy does with candidates, by index.
        limited: whether it may also leave them alone. Then nobody can see which were dropped, and all ways are followed at
            once: reached[i] is how many new tokens may have come from the first i old ones.
    """
    reached = [{0}]
    for i, token in enumerate(old):
        action = actions.get(i)
        ends = set(reached[i]) if action == "drop" else set()
        if action != "drop" or limited:
            ends |= {j + 1 for j in reached[i] if j < len(new) and (action == "resample" or new[j] == token)}
        if not ends:
            j = max(reached[i])
            now = f"is {new[j]}" if j < len(new) else "is gone"
            raise AssertionError(f"{at}: token {i} was {token} and {now}; {_WHY_NOT[action]}")
        reached.append(ends)
    ends = {j for j in reached[-1] if all(token == pad_id for token in new[j:])}
    if not ends:
        raise AssertionError(
            f"{at}: {len(old)} tokens became {len(new)}, of which {max(reached[-1])} can be theirs. If the rest is padding, "
            f"after needs an {_MASK}, or pad_id= must say which id it is"
        )
    j = max(ends)
    kept = []
    for i in range(len(old) - 1, -1, -1):
        stays = j - 1 in reached[i] and (actions.get(i) == "resample" or new[j - 1] == old[i])
        if stays and (actions.get(i) != "drop" or limited):
            j -= 1
            kept.append(i)
    return kept[::-1]
