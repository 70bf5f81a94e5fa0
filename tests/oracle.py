"""Reference implementation of editing from stored scores, in plain NumPy.

Written from the contracts alone (document hash, document key, draws, scores) and sharing no code with the package, so
that an equal result means that both follow the contracts. It is meant to be read: one token at a time, one step a line.

`math.exp` and not `numpy.exp`: NumPy picks its exponential by the type of CPU, and the last bit differs between them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

MASK64 = (1 << 64) - 1

SCORES_TYPE = pa.struct(
    [
        pa.field("logp", pa.list_(pa.float32())),
        pa.field("topk_pos", pa.list_(pa.int32())),
        pa.field("topk_ids", pa.list_(pa.int32())),
        pa.field("topk_logp", pa.list_(pa.float32())),
        pa.field("k", pa.int32()),
        pa.field("ids_hash", pa.uint64()),
        pa.field("prior", pa.string()),
    ]
)

Ids = Sequence[int] | npt.NDArray[Any]
Hash = tuple[int, int]


@dataclass(frozen=True)
class OraclePolicy:
    """The settings of a policy. An object with these attributes or a mapping with these keys will do in its place."""

    threshold: float = 0.99
    k: int = 8
    temperature: float = 1.0
    exclude_original: bool = False
    protect_special: bool = True
    protected_ids: tuple[int, ...] = ()


class Scores(TypedDict):
    """One row of the scores column. `logp` has None where a token was not scored."""

    logp: Sequence[float | None]
    topk_pos: npt.NDArray[np.int32]
    topk_ids: npt.NDArray[np.int32]
    topk_logp: npt.NDArray[np.float32]
    k: int
    ids_hash: int
    prior: str


class RowResult(TypedDict):
    """What editing one row gives. `edits` holds (index among the row's real tokens, old id, new id)."""

    ids: list[int]
    candidates: int
    changes: int
    expected_changes: float
    protected: int
    unscored: int
    edits: list[tuple[int, int, int]]


class BatchResult(TypedDict):
    """What editing a batch gives: ids with their padding, sums over the rows, each row's own result without padding."""

    ids: list[list[int]]
    candidates: int
    changes: int
    expected_changes: float
    protected: int
    unscored: int
    rows: list[RowResult]


@dataclass(frozen=True)
class Draw:
    """One draw with everything that led to it. `drawn` is the original id where no other choice had any weight."""

    key: tuple[int, int]
    counter: tuple[int, int, int, int]
    word: int
    u: float
    shifted: bool
    x: tuple[float | None, ...]
    weights: tuple[float, ...]
    total: float
    target: float
    keep_probability: float
    drawn: int


# Hashes


def _halves(data: bytes) -> Hash:
    # The integer digest reads the canonical (big-endian, high half first) digest, so the low half is its low 64 bits.
    value = xxhash.xxh3_128_intdigest(data)
    return value & MASK64, value >> 64


def document_hash(ids: Ids) -> Hash:
    """XXH3-128 of a row's real ids as little-endian uint32, as (low half, high half)."""
    wide = np.asarray(ids, dtype=np.int64)
    if wide.size and (wide.min() < 0 or wide.max() > 0xFFFFFFFF):
        raise ValueError("ids must fit into uint32")
    return _halves(wide.astype("<u4").tobytes())


def key_hash(value: str | int) -> Hash:
    """XXH3-128 of a key value: the UTF-8 bytes of a string, the 8 bytes of an int64, little-endian."""
    if isinstance(value, str):
        return _halves(value.encode("utf-8"))
    return _halves(int(value).to_bytes(8, "little", signed=True))


# Random numbers


def key_words(seed: int, epoch: int, generation: int = 0, purpose: int = 0) -> tuple[int, int]:
    """The Philox key: (seed, epoch * 2^32 + generation * 2^16 + purpose)."""
    fields = (("seed", seed, 64), ("epoch", epoch, 32), ("generation", generation, 16), ("purpose", purpose, 16))
    for name, value, bits in fields:
        if not 0 <= value < 1 << bits:
            raise ValueError(f"{name} {value} is not in [0, 2^{bits})")
    return seed, (epoch << 32) + (generation << 16) + purpose


def philox_block(key: Sequence[int], counter: Sequence[int]) -> tuple[int, int, int, int]:
    """Block(key, counter) of Philox4x64-10 as in Random123, from NumPy's generator.

    NumPy adds one to its counter before it makes a block, hence the counter less one, as one 256-bit number whose
    lowest 64 bits are word 0.
    """
    number = sum(word << (64 * i) for i, word in enumerate(counter))
    before = (number - 1) % (1 << 256)
    generator = np.random.Philox(
        key=np.array(key, dtype=np.uint64),
        counter=np.array([(before >> (64 * i)) & MASK64 for i in range(4)], dtype=np.uint64),
    )
    a, b, c, d = (int(word) for word in generator.random_raw(4))
    return a, b, c, d


def uniform(seed: int, epoch: int, position: int, key: Hash, generation: int = 0, purpose: int = 0) -> float:
    """The uniform number in [0, 1) of one position of one document, a multiple of 2^-53."""
    word = philox_block(key_words(seed, epoch, generation, purpose), (0, position, *key))[0]
    return (word >> 11) * 2.0**-53


# Drawing and editing


def draw_token(
    old: int,
    top_ids: Sequence[int],
    top_logp: Sequence[float],
    *,
    allowed: Sequence[bool],
    temperature: float,
    key: tuple[int, int],
    counter: tuple[int, int, int, int],
) -> Draw:
    """Draws one token from the first k stored choices. `allowed[j]` says whether choice j may be drawn."""
    word = philox_block(key, counter)[0]
    u = (word >> 11) * 2.0**-53

    # An impossible choice (log P of minus infinity) weighs nothing, and nothing is subtracted from infinity.
    usable = [ok and a != -math.inf for ok, a in zip(allowed, top_logp, strict=True)]
    x: list[float | None] = [a / temperature if ok else None for ok, a in zip(usable, top_logp, strict=True)]
    largest = max((value for value in x if value is not None), default=0.0)
    shifted = largest < -600.0
    if shifted:
        a_max = max(a for ok, a in zip(usable, top_logp, strict=True) if ok)
        x = [(a - a_max) / temperature if ok else None for ok, a in zip(usable, top_logp, strict=True)]
    weights = [0.0 if value is None else math.exp(value) for value in x]

    total = 0.0
    for weight in weights:
        total += weight
    target = u * total
    if total == 0.0:
        return Draw(key, counter, word, u, shifted, tuple(x), tuple(weights), total, target, 1.0, old)

    keep = 0.0
    for token, weight in zip(top_ids, weights, strict=True):
        if token == old:
            keep = weight / total

    drawn = old
    running = 0.0
    for token, weight in zip(top_ids, weights, strict=True):
        running += weight
        if weight > 0.0:
            drawn = int(token)  # the last choice with any weight, should no running sum exceed the target
        if target < running:
            break
    return Draw(key, counter, word, u, shifted, tuple(x), tuple(weights), total, target, keep, drawn)


def _setting(policy: Any, name: str) -> Any:
    return policy[name] if isinstance(policy, Mapping) else getattr(policy, name)


def _check_scores(ids: Sequence[int], scores: Mapping[str, Any], policy_k: int) -> None:
    k = int(scores["k"])
    if len(scores["logp"]) != len(ids):
        raise ValueError(f"scores of {len(scores['logp'])} tokens for a row of {len(ids)}")
    if int(scores["ids_hash"]) != document_hash(ids)[0]:
        raise ValueError("scores of other ids")
    if policy_k > k:
        raise ValueError(f"k {policy_k} is larger than the {k} stored")
    if len(scores["topk_ids"]) != k * len(scores["topk_pos"]) or len(scores["topk_logp"]) != len(scores["topk_ids"]):
        raise ValueError("topk_ids and topk_logp must hold k values for each of topk_pos")
    positions = np.asarray(scores["topk_pos"], dtype=np.int64)
    if positions.size and (positions[0] < 0 or positions[-1] >= len(ids) or (np.diff(positions) <= 0).any()):
        raise ValueError("topk_pos must ascend within the row")
    top_logp = np.asarray(scores["topk_logp"], dtype=np.float32)
    with np.errstate(over="ignore"):
        if not (np.isneginf(top_logp) | (top_logp.astype(np.float16).astype(np.float32) == top_logp)).all():
            raise ValueError("topk_logp must hold float16 values")
    if (top_logp > 0).any():
        raise ValueError("topk_logp must not be positive")


def edit_row(
    ids: Ids,
    scores: Mapping[str, Any],
    policy: Any,
    *,
    special_ids: Collection[int],
    tokenizer_size: int,
    seed: int,
    epoch: int,
    generation: int = 0,
    key: str | int | None = None,
    offset: int = 0,
    protected_mask: Sequence[bool] | npt.NDArray[Any] | None = None,
    labels: Ids | None = None,
    trace: list[Draw] | None = None,
) -> RowResult:
    """Edits one row without padding. `trace`, if given, receives the draw of every candidate, in order."""
    row = [int(token) for token in ids]
    _check_scores(row, scores, int(_setting(policy, "k")))
    bound = math.log(_setting(policy, "threshold"))
    k, stored_k = int(_setting(policy, "k")), int(scores["k"])
    temperature = float(_setting(policy, "temperature"))
    exclude_original = bool(_setting(policy, "exclude_original"))
    barred = {int(token) for token in _setting(policy, "protected_ids")}
    if _setting(policy, "protect_special"):
        barred |= {int(token) for token in special_ids}
    stored_at = {int(position): n for n, position in enumerate(scores["topk_pos"])}
    document_key = document_hash(row) if key is None else key_hash(key)
    philox_key = key_words(seed, epoch, generation)

    result: RowResult = {
        "ids": list(row),
        "candidates": 0,
        "changes": 0,
        "expected_changes": 0.0,
        "protected": 0,
        "unscored": 0,
        "edits": [],
    }
    for i, old in enumerate(row):
        if scores["logp"][i] is None:
            result["unscored"] += 1
            continue
        logp = float(np.float32(scores["logp"][i]))
        if math.isnan(logp) or logp > 0.0:
            raise ValueError(f"logp {logp} at {i}")
        if not logp >= bound:
            continue
        if (
            old in barred
            or old >= tokenizer_size
            or (protected_mask is not None and bool(protected_mask[i]))
            or (labels is not None and int(labels[i]) == -100)
        ):
            result["protected"] += 1
            continue
        if i not in stored_at:
            raise ValueError(f"no stored top-k at {i}")
        result["candidates"] += 1

        start = stored_at[i] * stored_k
        top_ids = [int(token) for token in scores["topk_ids"][start : start + k]]
        top_logp = [float(a) for a in scores["topk_logp"][start : start + k]]
        draw = draw_token(
            old,
            top_ids,
            top_logp,
            allowed=[t not in barred and t < tokenizer_size and not (exclude_original and t == old) for t in top_ids],
            temperature=temperature,
            key=philox_key,
            counter=(0, i + offset, *document_key),
        )
        if trace is not None:
            trace.append(draw)
        result["expected_changes"] += 1.0 - draw.keep_probability
        if draw.drawn != old:
            result["ids"][i] = draw.drawn
            result["changes"] += 1
            result["edits"].append((i, old, draw.drawn))
    return result


def edit_batch(
    ids: Sequence[Ids],
    scores: Sequence[Mapping[str, Any]],
    policy: Any,
    *,
    special_ids: Collection[int],
    tokenizer_size: int,
    seed: int,
    epoch: int,
    generation: int = 0,
    keys: Sequence[str | int] | None = None,
    offsets: Sequence[int] | None = None,
    attention_mask: Sequence[Ids] | None = None,
    protected_mask: Sequence[Sequence[bool]] | None = None,
    labels: Sequence[Ids] | None = None,
) -> BatchResult:
    """Edits a batch. Masks and labels have the shape of `ids`; scores are about the tokens with attention_mask 1."""
    batch: BatchResult = {
        "ids": [],
        "candidates": 0,
        "changes": 0,
        "expected_changes": 0.0,
        "protected": 0,
        "unscored": 0,
        "rows": [],
    }
    for r, padded in enumerate(ids):
        real = [n for n in range(len(padded)) if attention_mask is None or attention_mask[r][n] != 0]
        row = edit_row(
            [int(padded[n]) for n in real],
            scores[r],
            policy,
            special_ids=special_ids,
            tokenizer_size=tokenizer_size,
            seed=seed,
            epoch=epoch,
            generation=generation,
            key=None if keys is None else keys[r],
            offset=0 if offsets is None else int(offsets[r]),
            protected_mask=None if protected_mask is None else [bool(protected_mask[r][n]) for n in real],
            labels=None if labels is None else [int(labels[r][n]) for n in real],
        )
        edited = [int(token) for token in padded]
        for n, token in zip(real, row["ids"], strict=True):
            edited[n] = token
        batch["ids"].append(edited)
        batch["candidates"] += row["candidates"]
        batch["changes"] += row["changes"]
        batch["expected_changes"] += row["expected_changes"]
        batch["protected"] += row["protected"]
        batch["unscored"] += row["unscored"]
        batch["rows"].append(row)
    return batch


# Made-up scores for tests


def to_float16(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Rounds to the nearest float16 value, kept as float32, as stored log probabilities are."""
    return values.astype(np.float32).astype(np.float16).astype(np.float32)


def _other_ids(rng: np.random.Generator, original: int, vocab: int, count: int) -> npt.NDArray[np.int64]:
    """`count` distinct ids other than the original, in random order.

    About half of the positions have one from an end of the vocabulary, where special tokens and ids without a token
    live, so that tests meet them in a top-k.
    """
    end = int(rng.integers(0, 8)) if rng.random() < 0.5 else vocab - 1 - int(rng.integers(0, 8))
    drawn = rng.integers(0, vocab, size=3 * count + 8)
    if rng.random() < 0.5:
        drawn[0] = max(0, min(end, vocab - 1))
    distinct = np.array(list(dict.fromkeys(drawn[drawn != original].tolist())), dtype=np.int64)[:count]
    if len(distinct) < count:  # a small vocabulary, or many collisions
        every = rng.permutation(vocab)
        distinct = every[every != original][:count]
    return rng.permutation(distinct)


def make_scores(
    rng: np.random.Generator,
    ids: Ids,
    vocab: int,
    k: int,
    keep_threshold: float,
    prior: str = "0" * 32,
    *,
    null_first: bool = True,
) -> Scores:
    """Random but plausible scores of one row.

    P has the U shape of real text (many tokens near 0, many near 1). The top-k is stored where P >= keep_threshold; the
    original stands in it wherever it is probable enough, and its stored value is `logp` rounded to float16.
    """
    n = len(ids)
    if not 1 <= k <= vocab:
        raise ValueError(f"k {k} is not in [1, {vocab}]")
    p = np.clip(rng.beta(0.3, 0.3, size=n), 1e-12, 1.0)
    logp = np.minimum(np.log(p), 0.0).astype(np.float32)
    scored = np.ones(n, dtype=bool)
    if null_first and n:
        scored[0] = False
    bound = math.log(keep_threshold) if keep_threshold > 0 else -math.inf
    positions = np.flatnonzero(scored & (logp.astype(np.float64) >= bound))

    top_ids = np.empty((len(positions), k), dtype=np.int32)
    top_logp = np.empty((len(positions), k), dtype=np.float32)
    for row, i in enumerate(positions):
        original = int(ids[int(i)])
        others = _other_ids(rng, original, vocab, min(k, vocab - 1))
        # The rest of the probability, less a tail outside the top-k, falls off about geometrically.
        shares = np.exp(-rng.uniform(0.2, 1.5) * np.arange(len(others))) * rng.uniform(0.5, 1.0, size=len(others))
        rest = max(1.0 - float(p[i]), 1e-12) * rng.uniform(0.6, 0.99)
        choices = np.concatenate([[original], others])
        log_p = np.concatenate([[logp[i]], np.log(rest * shares / shares.sum())]).astype(np.float32)
        first = np.lexsort((choices, -log_p))[:k]
        top_ids[row] = choices[first]
        top_logp[row] = to_float16(log_p[first])
    return {
        "logp": [float(v) if ok else None for v, ok in zip(logp, scored, strict=True)],
        "topk_pos": positions.astype(np.int32),
        "topk_ids": top_ids.reshape(-1),
        "topk_logp": top_logp.reshape(-1),
        "k": k,
        "ids_hash": document_hash(ids)[0],
        "prior": prior,
    }


def scores_to_arrow(rows: Iterable[Mapping[str, Any]]) -> pa.StructArray:
    """The scores column, exactly of SCORES_TYPE."""
    rows = list(rows)
    columns = [pa.array([row[field.name] for row in rows], type=field.type) for field in SCORES_TYPE]
    return pa.StructArray.from_arrays(columns, fields=list(SCORES_TYPE))
