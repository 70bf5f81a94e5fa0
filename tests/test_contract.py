"""The contracts as a user meets them: edits are the reference's draw for draw, and neither edits nor scores depend on
anything but what they may depend on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

import helpers
import oracle
import toedit
from test_oracle import EXAMPLES, stored

Rows = list[list[int]]


def arrow_batch(
    rows: Sequence[Sequence[int]], scores: pa.Array, dtype: pa.DataType | None = None, **columns: Any
) -> dict[str, Any]:
    return {"input_ids": pa.array(rows, pa.list_(dtype or pa.int64())), "scores": scores, **columns}


# Edits are the reference's


def random_policy(rng: np.random.Generator, vocab: int, logp: npt.NDArray[np.float64]) -> toedit.Policy:
    """Any policy: extreme temperatures and thresholds on the edge of a stored score are as likely as ordinary ones."""
    thresholds = [
        0.3,
        0.9,
        0.99,
        1.0,
        float(rng.uniform(0.3, 1.0)),
        edge(float(rng.choice(logp)), step=int(rng.integers(-1, 2))),
    ]
    temperatures = [1.0, 1.5, 1e-300, 1e-6, 0.004, 0.01, 300.0, 1e300, float(rng.uniform(0.1, 5.0))]
    return toedit.Policy(
        threshold=thresholds[rng.integers(len(thresholds))],
        k=int(rng.choice([1, 2, 3, 7, 8, 8, 8])),
        temperature=temperatures[rng.integers(len(temperatures))],
        exclude_original=bool(rng.integers(2)),
        protect_special=bool(rng.integers(4)),
        protected_ids=tuple(rng.integers(0, vocab, size=rng.integers(0, 200)).tolist()),
    )


def one_of(rng: np.random.Generator, *choices: Any) -> Any:
    return choices[rng.integers(len(choices))]


def edge(logp: float, step: int = 0) -> float:
    """A threshold whose ln is a stored ln P, or misses it by the last bits: below it (step -1) or above (step 1)."""
    threshold = math.exp(logp)
    if step:
        threshold = math.nextafter(threshold, 0.0 if step < 0 else 1.0)
    # Only where the platform's ln is the nearest float64: the last bit would be the library's, not the contract's.
    with localcontext() as context:
        context.prec = 60
        exact = float(Decimal(threshold).ln())
    return threshold if 0.3 <= threshold <= 1.0 and exact == math.log(threshold) else 0.5


def random_columns(rng: np.random.Generator, rows: Rows) -> tuple[Rows, dict[str, Any], dict[str, Any]]:
    """The rows, perhaps padded, with any of the columns that editing reads: as Arrow, and as the reference takes them."""
    arrow: dict[str, Any] = {}
    reference: dict[str, Any] = {}
    kind = rng.integers(3)
    if kind == 1:
        keys: list[Any] = ["", "é", "doc", "another document", "\U0001f600" * 9][: len(rows)]
        reference["keys"] = keys
        arrow["doc"] = pa.array(keys)
    elif kind == 2:
        numbers = rng.integers(-(2**63), 2**63 - 1, size=len(rows), endpoint=True, dtype=np.int64)
        reference["keys"] = numbers.tolist()
        arrow["doc"] = pa.array(numbers)
    if rng.integers(2):
        offsets = rng.choice([0, 1, 511, 2**31, 2**62], size=len(rows)).tolist()
        reference["offsets"] = offsets
        arrow["start"] = pa.array(offsets, one_of(rng, pa.int64(), pa.uint64()))
    batch = rows
    if rng.integers(2):
        sides = [bool(b) for b in rng.integers(2, size=len(rows))]
        batch, mask = helpers.pad(rows, max(map(len, rows)) + 3, left=sides, value=int(rng.integers(3)))
        reference["attention_mask"] = mask
        arrow["attention_mask"] = pa.array(mask).cast(one_of(rng, pa.list_(pa.int64()), pa.large_list(pa.bool_())))
    marks: list[list[bool]] | None = None
    for name in ("special_tokens_mask", "protected_mask"):
        if rng.integers(3) == 0:
            drawn = [(rng.random(len(row)) < 0.2).tolist() for row in batch]
            arrow[name] = pa.array(drawn).cast(one_of(rng, pa.list_(pa.uint8()), pa.list_(pa.bool_())))
            marks = drawn if marks is None else [
                [a or b for a, b in zip(m, d, strict=True)] for m, d in zip(marks, drawn, strict=True)
            ]  # fmt: skip
    reference["protected_mask"] = marks
    if rng.integers(2):
        labels = [np.where(rng.random(len(row)) < 0.3, -100, row).astype(np.int64) for row in batch]
        for padded, mask_row in zip(labels, reference.get("attention_mask", []), strict=False):
            padded[np.array(mask_row) == 0] = -100
        reference["labels"] = labels
        arrow["labels"] = pa.array(labels, pa.list_(one_of(rng, pa.int32(), pa.int64())))
    return batch, arrow, reference


@pytest.mark.parametrize("case", range(60))
def test_edits_are_the_references(small_prior: toedit.Prior, case: int) -> None:
    rng = np.random.default_rng([1, case])
    rows = [rng.integers(0, 512, size=n).tolist() for n in (rng.integers(1, 90), 1, 0, 64, rng.integers(60, 200))]
    scores = [oracle.make_scores(rng, row, 512, 8, 0.3, small_prior.fingerprint) for row in rows]
    for row in scores:  # tokens that were not scored stand anywhere, also where there is a top-k
        row["logp"] = [None if rng.random() < 0.05 else v for v in row["logp"]]
    known: npt.NDArray[np.float64] = np.array([v for row in scores for v in row["logp"] if v is not None])
    policy = random_policy(rng, 512, known[known > math.log(0.3)])
    batch, columns, reference = random_columns(rng, rows)
    dtype = one_of(rng, pa.int32(), pa.int64(), pa.uint16(), pa.uint32())

    editor = toedit.Editor(
        small_prior,
        policy,
        seed=int(rng.integers(0, 2**64 - 1, endpoint=True, dtype=np.uint64)),
        key="doc" if "doc" in columns else None,
        offset="start" if "start" in columns else None,
    )
    epoch = one_of(rng, 0, 1, 2**32 - 1, int(rng.integers(2**32)))
    edited = editor(arrow_batch(batch, oracle.scores_to_arrow(scores), dtype, **columns), epoch=epoch)
    expected = helpers.reference(editor, batch, scores, epoch, **reference)
    helpers.assert_edits_equal(edited, expected, reference.get("offsets"))
    if "labels" in columns:
        after = np.concatenate([np.array(row) for row in edited["labels"].to_pylist()])
        before = np.concatenate(reference["labels"])
        ids = np.concatenate([np.array(row) for row in expected["ids"]])
        assert (after == np.where(before == -100, -100, ids)).all()


def test_random_policies_meet_every_case() -> None:
    """The cases above do cover what they say: thresholds on and on both sides of a score, extreme temperatures."""
    rng = np.random.default_rng(3)
    logps = np.log(rng.uniform(0.3, 1, 200)).astype(np.float32).astype(np.float64)
    for step in (-1, 0, 1):
        distances = {float(v) - math.log(edge(float(v), step)) for v in logps}
        if step == 0:
            assert 0.0 in distances
        assert any(0 < -step * d < 1e-15 for d in distances) or step == 0
    policies = [random_policy(rng, 512, logps) for _ in range(100)]
    assert {p.exclude_original for p in policies} == {p.protect_special for p in policies} == {True, False}
    assert min(p.temperature for p in policies) < 1e-100 < 1e100 < max(p.temperature for p in policies)


def test_a_token_exactly_at_the_threshold_is_a_candidate(small_prior: toedit.Prior) -> None:
    rng = np.random.default_rng(7)
    ids = rng.integers(3, 500, size=120).tolist()
    scores = oracle.make_scores(rng, ids, 512, 8, 0.3, small_prior.fingerprint)
    batch = arrow_batch([ids], oracle.scores_to_arrow([scores]))
    known = [v for v in scores["logp"] if v is not None and v > math.log(0.3)]
    exact = [v for v in known if math.log(edge(v)) == v]
    assert len(exact) > 3
    for logp in exact:
        at, above = toedit.Policy(threshold=edge(logp)), toedit.Policy(threshold=math.nextafter(edge(logp), 1.0))
        counts = [toedit.Editor(small_prior, policy).edit(batch).candidates for policy in (at, above)]
        assert counts == [sum(v >= logp for v in known), sum(v > logp for v in known)]
    # At a threshold of 1 only certainty is a candidate, and a negative zero is certainty.
    row = stored([40] * 3, [0.0, -0.0, -1e-45], {i: [(41, -1.0)] for i in range(3)})
    edited = toedit.Editor(small_prior, toedit.Policy(threshold=1.0, k=1))(
        arrow_batch([[40] * 3], oracle.scores_to_arrow([{**row, "prior": small_prior.fingerprint}]))
    )
    assert (edited.candidates, edited["input_ids"].to_pylist()) == (2, [[41, 41, 40]])


def test_100_000_tokens(prior: toedit.Prior) -> None:
    rng = np.random.default_rng(5)
    rows = [rng.integers(0, 4096, size=2000).tolist() for _ in range(50)]
    scores = [oracle.make_scores(rng, row, 4096, 8, 0.7, prior.fingerprint) for row in rows]
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.7, temperature=1.5), seed=2**64 - 1)
    edited = editor(arrow_batch(rows, oracle.scores_to_arrow(scores)), epoch=9)
    helpers.assert_edits_equal(edited, helpers.reference(editor, rows, scores, 9))
    assert edited.counts.tokens == 100_000
    assert edited.changes > 3000


@pytest.mark.parametrize(
    "policy",
    [
        toedit.Policy(),
        toedit.Policy(threshold=0.9, exclude_original=True),
        toedit.Policy(threshold=0.3, k=16, temperature=1.5),
        toedit.Policy(threshold=0.5, k=3, temperature=0.05, protected_ids=tuple(range(0, 4096, 3))),
        toedit.Policy(threshold=0.3, k=1, exclude_original=True, protect_special=False),
    ],
)
def test_edits_from_real_scores_are_the_references(
    prior: toedit.Prior, rows: Rows, scores: pa.StructArray, policy: toedit.Policy
) -> None:
    editor = toedit.Editor(prior, policy, seed=17)
    for epoch in (0, 3):
        edited = editor.edit(arrow_batch(rows, scores), epoch)
        helpers.assert_edits_equal(edited, helpers.reference(editor, rows, helpers.scores_of(scores), epoch))
    assert edited.candidates > 0


@pytest.mark.parametrize("name", EXAMPLES)
def test_worked_examples(name: str, tmp_path: Path) -> None:
    """The three draws that the README works out by hand."""
    example = EXAMPLES[name]
    context = dict(example.context)
    prior = helpers.editing_prior(
        tmp_path / "prior",
        vocab_size=4096,
        tokenizer_size=context["tokenizer_size"],
        special_ids=context["special_ids"],
    )
    row = stored(example.ids, example.logp, example.top)
    scores = oracle.scores_to_arrow([{**row, "prior": prior.fingerprint}])
    columns = {name: [context[name]] for name in ("key", "offset") if name in context}
    policy = toedit.Policy(**vars(example.policy))
    names = {name: name for name in columns}
    edited = toedit.Editor(prior, policy, seed=context["seed"], **names)(
        arrow_batch([example.ids], scores, **columns), epoch=context["epoch"]
    )
    (position,) = example.top
    assert edited["input_ids"][0].as_py()[position] == example.drawn
    assert edited.candidates == 1
    assert edited.changes == int(example.drawn != example.ids[position])
    assert edited.expected_changes == pytest.approx(1.0 - example.keep, rel=1e-12)
    assert [change["position"] for change in edited.log.to_pylist()] == (
        [position + context.get("offset", 0)] if edited.changes else []
    )


def test_a_chunk_with_key_and_offset_gets_the_edits_of_the_whole_document(small_prior: toedit.Prior) -> None:
    rng = np.random.default_rng(6)
    ids = rng.integers(0, 512, size=700).tolist()
    whole = oracle.make_scores(rng, ids, 512, 8, 0.5, small_prior.fingerprint)
    editor = toedit.Editor(small_prior, toedit.Policy(threshold=0.5, temperature=2), seed=4, key="doc", offset="at")
    expected = editor({"input_ids": [ids], "scores": oracle.scores_to_arrow([whole]), "doc": ["a"], "at": [0]})
    chunks, pieces, cuts = [], [], [0, 1, 230, 512, 700]
    for start, stop in pairwise(cuts):
        inside = (whole["topk_pos"] >= start) & (whole["topk_pos"] < stop)
        chunks.append(
            whole
            | {
                "logp": whole["logp"][start:stop],
                "topk_pos": whole["topk_pos"][inside] - start,
                "topk_ids": whole["topk_ids"].reshape(-1, 8)[inside].reshape(-1),
                "topk_logp": whole["topk_logp"].reshape(-1, 8)[inside].reshape(-1),
                "ids_hash": oracle.document_hash(ids[start:stop])[0],
            }
        )
        pieces.append(ids[start:stop])
    edited = editor({"input_ids": pieces, "scores": oracle.scores_to_arrow(chunks), "doc": ["a"] * 4, "at": cuts[:-1]})
    assert [token for piece in edited["input_ids"] for token in piece] == expected["input_ids"][0]
    assert edited.log["position"].to_pylist() == expected.log["position"].to_pylist()
    assert edited.changes == expected.changes > 50


# Edits do not change from release to release

GOLDENS = sorted((Path(__file__).parent / "goldens").glob("edits_*.json"))


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_goldens(path: Path, tmp_path: Path) -> None:
    """Edits written down once (tests/make_goldens.py). The files are never changed: seeds that users stored would then
    give other data."""
    golden = json.loads(path.read_text())
    prior = helpers.editing_prior(tmp_path / "prior", **golden["prior"])
    scores = [{**row, "prior": prior.fingerprint} for row in golden["scores"]]
    assert len(golden["cases"]) >= 8
    for case in golden["cases"]:
        policy = helpers.policy_of(case["policy"])
        columns = {name: case[name + "s"] for name in ("key", "offset") if name + "s" in case}
        editor = toedit.Editor(prior, policy, seed=case["seed"], **{name: name for name in columns})
        edited = editor.edit(
            {"input_ids": golden["input_ids"], "scores": oracle.scores_to_arrow(scores), **columns}, case["epoch"]
        )
        edits = helpers.edits_of(edited)
        assert edits == case["edits"]
        assert edited.candidates == case["candidates"]
        assert edited.expected_changes == pytest.approx(case["expected_changes"], rel=1e-12)
        ids = [list(row) for row in golden["input_ids"]]
        starts = case.get("offsets", [0] * len(ids))
        for row, position, old, new in edits:
            assert ids[row][position - starts[row]] == old
            ids[row][position - starts[row]] = new
        assert edited["input_ids"] == [[token for token in row if token != -1] for row in ids]


def test_there_are_goldens() -> None:
    assert GOLDENS


# A document's scores depend on its ids and the prior alone


@pytest.fixture(scope="module", params=["int8", "fp32"])
def any_prior(request: pytest.FixtureRequest) -> toedit.Prior:
    prior: toedit.Prior = request.getfixturevalue("prior" if request.param == "int8" else "fp32_prior")
    assert prior.describe()["dtype"] == request.param
    return prior


@pytest.fixture(scope="module")
def some_rows(rows: Rows) -> Rows:
    """2,500 tokens: short rows, long rows, and the special ones."""
    short = rows[:14] + rows[15:]
    chosen, total = [], 0
    for row in short:
        if total + len(row) <= 1900:
            chosen.append(row)
            total += len(row)
    return [*chosen, rows[14]]


@pytest.fixture(scope="module")
def one_by_one(any_prior: toedit.Prior, some_rows: Rows) -> pa.StructArray:
    """Each row's scores when it is scored alone."""
    return pa.concat_arrays([score(any_prior, [row]) for row in some_rows])


def score(prior: toedit.Prior, batch: Any) -> pa.StructArray:
    return prior.score(batch, k=8, keep=[(0.5, 1.0)])


def in_sevens(prior: toedit.Prior, rows: Rows) -> pa.StructArray:
    return pa.concat_arrays([score(prior, rows[i : i + 7]) for i in range(0, len(rows), 7)])


def all_at_once(prior: toedit.Prior, rows: Rows) -> pa.StructArray:
    return score(prior, rows)


def shuffled(prior: toedit.Prior, rows: Rows) -> pa.StructArray:
    order = np.random.default_rng(8).permutation(len(rows))
    return score(prior, [rows[i] for i in order]).take(pa.array(np.argsort(order)))


def padded_left(prior: toedit.Prior, rows: Rows) -> pa.StructArray:
    ids, mask = helpers.pad(rows, 563, left=True, value=7)
    return score(prior, {"input_ids": np.array(ids), "attention_mask": np.array(mask)})


def padded_right(prior: toedit.Prior, rows: Rows) -> pa.StructArray:
    ids, mask = helpers.pad(rows, 560, value=-100)
    return score(prior, {"input_ids": ids, "attention_mask": mask})


def with_one_thread(prior: toedit.Prior, rows: Rows) -> pa.StructArray:
    with toedit.Prior(prior.path, threads=1) as single:
        return score(single, rows)


@pytest.mark.parametrize("way", [in_sevens, all_at_once, shuffled, padded_left, padded_right, with_one_thread])
def test_scores_do_not_depend_on_the_batch(
    any_prior: toedit.Prior,
    some_rows: Rows,
    one_by_one: pa.StructArray,
    way: Callable[[toedit.Prior, Rows], pa.StructArray],
) -> None:
    scores = way(any_prior, some_rows)
    assert scores.equals(one_by_one)
    assert len(scores.field("topk_pos").flatten()) > 100


def test_edits_do_not_depend_on_the_batch(any_prior: toedit.Prior, some_rows: Rows, one_by_one: pa.StructArray) -> None:
    """From stored scores and from fresh ones, in batches of 1, 7 and all, in another order, padded or not."""
    policy = toedit.Policy(threshold=0.9, exclude_original=True)
    editor = toedit.Editor(any_prior, policy, seed=3)
    fresh = editor(some_rows, epoch=2)
    assert fresh.changes > 20
    expected = fresh["input_ids"]
    for size in (1, 7, 64):
        pieces = range(0, len(some_rows), size)
        stored = [editor({"input_ids": some_rows[i : i + size], "scores": one_by_one.slice(i, size)}, epoch=2) for i in pieces]
        assert [row for edited in stored for row in edited["input_ids"]] == expected
        assert sum(edited.changes for edited in stored) == fresh.changes
    order = np.random.default_rng(9).permutation(len(some_rows))
    moved = editor({"input_ids": [some_rows[i] for i in order], "scores": one_by_one.take(pa.array(order))}, epoch=2)
    assert [moved["input_ids"][i] for i in np.argsort(order)] == expected
    for left in (False, True):
        ids, mask = helpers.pad(some_rows, 600, left=left)
        padded = editor({"input_ids": ids, "attention_mask": mask, "scores": one_by_one}, epoch=2)
        assert padded["input_ids"] == helpers.pad(expected, 600, left=left)[0]


# Scores are the model's


@pytest.fixture(scope="module")
def torch_logprobs(rows: Rows, fp32_prior: toedit.Prior) -> list[npt.NDArray[np.float32]]:
    """torch's ln P of every id at every position of some rows, with the weights that `fp32_prior` was exported from."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    weights = Path(__file__).parents[1] / "python" / "prior"
    model = transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()
    result = []
    with torch.inference_mode():
        for row in rows_for_torch(rows):
            with_bos = row if row[0] == 0 else [0, *row]
            logits = model(torch.tensor([with_bos[:-1]])).logits[0]
            result.append(torch.log_softmax(logits.double(), -1).numpy())
    return result


def rows_for_torch(rows: Rows) -> Rows:
    return [row for row in rows if 1 < len(row) < 512][:20]


def test_scores_are_torchs(fp32_prior: toedit.Prior, rows: Rows, torch_logprobs: list[npt.NDArray[np.float32]]) -> None:
    chosen = rows_for_torch(rows)
    scores = fp32_prior.score(chosen, k=8, keep=[(0.0, 1.0)]).to_pylist()
    assert any(row[0] == 0 for row in chosen)
    for row, got, logprobs in zip(chosen, scores, torch_logprobs, strict=True):
        first = 1 if row[0] == 0 else 0  # the BOS id itself is never scored
        assert got["logp"][:first] == [None] * first
        want = logprobs[np.arange(len(logprobs)), row[first:]]
        assert np.abs(np.array(got["logp"][first:]) - want).max() <= 1e-4
        assert got["topk_pos"] == list(range(first, len(row)))
        top = np.array(got["topk_ids"]).reshape(-1, 8)
        best = -np.sort(-logprobs, axis=1)[:, :8]
        # Equal ids, but where two are as probable to within the difference of float32 sums.
        assert np.abs(np.take_along_axis(logprobs, top, 1) - best).max() <= 1e-4
        assert (top == np.argsort(-logprobs, axis=1)[:, :8]).mean() > 0.999
        stored_logp = np.array(got["topk_logp"]).reshape(-1, 8)
        assert (np.abs(stored_logp - best) <= 1e-4 + 2.0**-11 * np.abs(best)).all()


def test_int8_scores_are_near_torchs(prior: toedit.Prior, rows: Rows, torch_logprobs: list[npt.NDArray[np.float32]]) -> None:
    chosen = rows_for_torch(rows)
    scores = prior.score(chosen, keep=[]).to_pylist()
    differences = []
    for row, got, logprobs in zip(chosen, scores, torch_logprobs, strict=True):
        first = 1 if row[0] == 0 else 0
        differences.append(np.array(got["logp"][first:]) - logprobs[np.arange(len(logprobs)), row[first:]])
    # Measured 0.03 over 30,000 tokens; quantisation that depended on the batch measured 0.044.
    assert np.abs(np.concatenate(differences)).mean() < 0.04


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "weights", "mean"),
    [
        ("ckpt_stories260K", "stories260K.bin", 1.3069),
        ("ckpt_llama2xs", "model.bin", 1.9623),
        ("ckpt_babyllama105", "model5000.bin", 0.6150),
    ],
)
def test_scores_are_those_of_an_evaluator_in_c(shared_data: Path, tmp_path: Path, name: str, weights: str, mean: float) -> None:
    """Checkpoints that nobody on this project made: ln P of 40 stories, computed elsewhere with float64 sums."""
    helpers.need_exporter()
    from llama2c import read_llama2c, tinystories, word_tokenizer
    from toedit.export import export

    model = read_llama2c(shared_data / name / weights)
    folder = export(model, tmp_path / "prior", tokenizer=word_tokenizer(model.config.vocab_size), bos="always")
    rows = tinystories(shared_data, name)
    with toedit.Prior(folder, threads=2) as prior:
        scores = prior.score(rows, keep=[]).field("logp").to_pylist()
    assert {row[0] for row in rows} == {1}
    assert [row[0] for row in scores] == [None] * 40  # BOS itself is never scored
    assert -np.mean([v for row in scores for v in row[1:]]) == pytest.approx(mean, abs=6e-5)
    golden = shared_data / name / "golden_logprobs_tinystories40.txt"
    if golden.exists():  # token by token
        for row, logp, line in zip(rows, scores, golden.read_text().splitlines()[:40], strict=True):
            pairs = [pair.split(":") for pair in line.split()]
            assert [int(token) for token, _ in pairs] == row[1 : 1 + len(pairs)]
            np.testing.assert_allclose(logp[1 : 1 + len(pairs)], [float(v) for _, v in pairs], atol=1e-4, rtol=0)


# The stored form of scores


def test_scores_have_the_contracts_form(prior: toedit.Prior, rows: Rows, scores: pa.StructArray) -> None:
    assert scores.type.equals(oracle.SCORES_TYPE)
    assert scores.type == toedit.SCORES_TYPE
    scores.validate(full=True)
    assert scores.null_count == 0
    not_first = 0
    for row, got in zip(rows, scores.to_pylist(), strict=True):
        assert len(got["logp"]) == len(row)
        unscored = {0} if row[:1] == [0] else set()
        assert {i for i, v in enumerate(got["logp"]) if v is None} == unscored
        assert all(v <= 0 for v in got["logp"] if v is not None)
        kept = [i for i, v in enumerate(got["logp"]) if v is not None and v >= math.log(0.3)]
        assert got["topk_pos"] == kept
        assert got["k"] == 16
        assert got["ids_hash"] == oracle.document_hash(row)[0]
        assert got["prior"] == prior.fingerprint
        top = np.array(got["topk_ids"]).reshape(-1, 16)
        values = np.array(got["topk_logp"], np.float32).reshape(-1, 16)
        assert len(top) == len(values) == len(kept)
        assert (values == oracle.to_float16(values)).all()
        assert (np.diff(values, axis=1) <= 0).all()
        assert all(len(set(choices)) == 16 for choices in top.tolist())
        assert ((top >= 0) & (top < 4096)).all()
        for n, i in enumerate(kept):
            (at,) = np.flatnonzero(top[n] == row[i])
            own = got["logp"][i]
            assert values[n, at] == oracle.to_float16(np.array([own]))[0]
            not_first += int(at > 0)
    assert not_first > 0  # the token that stands there is not always the most probable one


@pytest.mark.parametrize(
    "ranges", [[], [(0.99, 1.0)], [(0.0, 0.001), (0.5, 0.75)], [(0.2, 0.6), (0.4, 0.8)], [(1.0, 1.0)], [(0.0, 1.0)]]
)
def test_keep_says_where_the_top_k_is_stored(
    prior: toedit.Prior, rows: Rows, scores: pa.StructArray, ranges: list[tuple[float, float]]
) -> None:
    some = [n for n, row in enumerate(rows) if len(row) <= 40]
    got = prior.score([rows[n] for n in some], k=3, keep=ranges)
    assert got.field("logp").equals(scores.field("logp").take(pa.array(some)))
    bounds = [(math.log(low) if low else -math.inf, math.log(high) if high else -math.inf) for low, high in ranges]
    for row in got.to_pylist():
        wanted = [i for i, v in enumerate(row["logp"]) if v is not None and any(low <= v <= high for low, high in bounds)]
        assert row["topk_pos"] == wanted
        assert len(row["topk_ids"]) == len(row["topk_logp"]) == 3 * len(wanted)


def test_keep_by_policy_and_by_default(prior: toedit.Prior, rows: Rows) -> None:
    some = rows[:3]
    policy = toedit.Policy(threshold=0.6, k=5)
    assert prior.score(some, keep=policy).equals(prior.score(some, k=5, keep=[(0.6, 1.0)]))
    assert prior.score(some, k=9, keep=policy).equals(prior.score(some, k=9, keep=[(0.6, 1.0)]))
    assert prior.score(some).equals(prior.score(some, k=8, keep=[(0.9, 1.0)]))


def test_a_threshold_on_a_score_keeps_what_it_edits(prior: toedit.Prior, rows: Rows, scores: pa.StructArray) -> None:
    """Scoring and editing agree on which side of a threshold a token is, to the last bit."""
    row, known = rows[1], [v for v in scores[1]["logp"].as_py() if v is not None and v >= math.log(0.3)]
    for n, logp in enumerate(known[:9]):
        policy = toedit.Policy(threshold=edge(logp, step=n % 3 - 1), exclude_original=True)
        edited = toedit.Editor(prior, policy)([row])
        assert edited.candidates == sum(v >= math.log(policy.threshold) for v in known)


def test_an_overlong_rows_beginning_has_the_scores_it_has_alone(rows: Rows) -> None:
    long = rows[14]
    with toedit.Prior.builtin(windows="off") as prior:
        whole, alone = prior.score([long, long[:512]], keep=[(0.5, 1.0)]).to_pylist()
    assert whole["logp"][:512] == alone["logp"]
    assert None not in alone["logp"]
    assert whole["logp"][512:] == [None] * (len(long) - 512)
    for name in ("topk_pos", "topk_ids", "topk_logp"):
        assert whole[name] == alone[name]
