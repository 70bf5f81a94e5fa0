"""EditingLoader: what any loader collates is edited in the background; and runs that are stopped and resumed."""

from __future__ import annotations

import gc
import pickle
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tokenizers import Tokenizer

import helpers
import toedit
from toedit._background import Background

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader, DistributedSampler, IterableDataset  # noqa: E402

from toedit.torch import EditCollator, EditedDataset, EditingLoader  # noqa: E402

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    # torchdata's own
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]

POLICY = toedit.Policy(threshold=0.3, temperature=1.5)
Batch = dict[str, Any]


@pytest.fixture(scope="module")
def rows(tokenizer: Tokenizer) -> list[list[int]]:
    """36 rows of 24 tokens."""
    ids = [i for row in helpers.text_rows(tokenizer, 36 * 24, seed=2) for i in row]
    return [ids[n : n + 24] for n in range(0, len(ids), 24)]


@pytest.fixture(scope="module")
def data(prior: toedit.Prior, rows: list[list[int]]) -> list[Batch]:
    scores = prior.score(rows, keep=POLICY).to_pylist()
    return [{"input_ids": torch.tensor(row), "scores": s, "n": n} for n, (row, s) in enumerate(zip(rows, scores, strict=True))]


@pytest.fixture(scope="module")
def fresh(rows: list[list[int]]) -> list[Batch]:
    """The same rows without scores."""
    return [{"input_ids": torch.tensor(row), "n": n} for n, row in enumerate(rows)]


@pytest.fixture(scope="module")
def editor(prior: toedit.Prior) -> toedit.Editor:
    editor = toedit.Editor(prior, POLICY, seed=3)
    editor([[1]])
    return editor


def by_number(batches: Any) -> dict[int, list[int]]:
    """Every row's ids under its number."""
    return {int(n): ids.tolist() for batch in batches for n, ids in zip(batch["n"], batch["input_ids"], strict=True)}


def as_lists(batches: Any) -> list[Any]:
    return [(batch["n"].tolist(), batch["input_ids"].tolist()) for batch in batches]


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "toedit"]


# Editing in the background


@pytest.mark.parametrize("prefetch", [0, 1, 2, 50])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_edits_in_the_same_order(
    editor: toedit.Editor, rows: list[list[int]], fresh: list[Batch], workers: int, prefetch: int
) -> None:
    loader = EditingLoader(DataLoader(fresh, 5, num_workers=workers), editor, prefetch)
    for epoch in (0, 1):
        got = as_lists(loader)
        assert [n for numbers, _ in got for n in numbers] == list(range(36))
        edited = editor(rows, epoch)
        assert [ids for _, batch in got for ids in batch] == edited["input_ids"]
    assert len(loader) == 8
    assert loader.stats().rows == 72
    assert loader.stats().changes > edited.changes > 20
    assert loader.generation_stats() == [loader.stats()]
    assert threads() == []


def test_masks_and_labels_of_batches(editor: toedit.Editor, rows: list[list[int]]) -> None:
    short = [row[: 3 + n] for n, row in enumerate(rows[:12])]
    ids, mask = helpers.pad(short, 20)
    labels = [[-100] * 2 + row[2:] + [-100] * (20 - len(row)) for row in short]
    batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "labels": torch.tensor(labels), "n": "kept"}
    before = {name: values.clone() if torch.is_tensor(values) else values for name, values in batch.items()}
    (got,) = EditingLoader([batch], editor)
    want = editor([{"input_ids": row, "labels": [-100] * 2 + row[2:]} for row in short])["input_ids"]
    for n, row in enumerate(want):
        assert got["input_ids"][n][: len(row)].tolist() == row
        assert got["labels"][n].tolist() == [-100] * 2 + row[2:] + [-100] * (20 - len(row))
    assert got["n"] == "kept"
    assert want != short
    for name, values in before.items():  # the loader's own batch is not written to
        assert torch.equal(batch[name], values) if torch.is_tensor(values) else batch[name] == values


def test_batches_of_other_kinds(editor: toedit.Editor, prior: toedit.Prior, rows: list[list[int]]) -> None:
    transformers = pytest.importorskip("transformers")
    ids = torch.tensor(rows)
    want = editor(rows)["input_ids"]
    (tensor,) = EditingLoader([ids], editor)
    assert tensor.tolist() == want
    key = toedit.Editor(prior, POLICY, key="doc")
    encoding = transformers.BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids), "doc": list(range(36))})
    (got,) = EditingLoader([encoding], key)
    assert isinstance(got, transformers.BatchEncoding)  # with its .to(device)
    assert list(got) == ["input_ids", "attention_mask"]
    assert list(encoding) == ["input_ids", "attention_mask", "doc"]
    assert got["input_ids"].tolist() == key({"input_ids": rows, "doc": list(range(36))})["input_ids"]


def test_labels_that_the_policy_sets(prior: toedit.Prior, rows: list[list[int]]) -> None:
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.3, temperature=1.5, labels="original"), seed=3)
    ids = torch.tensor(rows)
    (batch,) = EditingLoader([{"input_ids": ids, "labels": ids}], editor)
    assert torch.equal(batch["labels"], ids)
    assert not torch.equal(batch["input_ids"], ids)
    with pytest.raises(toedit.InputError, match="no column 'labels'"):
        list(EditingLoader([{"input_ids": ids}], editor))


def test_it_is_done_while_the_step_runs(editor: toedit.Editor, fresh: list[Batch]) -> None:
    """What is asked for next is there before it is asked for, and no more than that."""
    loader = EditingLoader(DataLoader(fresh, 3), editor, prefetch=3)
    batches = iter(loader)
    next(batches)
    deadline = time.monotonic() + 60
    while loader.stats().rows < 12:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)
    assert loader.stats().rows == 12
    del batches
    assert threads() == []


def test_loaders_draw_their_random_numbers_as_ever(editor: toedit.Editor, fresh: list[Batch]) -> None:
    """The order of a shuffled epoch, and what the step draws, are the same with and without toedit."""

    def run(wrap: Any) -> tuple[list[int], list[float]]:
        torch.manual_seed(5)
        order, drawn = [], []
        for _ in range(2):
            for batch in wrap(DataLoader(fresh, 4, shuffle=True)):
                order += batch["n"].tolist()
                drawn.append(torch.rand(()).item())
        return order, drawn

    assert run(lambda loader: loader) == run(lambda loader: EditingLoader(loader, editor, 2))


def test_epochs(editor: toedit.Editor, rows: list[list[int]], fresh: list[Batch]) -> None:
    """Passes are counted, from what was set."""
    loader = EditingLoader(DataLoader(fresh, 9), editor)
    seen = []
    for epoch in (0, 1, 2):
        seen.append(by_number(loader))
        assert loader.epoch == epoch
    loader.set_epoch(1)
    for epoch in (1, 2):
        assert by_number(loader) == seen[epoch]
    loader.set_epoch(2)
    loader.set_epoch(0)
    assert by_number(loader) == seen[0]
    assert [list(s.values()) for s in seen] == [editor(rows, epoch)["input_ids"] for epoch in (0, 1, 2)]


def test_epochs_of_samplers_and_datasets(editor: toedit.Editor, fresh: list[Batch]) -> None:
    class Rows(list[Batch]):
        epoch = -1

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    dataset = Rows(fresh)
    sampler = DistributedSampler(dataset, num_replicas=2, rank=0)
    loader = EditingLoader(DataLoader(dataset, 4, sampler=sampler), editor)
    loader.set_epoch(7)
    assert (loader.epoch, sampler.epoch, dataset.epoch) == (7, 7, 7)
    batches = torch.utils.data.BatchSampler(sampler, 4, False)
    EditingLoader(DataLoader(dataset, batch_sampler=batches), editor).set_epoch(8)
    assert (sampler.epoch, dataset.epoch) == (8, 8)


def test_the_rest_is_the_loaders(editor: toedit.Editor, fresh: list[Batch]) -> None:
    inner = DataLoader(fresh, 4)
    loader = EditingLoader(inner, editor)
    assert (loader.dataset, loader.batch_size, loader.loader) == (fresh, 4, inner)
    for name in ("nothing", "state_dict"):
        assert not hasattr(loader, name)
    assert by_number(loader.loader) == {n: row["input_ids"].tolist() for n, row in enumerate(fresh)}  # for evaluation
    with pytest.raises(TypeError, match="cannot be iterated"):
        EditingLoader(3, editor)
    with pytest.raises(toedit.InputError, match="prefetch is -1"):
        EditingLoader(inner, editor, -1)
    with pytest.raises(TypeError):
        len(EditingLoader(iter([]), editor))
    assert list(EditingLoader([], editor)) == []


# Ends


def test_a_pass_that_is_left(editor: toedit.Editor, fresh: list[Batch]) -> None:
    loader = EditingLoader(DataLoader(fresh, 1), editor, 4)
    for _ in loader:
        assert threads() == ["toedit"]
        break
    assert threads() == []

    def step() -> None:
        for _ in loader:
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        step()
    gc.collect()  # the exception's traceback held the pass
    assert threads() == []


@pytest.mark.parametrize("prefetch", [0, 2])
def test_errors_come_where_their_batch_would(editor: toedit.Editor, rows: list[list[int]], prefetch: int) -> None:
    class Broken:
        def __iter__(self) -> Iterator[Any]:
            yield torch.tensor(rows[:2])
            yield torch.tensor(rows[2:4])
            raise OSError("the disk")

    batches = iter(EditingLoader(Broken(), editor, prefetch))
    assert next(batches).tolist() == editor(rows[:2])["input_ids"]
    assert next(batches).tolist() == editor(rows[2:4])["input_ids"]
    with pytest.raises(OSError, match="the disk"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)
    bad = [torch.tensor(rows[:2]), torch.tensor([[10**6]]), torch.tensor(rows[2:4])]
    batches = iter(EditingLoader(bad, editor, prefetch, on_error="raise"))
    next(batches)
    with pytest.raises(toedit.InputError, match="1000000"):
        next(batches)
    assert list(batches) == []
    assert threads() == []


def test_a_thread_is_stopped_in_the_middle_of_scoring(rows: list[list[int]]) -> None:
    prior = toedit.Prior.builtin(threads=1)
    prior.score([[1]])
    background = Background()
    begun = time.monotonic()
    first = background.submit(lambda: prior.score(rows * 400))
    later = background.submit(lambda: 1)
    while prior.stats()["runs"] < 3:
        assert time.monotonic() < begun + 60
        time.sleep(0.005)
    background.stop()
    assert threads() == []
    assert first.cancelled()
    assert later.cancelled()
    assert prior.stats()["runs"] < 100
    prior.close()  # waits for scoring, of which there is none


def test_two_passes_at_a_time(editor: toedit.Editor, rows: list[list[int]], fresh: list[Batch]) -> None:
    loader = EditingLoader(DataLoader(fresh, 6), editor)
    pairs = list(zip(loader, loader, strict=True))
    for epoch in (0, 1):
        assert list(by_number([pair[epoch] for pair in pairs]).values()) == editor(rows, epoch)["input_ids"]


# Resuming


class Numbers(IterableDataset[Batch]):
    """Rows shared out among workers, without a state."""

    def __init__(self, data: list[Batch]) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        yield from self.data[worker.id :: worker.num_workers] if worker else self.data


class WithState(Numbers):
    """The same, and the dataset knows where it is."""

    at = 0

    def __iter__(self) -> Iterator[Batch]:
        mine = list(super().__iter__())
        while self.at < len(mine):
            self.at += 1
            yield mine[self.at - 1]

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class StatefulRows:
    """An iterator that knows where it is."""

    def __init__(self, rows: list[Batch]) -> None:
        self.rows = rows
        self.state = {"at": 0}  # handed out as it is, and changed as it goes on

    def __iter__(self) -> StatefulRows:
        return self

    def __next__(self) -> Batch:
        if self.state["at"] == len(self.rows):
            raise StopIteration
        self.state["at"] += 1
        return self.rows[self.state["at"] - 1]

    def state_dict(self) -> dict[str, int]:
        return self.state

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.state = dict(state)


class IteratorWithState(Numbers):
    def __iter__(self) -> Iterator[Batch]:
        return StatefulRows(list(super().__iter__()))


def hugging_face(data: list[Batch]) -> Any:
    datasets = pytest.importorskip("datasets")
    rows = [{"input_ids": row["input_ids"].tolist(), "n": row["n"]} for row in data]
    return datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=4)


def collate(rows: list[Batch]) -> Batch:
    return {
        "input_ids": torch.stack([torch.as_tensor(row["input_ids"]) for row in rows]),
        "n": torch.tensor([row["n"] for row in rows]),
    }


SOURCES: dict[str, Any] = {
    "list": list,
    "stream": Numbers,
    "stream with state": WithState,
    "iterator with state": IteratorWithState,
    "hugging face": hugging_face,
}


def resumable(kind: str, source: str, editor: toedit.Editor, data: list[Batch], fresh: list[Batch], workers: int) -> Any:
    """A loader as a script makes it at its start, and what has the epoch."""
    stateful = pytest.importorskip(
        "torchdata.stateful_dataloader", reason="resuming DataLoaders needs torchdata", exc_type=ImportError
    )
    torch.manual_seed(1)
    dataset = SOURCES[source](fresh if kind == "loader" or source == "hugging face" else data)
    options: dict[str, Any] = {"batch_size": 10 if workers else 7, "num_workers": workers}
    if source == "list":
        options["shuffle"] = True
    if kind == "collator":
        editing: Any = EditCollator(editor, collate)
        return stateful.StatefulDataLoader(dataset, collate_fn=editing, **options), editing
    if kind == "dataset":
        editing = EditedDataset(dataset, editor)
        return stateful.StatefulDataLoader(editing, collate_fn=collate, **options), editing
    editing = EditingLoader(stateful.StatefulDataLoader(dataset, collate_fn=collate, **options), editor)
    return editing, editing


@pytest.mark.parametrize(
    ("kind", "source", "workers"),
    [
        *((kind, source, 0) for kind in ("collator", "dataset", "loader") for source in SOURCES),
        ("collator", "list", 2),
        ("dataset", "stream with state", 2),
        ("dataset", "hugging face", 2),
        ("loader", "list", 2),
    ],
)
def test_resumed_after_every_batch(
    editor: toedit.Editor, data: list[Batch], fresh: list[Batch], kind: str, source: str, workers: int
) -> None:
    """Stopped after every batch of an epoch in turn: what is left is what was left of the uninterrupted run."""

    def begin() -> tuple[Any, Any]:
        return resumable(kind, source, editor, data, fresh, workers)

    loader, editing = begin()
    editing.set_epoch(3)
    states = [pickle.dumps(loader.state_dict())]
    whole = []
    for batch in loader:
        whole.append(batch)
        states.append(pickle.dumps(loader.state_dict()))
    expected = as_lists(whole)
    assert by_number(whole) == dict(enumerate(editor([row["input_ids"].tolist() for row in fresh], 3)["input_ids"]))
    assert len(states) >= 5
    for stopped, state in enumerate(states):
        loader, editing = begin()
        editing.set_epoch(3)
        loader.load_state_dict(pickle.loads(state))
        assert as_lists(loader) == expected[stopped:], stopped


def test_states_of_the_loader(editor: toedit.Editor, data: list[Batch], fresh: list[Batch]) -> None:
    """The state says where the step is, not the prefetching, and which epoch it is in."""
    loader, _ = resumable("loader", "list", editor, data, fresh, 0)
    whole = [as_lists(loader), as_lists(loader)]
    loader, _ = resumable("loader", "list", editor, data, fresh, 0)
    batches = iter(loader)
    at_once = pickle.dumps(loader.state_dict())
    for _ in range(2):
        next(batches)
    middle = pickle.dumps(loader.state_dict())
    rest = as_lists(batches)
    end = pickle.dumps(loader.state_dict())
    assert pickle.loads(end)["epoch"] == 1
    assert rest == whole[0][2:]
    assert as_lists(loader) == whole[1]
    for state, left in ((at_once, whole[0]), (middle, whole[0][2:])):
        loader, _ = resumable("loader", "list", editor, data, fresh, 0)
        loader.load_state_dict(pickle.loads(state))
        assert loader.state_dict()["epoch"] == 0
        assert as_lists(loader) == left
        assert loader.epoch == 0
        assert as_lists(loader) == whole[1]
        assert loader.epoch == 1
    loader, _ = resumable("loader", "list", editor, data, fresh, 0)
    loader.load_state_dict(pickle.loads(end))
    assert as_lists(loader) == whole[1]


def test_state_is_had_where_the_wrapped_one_has_it(editor: toedit.Editor, data: list[Batch]) -> None:
    for source in ("list", "stream", "iterator with state"):
        dataset = EditedDataset(SOURCES[source](data), editor)
        assert not hasattr(dataset, "state_dict")
        assert hasattr(iter(dataset), "state_dict") == (source == "iterator with state")
    dataset = EditedDataset(WithState(data), editor)
    assert isinstance(dataset, IterableDataset)
    rows = iter(dataset)
    next(rows), next(rows)
    assert dataset.state_dict() == {"at": 2}
    other = pickle.loads(pickle.dumps(dataset))
    assert type(other) is type(dataset)
    other.load_state_dict({"at": 30})
    assert [row["n"] for row in other] == [30, 31, 32, 33, 34, 35]
