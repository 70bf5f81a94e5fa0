"""Shards that are read as a stream: mosaicml-streaming and webdataset, in their own loaders."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import helpers
import toedit

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
streaming = pytest.importorskip("streaming", reason="mosaicml-streaming is not installed")
wds = pytest.importorskip("webdataset")

from streaming.base.util import clean_stale_shared_memory  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from toedit.torch import EditCollator, EditedDataset, EditingLoader  # noqa: E402

Batch = dict[str, Any]
Edits = dict[int, list[int]]

POLICY = toedit.Policy(threshold=0.3, temperature=1.5)
DOCUMENTS = 26
SIZE = 4
EPOCHS = 2

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture(scope="module")
def texts(tokenizer: Tokenizer) -> list[list[int]]:
    ids = [i for row in helpers.text_rows(tokenizer, DOCUMENTS * 50, seed=8) for i in row]
    starts = list(itertools.accumulate(16 + n for n in range(DOCUMENTS)))
    return [ids[start - 16 - n : start] for n, start in enumerate(starts)]


@pytest.fixture(scope="module")
def scores(prior: toedit.Prior, texts: list[list[int]]) -> list[bytes]:
    return toedit.scores_to_bytes(prior.score(texts, keep=POLICY))


@pytest.fixture(scope="module")
def editor(prior: toedit.Prior) -> toedit.Editor:
    return toedit.Editor(prior, POLICY, seed=11, key="doc")


@pytest.fixture(scope="module")
def expected(editor: toedit.Editor, texts: list[list[int]], scores: list[bytes]) -> list[Edits]:
    """What a plain editor makes of each document, in each epoch."""
    batch = {"input_ids": texts, "doc": list(range(DOCUMENTS)), "scores": scores}
    edited = [editor(batch, epoch) for epoch in range(EPOCHS + 1)]
    assert all(e.changes > 20 for e in edited)
    return [dict(enumerate(e["input_ids"])) for e in edited]


def collate(rows: list[Batch]) -> Batch:
    """Batches with the documents' numbers, which the editor's key column is taken from: a copy of it."""
    return {"n": [int(row["n"]) for row in rows], "ids": [row["input_ids"].tolist() for row in rows]}


def edits(batches: Any) -> Edits:
    return {n: ids for batch in batches for n, ids in zip(batch["n"], batch["ids"], strict=True)}


# mosaicml-streaming


@pytest.fixture(scope="module")
def mds(texts: list[list[int]], scores: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mds")
    columns = {"doc": "int64", "n": "int64", "input_ids": "ndarray:int32", "scores": "bytes"}
    with streaming.MDSWriter(out=str(folder), columns=columns, size_limit=1 << 14) as out:
        for n, (ids, of_row) in enumerate(zip(texts, scores, strict=True)):
            out.write({"doc": n, "n": n, "input_ids": np.array(ids, np.int32), "scores": of_row})
    assert len(list(folder.glob("*.mds"))) > 2
    return folder


@pytest.fixture
def clean() -> Iterator[None]:
    """What StreamingDataset leaves behind in shared memory is removed."""
    yield
    clean_stale_shared_memory()


def opened(folder: Path) -> Any:
    clean_stale_shared_memory()  # as in a process of its own
    return streaming.StreamingDataset(local=str(folder), batch_size=SIZE, shuffle=True, num_canonical_nodes=1)


def streamed(folder: Path, collate_fn: Any, workers: int = 0, **options: Any) -> Any:
    return streaming.StreamingDataLoader(opened(folder), batch_size=SIZE, num_workers=workers, collate_fn=collate_fn, **options)


@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, "fork"), (2, "spawn")])
@pytest.mark.usefixtures("clean")
def test_streamed_shards(editor: toedit.Editor, expected: list[Edits], mds: Path, workers: int, method: str | None) -> None:
    collator = EditCollator(editor, collate)
    options: dict[str, Any] = {"multiprocessing_context": method, "persistent_workers": True} if workers else {}
    loader = streamed(mds, collator, workers, **options)
    for epoch in range(EPOCHS):
        collator.set_epoch(loader.dataset.next_epoch)  # which is `epoch`
        assert edits(loader) == expected[epoch]
    assert collator.stats().rows == EPOCHS * DOCUMENTS


@pytest.mark.usefixtures("clean")
def test_streamed_shards_in_a_wrapped_dataset(editor: toedit.Editor, expected: list[Edits], mds: Path) -> None:
    """With PyTorch's loader. StreamingDataLoader takes note of nothing where its dataset is none of streaming's."""
    dataset = EditedDataset(opened(mds), editor)
    assert streaming.StreamingDataLoader(dataset, batch_size=SIZE).state_dict() is None
    for epoch in range(EPOCHS):
        dataset.set_epoch(epoch)
        assert edits(DataLoader(dataset, SIZE, collate_fn=collate)) == expected[epoch]


@pytest.mark.usefixtures("clean")
def test_an_epoch_of_a_stream_that_nobody_sets_is_noticed(editor: toedit.Editor, mds: Path) -> None:
    loader = streamed(mds, EditCollator(editor, collate))
    first = edits(loader)
    with pytest.warns(toedit.EpochWarning, match="set_epoch was never called"):
        assert edits(loader) == first


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.usefixtures("clean")
def test_streams_resumed_after_every_batch(editor: toedit.Editor, expected: list[Edits], mds: Path, workers: int) -> None:
    def run(state: Any, stop: int | None) -> tuple[list[Batch], Any]:
        """The batches of the second epoch until `stop`; from the beginning of the run, or from a state of it."""
        collator = EditCollator(editor, collate)
        loader = streamed(mds, collator, workers)
        if state is None:
            collator.set_epoch(0)
            list(loader)
            collator.set_epoch(1)
        else:
            loader.load_state_dict(state)
            collator.set_epoch(state["epoch"])
        batches = list(itertools.islice(loader, stop))
        return batches, loader.state_dict()

    whole, _ = run(None, None)
    assert edits(whole) == expected[1]
    stops = range(1, len(whole)) if workers == 0 else [3]
    for stop in stops:
        before, state = run(None, stop)
        after, _ = run(state, None)
        assert [*before, *after] == whole


@pytest.mark.usefixtures("clean")
def test_states_of_a_loader_around_a_stream(
    prior: toedit.Prior, editor: toedit.Editor, expected: list[Edits], mds: Path
) -> None:
    """EditingLoader counts its passes as the stream does, and so do its states, wherever they are taken. A stream that is
    resumed behind the end of an epoch begins with a pass without batches, which is none."""

    def open_loader() -> EditingLoader:
        return EditingLoader(streamed(mds, with_columns), editor, prefetch=2)

    def rest(state: Any) -> list[Batch]:
        loader = open_loader()
        loader.load_state_dict(state)
        return [named(batch) for _ in range(state["epoch"], EPOCHS) for batch in loader]

    loader = open_loader()
    states: list[Any] = []
    got: list[Batch] = []
    for _ in range(EPOCHS):
        batches = iter(loader)
        states.append((len(got), loader.state_dict()))
        for batch in batches:
            got.append(named(batch))
            states.append((len(got), loader.state_dict()))
        states.append((len(got), loader.state_dict()))
    length = len(got) // EPOCHS
    assert [edits(got[:length]), edits(got[length:])] == expected[:EPOCHS]
    for done, state in states:
        assert rest(state) == got[done:], (done, state)


def with_columns(rows: list[Batch]) -> Batch:
    """A collated batch that still has what editing needs."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def named(batch: Batch) -> Batch:
    return {"n": list(map(int, batch["n"])), "ids": [ids.tolist() for ids in batch["input_ids"]]}


def rank_of_stream(rank: int, port: int, mds: Path, editor: toedit.Editor, out: Any) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    collator = EditCollator(editor, collate)
    dataset = streaming.StreamingDataset(local=str(mds), batch_size=SIZE, shuffle=True, num_canonical_nodes=1)
    loader = streaming.StreamingDataLoader(dataset, batch_size=SIZE, collate_fn=collator)
    collator.set_epoch(1)
    out.put(edits(loader))


@pytest.mark.usefixtures("clean")
def test_two_ranks_of_a_stream(editor: toedit.Editor, expected: list[Edits], mds: Path) -> None:
    clean_stale_shared_memory()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    ranks = [context.Process(target=rank_of_stream, args=(rank, port, mds, editor, out)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    halves = [out.get(timeout=60) for _ in ranks]
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert min(map(len, halves)) == DOCUMENTS // 2
    assert halves[0] | halves[1] == expected[1]


# webdataset

FIELDS = {"ids.npy": "input_ids", "doc.cls": "doc"}


@pytest.fixture(scope="module")
def shards(texts: list[list[int]], scores: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("webdataset")
    with wds.ShardWriter(str(folder / "%03d.tar"), maxcount=5, verbose=0) as out:
        for n, (ids, of_row) in enumerate(zip(texts, scores, strict=True)):
            out.write({"__key__": f"{n:03}", "ids.npy": np.array(ids, np.int32), "doc.cls": n, "scores": of_row})
    return sorted(map(str, folder.glob("*.tar")))


def from_shards(rows: list[Batch]) -> Batch:
    return {"n": [int(row["__key__"]) for row in rows], "ids": [row["ids.npy"].tolist() for row in rows]}


def pipeline(shards: list[str]) -> Any:
    """Shards and documents in another order each time, shared out among ranks and workers."""
    order = {"shardshuffle": 100, "detshuffle": True, "seed": 3}
    return wds.WebDataset(shards, nodesplitter=wds.split_by_node, **order).decode()


def in_batches(shards: list[str], collator: EditCollator, workers: int = 0) -> Any:
    return wds.WebLoader(pipeline(shards).batched(SIZE, collation_fn=collator), batch_size=None, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("where", ["batched", "collate_fn", "dataset"])
def test_shards_of_webdataset(
    editor: toedit.Editor, expected: list[Edits], shards: list[str], where: str, workers: int
) -> None:
    editing: EditCollator | EditedDataset = EditCollator(editor, from_shards, fields=FIELDS)
    if where == "batched":
        loader = in_batches(shards, editing, workers)
    elif where == "collate_fn":
        loader = wds.WebLoader(pipeline(shards), batch_size=SIZE, num_workers=workers, collate_fn=editing)
    else:
        editing = EditedDataset(pipeline(shards), editor, fields=FIELDS)
        loader = wds.WebLoader(editing, batch_size=SIZE, num_workers=workers, collate_fn=from_shards)
    for epoch in range(EPOCHS):
        editing.set_epoch(epoch)
        assert edits(loader) == expected[epoch]
    assert editing.stats().rows == EPOCHS * DOCUMENTS


def test_a_loader_around_webdataset(editor: toedit.Editor, expected: list[Edits], shards: list[str]) -> None:
    batches = wds.WebLoader(pipeline(shards).batched(SIZE, collation_fn=with_columns), batch_size=None)
    loader = EditingLoader(batches, editor, fields=FIELDS)
    for epoch in range(EPOCHS):  # passes are counted
        got = [dict(zip(map(int, batch["__key__"]), batch["ids.npy"], strict=True)) for batch in loader]
        assert {n: ids.tolist() for batch in got for n, ids in batch.items()} == expected[epoch]


def test_an_epoch_of_shards_that_nobody_sets_is_noticed(editor: toedit.Editor, shards: list[str]) -> None:
    """Also where shards are drawn at random for ever, and there are no passes."""
    endless = wds.WebDataset(shards[:1], resampled=True, shardshuffle=False).decode()
    batches = iter(endless.batched(SIZE, collation_fn=EditCollator(editor, from_shards, fields=FIELDS)))
    next(batches)
    with pytest.warns(toedit.EpochWarning, match="set_epoch was never called"):
        next(batches)


def test_steps_of_a_stream_without_end_are_epochs_that_the_user_sets(
    editor: toedit.Editor, expected: list[Edits], shards: list[str]
) -> None:
    endless = wds.WebDataset(shards, resampled=True, shardshuffle=False).decode()
    collator = EditCollator(editor, from_shards, fields=FIELDS)
    loader = wds.WebLoader(endless.batched(SIZE, collation_fn=collator).with_epoch(nbatches=6), batch_size=None)
    for epoch in range(EPOCHS + 1):
        collator.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == 6
        assert all(expected[epoch][n] == ids for batch in batches for n, ids in edits([batch]).items())


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_resumed_by_skipping(editor: toedit.Editor, expected: list[Edits], shards: list[str], workers: int) -> None:
    """webdataset has no state: what was done is skipped."""

    def run(done: int) -> list[Batch]:
        collator = EditCollator(editor, from_shards, fields=FIELDS)
        collator.set_epoch(1)
        return list(itertools.islice(in_batches(shards, collator, workers), done, None))

    whole = run(0)
    assert edits(whole) == expected[1]
    for done in range(1, len(whole)) if workers == 0 else [3]:
        assert run(done) == whole[done:]


def test_two_ranks_of_shards(
    editor: toedit.Editor, expected: list[Edits], shards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        collator = EditCollator(editor, from_shards, fields=FIELDS)
        collator.set_epoch(1)
        halves.append(edits(in_batches(shards, collator)))
    assert not halves[0].keys() & halves[1].keys()
    assert halves[0] | halves[1] == expected[1]
