"""Whatever is wrong with the input: an error that names the row and the value, or a documented pass-through, and never a
crash."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import helpers
import oracle
import toedit
from toedit import _bridge

Rows = list[list[int]]
Columns = dict[str, Any]

POLICY = toedit.Policy(threshold=0.5, temperature=2.0)


@pytest.fixture
def editor(small_prior: toedit.Prior) -> toedit.Editor:
    return toedit.Editor(small_prior, POLICY)


# Ids


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[1, 2], [3, 4096]], r"row 1: input_ids\[1\] is 4096, but the prior's vocabulary is 0 to 4095"),
        ([[1], [2], [2**32 - 1]], r"row 2: input_ids\[0\] is 4294967295"),
        ([[1], [2, 2**32]], r"row 1: input_ids\[1\] is 4294967296, but"),
        ([[1], [2, 2**40 + 7]], r"row 1: input_ids\[1\] is 1099511627783"),
        ([[1], [2**63 - 1]], r"row 1: input_ids\[0\] is 9223372036854775807"),
        ([[1, 2, 3], [1, -1]], r"row 1: input_ids\[1\] is -1, but"),
        ([[1, 2, 3], [-100, 1]], r"row 1: input_ids\[0\] is -100"),
        ([[1], [-(2**63)]], r"row 1: input_ids\[0\] is -9223372036854775808"),
        ([[1], None, [2]], "row 1: input_ids is null; drop the row or give it an empty list"),
        ([None], "row 0: input_ids is null"),
        ([[1, 2], [3, None]], r"row 1: input_ids\[1\] is null; every token needs a value"),
        ([[0.5]], "token ids are list, large_list or fixed_size_list of int32, int64, uint16 or uint32"),
        ([["a"]], "input_ids: it is a list of utf8"),
        ([[True]], "input_ids holds bool, but must hold int32, int64, uint16 or uint32"),
        ([[1], [2**63]], "row 1: input_ids holds 9223372036854775808, which is no int64"),
        ([[1], [2**64]], "row 1: input_ids holds 18446744073709551616, which is no int64"),
        ([[1], 2], "column 'input_ids' cannot be read"),
        ([[1], "ab"], "column 'input_ids' cannot be read"),
        ([[[1]]], "input_ids|nested"),
        ([1, 2, 3], r"input_ids is one row of ids; a batch is a list of rows: \[ids\]"),
        (["text"], "input_ids is utf8, but must be a list"),
        (np.array([1, 2, 3]), "input_ids is int64, but must be a list"),
        (np.zeros((2, 2, 2), int), "has 3 dimensions; token ids have two, rows and positions"),
        (np.zeros((2, 2), np.int8), "input_ids holds int8, but must hold"),
        (np.zeros((2, 2), np.uint64), "input_ids holds uint64, but must hold"),
        (np.zeros((2, 2), np.float32), "input_ids holds float32, but must hold"),
        ([np.array([1]), np.array([1.5])], "row 1: input_ids is an array of float64"),
        ([np.array([1]), np.array([[1]])], "row 1: input_ids is an array of int64 with 2 dimensions"),
        (pa.array([1, 2]), "input_ids is int64, but must be a list"),
        (pa.array([b"ab"]), "not taken|input_ids is binary"),
        (pa.array([[1.0]]), "token ids are"),
        (pa.array([[1]], pa.list_(pa.int8())), "input_ids holds int8"),
        (pa.array(["a"]).dictionary_encode(), "decode it first"),
    ],
)
def test_ids_that_cannot_be_used(prior: toedit.Prior, ids: Any, message: str) -> None:
    """Scored alone, scored in a mapping, and edited."""
    for use in (prior.score, lambda ids: prior.score({"input_ids": ids}), toedit.Editor(prior)):
        with pytest.raises(toedit.InputError, match=message):
            use(ids)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[1, 2], [3, 512]], r"row 1: input_ids\[1\] is 512, but the prior's vocabulary is 0 to 511"),
        ([[1, 2], [-3, 5]], r"row 1: input_ids\[0\] is -3, but the prior's vocabulary is 0 to 511"),
        ([[1, 2], None], "row 1: input_ids is null"),
        ([[1, 2], [3, None]], r"row 1: input_ids\[1\] is null"),
    ],
)
@pytest.mark.parametrize("type_", [pa.list_(pa.int64()), pa.large_list(pa.int32()), pa.list_(pa.int64(), 2)], ids=str)
def test_ids_that_cannot_be_used_beside_scores(editor: toedit.Editor, ids: Any, message: str, type_: pa.DataType) -> None:
    good = [[1, 2], [3, 4]]
    rng = np.random.default_rng(1)
    scores = [oracle.make_scores(rng, row, 512, 8, 0.5, editor.prior.fingerprint) for row in good]
    with pytest.raises(toedit.InputError, match=message):
        editor({"input_ids": pa.array(ids, type_), "scores": oracle.scores_to_arrow(scores)})
    # The position that is named is the user's own, padding included.
    if "512" in message:
        with pytest.raises(toedit.InputError, match=r"row 1: input_ids\[4\] is 512"):
            editor(
                {
                    "input_ids": [[0, 0, 0, 1, 2], [0, 0, 0, 3, 512]],
                    "attention_mask": [[0, 0, 0, 1, 1]] * 2,
                    "scores": oracle.scores_to_arrow(scores),
                }
            )


def test_what_stands_in_padding_does_not_matter(prior: toedit.Prior) -> None:
    ids, mask = [[7, 8, -100, 2**40], [-1, 9, 10, 11]], [[1, 1, 0, 0], [0, 1, 1, 1]]
    batch = {"input_ids": ids, "attention_mask": mask}
    assert prior.score(batch).equals(prior.score([[7, 8], [9, 10, 11]]))
    edited = toedit.Editor(prior)(batch)
    assert edited["input_ids"][0][2:] == [-100, 2**40]
    assert edited["input_ids"][1][0] == -1


def test_an_edit_that_does_not_fit_the_columns_type(tmp_path: Path) -> None:
    prior = helpers.editing_prior(tmp_path / "prior", vocab_size=80_000, tokenizer_size=80_000)
    scores = {
        "logp": [-0.1],
        "topk_pos": [0],
        "topk_ids": [70_000],
        "topk_logp": [-1.0],
        "k": 1,
        "ids_hash": oracle.document_hash([5])[0],
        "prior": prior.fingerprint,
    }
    batch = {"input_ids": pa.array([[5]], pa.list_(pa.uint16())), "scores": [scores]}
    policy = toedit.Policy(threshold=0.5, k=1)
    with pytest.raises(toedit.InputError, match=r"row 0: position 0 is to become id 70000, which does not fit .*uint16"):
        toedit.Editor(prior, policy)(batch)
    wide = batch | {"input_ids": [[5]]}
    assert toedit.Editor(prior, policy)(wide)["input_ids"] == [[70_000]]


# Batches


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (5, "a batch of type int is not known"),
        (None, "a batch of type NoneType is not known"),
        ("text", "a batch of type str is not known"),
        (b"bytes", "a batch of type bytes is not known"),
        (object(), "a batch of type object is not known"),
        ({1, 2}, "a batch of type set is not known"),
        (iter([[1]]), "a batch of type list_iterator is not known"),
        ({"ids": [[1]]}, r"the batch has no column 'input_ids', only \['ids'\]"),
        ({}, "the batch has no column 'input_ids'"),
        ([{"ids": [1]}], "the batch has no column 'input_ids'"),
        ([{"input_ids": [1]}, {"ids": [1]}], "row 1 has no 'input_ids', but row 0 has"),
        ({"input_ids": 5}, "column 'input_ids' is a int; it must be a list, NumPy, torch or Arrow array"),
        ({"input_ids": "text"}, "column 'input_ids' is a str"),
        ({"input_ids": None}, "column 'input_ids' is a NoneType"),
        (pa.table({"ids": [[1]]}), "the batch has no column 'input_ids'"),
        (pa.array([{"ids": [1]}]), "the batch has no column 'input_ids'"),
        (pa.array([{"input_ids": [1]}, None]), "row 1: input_ids is null"),
    ],
)
def test_batches_of_the_wrong_kind(prior: toedit.Prior, batch: Any, message: str) -> None:
    for use in (prior.score, toedit.Editor(prior)):
        with pytest.raises(toedit.InputError, match=message):
            use(batch)


class Broken:
    """Another library's object whose export fails, or gives something else than Arrow."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def __arrow_c_array__(self, requested_schema: object = None) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.mark.parametrize("result", [ValueError("its own trouble"), None, (1, 2), (None, None)])
def test_a_foreign_export_that_fails(prior: toedit.Prior, result: Any) -> None:
    with pytest.raises((toedit.InputError, ValueError, TypeError)):
        prior.score(Broken(result))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("attention_mask", [[1], [1, 1]], "row 0: attention_mask has 1 values, but input_ids has 2"),
        ("attention_mask", [[1, 1], [1, 1, 1]], "row 1: attention_mask has 3 values, but input_ids has 2"),
        ("attention_mask", [[1, 1], None], "row 1: attention_mask is null"),
        ("attention_mask", [[1, 1], [1, None]], r"row 1: attention_mask\[1\] is null"),
        ("attention_mask", [[1.0, 1.0], [1.0, 1.0]], "attention_mask"),
        ("attention_mask", [1, 1], "attention_mask is int64, but must be a list"),
        ("special_tokens_mask", [[1, 1], [1]], "row 1: special_tokens_mask has 1 values"),
        ("protected_mask", [["a", "b"], ["c", "d"]], "protected_mask: it is a list of utf8"),
        ("protected_mask", [[1, 1], [0]], "row 1: protected_mask has 1 values"),
        ("labels", [[1, 2], [3]], "row 1: labels has 1 values, but input_ids has 2"),
        ("labels", [[1, 2], [3, 5]], r"row 1: labels\[1\] is 5, but input_ids\[1\] is 4; labels must be the ids"),
        ("labels", [[1, 2], [-101, 4]], r"row 1: labels\[0\] is -101"),
        ("labels", [[1, 2], [3, None]], r"row 1: labels\[1\] is null"),
        ("labels", np.array([[1, 2], [3, 4]], np.uint16), "labels is .*uint16.*, but must be .* of int32 or int64"),
    ],
)
def test_columns_that_do_not_fit_the_ids(editor: toedit.Editor, column: str, values: Any, message: str) -> None:
    ids = [[1, 2], [3, 4]]
    rng = np.random.default_rng(1)
    scores = [oracle.make_scores(rng, row, 512, 8, 0.5, editor.prior.fingerprint) for row in ids]
    with pytest.raises(toedit.InputError, match=message):
        editor({"input_ids": ids, "scores": oracle.scores_to_arrow(scores), column: values})


@pytest.mark.parametrize("name", ["attention_mask", "scores", "labels", "protected_mask"])
def test_columns_with_another_number_of_rows(editor: toedit.Editor, small_columns: Columns, name: str) -> None:
    other = pa.array([[1]] * 3) if name != "scores" else small_columns["scores"][:3]
    with pytest.raises(toedit.InputError, match=f"column {name} has 3 rows, but input_ids has 5"):
        editor(small_columns | {name: other})


def test_a_mask_with_another_number_of_rows(prior: toedit.Prior) -> None:
    with pytest.raises(toedit.InputError, match="column attention_mask has 1 rows, but input_ids has 2"):
        prior.score({"input_ids": [[1], [2]], "attention_mask": [[1]]})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", None, "c", "d", "e"], "row 1: .*key.* is null"),
        ([1, 2, None, 4, 5], "row 2: .*key.* is null"),
        ([None] * 5, "row 0: .*key.* is null"),
        ([1.5] * 5, "'doc' holds double; it must hold strings or integers"),
        ([[1]] * 5, "'doc'"),
        ([{"a": 1}] * 5, "'doc'"),
        ([0, 2**64 - 1, 0, 0, 0], "row 1: doc holds 18446744073709551615, which is no int64"),
        ("abcde", "column 'doc' is a str"),
    ],
)
def test_keys_that_cannot_be_used(small_prior: toedit.Prior, small_columns: Columns, values: Any, message: str) -> None:
    with pytest.raises(toedit.InputError, match=message):
        toedit.Editor(small_prior, POLICY, key="doc")(small_columns | {"doc": values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 0, -5, 0, 0], "row 2: its offset is -5, but must be 0 to"),
        ([0, None, 0, 0, 0], "row 1: .*offset.* is null"),
        (["0"] * 5, "'at' holds string; it must hold integers"),
        ([0.0] * 5, "'at' holds double; it must hold integers"),
        ([2**63] * 5, "row 0: at holds 9223372036854775808, which is no int64"),
        (np.full(5, 2**63, np.uint64), "'at'.*9223372036854775808"),
        ([0, 0, 0, 0, 2**63 - 1], "row 4: its offset is 9223372036854775807, but must be 0 to"),
    ],
)
def test_offsets_that_cannot_be_used(small_prior: toedit.Prior, small_columns: Columns, values: Any, message: str) -> None:
    with pytest.raises(toedit.InputError, match=message):
        toedit.Editor(small_prior, POLICY, offset="at")(small_columns | {"at": values})


def test_columns_that_were_named_and_are_missing(small_prior: toedit.Prior, small_columns: Columns) -> None:
    with pytest.raises(toedit.InputError, match="no column 'doc', which is to be its key, only"):
        toedit.Editor(small_prior, key="doc")(small_columns)
    with pytest.raises(toedit.InputError, match="no column 'at', which is to be its offset, only"):
        toedit.Editor(small_prior, offset="at")(small_columns)


# Scores


def change_scores(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: {**row, **{name: v(row) if callable(v) else v for name, v in changes.items()}}


def with_logp(at: int, value: float | None) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return change_scores(logp=lambda row: [value if i == at else v for i, v in enumerate(row["logp"])])


def with_top(name: str, at: int, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return change_scores(**{name: lambda row: [value if i == at else v for i, v in enumerate(row[name])]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_logp(4, float("nan")), "logp:? is NaN at position 4"),
        (with_logp(5, 0.25), r"logp:? is 0\.25 at position 5; a log probability is 0 or below"),
        (with_logp(5, float("inf")), r"logp:? is \+Inf at position 5"),
        (change_scores(logp=lambda row: row["logp"][:-1]), "logp:? has 39 values for 40 ids: the scores were cut"),
        (change_scores(logp=lambda row: [*row["logp"], -1.0]), "logp:? has 41 values for 40 ids"),
        (change_scores(ids_hash=7), "ids_hash:? is 0000000000000007, but the hash of these ids is [0-9a-f]{16}"),
        (change_scores(prior="0" * 32), "scores are of prior \"0{32}\", but the editor has prior [0-9a-f]{32}"),
        (change_scores(prior=""), "scores are of prior \"\""),
        (change_scores(prior=None), r"scores\.prior is null"),
        (change_scores(k=None), r"scores\.k is null"),
        (change_scores(logp=None), r"scores\.logp is null"),
        (change_scores(k=4), r"k:? is 4: the scores hold fewer tokens a position than the policy's k of 8"),
        (change_scores(k=-1), "k:? is -1"),
        (change_scores(k=9), r"topk_ids:? has \d+ values for \d+ positions of k = 9"),
        (change_scores(topk_pos=[], topk_ids=[], topk_logp=[]), r"topk_pos:? lacks position \d+, whose logp of -.* is in "),
        (change_scores(topk_pos=lambda row: row["topk_pos"][::-1]), "positions must ascend"),
        (with_top("topk_pos", 0, -1), "topk_pos:? is -1 at index 0"),
        (change_scores(topk_pos=lambda row: [*row["topk_pos"][:-1], 40]), "topk_pos:? is 40 at index"),
        (change_scores(topk_ids=lambda row: row["topk_ids"][1:]), "topk_ids:? has"),
        (change_scores(topk_logp=lambda row: row["topk_logp"][1:]), "topk_logp:? has"),
        (with_top("topk_logp", 1, -0.1234567), "topk_logp:? has -0.1234567 at position .* is no float16 value"),
        (with_top("topk_logp", 1, float("nan")), "topk_logp:? has NaN at position"),
        (with_top("topk_logp", 1, 0.5), r"topk_logp:? has 0\.5 at position"),
        (with_top("topk_ids", 1, 512), "topk_ids:? has id 512 at position .* vocabulary ends at 511"),
        (with_top("topk_ids", 1, -1), "topk_ids:? has id -1 at position"),
        (with_top("topk_ids", 1, None), r"scores\.topk_ids\[1\] is null"),
        (with_top("topk_pos", 1, None), r"scores\.topk_pos\[1\] is null"),
        (with_top("topk_logp", 1, None), r"scores\.topk_logp\[1\] is null"),
    ],
)  # fmt: skip
def test_scores_that_are_wrong(
    small_prior: toedit.Prior, change: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    rng = np.random.default_rng(2)
    ids = rng.integers(3, 500, size=40).tolist()
    # Every position is a candidate, so that every stored value is looked at.
    row = oracle.make_scores(rng, ids, 512, 8, 1e-12, small_prior.fingerprint)
    good = oracle.scores_to_arrow([row])[0].as_py()
    editor = toedit.Editor(small_prior, toedit.Policy(threshold=1e-12, temperature=2.0))
    editor({"input_ids": [ids, ids], "scores": [good, good]})
    with pytest.raises(toedit.ScoresError, match=f"row 1: .*{message}"):
        editor({"input_ids": [ids, ids], "scores": [good, change(good)]})


def test_scores_that_were_cut_or_shuffled(
    editor: toedit.Editor, small_columns: Columns, small_batch: tuple[Rows, list[oracle.Scores]]
) -> None:
    rows = small_batch[0]
    moved = small_columns["scores"].take(pa.array([0, 1, 2, 4, 3]))
    with pytest.raises(toedit.ScoresError, match=r"row 3: .*64 values for 25 ids"):
        editor(small_columns | {"scores": moved})
    with pytest.raises(toedit.ScoresError, match=r"row 0: .*40 values for 39 ids: the scores were cut"):
        editor(small_columns | {"input_ids": [rows[0][:-1], *rows[1:]]})
    swapped = [*rows[0][:5], rows[0][6], rows[0][5], *rows[0][7:]]
    with pytest.raises(toedit.ScoresError, match=r"row 0: .*the scores belong to other ids; score these ids again"):
        editor(small_columns | {"input_ids": [swapped, *rows[1:]]})
    edited = editor(small_columns)
    with pytest.raises(toedit.ScoresError, match=r"row 0: .*belong to other ids"):
        editor(edited.batch)  # edited ids are no longer the ids that were scored


def test_scores_of_another_prior(prior: toedit.Prior, fp32_prior: toedit.Prior, rows: Rows) -> None:
    scores = fp32_prior.score(rows[:2])
    expected = f'row 0: .*scores are of prior "{fp32_prior.fingerprint}", but the editor has prior {prior.fingerprint}'
    with pytest.raises(toedit.ScoresError, match=expected):
        toedit.Editor(prior)({"input_ids": rows[:2], "scores": scores})


def test_k_larger_than_stored(prior: toedit.Prior, rows: Rows) -> None:
    scores = prior.score(rows[:1], k=4)
    with pytest.raises(toedit.ScoresError, match=r"row 0: k:? is 4: .*policy's k of 8; score with k=8"):
        toedit.Editor(prior)({"input_ids": rows[:1], "scores": scores})


def test_a_band_that_was_not_kept(prior: toedit.Prior, rows: Rows, scores: pa.StructArray) -> None:
    narrow = prior.score(rows[:3], keep=toedit.Policy(threshold=0.99))
    with pytest.raises(toedit.ScoresError, match=r"row \d: topk_pos:? lacks position \d+, .* score with keep=policy"):
        toedit.Editor(prior, toedit.Policy(threshold=0.2))({"input_ids": rows[:3], "scores": narrow})


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (5, "column 'scores' is a int"),
        ([1.0] * 5, "not a scores column"),
        (["a"] * 5, "not a scores column"),
        ([[1.0]] * 5, "not a scores column"),
        (pa.array([1.0] * 5), "'scores' is double; it must be the struct that Prior.score returns"),
        (pa.array([{"logp": [1.0]}] * 5), "has no field 'topk_pos'; make it with Prior.score"),
        ([{"logp": "a"}] * 5, "not a scores column"),
        ([None] * 5, "row 0: scores is null; score it with Prior.score first"),
        ([{}] * 5, r"row 0: scores\.logp is null"),
    ],
)
def test_scores_of_the_wrong_kind(editor: toedit.Editor, small_columns: Columns, scores: Any, message: str) -> None:
    with pytest.raises((toedit.ScoresError, toedit.InputError), match=message):
        editor(small_columns | {"scores": scores})


def test_a_row_whose_scores_are_null(editor: toedit.Editor, small_columns: Columns) -> None:
    scores = small_columns["scores"].to_pylist()
    scores[3] = None
    with pytest.raises(toedit.ScoresError, match="row 3: scores is null"):
        editor(small_columns | {"scores": scores})
    wide = pa.array(scores, toedit.SCORES_TYPE)
    fields = [wide.field(i).cast(pa.large_list(f.type.value_type)) if pa.types.is_list(f.type) else wide.field(i)
              for i, f in enumerate(toedit.SCORES_TYPE)]  # fmt: skip
    names = [f.name for f in toedit.SCORES_TYPE]
    with pytest.raises(toedit.ScoresError, match="row 3: scores is null"):
        editor(small_columns | {"scores": pa.StructArray.from_arrays(fields, names=names, mask=wide.is_null())})


# Arguments of scoring


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k is 0; it must be at least 1"),
        ({"k": -1}, "k is -1"),
        ({"k": 65}, "k is 65, but .* stores 1 to 64; export it with a larger --k"),
        ({"k": 8.0}, r"k is 8\.0; it must be an integer"),
        ({"k": True}, "k is True; it must be an integer"),
        ({"k": "8"}, "k is '8'; it must be an integer"),
        ({"k": 2**40}, "k is 1099511627776"),
        ({"k": 2**70}, "k is 1180591620717411303424"),
        ({"keep": [(0.5, 0.4)]}, r"keep: \(0\.5, 0\.4\) is not a range of P; it must have 0 <= low <= high <= 1"),
        ({"keep": [(-0.1, 1.0)]}, r"keep: \(-0\.1, 1\.0\) is not a range of P"),
        ({"keep": [(0.5, 1.1)]}, r"keep: \(0\.5, 1\.1\) is not a range of P"),
        ({"keep": [(0.9, float("nan"))]}, "keep.*nan"),
        ({"keep": [(0.9, float("inf"))]}, "keep.*inf"),
        ({"keep": 0.9}, r"keep is 0\.9; it must be a policy or ranges of P such as \[\(0\.9, 1\.0\)\]"),
        ({"keep": [0.9]}, r"keep is \[0\.9\]; it must be a policy or ranges"),
        ({"keep": [(0.9, 1.0, 2.0)]}, "keep is .*; it must be a policy or ranges"),
        ({"keep": [("a", "b")]}, "keep is .*; it must be a policy or ranges"),
        ({"keep": "all"}, "keep is 'all'; it must be a policy or ranges"),
        ({"keep": toedit.Policy(k=65)}, "k is 65, but .* stores 1 to 64"),
    ],
)
def test_arguments_of_scoring(prior: toedit.Prior, arguments: Columns, message: str) -> None:
    with pytest.raises(toedit.InputError, match=message):
        prior.score([[1, 2]], **arguments)


# Prior folders


@pytest.fixture
def copied(prior: toedit.Prior, tmp_path: Path) -> Path:
    """A copy of the bundled prior, to be damaged."""
    return Path(shutil.copytree(prior.path, tmp_path / "copy"))


def settings(folder: Path, **changes: Any) -> None:
    file = folder / "prior.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1000])


def flip(name: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "is not a prior folder: it has no prior.json; make one with `toedit export MODEL -o DIR`"),
        (lambda folder: (folder / "prior.json").unlink(), "it has no prior.json"),
        (lambda folder: (folder / "prior.json").write_text("{"), "prior.json .* cannot be read .* the folder is damaged"),
        (lambda folder: (folder / "prior.json").write_text("[]"), "prior.json .* cannot be read"),
        (lambda folder: (folder / "prior.json").write_text("{}"), "format is 0, but must be 1"),
        (lambda folder: settings(folder, format=2), "format is 2, but must be 1"),
        (lambda folder: settings(folder, graph={"version": 9}), r"graph\.version is 9, but must be 1"),
        (lambda folder: settings(folder, device="tpu"), 'device is "tpu", but must be "cpu", "cuda" or "elsewhere"'),
        (lambda folder: settings(folder, context_length=0), "context_length is 0"),
        (lambda folder: settings(folder, vocab_size=-5), "vocab_size is -5"),
        (lambda folder: settings(folder, tokenizer_size=5000), "tokenizer_size is 5000, but must be 1 to vocab_size = 4096"),
        (lambda folder: settings(folder, special_ids=[4096]), "special_ids is 4096, but must be below vocab_size = 4096"),
        (lambda folder: settings(folder, bos={"rule": "often", "id": 0}), r'bos\.rule is "often"'),
        (lambda folder: settings(folder, bos={"rule": "always", "id": None}), r"bos\.id is null"),
        (lambda folder: settings(folder, k="many"), "prior.json .* cannot be read"),
        (lambda folder: settings(folder, files={}), "files is without model.onnx"),
        (lambda folder: settings(folder, files={"../model.onnx": {}}), "files is"),
        (cut("model.onnx"), r"model\.onnx has \d+ bytes, but prior\.json says \d+; the folder is truncated"),
        (cut("tokenizer.json"), r"tokenizer\.json has \d+ bytes, but prior\.json says \d+; the folder is truncated"),
        (lambda folder: (folder / "model.onnx").unlink(), "its file model.onnx is missing"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "its file tokenizer.json is missing"),
        (flip("tokenizer.json"), r"tokenizer\.json has SHA-256 [0-9a-f]{64}, but prior\.json says [0-9a-f]{64}"),
    ],
)  # fmt: skip
def test_a_damaged_prior_folder(copied: Path, damage: Callable[[Path], object], message: str) -> None:
    """Noticed at the first use, for whatever it is used, and named with the folder."""
    damage(copied)
    prior = toedit.Prior(copied)
    for use in (prior.describe, lambda: prior.score([[1]]), lambda: toedit.Editor(prior)([[1]])):
        with pytest.raises(toedit.PriorError, match=message) as error:
            use()
        assert str(copied) in str(error.value)


def test_another_model_in_the_folder(copied: Path) -> None:
    """The large file is read when it is first scored with: weights of another hash never make scores."""
    flip("model.onnx")(copied)
    prior = toedit.Prior(copied)
    prior.describe()
    with pytest.raises(toedit.PriorError, match=r"model\.onnx has SHA-256 .* export the prior again"):
        prior.score([[1, 2]])


def test_another_tokenizer_in_the_folder(copied: Path, prior: toedit.Prior) -> None:
    """A whole tokenizer with an honest hash makes it another prior: scores of the old one are refused."""
    scores = prior.score([[1, 2]])
    file = copied / "tokenizer.json"
    file.write_text(file.read_text().replace('"merges": [', '"merges":  ['))
    listed = json.loads((copied / "prior.json").read_text())["files"]
    settings(copied, files={**listed, "tokenizer.json": helpers.file_entry(file)})
    other = toedit.Prior(copied)
    assert other.fingerprint != prior.fingerprint
    with pytest.raises(toedit.ScoresError, match="scores are of prior"):
        toedit.Editor(other)({"input_ids": [[1, 2]], "scores": scores})


def test_a_model_that_is_no_model(copied: Path) -> None:
    """With an honest hash, so that ONNX Runtime is the one to find out."""
    (copied / "model.onnx").write_bytes(b"not a model" * 100)
    listed = json.loads((copied / "prior.json").read_text())["files"]
    settings(copied, files={**listed, "model.onnx": helpers.file_entry(copied / "model.onnx")})
    with pytest.raises(toedit.PriorError, match=r"ONNX Runtime 1\.\d+.* cannot open model\.onnx"):
        toedit.Prior(copied).score([[1, 2]])


def test_a_file_instead_of_a_folder() -> None:
    with pytest.raises(toedit.PriorError, match=r"test_bad_input\.py"):
        toedit.Prior(__file__).describe()


# ONNX Runtime


NO_RUNTIME = """
import toedit
prior = toedit.Prior.builtin()
try:
    prior.score([[1, 2]])
except toedit.MissingDependencyError as error:
    assert isinstance(error, ImportError)
    print(error)
else:
    raise SystemExit("scored")
"""


# Python 3.10 has no wheel of ONNX Runtime to install; there the message says where to take its library from.
HOW_TO_INSTALL = (
    "pip install 'toedit[cpu]'" if sys.version_info >= (3, 11) else "pip install --no-deps --ignore-requires-python"
)


def test_without_onnx_runtime(small_prior: toedit.Prior, monkeypatch: pytest.MonkeyPatch, small_columns: Columns) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    prior = toedit.Prior.builtin()
    with pytest.raises(toedit.MissingDependencyError, match=re.escape(HOW_TO_INSTALL)):
        prior.score([[1, 2]])
    # Editing from stored scores goes on.
    assert toedit.Editor(small_prior, POLICY)(small_columns).changes > 0


def test_an_onnxruntime_package_without_its_library(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime" / "capi").mkdir(parents=True)
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    said = helpers.python(NO_RUNTIME, path=tmp_path).stdout
    assert HOW_TO_INSTALL in said


def test_a_file_that_is_no_library(tmp_path: Path) -> None:
    folder = tmp_path / "onnxruntime" / "capi"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "libonnxruntime.so.1.32.0").write_bytes(b"\x7fELF and no more")
    said = helpers.python(NO_RUNTIME, path=tmp_path).stdout
    assert str(folder / "libonnxruntime.so.1.32.0") in said
    assert "pip install --upgrade 'toedit[cpu]'" in said


OLD_RUNTIME = """
#include <stddef.h>
#include <stdint.h>
struct base { const void *(*get_api)(uint32_t); const char *(*get_version)(void); };
static const void *get_api(uint32_t version) { return NULL; }
static const char *get_version(void) { return "1.10.0"; }
static const struct base base = {get_api, get_version};
const struct base *OrtGetApiBase(void) { return &base; }
"""


def test_an_onnx_runtime_that_is_too_old(tmp_path: Path) -> None:
    """One that does not have the version of the API that is asked for."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler to make an old ONNX Runtime")
    folder = tmp_path / "onnxruntime" / "capi"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    source = tmp_path / "old.c"
    source.write_text(OLD_RUNTIME)
    library = folder / "libonnxruntime.so.1.10.0"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    said = helpers.python(NO_RUNTIME, path=tmp_path).stdout
    assert str(library) in said
    assert "toedit needs onnxruntime >= 1." in said
    assert "pip install --upgrade 'toedit[cpu]'" in said


# The native library itself


def test_handles_that_do_not_exist(small_prior: toedit.Prior) -> None:
    policy = POLICY.to_json()
    for handle in (0, 1, 2**64 - 1, small_prior.handle ^ (1 << 40), small_prior.handle + 10_000):
        for name, *others in (("OpenEditor", policy), ("DescribePrior",), ("Close",), ("CancelScore",), ("WaitScore", 1)):
            with pytest.raises(toedit.ClosedError, match="handle 0x"):
                _bridge.call(name, handle, *others)


def test_a_handle_of_another_kind(small_prior: toedit.Prior) -> None:
    editor = _bridge.call("OpenEditor", small_prior.handle, POLICY.to_json())
    with pytest.raises(toedit.ClosedError, match="is an editor, not a prior"):
        _bridge.call("DescribePrior", editor)
    _bridge.call("Close", editor)
    with pytest.raises(toedit.ClosedError, match="is closed or was never opened"):
        _bridge.call("Close", editor)
