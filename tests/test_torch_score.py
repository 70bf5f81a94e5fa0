"""`toedit.torch.score`: a loaded PyTorch model gives the scores that its prior gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import helpers
import toedit

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from toedit._torch_score import _top  # noqa: E402
from toedit.torch import score  # noqa: E402

Rows = list[list[int]]
WEIGHTS = Path(__file__).parents[1] / "python" / "prior"
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model() -> Any:
    """The bundled prior's weights in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32)


def assert_same(ours: pa.StructArray, theirs: pa.StructArray, low: float) -> None:
    """Equal within the tolerance: ln P everywhere, what is stored but at the border, the top ids but for near ties."""
    assert ours.type == theirs.type == toedit.SCORES_TYPE
    ours.validate(full=True)
    for name in ("k", "ids_hash", "prior"):
        assert ours.field(name).equals(theirs.field(name)), name
    compared = 0
    for a, b in zip(ours.to_pylist(), theirs.to_pylist(), strict=True):
        assert [value is None for value in a["logp"]] == [value is None for value in b["logp"]]
        first, second = (np.array([np.nan if v is None else v for v in row["logp"]]) for row in (a, b))
        assert np.nanmax(np.abs(first - second), initial=0) <= TOLERANCE
        for at in set(a["topk_pos"]) ^ set(b["topk_pos"]):
            assert abs(first[at] - np.log(low)) <= TOLERANCE
        k = a["k"]
        for at in set(a["topk_pos"]) & set(b["topk_pos"]):
            i, j = a["topk_pos"].index(at) * k, b["topk_pos"].index(at) * k
            mine = dict(zip(a["topk_ids"][i : i + k], a["topk_logp"][i : i + k], strict=True))
            other = dict(zip(b["topk_ids"][j : j + k], b["topk_logp"][j : j + k], strict=True))
            for token in mine.keys() ^ other.keys():  # only where the last place is a matter of rounding
                value = mine.get(token, other.get(token))
                assert value == pytest.approx(min(*mine.values(), *other.values()), rel=2**-10, abs=TOLERANCE)
            # Rounded to half precision on both sides, values may lie one step apart.
            assert list(mine.values()) == pytest.approx(list(other.values()), rel=2**-10, abs=TOLERANCE)
            assert next(iter(mine)) == next(iter(other))
            compared += 1
    assert compared > 0


def test_it_gives_the_scores_of_the_exported_prior(model: Any, fp32_prior: toedit.Prior, rows: Rows) -> None:
    some = rows[6:20]  # the empty row, the one that begins with the BOS id and the one beyond the context are among them
    assert max(map(len, some)) > fp32_prior.describe()["context_length"]
    ours = score(model, some, prior=fp32_prior, k=16, keep=[(0.3, 1.0)])
    assert_same(ours, fp32_prior.score(some, k=16, keep=[(0.3, 1.0)]), 0.3)
    # A policy's band and k.
    policy = toedit.Policy(threshold=0.5, k=4)
    assert_same(score(model, some[:3], prior=fp32_prior, keep=policy), fp32_prior.score(some[:3], keep=policy), 0.5)


@pytest.mark.parametrize("windows", ["off", "lm-eval"])
def test_it_reads_long_and_packed_rows_as_the_prior_does(
    model: Any, fp32_prior: toedit.Prior, rows: Rows, windows: str
) -> None:
    long = [token for row in rows for token in row][:700]
    prior = toedit.Prior(fp32_prior.path, windows=windows, threads=1)
    ids = pa.array([long, [7, 8, 9, 0, 7, 8, 9]], pa.list_(pa.int64()))
    packed = {"input_ids": ids, "document_ids": pa.array([[0] * 600 + [1] * 100, [0, 0, 0, 1, 1, 2, 2]])}
    for batch, split in ((ids, None), (packed, None), (ids, 9)):
        ours = score(model, batch, prior=prior, keep=[(0.1, 1.0)], split_after=split)
        assert_same(ours, prior.score(batch, keep=[(0.1, 1.0)], split_after=split), 0.1)


def test_neither_chunks_nor_padding_matter(model: Any, prior: toedit.Prior, rows: Rows) -> None:
    some = [row for row in rows[4:14] if len(row) < 100]
    whole = score(model, some, prior=prior, keep=[(0.3, 1.0)])
    assert_same(score(model, some, prior=prior, keep=[(0.3, 1.0)], batch_tokens=1), whole, 0.3)
    ids, mask = helpers.pad(some, 100, left=True, value=-100)
    assert_same(score(model, {"input_ids": ids, "attention_mask": mask}, prior=prior, keep=[(0.3, 1.0)]), whole, 0.3)
    assert score(model, [], prior=prior).equals(whole.slice(0, 0))


def test_the_head_is_worked_in_slices(model: Any, prior: toedit.Prior, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score(model, rows[:4], prior=prior, keep=[(0.0, 1.0)])
    monkeypatch.setattr("toedit._torch_score._HEAD_BYTES", 4 * 4096 * 7)
    assert_same(score(model, rows[:4], prior=prior, keep=[(0.0, 1.0)]), whole, 0.0)
    assert whole.field("topk_pos").to_pylist() == [list(range(len(row))) for row in rows[:4]]


def test_the_model_comes_back_as_it_was(model: Any, prior: toedit.Prior) -> None:
    model.train()
    model.model.layers[1].eval()
    before = {name: module.training for name, module in model.named_modules()}
    try:
        with pytest.raises(toedit.InputError):
            score(model, [[1, 5000]], prior=prior)
        first = score(model, [[5, 6, 7]], prior=prior)
        assert {name: module.training for name, module in model.named_modules()} == before
    finally:
        model.eval()
    assert score(model, [[5, 6, 7]], prior=prior).equals(first)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


class Table(torch.nn.Module):  # type: ignore[misc,name-defined]
    """A module of no library: each id has its row of logits for the next."""

    def __init__(self, logits: Any) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, ids: Any) -> Any:
        return self.logits[ids]


def test_any_module_scores_and_ties_go_to_the_lower_id(prior: toedit.Prior) -> None:
    table = torch.zeros(4096, 4096, dtype=torch.bfloat16)  # every id is as likely as every other
    table[5, 9] = 20.0
    column = score(Table(table), [[5, 9, 11]], prior=prior, k=3, keep=[(0.0, 1.0)])
    row = column.to_pylist()[0]
    assert row["logp"] == pytest.approx([-np.log(4096), 0.0, -np.log(4096)], abs=1e-5)
    assert row["topk_ids"] == [0, 1, 2, 9, 0, 1, 0, 1, 2]
    toedit.Editor(prior, toedit.Policy(threshold=0.9, k=3))({"input_ids": [[5, 9, 11]], "scores": column})


def test_tied_last_places_go_to_the_lowest_ids() -> None:
    ids, values = _top(torch.tensor([[0.0, -3.0, -1.0, -1.0, -1.0], [-5.0, -4.0, -3.0, -2.0, -1.0]]), 2)
    assert ids.tolist() == [[0, 2], [4, 3]]
    assert values.tolist() == [[0.0, -1.0], [-1.0, -2.0]]


def test_half_precision_stays_near(model: Any, prior: toedit.Prior, rows: Rows) -> None:
    half = transformers.AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.bfloat16)
    a, b = (score(m, rows[:3], prior=prior).field("logp").flatten().to_numpy(zero_copy_only=False) for m in (half, model))
    assert 0 < np.abs(a - b).mean() < 0.1


@pytest.mark.parametrize(
    ("model_of", "arguments", "message"),
    [
        (
            lambda: Table(torch.zeros(4096, 100)),
            {},
            r"shape \(1, 2\) the model gives \(1, 2, 100\), .* vocabulary has 4096 ids",
        ),
        (lambda: torch.nn.Embedding(4096, 8), {}, r"the model gives \(1, 2, 8\)"),
        (lambda: "gpt2", {}, r"model is a str; it must be a torch\.nn\.Module"),
        (lambda: Table(torch.zeros(4096, 4096)), {"k": 4097}, "k is 4097, but the vocabulary has 4096 ids"),
        (lambda: Table(torch.zeros(4096, 4096)), {"k": 0}, "k is 0; it must be at least 1"),
        (lambda: Table(torch.zeros(4096, 4096)), {"batch_tokens": 0}, "batch_tokens is 0; it must be an integer of at least 1"),
        (lambda: Table(torch.zeros(4096, 4096)), {"keep": [(0.9, 2)]}, "is not a range of P"),
        (lambda: Table(torch.zeros(4096, 4096)), {"prior": None}, r"prior is a NoneType; it must be the toedit\.Prior"),
    ],
)
def test_bad_input_is_one_clear_error(prior: toedit.Prior, model_of: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(toedit.InputError, match=message):
        score(model_of(), [[5, 6]], **{"prior": prior, **arguments})


def test_a_damaged_model_is_an_error_that_names_the_token(prior: toedit.Prior) -> None:
    table = torch.zeros(4096, 4096)
    table[6, 1] = torch.nan
    with pytest.raises(toedit.ScoringError, match="row 1: the model gives NaN at position 2; it is damaged"):
        score(Table(table), [[5, 5], [5, 6, 7]], prior=prior)
