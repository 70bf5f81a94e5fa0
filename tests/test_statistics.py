"""Statistics are what editing meets and does, and add up to the same in any order."""

from __future__ import annotations

import json
import math
import pickle
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import helpers
import oracle
import toedit
from toedit import Band, Policy, Statistics

Columns = dict[str, Any]

POLICIES = {
    "paper": Policy(),
    "a low band": Policy(threshold=0.5, temperature=2.0),
    "a nucleus": Policy(threshold=0.5, top_p=0.9, temperature=1.2),
    "half of them": Policy(threshold=0.5, edit_probability=0.5, exclude_original=True),
    "protected": Policy(threshold=0.3, k=4, protected_ids=tuple(range(0, 4096, 3)), exclude_original=True),
    "three bands": Policy(bands=(Band(0, 0.001, action="drop"), Band(0.4, 0.5, action="mask_loss"), Band(0.9))),
}


def total(statistics: Statistics) -> dict[str, Any]:
    """The totals as plain values."""
    return dict(json.loads(statistics.to_json()))


@pytest.fixture(scope="module")
def batch(rows: list[list[int]], scores: pa.StructArray) -> Columns:
    return {"input_ids": pa.array(rows, pa.list_(pa.int64())), "scores": scores, "id": [f"row {i}" for i in range(len(rows))]}


def part(batch: Columns, order: list[int]) -> Columns:
    return {name: pa.array(column).take(pa.array(order, pa.int64())) for name, column in batch.items()}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_counts_are_those_of_editing(prior: toedit.Prior, batch: Columns, policy: Policy) -> None:
    editor = toedit.Editor(prior, policy, seed=4, key="id")
    statistics = editor.statistics(batch, epoch=3)
    counts = editor.edit(batch, epoch=3).counts
    for name, value in vars(counts).items():
        if name != "expected_changes":
            assert getattr(statistics, name) == value, name
    # Those of each row are rounded to a multiple of 2**-30.
    assert statistics.expected_changes == pytest.approx(counts.expected_changes, rel=1e-12, abs=counts.rows * 2**-31)
    assert statistics.scored + statistics.unscored == statistics.tokens > 8000
    assert statistics.candidates > 0


def test_histograms_and_means_are_those_of_the_scores(prior: toedit.Prior, batch: Columns) -> None:
    statistics = toedit.Editor(prior, Policy(threshold=0.5)).statistics(batch)
    logp = np.concatenate([np.asarray(row, float) for row in batch["scores"].field("logp").to_pylist()])
    logp = logp[~np.isnan(logp)]
    assert len(logp) == statistics.scored
    edges, counts = statistics.fine_histogram
    assert {0.001, 0.01, 0.5, 0.99, 0.995, 0.999, 0.9999} <= set(edges)
    with np.errstate(divide="ignore"):
        bounds = np.log(edges)
    bounds[-1] = np.inf
    assert counts.tolist() == np.histogram(logp, bounds)[0].tolist()
    assert statistics.histogram.tolist() == np.histogram(np.exp(logp), np.arange(11) / 10)[0].tolist()
    assert statistics.mean_logp == pytest.approx(logp.mean(), abs=2**-21)
    assert statistics.sum_logp == pytest.approx(logp.sum(), abs=len(logp) * 2**-21)
    assert statistics.perplexity == pytest.approx(math.exp(-logp.mean()), rel=1e-6)
    assert statistics.margins.to_pydict() == {
        "edge": [0.5, 0.5],
        "delta": [0.001, 0.01],
        "count": [int((np.abs(logp - math.log(0.5)) <= delta).sum()) for delta in (0.001, 0.01)],
        "share": [int((np.abs(logp - math.log(0.5)) <= delta).sum()) / len(logp) for delta in (0.001, 0.01)],
    }
    assert statistics.margins["count"][1].as_py() > 0


def test_every_document_has_a_row(prior: toedit.Prior, batch: Columns) -> None:
    editor = toedit.Editor(prior, POLICIES["three bands"], key="id")
    statistics = editor.statistics(batch)
    documents = statistics.documents
    assert documents is not None
    assert documents.num_rows == statistics.rows == len(batch["input_ids"])
    for name in ("tokens", "scored", "unscored", "protected", "candidates", "unselected", "truncated", "changes", "dropped"):
        assert sum(documents[name].to_pylist()) == getattr(statistics, name), name
    for name in ("expected_changes", "sum_logp"):
        assert math.fsum(documents[name].to_pylist()) == getattr(statistics, name), name
    assert np.sum(documents["histogram"].to_pylist(), axis=0).tolist() == statistics.histogram.tolist()
    assert np.sum(documents["margins"].to_pylist(), axis=0).tolist() == statistics.margins["count"].to_pylist()
    for i in (0, 10, 12, len(documents) - 1):
        alone = editor.statistics(part(batch, [i]))
        row = documents.slice(i, 1).to_pylist()[0]
        assert {
            name: getattr(alone, name) for name in ("tokens", "changes", "expected_changes", "sum_logp")
        }.items() <= row.items()
        assert row["histogram"] == alone.histogram.tolist()
        if row["tokens"] == 0:
            assert row["mean_logp"] is row["perplexity"] is None
            assert math.isnan(alone.mean_logp)
        else:
            assert (row["mean_logp"], row["perplexity"]) == pytest.approx((alone.mean_logp, alone.perplexity))


def test_any_sharding_and_any_order_give_the_same(prior: toedit.Prior, batch: Columns) -> None:
    editor = toedit.Editor(prior, Policy(threshold=0.3, temperature=1.3), key="id")
    whole = editor.statistics(batch)
    chance = random.Random(8)
    for _ in range(5):
        order = list(range(whole.rows))
        chance.shuffle(order)
        parts = []
        while order:
            size = chance.randint(1, len(order))
            parts.append(editor.statistics(part(batch, order[:size])))
            order = order[size:]
        parts = [Statistics.from_json(s.to_json()) for s in parts]  # from other processes, say
        while len(parts) > 1:
            chance.shuffle(parts)
            parts = [parts[0] + parts[1], *parts[2:]]
        assert parts[0] == whole
        assert parts[0].to_json() == whole.to_json()
        assert parts[0].documents is None
    assert sum([whole]) == whole
    assert sum([whole, whole, whole]).changes == 3 * whole.changes
    nothing = editor.statistics(part(batch, []))
    assert nothing.documents is not None
    assert nothing.documents.num_rows == nothing.rows == nothing.tokens == 0
    assert nothing + whole == whole + nothing == whole


def test_a_large_batch_is_measured_by_several_threads(small_prior: toedit.Prior, small_columns: Columns) -> None:
    """Equal documents without a key get equal edits, so that many copies are as many times the statistics of one."""
    times = 5000  # 650,000 tokens: enough for two threads
    editor = toedit.Editor(small_prior, Policy(threshold=0.5, temperature=2.0))
    one = editor.statistics(small_columns)
    many = editor.statistics({name: pa.concat_arrays([column] * times) for name, column in small_columns.items()})
    for name in ("rows", "empty_rows", "tokens", "candidates", "changes", "expected_units", "logp_units"):
        assert getattr(many, name) == times * getattr(one, name), name
    assert many.intervals == tuple(times * n for n in one.intervals)
    assert one.documents is not None
    assert many.documents == pa.concat_tables([one.documents] * times)


def test_epochs_and_seeds_add_up(prior: toedit.Prior, batch: Columns) -> None:
    policy = Policy(threshold=0.5, temperature=2.0)
    one, two = (toedit.Editor(prior, policy, seed=s).statistics(batch, epoch=s) for s in (1, 2))
    assert one.changes != two.changes
    both = one + two
    assert both.changes == one.changes + two.changes
    assert both.expected_changes == one.expected_changes + two.expected_changes == 2 * one.expected_changes
    assert both.mean_logp == one.mean_logp


def test_policies_that_are_the_same_add_up(prior: toedit.Prior, batch: Columns) -> None:
    editors = [toedit.Editor(prior, p) for p in (Policy(), Policy(bands=(Band(0.99),)), Policy.preset("paper"))]
    assert sum(editor.statistics(batch) for editor in editors).rows == 3 * len(batch["input_ids"])


def test_statistics_of_other_policies_or_priors_do_not_add_up(
    prior: toedit.Prior, batch: Columns, small_prior: toedit.Prior, small_columns: Columns
) -> None:
    one = toedit.Editor(prior, Policy(threshold=0.5)).statistics(batch)
    for policy, message in (
        (Policy(threshold=0.5, k=4), "statistics: k is 8 in one and 4 in the other; only those of one prior and one policy"),
        (Policy(threshold=0.6), r"statistics: bands is .*0\.5.* in one and .*0\.6.* in the other"),
    ):
        with pytest.raises(toedit.InputError, match=message):
            one + toedit.Editor(prior, policy).statistics(batch)
    with pytest.raises(toedit.InputError, match=f"prior is '{prior.fingerprint}' in one and '{small_prior.fingerprint}' in"):
        one + toedit.Editor(small_prior, Policy(threshold=0.5)).statistics(small_columns)
    with pytest.raises(TypeError):
        one + 1  # type: ignore[operator]


def test_tokens_of_no_probability_are_left_out_of_the_mean(small_prior: toedit.Prior) -> None:
    ids = [[5, 6, 7, 8, 9]]
    scores: list[oracle.Scores] = [
        {
            "logp": [None, -math.inf, -2.0, -1e30, -1024.0],
            "topk_pos": [],
            "topk_ids": [],
            "topk_logp": [],
            "k": 8,
            "ids_hash": oracle.document_hash(ids[0])[0],
            "prior": small_prior.fingerprint,
        }
    ]
    statistics = toedit.Editor(small_prior).statistics({"input_ids": ids, "scores": oracle.scores_to_arrow(scores)})
    assert (statistics.scored, statistics.impossible) == (4, 2)
    assert statistics.mean_logp == -513.0
    assert statistics.histogram.tolist() == [3, 1, *[0] * 8]
    assert statistics.perplexity == pytest.approx(math.exp(513.0), rel=1e-14)
    assert "2 of P = 0 left out" in str(statistics)
    scores[0]["logp"] = [None, -1000.0, -1000.0, -1000.0, -1000.0]
    statistics = toedit.Editor(small_prior).statistics({"input_ids": ids, "scores": oracle.scores_to_arrow(scores)})
    assert (statistics.mean_logp, statistics.perplexity) == (-1000.0, math.inf)


def test_a_batch_without_scores_is_scored(prior: toedit.Prior, rows: list[list[int]]) -> None:
    editor = toedit.Editor(prior, Policy(threshold=0.5))
    few = rows[:3]
    assert editor.statistics(few) == editor.statistics({"input_ids": few, "scores": prior.score(few, keep=editor.policy)})


def test_padding_and_labels_count_as_they_do_for_editing(small_prior: toedit.Prior, small_columns: Columns) -> None:
    rows = small_columns["input_ids"].to_pylist()
    ids, mask = helpers.pad(rows, 70, left=True)
    labels = np.where(np.array(mask) & (np.arange(70) % 3 > 0), ids, -100)
    editor = toedit.Editor(small_prior, Policy(threshold=0.5, temperature=2.0))
    batch = {"input_ids": np.array(ids), "attention_mask": np.array(mask), "labels": labels, "scores": small_columns["scores"]}
    statistics, counts = editor.statistics(batch), editor.edit(batch).counts
    assert (statistics.tokens, statistics.protected, statistics.changes) == (counts.tokens, counts.protected, counts.changes)
    assert statistics.protected > editor.statistics(small_columns).protected
    assert statistics.tokens == sum(map(len, rows))


def test_it_is_readable(prior: toedit.Prior, batch: Columns) -> None:
    statistics = toedit.Editor(prior, POLICIES["three bands"]).statistics(batch)
    text = str(statistics)
    assert len([line for line in text.splitlines() if line.startswith("[0.")]) == 10
    assert "34.7 %" in text
    assert "27.1 %" in text
    assert f"{statistics.candidates:,} candidates" in text
    assert f"{statistics.dropped:,} dropped" in text
    assert "|ln P - ln 0.9| <= 0.001: " in text
    assert str(toedit.Editor(prior).statistics(part(batch, []))).startswith("0 tokens in 0 rows, 0 scored: mean ln P nan")


def test_it_is_picklable(prior: toedit.Prior, batch: Columns) -> None:
    statistics = toedit.Editor(prior).statistics(part(batch, [0, 1]))
    again = pickle.loads(pickle.dumps(statistics))
    assert again == statistics
    assert again.documents == statistics.documents


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "statistics: version is 2; this release reads 1"),
        ({"tokens": -1}, "statistics: tokens is -1; it must be an integer of 0 or above"),
        ({"rows": 1.5}, r"statistics: rows is 1\.5; it must be an integer"),
        ({"changes": True}, "statistics: changes is True"),
        ({"changes": None}, "statistics: changes is None"),
        ({"logp_units": 1}, "statistics: logp_units is 1; it must be an integer of 0 or below"),
        ({"tokens": 0}, "statistics: tokens is 0; it must be the sum of scored and unscored"),
        ({"intervals": [1]}, r"statistics: intervals is \[1\]; it must be 104 counts, one between each two edges"),
        ({"intervals": [0] * 104}, "statistics: scored is [0-9]+; it must be the sum of intervals, 0"),
        ({"intervals": ["a"] * 104}, "statistics: intervals is .* a list of counts"),
        ({"edges": [0, 1]}, r"statistics: edges is \[0, 1\]; it must be ascending"),
        ({"edges": 7}, "statistics: edges is 7"),
        ({"near": [{"edge": 0.5}]}, r"statistics: near is \[\{'edge': 0\.5\}\]; it must be a list of"),
        ({"prior": 5}, "statistics: prior is 5; it must be a fingerprint"),
        ({"policy": "paper"}, "statistics: policy is 'paper'"),
        ({"more": 5}, "statistics: more is 5, but there is no such field"),
    ],
)
def test_json_that_is_wrong_is_refused(prior: toedit.Prior, batch: Columns, change: Columns, message: str) -> None:
    values = total(toedit.Editor(prior).statistics(part(batch, [0, 1])))
    with pytest.raises(toedit.InputError, match=message):
        Statistics.from_json(json.dumps(values | change))


def test_what_is_no_json_of_statistics_is_refused(prior: toedit.Prior, batch: Columns) -> None:
    with pytest.raises(toedit.InputError, match="statistics: this is no JSON"):
        Statistics.from_json("{")
    with pytest.raises(toedit.InputError, match="statistics: this is no JSON"):
        Statistics.from_json(None)  # type: ignore[arg-type]
    with pytest.raises(toedit.InputError, match="statistics: this is a JSON list; it must be what to_json wrote"):
        Statistics.from_json("[]")
    with pytest.raises(toedit.InputError, match="statistics: prior is missing"):
        Statistics.from_json('{"version": 1}')


def test_what_cannot_be_edited_has_no_statistics(small_prior: toedit.Prior, small_columns: Columns) -> None:
    editor = toedit.Editor(small_prior, Policy(threshold=0.1))
    with pytest.raises(toedit.ScoresError, match=r"row 0: topk_pos lacks position [0-9]+"):
        editor.statistics(small_columns)
    with pytest.raises(toedit.InputError, match="the batch has no column 'input_ids'"):
        editor.statistics({"ids": [[1]]})
    with pytest.raises(toedit.InputError, match=r"row 1: input_ids\[0\] is 512, but the prior's vocabulary is 0 to 511"):
        editor.statistics(part(small_columns, [2, 1]) | {"input_ids": [[], [512]]})
    with pytest.raises(toedit.InputError, match="epoch is -1; it must be 0 to 4294967295"):
        editor.statistics(small_columns, epoch=-1)
