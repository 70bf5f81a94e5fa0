"""Tests of the reference implementation itself: before the package is held against it, it is held against published
vectors, a second Philox, exact probabilities and draws worked out by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

import oracle
from oracle import MASK64, SCORES_TYPE, Draw, OraclePolicy, Scores, edit_batch, edit_row, make_scores

VOCAB = 512
TOKENIZER_SIZE = 508
SPECIAL = (0, 1, 2)
CONTEXT: dict[str, Any] = {"special_ids": SPECIAL, "tokenizer_size": TOKENIZER_SIZE, "seed": 7, "epoch": 3}


def philox4x64_10(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Philox4x64-10 from its definition (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC11)."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        p0 = 0xD2E7470EE14C6C93 * c0
        p1 = 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & MASK64, (p0 >> 64) ^ c3 ^ k1, p0 & MASK64
        k0 = (k0 + 0x9E3779B97F4A7C15) & MASK64
        k1 = (k1 + 0xBB67AE8584CAA73B) & MASK64
    return c0, c1, c2, c3


def stored(
    ids: list[int], logp: list[float | None], top: dict[int, list[tuple[int, float]]], *, k: int | None = None
) -> Scores:
    """Scores of a row from {position: [(id, ln P), ...]}."""
    size = k if k is not None else len(next(iter(top.values())))
    choices = [choice for position in sorted(top) for choice in top[position]]
    return {
        "logp": logp,
        "topk_pos": np.array(sorted(top), dtype=np.int32),
        "topk_ids": np.array([token for token, _ in choices], dtype=np.int32),
        "topk_logp": oracle.to_float16(np.array([a for _, a in choices], dtype=np.float64)),
        "k": size,
        "ids_hash": oracle.document_hash(ids)[0],
        "prior": "0" * 32,
    }


def sample(seed: int, length: int, k: int = 8, keep: float = 0.5) -> tuple[list[int], Scores]:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VOCAB, size=length).tolist()
    return ids, make_scores(rng, ids, VOCAB, k, keep)


def one_position(n: int, choices: list[tuple[int, float]], old: int, logp: float) -> tuple[list[int], Scores]:
    """A row of n equal positions: n independent draws from one distribution."""
    ids = [old] * n
    return ids, stored(ids, [logp] * n, dict.fromkeys(range(n), choices))


def chi_square_sigmas(counts: npt.NDArray[Any], probabilities: npt.NDArray[Any]) -> float:
    """How many standard deviations Pearson's statistic is too large (Wilson and Hilferty's normal approximation)."""
    expected = counts.sum() * probabilities
    assert expected.min() > 4
    freedom = len(counts) - 1
    statistic = float((((counts - expected) ** 2) / expected).sum())
    spread = 2.0 / (9.0 * freedom)
    return float(((statistic / freedom) ** (1.0 / 3.0) - (1.0 - spread)) / math.sqrt(spread))


# Hashes and random numbers


@pytest.mark.parametrize(
    ("length", "low", "high"),
    [
        (0, 0x6001C324468D497F, 0x99AA06D3014798D8),
        (1, 0xC44BDFF4074EECDB, 0xA6CD5E9392000F6A),
        (6, 0x3E7039BDDA43CFC6, 0x082AFE0B8162D12A),
        (12, 0x061A192713F69AD9, 0x6E3EFD8FC7802B18),
        (48, 0xF942219AED80F67B, 0xA002AC4E5478227E),
        (222, 0xF1AEBD597CEC6B3A, 0x337E09641B948717),
        (403, 0xCDEB804D65C6DEA4, 0x1B6DE21E332DD73D),
    ],
)
def test_hash_equals_the_sanity_vectors_of_xxhash(length: int, low: int, high: int) -> None:
    buffer, state = bytearray(), 2654435761
    for _ in range(length):
        buffer.append(state >> 56)
        state = (state * 11400714785074694797) & MASK64
    assert oracle._halves(bytes(buffer)) == (low, high)
    if length % 4 == 0:
        ids = [int.from_bytes(buffer[i : i + 4], "little") for i in range(0, length, 4)]
        assert oracle.document_hash(ids) == (low, high)


def test_document_hash_depends_on_values_and_not_on_their_type() -> None:
    ids = [0, 1, 255, 256, 65535, 70000, 0xFFFFFFFF]
    expected = oracle.document_hash(ids)
    for dtype in (np.int64, np.uint32, np.uint64):
        assert oracle.document_hash(np.array(ids, dtype=dtype)) == expected
    assert oracle.document_hash(np.array(ids[:5], dtype=np.uint16)) == oracle.document_hash(ids[:5])
    for bad in ([-1], [1 << 32]):
        with pytest.raises(ValueError, match="uint32"):
            oracle.document_hash(bad)


def test_key_hash_tells_strings_and_integers_apart() -> None:
    assert oracle.key_hash("") == (0x6001C324468D497F, 0x99AA06D3014798D8)
    assert oracle.key_hash("é") == oracle._halves(b"\xc3\xa9")
    assert oracle.key_hash(258) == oracle._halves(b"\x02\x01\x00\x00\x00\x00\x00\x00")
    assert oracle.key_hash(-1) == oracle._halves(b"\xff" * 8)
    assert oracle.key_hash(5) != oracle.key_hash("5")
    with pytest.raises(OverflowError):
        oracle.key_hash(1 << 63)


@pytest.mark.parametrize("block", [oracle.philox_block, philox4x64_10])
@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        (
            (0, 0),
            (0, 0, 0, 0),
            (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
        ),
        (
            (MASK64, MASK64),
            (MASK64, MASK64, MASK64, MASK64),
            (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
        ),
        (
            (0x452821E638D01377, 0xBE5466CF34E90C6C),
            (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
            (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
        ),
    ],
)
def test_philox_equals_the_vectors_of_random123(block: Any, key: Any, counter: Any, expected: Any) -> None:
    assert block(key, counter) == expected


def test_philox_of_numpy_equals_the_definition() -> None:
    rng = np.random.default_rng(1)
    edges = [0, 1, (1 << 32) - 1, 1 << 32, 1 << 63, MASK64]
    for n in range(300):
        draw = rng.choice(np.array(edges, dtype=np.uint64), 6) if n % 2 else rng.integers(0, MASK64, 6, dtype=np.uint64)
        words = [int(word) for word in draw]
        if n % 3 == 0:
            words[2] = 0  # block 0: NumPy's counter borrows from the position, and from the hash at position 0
            words[3] *= n % 2
        assert oracle.philox_block(words[:2], words[2:]) == philox4x64_10((words[0], words[1]), tuple(words[2:]))  # type: ignore[arg-type]


def test_uniform_is_laid_out_as_written() -> None:
    word = philox4x64_10((5, (3 << 32) + (2 << 16) + 1), (0, 11, 21, 31))[0]
    assert oracle.uniform(5, 3, 11, (21, 31), generation=2, purpose=1) == (word >> 11) / 2**53
    values = np.array([oracle.uniform(0, 0, position, (1, 2)) for position in range(20000)])
    assert values.min() >= 0.0
    assert values.max() < 1.0
    cells = np.histogram(values, bins=50, range=(0.0, 1.0))[0]
    assert chi_square_sigmas(cells, np.full(50, 0.02)) < 4
    for bad in ({"seed": -1}, {"seed": 1 << 64}, {"epoch": 1 << 32}, {"generation": 1 << 16}, {"purpose": -1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            oracle.key_words(**{"seed": 0, "epoch": 0, **bad})


# Draws


CHOICES = [(40, -0.25), (7, -2.0), (0, -2.5), (90, -3.0), (510, -3.5), (3, -4.0), (41, -4.5), (42, -6.0)]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("exclude_original", [False, True])
@pytest.mark.parametrize("k", [1, 4, 8])
def test_draws_have_the_exact_frequencies(temperature: float, exclude_original: bool, k: int) -> None:
    n = 20000
    ids, scores = one_position(n, CHOICES, old=40, logp=-0.25)
    policy = OraclePolicy(0.7, k, temperature, exclude_original, protected_ids=(90,))
    result = edit_row(ids, scores, policy, **CONTEXT)

    # Special (0), above the tokenizer (510), protected by the policy (90), and with exclude_original the original (40).
    barred = {0, 510, 90} | ({40} if exclude_original else set())
    weights = {t: math.exp(a / temperature) for t, a in CHOICES[:k] if t not in barred}
    drawn = np.array(result["ids"])
    assert result["candidates"] == n
    if not weights:
        assert (drawn == 40).all()
        assert result["expected_changes"] == 0.0
        return
    total = sum(weights.values())
    assert set(drawn.tolist()) == set(weights)
    if len(weights) > 1:
        counts = np.array([(drawn == t).sum() for t in weights])
        assert chi_square_sigmas(counts, np.array([w / total for w in weights.values()])) < 4
    assert result["expected_changes"] == pytest.approx(n * (1 - weights.get(40, 0.0) / total), rel=1e-9)
    assert result["changes"] == (drawn != 40).sum() == len(result["edits"])


@pytest.mark.parametrize(
    "policy",
    [
        OraclePolicy(0.5),
        OraclePolicy(0.9, temperature=1.5),
        OraclePolicy(0.6, k=3, temperature=0.3),
        OraclePolicy(0.5, exclude_original=True),
        OraclePolicy(0.5, temperature=3.0, protect_special=False),
    ],
)
def test_changes_agree_with_the_changes_expected(policy: OraclePolicy) -> None:
    ids, scores = sample(11, 20000)
    trace: list[Draw] = []
    result = edit_row(ids, scores, policy, **CONTEXT, trace=trace)
    assert result["candidates"] == len(trace) > 2000
    variance = sum(d.keep_probability * (1 - d.keep_probability) for d in trace)
    assert abs(result["changes"] - result["expected_changes"]) <= 4 * math.sqrt(variance) + 1e-6
    in_order = 0.0
    for draw in trace:  # not sum(), which compensates its rounding from Python 3.12 on
        in_order += 1.0 - draw.keep_probability
    assert result["expected_changes"] == in_order


def test_candidates_protected_and_unscored_add_up() -> None:
    ids, scores = sample(12, 5000)
    mask = [i % 5 == 0 for i in range(len(ids))]
    labels = [-100 if i % 7 == 0 else t for i, t in enumerate(ids)]
    policy = OraclePolicy(0.6, protected_ids=(100, 101))
    result = edit_row(ids, scores, policy, **CONTEXT, protected_mask=mask, labels=labels)
    in_band = [i for i, v in enumerate(scores["logp"]) if v is not None and v >= math.log(0.6)]
    barred = {*SPECIAL, 100, 101}
    safe = [i for i in in_band if mask[i] or labels[i] == -100 or ids[i] in barred or ids[i] >= TOKENIZER_SIZE]
    assert result["unscored"] == 1
    assert result["protected"] == len(safe) > 0
    assert result["candidates"] == len(in_band) - len(safe)
    changed = {i for i, (old, new) in enumerate(zip(ids, result["ids"], strict=True)) if old != new}
    assert changed == {pos for pos, _, _, _ in result["edits"]}
    assert changed <= set(in_band) - set(safe)


def test_what_is_protected_is_never_drawn_and_never_replaced() -> None:
    ids, scores = sample(13, 20000)
    everything = {int(t) for t in scores["topk_ids"]}
    assert everything & set(SPECIAL)
    assert max(everything) >= TOKENIZER_SIZE
    policy = OraclePolicy(0.5, temperature=4.0, exclude_original=True, protected_ids=(9,))
    for _, old, new, _ in edit_row(ids, scores, policy, **CONTEXT)["edits"]:
        for token in (old, new):
            assert token not in {*SPECIAL, 9}
            assert token < TOKENIZER_SIZE
        assert new != old
    # Turned off by name, special tokens are like any other; ids that the tokenizer lacks stay out.
    policy = OraclePolicy(0.5, temperature=4.0, exclude_original=True, protect_special=False)
    edits = edit_row(ids, scores, policy, **CONTEXT)["edits"]
    assert {new for _, _, new, _ in edits} & set(SPECIAL)
    assert {old for _, old, _, _ in edits} & set(SPECIAL)
    assert max(max(old, new) for _, old, new, _ in edits) < TOKENIZER_SIZE


def test_exclude_original_changes_every_candidate_with_another_choice() -> None:
    ids, scores = sample(14, 3000)
    result = edit_row(ids, scores, OraclePolicy(0.9, exclude_original=True), **CONTEXT)
    assert result["changes"] == result["candidates"] == result["expected_changes"] > 0


@pytest.mark.parametrize(
    ("choices", "policy"),
    [
        ([(40, -0.25), (0, -2.0)], OraclePolicy(0.5, k=2, exclude_original=True)),  # nothing else is allowed
        ([(40, -0.25), (41, -math.inf)], OraclePolicy(0.5, k=2, exclude_original=True)),  # nothing else is possible
        ([(0, -0.25), (1, -2.0)], OraclePolicy(0.5, k=2)),  # not even the original is stored
        ([(40, -0.25), (41, -2.0)], OraclePolicy(0.5, k=1, exclude_original=True)),  # the policy's k leaves it out
    ],
)
def test_a_candidate_without_another_choice_keeps_its_token(choices: Any, policy: OraclePolicy) -> None:
    ids, scores = one_position(20, choices, old=40, logp=-0.25)
    trace: list[Draw] = []
    result = edit_row(ids, scores, policy, **CONTEXT, trace=trace)
    assert (result["candidates"], result["changes"], result["expected_changes"]) == (20, 0, 0.0)
    assert all(d.total == 0.0 and d.keep_probability == 1.0 for d in trace)


def test_small_temperatures_do_not_underflow() -> None:
    choices = [(40, -0.001), (41, -7.0), (42, -7.0), (43, -7.015625)]
    for temperature in (1e-3, 1e-5, 1e-300, 5e-324):
        ids, scores = one_position(400, choices, old=40, logp=-0.001)
        trace: list[Draw] = []
        result = edit_row(ids, scores, OraclePolicy(0.9, 4, temperature, True), **CONTEXT, trace=trace)
        assert all(d.shifted for d in trace)
        assert set(result["ids"]) == {41, 42}
        assert result["changes"] == result["expected_changes"] == 400
    # At the limit itself nothing is shifted, and the weights are still normal numbers.
    for a, shifted in ((-600.0, False), (-600.5, True)):
        ids, scores = one_position(4, [(40, -0.001), (41, a)], old=40, logp=-0.001)
        trace = []
        edit_row(ids, scores, OraclePolicy(0.9, 2, 1.0, True), **CONTEXT, trace=trace)
        assert all(d.shifted is shifted and d.total == (1.0 if shifted else math.exp(-600)) for d in trace)


def test_large_temperatures_are_uniform() -> None:
    choices = [(40, -0.001), (41, -7.0), (42, -9.0), (43, -30.0)]
    ids, scores = one_position(8000, choices, old=40, logp=-0.001)
    drawn = np.array(edit_row(ids, scores, OraclePolicy(0.9, 4, 1e300), **CONTEXT)["ids"])
    assert chi_square_sigmas(np.array([(drawn == t).sum() for t, _ in choices]), np.full(4, 0.25)) < 4


def test_threshold_is_decided_in_float64() -> None:
    threshold = 0.99
    bound = math.log(threshold)
    near = np.float32(bound)
    steps = [np.nextafter(near, np.float32(-1)), near, np.nextafter(near, np.float32(0))]
    ids = [40] * 3
    scores = stored(ids, [float(v) for v in steps], {i: [(41, -1.0)] for i in range(3)})
    result = edit_row(ids, scores, OraclePolicy(threshold, k=1), **CONTEXT)
    assert result["candidates"] == sum(float(v) >= bound for v in steps) in (1, 2)
    # At a threshold of 1 only certainty is a candidate, and a negative zero is certainty.
    scores = stored(ids, [0.0, -0.0, -1e-45], {i: [(41, -1.0)] for i in range(3)})
    assert edit_row(ids, scores, OraclePolicy(1.0, k=1), **CONTEXT)["candidates"] == 2


def test_a_smaller_k_uses_the_first_of_the_stored_choices() -> None:
    ids, scores = sample(15, 2000, k=8)
    positions = len(scores["topk_pos"])
    first: Scores = {
        **scores,
        "k": 3,
        "topk_ids": scores["topk_ids"].reshape(positions, 8)[:, :3].reshape(-1),
        "topk_logp": scores["topk_logp"].reshape(positions, 8)[:, :3].reshape(-1),
    }
    policy = OraclePolicy(0.5, k=3, temperature=1.5)
    assert edit_row(ids, scores, policy, **CONTEXT) == edit_row(ids, first, policy, **CONTEXT)


# Worked examples, as they stand in the README


@dataclass(frozen=True)
class Example:
    ids: list[int]
    logp: list[float | None]
    top: dict[int, list[tuple[int, float]]]
    policy: OraclePolicy
    context: dict[str, Any]
    key: tuple[int, int]
    counter: tuple[int, int, int, int]
    word: int
    u: float
    shifted: bool
    weights: tuple[float, ...]
    total: float
    target: float
    keep: float
    drawn: int


EXAMPLES = {
    "the original stays": Example(
        ids=[0, 1912, 77, 306, 2051],
        logp=[None, -5.53125, -0.0078125, -1.25, -0.71875],
        top={2: [(77, -0.0078125), (1204, -5.75), (0, -6.5), (31, -7.25)]},
        policy=OraclePolicy(threshold=0.99, k=4),
        context={"special_ids": (0,), "tokenizer_size": 4096, "seed": 0, "epoch": 0},
        key=(0x0000000000000000, 0x0000000000000000),
        counter=(0, 2, 0x5CB8CBF872C3B2DA, 0xD1D3085D93F350B1),
        word=0xC13D6052678C801A,
        u=0.7548427773650008,
        shifted=False,
        weights=(0.9922179382602435, 0.003182780796509667, 0.0, 0.000710174388842549),
        total=0.9961108934455958,
        target=0.7519071133720059,
        keep=0.9960918455856994,
        drawn=77,
    ),
    "another token": Example(
        ids=[512, 871, 9],
        logp=[None, -0.0625, -2.5],
        top={1: [(871, -0.0625), (12, -3.5), (0, -4.0), (4093, -4.25), (2507, -5.125)]},
        policy=OraclePolicy(threshold=0.9, k=5, temperature=1.5, exclude_original=True),
        context={
            "special_ids": (0, 1),
            "tokenizer_size": 4090,
            "seed": 12345678901234567890,
            "epoch": 7,
            "key": "pg1342",
            "offset": 512,
        },
        key=(0xAB54A98CEB1F0AD2, 0x0000000700000000),
        counter=(0, 513, 0x203528598161F627, 0xDA2990AA663F818F),
        word=0x445887040C79FDC1,
        u=0.2669758210072145,
        shifted=False,
        weights=(0.0, 0.09697196786440505, 0.0, 0.0, 0.03282165832666321),
        total=0.12979362619106827,
        target=0.034651759913863954,
        keep=0.0,
        drawn=12,
    ),
    "a low temperature": Example(
        ids=[300, 41],
        logp=[None, -0.0078125],
        top={1: [(41, -0.0078125), (88, -6.0), (1500, -6.5), (700, -6.5078125)]},
        policy=OraclePolicy(threshold=0.95, k=4, temperature=0.01, exclude_original=True, protected_ids=(88,)),
        context={"special_ids": (0,), "tokenizer_size": 4096, "seed": 3, "epoch": 1, "key": -42},
        key=(0x0000000000000003, 0x0000000100000000),
        counter=(0, 1, 0x9A9ED55F72A5D14A, 0x706EE1BD377E1467),
        word=0xE7947D6C9A50859E,
        u=0.9046095266479046,
        shifted=True,
        weights=(0.0, 0.0, 1.0, 0.45783336177161427),
        total=1.4578333617716144,
        target=1.3187699473237435,
        keep=0.0,
        drawn=700,
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_worked_examples(name: str) -> None:
    example = EXAMPLES[name]
    scores = stored(example.ids, example.logp, example.top)
    assert scores["topk_logp"].tolist() == [a for _, a in next(iter(example.top.values()))]  # exact in float16
    trace: list[Draw] = []
    result = edit_row(example.ids, scores, example.policy, **example.context, trace=trace)
    (draw,) = trace
    (position,) = example.top
    assert (draw.key, draw.counter, draw.word) == (example.key, example.counter, example.word)
    assert philox4x64_10(draw.key, draw.counter)[0] == example.word
    assert (draw.u, draw.shifted, draw.drawn) == (example.u, example.shifted, example.drawn)
    assert draw.weights == pytest.approx(example.weights, rel=1e-15)  # the last bit of exp is the platform's
    assert (draw.total, draw.target, draw.keep_probability) == pytest.approx(
        (example.total, example.target, example.keep), rel=1e-15
    )
    assert result["candidates"] == 1
    assert result["expected_changes"] == 1.0 - draw.keep_probability
    assert result["ids"][position] == example.drawn
    assert result["changes"] == int(example.drawn != example.ids[position])


# Rows, chunks and batches


def test_a_chunk_with_key_and_offset_gets_the_edits_of_the_whole_document() -> None:
    ids, scores = sample(16, 600)
    policy = OraclePolicy(0.5, temperature=1.5)
    whole = edit_row(ids, scores, policy, **CONTEXT, key="doc", offset=0)
    assert whole["ids"] != edit_row(ids, scores, policy, **CONTEXT)["ids"]  # a key replaces the hash of the ids
    pieces: list[int] = []
    for start, stop in ((0, 1), (1, 200), (200, 600)):
        inside = (scores["topk_pos"] >= start) & (scores["topk_pos"] < stop)
        chunk: Scores = {
            **scores,
            "logp": scores["logp"][start:stop],
            "topk_pos": scores["topk_pos"][inside] - start,
            "topk_ids": scores["topk_ids"].reshape(-1, 8)[inside].reshape(-1),
            "topk_logp": scores["topk_logp"].reshape(-1, 8)[inside].reshape(-1),
            "ids_hash": oracle.document_hash(ids[start:stop])[0],
        }
        pieces += edit_row(ids[start:stop], chunk, policy, **CONTEXT, key="doc", offset=start)["ids"]
    assert pieces == whole["ids"]


def test_seed_epoch_generation_key_and_ids_each_change_the_draws() -> None:
    ids, scores = sample(17, 600)
    policy = OraclePolicy(0.5, temperature=1.5, exclude_original=True)
    variants: list[dict[str, Any]] = [{}, {"seed": 8}, {"epoch": 4}, {"generation": 1}, {"key": "a"}, {"key": 5}]
    variants.append({"offset": 1})
    results = [tuple(edit_row(ids, scores, policy, **{**CONTEXT, **variant})["ids"]) for variant in variants]
    assert len(set(results)) == len(variants)
    assert edit_row(ids, scores, policy, **CONTEXT)["ids"] == list(results[0])


def test_padding_order_and_batch_size_do_not_matter() -> None:
    rows = [sample(20 + n, length) for n, length in enumerate((0, 1, 17, 64, 64, 90))]
    policy = OraclePolicy(0.5, temperature=1.5)
    alone = [edit_row(ids, scores, policy, **CONTEXT) for ids, scores in rows]
    width, pad = 100, 0
    padded, masks, safe, labels = [], [], [], []
    for n, (ids, _) in enumerate(rows):
        left = 0 if n % 2 else width - len(ids)
        real = [left <= i < left + len(ids) for i in range(width)]
        padded.append([ids[i - left] if ok else pad for i, ok in enumerate(real)])
        masks.append([int(ok) for ok in real])
        safe.append([not ok for ok in real])
        labels.append([t if ok else -100 for t, ok in zip(padded[-1], real, strict=True)])
    scores = [s for _, s in rows]
    batch = edit_batch(padded, scores, policy, **CONTEXT, attention_mask=masks, protected_mask=safe, labels=labels)
    assert batch["rows"] == alone
    for before, after, mask, row in zip(padded, batch["ids"], masks, alone, strict=True):
        assert [t for t, m in zip(after, mask, strict=True) if m] == row["ids"]
        assert all(new == old for old, new, m in zip(before, after, mask, strict=True) if not m)
    expected = 0.0
    for row in alone:
        expected += row["expected_changes"]
    assert batch["expected_changes"] == expected
    assert batch["changes"] == sum(row["changes"] for row in alone) > 0
    assert batch["unscored"] == 5
    backwards = edit_batch([ids for ids, _ in rows[::-1]], scores[::-1], policy, **CONTEXT)
    assert backwards["rows"] == alone[::-1]


def test_keys_and_offsets_go_with_their_rows() -> None:
    rows = [sample(30 + n, 50) for n in range(3)]
    policy = {
        "threshold": 0.5,
        "k": 8,
        "temperature": 2.0,
        "exclude_original": True,
        "protect_special": True,
        "protected_ids": [],
    }
    keys: list[str | int] = ["a", "b", -3]
    offsets = [0, 50, 1 << 40]
    batch = edit_batch([r[0] for r in rows], [r[1] for r in rows], policy, **CONTEXT, keys=keys, offsets=offsets)
    for n, (ids, scores) in enumerate(rows):
        assert batch["rows"][n] == edit_row(ids, scores, policy, **CONTEXT, key=keys[n], offset=offsets[n])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids_hash": 5}, "other ids"),
        ({"logp": [0.0]}, "scores of 1 tokens"),
        ({"k": 4}, "larger than the 4 stored"),
        ({"topk_pos": np.zeros(0), "topk_ids": np.zeros(0), "topk_logp": np.zeros(0)}, "no stored top-k"),
        ({"topk_pos": np.zeros(0)}, "k values for each"),
    ],
)
def test_scores_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    ids, scores = sample(18, 60)
    with pytest.raises(ValueError, match=message):
        edit_row(ids, {**scores, **change}, OraclePolicy(0.5), **CONTEXT)


# Made-up scores


@pytest.mark.parametrize(("vocab", "k"), [(VOCAB, 8), (8, 8), (9, 8), (40, 1), (32000, 64)])
def test_made_up_scores_are_plausible(vocab: int, k: int) -> None:
    rng = np.random.default_rng(5)
    ids = rng.integers(0, vocab, size=400).tolist()
    scores = make_scores(rng, ids, vocab, k, 0.3)
    assert scores["logp"][0] is None
    p = np.exp([v for v in scores["logp"] if v is not None])
    assert (p < 0.1).mean() > 0.2
    assert (p > 0.9).mean() > 0.2
    bound = math.log(0.3)
    assert scores["topk_pos"].tolist() == [i for i, v in enumerate(scores["logp"]) if v is not None and v >= bound]
    for row, i in enumerate(scores["topk_pos"]):
        top = scores["topk_ids"][row * k : (row + 1) * k].tolist()
        values = scores["topk_logp"][row * k : (row + 1) * k]
        assert len(set(top)) == k
        assert 0 <= min(top) <= max(top) < vocab
        assert (np.diff(values) <= 0).all()
        assert np.exp(values.astype(np.float64)).sum() < 1.02  # float16 keeps three digits
        assert (values == oracle.to_float16(values)).all()
        own = scores["logp"][i]
        assert own is not None
        if own > -0.6:
            assert top[0] == ids[i]
        if ids[i] in top:
            assert values[top.index(ids[i])] == oracle.to_float16(np.array([own]))[0]


def test_scores_column_has_the_contract_type_and_survives() -> None:
    rows = [sample(n, length) for n, length in ((1, 0), (2, 1), (3, 40))]
    column = oracle.scores_to_arrow([scores for _, scores in rows])
    assert column.type == SCORES_TYPE
    assert str(SCORES_TYPE) == (
        "struct<logp: list<item: float>, topk_pos: list<item: int32>, topk_ids: list<item: int32>, "
        "topk_logp: list<item: float>, k: int32, ids_hash: uint64, prior: string>"
    )
    column.validate(full=True)
    assert column.field("logp").flatten().null_count == 2
    policy = OraclePolicy(0.5, temperature=2.0)
    for n, (ids, scores) in enumerate(rows):
        assert edit_row(ids, column[n].as_py(), policy, **CONTEXT) == edit_row(ids, scores, policy, **CONTEXT)
    assert len(oracle.scores_to_arrow([])) == 0
    assert isinstance(column, pa.StructArray)
