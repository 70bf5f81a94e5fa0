"""What an editor is to its user: a picklable setting, a mapping that comes back, counts and warnings."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer, models

import helpers
import oracle
import toedit

Rows = list[list[int]]
SmallBatch = tuple[Rows, list[oracle.Scores]]
Columns = dict[str, Any]

POLICY = toedit.Policy(threshold=0.5, temperature=2.0)


def test_importing_toedit_loads_nothing_heavy() -> None:
    helpers.python("""
import sys, toedit
loaded = [name for name in ("torch", "onnxruntime", "transformers", "datasets", "polars", "pandas", "toedit._gobridge",
                            "toedit.torch", "toedit.export") if name in sys.modules]
assert not loaded, loaded
with open("/proc/self/maps") as maps:
    mapped = maps.read()
assert "_gobridge" not in mapped and "onnxruntime" not in mapped
# Neither does a prior that was made and not used.
repr(toedit.Prior("no such folder"))
with open("/proc/self/maps") as maps:
    assert "_gobridge" not in maps.read()
""")


def test_everything_public_is_there() -> None:
    for name in toedit.__all__:
        assert getattr(toedit, name) is not None
    errors = [getattr(toedit, name) for name in toedit.__all__ if name.endswith("Error")]
    assert all(issubclass(error, toedit.Error) for error in errors)


# Edited


def test_edited_is_a_mapping(small_prior: toedit.Prior, small_columns: Columns) -> None:
    batch = small_columns | {"doc": ["a", "b", "c", "d", "e"]}
    edited = toedit.Editor(small_prior, POLICY)(batch)
    assert isinstance(edited, Mapping)
    assert list(edited) == list(edited.keys()) == ["input_ids", "scores", "doc"]
    assert len(edited) == 3
    assert "doc" in edited
    assert "labels" not in edited
    assert edited["doc"] is edited.batch["doc"] is batch["doc"]
    assert dict(edited) == edited.batch
    with pytest.raises(KeyError, match="labels"):
        edited["labels"]
    assert edited.get("labels", 5) == 5
    assert repr(edited).startswith("Edited(['input_ids', 'scores', 'doc'], Counts(rows=5, empty_rows=1, ")


def test_the_log_names_every_change(small_prior: toedit.Prior, small_batch: SmallBatch, small_columns: Columns) -> None:
    rows, scores = small_batch
    edited = toedit.Editor(small_prior, POLICY, offset="at")(small_columns | {"at": [0, 0, 0, 100, 2**40]})
    assert edited.log.schema.equals(toedit.log.SCHEMA)
    assert edited.log.num_rows == edited.changes > 10
    ids = [list(row) for row in rows]
    for change in edited.log.to_pylist():
        at = change["position"] - (0, 0, 0, 100, 2**40)[change["row"]]
        assert ids[change["row"]][at] == change["old"] != change["new"]
        assert scores[change["row"]]["logp"][at] == change["logp"]
        ids[change["row"]][at] = change["new"]
    assert edited["input_ids"].to_pylist() == ids


def test_the_log_counts_positions_among_real_tokens(small_prior: toedit.Prior, small_batch: SmallBatch) -> None:
    rows, scores = small_batch
    editor = toedit.Editor(small_prior, POLICY)
    column = oracle.scores_to_arrow(scores)
    plain = editor({"input_ids": rows, "scores": column})
    ids, mask = helpers.pad(rows, 80, left=True)
    padded = editor({"input_ids": ids, "attention_mask": mask, "scores": column})
    assert padded.log.equals(plain.log)
    assert padded.counts == plain.counts


def test_length_never_changes_and_neither_does_anything_unlogged(small_prior: toedit.Prior, small_columns: Columns) -> None:
    edited = toedit.Editor(small_prior, POLICY)(small_columns)
    before, after = small_columns["input_ids"].to_pylist(), edited["input_ids"].to_pylist()
    assert [len(row) for row in before] == [len(row) for row in after]
    changed = sum(a != b for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True))
    assert changed == edited.changes == edited.counts.changes


def test_counts_add_up(small_prior: toedit.Prior, small_batch: SmallBatch, small_columns: Columns) -> None:
    rows, _ = small_batch
    editor = toedit.Editor(small_prior, POLICY)
    whole = editor(small_columns).counts
    assert whole.rows == 5
    assert whole.tokens == sum(map(len, rows))
    assert whole.unscored == 4  # the first token of every row that has one
    assert whole.empty_rows == 1
    assert whole.overlong_rows == 0
    assert 0 < whole.changes < whole.candidates
    assert whole.changes == pytest.approx(whole.expected_changes, rel=0.5)
    total = type(whole)()
    for n in range(5):
        total.add(editor({name: column[n : n + 1] for name, column in small_columns.items()}).counts)
    assert total.expected_changes == pytest.approx(whole.expected_changes, rel=1e-12)
    total.expected_changes = whole.expected_changes
    assert total == whole


def test_empty_and_overlong_rows_pass_through_and_are_counted(rows: Rows) -> None:
    editor = toedit.Editor(toedit.Prior.builtin(windows="off"), toedit.Policy(threshold=0.1, exclude_original=True))
    long = rows[14]
    assert len(long) == 560
    edited = editor([[], long, rows[0], []])
    assert (edited.counts.empty_rows, edited.counts.overlong_rows, edited.counts.unscored) == (2, 1, 560 - 512)
    assert edited["input_ids"][0] == []
    assert edited["input_ids"][1][512:] == long[512:]
    assert edited["input_ids"][1][:512] != long[:512]


def test_what_is_kept_until_the_end_goes_silently() -> None:
    """Also what nobody looked at, in a module that is torn down late."""
    done = helpers.python("""
import sys, toedit
prior = toedit.Prior.builtin(threads=1)
sys.modules["json"].kept = toedit.Editor(prior)([[1, 2, 3]])
""")
    assert "Exception ignored" not in done.stderr


# Keys, epochs, seeds


def test_equal_documents_without_a_key_get_equal_edits(small_prior: toedit.Prior, small_columns: Columns) -> None:
    twice = {name: pa.concat_arrays([column, column]) for name, column in small_columns.items()}
    plain = toedit.Editor(small_prior, POLICY)
    edited = plain(twice)["input_ids"].to_pylist()
    assert edited[:5] == edited[5:]
    keyed = toedit.Editor(small_prior, POLICY, key="doc")
    named = keyed(twice | {"doc": [f"document {n}" for n in range(10)]})["input_ids"].to_pylist()
    assert named[:5] != named[5:]
    same = keyed(twice | {"doc": ["a", "b", "c", "d", "e"] * 2})["input_ids"].to_pylist()
    assert same[:5] == same[5:]


def test_epochs_and_seeds_give_other_edits_and_nothing_is_remembered(small_prior: toedit.Prior, small_columns: Columns) -> None:
    editor = toedit.Editor(small_prior, POLICY, seed=1)
    epochs = [editor(small_columns, epoch=n)["input_ids"].to_pylist() for n in (0, 1, 2**32 - 1)]
    seeds = [toedit.Editor(small_prior, POLICY, seed=s)(small_columns)["input_ids"].to_pylist() for s in (0, 2**64 - 1)]
    different = [*epochs, *seeds]
    assert len({str(ids) for ids in different}) == 5
    assert [editor(small_columns, epoch=n)["input_ids"].to_pylist() for n in (2**32 - 1, 1, 0)] == epochs[::-1]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", "b", "a", "c", "b"]),
        pa.array(["a", "b", "a", "c", "b"], pa.large_string()),
        pa.array(["a", "b", "a", "c", "b"]).dictionary_encode(),
        np.array(["a", "b", "a", "c", "b"]),
        ["a", "b", "a", "c", "b"],
    ],
    ids=["string", "large_string", "dictionary", "numpy", "list"],
)
def test_text_keys_of_every_form(
    small_prior: toedit.Prior, small_batch: SmallBatch, small_columns: Columns, column: Any
) -> None:
    editor = toedit.Editor(small_prior, POLICY, key="doc")
    edited = editor(small_columns | {"doc": column})
    helpers.assert_edits_equal(edited, helpers.reference(editor, *small_batch, keys=["a", "b", "a", "c", "b"]))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, "torch", "list"])
def test_integer_keys_and_offsets_of_every_width(
    small_prior: toedit.Prior, small_batch: SmallBatch, small_columns: Columns, dtype: Any
) -> None:
    values: Any = [5, 0, 99, 7, 5]
    if dtype == "torch":
        values = pytest.importorskip("torch").tensor(values)
    elif dtype != "list":
        values = np.array(values, dtype)
    editor = toedit.Editor(small_prior, POLICY, key="doc", offset="at")
    edited = editor(small_columns | {"doc": values, "at": values})
    expected = helpers.reference(editor, *small_batch, keys=[5, 0, 99, 7, 5], offsets=[5, 0, 99, 7, 5])
    helpers.assert_edits_equal(edited, expected, [5, 0, 99, 7, 5])


# Protection


def test_labels_follow_the_ids(small_prior: toedit.Prior, small_batch: SmallBatch, small_columns: Columns) -> None:
    rows, scores = small_batch
    editor = toedit.Editor(small_prior, POLICY)
    labels = [[-100 if i % 3 == 0 else token for i, token in enumerate(row)] for row in rows]
    edited = editor(small_columns | {"labels": labels})
    helpers.assert_edits_equal(edited, helpers.reference(editor, rows, scores, labels=labels))
    for old, new, ids in zip(labels, edited["labels"], edited["input_ids"].to_pylist(), strict=True):
        assert new == [-100 if label == -100 else token for label, token in zip(old, ids, strict=True)]
    assert edited.counts.protected > 5
    assert all(change["position"] % 3 for change in edited.log.to_pylist())


def test_masks_protect(small_prior: toedit.Prior, small_batch: SmallBatch, small_columns: Columns) -> None:
    rows, scores = small_batch
    editor = toedit.Editor(small_prior, POLICY)
    first = [[int(i % 2 == 0) for i in range(len(row))] for row in rows]
    second = [[i % 5 == 0 for i in range(len(row))] for row in rows]
    edited = editor(small_columns | {"special_tokens_mask": first, "protected_mask": second})
    both = [[bool(a or b) for a, b in zip(x, y, strict=True)] for x, y in zip(first, second, strict=True)]
    helpers.assert_edits_equal(edited, helpers.reference(editor, rows, scores, protected_mask=both))
    everything = editor(small_columns | {"protected_mask": [[True] * len(row) for row in rows]})
    assert (everything.candidates, everything.changes) == (0, 0)
    assert everything["input_ids"].to_pylist() == rows


def test_special_ids_are_neither_edited_nor_drawn(small_prior: toedit.Prior) -> None:
    rng = np.random.default_rng(4)
    ids = rng.integers(0, 6, size=400).tolist() + rng.integers(500, 512, size=400).tolist()
    scores = [oracle.make_scores(rng, ids, 512, 8, 0.3, small_prior.fingerprint)]
    batch = {"input_ids": [ids], "scores": oracle.scores_to_arrow(scores)}
    never = {0, 1, 2, 508, 509, 510, 511}
    policy = toedit.Policy(threshold=0.3, temperature=50.0)
    log = toedit.Editor(small_prior, policy)(batch).log
    assert log.num_rows > 50
    assert not never & {*log["old"].to_pylist(), *log["new"].to_pylist()}
    unprotected = toedit.Policy(threshold=0.3, temperature=50.0, protect_special=False)
    log = toedit.Editor(small_prior, unprotected)(batch).log
    seen = {*log["old"].to_pylist(), *log["new"].to_pylist()}
    assert {0, 1, 2} <= seen
    assert not {508, 509, 510, 511} & seen  # the tokenizer has none of these, whatever the policy says


# Settings


def test_pickling(small_prior: toedit.Prior, small_columns: Columns) -> None:
    editor = toedit.Editor(small_prior, POLICY, seed=2**64 - 1, key="doc", offset="at")
    batch = small_columns | {"doc": list("abcde"), "at": [1, 2, 3, 4, 5]}
    expected = editor(batch, epoch=3)
    for copy in (pickle.loads(pickle.dumps(editor)), pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(editor))))):
        assert repr(copy) == repr(editor)
        assert copy.policy == editor.policy
        assert copy(batch, epoch=3)["input_ids"].equals(expected["input_ids"])
    assert len(pickle.dumps(editor)) < 1000  # settings, no model


def test_a_large_batch_is_edited_by_several_threads_as_by_one(
    small_prior: toedit.Prior, small_batch: SmallBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, log, counts and the error of the first bad row are the same."""
    rows, scores = small_batch
    times = 5000  # 650,000 tokens: enough for two threads
    table = pa.table(
        {"input_ids": pa.array(rows * times), "scores": pa.concat_arrays([oracle.scores_to_arrow(scores)] * times)}
    )
    pa.parquet.write_table(table, tmp_path / "rows.parquet")
    code = f"""
import sys, pyarrow.parquet as pq, toedit, hashlib
table = pq.read_table({str(tmp_path / "rows.parquet")!r})
edited = toedit.Editor(toedit.Prior({str(small_prior.path)!r}), toedit.Policy(threshold=0.5, temperature=2.0))(table)
digest = hashlib.sha256(edited["input_ids"].combine_chunks().values.to_numpy())
for name in ("row", "position", "old", "new", "p"):
    digest.update(edited.log[name].to_numpy())
print(digest.hexdigest(), edited.counts)
"""
    monkeypatch.setenv("GOMAXPROCS", "1")
    by_one = helpers.python(code).stdout
    monkeypatch.setenv("GOMAXPROCS", "3")
    by_several = helpers.python(code).stdout
    assert by_several == by_one
    assert "changes=0" not in by_one

    column = table["scores"].combine_chunks()
    broken = [4 if i in (20_001, 20_003, 3) else 8 for i in range(len(column))]
    parts = [pa.array(broken, pa.int32()) if f.name == "k" else column.field(f.name) for f in column.type]
    with pytest.raises(toedit.ScoresError, match="row 3: "):
        toedit.Editor(small_prior)(table.set_column(1, "scores", pa.StructArray.from_arrays(parts, fields=list(column.type))))


def test_a_nucleus_of_one_is_warned_of(small_prior: toedit.Prior, small_columns: Columns) -> None:
    with pytest.warns(toedit.IdentityWarning, match=r"changes nothing: .* top_p = 0\.99") as caught:
        editor = toedit.Editor(small_prior, toedit.Policy(top_p=0.99))
    assert caught[0].filename == __file__
    edited = editor(small_columns)
    assert edited.candidates > 10
    assert edited.changes == edited.expected_changes == edited.counts.truncated == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for policy in (
            toedit.Policy(threshold=0.9, top_p=0.95),
            toedit.Policy(top_p=0.99, temperature=1.5),
            toedit.Policy(threshold=0.4, top_p=0.3),
            toedit.Policy(bands=(toedit.Band(0.99), toedit.Band(0.0, 0.1, action="drop")), top_p=0.9),
        ):
            toedit.Editor(small_prior, policy)


def test_repr(small_prior: toedit.Prior) -> None:
    assert repr(toedit.Editor(small_prior, seed=7, key="doc")) == (
        f"Editor(Prior({str(small_prior.path)!r}), Policy(threshold=0.99), seed=7, key='doc', offset=None)"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prior": "folder"}, r"prior is a str; it must be a toedit\.Prior"),
        ({"policy": {"threshold": 0.9}}, r"policy is a dict; it must be a toedit\.Policy"),
        ({"seed": -1}, f"seed is -1; it must be 0 to {2**64 - 1}"),
        ({"seed": 2**64}, f"seed is {2**64}; it must be 0 to {2**64 - 1}"),
        ({"seed": 1.5}, r"seed is 1\.5; it must be an integer"),
        ({"seed": "1"}, "seed is '1'; it must be an integer"),
        ({"key": 5}, "key is 5; it must be the name of a column, or None"),
        ({"offset": ["at"]}, r"offset is \['at'\]; it must be the name of a column, or None"),
    ],
)
def test_arguments_of_the_wrong_kind(small_prior: toedit.Prior, arguments: Columns, message: str) -> None:
    with pytest.raises(toedit.InputError, match=message):
        toedit.Editor(**{"prior": small_prior, **arguments})


@pytest.mark.parametrize("epoch", [-1, 2**32, 0.5, "0", None])
def test_an_epoch_out_of_range(small_prior: toedit.Prior, small_columns: Columns, epoch: Any) -> None:
    with pytest.raises(toedit.InputError, match=f"epoch is {epoch!r}; it must be"):
        toedit.Editor(small_prior)(small_columns, epoch=epoch)


# The warning about runs that change almost nothing


def likely_rows(prior: toedit.Prior, tokens: int, *, p: float = 0.9999999) -> Columns:
    """Tokens that are all but certain: candidates by the thousand, and hardly a change to be expected."""
    rng = np.random.default_rng(2)
    ids = rng.integers(3, 500, size=tokens).tolist()
    scores = oracle.make_scores(rng, ids, 512, 8, 1.0, prior.fingerprint, null_first=False)
    near = float(np.float32(np.log(p)))
    top = np.array([[token, (token + 1) % 500] for token in ids], np.int32)
    scores |= {
        "logp": [near] * tokens,
        "topk_pos": np.arange(tokens, dtype=np.int32),
        "topk_ids": top.reshape(-1),
        "topk_logp": oracle.to_float16(np.array([[near, -17.0]] * tokens)).reshape(-1),
        "k": 2,
    }
    return {"input_ids": [ids], "scores": oracle.scores_to_arrow([scores])}


def test_a_run_that_will_change_almost_nothing_says_so_once(small_prior: toedit.Prior) -> None:
    policy = toedit.Policy(k=2)
    editor = toedit.Editor(small_prior, policy)
    batch = likely_rows(small_prior, 4000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = editor(batch), editor(batch)
        assert first.candidates == 4000
        assert first.expected_changes < 0.001 * 4000
    with pytest.warns(toedit.ExpectedChangesWarning, match="first 12000 tokens") as caught:
        editor(batch)
    assert caught[0].filename == __file__
    assert "exclude_original" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            editor(batch)
        assert second.changes == first.changes
        toedit.Editor(small_prior, policy).edit(likely_rows(small_prior, 12_000))  # for those who count themselves
        toedit.Editor(small_prior, toedit.Policy(k=2, exclude_original=True))(likely_rows(small_prior, 12_000))


def test_candidates_and_changes_are_two_numbers(prior: toedit.Prior, rows: Rows, scores: pa.StructArray) -> None:
    """At temperature 1 most candidates keep their token; only a policy that excludes it changes them all."""
    batch = {"input_ids": rows, "scores": scores}
    kept = toedit.Editor(prior, toedit.Policy(threshold=0.9)).edit(batch)
    assert kept.expected_changes < 0.1 * kept.candidates
    assert kept.changes < 0.15 * kept.candidates
    all_changed = toedit.Editor(prior, toedit.Policy(threshold=0.9, exclude_original=True)).edit(batch)
    assert all_changed.candidates == kept.candidates == all_changed.changes == all_changed.expected_changes


# The trainer's tokenizer


def test_the_same_tokenizer_is_accepted(prior: toedit.Prior, tokenizer: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    saved = tmp_path / "mine.json"
    tokenizer.save(str(saved), pretty=False)
    for same in (
        tokenizer,
        saved,
        str(saved),
        transformers.AutoTokenizer.from_pretrained(prior.path),
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer),
    ):
        toedit.Editor(prior, tokenizer=same)


def changed_tokenizer(prior: toedit.Prior, change: str) -> Any:
    definition = json.loads(prior.tokenizer_file.read_text())
    model = definition["model"]
    if change == "vocabulary":
        pieces = list(model["vocab"])
        a, b = pieces[300], pieces[301]
        model["vocab"][a], model["vocab"][b] = model["vocab"][b], model["vocab"][a]
    elif change == "merges":
        model["merges"][40], model["merges"][41] = model["merges"][41], model["merges"][40]
    elif change == "fewer merges":
        model["merges"] = model["merges"][:-1]
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    if change == "added token":
        tokenizer.add_tokens(["<tool>"])
    return tokenizer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("vocabulary", "differ in vocabulary"),
        ("merges", "differ in merges .number 40"),
        ("fewer merges", r"differ in merges \(\d+ against \d+\)"),
        ("added token", "differ in added tokens .'<tool>'"),
    ],
)
def test_another_tokenizer_is_refused(prior: toedit.Prior, change: str, message: str) -> None:
    with pytest.raises(toedit.InputError, match=message) as error:
        toedit.Editor(prior, tokenizer=changed_tokenizer(prior, change))
    assert "toedit export" in str(error.value)


def test_another_kind_of_tokenizer_is_refused(prior: toedit.Prior) -> None:
    with pytest.raises(toedit.InputError, match="differ in model"):
        toedit.Editor(prior, tokenizer=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))


class SlowTokenizer:
    """Stands for a tokenizer written in Python: it has no definition that could be compared."""

    vocab_size = 4096


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (SlowTokenizer(), "a SlowTokenizer cannot be written .* pass a fast tokenizer"),
        ("no/such/tokenizer.json", "tokenizer file cannot be read"),
        (Path(__file__), "is not a tokenizer.json"),
        (5, "a int cannot be written"),
    ],
)
def test_what_cannot_be_compared_is_refused(prior: toedit.Prior, tokenizer: Any, message: str) -> None:
    with pytest.raises(toedit.InputError, match=message):
        toedit.Editor(prior, tokenizer=tokenizer)
