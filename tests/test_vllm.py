"""`toedit.vllm.scores`: what vLLM says of its prompts, in both its forms, is the scores column. vLLM is not needed: the classes
here have the attributes that its documentation names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import toedit
import toedit.vllm

Rows = list[list[int]]
VOCABULARY, BOS = 4096, 0
ROWS: Rows = [[5, 9, 77, 4095], [0, 12], [300], [8, 8, 8, 8, 8, 8]]
KEEP = [(0.02, 1.0)]


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class FlatLogprobs:
    start_indices: list[int] = field(default_factory=list)
    end_indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ranks: list[int | None] = field(default_factory=list)
    decoded_tokens: list[str | None] = field(default_factory=list)

    def add(self, entries: list[tuple[int, float, int]]) -> None:
        self.start_indices.append(len(self.token_ids))
        for token, logprob, rank in entries:
            self.token_ids.append(token)
            self.logprobs.append(logprob)
            self.ranks.append(rank)
            self.decoded_tokens.append(None)
        self.end_indices.append(len(self.token_ids))


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    prompt_logprobs: Any


def distribution(prompt: list[int], at: int) -> np.ndarray[Any, Any]:
    """What the model gives for prompt[at]: anything but what is the same at two positions. Some prompt tokens are likely."""
    logits = np.random.default_rng([at, *prompt[:at]]).normal(0, 1.5, VOCABULARY)
    logits[prompt[at]] += 9 if at % 2 else 0
    logprobs: np.ndarray[Any, Any] = (logits - np.log(np.exp(logits).sum())).astype(np.float32)
    return logprobs


def prompt_of(row: list[int]) -> list[int]:
    return row if row[0] == BOS else [BOS, *row]


def entries(logprobs: np.ndarray[Any, Any], token: int, k: int) -> list[tuple[int, float, int]]:
    """As vLLM has them: the prompt's token first, with its rank in the vocabulary, then the k best (again, if it is one)."""
    best = np.argsort(-logprobs, kind="stable")[:k]
    own = (token, float(logprobs[token]), int((logprobs >= logprobs[token]).sum()))
    return [own, *((int(t), float(logprobs[t]), rank) for rank, t in enumerate(best, 1))]


def nested(prompt: list[int], k: int) -> list[dict[int, Logprob] | None]:
    found: list[dict[int, Logprob] | None] = [None]
    for at in range(1, len(prompt)):
        found.append({t: Logprob(v, rank, f"<{t}>") for t, v, rank in entries(distribution(prompt, at), prompt[at], k)})
    return found


def flat(prompt: list[int], k: int) -> FlatLogprobs:
    found = FlatLogprobs()
    found.add([])
    for at in range(1, len(prompt)):
        found.add(entries(distribution(prompt, at), prompt[at], k))
    return found


def arrays(prompt: list[int], k: int) -> FlatLogprobs:
    """Later versions keep NumPy columns."""
    made = flat(prompt, k)
    for name in ("start_indices", "end_indices", "token_ids", "ranks"):
        setattr(made, name, np.array(getattr(made, name)))
    made.logprobs = np.array(made.logprobs, np.float32)  # type: ignore[assignment]
    return made


FORMS: dict[str, Callable[[list[int], int], Any]] = {
    "nested": nested,
    "flat": flat,
    "flat arrays": arrays,
    "output, nested": lambda prompt, k: RequestOutput(prompt, nested(prompt, k)),
    "output, flat": lambda prompt, k: RequestOutput(prompt, flat(prompt, k)),
}


def expected(prior: toedit.Prior, k: int) -> pa.StructArray:
    """The same by way of toedit.scores, from the whole distributions."""
    logp: list[list[float | None]] = []
    pos: Rows = []
    ids: list[Rows] = []
    values: list[list[list[float]]] = []
    for row in ROWS:
        prompt, first = prompt_of(row), len(prompt_of(row)) - len(row)
        whole = [distribution(prompt, at) for at in range(len(prompt))]
        logp.append([float(whole[at][prompt[at]]) if at > 0 else None for at in range(first, len(prompt))])
        pos.append([i for i, v in enumerate(logp[-1]) if v is not None and v >= np.log(KEEP[0][0])])
        best = [np.argsort(-whole[first + i], kind="stable")[:k] for i in pos[-1]]
        ids.append([b.tolist() for b in best])
        values.append([whole[first + i][b].tolist() for i, b in zip(pos[-1], best, strict=True)])
    assert 0 < sum(map(len, pos)) < sum(map(len, ROWS))
    return toedit.scores(ROWS, logp, pos, ids, values, prior=prior)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("k", "asked"), [(4, 4), (4, 7), (1, 1)])
def test_every_form_is_the_column(prior: toedit.Prior, form: str, k: int, asked: int) -> None:
    outputs = [FORMS[form](prompt_of(row), asked) for row in ROWS]
    column = toedit.vllm.scores(outputs, ROWS, prior=prior, k=k, keep=KEEP)
    column.validate(full=True)
    assert column.equals(expected(prior, k))
    toedit.Editor(prior, toedit.Policy(threshold=0.5, k=k)).edit({"input_ids": ROWS, "scores": column})


def test_a_token_that_is_not_among_the_best_is_scored_and_not_drawn(prior: toedit.Prior) -> None:
    output = [None, {7: Logprob(-8.0, 900), 1: Logprob(-0.1, 1), 2: Logprob(-3.0, 2)}]
    row = toedit.vllm.scores([output], [[7]], prior=prior, k=2, keep=[(0.0, 1.0)]).to_pylist()[0]
    assert row["logp"] == [-8.0]
    assert row["topk_ids"] == [1, 2]


def test_a_tie_may_give_a_token_two_ranks(prior: toedit.Prior) -> None:
    """Its own rank counts those that are as likely; among the best it may stand before them."""
    made = FlatLogprobs()
    made.add([])
    made.add([(7, -1.0, 3), (7, -1.0, 1), (3, -1.0, 2)])
    row = toedit.vllm.scores([made], [[7]], prior=prior, k=2, keep=[(0.0, 1.0)]).to_pylist()[0]
    assert row["topk_ids"] == [3, 7]


def test_a_policy_says_k_and_what_is_kept(prior: toedit.Prior) -> None:
    outputs = [nested(prompt_of(row), 5) for row in ROWS]
    policy = toedit.Policy(threshold=0.02, k=3)
    assert toedit.vllm.scores(outputs, ROWS, prior=prior, keep=policy).equals(expected(prior, 3))


def test_rows_without_tokens_have_no_output(prior: toedit.Prior) -> None:
    column = toedit.vllm.scores([None, [None, {7: Logprob(-1.0, 1)}], []], [[], [7], []], prior=prior, k=1)
    assert column.field("logp").to_pylist() == [[], [-1.0], []]
    assert len(toedit.vllm.scores([], [], prior=prior)) == 0


def good() -> list[Any]:
    return [nested(prompt_of(row), 4) for row in ROWS]


def spoilt(row: int, at: int, value: Any) -> list[Any]:
    outputs = good()
    outputs[row][at] = value
    return outputs


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: good()[:3], "there are 3 outputs, but 4 rows of ids"),
    (lambda: good()[0][0], "outputs is a NoneType; it must be a list with one output for each row"),
    (lambda: flat([0, 5], 4), "outputs is a FlatLogprobs; it must be a list with one output for each row"),
    (
        lambda: [RequestOutput(prompt_of(row), None) for row in ROWS],
        r"row 0: vLLM gave no prompt_logprobs; .*\(prompt_logprobs=k\)",
    ),
    (
        lambda: [RequestOutput(row, nested(row, 4)) for row in ROWS],
        "row 0: the prior puts its BOS id 0 in front of this row, so vLLM must be given it too",
    ),
    (
        lambda: [nested(row, 4) for row in ROWS],
        "row 0: prompt_logprobs has 4 positions for a prompt of 5 tokens; the prior puts",
    ),
    (
        lambda: [RequestOutput([0, 5, 9, 78, 4095], good()[0]), *good()[1:]],
        "row 0: prompt_token_ids is not the row's from index 3 on; the outputs belong to other rows",
    ),
    (
        lambda: [*good()[:3], nested([0, 8, 8, 8, 9, 8, 8], 4)],
        r"row 3: prompt_logprobs\[4\] does not hold the prompt's token 8; the outputs belong to other rows",
    ),
    (lambda: [3.5, *good()[1:]], "row 0: prompt_logprobs is a float; it must be a list or a FlatLogprobs"),
    (lambda: spoilt(3, 2, None), r"row 3: prompt_logprobs\[2\] is None, which only the first may be"),
    (lambda: spoilt(3, 2, [1]), r"row 3: prompt_logprobs\[2\] is a list; it must be a dict of token id to Logprob, or None"),
    (lambda: spoilt(3, 2, {8: Logprob(float("nan"), 1)}), r"row 3: prompt_logprobs\[2\] is NaN"),
    (lambda: spoilt(3, 2, {8: Logprob(0.5, 1)}), r"row 3: prompt_logprobs\[2\] gives ln P = 0.5, but a log-probability"),
    (
        lambda: spoilt(3, 2, {8: Logprob(-0.1, 1), **{5000 + i: Logprob(-4.0, i) for i in (2, 3, 4)}}),
        "row 3: topk_ids has id 5002 at position 1, but the prior's vocabulary is 0 to 4095",
    ),
    (
        lambda: [nested(prompt_of(row), 3) for row in ROWS],
        r"row 0: prompt_logprobs\[\d\] holds fewer than the 4 most probable tokens; .*\(prompt_logprobs=4\) or more",
    ),
    (
        # Four entries, but one of them is the prompt's token, from far below.
        lambda: spoilt(3, 2, {8: Logprob(-3.0, 80), **{i: Logprob(-2.0, i) for i in (1, 2, 3)}}),
        r"row 3: prompt_logprobs\[2\] holds fewer than the 4 most probable tokens",
    ),
]


@pytest.mark.parametrize(("outputs", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_clear_error(prior: toedit.Prior, outputs: Callable[[], Any], message: str) -> None:
    with pytest.raises(toedit.InputError, match=message):
        toedit.vllm.scores(outputs(), ROWS, prior=prior, k=4, keep=KEEP)


def test_rows_beyond_the_context_are_refused(prior: toedit.Prior) -> None:
    long = [1 + i % 4000 for i in range(600)]
    with pytest.raises(toedit.InputError, match=r"row 1 has 600 tokens, more than the prior's context of 512, .* in windows"):
        toedit.vllm.scores([None, None], [[], long], prior=prior)
    off = toedit.Prior(prior.path, windows="off")
    with pytest.raises(toedit.InputError, match="row 0 has 600 tokens, more than"):
        toedit.vllm.scores([None], [long], prior=off)
