"""Hugging Face: datasets that are scored and edited by `map`, read as Arrow, and trained on with Trainer."""

from __future__ import annotations

import itertools
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer

import helpers
import toedit

datasets = pytest.importorskip("datasets")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch.utils.data import DataLoader  # noqa: E402

from toedit import hf  # noqa: E402
from toedit.torch import EditCollator, EditedDataset  # noqa: E402

pytestmark = [
    pytest.mark.timeout(150),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
]

Row = dict[str, Any]

POLICY = toedit.Policy(threshold=0.3, temperature=1.5)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def texts(tokenizer: Tokenizer) -> list[list[int]]:
    """1,500 tokens of real text in rows of up to 64."""
    return helpers.text_rows(tokenizer, 1500, seed=6, longest=64)


@pytest.fixture(scope="module")
def editor(prior: toedit.Prior) -> toedit.Editor:
    editor = toedit.Editor(prior, POLICY, seed=3, key="doc")
    editor([{"input_ids": [1], "doc": ""}])  # its native half lasts as long as the module
    return editor


@pytest.fixture
def plain(texts: list[list[int]], tmp_path: Path) -> Any:
    """The texts as a dataset that lies on disk, so that `map` has a cache."""
    columns = {
        "input_ids": texts,
        "doc": [f"document {n}" for n in range(len(texts))],
        "name": list(map(str, range(len(texts)))),
    }
    features = datasets.Features(
        {"input_ids": [datasets.Value("int32")], "doc": datasets.Value("string"), "name": datasets.Value("string")}
    )
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "plain")
    return datasets.load_from_disk(str(tmp_path / "plain"))


@pytest.fixture(scope="module")
def scored(prior: toedit.Prior, texts: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same with scores."""
    names = list(map(str, range(len(texts))))
    data = datasets.Dataset.from_dict({"input_ids": texts, "doc": [f"document {n}" for n in names], "name": names})
    folder = tmp_path_factory.mktemp("scored")
    hf.score(data, prior, POLICY).save_to_disk(folder)
    return datasets.load_from_disk(str(folder))


def runs(prior: toedit.Prior) -> int:
    return prior.stats()["runs"]


def by_hand(editor: toedit.Editor, texts: list[list[int]], epoch: int = 0) -> list[list[int]]:
    """What every way must come to."""
    batch = {"input_ids": texts, "doc": [f"document {n}" for n in range(len(texts))]}
    edited = editor(batch, epoch)
    assert edited.changes > 0
    ids: list[list[int]] = edited["input_ids"]
    return ids


# Dataset.map


def test_a_dataset_is_scored_once(prior: toedit.Prior, plain: Any, texts: list[list[int]], tmp_path: Path) -> None:
    scored = hf.score(plain, prior, POLICY, batch_size=16)
    assert scored.data.column("scores").combine_chunks().equals(prior.score(texts, keep=POLICY))
    assert scored["input_ids"][:] == texts
    assert scored.features["input_ids"] == plain.features["input_ids"]

    before = runs(prior)
    again = hf.score(datasets.load_from_disk(str(tmp_path / "plain")), toedit.Prior.builtin(threads=1), POLICY, batch_size=7)
    assert runs(prior) == before
    assert again._fingerprint == scored._fingerprint
    assert again.cache_files == scored.cache_files
    assert hf.score(scored, prior, POLICY).column_names == ["input_ids", "doc", "name", "scores"]


def test_what_decides_scores_decides_the_cache(prior: toedit.Prior, plain: Any, tmp_path: Path) -> None:
    copied = helpers.builtin_copy(tmp_path / "copy")
    same = hf.score(plain, prior, POLICY)
    assert hf.score(plain, toedit.Prior(copied), POLICY)._fingerprint == same._fingerprint
    others = [
        hf.score(plain, toedit.Prior.builtin(min_context=7), POLICY),
        hf.score(plain, prior, replace(POLICY, threshold=0.4)),
        hf.score(plain, prior, replace(POLICY, k=3)),
        hf.score(plain, prior, POLICY, k=5),
        hf.score(plain.select(range(5)), prior, POLICY),
        same,
    ]
    assert len({other._fingerprint for other in others}) == len(others)
    # The same folder with another prior in it.
    shutil.rmtree(copied)
    helpers.builtin_copy(copied, context_length=100)
    assert hf.score(plain, toedit.Prior(copied), POLICY)._fingerprint != same._fingerprint


def test_a_dataset_is_edited_once(
    prior: toedit.Prior, editor: toedit.Editor, plain: Any, texts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = hf.score(plain, prior, POLICY)
    edited = hf.edit(scored, editor, epoch=2, batch_size=16)
    assert edited["input_ids"][:] == by_hand(editor, texts, 2)
    assert edited.column_names == plain.column_names
    assert edited.features == plain.features

    others = [
        hf.edit(scored, editor, epoch=3),
        hf.edit(scored, toedit.Editor(prior, POLICY, seed=4, key="doc"), epoch=2),
        hf.edit(scored, toedit.Editor(prior, POLICY, seed=3), epoch=2),
        hf.edit(scored, toedit.Editor(prior, replace(POLICY, threshold=0.4), seed=3, key="doc"), epoch=2),
        hf.edit(scored, toedit.Editor(prior, replace(POLICY, temperature=1.0), seed=3, key="doc"), epoch=2),
        edited,
    ]
    assert len({other._fingerprint for other in others}) == len(others)
    assert len({str(other["input_ids"][:]) for other in others}) == len(others)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the cache was not read")

    monkeypatch.setattr(toedit.Editor, "edit", refuse)
    again = hf.edit(scored, toedit.Editor(toedit.Prior.builtin(), POLICY, seed=3, key="doc"), epoch=2, batch_size=5)
    assert again["input_ids"][:] == edited["input_ids"][:]


def test_processes_of_map(prior: toedit.Prior, editor: toedit.Editor, plain: Any, texts: list[list[int]]) -> None:
    scored = hf.score(plain, prior, POLICY, num_proc=2)
    assert hf.edit(scored, editor, epoch=0, num_proc=2)["input_ids"][:] == by_hand(editor, texts)


@pytest.mark.parametrize("form", [None, "numpy", "torch", "arrow"])
def test_formats_stay(prior: toedit.Prior, editor: toedit.Editor, plain: Any, texts: list[list[int]], form: str | None) -> None:
    scored = hf.score(plain.with_format(form, columns=["input_ids", "doc"]), prior, POLICY)
    assert scored.format["type"] == form
    collator = EditCollator(editor, lambda rows: [[int(i) for i in row["input_ids"]] for row in rows])
    if form != "arrow":
        assert collator([scored[n] for n in range(len(scored))]) == by_hand(editor, texts)
        assert type(scored[0]["input_ids"]) is {None: list, "numpy": np.ndarray, "torch": torch.Tensor}[form]
    edited = hf.edit(scored, editor, epoch=0)
    assert edited.format["type"] == form
    assert edited.with_format(None)["input_ids"][:] == by_hand(editor, texts)


def test_several_splits_are_scored_and_not_edited(prior: toedit.Prior, editor: toedit.Editor, plain: Any) -> None:
    splits = datasets.DatasetDict(train=plain, test=plain.select(range(3)))
    scored = hf.score(splits, prior, POLICY)
    assert {name: len(part["scores"]) for name, part in scored.items()} == {"train": len(plain), "test": 3}
    with pytest.raises(toedit.InputError, match="evaluation data, which is never edited; edit its training split"):
        hf.edit(scored, editor, epoch=0)


def test_what_is_refused(prior: toedit.Prior, editor: toedit.Editor, plain: Any) -> None:
    with pytest.raises(toedit.InputError, match=r"dataset is a list; it must be a datasets\.Dataset"):
        hf.score([[1]], prior)
    with pytest.raises(toedit.InputError, match=r"has no column 'input_ids', only \['doc', 'name'\]; tokenize it first"):
        hf.score(plain.remove_columns("input_ids"), prior)
    for use in (hf.arrow, lambda d: hf.score(d, prior), lambda d: hf.edit(d, editor, epoch=0)):
        with pytest.raises(toedit.InputError, match="a transform, which is not applied to stored rows"):
            use(plain.with_transform(lambda batch: batch))
    with pytest.raises(toedit.InputError, match="prior is a str"):
        hf.score(plain, "prior")
    with pytest.raises(toedit.InputError, match="editor is a Prior"):
        hf.edit(plain, prior, epoch=0)
    with pytest.raises(toedit.InputError, match="epoch is -1"):
        hf.edit(plain, editor, epoch=-1)
    with pytest.raises(toedit.InputError, match="dataset is a list"):
        hf.arrow([])


# Streams


def test_a_stream_is_scored_and_edited_as_it_is_read(
    prior: toedit.Prior, editor: toedit.Editor, plain: Any, texts: list[list[int]]
) -> None:
    stream = hf.score(plain.to_iterable_dataset(num_shards=2), prior, POLICY, batch_size=4)
    assert list(stream)[3]["scores"] == prior.score([texts[3]], keep=POLICY).to_pylist()[0]
    assert [row["input_ids"] for row in hf.edit(stream, editor, epoch=1, batch_size=3)] == by_hand(editor, texts, 1)
    assert [row["input_ids"] for row in EditedDataset(stream, editor)] == by_hand(editor, texts)


def test_a_stream_from_files(
    prior: toedit.Prior, editor: toedit.Editor, scored: Any, texts: list[list[int]], tmp_path: Path
) -> None:
    scored.to_parquet(str(tmp_path / "scored.parquet"))
    stream = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "scored.parquet"), split="train", streaming=True, cache_dir=str(tmp_path)
    )
    assert [row["input_ids"] for row in EditedDataset(stream, editor)] == by_hand(editor, texts)


def test_a_stream_goes_on_after_every_row(prior: toedit.Prior, editor: toedit.Editor, plain: Any) -> None:
    data = plain.select(range(10)).to_iterable_dataset(num_shards=3)

    def stream() -> Any:
        return hf.edit(hf.score(data, prior, POLICY, batch_size=4), editor, epoch=0, batch_size=3)

    whole = [row["input_ids"] for row in stream()]
    for n in range(len(whole) + 1):
        stopped, resumed = stream(), stream()
        assert [row["input_ids"] for row in itertools.islice(stopped, n)] == whole[:n]
        resumed.load_state_dict(stopped.state_dict())
        assert [row["input_ids"] for row in resumed] == whole[n:]


# As rows are read


def loaded(loader: Any) -> list[list[int]]:
    return [ids for batch in loader for ids in batch]


def ids_of(rows: list[Row]) -> list[list[int]]:
    """A collate function: it takes nothing but what editing leaves."""
    assert set(rows[0]) == {"input_ids", "name"}
    return [[int(i) for i in row["input_ids"]] for row in rows]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_transform(editor: toedit.Editor, scored: Any, texts: list[list[int]], workers: int) -> None:
    transform = hf.EditTransform(editor)
    data = scored.with_transform(transform)
    for epoch in (0, 1):
        transform.set_epoch(epoch)
        loader = DataLoader(data, 7, collate_fn=ids_of, num_workers=workers)
        assert loaded(loader) == by_hand(editor, texts, epoch)
    assert transform.stats().rows == 2 * len(texts)
    assert data[3]["input_ids"] == by_hand(editor, texts, 1)[3]


def test_a_transform_needs_the_labels_that_its_policy_sets(prior: toedit.Prior, scored: Any, texts: list[list[int]]) -> None:
    transform = hf.EditTransform(toedit.Editor(prior, replace(POLICY, labels="original")))
    labelled = scored.add_column("labels", [[-100, *ids[1:]] for ids in texts]).with_transform(transform)
    assert labelled[:]["labels"] == [[-100, *ids[1:]] for ids in texts]
    assert labelled[:]["input_ids"] != texts
    with pytest.raises(toedit.InputError, match="the policy sets labels, but the rows have no column 'labels'"):
        scored.with_transform(transform)[0]


@pytest.mark.parametrize(("workers", "indexed"), [(0, False), (0, True), (2, True)])
def test_rows_as_arrow(editor: toedit.Editor, scored: Any, texts: list[list[int]], workers: int, indexed: bool) -> None:
    data, expected = scored, by_hand(editor, texts)
    if indexed:
        order = np.random.default_rng(0).permutation(len(texts)).tolist()
        data, expected = scored.select(order), [expected[n] for n in order]
    view = hf.arrow(data.with_format("torch", columns=["input_ids"]))
    assert len(view) == len(texts)
    seen: list[pa.Table] = []

    def look(batch: pa.Table) -> list[list[int]]:
        seen.append(batch)
        return ids_of(hf.rows(batch))

    collate = hf.over_rows(ids_of) if workers else look
    collator = EditCollator(editor, collate)
    if workers:  # as workers that are spawned get them
        view, collator = pickle.loads(pickle.dumps((view, collator)))
    assert loaded(DataLoader(view, 7, collate_fn=collator, num_workers=workers)) == expected
    assert all(isinstance(batch, pa.Table) for batch in seen)
    assert view[2]["name"].to_pylist() == [data[2]["name"]]


def test_rows_for_collate_functions() -> None:
    table = pa.table(
        {
            "ids": pa.array([[1, 2], [], [3]], pa.large_list(pa.int32())),
            "flags": [[True], [False, True], []],
            "holes": [[1, None], None, []],
            "words": [["a"], [], []],
            "n": [1, 2, None],
        }
    )
    rows = hf.rows(table.slice(0, 3))
    assert [row["ids"].tolist() for row in rows] == [[1, 2], [], [3]]
    assert {row["ids"].dtype for row in rows} == {np.dtype(np.int32)}
    assert [row["flags"].tolist() for row in rows] == [[True], [False, True], []]
    assert [(row["holes"], row["words"], row["n"]) for row in rows] == [([1, None], ["a"], 1), (None, [], 2), ([], [], None)]
    rows[0]["ids"][0] = 7
    assert table["ids"].to_pylist()[0] == [1, 2]
    assert [row["ids"].tolist() for row in hf.rows(table.slice(1, 1))] == [[]]
    assert hf.rows(table.slice(0, 0)) == []


# Trainer


@pytest.fixture(scope="module")
def fast_tokenizer(prior: toedit.Prior) -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(prior.tokenizer_file), pad_token=Tokenizer.from_file(str(prior.tokenizer_file)).id_to_token(0)
    )


def small_model(prior: toedit.Prior) -> Any:
    torch.manual_seed(0)
    size = prior.describe()["vocab_size"]
    config = transformers.GPT2Config(vocab_size=size, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    return transformers.GPT2LMHeadModel(config)


def trainer(model: Any, folder: Path, train: Any, evaluation: Any, collate: Any, *callbacks: Any, **options: Any) -> Any:
    settings = {
        "report_to": [],
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 1,
        "learning_rate": 0.01,
    }
    args = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=7, per_device_eval_batch_size=5, **{**settings, **options}
    )
    return transformers.Trainer(model, args, collate, train_dataset=train, eval_dataset=evaluation, callbacks=list(callbacks))


class Recorder(transformers.TrainerCallback):  # type: ignore[name-defined,misc]
    """Stands for what writes logs elsewhere."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))


class Recording:
    """A collate function that remembers the ids it got."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.ids: list[list[int]] = []

    def __call__(self, rows: list[Row]) -> Any:
        assert set(rows[0]) == {"input_ids"}  # what Trainer's model takes
        self.ids += [list(row["input_ids"]) for row in rows]
        return self.inner(rows)


@pytest.fixture
def collate(fast_tokenizer: Any) -> Recording:
    return Recording(transformers.DataCollatorForLanguageModeling(fast_tokenizer, mlm=False))


@pytest.mark.parametrize("streamed", [False, True])
def test_every_epoch_of_trainer_has_edits_of_its_own(
    prior: toedit.Prior,
    editor: toedit.Editor,
    scored: Any,
    texts: list[list[int]],
    collate: Recording,
    tmp_path: Path,
    streamed: bool,
) -> None:
    train = EditedDataset(scored.to_iterable_dataset() if streamed else scored, editor)
    steps = -(-len(texts) // 7)
    # Of a stream Trainer knows no length, and takes its passes for parts of one epoch.
    length = {"max_steps": 3 * steps} if streamed else {"num_train_epochs": 3}
    recorder = Recorder()
    run = trainer(small_model(prior), tmp_path, train, None, collate, hf.EpochCallback(train), recorder, **length)
    run.train()
    for epoch in range(3):
        got = collate.ids[epoch * len(texts) : (epoch + 1) * len(texts)]
        assert sorted(got) == sorted(by_hand(editor, texts, epoch)), epoch
    counts = train.stats()
    assert counts.rows == 3 * len(texts)
    for logs in (run.state.log_history[-1], recorder.logs[-1]):
        assert (logs["toedit/tokens"], logs["toedit/candidates"], logs["toedit/changes"], logs["toedit/expected_changes"]) == (
            counts.tokens, counts.candidates, counts.changes, counts.expected_changes
        )  # fmt: skip


def test_trainer_resumes_in_the_epoch_of_its_checkpoint(
    prior: toedit.Prior, editor: toedit.Editor, scored: Any, texts: list[list[int]], collate: Recording, tmp_path: Path
) -> None:
    steps = -(-len(texts) // 7)
    train = EditedDataset(scored, editor)
    options: dict[str, Any] = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": steps + 2}
    whole = trainer(small_model(prior), tmp_path, train, None, collate, hf.EpochCallback(train), **options)
    whole.train()
    expected, collate.ids = collate.ids, []
    again = EditedDataset(scored, editor)
    resumed = trainer(small_model(prior), tmp_path, again, None, collate, hf.EpochCallback(again), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{steps + 2}"))
    assert collate.ids[-len(texts) :] == expected[-len(texts) :]
    assert again.epoch == 2
    assert [e["loss"] for e in resumed.state.log_history if "loss" in e] == [
        e["loss"] for e in whole.state.log_history if "loss" in e
    ]


def test_evaluation_is_the_same_with_and_without_editing(
    prior: toedit.Prior, editor: toedit.Editor, scored: Any, texts: list[list[int]], collate: Recording, tmp_path: Path
) -> None:
    losses = []
    for train, callbacks in ((scored, []), (EditedDataset(scored, editor), None)):
        callbacks = [hf.EpochCallback(train)] if callbacks is None else callbacks
        run = trainer(small_model(prior), tmp_path, train, scored, collate, *callbacks, learning_rate=0.0)
        before = run.evaluate()["eval_loss"]
        run.train()
        collate.ids.clear()
        losses.append((before, run.evaluate()["eval_loss"]))
        assert collate.ids == texts
        assert not any("toedit" in name for name in run.state.log_history[-1])
    assert losses[0] == losses[1]
    assert losses[0][0] == losses[0][1]


@pytest.mark.parametrize("by", ["dataset", "collator"])
def test_evaluation_data_that_would_be_edited_is_refused(
    prior: toedit.Prior, editor: toedit.Editor, scored: Any, collate: Recording, tmp_path: Path, by: str
) -> None:
    data = scored.remove_columns("name")
    edited = EditedDataset(data, editor) if by == "dataset" else EditCollator(editor, collate)
    evaluation, collate_fn = (edited, collate) if by == "dataset" else (data, edited)
    callback = hf.EpochCallback(edited)
    run = trainer(small_model(prior), tmp_path, data, evaluation, collate_fn, callback, remove_unused_columns=False)
    with pytest.raises(toedit.InputError, match=r"evaluation data goes through an Edit.*, but is never edited"):
        run.evaluate()


def test_an_epoch_callback_needs_what_edits() -> None:
    with pytest.raises(toedit.InputError, match="editing is a list; it must be the EditedDataset"):
        hf.EpochCallback([])
    with pytest.raises(AttributeError, match="no attribute 'epoch_callback'"):
        _ = hf.epoch_callback


# Chunks, truncated and packed rows


@pytest.fixture(scope="module")
def corpus(prior: toedit.Prior, tokenizer: Tokenizer) -> list[Row]:
    """Documents of up to 90 tokens with everything that is cut, one without tokens among them."""
    rows = helpers.text_rows(tokenizer, 1500, seed=8, longest=90)
    rows.insert(3, [])
    scores = prior.score(rows, keep=POLICY).to_pylist()
    return [
        {
            "input_ids": ids,
            "labels": [-100, *ids[1:]] if ids else [],
            "attention_mask": [1] * len(ids),
            "marks": list(range(len(ids))),
            "doc": f"document {n}",
            "name": n,
            "scores": score,
        }
        for n, (ids, score) in enumerate(zip(rows, scores, strict=True))
    ]


@pytest.fixture(scope="module")
def documents(corpus: list[Row]) -> Any:
    table = pa.Table.from_pylist([{k: v for k, v in row.items() if k != "scores"} for row in corpus])
    table = table.append_column("scores", pa.array([row["scores"] for row in corpus], toedit.SCORES_TYPE))
    return datasets.Dataset(datasets.table.InMemoryTable(table))


@pytest.fixture(scope="module")
def chunk_editor(prior: toedit.Prior) -> toedit.Editor:
    editor = toedit.Editor(prior, POLICY, seed=5, key="doc", offset="offset")
    editor([{"input_ids": [1], "doc": "", "offset": 0}])
    return editor


@pytest.fixture(scope="module")
def expected(prior: toedit.Prior, corpus: list[Row]) -> dict[str, list[int]]:
    """The edits of the whole documents."""
    edited = toedit.Editor(prior, POLICY, seed=5, key="doc")(corpus)
    assert edited.changes > 20
    return {row["doc"]: row["input_ids"] for row in edited.batch}


@pytest.mark.parametrize("streamed", [False, True])
def test_chunks_get_the_edits_of_their_documents(
    chunk_editor: toedit.Editor, documents: Any, corpus: list[Row], expected: dict[str, list[int]], streamed: bool
) -> None:
    data = documents.to_iterable_dataset() if streamed else documents
    rows = list(hf.chunk(data, 16, columns=["marks"], batch_size=7))
    assert set(rows[0]) == {*corpus[0], "offset"}
    assert max(len(row["input_ids"]) for row in rows) == 16
    joined = {row["doc"]: {k: [] for k in ("input_ids", "labels", "attention_mask", "marks")} for row in rows}
    for row in rows:
        assert row["offset"] == len(joined[row["doc"]]["input_ids"])
        for name, values in joined[row["doc"]].items():
            values += row[name]
    assert joined == {row["doc"]: {k: row[k] for k in ("input_ids", "labels", "attention_mask", "marks")} for row in corpus}

    edited: dict[str, list[int]] = {row["doc"]: [] for row in rows}
    for row in chunk_editor(rows).batch:
        edited[row["doc"]] += row["input_ids"]
    assert edited == expected
    # Chunks of chunks go on from their offsets.
    again = list(hf.chunk(hf.chunk(documents, 16), 7))
    assert [row["offset"] for row in again if row["doc"] == rows[-1]["doc"]][-1] % 16 in (0, 7, 14)
    edited = {row["doc"]: [] for row in rows}
    for row in chunk_editor(again).batch:
        edited[row["doc"]] += row["input_ids"]
    assert edited == expected


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncated_documents_keep_their_edits(
    chunk_editor: toedit.Editor, documents: Any, expected: dict[str, list[int]], side: str
) -> None:
    rows = list(hf.truncate(documents, 20, side=side))
    assert [row["doc"] for row in rows] == documents["doc"][:]
    for row in chunk_editor(rows).batch:
        whole = expected[row["doc"]]
        assert row["input_ids"] == (whole[:20] if side == "right" else whole[-20:])
        assert row["offset"] == (0 if side == "right" else max(len(whole) - 20, 0))


@pytest.mark.parametrize("form", ["rows", "arrow", "stream", "dataset", "fresh"])
@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_packed_rows_are_edited_by_document(
    chunk_editor: toedit.Editor,
    documents: Any,
    corpus: list[Row],
    expected: dict[str, list[int]],
    strategy: str,
    form: str,
) -> None:
    packed = hf.pack(documents.to_iterable_dataset() if form == "stream" else documents, 64, strategy, batch_size=50)
    if form == "arrow":
        table = packed.with_format("arrow")[:]
        edited = chunk_editor(table).batch
        assert edited.schema.equals(table.schema)
        rows = edited.to_pylist()
    elif form == "dataset":
        rows = list(zip(*[iter(EditedDataset(packed, chunk_editor)), packed], strict=True))
        assert set(rows[0][0]).isdisjoint({"doc", "offset", "scores"})
        rows = [{**row, "doc": source["doc"], "offset": source["offset"]} for row, source in rows]
    else:
        rows = list(packed)
        if form == "fresh":
            rows = [{k: v for k, v in row.items() if k != "scores"} for row in rows]
        rows = chunk_editor(rows).batch
    assert max(len(row["input_ids"]) for row in rows) == 64
    found: dict[tuple[str, int], list[int]] = {}
    for row in rows:
        assert sum(row["seq_lengths"]) == len(row["input_ids"]) == len(row["labels"]) == len(row["position_ids"])
        ends = np.cumsum(row["seq_lengths"])
        for n, end in enumerate(ends):
            at = slice(int(end) - row["seq_lengths"][n], int(end))
            assert row["position_ids"][at] == list(range(row["seq_lengths"][n]))
            found[row["doc"][n], row["offset"][n]] = row["input_ids"][at]
            assert [i for i in row["labels"][at] if i != -100] == row["input_ids"][at][row["offset"][n] == 0 :]
    got: dict[str, list[int]] = {row["doc"]: [] for row in corpus}
    for (doc, offset), ids in sorted(found.items()):
        assert offset == len(got[doc])
        got[doc] += ids
    if form != "fresh" or strategy == "bfd":  # pieces that are scored by themselves have other scores
        assert got == {doc: ids[:64] if strategy == "bfd" else ids for doc, ids in expected.items()}


def test_packed_rows_keep_their_log(chunk_editor: toedit.Editor, documents: Any) -> None:
    table = hf.pack(documents, 64, "wrapped").with_format("arrow")[:]
    edited = chunk_editor(table)
    assert edited.log.num_rows == edited.changes
    taken_back = toedit.revert_log(edited.batch, edited.log, key="doc", offset="offset")
    assert taken_back.equals(table)
    assert toedit.apply_log(table, edited.log, key="doc", offset="offset").equals(edited.batch)


def test_rows_are_packed_as_full_as_they_get(documents: Any, corpus: list[Row]) -> None:
    lengths = [len(row["input_ids"]) for row in corpus if row["input_ids"]]
    wrapped = hf.pack(documents, 64, "wrapped", batch_size=None)
    assert [len(ids) for ids in wrapped["input_ids"]] == [64] * (sum(lengths) // 64) + [sum(lengths) % 64] * (
        sum(lengths) % 64 > 0
    )
    assert [i for ids in wrapped["input_ids"] for i in ids] == [i for row in corpus for i in row["input_ids"]]
    best = hf.pack(documents, 64, "bfd", batch_size=None)
    # Any two rows are more than one row's worth: else the second's documents had found room in the first.
    full = sorted(len(ids) for ids in best["input_ids"])
    assert full[0] + full[1] > 64
    assert sum(full) == sum(min(n, 64) for n in lengths)
    assert best.features["scores"] == datasets.Features({"scores": [documents.features["scores"]]})["scores"]


def test_what_cannot_be_cut(documents: Any) -> None:
    def changed(name: str, values: Any) -> Any:
        return documents.remove_columns(name).add_column(name, values)

    masks = [[0, *mask[1:]] if n == 2 else mask for n, mask in enumerate(documents["attention_mask"])]
    with pytest.raises(toedit.InputError, match="row 2: attention_mask says that it is padded; cut documents before"):
        hf.chunk(changed("attention_mask", masks), 16)
    with pytest.raises(toedit.InputError, match="the rows are packed"):
        hf.chunk(hf.pack(documents, 64), 16)
    labels = [label[:-1] if n == 4 else label for n, label in enumerate(documents["labels"])]
    with pytest.raises(toedit.InputError, match=r"row 4: labels has \d+ values, but input_ids has \d+"):
        hf.truncate(changed("labels", labels), 16)
    ids = [[7, *row[1:]] if n == 5 else row for n, row in enumerate(documents["input_ids"])]
    with pytest.raises(toedit.ScoresError, match="row 5: its scores are of other ids"):
        hf.pack(changed("input_ids", ids), 16)
    for wrong, message in (
        ({"length": 0}, "length is 0; it must be 1 to"),
        ({"length": 8, "strategy": "first"}, "strategy is 'first'; it must be one of 'bfd', 'bfd_split', 'wrapped'"),
    ):
        with pytest.raises(toedit.InputError, match=message):
            hf.pack(documents, **wrong)
    with pytest.raises(toedit.InputError, match="side is 'both'; it must be 'right' or 'left'"):
        hf.truncate(documents, 8, side="both")


def test_packed_rows_that_do_not_fit_together(chunk_editor: toedit.Editor, documents: Any) -> None:
    rows = list(hf.pack(documents, 64))
    for changes, message in (
        ({"seq_lengths": [3]}, r"row 1: input_ids has \d+ values, but its seq_lengths add up to 3; edit before padding"),
        ({"doc": ["one"] * 40}, r"row 1: doc has 40 values for \d+ documents"),
        ({"seq_lengths": [-1]}, "row 1: seq_lengths has a length that is negative or null"),
    ):
        with pytest.raises(toedit.InputError, match=message):
            chunk_editor([rows[0], {**rows[1], **changes}])
    rows = [{**row, "doc": "one"} for row in rows]
    with pytest.raises(toedit.InputError, match="column 'doc' holds string; it must hold lists"):
        chunk_editor(rows)


# Several processes


def test_accelerate_launch(editor: toedit.Editor, scored: Any, texts: list[list[int]], tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    seen = helpers.accelerate_launch(scored, tmp_path, editor.seed, "loop", "trainer")
    for way, epochs in (("loop", (4, 5)), ("trainer", (0, 1))):
        for epoch in epochs:
            # Each process has part of them, and the last batches begin again to be as many in both.
            assert seen.pop((way, epoch)) == set(map(tuple, by_hand(editor, texts, epoch))), (way, epoch)
    assert not seen
