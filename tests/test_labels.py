"""Labels that are not the edited ids: originals, and -100 where loss is masked, whatever a collate function does with rows."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer

import helpers
import toedit
from toedit import Band
from toedit._align import set_labels

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader, default_collate  # noqa: E402

import toedit.torch  # noqa: E402
from toedit.torch import EditCollator, EditedDataset  # noqa: E402

pytestmark = [
    pytest.mark.timeout(150),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

Row = dict[str, Any]
Collate = Callable[[Any], Any]

SPECIAL = 0  # what the collate functions here pad and frame with, and no row has

# Everything that can happen to a token.
BANDS = (Band(0.3), Band(0.01, 0.1, action="mask_loss"), Band(0.0, 0.01, action="drop"))
MIXED = toedit.Policy(bands=BANDS, temperature=1.5)
ORIGINAL = toedit.Policy(threshold=0.3, temperature=1.5, labels="original")
ALL = toedit.Policy(bands=BANDS, temperature=1.5, labels="original")
POLICIES = {"mask": MIXED, "original": ORIGINAL, "all": ALL}


@pytest.fixture(scope="module")
def data(prior: toedit.Prior, tokenizer: Tokenizer) -> list[Row]:
    """1,000 tokens of real text in scored rows."""
    texts = helpers.text_rows(tokenizer, 1000, seed=5, longest=64)
    scores = prior.score(texts, keep=[(0.3, 1.0)]).to_pylist()
    return [{"input_ids": ids, "scores": s} for ids, s in zip(texts, scores, strict=True)]


@pytest.fixture(scope="module")
def editors(prior: toedit.Prior) -> dict[str, toedit.Editor]:
    made = {name: toedit.Editor(prior, policy, seed=3) for name, policy in POLICIES.items()}
    for editor in made.values():
        editor.edit([[1]])  # their native halves last as long as the module
    return made


@pytest.fixture(scope="module")
def fast_tokenizer(prior: toedit.Prior) -> Any:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(prior.tokenizer_file))
    tokenizer.pad_token = tokenizer.mask_token = "<|endoftext|>"
    return tokenizer


def by_hand(editor: toedit.Editor, rows: list[Row]) -> list[tuple[list[int], list[int]]]:
    """Each row's edited ids and its labels, from the log."""
    before = [row["input_ids"] for row in rows]
    ids = [list(row) for row in before]
    labels = [list(row) for row in before]
    dropped: list[set[int]] = [set() for _ in rows]
    bands = editor.policy.candidate_bands
    for entry in editor.edit(rows).log.to_pylist():
        n, at = entry["row"], entry["position"]
        match bands[entry["band"]].action:
            case "drop":
                dropped[n].add(at)
            case "mask_loss":
                labels[n][at] = -100
            case _:
                ids[n][at] = entry["new"]
                if editor.policy.labels == "edited":
                    labels[n][at] = entry["new"]
    kept = [[i for i in range(len(row)) if i not in gone] for row, gone in zip(before, dropped, strict=True)]
    return [([i[k] for k in ks], [w[k] for k in ks]) for ks, i, w in zip(kept, ids, labels, strict=True)]


def unlabelled(rows: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name != "labels"} for row in rows]


# Collate functions


def padding(*, left: bool = False) -> Collate:
    """Pads, and takes the ids themselves for labels: the same tensor."""

    def collate(rows: list[Row]) -> Row:
        ids, mask = helpers.pad([row["input_ids"] for row in rows], max(len(row["input_ids"]) for row in rows), left=left)
        tensor = torch.tensor(ids)
        return {"input_ids": tensor, "attention_mask": torch.tensor(mask), "labels": tensor}

    return collate


def framing(rows: list[Row]) -> Row:
    """A BOS and an EOS around each row, without an attention mask; labels as int32 arrays."""
    ids = [[0, *row["input_ids"], 0] for row in rows]
    return {"input_ids": ids, "labels": [np.array(row, np.int32) for row in ids]}


def flattening(rows: list[Row]) -> Row:
    """As TRL's collator does without padding: one row, positions that restart, and the prompt masked by its own column."""
    ids = [i for row in rows for i in row["input_ids"]]
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([[i for row in rows for i in range(len(row["input_ids"]))]]),
        "labels": torch.tensor([ids]),
    }


def flat(rows: list[Row]) -> Row:
    """One dimension, padded to a multiple."""
    ids = [i for row in rows for i in row["input_ids"]]
    ids += [0] * (-len(ids) % 32)
    return {"input_ids": np.array(ids), "labels": np.array(ids)}


def packing(rows: list[Row]) -> Row:
    """As many rows one behind the other as fit, and the rest is padding."""
    bins: list[list[int]] = [[]]
    for row in rows:
        if len(bins[-1]) + len(row["input_ids"]) > 100:
            bins.append([])
        bins[-1] += row["input_ids"]
    ids, _ = helpers.pad(bins, 100)
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)}


def micro_batches(rows: list[Row]) -> list[Row]:
    """Several mappings, as for gradient accumulation."""
    return [padding()(rows[n : n + 3]) for n in range(0, len(rows), 3)]


def seen(batch: Any) -> list[tuple[int, int]]:
    """All pairs of an id and its label in a collated batch, in order."""
    parts = batch if isinstance(batch, list) else [batch]
    return [pair for part in parts for pair in zip(flattened(part["input_ids"]), flattened(part["labels"]), strict=True)]


def flattened(column: Any) -> list[int]:
    return [int(value) for row in column for value in np.atleast_1d(np.asarray(row))]


def expected(editor: toedit.Editor, rows: list[Row]) -> list[tuple[int, int]]:
    pairs = [pair for ids, labels in by_hand(editor, rows) for pair in zip(ids, labels, strict=True)]
    assert SPECIAL not in {i for i, _ in pairs}
    return pairs


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize(
    "collate",
    [padding(), padding(left=True), framing, flattening, flat, packing, micro_batches],
    ids=["right", "left", "framed", "flattened", "flat", "packed", "micro-batches"],
)
def test_labels_that_a_collate_function_makes(
    editors: dict[str, toedit.Editor], data: list[Row], policy: str, collate: Collate
) -> None:
    editor = editors[policy]
    batch = EditCollator(editor, collate)(data)
    want = expected(editor, data)
    assert [(i, w) for i, w in seen(batch) if i != SPECIAL] == want
    assert sum(i != w != -100 for i, w in want) > 20 or policy == "mask"
    assert sum(w == -100 for _, w in want) > 20 or policy == "original"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("side", ["left", "right"])
def test_collator_for_language_modeling(
    editors: dict[str, toedit.Editor], data: list[Row], fast_tokenizer: Any, side: str, workers: int
) -> None:
    from transformers import DataCollatorForLanguageModeling

    fast_tokenizer.padding_side = side
    collator = EditCollator(editors["all"], DataCollatorForLanguageModeling(fast_tokenizer, mlm=False))
    options: Row = {"multiprocessing_context": "fork", "timeout": 60} if workers else {}
    batches = list(DataLoader(data, 7, collate_fn=collator, num_workers=workers, **options))
    assert set(batches[0]) == {"input_ids", "attention_mask", "labels"}
    pairs = [pair for batch in batches for pair in seen(batch)]
    assert [pair for pair in pairs if pair[0] != SPECIAL] == expected(editors["all"], data)
    assert all(w == -100 for i, w in pairs if i == SPECIAL)


def test_collator_that_flattens(editors: dict[str, toedit.Editor], data: list[Row]) -> None:
    transformers = pytest.importorskip("transformers")
    batch = EditCollator(editors["all"], transformers.DataCollatorWithFlattening(return_tensors="pt"))(data)
    want = [
        (i, -100 if n == 0 else w)  # its own: no row's first token follows from the row before
        for ids, labels in by_hand(editors["all"], data)
        for n, (i, w) in enumerate(zip(ids, labels, strict=True))
    ]
    assert seen(batch) == want


@pytest.mark.parametrize("name", ["DataCollatorForSeq2Seq", "DataCollatorForTokenClassification"])
def test_labels_that_the_rows_bring(editors: dict[str, toedit.Editor], data: list[Row], fast_tokenizer: Any, name: str) -> None:
    import transformers

    fast_tokenizer.padding_side = "right"
    rows = [
        row | {"labels": [-100] * n + row["input_ids"][n:], "attention_mask": [1] * len(row["input_ids"])}
        for row in data
        for n in [len(row["input_ids"]) // 4]
    ]
    batch = EditCollator(editors["all"], getattr(transformers, name)(fast_tokenizer))(rows)
    edited = editors["all"](rows)
    for n, (ids, labels) in enumerate(zip(edited["input_ids"], edited["labels"], strict=True)):
        assert batch["input_ids"][n, : len(ids)].tolist() == ids
        assert batch["labels"][n, : len(ids)].tolist() == labels
        assert set(batch["labels"][n, len(ids) :].tolist()) <= {-100}


def test_labels_of_the_rows_that_a_collate_function_makes_anew(editors: dict[str, toedit.Editor], data: list[Row]) -> None:
    """They are the rows' own again, -100 of the prompt included."""
    rows = [row | {"labels": [-100, *row["input_ids"][1:]]} for row in data]
    batch = EditCollator(editors["original"], padding())(rows)
    edited = editors["original"](rows)
    for n, labels in enumerate(edited["labels"]):
        assert batch["labels"][n, : len(labels)].tolist() == labels


def test_rows_of_one_length_and_default_collate(
    editors: dict[str, toedit.Editor], data: list[Row], prior: toedit.Prior
) -> None:
    ids = torch.tensor([row["input_ids"][:32] for row in data if len(row["input_ids"]) >= 32])
    rows = [{"input_ids": row, "labels": row} for row in ids]
    batch = EditCollator(editors["original"])(rows)
    assert torch.equal(batch["labels"], ids)
    assert not torch.equal(batch["input_ids"], ids)


@pytest.mark.parametrize("make", [list, np.array, torch.tensor, lambda row: np.array(row, np.uint16)])
def test_rows_that_are_ids_alone(editors: dict[str, toedit.Editor], data: list[Row], make: Any) -> None:
    texts = [row["input_ids"] for row in data[:5]]

    def collate(rows: list[Any]) -> Row:
        return padding()([{"input_ids": [int(i) for i in row]} for row in rows])

    batch = EditCollator(editors["original"], collate)([make(row) for row in texts])
    assert [labels[: len(row)].tolist() for labels, row in zip(batch["labels"], texts, strict=True)] == texts
    assert [ids[: len(row)].tolist() for ids, row in zip(batch["input_ids"], texts, strict=True)] != texts


def test_labels_do_not_share_memory_with_the_ids(editors: dict[str, toedit.Editor], data: list[Row]) -> None:
    batch = EditCollator(editors["original"], padding())(data)
    assert batch["labels"].data_ptr() != batch["input_ids"].data_ptr()
    assert batch["labels"].dtype == batch["input_ids"].dtype == torch.int64


def test_rows_that_were_padded_before(editors: dict[str, toedit.Editor], data: list[Row]) -> None:
    ids, mask = helpers.pad([row["input_ids"] for row in data], 64, left=True)
    rows = [
        {"input_ids": torch.tensor(i), "attention_mask": torch.tensor(m), "labels": torch.tensor(i), "scores": row["scores"]}
        for i, m, row in zip(ids, mask, data, strict=True)
    ]
    batch = EditCollator(editors["original"], lambda rows: default_collate(rows))(rows)
    assert batch["labels"].tolist() == ids


def test_following_labels_cost_nothing(prior: toedit.Prior, data: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(toedit.torch, "set_labels", fail)
    drops = (Band(0.3), Band(0.0, 0.01, action="drop"))
    for policy in (toedit.Policy(threshold=0.3), toedit.Policy(bands=drops)):
        # What cannot be aligned is no matter.
        assert EditCollator(toedit.Editor(prior, policy), lambda rows: "anything")(data) == "anything"


# What cannot be aligned


def masked(rows: list[Row]) -> Row:
    batch = padding()(rows)
    batch["input_ids"] = batch["input_ids"].clone()
    batch["input_ids"][2, 3] = 0
    return batch


def shifted(rows: list[Row]) -> Row:
    batch = padding()(rows)
    return batch | {"labels": torch.roll(batch["labels"], -1, dims=1)}


def cut(rows: list[Row]) -> Row:
    return {name: values[:, :20] for name, values in padding()(rows).items()}


def nested(rows: list[Row]) -> Row:
    return {"inputs": padding()(rows)}


def without_labels(rows: list[Row]) -> Row:
    return {name: values for name, values in padding()(rows).items() if name != "labels"}


def another_shape(rows: list[Row]) -> Row:
    batch = padding()(rows)
    return batch | {"labels": batch["labels"][:, 1:]}


def embedded(rows: list[Row]) -> Row:
    batch = padding()(rows)
    return batch | {"input_ids": batch["input_ids"].float()}


@pytest.mark.parametrize(
    ("collate", "message"),
    [
        (masked, r"row 2: collate_fn returned the id 0 where the edited row has \d+ \(its token 3 of \d+\)"),
        (shifted, r"row \d: collate_fn returned the label \d+ for its token \d+, which is neither -100 nor the token's id"),
        (cut, r"row \d: collate_fn returned 20 input_ids for its \d+ tokens.*Truncate"),
        (lambda rows: padding()(rows[::-1]), r"row 0: collate_fn returned (the id|\d+ input_ids)"),
        (lambda rows: padding()(rows[1:]), r"row 0: collate_fn returned the id"),
        (lambda rows: flattening(rows[:-1]), r"row \d: collate_fn returned 1 rows of input_ids for 9, and in them no place"),
        (nested, r"collate_fn returned no 'input_ids', only \['inputs'\]"),
        (without_labels, r"collate_fn returned no 'labels', only \['input_ids', 'attention_mask'\]"),
        (another_shape, "labels of another shape"),
        (embedded, "input_ids that are neither"),
        (lambda rows: tuple(padding()(rows).values()), "collate_fn returned a tuple"),
        (lambda rows: None, "collate_fn returned a NoneType"),
        (list, r"collate_fn returned no 'labels', only \['input_ids'\]"),
    ],
)
def test_what_cannot_be_aligned(editors: dict[str, toedit.Editor], data: list[Row], collate: Collate, message: str) -> None:
    with pytest.raises(toedit.InputError, match=message) as met:
        EditCollator(editors["all"], collate)(data[:9])
    assert "EditedDataset" in str(met.value)


def test_masked_language_models(editors: dict[str, toedit.Editor], data: list[Row], fast_tokenizer: Any) -> None:
    from transformers import DataCollatorForLanguageModeling

    collator = EditCollator(editors["original"], DataCollatorForLanguageModeling(fast_tokenizer, mlm=True))
    with pytest.raises(toedit.InputError, match="row 0: collate_fn returned the id 0 where the edited row has"):
        collator(data[:1])


def test_errors_reach_the_trainer(editors: dict[str, toedit.Editor], data: list[Row]) -> None:
    loader = DataLoader(
        data, 9, collate_fn=EditCollator(editors["all"], masked), num_workers=1, multiprocessing_context="fork", timeout=60
    )
    with pytest.raises(toedit.InputError, match="row 2: collate_fn returned the id 0"):
        list(loader)


# The alignment alone


def lists(*rows: list[int]) -> pa.Array:
    return pa.array(rows, pa.list_(pa.int64()))


def test_padding_that_is_a_token_needs_a_mask() -> None:
    ids, labels = lists([5, 5], [5, 6]), lists([5, 9], [5, 6])
    batch = {"input_ids": [[5, 5, 5], [5, 5, 6]], "labels": [[5, 5, -100], [-100, 5, 6]]}
    with pytest.raises(toedit.InputError, match="row 0: collate_fn returned its tokens in several places"):
        set_labels(dict(batch), ids, labels)
    with_mask = batch | {"attention_mask": [[1, 1, 0], [0, 1, 1]]}
    assert set_labels(with_mask, ids, labels)["labels"] == [[5, 9, -100], [-100, 5, 6]]
    # Of no matter where the labels are the ids.
    assert set_labels(dict(batch), ids, ids)["labels"] == batch["labels"]


def test_empty_rows() -> None:
    ids, labels = lists([], [7, 8], []), lists([], [7, -100], [])
    padded = {"input_ids": torch.tensor([[0, 0], [7, 8], [0, 0]]), "labels": torch.tensor([[-100, -100], [7, 8], [-100, -100]])}
    assert set_labels(padded, ids, labels)["labels"].tolist() == [[-100, -100], [7, -100], [-100, -100]]
    assert set_labels({"input_ids": [7, 8], "labels": [7, 8]}, ids, labels)["labels"] == [7, -100]
    assert set_labels([], lists(), lists()) == []


def test_other_columns_and_the_mapping_itself_stay() -> None:
    other = object()
    batch = {"input_ids": np.array([[7, 8]], np.int32), "labels": np.array([[7, -100]], np.int16), "other": other}
    before = batch["labels"]
    result = set_labels(batch, lists([7, 8]), lists([6, 5]))
    assert result is batch
    assert result["other"] is other
    assert result["labels"].tolist() == [[6, -100]]
    assert result["labels"].dtype == np.int16
    assert before.tolist() == [[7, -100]]


# Datasets, counts


def test_datasets_need_labels(editors: dict[str, toedit.Editor], data: list[Row]) -> None:
    for source in (data, iter(data)):
        dataset: Any = EditedDataset(source, editors["original"])
        with pytest.raises(toedit.InputError, match=r"no column 'labels'.*EditCollator"):
            next(iter(dataset))
    labelled = [row | {"labels": row["input_ids"]} for row in data]
    got = list(EditedDataset(labelled, editors["all"]))
    assert [(row["input_ids"], row["labels"]) for row in got] == by_hand(editors["all"], data)


def test_counts_add_up_across_workers(editors: dict[str, toedit.Editor], data: list[Row]) -> None:
    collator = EditCollator(editors["all"], padding())
    list(DataLoader(data, 4, collate_fn=collator, num_workers=3, multiprocessing_context="fork", timeout=60))
    want = asdict(editors["all"].edit(data).counts)
    got = asdict(collator.stats())
    assert got == want | {"expected_changes": pytest.approx(want["expected_changes"], abs=1e-4)}
    assert min(want[name] for name in ("candidates", "changes", "dropped", "masked")) > 20


def test_pickled_collators_set_labels(editors: dict[str, toedit.Editor], data: list[Row]) -> None:
    collator = pickle.loads(pickle.dumps(EditCollator(editors["all"], flattening)))
    assert seen(collator(data)) == expected(editors["all"], data)
