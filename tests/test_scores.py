"""`toedit.scores`: scores from elsewhere become the column that Prior.score makes, or one clear error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import polars
import pyarrow as pa
import pytest
import xxhash

import helpers
import oracle
import toedit

torch = pytest.importorskip("torch")

Rows = list[list[int]]
VOCABULARY, K = 4096, 3


@pytest.fixture(scope="module")
def dense(prior: toedit.Prior) -> dict[str, Any]:
    """A rectangle of 4 x 6 ids with ln P and, at every position, a top-3 in order whose values float16 does not hold."""
    rng = np.random.default_rng(5)
    ids = rng.integers(1, VOCABULARY, (4, 6))
    top = -np.sort(rng.exponential(3.0, (4, 6, K)).astype(np.float32), axis=2)
    choices = np.argsort(rng.random((4, 6, VOCABULARY)), axis=2)[:, :, :K]
    return {"input_ids": ids, "logp": top[:, :, 1].copy(), "topk_ids": choices, "topk_logp": top}


def built(given: dict[str, Any], prior: toedit.Prior, **changes: Any) -> pa.StructArray:
    given = {"topk_pos": None, **given, **changes}
    names = ("input_ids", "logp", "topk_pos", "topk_ids", "topk_logp")
    others = {name: value for name, value in given.items() if name not in names}
    column = toedit.scores(*(given[name] for name in names), prior=prior, **others)
    column.validate(full=True)
    return column


def test_the_column_is_what_was_given(dense: dict[str, Any], prior: toedit.Prior) -> None:
    column = built(dense, prior)
    assert column.type == toedit.SCORES_TYPE
    for i, row in enumerate(column.to_pylist()):
        assert row["logp"] == dense["logp"][i].tolist()
        assert row["topk_pos"] == list(range(6))
        assert row["topk_ids"] == dense["topk_ids"][i].reshape(-1).tolist()
        assert row["topk_logp"] == dense["topk_logp"][i].astype(np.float16).astype(np.float64).reshape(-1).tolist()
        assert row["k"] == K
        assert row["ids_hash"] == xxhash.xxh3_128_intdigest(dense["input_ids"][i].astype("<u4").tobytes()) % 2**64
        assert row["prior"] == prior.fingerprint


def test_the_reference_edits_by_it_as_the_package_does(dense: dict[str, Any], prior: toedit.Prior) -> None:
    logp = np.where(dense["logp"] > -2, np.float32(-0.01), dense["logp"])  # some of them in the band
    column = built(dense, prior, logp=logp)
    rows = dense["input_ids"].tolist()
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.9, k=K, temperature=2.0), seed=8)
    edited = editor.edit({"input_ids": rows, "scores": column}, epoch=3)
    helpers.assert_edits_equal(edited, helpers.reference(editor, rows, column.to_pylist(), 3))
    assert edited.changes > 0


def as_arrow(dense: dict[str, Any], lists: Callable[[Any], Any]) -> dict[str, Any]:
    return {name: lists(value.tolist()) for name, value in dense.items()}


FORMS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "lists": lambda d: {name: value.tolist() for name, value in d.items()},
    "flat lists": lambda d: {name: value.reshape(4, -1).tolist() for name, value in d.items()},
    "rows of arrays": lambda d: {name: list(value) for name, value in d.items()},
    "torch": lambda d: {name: torch.from_numpy(value) for name, value in d.items()},
    "rows of tensors": lambda d: {name: [torch.from_numpy(row) for row in value] for name, value in d.items()},
    "arrow": lambda d: as_arrow(d, pa.array),
    "chunked arrow": lambda d: as_arrow(d, lambda v: pa.chunked_array([v[:1], v[1:]])),
    "sliced arrow": lambda d: as_arrow(d, lambda v: pa.array(v[:2] + v).slice(2)),
    "polars": lambda d: as_arrow(d, polars.Series),
    "positions": lambda d: {**d, "topk_pos": np.tile(np.arange(6), (4, 1))},
    "large flat arrow": lambda d: {
        **d,
        "topk_ids": pa.array(d["topk_ids"].reshape(4, -1).tolist(), pa.large_list(pa.int64())),
        "topk_logp": pa.array(d["topk_logp"].reshape(4, -1).tolist(), pa.list_(pa.float64(), 18)),
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_column(dense: dict[str, Any], prior: toedit.Prior, form: str) -> None:
    assert built(FORMS[form](dense), prior).equals(built(dense, prior))


def test_half_precision_of_every_kind(dense: dict[str, Any], prior: toedit.Prior) -> None:
    half = torch.from_numpy(dense["topk_logp"]).to(torch.bfloat16)
    expected = built(dense, prior, topk_logp=half.float().numpy())
    assert built(dense, prior, topk_logp=half).equals(expected)
    rounded = dense["topk_logp"].astype(np.float16)
    assert built(dense, prior, topk_logp=rounded).field("topk_logp").equals(built(dense, prior).field("topk_logp"))


def test_padding_is_left_out_on_either_side(dense: dict[str, Any], prior: toedit.Prior) -> None:
    lengths = (6, 4, 0, 1)
    expected = built(
        {name: [value[i][:n] for i, n in enumerate(lengths)] for name, value in dense.items()}, prior, topk_pos=None
    )
    assert [len(row["logp"]) for row in expected.to_pylist()] == list(lengths)
    for left in (False, True):
        ids, mask = helpers.pad([dense["input_ids"][i][:n].tolist() for i, n in enumerate(lengths)], 6, left=left, value=-1)
        real = np.array(mask, dtype=bool)
        moved = {name: np.full_like(dense[name], 7) for name in ("logp", "topk_ids", "topk_logp")}  # rubbish in the padding
        for name, values in moved.items():
            for i, n in enumerate(lengths):
                values[i][real[i]] = dense[name][i][:n]
        assert built({"input_ids": ids, "attention_mask": mask, **moved}, prior).equals(expected)
        # Positions are those of the padded row, as they are found there.
        pos = [np.flatnonzero(row).tolist() for row in real]
        some = {name: [moved[name][i][real[i]] for i in range(4)] for name in ("topk_ids", "topk_logp")}
        given = {"input_ids": ids, "attention_mask": mask, "logp": moved["logp"], "topk_pos": pos, **some}
        assert built(given, prior).equals(expected)


def test_tokens_without_a_score_are_null(dense: dict[str, Any], prior: toedit.Prior) -> None:
    lists = dense["logp"].tolist()
    lists[0][0] = lists[3][5] = None
    masked = np.ma.masked_array(dense["logp"].copy(), mask=[[value is None for value in row] for row in lists])
    masked.data[0, 0] = np.nan
    expected = built(dense, prior, logp=lists)
    assert [row["logp"].count(None) for row in expected.to_pylist()] == [1, 0, 0, 1]
    assert [row["topk_pos"][0] for row in expected.to_pylist()] == [1, 0, 0, 0]
    for logp in (masked, list(masked), pa.array(lists), np.ma.masked_invalid(masked.filled(np.nan))):
        assert built(dense, prior, logp=logp).equals(expected)
    counts = (
        toedit.Editor(prior, toedit.Policy(k=K)).edit({"input_ids": dense["input_ids"].tolist(), "scores": expected}).counts
    )
    assert counts.unscored == 2


def test_top_k_is_sorted_by_what_was_given_and_ties_go_to_the_lower_id(prior: toedit.Prior) -> None:
    """Two values that become equal in float16 keep the order that they had before; two that are equal do not."""
    near = [-1.0, np.nextafter(np.float32(-1), np.float32(-2))]
    column = built(
        {"input_ids": [[5, 6, 7, 8]], "logp": [[-1.0] * 4]},
        prior,
        topk_ids=[[[9, 4, 2], [30, 20, 10], [9, 4, 2], [3, 2, 1]]],
        topk_logp=[[[-3.0, -1.0, -2.0], [-1.0, -1.0, -1.0], [*near, -9.0], [-2.0, -np.inf, -np.inf]]],
    )
    row = column.to_pylist()[0]
    assert row["topk_ids"] == [4, 2, 9, 10, 20, 30, 9, 4, 2, 3, 1, 2]
    assert row["topk_logp"] == [-1, -2, -3, -1, -1, -1, -1, -1, -9, -2, -np.inf, -np.inf]
    shuffled = built(
        {"input_ids": [[5]], "logp": [[-1.0]]}, prior, topk_ids=[[[4, 9, 2]]], topk_logp=[[[near[1], near[0], -9.0]]]
    )
    assert shuffled.to_pylist()[0]["topk_ids"] == [9, 4, 2]


def test_values_are_rounded_once(prior: toedit.Prior) -> None:
    """By way of float32 this one would be rounded to even twice and end on the other side."""
    value = -(1 + 2**-11 + 2**-40)
    assert np.float16(np.float32(value)) != np.float16(value)
    column = built({"input_ids": [[5]], "logp": [[-1.0]]}, prior, topk_ids=[[[4]]], topk_logp=[[[value]]])
    assert column.to_pylist()[0]["topk_logp"] == [float(np.float16(value))]


def test_random_scores_of_the_reference_survive(prior: toedit.Prior) -> None:
    rng = np.random.default_rng(17)
    rows = [rng.integers(0, VOCABULARY, n).tolist() for n in (30, 0, 1, 200, 77)]
    made = oracle.scores_to_arrow([oracle.make_scores(rng, row, VOCABULARY, 8, 0.5, prior.fingerprint) for row in rows])
    fields = {name: made.field(name) for name in ("logp", "topk_pos", "topk_ids", "topk_logp")}
    column = built({"input_ids": rows, **fields}, prior, k=8)
    for name in ("logp", "topk_pos", "topk_logp", "k", "ids_hash", "prior"):
        assert column.field(name).equals(made.field(name)), name


def test_rows_without_positions_need_k(prior: toedit.Prior) -> None:
    nothing: dict[str, Any] = {"input_ids": [[5, 6], []], "logp": [[-1.0, -2.0], []]}
    empty: dict[str, Any] = {name: [[], []] for name in ("topk_pos", "topk_ids", "topk_logp")}
    with pytest.raises(toedit.InputError, match="k cannot be told, since no position has a top-k; pass k="):
        built({**nothing, **empty}, prior)
    column = built({**nothing, **empty}, prior, k=4)
    assert column.field("k").to_pylist() == [4, 4]
    assert column.field("topk_ids").to_pylist() == [[], []]
    table = pa.array([[], []], pa.list_(pa.list_(pa.float32(), 4)))
    assert built({**nothing, **empty, "topk_logp": table}, prior).equals(column)


def test_no_rows(prior: toedit.Prior) -> None:
    column = toedit.scores([], [], [], [], [], prior=prior, k=2)
    assert column.type == toedit.SCORES_TYPE
    assert len(column) == 0


# What is refused, row, position and value named


def changed(name: str, at: tuple[int, ...], value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(dense: dict[str, Any]) -> dict[str, Any]:
        array: npt.NDArray[Any] = dense[name].copy()
        array[at] = value
        return {name: array}

    return change


POSITIONS = [[0, 1], [2], [0, 5], [3]]


def positions(dense: dict[str, Any], **changes: Any) -> dict[str, Any]:
    some = {name: [dense[name][i][at].tolist() for i, at in enumerate(POSITIONS)] for name in ("topk_ids", "topk_logp")}
    return {"topk_pos": POSITIONS, **some, **changes}


BAD: list[tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = [
    (changed("logp", (1, 2), np.nan), r"row 1: logp\[2\] is NaN; a token that was not scored is null \(None; in NumPy"),
    (changed("logp", (2, 5), 1e-7), r"row 2: logp\[5\] is 1e-07, but a log-probability is at most 0; .* numpy.minimum"),
    (lambda d: {"logp": d["logp"][:3]}, "logp has 3 rows, but input_ids has 4"),
    (lambda d: {"logp": d["logp"][:, 1:]}, r"row 0: logp has 5 values for 6 ids; logp\[i\] is ln P of input_ids\[i\]"),
    (lambda d: {"logp": [["a"] * 6] * 4}, "logp holds string; it must hold numbers"),
    (lambda d: {"logp": [[-1.0] * 6, None, [-1.0] * 6, [-1.0] * 6]}, "row 1: logp is null"),
    (lambda d: {"logp": d["logp"].reshape(-1)}, "logp has 1 dimensions; it must have two, or three with the last of k"),
    (lambda d: {"logp": None}, "column 'logp' is a NoneType"),
    (changed("input_ids", (1, 2), 4096), r"row 1: input_ids\[2\] is 4096, but the prior's vocabulary is 0 to 4095"),
    (lambda d: {"input_ids": [1, 2]}, "input_ids is one row of ids"),
    (changed("topk_ids", (1, 2, 0), 4096), "row 1: topk_ids has id 4096 at position 2, .* vocabulary is 0 to 4095"),
    (changed("topk_ids", (3, 0, 1), -1), "row 3: topk_ids has id -1 at position 0"),
    (lambda d: {"topk_ids": np.zeros((4, 6, 3), int)}, "row 0: topk_ids has id 0 twice at position 0"),
    (lambda d: {"topk_ids": d["topk_ids"].astype(float)}, "topk_ids holds float64; it must hold integers"),
    (changed("topk_logp", (2, 4, 2), np.nan), r"row 2: topk_logp is NaN for id \d+ at position 4"),
    (changed("topk_logp", (2, 4, 0), 0.5), r"row 2: topk_logp is 0.5 for id \d+ at position 4, .* at most 0"),
    (lambda d: {"topk_logp": d["topk_logp"][:, :, :2]}, "topk_ids has 3 ids at a position, but topk_logp 2 values"),
    (lambda d: {"topk_logp": d["topk_logp"][:3]}, "topk_logp has 3 rows, but input_ids has 4"),
    (lambda d: {"k": 2}, r"row 0: topk_ids has 18 values for 6 positions of k = 2; k must be the same everywhere"),
    (lambda d: {"k": True}, "k is True; it must be an integer of at least 1, or None"),
    (lambda d: {"attention_mask": [[1, 1]] * 4}, "row 0: attention_mask has 2 values, but input_ids has 6"),
    (lambda d: positions(d, topk_pos=[[0, 1], [2], [5, 0], [3]]), r"row 2: topk_pos\[1\] is 0 after 5; positions must ascend"),
    (lambda d: positions(d, topk_pos=[[0, 1], [2], [5, 5], [3]]), r"row 2: topk_pos\[1\] is 5 after 5; positions must ascend"),
    (lambda d: positions(d, topk_pos=[[0, 1], [6], [0, 5], [3]]), r"row 1: topk_pos\[0\] is 6, but the row has 6 ids"),
    (lambda d: positions(d, topk_pos=[[0, 1], [-1], [0, 5], [3]]), r"row 1: topk_pos\[0\] is -1, but the row has 6 ids"),
    (lambda d: positions(d, topk_pos=[[0, 1], [None], [0, 5], [3]]), r"row 1: topk_pos\[0\] is null; every value is needed"),
    (lambda d: positions(d, topk_pos=[[0, 1], [2], [0], [3]]), "row 2: topk_ids has 6 values for 1 positions of k = 3"),
    (
        lambda d: positions(d, logp=[[-1.0] * 6, [-1.0, -1.0, None, -1.0, -1.0, -1.0], [-1.0] * 6, [-1.0] * 6]),
        r"row 1: topk_pos\[0\] is 2, which is a token whose logp is null; leave it out",
    ),
    (
        lambda d: positions(d, attention_mask=[[1] * 6, [1] * 6, [1] * 6, [1, 1, 1, 0, 0, 0]]),
        r"row 3: topk_pos\[0\] is 3, which is padding; leave it out",
    ),
    (
        lambda d: {"topk_ids": [[[1, 2, 3], [1, 2]] + [[1, 2, 3]] * 4] * 4},
        "topk_ids has rows of 2, 3 values at a position; k must be equal everywhere",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_clear_error(
    dense: dict[str, Any], prior: toedit.Prior, change: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    with pytest.raises(toedit.InputError, match=message):
        built(dense, prior, **change(dense))


def test_the_prior_must_be_one(dense: dict[str, Any]) -> None:
    with pytest.raises(toedit.InputError, match=r"prior is a str; it must be the toedit\.Prior whose model made the scores"):
        built(dense, "builtin")  # type: ignore[arg-type]


def test_scores_of_another_prior_are_refused_by_the_editor(dense: dict[str, Any], prior: toedit.Prior) -> None:
    other = toedit.Prior.builtin(windows="off")
    column = built(dense, other)
    with pytest.raises(toedit.ScoresError):
        toedit.Editor(prior, toedit.Policy(k=K))({"input_ids": dense["input_ids"].tolist(), "scores": column})


# Scores as bytes


def test_scores_as_bytes(prior: toedit.Prior, rows: list[list[int]], scores: pa.StructArray) -> None:
    """The edits are those of the column, in every container that has rows of Python's."""
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.3, temperature=1.5), seed=2)
    expected = editor({"input_ids": rows, "scores": scores})
    assert expected.changes > 100
    halves = pa.chunked_array([scores[:5], scores[5:]])
    for data in map(toedit.scores_to_bytes, (scores, halves)):
        assert [type(value) for value in data] == [bytes] * len(rows)
        assert editor({"input_ids": rows, "scores": data})["input_ids"] == expected["input_ids"]
        records = [{"input_ids": ids, "scores": value} for ids, value in zip(rows, data, strict=True)]
        assert [row["input_ids"] for row in editor(records).batch] == expected["input_ids"]
    # Any Arrow reads them.
    (column,) = pa.ipc.open_stream(data[7]).read_all().columns
    assert column.combine_chunks().equals(scores[7:8])


def test_scores_of_packed_rows_as_bytes(prior: toedit.Prior, rows: list[list[int]], scores: pa.StructArray) -> None:
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.3, temperature=1.5), seed=2)
    packed = {
        "input_ids": [rows[0] + rows[1], rows[2] + rows[3]],
        "seq_lengths": [[len(rows[0]), len(rows[1])], [len(rows[2]), len(rows[3])]],
    }
    column = pa.array([scores[:2].to_pylist(), scores[2:4].to_pylist()], pa.list_(toedit.SCORES_TYPE))
    expected = editor(packed | {"scores": column})
    assert expected.changes > 0
    assert editor(packed | {"scores": toedit.scores_to_bytes(column)})["input_ids"] == expected["input_ids"]


def test_bytes_that_are_no_scores(prior: toedit.Prior, rows: list[list[int]], scores: pa.StructArray) -> None:
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.3))
    good = toedit.scores_to_bytes(scores[:2])
    both, other = pa.BufferOutputStream(), pa.BufferOutputStream()
    for sink, table in ((both, pa.table({"scores": scores[:2]})), (other, pa.table({"score": scores[:1]}))):
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    packed = toedit.scores_to_bytes(pa.array([scores[:2].to_pylist()], pa.list_(toedit.SCORES_TYPE)))
    for bad in (
        b"",
        b"scores",
        good[1][:-40],
        bytes(len(good[1])),
        None,
        both.getvalue().to_pybytes(),
        other.getvalue().to_pybytes(),
        *packed,
    ):
        with pytest.raises(toedit.ScoresError, match="row 1: scores are not what scores_to_bytes makes: "):
            editor({"input_ids": rows[:2], "scores": [good[0], bad]})
    for place in range(0, len(good[1]), 7):  # a damaged byte is an error, or damages a value
        damaged = bytearray(good[1])
        damaged[place] ^= 0xFF
        with contextlib.suppress(toedit.ScoresError):
            editor({"input_ids": rows[:2], "scores": [good[0], bytes(damaged)]})
    for column in (scores.to_pylist(), pa.array([1])):
        with pytest.raises(toedit.Error, match=r"scores are a list|column 'scores' is int64"):
            toedit.scores_to_bytes(column)
