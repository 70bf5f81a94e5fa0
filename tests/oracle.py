"""Reference implementation of editing from stored scores, in plain NumPy.

Written from the contracts alone (document hash, document key, draws, scores) and sharing no code with the package, so
that an equal result means that both follow the contracts. It is meant to be read: one token at a time, one step a line.

`math.exp` and not `numpy.exp`: NumPy picks its exponential by the type of CPU, and the last bit differs between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

MASK64 = (1 << 64) - 1

# Philox purposes.
DRAW, SELECT, ORDER = 0, 1, 2

DROPPED = -1

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
class OracleBand:
    """A range of P and what is done with the tokens in it: [low, high], or [low, high) where it is not closed."""

    low: float = 0.0
    high: float = 1.0
    closed: bool | None = None  # by default at 1 alone
    action: str = "resample"


@dataclass(frozen=True)
class OraclePolicy:
    """The settings of a policy. An object with these attributes or a mapping with these keys will do in its place; what it
    lacks has the value given here. The threshold is that of the one band where no bands are given."""

    threshold: float | None = 0.99
    k: int = 8
    temperature: float = 1.0
    exclude_original: bool = False
    protect_special: bool = True
    protected_ids: tuple[int, ...] = ()
    bands: tuple[OracleBand, ...] = ()
    top_p: float = 1.0
    rejection_tries: int = 0
    whole_words: bool = False
    edit_probability: float = 1.0
    max_edit_rate: float = 1.0
    max_edit_order: str = "highest"


class Scores(TypedDict):
    """One row of the scores column. `logp` has None where a token was not scored."""

    logp: Sequence[float | None]
    topk_pos: npt.NDArray[np.int32]
    topk_ids: npt.NDArray[np.int32]
    topk_logp: npt.NDArray[np.float32]
    k: int
    ids_hash: int
    prior: str


class Totals(TypedDict):
    """What was met and done."""

    candidates: int
    changes: int
    expected_changes: float
    protected: int
    unscored: int
    unselected: int
    truncated: int
    dropped: int
    masked: int


class RowResult(Totals):
    """What editing one row gives. `edits` holds (index among the row's real tokens, old id, new id, number of the band);
    the new id is DROPPED where the token was taken out, and the old one where its label became -100."""

    ids: list[int]
    edits: list[tuple[int, int, int, int]]


class BatchResult(Totals):
    """What editing a batch gives: ids with their padding, sums over the rows, each row's own result without padding."""

    ids: list[list[int]]
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
    truncated: bool = False


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


def nucleus(
    old: int, old_logp: float, top_ids: Sequence[int], top_logp: Sequence[float], p: float, temperature: float, unstored: int
) -> int | None:
    """How many of the stored choices are the nucleus: the fewest most probable ones that have the share p of the whole
    distribution at a temperature. None where what is stored does not tell. `unstored` is how many ids are not among them.
    """
    if temperature == 1.0 and top_ids[0] == old and old_logp >= math.log(p):
        return 1
    # The original's own value is not rounded to float16.
    a = [old_logp if token == old else value for token, value in zip(top_ids, top_logp, strict=True)]
    masses = [math.exp(value) for value in a]
    if temperature == 1.0:
        return _first_reaching(masses, p)

    # What the unstored ids weigh at this temperature is known within bounds only: they share what is left of the mass, and
    # none of them has more than the last stored choice. Below 1 the temperature favours few large shares, above 1 equal ones.
    weights = [math.exp(value / temperature) for value in a]
    total = _in_order(weights)
    left = 1.0 - _in_order(masses)
    if left <= 0.0 or unstored == 0:
        rest = 0.0
    elif temperature < 1.0:
        rest = left * math.exp(top_logp[-1] * (1.0 / temperature - 1.0))
    else:
        # left^(1/T), from above, without a power of anything but 2
        fraction, exponent = math.frexp(left)
        m, e = 2.0 * fraction, 1 - exponent
        rest = unstored ** (1.0 - 1.0 / temperature) * 2.0 ** (-e / temperature) * (1.0 + (m - 1.0) / temperature)
    n = _first_reaching(weights, p * total)
    if n is None or total < 1e-250 or _in_order(weights[:n]) < p * (total + rest):
        return None
    return n


def _in_order(values: Iterable[float]) -> float:
    # Not sum(), which compensates its rounding from Python 3.12 on.
    total = 0.0
    for value in values:
        total += value
    return total


def _first_reaching(values: Sequence[float], target: float) -> int | None:
    running = 0.0
    for n, value in enumerate(values, start=1):
        running += value
        if running >= target:
            return n
    return None


def draw_token(
    old: int,
    top_ids: Sequence[int],
    top_logp: Sequence[float],
    *,
    allowed: Sequence[bool],
    temperature: float,
    key: tuple[int, int],
    counter: tuple[int, int, int, int],
    tries: int = 0,
) -> Draw:
    """Draws one token from the first k stored choices. `allowed[j]` says whether choice j may be drawn. With `tries`, the
    original is rejected so often, and stays if it is proposed each time."""
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

    total = _in_order(weights)
    target = u * total
    if total == 0.0:
        return Draw(key, counter, word, u, shifted, tuple(x), tuple(weights), total, target, 1.0, old)

    keep = 0.0
    for token, weight in zip(top_ids, weights, strict=True):
        if token == old:
            keep = weight / total

    drawable = weights
    if tries > 0:
        q, keep = keep, 1.0
        for _ in range(tries):
            keep *= q
        if u >= keep:
            drawable = [0.0 if token == old else weight for token, weight in zip(top_ids, weights, strict=True)]
            target = (u - keep) / (1.0 - keep) * _in_order(drawable)

    drawn = old
    running = 0.0
    for token, weight in zip(top_ids, drawable, strict=True):
        running += weight
        if weight > 0.0:
            drawn = int(token)  # the last choice with any weight, should no running sum exceed the target
        if target < running:
            break
    if tries > 0 and u < keep:
        drawn = old
    return Draw(key, counter, word, u, shifted, tuple(x), tuple(weights), total, target, keep, drawn)


def _setting(policy: Any, name: str) -> Any:
    default = getattr(OraclePolicy, name)
    return policy.get(name, default) if isinstance(policy, Mapping) else getattr(policy, name, default)


def _bands(policy: Any) -> list[tuple[float, float, bool, str]]:
    """The bands as (ln low, ln high, closed, action)."""
    bands = _setting(policy, "bands")
    if not bands:
        bands = [OracleBand(low=_setting(policy, "threshold"))]
    logs = []
    for band in bands:
        low, high = (math.log(p) if p > 0.0 else -math.inf for p in (band.low, band.high))
        logs.append((low, high, band.high == 1.0 if band.closed is None else band.closed, band.action))
    return logs


def _band_of(logp: float, bands: Sequence[tuple[float, float, bool, str]]) -> int | None:
    for n, (low, high, closed, _) in enumerate(bands):
        if low <= logp < high or (closed and logp == high):
            return n
    return None


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


def _selected(
    candidates: Sequence[int],
    logp: Sequence[float],
    policy: Any,
    word: Callable[[int, int], int],
) -> set[int]:
    """The candidates that edit_probability and then max_edit_rate leave. `word(i, purpose)` is a token's Philox word."""
    probability = float(_setting(policy, "edit_probability"))
    chosen = [i for i in candidates if (word(i, SELECT) >> 11) * 2.0**-53 < probability]
    limit = math.floor(float(_setting(policy, "max_edit_rate")) * len(logp))
    if len(chosen) > limit:
        random = _setting(policy, "max_edit_order") == "random"
        chosen.sort(key=lambda i: (word(i, ORDER) if random else -logp[i], i))
    return set(chosen[:limit])


def edit_row(
    ids: Ids,
    scores: Mapping[str, Any],
    policy: Any,
    *,
    special_ids: Collection[int],
    tokenizer_size: int,
    seed: int,
    epoch: int,
    vocab_size: int | None = None,
    generation: int = 0,
    key: str | int | None = None,
    offset: int = 0,
    protected_mask: Sequence[bool] | npt.NDArray[Any] | None = None,
    labels: Ids | None = None,
    word_classes: Sequence[int] | None = None,
    trace: list[Draw] | None = None,
) -> RowResult:
    """Edits one row without padding. `trace`, if given, receives the draw of every candidate that is drawn, in order.

    `vocab_size` is the model's, by default the tokenizer's; it matters to top_p at a temperature above 1. `word_classes`
    says of every id whether it begins a word, continues one or neither; it matters to whole_words.
    """
    row = [int(token) for token in ids]
    k, stored_k = int(_setting(policy, "k")), int(scores["k"])
    _check_scores(row, scores, k)
    bands = _bands(policy)
    temperature = float(_setting(policy, "temperature"))
    top_p = float(_setting(policy, "top_p"))
    exclude_original = bool(_setting(policy, "exclude_original"))
    barred = {int(token) for token in _setting(policy, "protected_ids")}
    if _setting(policy, "protect_special"):
        barred |= {int(token) for token in special_ids}
    stored_at = {int(position): n for n, position in enumerate(scores["topk_pos"])}
    document_key = document_hash(row) if key is None else key_hash(key)

    def counter(i: int) -> tuple[int, int, int, int]:
        return 0, i + offset, *document_key

    # Bands and protection.
    result: RowResult = {**_nothing(), "ids": [], "edits": []}
    logp = [0.0] * len(row)
    band_at: dict[int, int] = {}
    for i, old in enumerate(row):
        if scores["logp"][i] is None:
            result["unscored"] += 1
            continue
        logp[i] = float(np.float32(scores["logp"][i]))
        if math.isnan(logp[i]) or logp[i] > 0.0:
            raise ValueError(f"logp {logp[i]} at {i}")
        band = _band_of(logp[i], bands)
        if band is None:
            continue
        if (
            old in barred
            or old >= tokenizer_size
            or (protected_mask is not None and bool(protected_mask[i]))
            or (labels is not None and int(labels[i]) == -100)
        ):
            result["protected"] += 1
            continue
        if i not in stored_at and bands[band][-1] == "resample":
            raise ValueError(f"no stored top-k at {i}")
        result["candidates"] += 1
        band_at[i] = band

    # Amount.
    chosen = _selected(
        list(band_at), logp, policy, lambda i, purpose: philox_block(key_words(seed, epoch, generation, purpose), counter(i))[0]
    )
    result["unselected"] = len(band_at) - len(chosen)

    # Actions.
    for i, old in enumerate(row):
        if i not in chosen:
            result["ids"].append(old)
            continue
        band = band_at[i]
        action = bands[band][-1]
        if action == "drop":
            result["dropped"] += 1
            result["edits"].append((i, old, DROPPED, band))
            continue
        if action == "mask_loss":
            result["masked"] += 1
            result["edits"].append((i, old, old, band))
            result["ids"].append(old)
            continue
        start = stored_at[i] * stored_k
        top_ids = [int(token) for token in scores["topk_ids"][start : start + k]]
        top_logp = [float(a) for a in scores["topk_logp"][start : start + k]]
        n: int | None = k
        if top_p < 1.0:
            size = tokenizer_size if vocab_size is None else vocab_size
            n = nucleus(old, logp[i], top_ids, top_logp, top_p, temperature, size - k)
        if n is None:
            result["truncated"] += 1
            result["ids"].append(old)
            continue
        allowed = [
            j < n
            and t not in barred
            and t < tokenizer_size
            and not (exclude_original and t == old)
            and not (_setting(policy, "whole_words") and word_classes is not None and word_classes[t] != word_classes[old])
            for j, t in enumerate(top_ids)
        ]
        draw = draw_token(
            old,
            top_ids,
            top_logp,
            allowed=allowed,
            temperature=temperature,
            key=key_words(seed, epoch, generation, DRAW),
            counter=counter(i),
            tries=int(_setting(policy, "rejection_tries")),
        )
        if trace is not None:
            trace.append(draw)
        result["expected_changes"] += 1.0 - draw.keep_probability
        result["ids"].append(draw.drawn)
        if draw.drawn != old:
            result["changes"] += 1
            result["edits"].append((i, old, draw.drawn, band))
    return result


def _nothing() -> Totals:
    return {
        "candidates": 0,
        "changes": 0,
        "expected_changes": 0.0,
        "protected": 0,
        "unscored": 0,
        "unselected": 0,
        "truncated": 0,
        "dropped": 0,
        "masked": 0,
    }


def edit_batch(
    ids: Sequence[Ids],
    scores: Sequence[Mapping[str, Any]],
    policy: Any,
    *,
    keys: Sequence[str | int] | None = None,
    offsets: Sequence[int] | None = None,
    attention_mask: Sequence[Ids] | None = None,
    protected_mask: Sequence[Sequence[bool]] | None = None,
    labels: Sequence[Ids] | None = None,
    **context: Any,
) -> BatchResult:
    """Edits a batch. Masks and labels have the shape of `ids`; scores are about the tokens with attention_mask 1. `context`
    is what `edit_row` takes for every row: the tokenizer's ids, seed, epoch and so on."""
    batch: BatchResult = {**_nothing(), "ids": [], "rows": []}
    for r, padded in enumerate(ids):
        real = [n for n in range(len(padded)) if attention_mask is None or attention_mask[r][n] != 0]
        row = edit_row(
            [int(padded[n]) for n in real],
            scores[r],
            policy,
            key=None if keys is None else keys[r],
            offset=0 if offsets is None else int(offsets[r]),
            protected_mask=None if protected_mask is None else [bool(protected_mask[r][n]) for n in real],
            labels=None if labels is None else [int(labels[r][n]) for n in real],
            **context,
        )
        new = {real[i]: token for i, _, token, _ in row["edits"]}
        edited = [new.get(n, int(token)) for n, token in enumerate(padded)]
        batch["ids"].append([token for token in edited if token != DROPPED])
        for name in _nothing():
            batch[name] += row[name]  # type: ignore[literal-required]
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
