"""The assertions that toedit has for its users' tests: what they accept, and what they say of the rest."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import helpers
import oracle
import toedit
from toedit.testing import assert_deterministic, assert_only_candidates_changed

Small = tuple[list[list[int]], list[oracle.Scores]]


class Loader:
    """Batches that a function makes, with an epoch."""

    def __init__(self, make: Callable[[int], list[Any]]) -> None:
        self.make = make
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        return iter(self.make(self.epoch))


@dataclass
class Batch:
    ids: Any


SAME: dict[str, Any] = {
    "mapping": {"ids": [1, 2], "text": "a", "weight": float("nan"), "none": None},
    "numpy": np.array([[1.0, np.nan], [-0.0, 0.0]]),
    "no-dimension": np.array(3),
    "no-value": np.zeros((0, 4), np.int32),
    "scalar": np.float32("nan"),
    "objects": np.array(["a", None], dtype=object),
    "arrow": pa.record_batch({"ids": [[1], []], "w": [float("nan"), None]}),
    "attributes": Batch(np.arange(3)),
    "tuple": (b"bytes", {"deep": [np.arange(2)]}),
}


@pytest.mark.parametrize("name", SAME)
def test_equal_batches_are_equal(name: str) -> None:
    assert_deterministic(Loader(lambda epoch: [copy.deepcopy(SAME[name]), epoch]))


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"ids": [1, 2]}, {"ids": [1, 3]}, r"batch 0\['ids'\]\[1\] is 2 and 3"),
        ({"a": 1}, {"b": 1}, r"batch 0 has \['a'\] and \['b'\]"),
        ([1, 2], [1], "batch 0 has 2 and 1 elements"),
        ([1], (1,), "batch 0 is a list and a tuple"),
        (1, 1.0, "batch 0 is a int and a float"),
        (0.0, -0.0, r"batch 0 is 0\.0 and -0\.0"),
        (np.zeros((2, 3)), np.zeros((3, 2)), r"float64 of shape \(2, 3\) and float64 of shape \(3, 2\)"),
        (np.zeros(2, np.int32), np.zeros(2, np.int64), "int32 of shape .* and int64"),
        (np.array([[1, 2], [3, 4]]), np.array([[1, 2], [5, 6]]), r"batch 0\[1, 0\] is 3 and 5 \(2 of 4 values differ\)"),
        (np.array([0.0]), np.array([-0.0]), r"batch 0\[0\] is 0\.0 and -0\.0"),
        (pa.table({"ids": [[1]]}), pa.table({"ids": [[2]]}), r"batch 0\[0\]\['ids'\]\[0\] is 1 and 2"),
        (pa.chunked_array([pa.array([1], pa.int32())]), pa.chunked_array([[1]]), "holds int32 and int64"),
        (Batch(np.arange(2)), Batch(np.arange(1, 3)), r"batch 0\.ids\[0\] is 0 and 1"),
    ],
)
def test_differences_are_named(one: Any, other: Any, said: str) -> None:
    passes = iter([[one], [other]])
    with pytest.raises(AssertionError, match=f"two passes in epoch 5 differ: .*{said}"):
        assert_deterministic(Loader(lambda epoch: next(passes)), epoch=5)


def test_tensors_and_polars() -> None:
    torch = pytest.importorskip("torch")
    polars = pytest.importorskip("polars")
    kinds = [
        lambda n: torch.tensor([[1.0, n]], dtype=torch.bfloat16),
        lambda n: torch.tensor(n),
        lambda n: [torch.zeros(0, 3), n],
        lambda n: torch.tensor([False, bool(n)]),
        lambda n: torch.arange(6).reshape(2, 3).T + n,
        lambda n: torch.tensor([0.0, n]).to_sparse(),
        lambda n: polars.DataFrame({"ids": [[1, n]]}),
    ]
    for kind in kinds:
        assert_deterministic(Loader(lambda epoch, kind=kind: [kind(epoch)]))  # type: ignore[misc]
        passes = iter([0, 1])
        with pytest.raises(AssertionError, match="two passes"):
            assert_deterministic(Loader(lambda epoch, kind=kind, passes=passes: [kind(next(passes))]))  # type: ignore[misc]


def test_numbers_of_batches() -> None:
    for numbers, said in (((2, 1), "2 batches, the other 1"), ((1, 2), "1 batches, the other more")):
        passes = iter(numbers)
        with pytest.raises(AssertionError, match=said):
            assert_deterministic(Loader(lambda epoch, passes=passes: [0] * next(passes)))  # type: ignore[misc]
    with pytest.raises(AssertionError, match="no batches"):
        assert_deterministic(Loader(lambda epoch: []))

    class Endless(Loader):
        def __iter__(self) -> Iterator[Any]:
            while True:
                yield self.epoch

    assert_deterministic(Endless(lambda epoch: []), batches=3)


def test_a_buffer_that_is_used_again_is_no_alibi() -> None:
    buffer, passes = np.zeros(2), iter(range(9))

    def make(epoch: int) -> list[Any]:
        buffer[:] = next(passes)
        return [buffer]

    with pytest.raises(AssertionError, match="two passes"):
        assert_deterministic(Loader(make))


def test_epochs() -> None:
    frozen = Loader(lambda epoch: [0])
    with pytest.raises(AssertionError, match="the batches of the epochs 2 to 5 are the same: set_epoch does not reach"):
        assert_deterministic(frozen, epoch=2)
    assert frozen.epoch == 2
    assert_deterministic(frozen, epochs=0)
    late = Loader(lambda epoch: [epoch // 3])
    assert_deterministic(late)
    with pytest.raises(AssertionError, match="epochs 0 to 2"):
        assert_deterministic(late, epochs=2)

    class Counting(Loader):
        """As EditingLoader does: without set_epoch, a pass is the next epoch."""

        def __iter__(self) -> Iterator[Any]:
            yield self.epoch
            self.epoch += 1

    assert_deterministic(Counting(lambda epoch: []))


def test_set_epoch_is_found_or_asked_for() -> None:
    with pytest.raises(toedit.InputError, match="set_epoch="):
        assert_deterministic([1, 2])
    assert_deterministic([1, 2], epochs=0)
    epoch = [0]
    assert_deterministic(epoch, set_epoch=lambda number: epoch.__setitem__(0, number))
    with pytest.raises(TypeError, match="read only once"):
        assert_deterministic(iter([1]))


def test_random_states_repeat_and_are_put_back() -> None:
    def make(epoch: int) -> list[Any]:
        return [random.random(), np.random.rand(), epoch]

    random.seed(1)
    expected = [random.random(), random.random()]
    random.seed(1)
    assert_deterministic(Loader(make))
    assert [random.random(), random.random()] == expected
    generator = np.random.default_rng(0)
    with pytest.raises(AssertionError, match="has another source"):
        assert_deterministic(Loader(lambda epoch: [generator.random()]))


@pytest.mark.parametrize("generated", [False, True])
def test_torch_loaders(small_prior: toedit.Prior, small_columns: dict[str, Any], generated: bool) -> None:
    torch = pytest.importorskip("torch")
    from toedit.torch import EditCollator

    rows = pa.table(small_columns).to_pylist()

    def loader(policy: toedit.Policy) -> Any:
        return torch.utils.data.DataLoader(
            rows,
            batch_size=2,
            shuffle=True,
            collate_fn=EditCollator(toedit.Editor(small_prior, policy), list),
            generator=torch.Generator().manual_seed(3) if generated else None,
        )

    assert_deterministic(loader(toedit.Policy(threshold=0.5, exclude_original=True)))
    nothing = loader(toedit.Policy(threshold=0.5, edit_probability=1e-9))
    with pytest.raises(AssertionError, match=r"the policy changes too little .* So far Counts\(rows=25, .* changes=0"):
        assert_deterministic(nothing)


# Candidates -----------------------------------------------------------------------------------------------------------

DRAWS = toedit.Policy(threshold=0.5, exclude_original=True)
DROPS = toedit.Policy(bands=(toedit.Band(0.5, 0.9, action="drop"), toedit.Band(0.9)), exclude_original=True)
MASKS = toedit.Policy(bands=(toedit.Band(0.5, 0.9, action="mask_loss"), toedit.Band(0.9)), exclude_original=True)


@pytest.mark.parametrize("policy", [DRAWS, DROPS, MASKS], ids=["draws", "drops", "masks"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"edit_probability": 0.5}, {"max_edit_rate": 0.1}, {"labels": "original"}, {"protect_first": 9}],
    ids=lambda changes: "".join(changes) or "plain",
)
def test_edits_are_accepted(
    small_prior: toedit.Prior, small_columns: dict[str, Any], policy: toedit.Policy, changes: dict[str, Any]
) -> None:
    editor = toedit.Editor(small_prior, replace(policy, **changes), seed=4, offset="start")
    ids = small_columns["input_ids"].to_pylist()
    labels = [[-100 if i % 7 == 0 else token for i, token in enumerate(row)] for row in ids]
    weights = [[0.1 * token for token in row] for row in ids]
    before = {**small_columns, "labels": labels, "weights": weights, "start": [0, 5, 6, 6, 0], "name": list("abcde")}
    edited = editor(before, epoch=2)
    done = assert_only_candidates_changed(before, edited, editor=editor)
    assert done == edited.changes + edited.counts.dropped > 0
    after = {**edited.batch, "weights": [np.float32(row).tolist() for row in edited["weights"]]}
    assert assert_only_candidates_changed(before, after, editor=editor) == done


@pytest.fixture
def dropped(small_prior: toedit.Prior, small_columns: dict[str, Any]) -> tuple[toedit.Editor, dict[str, Any], list[list[int]]]:
    """An editor, what goes in, and the ids that come out."""
    editor = toedit.Editor(small_prior, DROPS)
    return editor, small_columns, helpers.as_lists(editor(small_columns)["input_ids"])


@pytest.mark.parametrize("left", [False, True])
def test_padding(dropped: tuple[toedit.Editor, dict[str, Any], list[list[int]]], left: bool) -> None:
    editor, before, ids = dropped
    padded, mask = helpers.pad(ids, 70, left=left)
    after = {"input_ids": np.array(padded), "attention_mask": np.array(mask)}
    assert assert_only_candidates_changed(before, after, editor=editor) > 0
    del after["attention_mask"]
    if not left:
        assert assert_only_candidates_changed(before, after, editor=editor, pad_id=0) > 0
    with pytest.raises(AssertionError, match="row 0"):
        assert_only_candidates_changed(before, after, editor=editor)


def test_what_else_differs_is_named(small_prior: toedit.Prior, small_batch: Small, small_columns: dict[str, Any]) -> None:
    editor = toedit.Editor(small_prior, DROPS)
    ids, scores = small_batch
    p = np.exp(np.array(scores[0]["logp"], np.float64))
    plain = int(np.flatnonzero(p < 0.5)[0])
    labels = [list(row) for row in ids]
    before = {**small_columns, "labels": labels, "name": list("abcde")}
    good = {
        name: values.to_pylist() if hasattr(values, "to_pylist") else values for name, values in editor(before).batch.items()
    }
    assert_only_candidates_changed(before, good, editor=editor)

    def after(**changes: Any) -> dict[str, Any]:
        return {**good, **changes}

    def first(row: list[int]) -> list[list[int]]:
        return [row, *good["input_ids"][1:]]

    early = sum(1 for i in range(plain) if 0.5 <= p[i] < 0.9)  # candidates that are gone in front of it
    at = plain - early
    changed = [*good["input_ids"][0]]
    changed[at] += 1
    cases: list[tuple[dict[str, Any], str]] = [
        (
            after(input_ids=first(changed)),
            f"row 0: token {plain} was {ids[0][plain]} and is {ids[0][plain] + 1}; it is no cand",
        ),
        (after(input_ids=first(good["input_ids"][0][:-1])), r"row 0: token \d+ was \d+ and is gone"),
        (after(input_ids=first([*good["input_ids"][0], 9])), r"row 0: 40 tokens became \d+, .*attention_mask, or pad_id="),
        (after(input_ids=first(ids[0])), r"row 0: token \d+ was"),
        (after(labels=[[*good["labels"][0][:-1], 3], *good["labels"][1:]]), r"row 0: the label of token \d+ is 3; it must be"),
        (after(labels=[[], *good["labels"][1:]]), r"row 0: \d+ tokens have the labels \[\]"),
        (after(name=list("abxde")), "row 2: name was c for the tokens that are left, and is x"),
        ({"input_ids": good["input_ids"][:-1]}, "5 rows went in, 4 came out"),
    ]
    for wrong, said in cases:
        with pytest.raises(AssertionError, match=said):
            assert_only_candidates_changed(before, wrong, editor=editor)


def test_masked_loss(small_prior: toedit.Prior, small_columns: dict[str, Any]) -> None:
    editor = toedit.Editor(small_prior, MASKS)
    before = {**small_columns, "labels": small_columns["input_ids"]}
    with pytest.raises(AssertionError, match=r"the label of token \d+ is \d+; it must be -100"):
        assert_only_candidates_changed(before, before, editor=editor)


def test_limits_leave_every_way_open(small_prior: toedit.Prior, small_columns: dict[str, Any]) -> None:
    """With an amount nobody can tell which of the candidates were dropped."""
    limited = toedit.Editor(small_prior, replace(DROPS, edit_probability=0.5))
    all_of_them = toedit.Editor(small_prior, DROPS)(small_columns)
    assert_only_candidates_changed(small_columns, all_of_them, editor=limited)
    assert assert_only_candidates_changed(small_columns, small_columns, editor=limited) == 0
    with pytest.raises(AssertionError, match="it is no candidate"):
        assert_only_candidates_changed(small_columns, [row[2:] for row in all_of_them["input_ids"].to_pylist()], editor=limited)


PACKED = [[0, 1], [4], [], [3, 2, 0, 3]]  # documents of each row


@pytest.mark.parametrize("policy", [DRAWS, MASKS], ids=["draws", "masks"])
@pytest.mark.parametrize("scored", ["by document", "by row"])
def test_packed_rows(small_prior: toedit.Prior, small_batch: Small, policy: toedit.Policy, scored: str) -> None:
    ids, scores = small_batch
    rows = [[token for n in row for token in ids[n]] for row in PACKED]
    rng = np.random.default_rng(5)
    before: dict[str, Any] = {
        "input_ids": rows,
        "labels": rows,
        "seq_lengths": [[len(ids[n]) for n in row] for row in PACKED],
        "scores": [[scores[n] for n in row] for row in PACKED]
        if scored == "by document"
        else [oracle.make_scores(rng, row, 512, 8, 0.5, small_prior.fingerprint) for row in rows],
        "doc": [[f"{n} in {i}" for n in row] for i, row in enumerate(PACKED)],
        "start": [[9 * (at == 0) for at in range(len(row))] for row in PACKED],
    }
    # The first tokens of every document stay, where a row's would be those of its first document.
    editor = toedit.Editor(small_prior, replace(policy, protect_first=5), seed=4, key="doc", offset="start")
    edited = editor(before, epoch=2)
    done = assert_only_candidates_changed(before, edited, editor=editor)
    assert done == edited.changes > 3
    padded, mask = helpers.pad(edited["input_ids"], 120)
    after = {"input_ids": np.array(padded), "attention_mask": np.array(mask)}
    assert assert_only_candidates_changed(before, after, editor=editor) == done
    at = len(ids[3]) + len(ids[2]) + len(ids[0]) + 2
    wrong = [[*row] for row in edited["input_ids"]]
    wrong[3][at] += 1
    with pytest.raises(AssertionError, match=rf"row 3: token {at} was \d+ and is \d+; it is no candidate"):
        assert_only_candidates_changed(before, {**edited.batch, "input_ids": wrong}, editor=editor)


def test_generations_are_refused(small_prior: toedit.Prior, small_columns: dict[str, Any]) -> None:
    editor = toedit.Editor(small_prior, DRAWS, generations=2)
    with pytest.raises(toedit.InputError, match="makes 2 generations"):
        assert_only_candidates_changed(small_columns, small_columns, editor=editor)
