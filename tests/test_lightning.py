"""Lightning's Trainer: epochs, workers, checkpoints, ranks, logs, and evaluation data that is never edited."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import helpers
import toedit

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
data = pytest.importorskip("torchdata.stateful_dataloader")

import lightning.pytorch  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.loggers.logger import Logger  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from toedit.lightning import EpochCallback  # noqa: E402
from toedit.torch import EditCollator, EditedDataset, EditingLoader  # noqa: E402

Batch = dict[str, Any]
Row = dict[str, Any]

POLICY = toedit.Policy(threshold=0.3, temperature=1.5)
ROWS = 22
SIZE = 4
STEPS = -(-ROWS // SIZE)
EPOCHS = 3

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:(You defined a `validation_step`|predict returned None|Be aware that when using)"),
    pytest.mark.filterwarnings("ignore:(`isinstance\\(treespec|'set_vital' is deprecated)"),
]


@pytest.fixture(scope="module")
def rows(tokenizer: Tokenizer, prior: toedit.Prior) -> list[Row]:
    ids = [i for row in helpers.text_rows(tokenizer, ROWS * 24, seed=12) for i in row]
    texts = [ids[n * 24 : n * 24 + 24] for n in range(ROWS)]
    scores = prior.score(texts, keep=POLICY).to_pylist()
    return [{"input_ids": text, "n": n, "doc": n, "scores": s} for n, (text, s) in enumerate(zip(texts, scores, strict=True))]


@pytest.fixture(scope="module")
def editor(prior: toedit.Prior) -> toedit.Editor:
    return toedit.Editor(prior, POLICY, seed=7, key="doc")


@pytest.fixture(scope="module")
def expected(editor: toedit.Editor, rows: list[Row]) -> list[dict[int, list[int]]]:
    """What a plain editor makes of each row, in each epoch."""
    edited = [editor(rows, epoch) for epoch in range(EPOCHS)]
    assert all(e.changes > 20 for e in edited)
    return [dict(enumerate(e["input_ids"])) for e in edited]


def collate(rows: list[Row]) -> Batch:
    return {"n": torch.tensor([row["n"] for row in rows]), "ids": torch.tensor([list(row["input_ids"]) for row in rows])}


def with_scores(rows: list[Row]) -> Batch:
    """A collated batch that still has what editing needs."""
    columns = {name: [row[name] for row in rows] for name in ("doc", "scores")}
    return {"n": torch.tensor([row["n"] for row in rows]), "ids": torch.tensor([row["input_ids"] for row in rows]), **columns}


class Steps:
    """A model's steps, which remember what they were given, and in which epoch."""

    trainer: Any

    def __init__(self) -> None:
        super().__init__()
        self.weight: Any = torch.nn.Embedding(4096, 2)
        self.seen: list[tuple[int, list[int], list[list[int]]]] = []
        self.evaluated: list[list[int]] = []

    def training_step(self, batch: Batch, index: int) -> Any:
        self.seen.append((self.trainer.current_epoch, batch["n"].tolist(), batch["ids"].tolist()))
        return self.weight(batch["ids"]).square().sum()

    def validation_step(self, batch: Batch, index: int, dataloader_idx: int = 0) -> None:
        self.evaluated += batch["ids"].tolist()

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.weight.parameters(), 0.01)

    def edits(self) -> list[dict[int, list[int]]]:
        epochs: list[dict[int, list[int]]] = [{} for _ in range(EPOCHS)]
        for epoch, numbers, ids in self.seen:
            epochs[epoch] |= dict(zip(numbers, ids, strict=True))
        return epochs


class Model(Steps, lightning.pytorch.LightningModule):
    pass


class Recorder(Logger):
    name, version = "recorder", 0

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.logged.append((-1 if step is None else step, metrics))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def trainer(folder: Path, *callbacks: Any, package: Any = lightning.pytorch, **options: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
    settings = {"accelerator": "cpu", "devices": 1, "max_epochs": EPOCHS, "default_root_dir": str(folder)}
    return package.Trainer(callbacks=list(callbacks), **{**quiet, **settings, **options})


def loader_of(how: str, rows: list[Row], editor: toedit.Editor, workers: int, kind: Any = DataLoader) -> tuple[Any, Any]:
    """A loader of training data, and what edits in it."""
    # Of a loader in another one Lightning cannot end the workers that live on.
    options = {"batch_size": SIZE, "num_workers": workers, "persistent_workers": workers > 0 and how != "loader"}
    editing: Any
    if how == "collator":
        editing = EditCollator(editor, collate)
        return kind(rows, collate_fn=editing, **options), editing
    if how == "dataset":
        editing = EditedDataset(rows, editor)
        return kind(editing, collate_fn=collate, **options), editing
    editing = EditingLoader(kind(rows, collate_fn=with_scores, **options), editor, fields={"ids": "input_ids"})
    return editing, editing


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["collator", "dataset", "loader"])
def test_every_epoch_has_edits_of_its_own(
    editor: toedit.Editor, rows: list[Row], expected: list[dict[int, list[int]]], tmp_path: Path, how: str, workers: int
) -> None:
    loader, editing = loader_of(how, rows, editor, workers)
    model, logger = Model(), Recorder()
    trainer(tmp_path, EpochCallback(editing), logger=logger, log_every_n_steps=2).fit(model, loader)
    assert model.edits() == expected
    counts = editing.stats()
    assert counts.rows == EPOCHS * ROWS
    ends = [(epoch + 1) * STEPS - 1 for epoch in range(EPOCHS)]
    assert [step for step, _ in logger.logged] == sorted([*range(1, EPOCHS * STEPS, 2), *ends])
    assert logger.logged[-1][1] == {
        f"toedit/{name}": getattr(counts, name) for name in ("tokens", "candidates", "changes", "expected_changes")
    }


def test_runs_one_after_another(
    editor: toedit.Editor, rows: list[Row], expected: list[dict[int, list[int]]], tmp_path: Path
) -> None:
    """Another run begins with epoch 0, also in workers that start before the first hook of an epoch."""
    loader, editing = loader_of("collator", rows, editor, 2)
    for _ in range(2):
        model = Model()
        trainer(tmp_path, EpochCallback(editing), max_epochs=2).fit(model, loader)
        assert model.edits()[:2] == expected[:2]


def test_a_loader_counts_by_itself(
    editor: toedit.Editor, rows: list[Row], expected: list[dict[int, list[int]]], tmp_path: Path
) -> None:
    """Lightning makes more iterators than passes."""
    loader, _ = loader_of("loader", rows, editor, 0)
    model = Model()
    trainer(tmp_path).fit(model, loader)
    assert model.edits() == expected


def test_an_epoch_that_nobody_sets_is_noticed(editor: toedit.Editor, rows: list[Row], tmp_path: Path) -> None:
    loader, _ = loader_of("collator", rows, editor, 0)
    with pytest.warns(toedit.EpochWarning, match="set_epoch was never called"):
        trainer(tmp_path, max_epochs=2).fit(Model(), loader)


class Stream(torch.utils.data.IterableDataset):  # type: ignore[name-defined,misc]
    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


def test_steps_over_a_stream(
    editor: toedit.Editor, rows: list[Row], expected: list[dict[int, list[int]]], tmp_path: Path
) -> None:
    """Lightning takes each pass over a stream for an epoch, however long it is to train."""
    collator = EditCollator(editor, collate)
    model = Model()
    loader = DataLoader(Stream(rows), SIZE, collate_fn=collator)
    trainer(tmp_path, EpochCallback(collator), max_epochs=-1, max_steps=EPOCHS * STEPS).fit(model, loader)
    assert model.edits() == expected


@pytest.mark.parametrize(("how", "workers"), [("collator", 0), ("collator", 2), ("loader", 0)])
def test_resumed_after_every_batch(
    editor: toedit.Editor, rows: list[Row], expected: list[dict[int, list[int]]], tmp_path: Path, how: str, workers: int
) -> None:
    """From a checkpoint of any step, and of the end of an epoch, the batches are those that would have come.

    But for the checkpoint of an epoch's last step: there Lightning takes what is left of the loader's epoch, which is nothing,
    for all of the next one, with toedit and without.
    """

    def run(checkpoint: Path | None, *callbacks: Any) -> list[Any]:
        torch.manual_seed(0)
        loader, editing = loader_of(how, rows, editor, workers, data.StatefulDataLoader)
        model = Model()
        trainer(tmp_path, EpochCallback(editing), *callbacks, enable_checkpointing=bool(callbacks)).fit(
            model, loader, ckpt_path=checkpoint and str(checkpoint)
        )
        return model.seen

    every_step = ModelCheckpoint(str(tmp_path), "{step}", every_n_train_steps=1, save_top_k=-1)
    every_epoch = ModelCheckpoint(str(tmp_path), "{epoch}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)
    whole = run(None, every_step, every_epoch)
    assert len(whole) == EPOCHS * STEPS
    for step in range(STEPS + 1, 2 * STEPS) if workers == 0 else [STEPS + 2]:
        assert run(tmp_path / f"step={step}.ckpt") == whole[step:], step
    assert run(tmp_path / "epoch=0.ckpt") == whole[STEPS:]


@pytest.mark.parametrize("checkpoint", ["step", "last step", "epoch"])
def test_resumed_with_a_loader_without_state(
    editor: toedit.Editor, rows: list[Row], expected: list[dict[int, list[int]]], tmp_path: Path, checkpoint: str
) -> None:
    """Lightning begins an epoch again. The edits are that epoch's, also in workers that start before anybody is told."""
    when: dict[str, Any] = {
        "step": {"every_n_train_steps": STEPS + 2},
        "last step": {"every_n_train_steps": STEPS},
        "epoch": {"every_n_epochs": 1, "save_on_train_epoch_end": True},
    }
    saves = ModelCheckpoint(str(tmp_path), "saved", **when[checkpoint])
    loader, editing = loader_of("collator", rows, editor, 2)
    last = 1 if checkpoint == "epoch" else 2
    trainer(tmp_path, EpochCallback(editing), saves, enable_checkpointing=True, max_epochs=last).fit(Model(), loader)
    loader, editing = loader_of("collator", rows, editor, 2)
    model = Model()
    trainer(tmp_path, EpochCallback(editing)).fit(model, loader, ckpt_path=str(tmp_path / "saved.ckpt"))
    first = 2 if checkpoint == "last step" else 1
    assert model.seen[0][:2] == (first, [0, 1, 2, 3])
    assert model.seen[-1][0] == EPOCHS - 1
    for epoch, numbers, ids in model.seen:
        assert ids == [expected[epoch][n] for n in numbers]


def test_evaluation_data_is_not_edited(editor: toedit.Editor, rows: list[Row], tmp_path: Path) -> None:
    loader, editing = loader_of("collator", rows, editor, 0)
    plain = DataLoader(rows, SIZE, collate_fn=collate)
    model = Model()
    run = trainer(tmp_path, EpochCallback(editing), max_epochs=1, num_sanity_val_steps=0)
    run.fit(model, loader, plain)
    run.validate(model, [plain], verbose=False)
    run.test(model, {"a": plain}, verbose=False)
    run.predict(model, plain)
    assert model.evaluated == 4 * [row["input_ids"] for row in rows]


@pytest.mark.parametrize("how", ["collator", "dataset", "loader", "part"])
@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_evaluation_data_that_would_be_edited_is_refused(
    editor: toedit.Editor, rows: list[Row], tmp_path: Path, stage: str, how: str
) -> None:
    loader, editing = loader_of("dataset" if how == "part" else how, rows, editor, 0)
    if how == "part":
        loader = DataLoader(torch.utils.data.Subset(editing, [1, 2]), SIZE, collate_fn=collate)
    run = trainer(tmp_path, EpochCallback(editing))
    model = Model()
    plain = DataLoader(rows, SIZE, collate_fn=collate)
    loaders = (plain, [loader]) if stage == "fit" else ({"plain": plain, "other": loader},)
    with pytest.raises(toedit.InputError, match=r"evaluation data goes through an Edit.*, but is never edited"):
        getattr(run, stage)(model, *loaders)
    assert model.seen == []


class Ranked(Model):
    """Leaves what its rank has seen in a file."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_train_end(self) -> None:
        (self.folder / f"{self.global_rank}.json").write_text(json.dumps(self.seen))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without torch.distributed")
@pytest.mark.timeout(120)
def test_two_ranks(editor: toedit.Editor, rows: list[Row], expected: list[dict[int, list[int]]], tmp_path: Path) -> None:
    """Lightning puts a DistributedSampler into the loader, and moves its epoch."""
    loader, editing = loader_of("collator", rows, editor, 0)
    # Spawned: autograd's threads of earlier tests do not survive a fork.
    trainer(tmp_path, EpochCallback(editing), devices=2, strategy="ddp_spawn").fit(Ranked(tmp_path), loader)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for seen in ranks:
        assert [epoch for epoch, *_ in seen] == [epoch for epoch in range(EPOCHS) for _ in range(len(seen) // EPOCHS)]
    got = [(epoch, n, ids) for seen in ranks for epoch, numbers, rows in seen for n, ids in zip(numbers, rows, strict=True)]
    assert len(got) == EPOCHS * ROWS
    assert sorted((epoch, n) for epoch, n, _ in got) == list(itertools.product(range(EPOCHS), range(ROWS)))
    assert all(expected[epoch][n] == ids for epoch, n, ids in got)


def test_the_other_package(
    editor: toedit.Editor, rows: list[Row], expected: list[dict[int, list[int]]], tmp_path: Path
) -> None:
    other = pytest.importorskip("pytorch_lightning")
    loader, editing = loader_of("collator", rows, editor, 0)

    class Other(Steps, other.LightningModule):
        pass

    model = Other()
    trainer(tmp_path, EpochCallback(editing), package=other).fit(model, loader)
    assert model.edits() == expected


def test_training_data_that_nobody_edits_are_refused(editor: toedit.Editor, rows: list[Row], tmp_path: Path) -> None:
    model = Model()
    with pytest.raises(
        toedit.InputError, match="the first batch has no row that went through the EditCollator of this callback"
    ):
        trainer(tmp_path, EpochCallback(EditCollator(editor, collate))).fit(model, DataLoader(rows, SIZE, collate_fn=collate))
    assert model.seen == []


def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        toedit.InputError, match="editing is a list; it must be the EditCollator, EditedDataset or EditingLoader"
    ):
        EpochCallback([])  # type: ignore[arg-type]
    spec: Any = importlib.util.find_spec("toedit.lightning")
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    with pytest.raises(toedit.MissingDependencyError, match=r"toedit\.lightning needs Lightning: pip install lightning"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
