"""Rows of every form in data loading (mappings, tuples, tensors, shifted targets), and rows that cannot be edited."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer

import helpers
import toedit

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader, IterableDataset, default_convert  # noqa: E402

from toedit.torch import EditCollator, EditedDataset, EditingLoader  # noqa: E402

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

POLICY = toedit.Policy(threshold=0.3, temperature=1.5)
LENGTH = 32
PAIR = ("input_ids", "labels")


@pytest.fixture(scope="module")
def texts(tokenizer: Tokenizer) -> list[list[int]]:
    """16 rows of LENGTH + 1 tokens."""
    ids = [i for row in helpers.text_rows(tokenizer, 16 * (LENGTH + 1), seed=8) for i in row]
    return [ids[n : n + LENGTH + 1] for n in range(0, len(ids), LENGTH + 1)]


@pytest.fixture(scope="module")
def editor(prior: toedit.Prior) -> toedit.Editor:
    editor = toedit.Editor(prior, POLICY, seed=3)
    editor([[1]])
    return editor


@pytest.fixture(scope="module")
def edited(editor: toedit.Editor, texts: list[list[int]]) -> list[list[int]]:
    edited = editor(texts)["input_ids"]
    assert sum(new != old for new, old in zip(edited, texts, strict=True)) > 12
    return list(edited)


def lists(batch: Any) -> Any:
    return batch.tolist() if isinstance(batch, (torch.Tensor, np.ndarray)) else list(batch)


# Shifted targets


def as_tensors(row: list[int]) -> Any:
    return torch.tensor(row[:-1]), torch.tensor(row[1:])


class Pair(NamedTuple):
    x: Any
    y: Any


MAKERS: dict[str, Any] = {
    "tensors": as_tensors,
    "arrays": lambda row: (np.array(row[:-1], np.uint16), np.array(row[1:], np.int64)),
    "lists": lambda row: [row[:-1], row[1:]],
    "named": lambda row: Pair(*as_tensors(row)),
    "mapping": lambda row: {"input_ids": row[:-1], "labels": row[1:]},
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("wrapped", [False, True], ids=["collator", "dataset"])
def test_shifted_targets(
    editor: toedit.Editor, texts: list[list[int]], edited: list[list[int]], kind: str, wrapped: bool
) -> None:
    rows = [MAKERS[kind](row) for row in texts]
    options: dict[str, Any] = {"targets": "shifted", "fields": None if kind == "mapping" else PAIR}
    if wrapped:
        dataset = EditedDataset(rows, editor, **options)
        got = [dataset[n] for n in range(len(rows))]
    else:
        got = EditCollator(editor, list, **options)(rows)
    for new, old, want in zip(got, rows, edited, strict=True):
        assert type(new) is type(old)
        x, y = new.values() if isinstance(new, dict) else new
        x_old, y_old = old.values() if isinstance(old, dict) else old
        for values, before in ((x, x_old), (y, y_old)):
            assert type(values) is type(before)
            assert getattr(values, "dtype", None) == getattr(before, "dtype", None)
        assert lists(x) == want[:-1]
        assert lists(y) == want[1:]


def test_shifted_targets_in_a_loader(editor: toedit.Editor, texts: list[list[int]], edited: list[list[int]]) -> None:
    """A whole loop as nanoGPT has it: batches of x and y."""
    loader = DataLoader([as_tensors(row) for row in texts], 5)
    got = list(EditingLoader(loader, editor, fields=PAIR, targets="shifted"))
    assert [type(batch) for batch in got] == [list] * 4
    assert torch.cat([x for x, _ in got]).tolist() == [row[:-1] for row in edited]
    assert torch.cat([y for _, y in got]).tolist() == [row[1:] for row in edited]


def test_masked_targets_stay_and_are_context(editor: toedit.Editor, texts: list[list[int]]) -> None:
    """The last id is not known where its target is masked: what is edited then is the inputs."""
    for masked, last in ((10, False), (10, True), (0, True)):
        y = [[-100] * masked + row[1 + masked :] for row in texts]
        if last:
            y = [[*row[:-1], -100] for row in y]
        rows = [(torch.tensor(row[:-1]), torch.tensor(t)) for row, t in zip(texts, y, strict=True)]
        labelled = [
            {"input_ids": row[:-1] if last else row, "labels": ([-100] if masked else row[:1]) + (t[:-1] if last else t)}
            for row, t in zip(texts, y, strict=True)
        ]
        got = EditCollator(editor, list, fields=PAIR, targets="shifted")(rows)
        for (x, new), want, old in zip(got, editor(labelled)["input_ids"], y, strict=True):
            assert x.tolist() == want[:LENGTH]
            following = [*want[1:], -100] if last else want[1:]
            assert new.tolist() == [-100 if t == -100 else i for t, i in zip(old, following, strict=True)]


def test_stored_scores_are_of_inputs_and_last_target(
    prior: toedit.Prior, editor: toedit.Editor, texts: list[list[int]], edited: list[list[int]]
) -> None:
    scores = prior.score(texts, keep=POLICY).to_pylist()
    rows = [(*as_tensors(row), s, n) for n, (row, s) in enumerate(zip(texts, scores, strict=True))]
    got = EditCollator(editor, list, fields=(*PAIR, "scores"), targets="shifted")(rows)
    assert [len(row) for row in got] == [3] * len(rows)  # the scores are spent
    assert [x.tolist() for x, _, _ in got] == [row[:-1] for row in edited]
    assert [n for _, _, n in got] == list(range(len(rows)))
    with pytest.raises(toedit.ScoresError, match="row 0"):
        EditCollator(editor, list, fields=(*PAIR, "scores"), targets="shifted", on_error="raise")(
            [(row[:-1], row[1:], prior.score([row[:-1]], keep=POLICY)[0].as_py()) for row in texts]
        )


def test_padded_rows_with_shifted_targets(editor: toedit.Editor, texts: list[list[int]]) -> None:
    short = [row[: 5 + n] for n, row in enumerate(texts)]
    want = editor(short)["input_ids"]
    for left in (False, True):
        x, mask = helpers.pad([row[:-1] for row in short], LENGTH, left=left)
        y, _ = helpers.pad([row[1:] for row in short], LENGTH, left=left, value=-100)
        batch = {"input_ids": torch.tensor(x), "attention_mask": torch.tensor(mask), "labels": torch.tensor(y)}
        (got,) = EditingLoader([batch], editor, targets="shifted")
        assert set(got) == set(batch)
        assert torch.equal(got["attention_mask"], batch["attention_mask"])
        real = batch["attention_mask"].bool()
        assert torch.equal(got["input_ids"][~real], batch["input_ids"][~real])
        assert (got["labels"][~real] == -100).all()
        for n, row in enumerate(want):
            if left:  # the last target lies behind the last token
                assert got["input_ids"][n][real[n]].tolist() == row[:-1]
                assert got["labels"][n][real[n]].tolist() == row[1:]


def test_original_targets_under_edited_inputs(prior: toedit.Prior, texts: list[list[int]], edited: list[list[int]]) -> None:
    policy = toedit.Policy(threshold=0.3, temperature=1.5, labels="original")
    rows = [as_tensors(row) for row in texts]
    got = EditCollator(toedit.Editor(prior, policy, seed=3), list, fields=PAIR, targets="shifted")(rows)
    assert [x.tolist() for x, _ in got] == [row[:-1] for row in edited]
    assert [y.tolist() for _, y in got] == [row[1:] for row in texts]


def test_dropped_tokens_are_nobodys_targets(prior: toedit.Prior, texts: list[list[int]]) -> None:
    editor = toedit.Editor(prior, toedit.Policy(bands=(toedit.Band(0.5, action="drop"),)))
    want = editor(texts)["input_ids"]
    assert sum(len(row) < len(old) for row, old in zip(want, texts, strict=True)) > 8
    got = EditCollator(editor, list, fields=PAIR, targets="shifted")([as_tensors(row) for row in texts])
    assert [(x.tolist(), y.tolist()) for x, y in got] == [(row[:-1], row[1:]) for row in want]


def test_targets_that_are_not_the_next_ids(editor: toedit.Editor, texts: list[list[int]]) -> None:
    rows = [(row[:-1], row[:-1]) for row in texts]
    with pytest.raises(toedit.InputError, match=r"row 0: .*label"):
        EditCollator(editor, list, fields=PAIR, targets="shifted", on_error="raise")(rows)
    with pytest.raises(toedit.InputError, match="33 inputs and 32 targets"):
        EditCollator(editor, list, fields=PAIR, targets="shifted", on_error="raise")([(texts[0], texts[0][1:])])
    with pytest.raises(toedit.InputError, match="no 'labels'"):
        EditCollator(editor, list, targets="shifted", on_error="raise")([{"input_ids": [1, 2]}])


def test_rows_of_length_and_one(editor: toedit.Editor, texts: list[list[int]], edited: list[list[int]]) -> None:
    """Rows that carry the last target with the inputs need nothing: the collate function shifts the edited ids."""

    def shift(rows: list[Any]) -> Any:
        ids = torch.stack(list(rows))
        return ids[:, :-1], ids[:, 1:]

    x, y = EditCollator(editor, shift)([torch.tensor(row) for row in texts])
    assert x.tolist() == [row[:-1] for row in edited]
    assert y.tolist() == [row[1:] for row in edited]


# Fields


@pytest.mark.parametrize("fields", [1, ("name", "input_ids"), {1: "input_ids"}, (None, "input_ids", None)])
def test_elements_of_tuples(editor: toedit.Editor, texts: list[list[int]], edited: list[list[int]], fields: Any) -> None:
    rows = [(str(n), torch.tensor(row), [1.0]) for n, row in enumerate(texts)]
    dataset = EditedDataset(rows, editor, fields=fields)
    assert [(name, ids.tolist(), more) for name, ids, more in dataset.__getitems__(list(range(len(rows))))] == [
        (str(n), row, [1.0]) for n, row in enumerate(edited)
    ]
    names, ids, more = next(iter(EditingLoader(DataLoader(rows, 16), editor, fields=fields)))
    assert list(names) == [str(n) for n in range(16)]
    assert ids.tolist() == edited
    assert len(more[0]) == 16


@pytest.mark.parametrize("fields", ["tokens", {"tokens": "input_ids", "id": "doc"}])
def test_other_names_of_columns(prior: toedit.Prior, texts: list[list[int]], fields: Any) -> None:
    key = "doc" if isinstance(fields, dict) else "id"
    editor = toedit.Editor(prior, POLICY, key=key)
    want = editor([{"input_ids": row, key: str(n)} for n, row in enumerate(texts)])["input_ids"]
    rows = [{"tokens": torch.tensor(row), "id": str(n), "n": n} for n, row in enumerate(texts)]
    got = EditCollator(editor, list, fields=fields)(rows)
    assert [row["tokens"].tolist() for row in got] == want
    assert [set(row) for row in got] == [{"tokens", "n"}] * 16
    (batch,) = EditingLoader(DataLoader(rows, 16), editor, fields=fields)
    assert set(batch) == {"tokens", "n"}
    assert batch["tokens"].tolist() == want


def test_tuples_must_be_explained(editor: toedit.Editor, texts: list[list[int]]) -> None:
    rows = [as_tensors(row) for row in texts]
    for wrong in (lambda: EditCollator(editor, list)(rows), lambda: next(iter(EditingLoader(DataLoader(rows, 4), editor)))):
        with pytest.raises(toedit.InputError, match=r"tuples; say what .* fields=\(\"input_ids\", \"labels\"\)"):
            wrong()


@pytest.mark.parametrize("fields", [("ids",), {"tokens": "ids"}, (), {0: 1}, 1.5, True, ("labels", None)])
def test_fields_that_are_none(editor: toedit.Editor, fields: Any) -> None:
    with pytest.raises(toedit.InputError, match="fields is"):
        EditCollator(editor, fields=fields)


def test_settings_that_are_none(editor: toedit.Editor) -> None:
    for options, message in (
        ({"targets": "next"}, "targets is 'next'"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
        ({"error_column": True}, "error_column is True"),
    ):
        with pytest.raises(toedit.InputError, match=message):
            EditedDataset([], editor, **options)  # type: ignore[arg-type]
    with pytest.raises(toedit.InputError, match="one name"):
        EditCollator(editor, list, fields={"a": "input_ids"})([{"a": [1], "input_ids": [1]}])


def test_batches_that_were_made_before(editor: toedit.Editor, texts: list[list[int]], edited: list[list[int]]) -> None:
    """A dataset of whole batches: batch_size=None."""
    batches = [{"input_ids": torch.tensor(texts[n : n + 4])} for n in range(0, 16, 4)]
    loader = DataLoader(batches, batch_size=None, collate_fn=EditCollator(editor, default_convert))
    assert torch.cat([batch["input_ids"] for batch in loader]).tolist() == edited


# Rows that cannot be edited


class Stream(IterableDataset[Any]):
    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


@pytest.fixture
def bad(texts: list[list[int]]) -> list[dict[str, Any]]:
    """Rows 5 and 11 cannot be edited."""
    rows = [{"input_ids": list(row), "n": n} for n, row in enumerate(texts)]
    rows[5]["input_ids"][3] = 10**6
    rows[11]["input_ids"][0] = -1
    return rows


WAYS = ("collator", "dataset", "stream", "tensors", "arrow")


def run(way: str, editor: toedit.Editor, rows: list[dict[str, Any]], **options: Any) -> tuple[list[dict[str, Any]], Any]:
    """The rows that come of a way to load them, and what edited them."""
    if way == "collator":
        editing: Any = EditCollator(editor, list, **options)
        got = [row for batch in DataLoader(rows, 7, collate_fn=editing) for row in batch]
    elif way == "arrow":
        editing = EditCollator(editor, lambda table: table, **options)
        table = pa.Table.from_pylist(rows)
        got = [row for start in range(0, len(rows), 7) for row in editing(table.slice(start, 7)).to_pylist()]
    elif way == "tensors":
        editing = EditingLoader(
            DataLoader([{**r, "input_ids": torch.tensor(r["input_ids"])} for r in rows], 7), editor, **options
        )
        got = []
        for batch in editing:
            columns = {name: values.tolist() if torch.is_tensor(values) else values for name, values in batch.items()}
            got += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    else:
        editing = EditedDataset(rows if way == "dataset" else Stream(rows), editor, **options)
        got = [row for batch in DataLoader(editing, 7, collate_fn=list) for row in batch]
    return got, editing


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_row_is_kept(
    editor: toedit.Editor, bad: list[dict[str, Any]], texts: list[list[int]], edited: list[list[int]], way: str
) -> None:
    with pytest.warns(toedit.RowErrorWarning, match="passed on as it is: row .: input_ids.* is 1000000") as met:
        got, editing = run(way, editor, bad)
    assert len(met) == 1
    assert [row["n"] for row in got] == list(range(16))
    for n, row in enumerate(got):
        assert row["input_ids"] == (bad[n]["input_ids"] if n in (5, 11) else edited[n])
    assert editing.errors == 2
    assert editing.stats().rows == 14


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_row_is_dropped(editor: toedit.Editor, bad: list[dict[str, Any]], edited: list[list[int]], way: str) -> None:
    with pytest.warns(toedit.RowErrorWarning, match="left out: row"):
        got, editing = run(way, editor, bad, on_error="drop")
    assert [(row["n"], row["input_ids"]) for row in got] == [(n, row) for n, row in enumerate(edited) if n not in (5, 11)]
    assert editing.errors == 2


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_row_is_an_error(editor: toedit.Editor, bad: list[dict[str, Any]], way: str) -> None:
    with pytest.raises(toedit.InputError, match=r"input_ids.* is 1000000"):
        run(way, editor, bad, on_error="raise")


@pytest.mark.parametrize("way", WAYS)
def test_what_is_wrong_stands_in_a_column(editor: toedit.Editor, bad: list[dict[str, Any]], way: str) -> None:
    with pytest.warns(toedit.RowErrorWarning):
        got, _ = run(way, editor, bad, error_column="error")
    errors = {row["n"]: row["error"] for row in got if row["error"]}
    assert set(errors) == {5, 11}
    assert "1000000" in errors[5]
    got, _ = run(way, editor, bad[:5], error_column="error")
    assert [row["error"] for row in got] == [""] * 5


def test_a_bad_pair_is_kept(editor: toedit.Editor, texts: list[list[int]], edited: list[list[int]]) -> None:
    rows: list[Any] = [(*as_tensors(row), n) for n, row in enumerate(texts)]
    rows[3] = (torch.tensor([10**6] * LENGTH), torch.tensor([10**6] * LENGTH), 3)
    rows[6] = (rows[6][0], rows[6][0], 6)
    with pytest.warns(toedit.RowErrorWarning, match="row 3: "):
        got = EditCollator(editor, list, fields=(*PAIR, "n"), targets="shifted")(rows)
    assert torch.equal(got[3][0], rows[3][0])
    assert torch.equal(got[6][1], rows[6][0])
    assert [x.tolist() for x, _, n in got if n not in (3, 6)] == [row[:-1] for n, row in enumerate(edited) if n not in (3, 6)]


@pytest.mark.parametrize("what", [None, {"n": 5}, {"input_ids": "text", "n": 5}, {"input_ids": None, "n": 5}, 7])
def test_rows_that_are_none(editor: toedit.Editor, bad: list[Any], edited: list[list[int]], what: Any) -> None:
    bad[0], bad[5] = what, what
    del bad[11]["input_ids"][0]
    collator = EditCollator(editor, list)
    with pytest.warns(toedit.RowErrorWarning):
        got = collator(bad)
    assert got[5] == what
    assert got[1]["input_ids"] == edited[1]
    assert collator.errors == 2


def test_bad_rows_of_scores(
    prior: toedit.Prior, editor: toedit.Editor, texts: list[list[int]], edited: list[list[int]]
) -> None:
    """Spent columns go with all rows, or torch could not make a batch of them."""
    scores = prior.score(texts, keep=POLICY).to_pylist()
    scores[2], scores[9] = scores[9], None
    rows = [{"input_ids": torch.tensor(row), "scores": s} for row, s in zip(texts, scores, strict=True)]
    collator = EditCollator(editor)
    with pytest.warns(toedit.RowErrorWarning, match="scores"):
        batch = collator(rows)
    assert set(batch) == {"input_ids"}
    assert batch["input_ids"][2].tolist() == texts[2]
    assert batch["input_ids"][3].tolist() == edited[3]
    assert collator.errors == 2


def test_labels_of_a_bad_row(
    prior: toedit.Prior, bad: list[dict[str, Any]], edited: list[list[int]], texts: list[list[int]]
) -> None:
    """Labels that are set behind the collate function: those of a row that was not edited are its ids."""

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        ids = torch.tensor([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": ids.clone()}

    editor = toedit.Editor(prior, toedit.Policy(threshold=0.3, temperature=1.5, labels="original"), seed=3)
    with pytest.warns(toedit.RowErrorWarning):
        batch = EditCollator(editor, collate)(bad)
    assert batch["input_ids"][4].tolist() == edited[4]
    assert batch["labels"].tolist() == [row["input_ids"] for row in bad]


@pytest.mark.filterwarnings("ignore::toedit.RowErrorWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_where_no_row_can_be_edited_nothing_is_kept(prior: toedit.Prior, texts: list[list[int]], workers: int) -> None:
    """The scores of another prior, say: training would go on with the original text."""
    rows = [{"input_ids": row, "scores": s} for row, s in zip(texts, prior.score(texts).to_pylist(), strict=True)]
    for row in rows:
        row["scores"]["prior"] = "0" * 32
    collator = EditCollator(toedit.Editor(prior, POLICY), list)
    loader = DataLoader(rows, 4, collate_fn=collator, num_workers=workers)
    with pytest.raises(toedit.ScoresError, match=r"none of the first 16 rows could be edited: row .: its scores"):
        list(loader)


def test_a_batch_of_which_nothing_is_left(editor: toedit.Editor, bad: list[dict[str, Any]], texts: list[list[int]]) -> None:
    rows = [*bad[:4], bad[5], bad[11], *bad[6:8]]
    for make in (lambda: EditedDataset(rows, editor, on_error="drop").__getitems__([4, 5]),
                 lambda: EditedDataset(rows, editor, on_error="drop")[4],
                 lambda: EditCollator(editor, list, on_error="drop")(rows[4:6])):  # fmt: skip
        with pytest.raises(toedit.InputError, match="nothing is left"), pytest.warns(toedit.RowErrorWarning):
            make()
    batches = [{"input_ids": torch.tensor([row["input_ids"] for row in rows[n : n + 2]])} for n in range(0, 8, 2)]
    with pytest.warns(toedit.RowErrorWarning):
        assert len(list(EditingLoader(batches, editor, on_error="drop"))) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_add_up_across_workers(editor: toedit.Editor, bad: list[dict[str, Any]], workers: int) -> None:
    collator = EditCollator(editor, list)
    collator.set_epoch(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", toedit.RowErrorWarning)
        for _ in range(2):
            list(DataLoader(bad, 4, collate_fn=collator, num_workers=workers))
    assert collator.errors == 4
    assert collator.stats().rows == 28
