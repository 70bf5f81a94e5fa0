"""The edit log: what it says, and batches that have its edits made and taken back."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer

import helpers
import oracle
import toedit
from toedit import Band, Policy
from toedit.log import SCHEMA, select, shift

Columns = dict[str, Any]
Rows = list[list[int]]

RESAMPLE = Policy(threshold=0.5, temperature=2.0)
MIXED = Policy(
    bands=(Band(0.1, 0.5, action="drop"), Band(0.8), Band(0.5, 0.8, action="mask_loss")),
    exclude_original=True,
    protect_context=False,
)


def make_rows(rng: np.random.Generator, prior: toedit.Prior, *lengths: int) -> Columns:
    """Rows of plain lists of ids that are not special, and random scores, as batches have them."""
    rows = [rng.integers(3, 508, size=n).tolist() for n in lengths]
    scores = [oracle.make_scores(rng, row, 512, 8, 0.1, prior.fingerprint) for row in rows]
    return {"input_ids": rows, "scores": oracle.scores_to_arrow(scores)}


@pytest.fixture(scope="module")
def columns(small_prior: toedit.Prior) -> Columns:
    return make_rows(np.random.default_rng(8), small_prior, 40, 1, 0, 25, 58)


# What it says


def test_it_says_what_was_edited_in_text(prior: toedit.Prior, tokenizer: Tokenizer) -> None:
    from pydoc_data.topics import topics

    text = [topics["assert"], topics["strings"][:900], "Ünï→cödé 🙂 " * 9]
    rows = [tokenizer.encode(t).ids for t in text]
    policy = Policy(bands=(Band(0.5), Band(0.0, 1e-3, action="drop")), temperature=2.0, k=4)
    edited = toedit.Editor(prior, policy)({"input_ids": rows})
    assert edited.log.schema.equals(SCHEMA)
    assert edited.log is edited.log
    log = edited.log.to_pylist()
    assert len(log) == edited.counts.changes + edited.counts.dropped > 60
    pieces: list[bytes] = []
    for n, before in enumerate(text):
        whole, at = before.encode(), 0
        pieces.clear()
        for e in (e for e in log if e["row"] == n):
            old = e["old_text"] or b""
            assert whole[e["byte_offset"] : e["byte_offset"] + len(old)] == old
            pieces += [whole[at : e["byte_offset"]], e["new_text"] or b""]
            at = e["byte_offset"] + len(old)
            assert (e["new"] is None) == (e["action"] == "drop") == (e["band"] == 1)
            assert e["p"] == pytest.approx(np.exp(np.float64(e["logp"])), rel=1e-15)
        after = b"".join([*pieces, whole[at:]])
        assert after.decode(errors="replace") == tokenizer.decode(edited["input_ids"][n])
    for e in log:
        document = rows[e["row"]]
        low, high = oracle.document_hash(document)
        assert document[e["position"]] == e["old"]
        assert e["key"] == f"{high:016x}{low:016x}"
        assert e["ids_hash"] == low
        assert e["edited_hash"] == oracle.document_hash(edited["input_ids"][e["row"]])[0]
        assert e["generation"] == 0
        assert e["context"] is None


def test_keys_offsets_and_labels(small_prior: toedit.Prior, columns: Columns) -> None:
    rows = columns["input_ids"]
    labels = [[-100 if i % 3 == 0 else token for i, token in enumerate(row)] for row in rows]
    batch = columns | {
        "labels": labels,
        "id": ["a", "b", "c", "", "é"],
        "number": [-3, 0, 1, 2**63 - 1, 5],
        "at": [7, 0, 3, 0, 2**40],
    }
    log = toedit.Editor(small_prior, MIXED, key="id", offset="at")(batch).log.to_pylist()
    assert {e["row"]: e["key"] for e in log} == {0: "a", 3: "", 4: "é"} | ({1: "b"} if any(e["row"] == 1 for e in log) else {})
    for e in log:
        at = e["position"] - batch["at"][e["row"]]
        assert rows[e["row"]][at] == e["old"]
        assert e["context"] == (at % 3 == 0)
    numbers = toedit.Editor(small_prior, MIXED, key="number")(batch).log
    assert (
        dict(zip(numbers["row"].to_pylist(), numbers["key"].to_pylist(), strict=True)).items()
        >= {0: "-3", 3: str(2**63 - 1)}.items()
    )


def test_a_tokenizer_whose_tokens_are_no_bytes_has_no_text(columns: Columns, tmp_path_factory: pytest.TempPathFactory) -> None:
    prior = helpers.editing_prior(tmp_path_factory.mktemp("priors") / "no_text")
    file, settings = prior.tokenizer_file, prior.path / "prior.json"
    tokenizer = json.loads(file.read_text())
    file.write_text(json.dumps(tokenizer | {"normalizer": None, "pre_tokenizer": None, "decoder": None}))
    changed = json.loads(settings.read_text())
    changed["files"]["tokenizer.json"] = helpers.file_entry(file)
    settings.write_text(json.dumps(changed))
    scores = columns["scores"]
    prior = toedit.Prior(prior.path)
    scores = pa.StructArray.from_arrays(
        [*scores.flatten()[:-1], pa.array([prior.fingerprint] * len(scores))], fields=list(toedit.SCORES_TYPE)
    )
    edited = toedit.Editor(prior, MIXED)(columns | {"scores": scores, "labels": columns["input_ids"]})
    log = edited.log
    assert log.num_rows > 30
    for name in ("byte_offset", "old_text", "new_text"):
        assert log[name].null_count == log.num_rows
    assert toedit.revert_log(edited.batch, log)["input_ids"] == columns["input_ids"]


def test_it_is_read_before_the_batch_is_written_to(small_prior: toedit.Prior, columns: Columns) -> None:
    ids, mask = helpers.pad(columns["input_ids"], 60)
    batch = {"input_ids": np.array(ids), "attention_mask": np.array(mask), "scores": columns["scores"]}
    editor = toedit.Editor(small_prior, RESAMPLE)
    first, second = editor(batch), editor(batch)
    log = first.log
    batch["input_ids"][0, 3] += 1
    assert first.log is log
    with pytest.raises(toedit.InputError, match="row 0: its ids were changed after they were edited; read the log before that"):
        _ = second.log


def test_several_threads_may_read_it(small_prior: toedit.Prior, columns: Columns) -> None:
    editor = toedit.Editor(small_prior, RESAMPLE)
    log = editor(columns).log
    with ThreadPoolExecutor(4) as pool:
        for _ in range(50):
            edited = editor(columns)
            assert all(read.equals(log) for read in pool.map(lambda edited: edited.log, [edited] * 4))


def test_it_outlives_its_prior(columns: Columns, tmp_path_factory: pytest.TempPathFactory) -> None:
    prior = helpers.editing_prior(tmp_path_factory.mktemp("priors") / "closed")
    editor = toedit.Editor(prior, RESAMPLE)
    edited, again = editor(columns), editor(columns)
    log = edited.log
    prior.close()
    assert again.log.equals(log)


# Applied and reverted


def test_apply_and_revert_are_each_others_inverse(small_prior: toedit.Prior) -> None:
    rng = np.random.default_rng(17)
    actions: set[str] = set()
    for n in range(40):
        batch = make_rows(rng, small_prior, *rng.integers(0, 30, size=5))
        rows = batch["input_ids"]
        low, high = sorted(rng.uniform(0.1, 1.0, size=2))
        policy = Policy(
            bands=(
                Band(0.0, low, action=str(rng.choice(["drop", "mask_loss"]))),
                Band(low, high, action="resample") if low > 0.5 else Band(low, high, action="mask_loss"),
                Band(high, action="drop" if high < 0.5 else str(rng.choice(["resample", "drop"]))),
            ),
            temperature=float(rng.uniform(0.5, 3.0)),
            exclude_original=bool(rng.integers(2)),
            edit_probability=float(rng.choice([0.3, 1.0])),
            protect_context=bool(rng.integers(2)),
            labels=str(rng.choice(["edited", "original"])),
        )
        key, offset = rng.choice([None, "id"]), rng.choice([None, "at"])
        batch |= {"id": [f"{n} {i}" for i in range(5)], "at": rng.integers(0, 100, size=5).tolist()}
        batch["labels"] = [[-100 if rng.integers(4) == 0 else token for token in row] for row in rows]
        if rng.integers(2):
            sides = [bool(side) for side in rng.integers(2, size=5)]
            batch["input_ids"], batch["attention_mask"] = helpers.pad(rows, 31, left=sides)
            batch["labels"], _ = helpers.pad(batch["labels"], 31, left=sides, value=-100)
            batch["protected_mask"] = [[0] * 31] * 5
        editor = toedit.Editor(small_prior, policy, seed=n, key=key, offset=offset)
        edited = editor(batch)
        actions |= set(edited.log["action"].to_pylist())
        # The order of the log's rows does not matter.
        log = pa.table(edited.log).take(pa.array(rng.permutation(len(edited.log))))
        again = toedit.apply_log(batch, log, labels=policy.labels, key=key, offset=offset)
        back = toedit.revert_log(edited.batch, log, key=key, offset=offset)
        for name in batch:
            if name != "scores":
                assert again[name] == edited[name], name
        if "attention_mask" not in batch:
            assert back["input_ids"] == rows
            assert back["labels"] == batch["labels"]
        else:
            assert [
                [t for t, m in zip(*x, strict=True) if m] for x in zip(back["input_ids"], back["attention_mask"], strict=True)
            ] == rows
            lost = [
                sum(before) > 0 == sum(after)
                for before, after in zip(batch["attention_mask"], edited["attention_mask"], strict=True)
            ]
            for name in ("input_ids", "labels", "attention_mask", "protected_mask"):
                assert all(a == b or gone for a, b, gone in zip(back[name], batch[name], lost, strict=True)), name
    assert actions == {"resample", "drop", "mask_loss"}


CONTAINERS: dict[str, Callable[[pa.Table], Any]] = {
    "table": lambda table: pa.concat_tables([table.slice(0, 2), table.slice(2)]),
    "record batch": lambda table: table.combine_chunks().to_batches()[0],
    "struct array": lambda table: table.combine_chunks().to_batches()[0].to_struct_array(),
    "polars": pl.from_arrow,
    "rows": lambda table: table.to_pylist(),
    "large": lambda table: table.set_column(0, "input_ids", table["input_ids"].cast(pa.large_list(pa.uint16()))),
    "numpy": lambda table: (
        {n: [np.array(r, np.int32) for r in table[n].to_pylist()] for n in ("input_ids", "labels")}
        | {"scores": table["scores"], "attention_mask": [np.array(r, bool) for r in table["attention_mask"].to_pylist()]}
    ),
    "torch": lambda table: (
        {n: [torch.tensor(r, dtype=torch.int64) for r in table[n].to_pylist()] for n in ("input_ids", "labels")}
        | {
            "scores": table["scores"],
            "attention_mask": [torch.tensor(r, dtype=torch.int8) for r in table["attention_mask"].to_pylist()],
        }
    ),
}


def plain(batch: Any) -> dict[str, Rows]:
    """The batch's columns of tokens as lists, and their types."""
    names = ("input_ids", "labels", "attention_mask")
    if isinstance(batch, pa.StructArray):
        batch = pa.RecordBatch.from_struct_array(batch)
    if isinstance(batch, list):
        batch = {name: [row[name] for row in batch] for name in names}
    return {name: [[int(v) for v in row] for row in helpers.as_lists(batch[name])] for name in names}


def types(batch: Any) -> Any:
    if isinstance(batch, (pa.Table, pa.RecordBatch, pl.DataFrame)):
        return batch.schema
    if isinstance(batch, pa.StructArray):
        return batch.type
    if isinstance(batch, list):
        return [type(row) for row in batch]
    return {n: [(type(r), r.dtype) for r in rows] for n, rows in batch.items() if n != "scores"}


@pytest.mark.parametrize("container", list(CONTAINERS))
def test_every_container(small_prior: toedit.Prior, columns: Columns, container: str) -> None:
    rows = columns["input_ids"]
    table = pa.table(
        {"input_ids": rows, "labels": rows, "attention_mask": [[1] * len(row) for row in rows], "scores": columns["scores"]}
    )
    batch = CONTAINERS[container](table)
    edited = toedit.Editor(small_prior, MIXED)(batch)
    assert edited.counts.dropped > 5
    again = toedit.apply_log(batch, edited.log)
    assert plain(again) == plain(edited.batch) != plain(batch)
    assert types(again) == types(edited.batch)
    back = toedit.revert_log(edited.batch, edited.log)
    assert plain(back) == plain(batch)
    assert types(back) == types(batch)
    assert type(back) is type(again) is type(batch)


def test_rectangles(small_prior: toedit.Prior, columns: Columns) -> None:
    ids, mask = helpers.pad(columns["input_ids"], 60, left=True, value=1)
    edited = toedit.Editor(small_prior, RESAMPLE)(
        {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "scores": columns["scores"]}
    )
    batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    assert torch.equal(toedit.apply_log(batch, edited.log)["input_ids"], edited["input_ids"])
    assert torch.equal(toedit.revert_log(edited.batch, edited.log)["input_ids"], batch["input_ids"])
    only = toedit.revert_log(edited["input_ids"].numpy()[:, -58:][4:], select(edited.log, 4, 5))
    assert only.tolist() == [columns["input_ids"][4]]


def test_generations_are_applied_in_order_and_reverted_from_the_last(small_prior: toedit.Prior, columns: Columns) -> None:
    rng = np.random.default_rng(3)
    editor = toedit.Editor(small_prior, MIXED)
    batch: Columns = columns | {"labels": columns["input_ids"]}
    states, logs = [batch], []
    for generation in range(3):
        edited = editor(states[-1])
        at = SCHEMA.get_field_index("generation")
        numbers = pa.array([generation] * len(edited.log), pa.int32())
        logs.append(pa.table(edited.log).set_column(at, SCHEMA.field(at), numbers))
        scores = [oracle.make_scores(rng, row, 512, 8, 0.1, small_prior.fingerprint) for row in edited["input_ids"]]
        states.append({**edited.batch, "labels": edited["input_ids"], "scores": oracle.scores_to_arrow(scores)})
    whole = pa.concat_tables(logs)
    ids = [state["input_ids"] for state in states]
    assert ids[3] != ids[2] != ids[1] != ids[0]

    def only(state: Rows) -> Columns:
        return {"input_ids": state}

    assert toedit.apply_log(only(ids[0]), whole)["input_ids"] == ids[3]
    assert toedit.revert_log(only(ids[3]), whole)["input_ids"] == ids[0]
    later = pa.concat_tables(logs[1:])
    assert toedit.apply_log(only(ids[1]), later)["input_ids"] == ids[3]
    assert toedit.revert_log(only(ids[3]), later)["input_ids"] == ids[1]
    with pytest.raises(toedit.InputError, match=r"row 0, generation 1: the log's ids_hash is"):
        toedit.apply_log(only(ids[0]), later)
    with pytest.raises(toedit.InputError, match=r"row 0, generation 2: the log's edited_hash is"):
        toedit.revert_log(only(ids[1]), whole)


@pytest.mark.parametrize("labels", ["edited", "original"])
def test_generations_of_an_editor(prior: toedit.Prior, rows: Rows, labels: str) -> None:
    policy = Policy(
        bands=(Band(0.5), Band(0.0, 1e-3, action="drop"), Band(0.3, 0.5, action="mask_loss")), temperature=1.5, labels=labels
    )
    batch = {"input_ids": rows[:6], "labels": [[-100, *row[1:]] if row else [] for row in rows[:6]]}
    edited = toedit.Editor(prior, policy, generations=3)(batch)
    log = edited.log
    assert log.schema.equals(SCHEMA)
    assert set(log["generation"].to_pylist()) == {0, 1, 2}
    again = toedit.apply_log(batch, log, labels=labels)
    assert again == edited.batch != batch
    assert toedit.revert_log(again, log) == batch


def test_parquet_keeps_a_log(small_prior: toedit.Prior, columns: Columns) -> None:
    edited = toedit.Editor(small_prior, MIXED)(columns | {"labels": columns["input_ids"]})
    file = io.BytesIO()
    pq.write_table(pa.table(edited.log), file, compression="zstd")
    log = pq.read_table(file)
    assert log.schema.equals(SCHEMA)
    assert log.equals(pa.table(edited.log))
    for kept in (
        log,
        pl.from_arrow(log),
        pq.read_table(file, read_dictionary=["key", "action"]),
        log.combine_chunks().to_batches()[0],
    ):
        back = toedit.revert_log(edited.batch, kept)
        assert (back["input_ids"], back["labels"]) == (columns["input_ids"], columns["input_ids"])


def test_the_log_of_a_corpus(small_prior: toedit.Prior) -> None:
    columns = make_rows(np.random.default_rng(4), small_prior, *range(20))
    editor = toedit.Editor(small_prior, Policy(bands=(Band(0.9), Band(0.0, 0.9, action="drop")), exclude_original=True))
    corpus = pa.table(columns)
    logs, parts = [], []
    for first in range(0, 20, 6):
        edited = editor(corpus.slice(first, 6))
        parts.append(edited.batch)
        logs.append(shift(edited.log, first))
    log, whole = pa.concat_tables(logs), pa.concat_tables(parts)
    assert log.equals(pa.table(editor(corpus).log))
    assert toedit.apply_log(corpus, log)["input_ids"].equals(whole["input_ids"])
    assert toedit.revert_log(whole, log)["input_ids"].equals(corpus["input_ids"])
    for start, stop in ((0, 5), (5, 18), (18, 20)):
        part = select(log, start, stop)
        assert part.schema.equals(SCHEMA)
        again = toedit.apply_log(corpus.slice(start, stop - start), part)
        assert again["input_ids"].equals(whole["input_ids"].slice(start, stop - start))


def test_a_log_without_rows(small_prior: toedit.Prior, columns: Columns) -> None:
    nothing = toedit.Editor(small_prior, RESAMPLE)({"input_ids": [], "scores": []})
    assert nothing.log.schema.equals(SCHEMA)
    assert nothing.log.num_rows == 0
    assert toedit.apply_log({"input_ids": columns["input_ids"]}, nothing.log) == {"input_ids": columns["input_ids"]}
    assert toedit.revert_log([], nothing.log) == []


# Refused


def damaged(rng: np.random.Generator, log: pa.Table) -> pa.Table:
    """The log with one value changed, or with a row missing or there twice."""
    n = int(rng.integers(len(log)))
    if rng.integers(6) == 0:
        return pa.concat_tables(
            [log.slice(0, n), log.slice(n + int(rng.choice([1, 0]))) if rng.integers(2) else log.slice(max(n - 1, 0))]
        )
    name = str(
        rng.choice(
            ["row", "position", "old", "new", "generation", "action", "context", "ids_hash", "edited_hash", "edits_hash"]
        )
    )
    values = log[name].to_pylist()
    others = [v for v in values if v != values[n]]
    near = values[n] + 1 if isinstance(values[n], int) and not isinstance(values[n], bool) else None
    options = [v for v in ([others[rng.integers(len(others))]] if others else []) + [near] if v is not None]
    if not options:
        options = [not values[n]] if name == "context" else [values[n]]
    values[n] = options[rng.integers(len(options))]
    at = log.schema.get_field_index(name)
    return log.set_column(at, log.schema.field(at), pa.array(values, log.schema.field(at).type))


def test_a_damaged_log_is_refused_or_gives_the_truth(small_prior: toedit.Prior) -> None:
    rng = np.random.default_rng(23)
    columns = make_rows(rng, small_prior, 12, 7, 0, 20)
    batch = {"input_ids": columns["input_ids"], "labels": columns["input_ids"]}
    edited = toedit.Editor(small_prior, MIXED)(columns | batch)
    log = pa.table(edited.log)
    refused = 0
    for _ in range(400):
        spoilt = damaged(rng, log)
        for replay, before, after in ((toedit.apply_log, batch, edited.batch), (toedit.revert_log, edited.batch, batch)):
            try:
                result = replay({name: before[name] for name in ("input_ids", "labels")}, spoilt)
            except toedit.InputError:
                refused += 1
            else:
                assert all(result[name] == after[name] for name in ("input_ids", "labels"))
    assert refused > 600


def test_what_is_refused_says_why(small_prior: toedit.Prior, columns: Columns) -> None:
    rows = columns["input_ids"]
    edited = toedit.Editor(small_prior, MIXED, key="id", offset="at")(
        columns | {"labels": rows, "id": list("abcde"), "at": [5, 0, 0, 0, 0]}
    )
    log = edited.log

    def refuses(call: Callable[[], Any], message: str) -> None:
        with pytest.raises(toedit.InputError, match=message):
            call()

    batch = {"input_ids": rows, "id": list("abcde"), "at": [5, 0, 0, 0, 0]}
    assert toedit.apply_log(batch, log, key="id", offset="at")["input_ids"] == edited["input_ids"]
    refuses(lambda: toedit.apply_log(batch, log, offset="at", key="at"), 'row 0: the log\'s key is "a", but the row\'s is "5"')
    refuses(lambda: toedit.apply_log(batch, log, offset="no"), "no column 'no', which is to be its offset")
    refuses(lambda: toedit.apply_log(batch | {"at": [9, 0, 0, 0, 0]}, log, offset="at"), "row 0")
    refuses(lambda: toedit.apply_log(batch, log), r"row 0, generation 0: the log's \w+ is")
    refuses(lambda: toedit.apply_log({"ids": rows}, log), "no column 'input_ids'")
    refuses(lambda: toedit.apply_log(batch, log, labels="new"), 'labels is "new"; it must be "edited" or "original"')
    refuses(lambda: toedit.apply_log({"input_ids": rows[:2]}, log, offset=None), "the log has row 4, but the batch has 2 rows")
    refuses(lambda: toedit.revert_log(batch, log, offset="at"), "they are not edited, or are reverted already")
    refuses(
        lambda: toedit.revert_log(
            {**edited.batch, "mine": [["x"] * len(row) for row in edited["input_ids"]]}, log, offset="at"
        ),
        "column 'mine' has a value for each token, but the log has none for tokens that come back; take the column out",
    )
    refuses(lambda: toedit.apply_log(batch, 7), "the log is a int; it must be Arrow data with the columns of toedit.log.SCHEMA")
    refuses(lambda: toedit.apply_log(batch, pa.table({"row": [1]})), "the log has no column 'position'")
    text = pa.table(log).set_column(0, "row", pa.array(["x"] * len(log)))
    refuses(lambda: toedit.apply_log(batch, text), "the log's column 'row' is string; it must be int64")
    other = [list(row) for row in rows]
    other[3][0] += 1
    refuses(
        lambda: toedit.apply_log(batch | {"input_ids": other}, log, offset="at"),
        r"row 3, generation 0: the log's ids_hash is \w+, but these ids have",
    )
    shifted = {"input_ids": rows, "labels": [[*row[1:], -100][: len(row)] for row in rows], "at": [5, 0, 0, 0, 0]}
    refuses(lambda: toedit.apply_log(shifted, log, offset="at"), "labels must be the ids themselves or -100")
