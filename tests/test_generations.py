"""Several generations: edit, score again, edit again, with draws, counts and log entries of each."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer

import helpers
import oracle
import toedit
from toedit import Band

Rows = list[list[int]]

POLICY = toedit.Policy(threshold=0.3, temperature=1.5)
DROPS = toedit.Policy(
    bands=(Band(0.3), Band(0.01, 0.1, action="mask_loss"), Band(0.0, 0.01, action="drop")), temperature=1.5, labels="original"
)


@pytest.fixture(scope="module")
def texts(tokenizer: Tokenizer) -> Rows:
    """1,000 tokens of real text, an empty row and one of a single token among them."""
    rows = helpers.text_rows(tokenizer, 1000, seed=8, longest=100)
    return [*rows[:3], [], rows[0][:1], *rows[3:]]


@pytest.fixture(scope="module")
def editor(prior: toedit.Prior) -> toedit.Editor:
    editor = toedit.Editor(prior, POLICY, seed=3, generations=3)
    editor([[1]])  # its native half lasts as long as the module
    return editor


def by_hand(editor: toedit.Editor, rows: Rows, epoch: int = 0, **columns: Any) -> tuple[Rows, list[oracle.BatchResult]]:
    """The reference's edits, from fresh scores of every generation."""
    results = []
    for generation in range(editor.generations):
        scores = editor.prior.score(rows, keep=editor.policy)
        results.append(helpers.reference(editor, rows, helpers.scores_of(scores), epoch, generation=generation, **columns))
        rows = results[-1]["ids"]
    return rows, results


def assert_equal(edited: toedit.Edited, rows: Rows, results: Sequence[oracle.BatchResult]) -> None:
    assert helpers.as_lists(edited["input_ids"]) == rows
    for counts, want in zip(edited.generations, results, strict=True):
        assert (counts.candidates, counts.changes, counts.protected) == (want["candidates"], want["changes"], want["protected"])
        assert counts.expected_changes == pytest.approx(want["expected_changes"], rel=1e-12)
    log = [
        tuple(entry[name] for name in ("generation", "row", "position", "old", "new", "band"))
        for entry in edited.log.to_pylist()
    ]
    assert log == [
        (g, n, *edit) for g, want in enumerate(results) for n, row in enumerate(want["rows"]) for edit in row["edits"]
    ]


@pytest.mark.parametrize("epoch", [0, 5])
def test_equal_to_the_reference_one_generation_after_the_other(editor: toedit.Editor, texts: Rows, epoch: int) -> None:
    rows, results = by_hand(editor, texts, epoch)
    edited = editor(texts, epoch)
    assert_equal(edited, rows, results)
    assert all(want["changes"] > 20 for want in results)


def test_one_generation_is_what_editing_is(prior: toedit.Prior, editor: toedit.Editor, texts: Rows) -> None:
    one, plain = toedit.Editor(prior, POLICY, seed=3, generations=1), toedit.Editor(prior, POLICY, seed=3)
    first, edited = one(texts), plain(texts)
    assert first["input_ids"] == edited["input_ids"]
    assert first.log.equals(edited.log)
    assert first.generations == [first.counts] == [edited.counts]
    assert set(edited.log.column("generation").to_pylist()) == {0}
    # And the first of several.
    assert editor(texts).generations[0] == edited.counts


def test_each_generation_has_its_own_draws(prior: toedit.Prior, texts: Rows) -> None:
    """At one position from one list of choices: the words are others."""
    scores = prior.score(texts, keep=POLICY)
    single = toedit.Editor(prior, POLICY, seed=3)
    found = [helpers.reference(single, texts, helpers.scores_of(scores), generation=g)["ids"] for g in (0, 1, 2)]
    assert found[0] != found[1] != found[2] != found[0]


def test_stored_scores_are_those_of_the_first_generation(editor: toedit.Editor, texts: Rows) -> None:
    scores = editor.prior.score(texts, keep=POLICY)
    batch = pa.table({"input_ids": pa.array(texts, pa.list_(pa.int32())), "scores": scores, "name": list(range(len(texts)))})
    edited = editor(batch)
    assert edited["input_ids"].to_pylist() == editor(texts)["input_ids"]
    # Every other column is as it was: these scores are of the ids that came in.
    assert edited["scores"].combine_chunks().equals(scores)
    assert edited["name"].equals(batch["name"])
    with pytest.raises(toedit.ScoresError, match="row 0"):
        editor(edited.batch)


def test_scores_are_made_for_the_policy(prior: toedit.Prior, texts: Rows) -> None:
    policy = toedit.Policy(bands=(Band(0.0, 0.05), Band(0.5, 0.8)), k=3, temperature=2.0)
    edited = toedit.Editor(prior, policy, generations=2)(texts)
    assert edited.generations[1].changes > 100


def test_keys_and_offsets(prior: toedit.Prior, texts: Rows) -> None:
    rows = [row for row in texts if len(row) > 1]
    keys = [f"document {n // 2}" for n in range(len(rows))]
    starts = [1000 * (n % 2) for n in range(len(rows))]
    editor = toedit.Editor(prior, POLICY, seed=3, key="doc", offset="start", generations=2)
    edited = editor({"input_ids": rows, "doc": keys, "start": starts})
    want, results = by_hand(editor, rows, keys=keys, offsets=starts)
    assert helpers.as_lists(edited["input_ids"]) == want
    first = edited.log.to_pylist()[0]
    assert first["position"] == starts[first["row"]] + results[0]["rows"][first["row"]]["edits"][0][0]
    assert want != toedit.Editor(prior, POLICY, seed=3, generations=2)(rows)["input_ids"]


@pytest.mark.parametrize("left", [False, True])
def test_padding(editor: toedit.Editor, texts: Rows, left: bool) -> None:
    ids, mask = helpers.pad(texts, 120, left=left)
    edited = editor({"input_ids": np.array(ids), "attention_mask": np.array(mask)})
    plain = editor(texts)
    assert edited["input_ids"].tolist() == helpers.pad(plain["input_ids"], 120, left=left)[0]
    assert edited.generations == plain.generations
    assert edited.log.equals(plain.log)


def test_labels_follow_and_protect_in_every_generation(editor: toedit.Editor, texts: Rows) -> None:
    labels = [[-100] * (len(row) // 2) + row[len(row) // 2 :] for row in texts]
    edited = editor({"input_ids": texts, "labels": labels})
    for before, after, got in zip(texts, edited["input_ids"], edited["labels"], strict=True):
        n = len(before) // 2
        assert after[:n] == before[:n]
        assert got == [-100] * n + after[n:]
    assert edited.counts.protected > 100


def test_original_labels_last_through_all_generations(prior: toedit.Prior, texts: Rows) -> None:
    policy = toedit.Policy(threshold=0.3, temperature=1.5, labels="original")
    edited = toedit.Editor(prior, policy, seed=3, generations=3)({"input_ids": texts, "labels": texts})
    assert edited["labels"] == texts
    assert edited["input_ids"] == toedit.Editor(prior, POLICY, seed=3, generations=3)(texts)["input_ids"]


def test_dropped_tokens_are_gone_in_the_next_generation(prior: toedit.Prior, texts: Rows) -> None:
    names = [[str(n) for n in range(len(row))] for row in texts]
    editor = toedit.Editor(prior, DROPS, seed=3, generations=2)
    edited = editor({"input_ids": texts, "labels": texts, "names": names})
    one = toedit.Editor(prior, DROPS, seed=3)
    first = one({"input_ids": texts, "labels": texts, "names": names})
    first_counts, second_counts = edited.generations
    assert first_counts == first.counts
    assert second_counts.tokens == first.counts.tokens - first.counts.dropped
    assert sum(map(len, edited["input_ids"])) == second_counts.tokens - second_counts.dropped
    for before, labels, kept in zip(texts, edited["labels"], edited["names"], strict=True):
        assert [w for w in labels if w != -100] == [before[int(n)] for n, w in zip(kept, labels, strict=True) if w != -100]
    assert min(second_counts.dropped, second_counts.changes) > 10


def test_counts_of_all_generations(editor: toedit.Editor, texts: Rows) -> None:
    edited = editor(texts)
    whole, each = asdict(edited.counts), [asdict(counts) for counts in edited.generations]
    for name in ("rows", "empty_rows", "overlong_rows", "tokens", "unscored"):
        assert whole[name] == each[0][name]
        del whole[name]
    for name, value in whole.items():
        assert value == pytest.approx(sum(counts[name] for counts in each), rel=1e-12)
    assert edited.changes == edited.log.num_rows


def test_candidates_do_not_grow(prior: toedit.Prior, tokenizer: Tokenizer) -> None:
    """As in the paper (12.5, 11.76 and 11.08 % of its corpus under its prior): what was drawn anew is less certain."""
    rows = helpers.text_rows(tokenizer, 12_000, seed=1)
    policy = toedit.Policy(threshold=0.9, temperature=1.5)
    found = [counts.candidates for counts in toedit.Editor(prior, policy, generations=3)(rows).generations]
    assert found[0] > found[1] > found[2] > 0.5 * found[0]


@pytest.mark.parametrize("value", [0, -1, 2**16 + 1, 1.5, "2", None])
def test_numbers_of_generations_that_are_none(small_prior: toedit.Prior, value: Any) -> None:
    with pytest.raises(toedit.InputError, match="generations is"):
        toedit.Editor(small_prior, generations=value)


def test_a_later_generation_needs_a_model(small_prior: toedit.Prior, small_columns: dict[str, Any]) -> None:
    policy = toedit.Policy(threshold=0.5)
    assert toedit.Editor(small_prior, policy)(small_columns).changes > 0
    with pytest.raises(toedit.Error, match=r"model\.onnx"):
        toedit.Editor(small_prior, policy, generations=2)(small_columns)


def test_copies_and_names(editor: toedit.Editor, texts: Rows) -> None:
    copy = pickle.loads(pickle.dumps(editor))
    assert copy.generations == 3
    assert copy(texts)["input_ids"] == editor(texts)["input_ids"]
    assert "generations=3" in repr(editor)
    assert "generations" not in repr(toedit.Editor(editor.prior))


# Data loading


@pytest.mark.timeout(150)
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("policy", [POLICY, DROPS], ids=["resample", "drop"])
def test_generations_in_workers(prior: toedit.Prior, texts: Rows, policy: toedit.Policy) -> None:
    torch = pytest.importorskip("torch")
    from toedit.torch import EditCollator

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        ids, mask = helpers.pad([row["input_ids"] for row in rows], 100)
        tensor = torch.tensor(ids)
        return {"input_ids": tensor, "attention_mask": torch.tensor(mask), "labels": tensor}

    editor = toedit.Editor(prior, policy, seed=3, generations=2)
    rows = [{"input_ids": row} for row in texts]
    want = editor([row | {"labels": row["input_ids"]} for row in rows])
    collator = EditCollator(editor, collate)
    loader = torch.utils.data.DataLoader(
        rows, 4, collate_fn=collator, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    got = [row for batch in loader for row in zip(*(batch[n] for n in ("input_ids", "attention_mask", "labels")), strict=True)]
    for (ids, mask, labels), row in zip(got, want.batch, strict=True):
        assert ids[mask.bool()].tolist() == row["input_ids"]
        assert labels[mask.bool()].tolist() == row["labels"]
    for counts, expected in zip(collator.generation_stats(), want.generations, strict=True):
        approximately = pytest.approx(expected.expected_changes, abs=1e-4)
        assert asdict(counts) == asdict(expected) | {"expected_changes": approximately}
    assert collator.stats().tokens == want.counts.tokens
    assert collator.stats().changes == want.changes > 20
