"""TRL's SFTTrainer: what its model sees, packed, flattened, truncated and masked, beside the edits of whole documents."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import helpers
import toedit

datasets = pytest.importorskip("datasets")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")

from toedit import hf  # noqa: E402
from toedit.torch import EditedDataset  # noqa: E402

pytestmark = [
    pytest.mark.timeout(150),
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*keep_end.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]

Row = dict[str, Any]
# A document as the model sees it: its ids, and the labels that it is trained on.
Document = tuple[tuple[int, ...], tuple[int, ...]]

POLICY = toedit.Policy(threshold=0.3, temperature=1.5)
BATCH = 8
# TRL shall leave rows as they are, which were cut and packed with their scores.
PREPARED = {"dataset_kwargs": {"skip_prepare_dataset": True}}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """No bars, and no threads that wait for each other over models of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def texts(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(ids) for ids in helpers.text_rows(tokenizer, 1500, seed=11, longest=90)]


@pytest.fixture(scope="module")
def corpus(texts: list[str], tokenizer: Tokenizer) -> Row:
    """Documents of up to 90 tokens, of which the first quarter is context, as columns."""
    ids = [tokenizer.encode(text).ids for text in texts]
    labels = [[-100] * (len(row) // 4) + row[len(row) // 4 :] for row in ids]
    return {"input_ids": ids, "labels": labels, "doc": [f"document {n}" for n in range(len(ids))]}


@pytest.fixture(scope="module")
def scored(prior: toedit.Prior, corpus: Row) -> Any:
    return hf.score(datasets.Dataset.from_dict(corpus), prior, POLICY)


@pytest.fixture(scope="module")
def editor(prior: toedit.Prior) -> toedit.Editor:
    """Knows where the pieces of documents are from."""
    editor = toedit.Editor(prior, POLICY, seed=5, key="doc", offset="offset")
    editor([{"input_ids": [1], "doc": "", "offset": 0}])  # its native half lasts as long as the module
    return editor


@pytest.fixture(scope="module")
def by_ids(prior: toedit.Prior) -> toedit.Editor:
    """Knows documents by their ids."""
    editor = toedit.Editor(prior, POLICY, seed=5)
    editor([[1]])
    return editor


@pytest.fixture(scope="module")
def edited(prior: toedit.Prior, corpus: Row) -> list[Row]:
    """The documents with the edits of epochs 0 and 1."""
    plain = toedit.Editor(prior, POLICY, seed=5, key="doc")
    epochs = [plain(corpus, epoch) for epoch in (0, 1)]
    assert min(e.changes for e in epochs) > 20
    assert epochs[0]["input_ids"] != epochs[1]["input_ids"]
    return [{"input_ids": e["input_ids"], "labels": e["labels"]} for e in epochs]


@pytest.fixture(scope="module")
def processing_class(tokenizer: Tokenizer) -> Any:
    end = tokenizer.id_to_token(0)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end)


class Recorder:
    """What a model is called with."""

    def __init__(self, model: Any) -> None:
        self.training: list[Row] = []
        self.evaluation: list[Row] = []
        model.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, model: Any, args: Any, batch: Row) -> None:
        tensors = {name: value.clone() for name, value in batch.items() if isinstance(value, torch.Tensor)}
        (self.training if model.training else self.evaluation).append(tensors)


@pytest.fixture
def sft(prior: toedit.Prior, processing_class: Any, tmp_path: Path) -> Any:
    """Makes trainers of small random models."""

    def make(train: Any, evaluation: Any = None, **options: Any) -> tuple[Any, Recorder]:
        torch.manual_seed(0)
        size = prior.describe()["vocab_size"]
        config = transformers.LlamaConfig(
            vocab_size=size,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=512,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
        model = transformers.LlamaForCausalLM(config)
        settings = {
            "num_train_epochs": 2,
            "per_device_train_batch_size": BATCH,
            "logging_steps": 1,
            "save_strategy": "no",
            "learning_rate": 0.01,
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
        }
        args = trl.SFTConfig(str(tmp_path), **{**settings, **options})
        trainer = trl.SFTTrainer(model, args, train_dataset=train, eval_dataset=evaluation, processing_class=processing_class)
        return trainer, Recorder(model)

    return make


def wrap(trainer: Any, editor: toedit.Editor, *, score: bool = False) -> EditedDataset:
    """What users do with a trainer that is made."""
    data = hf.score(trainer.train_dataset, editor.prior, editor.policy) if score else trainer.train_dataset
    trainer.train_dataset = train = EditedDataset(data, editor, on_error="raise")
    trainer.add_callback(hf.EpochCallback(train))
    return train


def seen(batches: list[Row]) -> list[Document]:
    """The documents of batches, in order; of padded batches the rows."""
    found: list[Document] = []
    for batch in batches:
        if "attention_mask" in batch:
            keep = batch["attention_mask"].bool()
            rows = [(ids[k], labels[k]) for ids, labels, k in zip(batch["input_ids"], batch["labels"], keep, strict=True)]
        else:
            lengths = batch["cu_seq_lens_q"].diff().tolist()
            rows = list(zip(batch["input_ids"][0].split(lengths), batch["labels"][0].split(lengths), strict=True))
        found += [(tuple(ids.tolist()), tuple(labels.tolist())) for ids, labels in rows]
    return found


def documents(columns: Row, *, flat: bool = False) -> list[Document]:
    """The documents of columns; flat: as TRL's collate function has them where it flattens batches."""
    first = (-100,) if flat else ()
    pairs = zip(columns["input_ids"], columns["labels"], strict=True)
    return [(tuple(ids), (*first, *labels[len(first) :])) for ids, labels in pairs]


def unpacked(packed: Any) -> Row:
    columns: Row = {"input_ids": [], "labels": []}
    for row in packed:
        at = 0
        for length in row["seq_lengths"]:
            for name, values in columns.items():
                values.append(row[name][at : at + length])
            at += length
    return columns


# The edits of whole documents, wherever they are cut


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_rows_are_packed_as_trl_packs_them(strategy: str) -> None:
    chance = random.Random(2)
    lengths = [chance.choice([0, 3, 17, 17, chance.randrange(65), 64, 65, 130]) for _ in range(200)]
    ids = [[chance.randrange(4096) for _ in range(n)] for n in lengths]
    data = datasets.Dataset.from_dict({"input_ids": ids, "labels": [[-100, *row[1:]] if row else [] for row in ids]})
    packed, trls = hf.pack(data, 64, strategy), trl.pack_dataset(data, 64, strategy)
    assert {name: packed[name][:] for name in trls.column_names} == trls[:]
    assert list(map(sum, packed["seq_lengths"])) == list(map(len, trls["input_ids"]))


@pytest.mark.parametrize(("strategy", "streamed"), [("bfd", False), ("bfd_split", False), ("wrapped", False), ("bfd", True)])
def test_packed_rows_have_the_edits_of_their_documents(
    sft: Any, editor: toedit.Editor, scored: Any, edited: list[Row], strategy: str, streamed: bool
) -> None:
    packed = hf.pack(scored, 64, strategy)
    length = {"max_steps": 2 * -(-len(packed) // BATCH)} if streamed else {}
    data = packed.to_iterable_dataset() if streamed else packed
    trainer, model = sft(data, packing=True, packing_strategy=strategy, max_length=64, **length, **PREPARED)
    train = wrap(trainer, editor)
    trainer.train()

    half = len(model.training) // 2
    for epoch, columns in enumerate(edited):
        rows = trl.pack_dataset(datasets.Dataset.from_dict(columns), 64, strategy)
        flat = strategy != "wrapped"
        expected = documents(unpacked(rows), flat=True) if flat else documents(rows[:])
        assert sorted(seen(model.training[epoch * half :][:half])) == sorted(expected)
    counts = train.stats()
    assert counts.tokens == 2 * sum(map(len, packed["input_ids"]))
    logs = trainer.state.log_history[-1]
    assert (logs["toedit/tokens"], logs["toedit/candidates"], logs["toedit/changes"], logs["toedit/expected_changes"]) == (
        counts.tokens, counts.candidates, counts.changes, counts.expected_changes
    )  # fmt: skip


@pytest.mark.parametrize("way", ["right", "left", "padding_free"])
def test_truncated_rows_have_the_edits_of_their_documents(
    sft: Any, editor: toedit.Editor, scored: Any, edited: list[Row], way: str
) -> None:
    ways: dict[str, Row] = {
        "right": {"max_length": 20, "truncation_mode": "keep_start"},
        "left": {"max_length": 20, "truncation_mode": "keep_end"},
        "padding_free": {"max_length": None, "padding_free": True},
    }
    options = ways[way]
    side = "left" if way == "left" else "right"
    trainer, model = sft(hf.truncate(scored, 20, side=side), **options, **PREPARED)
    wrap(trainer, editor)
    trainer.train()
    half = len(model.training) // 2
    for epoch, columns in enumerate(edited):
        cut = {name: [row[-20:] if way == "left" else row[:20] for row in rows] for name, rows in columns.items()}
        got = seen(model.training[epoch * half :][:half])
        assert sorted(got) == sorted(documents(cut, flat=way == "padding_free"))


def test_two_processes(scored: Any, editor: toedit.Editor, edited: list[Row], tmp_path: Path) -> None:
    seen = helpers.accelerate_launch(scored, tmp_path, editor.seed, "sft")
    for epoch, columns in enumerate(edited):
        # Both together have all documents, and the last rows begin again to be as many in both.
        assert seen.pop(("sft", epoch)) == {tuple(ids[:64]) for ids in columns["input_ids"]}
    assert not seen


# Rows that TRL prepared


def tokenized(processing_class: Any, *parts: list[str]) -> Row:
    """What TRL makes of texts, or of prompts and completions: ids, with labels where no prompt is."""
    columns: Row = {"input_ids": [], "labels": []}
    for first, *rest in zip(*parts, strict=True):
        ids = [*processing_class(first + "".join(rest))["input_ids"], 0]
        prompt = len(processing_class(first)["input_ids"]) if rest else 0
        columns["input_ids"].append(ids)
        columns["labels"].append([-100] * prompt + ids[prompt:])
    return columns


@pytest.fixture(scope="module")
def halves(texts: list[str]) -> Row:
    """Prompts and completions, split between two words, so that no token spans both."""
    spaces = [re.search(r"(?<=[a-z])(?= [a-z])", text[len(text) // 2 :]) for text in texts]
    pairs = [(text, len(text) // 2 + at.start()) for text, at in zip(texts, spaces, strict=True) if at]
    return {"prompt": [text[:at] for text, at in pairs], "completion": [text[at:] for text, at in pairs]}


@pytest.mark.parametrize(
    ("way", "masked"),
    [("padded", False), ("padded", True), ("truncated", True), ("bfd", True), ("wrapped", False), ("padding_free", True)],
)
def test_rows_that_trl_prepared(
    sft: Any, by_ids: toedit.Editor, processing_class: Any, texts: list[str], halves: Row, way: str, masked: bool
) -> None:
    ways: dict[str, Row] = {
        "padded": {},
        "truncated": {"max_length": 40},
        "bfd": {"packing": True, "max_length": 64},
        "wrapped": {"packing": True, "packing_strategy": "wrapped", "max_length": 64},
        "padding_free": {"padding_free": True, "max_length": None},
    }
    options = ways[way]
    data = halves if masked else {"text": texts}
    trainer, model = sft(datasets.Dataset.from_dict(data), num_train_epochs=1, **options)
    train = wrap(trainer, by_ids, score=True)
    trainer.train()

    columns = tokenized(processing_class, *data.values())
    if way == "wrapped":  # nobody sees documents in these rows
        columns = trl.pack_dataset(datasets.Dataset.from_dict(columns), 64, way)[:]
    longest = options.get("max_length")
    columns = {name: [row[:longest] for row in rows] for name, rows in columns.items()}
    if way == "truncated":  # TRL leaves out what has no loss
        keep = [any(label != -100 for label in labels) for labels in columns["labels"]]
        columns = {name: [row for row, k in zip(rows, keep, strict=True) if k] for name, rows in columns.items()}
    edits = by_ids(columns)
    assert train.stats().changes == edits.changes > 0
    got = seen(model.training)
    assert sorted(got) == sorted(documents(edits.batch, flat=way in ("bfd", "padding_free")))
    if masked:
        prompts = {tuple(ids[: labels.count(-100)]) for ids, labels in zip(*columns.values(), strict=True)}
        assert () not in prompts
        assert all(any(ids[: len(prompt)] == prompt for prompt in prompts) for ids, _ in got)


def test_human_targets_under_edited_context(sft: Any, prior: toedit.Prior, processing_class: Any, halves: Row) -> None:
    editor = toedit.Editor(prior, replace(POLICY, labels="original"), seed=5)
    trainer, model = sft(datasets.Dataset.from_dict(halves), num_train_epochs=1)
    wrap(trainer, editor, score=True)
    trainer.train()
    columns = tokenized(processing_class, *halves.values())
    edits = editor(columns)
    assert edits["labels"] == columns["labels"]
    assert edits["input_ids"] != columns["input_ids"]
    assert sorted(seen(model.training)) == sorted(documents(edits.batch))


def test_prompts_that_are_learnt_and_protected(sft: Any, prior: toedit.Prior, processing_class: Any, halves: Row) -> None:
    columns = tokenized(processing_class, *halves.values())
    masks = [[int(label != -100) for label in labels] for labels in columns["labels"]]
    columns["labels"] = columns["input_ids"]
    for policy, mask in ((POLICY, {}), (replace(POLICY, protect_prompt=True), {"assistant_masks": masks})):
        editor = toedit.Editor(prior, policy, seed=5)
        data = datasets.Dataset.from_dict(halves)
        trainer, model = sft(data, num_train_epochs=1, completion_only_loss=False, max_length=None)
        if mask:
            with pytest.raises(toedit.InputError, match="assistant_masks"):
                editor(trainer.train_dataset[:])
            trainer.train_dataset = trainer.train_dataset.rename_column("completion_mask", "assistant_masks")
        wrap(trainer, editor, score=True)
        trainer.train()
        edits = editor({**columns, **mask})
        assert sorted(seen(model.training)) == sorted(documents(edits.batch))
        in_prompts = sum(
            new != old and not in_completion
            for row in zip(edits["input_ids"], columns["input_ids"], masks, strict=True)
            for new, old, in_completion in zip(*row, strict=True)
        )
        assert (in_prompts == 0) == bool(mask)
        assert edits.changes > 5


TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '\n' }}{% endif %}{% endfor %}"
)


def test_only_the_assistant_is_edited(
    sft: Any, by_ids: toedit.Editor, processing_class: Any, halves: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processing_class, "chat_template", TEMPLATE)
    messages = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}] * 2
        for prompt, answer in zip(halves["prompt"], halves["completion"], strict=True)
    ]
    trainer, model = sft(datasets.Dataset.from_dict({"messages": messages}), num_train_epochs=1, assistant_only_loss=True)
    columns = trainer.train_dataset[:]
    wrap(trainer, by_ids, score=True)
    trainer.train()
    edits = by_ids({name: columns[name] for name in ("input_ids", "labels")})
    assert edits.changes > 5
    assert sorted(seen(model.training)) == sorted(documents(edits.batch))
    for ids, old, labels in zip(edits["input_ids"], columns["input_ids"], columns["labels"], strict=True):
        assert labels.count(-100) > 0
        assert all(new == was for new, was, label in zip(ids, old, labels, strict=True) if label == -100)


# Evaluation, checkpoints


def test_evaluation_is_the_same_with_and_without_editing(sft: Any, by_ids: toedit.Editor, halves: Row) -> None:
    data = datasets.Dataset.from_dict(halves)
    options: Row = {"learning_rate": 0.0, "eval_strategy": "epoch", "packing": True, "max_length": 64}
    results = []
    for edits in (False, True):
        trainer, model = sft(data, data.select(range(10)), **options)
        if edits:
            wrap(trainer, by_ids, score=True)
        losses = [trainer.evaluate()["eval_loss"]]
        trainer.train()
        losses += [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        results.append((losses, seen(model.evaluation), seen(model.training)))
        assert not any("toedit" in name for entry in trainer.state.log_history if "eval_loss" in entry for name in entry)
    (without, evaluated, trained), (with_, evaluated_too, edited) = results
    assert with_ == without
    assert len(set(without)) == 1
    assert evaluated_too == evaluated
    assert edited != trained


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_run_that_is_resumed_with_workers_sees_the_same_batches(
    sft: Any, editor: toedit.Editor, scored: Any, tmp_path: Path
) -> None:
    packed = hf.pack(scored, 64)
    steps = -(-len(packed) // BATCH)
    stop = steps + 1
    options = {"packing": True, "max_length": 64, "save_strategy": "steps", "save_steps": stop, **PREPARED}
    whole, model = sft(packed, **options)
    wrap(whole, editor)
    whole.train()
    resumed, again = sft(packed, dataloader_num_workers=2, **options)
    train = wrap(resumed, editor)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert len(model.training) == 2 * steps
    assert [seen([batch]) for batch in again.training] == [seen([batch]) for batch in model.training[stop:]]
    assert train.epoch == 1
    assert [e["loss"] for e in resumed.state.log_history if "loss" in e] == [
        e["loss"] for e in whole.state.log_history if "loss" in e
    ]


# What would go wrong unnoticed


def test_the_dataset_must_be_wrapped_when_the_trainer_is_made(sft: Any, editor: toedit.Editor, scored: Any) -> None:
    train = EditedDataset(hf.truncate(scored, 20), editor)
    with pytest.raises(TypeError, match="must be a `Dataset` or `IterableDataset`, got `EditedDataset`"):
        sft(train)
    trainer, model = sft(train.dataset, max_length=None)
    trainer.add_callback(hf.EpochCallback(train))
    with pytest.raises(toedit.InputError, match=r"no row that went through the EditedDataset of this callback.*train_dataset"):
        trainer.train()
    assert not model.training
    trainer.train_dataset = train
    trainer.train()
    assert model.training


def test_a_transform_needs_its_columns(sft: Any, editor: toedit.Editor, scored: Any, edited: list[Row]) -> None:
    transform = hf.EditTransform(editor)
    data = hf.truncate(scored, 20).with_transform(transform)
    with pytest.raises(ValueError, match="skip_prepare_dataset"):
        sft(data)
    removed, model = sft(data, **PREPARED)
    removed.add_callback(hf.EpochCallback(transform))
    with pytest.raises(
        toedit.InputError, match=r"has removed the columns that the transform reads.*remove_unused_columns=False"
    ):
        removed.train()
    assert not model.training
    kept, model = sft(data, remove_unused_columns=False, **PREPARED)
    kept.add_callback(hf.EpochCallback(transform))
    kept.train()
    half = len(model.training) // 2
    for epoch, columns in enumerate(edited):
        cut = {name: [row[:20] for row in rows] for name, rows in columns.items()}
        assert sorted(seen(model.training[epoch * half :][:half])) == sorted(documents(cut))


def test_scored_rows_that_trl_cuts_itself(sft: Any, prior: toedit.Prior, scored: Any) -> None:
    editor = toedit.Editor(prior, POLICY, key="doc")
    trainer, _ = sft(scored, max_length=20, num_train_epochs=1)
    trainer.train_dataset = train = EditedDataset(trainer.train_dataset, editor)
    with pytest.warns(toedit.RowErrorWarning, match="scores were cut .* cut scores together with their ids"):
        trainer.train()
    assert train.errors == sum(len(row["scores"]["logp"]) > len(row["input_ids"]) for row in train.dataset)

    trainer, model = sft(scored, packing=True, max_length=64)
    wrap(trainer, editor)
    with pytest.raises(toedit.InputError, match="no column 'doc', which is to be its key"):
        trainer.train()
    assert not model.training
