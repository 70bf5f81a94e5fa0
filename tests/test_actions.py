"""What becomes of candidates but a draw: they are dropped, or no loss is taken of them; and what labels become."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

import helpers
import oracle
import toedit
from toedit import Band, Policy

Columns = dict[str, Any]
DROP = Policy(bands=(Band(0.5, action="drop"),))
MASK = Policy(bands=(Band(0.5, action="mask_loss"),))
MIXED = Policy(bands=(Band(0.2, 0.6, action="drop"), Band(0.9), Band(0.6, 0.9, action="mask_loss")), exclude_original=True)


@pytest.fixture(scope="module")
def columns(small_prior: toedit.Prior) -> Columns:
    """Rows of plain lists, without special tokens, so that every token in a band is a candidate."""
    rng = np.random.default_rng(5)
    rows = [rng.integers(3, 508, size=n).tolist() for n in (40, 1, 0, 25, 58)]
    scores = [oracle.make_scores(rng, row, 512, 8, 0.1, small_prior.fingerprint) for row in rows]
    return {"input_ids": rows, "scores": oracle.scores_to_arrow(scores)}


def expected(columns: Columns, policy: Policy) -> list[list[tuple[int, str]]]:
    """For each row the positions in a band with its action, from the definition. No token is protected."""
    found = []
    for scores in columns["scores"].to_pylist():
        row = []
        for i, logp in enumerate(scores["logp"]):
            for band in policy.candidate_bands:
                if logp is not None and np.log(band.low) <= logp and (logp < np.log(band.high) or band.high == 1):
                    row.append((i, band.action))
        found.append(row)
    return found


def dropped(columns: Columns, policy: Policy) -> list[list[int]]:
    return [[i for i, action in row if action == "drop"] for row in expected(columns, policy)]


def without(row: list[Any], positions: list[int]) -> list[Any]:
    return [value for i, value in enumerate(row) if i not in positions]


def test_dropped_tokens_take_everything_with_them(small_prior: toedit.Prior, columns: Columns) -> None:
    policy = DROP
    rows = columns["input_ids"]
    gone = dropped(columns, policy)
    follow = {
        "labels": rows,
        "attention_mask": [[1] * len(row) for row in rows],
        "offset_mapping": [[(i, i + 1) for i in range(len(row))] for row in rows],
        "mine": [[f"token {i}" for i in range(len(row))] for row in rows],
    }
    batch = columns | follow | {"doc": list(range(len(rows))), "of_two": [[1, 2]] * len(rows)}
    edited = toedit.Editor(small_prior, policy)(batch)
    assert edited.counts.dropped == sum(map(len, gone)) == edited.candidates > 20
    assert edited.changes == 0
    for name in ("input_ids", *follow):
        assert edited[name] == [without(row, g) for row, g in zip(batch[name], gone, strict=True)], name
    assert edited["doc"] == batch["doc"]
    assert edited["of_two"] == batch["of_two"]
    log = edited.log.to_pylist()
    assert [(entry["row"], entry["position"]) for entry in log] == [(r, i) for r, g in enumerate(gone) for i in g]
    assert {entry["new"] for entry in log} == {None}
    assert [entry["old"] for entry in log] == [rows[r][i] for r, g in enumerate(gone) for i in g]


@pytest.mark.parametrize("container", ["table", "rows", "numpy", "torch", "polars", "datasets", "large"])
def test_drop_in_every_container(small_prior: toedit.Prior, columns: Columns, container: str) -> None:
    policy = Policy(bands=(Band(0.2, 0.6, action="drop"), Band(0.9)), exclude_original=True)
    rows = columns["input_ids"]
    plain = toedit.Editor(small_prior, policy)(columns)
    gone = dropped(columns, policy)
    assert sum(map(len, gone)) == plain.counts.dropped > 0
    extra = [[10 * i for i in range(len(row))] for row in rows]
    batch: Any = columns | {"extra": extra}
    table = pa.table({"input_ids": pa.array(rows), "scores": columns["scores"], "extra": pa.array(extra)})
    if container == "table":
        batch = pa.concat_tables([table.slice(0, 2), table.slice(2)])
    elif container == "large":
        batch = table.set_column(2, "extra", table["extra"].cast(pa.large_list(pa.int64()))).slice(0)
    elif container == "rows":
        batch = table.to_pylist()
    elif container == "numpy":
        batch = columns | {"input_ids": [np.array(row, np.int32) for row in rows], "extra": [np.array(e) for e in extra]}
    elif container == "torch":
        batch = columns | {"input_ids": [torch.tensor(row) for row in rows], "extra": [torch.tensor(e) for e in extra]}
    elif container == "polars":
        batch = pl.from_arrow(table)
    elif container == "datasets":
        batch = pytest.importorskip("datasets").Dataset(table).with_format("arrow")[:]
    edited = toedit.Editor(small_prior, policy)(batch)

    def lists(values: Any) -> list[list[int]]:
        values = (
            values.to_pylist() if hasattr(values, "to_pylist") else values.to_list() if hasattr(values, "to_list") else values
        )
        return [[int(v) for v in row] for row in values]

    assert lists(edited["input_ids"]) == plain["input_ids"]
    assert lists(edited["extra"]) == [without(row, g) for row, g in zip(extra, gone, strict=True)]
    assert edited.counts == plain.counts


def test_drop_leaves_padding(small_prior: toedit.Prior, columns: Columns) -> None:
    policy = DROP
    ids, mask = helpers.pad(columns["input_ids"], 60, left=True)
    plain = toedit.Editor(small_prior, policy)(columns)
    edited = toedit.Editor(small_prior, policy)({"input_ids": ids, "attention_mask": mask, "scores": columns["scores"]})
    for row, marks, expected_row, before in zip(
        edited["input_ids"], edited["attention_mask"], plain["input_ids"], columns["input_ids"], strict=True
    ):
        assert marks == [0] * (60 - len(before)) + [1] * len(expected_row)
        assert row[60 - len(before) :] == expected_row
    assert edited.log.equals(plain.log)


def test_drop_wants_rows_of_their_own_length(small_prior: toedit.Prior, columns: Columns) -> None:
    editor = toedit.Editor(small_prior, DROP)
    ids, mask = helpers.pad(columns["input_ids"], 60)
    with pytest.raises(
        toedit.InputError, match=r"input_ids is fixed_size_list.*cannot become shorter.*before they are collated"
    ):
        editor({"input_ids": np.array(ids), "attention_mask": np.array(mask), "scores": columns["scores"]})
    for name in ("position_ids", "seq_lengths"):
        with pytest.raises(toedit.InputError, match=f"column '{name}' cannot follow where tokens are dropped"):
            editor(columns | {name: columns["input_ids"]})
    with pytest.raises(toedit.InputError, match="column 'seq_lengths' cannot follow where tokens are dropped"):
        editor(columns | {"seq_lengths": [[len(row)] for row in columns["input_ids"]]})


def test_a_batch_without_rows(small_prior: toedit.Prior) -> None:
    edited = toedit.Editor(small_prior, DROP)({"input_ids": [], "scores": [], "labels": []})
    assert edited["input_ids"] == edited["labels"] == []


def test_masked_loss(small_prior: toedit.Prior, columns: Columns) -> None:
    policy = MASK
    rows = columns["input_ids"]
    edited = toedit.Editor(small_prior, policy)(columns | {"labels": rows})
    masked = expected(columns, policy)
    assert edited["input_ids"] == rows
    assert edited.counts.masked == sum(map(len, masked)) == edited.candidates > 20
    wanted = [[-100 if (i, "mask_loss") in m else v for i, v in enumerate(row)] for row, m in zip(rows, masked, strict=True)]
    assert edited["labels"] == wanted


def test_masked_loss_needs_labels(small_prior: toedit.Prior, columns: Columns) -> None:
    with pytest.raises(toedit.InputError, match="masks loss, but the batch has no column 'labels'"):
        toedit.Editor(small_prior, MASK)(columns)


def test_actions_together(small_prior: toedit.Prior, columns: Columns) -> None:
    """Draws are those of the band alone; the log has every edit in order; the counts add up."""
    policy = MIXED
    rows = columns["input_ids"]
    edited = toedit.Editor(small_prior, policy)(columns | {"labels": rows})
    alone = toedit.Editor(small_prior, Policy(threshold=0.9, exclude_original=True))(columns)
    counts = edited.counts
    assert counts.changes == alone.changes > 0
    assert counts.expected_changes == alone.expected_changes
    assert counts.candidates == counts.changes + counts.dropped + counts.masked + (alone.candidates - alone.changes)
    log = edited.log.to_pylist()
    assert [(e["row"], e["position"]) for e in log] == sorted((e["row"], e["position"]) for e in log)
    assert [e["new"] for e in log if e["band"] == 1] == [e["new"] for e in alone.log.to_pylist()]
    assert all((e["new"] is None) == (e["band"] == 0) and (e["new"] == e["old"]) == (e["band"] == 2) for e in log)
    for row, ids, labels, actions, drawn in zip(
        rows, edited["input_ids"], edited["labels"], expected(columns, policy), alone["input_ids"], strict=True
    ):
        by_position = dict(actions)
        assert ids == [drawn[i] for i in range(len(row)) if by_position.get(i) != "drop"]
        assert labels == [
            -100 if by_position.get(i) == "mask_loss" else drawn[i] for i in range(len(row)) if by_position.get(i) != "drop"
        ]


def test_labels_can_keep_the_originals(small_prior: toedit.Prior, columns: Columns) -> None:
    rows = columns["input_ids"]
    batch = columns | {"labels": rows}
    policy = {"threshold": 0.5, "exclude_original": True}
    following = toedit.Editor(small_prior, Policy(**policy))(batch)
    denoising = toedit.Editor(small_prior, Policy(**policy, labels="original"))(batch)
    assert following["labels"] == following["input_ids"] == denoising["input_ids"] != rows
    assert denoising["labels"] == rows


def test_context_can_be_edited(small_prior: toedit.Prior, columns: Columns) -> None:
    rows = columns["input_ids"]
    labels = [[-100] * (len(row) // 2) + row[len(row) // 2 :] for row in rows]
    plain = toedit.Editor(small_prior, Policy(threshold=0.5, exclude_original=True))(columns)
    edited = toedit.Editor(small_prior, Policy(threshold=0.5, exclude_original=True, protect_context=False))(
        columns | {"labels": labels}
    )
    assert edited["input_ids"] == plain["input_ids"]
    assert edited["labels"] == [[-100] * (len(row) // 2) + row[len(row) // 2 :] for row in plain["input_ids"]]
    kept = toedit.Editor(small_prior, Policy(threshold=0.5, exclude_original=True))(columns | {"labels": labels})
    assert kept["input_ids"] != plain["input_ids"]
