"""Editing inside PyTorch data loading: the same edited rows however they are loaded, and the columns a trainer expects."""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import pickle
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer

import helpers
import toedit

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, default_collate  # noqa: E402

from toedit.torch import EditCollator, EditedDataset  # noqa: E402

pytestmark = [
    pytest.mark.timeout(150),
    # CPython 3.12 and later find it a bad idea in general.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    # The machine may have fewer cores than the tests have workers.
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

Row = dict[str, Any]
Ids = dict[str, list[int]]

# Not a whole number of expected changes, and plenty of them.
POLICY = toedit.Policy(threshold=0.3, temperature=1.5)
# A worker that hangs becomes an error.
TIMEOUT = 60

# The server that forks workers imports torch once for all of them.
multiprocessing.set_forkserver_preload(["torch"])


@pytest.fixture(scope="module")
def texts(tokenizer: Tokenizer) -> list[list[int]]:
    """1,500 tokens of real text in rows of up to 64; as many as can be shared out evenly."""
    rows = helpers.text_rows(tokenizer, 1500, seed=5, longest=64)
    return rows[: len(rows) // 2 * 2]


@pytest.fixture(scope="module")
def data(prior: toedit.Prior, texts: list[list[int]]) -> list[Row]:
    """The texts as rows of a dataset: scored, keyed by `doc`; `name` is a column that nobody but the test reads."""
    scores = prior.score(texts, keep=POLICY).to_pylist()
    return [
        {"input_ids": ids, "scores": scores, "doc": f"document {n}", "name": str(n)}
        for n, (ids, scores) in enumerate(zip(texts, scores, strict=True))
    ]


@pytest.fixture(scope="module")
def fresh(data: list[Row]) -> list[Row]:
    """The same rows without scores."""
    return [without(row, "scores") for row in data]


@pytest.fixture(scope="module")
def editor(prior: toedit.Prior) -> toedit.Editor:
    editor = toedit.Editor(prior, POLICY, seed=3, key="doc")
    editor([{"input_ids": [1], "doc": ""}])  # its native half lasts as long as the module
    return editor


@pytest.fixture(scope="module")
def plain_editor(prior: toedit.Prior) -> toedit.Editor:
    """An editor without a key column."""
    editor = toedit.Editor(prior, POLICY, seed=4)
    editor([[1]])
    return editor


def without(row: Row, *names: str) -> Row:
    return {name: value for name, value in row.items() if name not in names}


def edited_by_hand(editor: toedit.Editor, data: list[Row], epoch: int = 0) -> tuple[Ids, toedit.editor.Counts]:
    """What all loading must come to: the whole data edited as one batch."""
    edited = editor(data, epoch)
    return {row["name"]: list(row["input_ids"]) for row in edited.batch}, edited.counts


def by_name(rows: list[Row]) -> Ids:
    """A collate function: every row's ids under its name. It takes nothing but what editing leaves."""
    assert set(rows[0]) == {"input_ids", "name"}
    return {row["name"]: [int(i) for i in row["input_ids"]] for row in rows}


def pad(rows: list[Row]) -> dict[str, Any]:
    width = max(len(row["input_ids"]) for row in rows)
    ids, mask = helpers.pad([list(row["input_ids"]) for row in rows], width)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def gathered(loader: Any) -> Ids:
    batches = list(loader)
    assert batches
    return {name: ids for batch in batches for name, ids in batch.items()}


def loader(dataset: Any, batch_size: int, collate: Any, workers: int, method: str | None, **options: Any) -> Any:
    if workers:
        options = {"multiprocessing_context": method, "timeout": TIMEOUT, **options}
    return DataLoader(dataset, batch_size, collate_fn=collate, num_workers=workers, **options)


def counted(counts: toedit.editor.Counts) -> dict[str, Any]:
    """Counts to compare: collators count expected changes in millionths, rounded for each batch."""
    return {**asdict(counts), "expected_changes": pytest.approx(counts.expected_changes, abs=1e-4)}


# The same bytes


MATRIX = [
    # workers, method, persistent, batch size, shuffled, scores, ranks
    (0, None, False, 1, False, "fresh", 2),
    (0, None, False, 7, True, "store", 1),
    (0, None, False, 64, False, "column", 2),
    (1, "fork", False, 1, True, "column", 2),
    (1, "spawn", True, 7, False, "store", 2),
    (1, "forkserver", False, 64, True, "fresh", 1),
    (2, "fork", True, 7, False, "fresh", 1),
    (2, "spawn", False, 64, True, "column", 1),
    (2, "forkserver", True, 1, False, "store", 2),
    (4, "fork", True, 64, False, "store", 2),
    (4, "spawn", False, 1, False, "fresh", 1),
    (4, "forkserver", True, 7, True, "column", 1),
]


def test_the_matrix_covers_all_pairs() -> None:
    """Each value of a column meets each value of every other, but for those that go with worker processes alone."""
    columns = [list(dict.fromkeys(column)) for column in zip(*MATRIX, strict=True)]
    workers, method, persistent = range(3)
    for i, j in itertools.combinations(range(len(columns)), 2):
        for values in itertools.product(columns[i], columns[j]):
            case = dict(zip((i, j), values, strict=True))
            without = case.get(workers) == 0 or case.get(method, "") is None
            with_workers = case.get(workers, 0) > 0 or case.get(method) is not None or case.get(persistent, False)
            if not (without and with_workers):
                assert any((row[i], row[j]) == values for row in MATRIX), values


@pytest.mark.parametrize(("workers", "method", "persistent", "batch_size", "shuffle", "scores", "ranks"), MATRIX)
def test_the_same_bytes_however_rows_are_loaded(
    editor: toedit.Editor,
    data: list[Row],
    fresh: list[Row],
    tmp_path: Path,
    workers: int,
    method: str | None,
    persistent: bool,
    batch_size: int,
    shuffle: bool,
    scores: str,
    ranks: int,
) -> None:
    """Each rank has what it has in a process of its own: a part of the rows, a collator, and an editor with its store.
    test_distributed.py has the processes."""
    source = data if scores == "column" else fresh
    store = toedit.ScoreStore(tmp_path) if scores == "store" else None
    with_store = toedit.Editor(editor.prior, POLICY, seed=editor.seed, key=editor.key, store=store)
    parts = []
    for rank in range(ranks):
        collator = EditCollator(pickle.loads(pickle.dumps(with_store)), by_name)
        sampler = DistributedSampler(source, ranks, rank, shuffle=shuffle)
        options = {"sampler": sampler, "persistent_workers": persistent}
        parts.append((collator, sampler, loader(source, batch_size, collator, workers, method, **options)))
    total = toedit.editor.Counts()
    looked_up = []
    # Another epoch is another start of the workers, which cost seconds where they import torch, or none where they live on.
    for epoch in range(2 if persistent or method in (None, "fork") else 1):
        expected, counts = edited_by_hand(editor, data, epoch)
        assert counts.changes > 20
        got: Ids = {}
        for collator, sampler, loading in parts:
            collator.set_epoch(epoch)
            sampler.set_epoch(epoch)
            got |= gathered(loading)
        assert got == expected
        total.add(counts)
        found = toedit.editor.Counts()
        for collator, *_ in parts:
            found.add(collator.stats())
        assert counted(found) == counted(total)
        looked_up.append([sum(values) for values in zip(*(c.store_stats().values() for c, *_ in parts), strict=True)])
    if store is None:
        assert not any(map(any, looked_up))
    else:
        assert [sum(counts) for counts in looked_up] == [(epoch + 1) * len(data) for epoch in range(len(looked_up))]
        assert len({misses for _, misses, _ in looked_up}) == 1  # a second epoch costs no prior


@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, "fork")])
def test_set_epoch_reaches_workers_that_live_on(
    editor: toedit.Editor, data: list[Row], workers: int, method: str | None
) -> None:
    collator = EditCollator(editor, by_name)
    loading = loader(data, 7, collator, workers, method, persistent_workers=workers > 0)
    seen = []
    for epoch in (0, 1, 2**32 - 1, 0):
        collator.set_epoch(epoch)
        assert collator.epoch == epoch
        seen.append(gathered(loading))
        assert seen[-1] == edited_by_hand(editor, data, epoch)[0]
    assert seen[0] == seen[3]
    assert seen[0] != seen[1] != seen[2] != seen[0]


@pytest.mark.parametrize("kind", ["collator", "dataset", "stream"])
@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, "fork")])
def test_an_epoch_that_nobody_sets_is_noticed(
    editor: toedit.Editor, data: list[Row], tmp_path: Path, kind: str, workers: int, method: str | None
) -> None:
    """Also where another worker meets the row again; said once, and never where it is set."""
    said = tmp_path / "said"

    def showwarning(message: Any, category: Any, *_: Any) -> None:
        with said.open("a") as file:
            file.write(f"{category.__name__}: {message}\n")

    def passes(count: int, epoch: int | None) -> int:
        said.write_text("")
        editing: Any = EditCollator(editor, by_name)
        loading = loader(data, 7, editing, workers, method, shuffle=True)
        if kind != "collator":
            editing = EditedDataset(data if kind == "dataset" else Stream(data), editor)
            loading = loader(editing, 7, by_name, workers, method)
        if epoch is not None:
            editing.set_epoch(epoch)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = showwarning  # the workers inherit it
            for _ in range(count):
                gathered(loading)
        return said.read_text().count("EpochWarning: the first row that was edited has come again")

    assert [passes(1, None), passes(3, None), passes(2, 0)] == [0, 1, 0]


def test_stats_add_up_across_workers(editor: toedit.Editor, data: list[Row]) -> None:
    one, four = EditCollator(editor, by_name), EditCollator(editor, by_name)
    for epoch in range(3):
        for collator, workers, method in ((one, 0, None), (four, 4, "fork")):
            collator.set_epoch(epoch)
            gathered(loader(data, 3, collator, workers, method))
    assert one.stats() == four.stats()
    assert one.stats().rows == 3 * len(data)
    assert one.stats().tokens == 3 * sum(len(row["input_ids"]) for row in data)
    assert 0 < one.stats().changes < one.stats().candidates


@pytest.mark.parametrize("epoch", [-1, 2**32, 1.5, "1", None])
def test_epochs_that_are_none(editor: toedit.Editor, epoch: Any) -> None:
    collator = EditCollator(editor)
    with pytest.raises(toedit.InputError, match="epoch is"):
        collator.set_epoch(epoch)
    assert collator.epoch == 0


def test_an_editor_is_asked_for() -> None:
    with pytest.raises(TypeError, match=r"toedit\.Editor"):
        EditCollator(default_collate)  # type: ignore[arg-type]


# Columns


def test_default_collate(plain_editor: toedit.Editor, prior: toedit.Prior, texts: list[list[int]]) -> None:
    ids = torch.tensor([row[:32] for row in texts if len(row) >= 32])
    scores = prior.score(ids, keep=POLICY).to_pylist()
    rows = [{"input_ids": i, "n": n, "scores": s} for n, (i, s) in enumerate(zip(ids, scores, strict=True))]
    batch = EditCollator(plain_editor)(rows)
    assert set(batch) == {"input_ids", "n"}
    assert torch.equal(batch["input_ids"], plain_editor({"input_ids": ids, "scores": scores})["input_ids"])
    assert batch["input_ids"].dtype == torch.int64
    assert not torch.equal(batch["input_ids"], ids)
    assert batch["n"].tolist() == list(range(len(ids)))


def test_a_collate_function_that_pads(editor: toedit.Editor, data: list[Row]) -> None:
    batch = EditCollator(editor, pad)([without(row, "name") for row in data])
    expected, _ = edited_by_hand(editor, data)
    for ids, mask, want in zip(batch["input_ids"], batch["attention_mask"], expected.values(), strict=True):
        assert ids[mask.bool()].tolist() == want


def test_rows_that_are_ids_alone(plain_editor: toedit.Editor, texts: list[list[int]]) -> None:
    as_lists = EditCollator(plain_editor, list)(texts)
    assert as_lists == plain_editor(texts)["input_ids"] != texts
    as_tensors = EditCollator(plain_editor, list)([torch.tensor(row) for row in texts])
    assert [row.tolist() for row in as_tensors] == as_lists


def test_only_the_columns_of_editing_are_removed(prior: toedit.Prior, texts: list[list[int]]) -> None:
    editor = toedit.Editor(prior, POLICY, key="doc", offset="start")
    scores = prior.score(texts, keep=POLICY).to_pylist()
    rows = [
        {
            "input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids, "special_tokens_mask": [0] * len(ids),
            "protected_mask": [n % 2 for n in range(len(ids))], "scores": s, "doc": "one", "start": 100 * n, "text": "t",
        }
        for n, (ids, s) in enumerate(zip(texts, scores, strict=True))
    ]  # fmt: skip
    got = EditCollator(editor, list)(rows)
    assert [set(row) for row in got] == [{"input_ids", "attention_mask", "labels", "special_tokens_mask", "text"}] * len(got)
    changed = [row["input_ids"] != ids for row, ids in zip(got, texts, strict=True)]
    assert any(changed)
    for row, ids in zip(got, texts, strict=True):
        assert row["labels"] == row["input_ids"]
        assert row["input_ids"][1::2] == ids[1::2]  # protected
    # The names are the editor's: another's are columns like any other.
    got = EditCollator(toedit.Editor(prior, POLICY), list)(rows)
    assert {"doc", "start"} <= set(got[0])


def test_labels_follow_the_ids_and_context_stays(plain_editor: toedit.Editor, texts: list[list[int]]) -> None:
    prompts = [len(ids) // 2 for ids in texts]
    rows = [{"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]} for ids, prompt in zip(texts, prompts, strict=True)]
    got = EditCollator(plain_editor, list)(rows)
    for row, ids, prompt in zip(got, texts, prompts, strict=True):
        assert row["input_ids"][:prompt] == ids[:prompt]
        assert row["labels"] == [-100] * prompt + row["input_ids"][prompt:]
    assert [row["input_ids"] for row in got] != texts


def test_evaluation_data_is_not_edited(editor: toedit.Editor, data: list[Row]) -> None:
    evaluation = [without(row, "scores", "doc") for row in data]
    collator = EditCollator(editor, by_name)
    assert gathered(loader(evaluation, 7, collator.collate_fn, 0, None)) == {row["name"]: row["input_ids"] for row in data}
    assert collator.stats().rows == 0


# transformers


@pytest.fixture(scope="module")
def fast_tokenizer(prior: toedit.Prior) -> Any:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(prior.tokenizer_file))
    tokenizer.pad_token = "<|endoftext|>"
    return tokenizer


def test_the_trainers_tokenizer_is_accepted(prior: toedit.Prior, fast_tokenizer: Any) -> None:
    toedit.Editor(prior, tokenizer=fast_tokenizer)
    other = copy.deepcopy(fast_tokenizer)
    other.add_tokens(["<another>"])
    with pytest.raises(toedit.InputError, match="added tokens"):
        toedit.Editor(prior, tokenizer=other)


@pytest.mark.parametrize("workers", [0, 2])
def test_collator_for_language_modeling(editor: toedit.Editor, data: list[Row], fast_tokenizer: Any, workers: int) -> None:
    """It makes its labels from the ids that it gets, which are the edited ones."""
    from transformers import DataCollatorForLanguageModeling

    collator = EditCollator(editor, DataCollatorForLanguageModeling(fast_tokenizer, mlm=False))
    expected = list(edited_by_hand(editor, data)[0].values())
    rows = [without(row, "name") for row in data]
    at = 0
    for batch in loader(rows, 7, collator, workers, "fork"):
        assert set(batch) == {"input_ids", "attention_mask", "labels"}
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"].bool(), batch["labels"], strict=True):
            assert ids[mask].tolist() == labels[mask].tolist() == expected[at]
            assert (labels[~mask] == -100).all()
            at += 1
    assert at == len(data)


@pytest.mark.parametrize("name", ["DataCollatorForSeq2Seq", "DataCollatorForTokenClassification"])
def test_collators_that_pad_labels(plain_editor: toedit.Editor, texts: list[list[int]], fast_tokenizer: Any, name: str) -> None:
    import transformers

    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100, *ids[1:]]} for ids in texts if len(ids) > 1]
    inner = getattr(transformers, name)(fast_tokenizer)
    batch = EditCollator(plain_editor, inner)(rows)
    mask, ids, labels = batch["attention_mask"].bool(), batch["input_ids"], batch["labels"]
    assert [row[m].tolist() for row, m in zip(ids, mask, strict=True)] == plain_editor(rows)["input_ids"]
    kept = mask.clone()
    kept[:, 0] = False
    assert torch.equal(labels, torch.where(kept, ids, -100))
    unedited = inner(rows)
    assert torch.equal(unedited["attention_mask"], batch["attention_mask"])
    assert not torch.equal(unedited["input_ids"], ids)
    assert torch.equal(unedited["input_ids"][:, 0], ids[:, 0])


def test_collator_with_padding(editor: toedit.Editor, fresh: list[Row], fast_tokenizer: Any) -> None:
    from transformers import DataCollatorWithPadding

    rows = [without(row, "name") for row in fresh]
    batch = EditCollator(editor, DataCollatorWithPadding(fast_tokenizer))(rows)
    expected = list(edited_by_hand(editor, fresh)[0].values())
    assert [ids[: len(want)].tolist() for ids, want in zip(batch["input_ids"], expected, strict=True)] == expected


def test_rows_that_were_padded_before(plain_editor: toedit.Editor, texts: list[list[int]], fast_tokenizer: Any) -> None:
    rows = fast_tokenizer.pad({"input_ids": texts}, return_tensors="pt")
    rows = [{name: values[n] for name, values in rows.items()} for n in range(len(texts))]
    batch = EditCollator(plain_editor)(rows)
    expected = plain_editor(texts)["input_ids"]
    for ids, mask, want in zip(batch["input_ids"], batch["attention_mask"].bool(), expected, strict=True):
        assert ids[mask].tolist() == want
        assert (ids[~mask] == 0).all()


# Hugging Face datasets


@pytest.fixture(scope="module")
def hf_data(prior: toedit.Prior, data: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The rows as a dataset that was scored by `map` and stored."""
    datasets = pytest.importorskip("datasets")

    def score(table: pa.Table) -> pa.Table:
        return table.append_column("scores", prior.score(table, keep=POLICY))

    unscored = datasets.Dataset.from_list([without(row, "scores") for row in data])
    folder = tmp_path_factory.mktemp("data")
    unscored.with_format("arrow").map(score, batched=True, batch_size=16).with_format(None).save_to_disk(folder)
    return datasets.load_from_disk(folder)


@pytest.mark.parametrize("wrapped", [False, True], ids=["collator", "dataset"])
@pytest.mark.parametrize("form", [None, "numpy", "torch", "pandas"])
def test_formats_of_datasets(editor: toedit.Editor, data: list[Row], hf_data: Any, form: str | None, wrapped: bool) -> None:
    if form == "torch":
        # datasets cannot put an unsigned 64-bit integer into a tensor.
        source = hf_data.with_format(form, columns=["input_ids"], output_all_columns=True)
    else:
        source = hf_data.with_format(form)
    got: list[Any] = []
    kind = {None: list, "torch": torch.Tensor}.get(form, np.ndarray)

    def collate(rows: list[Row]) -> Ids:
        got.extend(rows)
        return by_name(rows)

    if wrapped:
        assert gathered(loader(EditedDataset(source, editor), 7, collate, 0, None)) == edited_by_hand(editor, data)[0]
    else:
        assert gathered(loader(source, 7, EditCollator(editor, collate), 0, None)) == edited_by_hand(editor, data)[0]
    assert {type(row["input_ids"]) for row in got} == {kind}


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_datasets_in_workers(editor: toedit.Editor, data: list[Row], hf_data: Any, method: str) -> None:
    assert gathered(loader(hf_data, 7, EditCollator(editor, by_name), 2, method)) == edited_by_hand(editor, data)[0]


def test_streamed_datasets(editor: toedit.Editor, data: list[Row], hf_data: Any) -> None:
    stream = EditedDataset(hf_data.to_iterable_dataset(num_shards=2), editor)
    assert isinstance(stream, IterableDataset)
    assert gathered(loader(stream, 7, by_name, 2, "fork")) == edited_by_hand(editor, data)[0]


def test_fingerprints_leave_epoch_and_counts_out(prior: toedit.Prior, editor: toedit.Editor, data: list[Row]) -> None:
    fingerprint = pytest.importorskip("datasets.fingerprint").Hasher.hash
    for wrap in (EditCollator(editor, by_name), EditedDataset(data, editor)):
        before = fingerprint(wrap)
        wrap.set_epoch(4)
        if isinstance(wrap, EditCollator):
            wrap(data[:3])
        else:
            wrap[0]
        assert wrap.stats().rows > 0
        assert fingerprint(wrap) == before
        assert wrap.epoch == 4
    others = [
        toedit.Editor(prior, POLICY, seed=4, key="doc"),
        toedit.Editor(prior, replace(POLICY, temperature=1.0), seed=3, key="doc"),
        toedit.Editor(prior, POLICY, seed=3, key="name"),
        editor,
    ]
    assert len({fingerprint(EditCollator(other, by_name)) for other in others}) == len(others)


# EditedDataset


class Counting:
    """A map-style dataset that counts how it is asked."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.single = 0
        self.many: list[int] = []
        self.epoch: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        self.single += 1
        return self.rows[index]

    def __getitems__(self, indices: list[int]) -> list[Row]:
        self.many.append(len(indices))
        return [self.rows[i] for i in indices]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class Stream(IterableDataset[Row]):
    """Rows one after the other, shared out among workers."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Row]:
        worker = torch.utils.data.get_worker_info()
        yield from self.rows[worker.id :: worker.num_workers] if worker else self.rows


def test_rows_are_asked_for_together(editor: toedit.Editor, data: list[Row]) -> None:
    inner = Counting(data)
    dataset = EditedDataset(inner, editor)
    assert not isinstance(dataset, IterableDataset)
    assert len(dataset) == len(data)
    assert gathered(loader(dataset, 16, by_name, 0, None)) == edited_by_hand(editor, data)[0]
    assert inner.single == 0
    assert inner.many == [min(16, len(data) - n) for n in range(0, len(data), 16)]
    assert counted(dataset.stats()) == counted(edited_by_hand(editor, data)[1])


def test_epochs_of_a_wrapped_dataset(editor: toedit.Editor, data: list[Row]) -> None:
    inner = Counting(data)
    dataset = EditedDataset(inner, editor)
    dataset.set_epoch(7)
    assert inner.epoch == dataset.epoch == 7
    assert gathered(loader(dataset, 16, by_name, 0, None)) == edited_by_hand(editor, data, 7)[0]


@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, "fork"), (1, "forkserver")])
@pytest.mark.parametrize("make", [list, Stream], ids=["list", "stream"])
def test_wrapped_datasets_in_workers(
    editor: toedit.Editor, data: list[Row], make: Any, workers: int, method: str | None
) -> None:
    dataset = EditedDataset(make(data), editor)
    assert isinstance(dataset, IterableDataset) == (make is Stream)
    loading = loader(dataset, 7, by_name, workers, method, persistent_workers=workers > 0)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        assert gathered(loading) == edited_by_hand(editor, data, epoch)[0]
    assert dataset.stats().rows == 2 * len(data)


def test_iterating_without_a_loader(editor: toedit.Editor, data: list[Row]) -> None:
    expected, _ = edited_by_hand(editor, data)
    for make in (Stream, iter):
        dataset: Any = EditedDataset(make(data), editor)
        assert by_name(list(dataset)) == expected
    dataset = EditedDataset(data, editor)
    assert by_name([dataset[n] for n in range(len(dataset))]) == expected
    with pytest.raises(TypeError):
        len(EditedDataset(Stream(data), editor))


def test_errors_of_rows_reach_the_trainer(editor: toedit.Editor, data: list[Row]) -> None:
    bad = [*data[:3], {**data[3], "input_ids": [10**6]}]
    with pytest.raises(toedit.Error, match="row 3"):
        EditCollator(editor, by_name, on_error="raise")(bad)
    with pytest.raises(toedit.ScoresError, match="row 0"):
        EditedDataset([{**data[0], "input_ids": data[1]["input_ids"]}], editor, on_error="raise")[0]
    with pytest.raises(toedit.Error, match="row 3"):
        gathered(loader(bad, 4, EditCollator(editor, by_name, on_error="raise"), 1, "fork"))


# Pickling


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda wrap: pickle.loads(pickle.dumps(wrap))], ids=["copy", "pickle"])
@pytest.mark.parametrize("kind", ["collator", "dataset", "stream"])
def test_a_copy_goes_its_own_way(editor: toedit.Editor, data: list[Row], kind: str, copied: Any) -> None:
    wrap: Any
    if kind == "collator":
        wrap = EditCollator(editor, by_name)
    else:
        wrap = EditedDataset(Stream(data) if kind == "stream" else data, editor)
    wrap.set_epoch(5)
    other = copied(wrap)
    assert type(other) is type(wrap)
    assert other.epoch == 5
    wrap.set_epoch(6)
    assert (wrap.epoch, other.epoch) == (6, 5)
    rows = other(data) if kind == "collator" else by_name(list(other))
    assert rows == edited_by_hand(editor, data, 5)[0]
    assert (wrap.stats().rows, other.stats().rows) == (0, len(data))


# Warnings


@pytest.fixture(scope="module")
def dull(prior: toedit.Prior) -> list[Row]:
    """11,000 tokens of which a cautious policy is expected to change almost none."""
    rows = [list(range(1, 501)) for _ in range(22)]
    scores = prior.score([rows[0]], keep=toedit.Policy()).to_pylist()
    return [{"input_ids": ids, "scores": scores[0], "doc": str(n), "name": str(n)} for n, ids in enumerate(rows)]


def test_too_few_expected_changes_are_said_once(prior: toedit.Prior, dull: list[Row]) -> None:
    collator = EditCollator(toedit.Editor(prior, key="doc"), by_name)
    collator.set_epoch(0)
    loading = loader(dull, 2, collator, 0, None)
    with pytest.warns(toedit.ExpectedChangesWarning, match="11000 tokens|10000 tokens") as met:
        gathered(loading)
    assert len(met) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gathered(loading)


def test_too_few_expected_changes_are_said_once_by_all_workers(
    prior: toedit.Prior, dull: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said"
    said.touch()

    def showwarning(message: Any, category: Any, *_: Any) -> None:
        with said.open("a") as file:
            file.write(f"{category.__name__}: {message}\n")

    collator = EditCollator(toedit.Editor(prior, key="doc"), by_name)
    with warnings.catch_warnings():
        warnings.simplefilter("always", toedit.ExpectedChangesWarning)
        monkeypatch.setattr(warnings, "showwarning", showwarning)  # the workers inherit it
        loading = loader(dull, 2, collator, 3, "fork", persistent_workers=True)
        for epoch in range(3):
            collator.set_epoch(epoch)
            gathered(loading)
    assert said.read_text().count("ExpectedChangesWarning: this policy is expected to change") == 1


# Training


def test_a_training_loop(editor: toedit.Editor, data: list[Row]) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(4096, 16), torch.nn.Linear(16, 4096))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    collator = EditCollator(editor, pad)
    training = loader([without(row, "name") for row in data], 8, collator, 2, "fork", shuffle=True, persistent_workers=True)
    losses = []
    for epoch in range(2):
        collator.set_epoch(epoch)
        for batch in training:
            ids, mask = batch["input_ids"], batch["attention_mask"].bool()
            logits = model(ids[:, :-1])[mask[:, 1:]]
            loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:][mask[:, 1:]])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    assert collator.stats().rows == 2 * len(data)
    assert collator.stats().changes > 0
