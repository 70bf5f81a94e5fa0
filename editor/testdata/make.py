"""Makes the vectors and goldens beside it: `python make.py` (numpy 2, xxhash 3).

It shares nothing with the Go code: Philox is NumPy's, XXH3 is xxhash's, and the draws are written from the contract,
one token at a time. goldens.jsonl is append-only, since edits must never change: cases whose name is there already are
left as they are, new ones are added at its end.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

HERE = Path(__file__).parent
MASK = 2**64 - 1


def philox(key: list[int], counter: list[int]) -> list[int]:
    """Random123's block; NumPy adds one to its counter before it makes a block."""
    before = (sum(word << 64 * i for i, word in enumerate(counter)) - 1) % 2**256
    generator = np.random.Philox(key=sum(word << 64 * i for i, word in enumerate(key)), counter=before)
    return [int(word) for word in generator.random_raw(4)]


def xxh3(data: bytes) -> tuple[int, int]:
    """Low and high half."""
    value = xxhash.xxh3_128_intdigest(data)
    return value & MASK, value >> 64


def edit(case: dict[str, Any]) -> None:
    """Adds ids_hash, edits and counts to a case."""
    policy, vocabulary, k = case["policy"], case["vocabulary"], case["k"]
    key, epoch = case["key"], case["epoch"]
    own = xxh3(np.array(case["ids"], "<u4").tobytes())
    if key is None:
        low, high = own
    elif isinstance(key, str):
        low, high = xxh3(key.encode())
    else:
        low, high = xxh3(key.to_bytes(8, "little", signed=True))
    words = [epoch["seed"], (epoch["epoch"] << 32) + (epoch["generation"] << 16)]

    barred = set(range(vocabulary["tokenizer_size"], vocabulary["model_size"])) | set(policy["protected_ids"])
    if policy["protect_special"]:
        barred |= set(vocabulary["special"])
    counts = {"tokens": len(case["ids"]), "scored": 0, "unscored": 0, "protected": 0, "candidates": 0, "changes": 0}
    expected, edits = 0.0, []
    stored = {pos: n for n, pos in enumerate(case["topk_pos"])}
    for i, (old, logp) in enumerate(zip(case["ids"], case["logp"], strict=True)):
        if logp is None:
            counts["unscored"] += 1
            continue
        counts["scored"] += 1
        if not logp >= math.log(policy["threshold"]):
            continue
        if old in barred or (case["protected"] and case["protected"][i]):
            counts["protected"] += 1
            continue
        counts["candidates"] += 1
        at = stored[i] * k
        ids = case["topk_ids"][at : at + policy["k"]]
        values = [-math.inf if a is None else a for a in case["topk_logp"][at : at + policy["k"]]]
        allowed = [t not in barred and not (policy["exclude_original"] and t == old) for t in ids]
        most = max((a for a, may in zip(values, allowed, strict=True) if may), default=-math.inf)
        if most == -math.inf:
            continue
        shift = most if most / policy["temperature"] < -600 else 0.0
        weights = [
            math.exp((a - shift) / policy["temperature"]) if may else 0.0 for a, may in zip(values, allowed, strict=True)
        ]
        sums, total = [], 0.0
        for w in weights:
            total += w
            sums.append(total)
        expected += 1 - sum(w for w, t in zip(weights, ids, strict=True) if t == old) / total
        u = (philox(words, [0, i + case["offset"], low, high])[0] >> 11) * 2.0**-53
        new = ids[next(j for j, s in enumerate(sums) if u * total < s)]
        if new != old:
            counts["changes"] += 1
            edits.append([i, old, new])
    case |= {"ids_hash": f"{own[0]:016x}", "edits": edits, "counts": counts, "expected": expected}


def document(rng: np.random.Generator, length: int, k: int, *, sharp: bool = True) -> dict[str, Any]:
    """Random ids and scores: a U of probabilities where sharp, else the original is often not the most probable."""
    model, tokenizer = 100, 96
    ids = [int(t) for t in rng.integers(0, tokenizer, length)]
    logp: list[float | None] = []
    pos: list[int] = []
    top_ids: list[int] = []
    top_logp: list[float | None] = []
    for i, old in enumerate(ids):
        if i == 0 or rng.random() < 0.02:
            logp.append(None)
            continue
        probabilities = rng.dirichlet(np.full(model, 0.05))
        if sharp and rng.random() < 0.6:
            top = 1 - 10 ** rng.uniform(-8, -1)
            probabilities *= 1 - top
            probabilities[old] = 0
            probabilities[old] = top
        elif not sharp:
            ids[i] = old = int(rng.choice(tokenizer, p=probabilities[:tokenizer] / probabilities[:tokenizer].sum()))
        value = float(np.float32(math.log(probabilities[old]))) if probabilities[old] > 0 else -1e4
        logp.append(value)
        if value < math.log(0.05):
            continue
        order = sorted(range(model), key=lambda t: (-probabilities[t], t))[:k]
        pos.append(i)
        top_ids += order
        with np.errstate(divide="ignore"):
            halves = np.log(probabilities[order]).astype(np.float16).astype(float)
        top_logp += [None if math.isinf(a) else float(a) for a in halves]
    return {
        "ids": ids,
        "protected": None,
        "logp": logp,
        "topk_pos": pos,
        "topk_ids": top_ids,
        "topk_logp": top_logp,
        "k": k,
    }


def cases() -> list[dict[str, Any]]:
    def case(name: str, length: int = 64, stored: int = 8, *, sharp: bool = True, **changes: Any) -> dict[str, Any]:
        rng = np.random.default_rng(xxhash.xxh3_64_intdigest(name.encode()))
        made = {
            "name": name,
            "policy": {
                "threshold": 0.99,
                "k": 8,
                "temperature": 1.0,
                "exclude_original": False,
                "protect_special": True,
                "protected_ids": [],
            },
            "vocabulary": {"model_size": 100, "tokenizer_size": 96, "special": [0, 1, 50]},
            "epoch": {"seed": 0, "epoch": 0, "generation": 0},
            "key": None,
            "offset": 0,
            **document(rng, length, stored, sharp=sharp),
        }
        for field in ("policy", "epoch"):
            made[field] |= {name: value for name, value in changes.items() if name in made[field]}
        made |= {name: value for name, value in changes.items() if name in ("key", "offset")}
        if changes.get("mask"):
            made["protected"] = [bool(b) for b in rng.random(length) < 0.3]
        edit(made)
        return made

    return [
        case("paper policy", 256),
        case("paper policy, k 64", 48, stored=64, k=64),
        case("exclude the original", 128, exclude_original=True),
        case("fewer than stored", 128, threshold=0.9, k=3, exclude_original=True),
        case("one token", 128, threshold=0.9, k=1),
        case("one token, excluded", threshold=0.9, k=1, exclude_original=True),
        case("warm", 128, temperature=1.5),
        case("hot", 128, temperature=1000.0),
        case("cold", 64, threshold=0.2, temperature=0.1, sharp=False),
        case("so cold that weights vanish", 64, threshold=0.2, temperature=1e-3, sharp=False),
        case("so cold that quotients overflow", 64, threshold=0.05, temperature=1e-308, sharp=False),
        case("cold, excluded", 128, threshold=0.9, temperature=5e-3, exclude_original=True),
        case("low band", 128, threshold=0.05, sharp=False),
        case("low band, k 5", 128, threshold=0.05, k=5, sharp=False),
        case("special tokens may be edited", 128, threshold=0.5, protect_special=False),
        case("protected ids", 128, threshold=0.5, protected_ids=list(range(0, 96, 2)), exclude_original=True),
        case("all ids protected", threshold=0.5, protected_ids=list(range(100))),
        case("mask", 128, threshold=0.5, exclude_original=True, mask=True),
        case("key of bytes", 128, threshold=0.5, temperature=2.0, key="München 1"),
        case("key of an integer, offset", 128, threshold=0.5, temperature=2.0, key=-2, offset=2**40 + 3),
        case("largest epoch", 128, threshold=0.5, temperature=2.0, seed=MASK, epoch=2**32 - 1, generation=65535),
        case("no tokens", 0),
        case("a token", 1),
    ]


def main() -> None:
    rng = np.random.default_rng(1)
    blocks = []
    for n in range(64):
        key = [int(w) for w in rng.integers(0, 2**64, 2, dtype=np.uint64)]
        counter = [int(w) for w in rng.integers(0, 2**64, 4, dtype=np.uint64)]
        if n < 16:  # as draws have it, with counters that carry when one is subtracted
            counter[:2] = [0, n]
        blocks.append({"key": key, "counter": counter, "block": philox(key, counter)})
    (HERE / "philox.jsonl").write_text("".join(json.dumps(block) + "\n" for block in blocks))

    hashes = []
    for length in (0, 1, 3, 4, 8, 9, 16, 17, 32, 128, 129, 240, 241, 512, 1024, 1025, 2048, 4096, 5000):
        low, high = xxh3(bytes((131 * i + 7) % 256 for i in range(length)))
        hashes.append({"length": length, "low": low, "high": high})
    (HERE / "xxh3.jsonl").write_text("".join(json.dumps(h) + "\n" for h in hashes))

    goldens = HERE / "goldens.jsonl"
    there = {json.loads(line)["name"] for line in goldens.read_text().splitlines()} if goldens.exists() else set()
    with goldens.open("a") as file:
        for made in cases():
            if made["name"] not in there:
                file.write(json.dumps(made, ensure_ascii=False, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
