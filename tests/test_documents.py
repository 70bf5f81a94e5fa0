"""Long documents, packed rows, and the settings that decide how they are read."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import helpers
import toedit

Rows = list[list[int]]


@pytest.fixture(scope="module")
def long_row(rows: Rows) -> list[int]:
    """2,000 tokens of real text in one row."""
    row = [token for row in rows for token in row if token != 0][:2000]
    assert len(row) == 2000
    return row


def logp(scores: pa.StructArray, row: int = 0) -> list[float | None]:
    values: list[float | None] = scores.field("logp")[row].as_py()
    return values


def test_every_token_of_a_long_document_is_scored_with_its_context(prior: toedit.Prior, long_row: list[int]) -> None:
    whole = prior.score([long_row], keep=[(0.0, 1.0)], k=2)[0].as_py()
    assert None not in whole["logp"]
    assert whole["topk_pos"] == list(range(2000))
    # The second window begins with the BOS id and 256 tokens of context, and adds 256.
    assert whole["logp"][:512] == logp(prior.score([long_row[:512]]))
    second = prior.score([long_row[256:768]], keep=[(0.0, 1.0)], k=2)[0].as_py()
    assert whole["logp"][512:768] == second["logp"][256:]
    assert whole["topk_ids"][1024:1536] == second["topk_ids"][512:]


def test_min_context_changes_scores_only_behind_the_first_window(prior: toedit.Prior, long_row: list[int]) -> None:
    usual = logp(prior.score([long_row]))
    with toedit.Prior.builtin(min_context=32) as other:
        short = logp(other.score([long_row]))
        assert short[:512] == usual[:512]
        assert short[512:] != usual[512:]
        # More context is better on text.
        assert np.mean([v or 0 for v in short]) < np.mean([v or 0 for v in usual])
        assert other.fingerprint != prior.fingerprint


def test_scores_of_another_reading_are_refused_and_the_part_is_named(prior: toedit.Prior, long_row: list[int]) -> None:
    with toedit.Prior.builtin(min_context=32) as other:
        scores = other.score([long_row])
    with pytest.raises(toedit.ScoresError, match=r"they differ in reading\)"):
        toedit.Editor(prior)({"input_ids": [long_row], "scores": scores})


def test_without_windows_the_rest_is_passed_through_and_counted(long_row: list[int]) -> None:
    with toedit.Prior.builtin(windows="off") as off:
        scores = off.score([long_row])
        assert scores.field("logp").flatten().null_count == 2000 - 512
        edited = toedit.Editor(off)({"input_ids": [long_row], "scores": scores})
        assert edited.counts.unscored == 2000 - 512
        assert edited.counts.overlong_rows == 1


@pytest.mark.parametrize("form", ["document_ids", "position_ids", "seq_lengths", "split_after"])
@pytest.mark.parametrize("container", ["lists", "numpy", "torch", "arrow", "polars"])
def test_a_packed_row_has_the_scores_of_its_documents(prior: toedit.Prior, rows: Rows, form: str, container: str) -> None:
    documents = [[token for token in row if token != 0][:n] for row, n in zip(rows[:3], (40, 7, 20), strict=True)]
    end = 4000
    assert all(end not in document for document in documents)
    documents = [[*document, end] for document in documents]
    packed = [token for document in documents for token in document]
    values: dict[str, list[int]] = {
        "document_ids": [i for i, document in enumerate(documents) for _ in document],
        "position_ids": [i for document in documents for i in range(len(document))],
        "seq_lengths": [len(document) for document in documents],
    }
    columns: dict[str, Any] = {"input_ids": [packed]} | ({form: [values[form]]} if form in values else {})
    batch: Any = {
        "lists": lambda: columns,
        "numpy": lambda: {name: np.array(c) for name, c in columns.items()},
        "torch": lambda: {name: pytest.importorskip("torch").tensor(c) for name, c in columns.items()},
        "arrow": lambda: pa.table(columns),
        "polars": lambda: pytest.importorskip("polars").DataFrame(columns),
    }[container]()
    got = prior.score(batch, split_after=end if form == "split_after" else None)
    alone = prior.score(documents)
    assert logp(got) == [v for i in range(3) for v in logp(alone, i)]
    assert logp(got) != logp(prior.score([packed]))
    assert got.field("ids_hash").equals(prior.score([packed]).field("ids_hash"))  # still the row's
    with toedit.Prior.builtin(cross_documents=True) as across:
        assert logp(across.score(batch)) == logp(prior.score([packed]))
        assert across.fingerprint != prior.fingerprint


def test_fresh_scores_of_packed_rows_are_those_of_the_column(prior: toedit.Prior, rows: Rows) -> None:
    row = [token for token in rows[0] if token != 0][:60]
    batch = {"input_ids": [row], "seq_lengths": [[20, 40]]}
    policy = toedit.Policy(threshold=0.2, exclude_original=True)
    editor = toedit.Editor(prior, policy, seed=4)
    stored = editor({**batch, "scores": prior.score(batch, keep=policy)})
    fresh = editor(batch)
    assert fresh["input_ids"] == stored["input_ids"] != [row]
    apart = editor([row[:20], row[20:]])
    assert fresh["input_ids"] == [[token for document in apart["input_ids"] for token in document]]
    assert fresh.counts == stored.counts == apart.counts
    assert fresh["seq_lengths"] == [[20, 40]]
    # A prior that reads across documents takes the row for one.
    across = toedit.Editor(toedit.Prior.builtin(cross_documents=True), policy, seed=4)
    assert across(batch)["input_ids"] == across([row])["input_ids"]
    assert across({**batch, "scores": across.prior.score(batch, keep=policy)})["input_ids"] == across([row])["input_ids"]


def test_settings_go_with_the_prior(prior: toedit.Prior) -> None:
    settings: dict[str, Any] = {"min_context": 7, "memory_limit": 10**9, "threads": 1, "device": "cpu", "cross_documents": True}
    one = toedit.Prior.builtin(**settings)
    copy = pickle.loads(pickle.dumps(one))
    assert {name: getattr(copy, name) for name in settings} == settings
    assert copy.fingerprint == one.fingerprint != prior.fingerprint
    assert copy.describe()["min_context"] == 7
    assert repr(copy) == f"Prior({str(prior.path)!r}, min_context=7, cross_documents=True)"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"windows": "sliding"}, "windows is 'sliding'; it must be one of 'rolling', 'lm-eval', 'off'"),
        ({"min_context": 0}, "min_context is 0; it must be an integer of at least 1"),
        ({"min_context": 512}, "min_context is 512; with a context of 512 positions it must be 1 to 511"),
        ({"min_context": 5, "windows": "off"}, "min_context is 5, but belongs to windows='rolling'; leave it out with 'off'"),
        ({"memory_limit": -1}, "memory_limit is -1; it must be an integer of at least 1"),
        ({"device": "gpu"}, "device is 'gpu'; it must be 'cpu', 'cuda', 'cuda:N'"),
        ({"device": 0}, "device is 0; it must be 'cpu'"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(toedit.InputError, match=message):
        toedit.Prior.builtin(**settings).describe()


def test_a_prior_for_the_cpu_is_refused_on_cuda() -> None:
    with pytest.raises(toedit.PriorError, match=r"was exported for the CPU \(int8\) and cannot run on cuda"):
        toedit.Prior.builtin(device="cuda").score([[1, 2]])


def test_a_prior_for_cuda_is_refused_without_its_provider(tmp_path: Path) -> None:
    folder = helpers.builtin_copy(tmp_path / "prior", device="cuda")
    with pytest.raises(toedit.MissingDependencyError, match=r"has no CUDA provider: .*toedit\[cuda\]"):
        toedit.Prior(folder).score([[1, 2]])
    with pytest.raises(toedit.PriorError, match=r"was exported for CUDA .* and cannot run on the CPU; export it again"):
        toedit.Prior(folder, device="cpu").score([[1, 2]])


def test_padding_is_reported(rows: Rows) -> None:
    with toedit.Prior.builtin(threads=1) as prior:
        prior.score([rows[0][:9], rows[1][:8], rows[2][:1]])
        # With the BOS id in front the model reads 9, 8 and 1 positions; the run is padded to 16.
        assert prior.stats() == {"runs": 1, "positions": 18, "padded": 48, "halved": 0, "waited": 0}


def test_a_memory_limit_changes_runs_and_no_score(prior: toedit.Prior, rows: Rows) -> None:
    with warnings.catch_warnings(), toedit.Prior.builtin(memory_limit=1, threads=2) as bound:
        warnings.simplefilter("error")
        assert bound.score(rows[:40]).equals(prior.score(rows[:40]))
        assert bound.stats()["runs"] == sum(1 for row in rows[:40] if row) + 1  # the row of 560 tokens has two windows
