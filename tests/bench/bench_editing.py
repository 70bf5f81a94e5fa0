"""Editing from stored scores, against vectorised NumPy, a per-token Python loop and a plain copy; and the cost
of crossing from Python to Go and back."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from common import machine, report, take_turns

import toedit
from toedit import _bridge

# The share of tokens in the band, as under an 8-billion-parameter prior, and the bundled prior's vocabulary.
SHARE, VOCABULARY, K = 0.14, 4096, 8
POLICY = toedit.Policy(threshold=0.99, k=K, temperature=1.5)


def batch(rows: int, length: int, prior: toedit.Prior, seed: int = 0) -> pa.RecordBatch:
    """Random ids with plausible scores: SHARE of the tokens have P >= 0.99, with a falling tail behind them."""
    rng = np.random.default_rng(seed)
    n = rows * length
    ids = rng.integers(1, VOCABULARY, n)
    logp = np.log(rng.uniform(0.001, 0.98, n)).astype(np.float32)
    at = np.flatnonzero(rng.random(n) < SHARE)
    top = rng.uniform(0.99, 0.9999, len(at))
    logp[at] = np.log(top)
    tail = np.sort(rng.dirichlet(np.ones(K - 1), len(at)))[:, ::-1] * (1 - top)[:, None]
    topk_logp = np.log(np.concatenate([top[:, None], tail], axis=1)).astype(np.float16).astype(np.float32)
    topk_ids = rng.integers(1, VOCABULARY, (len(at), K)).astype(np.int32)
    topk_ids[:, 0] = ids[at]
    per_row = np.bincount(at // length, minlength=rows)
    starts = np.concatenate([[0], np.cumsum(per_row)]).astype(np.int32)

    def lists(values: np.ndarray[Any, Any], offsets: np.ndarray[Any, Any]) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))

    every = np.arange(rows + 1) * length
    input_ids = lists(ids, every)
    import xxhash  # a test dependency

    hashes = [xxhash.xxh3_128_intdigest(r.astype("<u4").tobytes()) & (2**64 - 1) for r in ids.reshape(rows, length)]
    scores = pa.StructArray.from_arrays(
        [
            lists(logp, every),
            lists((at % length).astype(np.int32), starts),
            lists(topk_ids.reshape(-1), starts * K),
            lists(topk_logp.reshape(-1), starts * K),
            pa.array(np.full(rows, K, np.int32)),
            pa.array(np.array(hashes, np.uint64)),
            pa.array([prior.fingerprint] * rows),
        ],
        fields=list(toedit.SCORES_TYPE),
    )
    return pa.RecordBatch.from_arrays([input_ids, scores], names=["input_ids", "scores"])


class NumpyEditor:
    """The same policy in vectorised NumPy, with its own sequential generator: ids, changes and expected changes."""

    def __init__(self, data: pa.RecordBatch, protected: list[int]) -> None:
        scores = data["scores"]
        self.ids = data["input_ids"].flatten().to_numpy()
        self.logp = scores.field("logp").flatten().to_numpy()
        lengths = np.diff(data["input_ids"].offsets.to_numpy())
        firsts = np.repeat(data["input_ids"].offsets.to_numpy()[:-1], np.diff(scores.field("topk_pos").offsets.to_numpy()))
        self.at = scores.field("topk_pos").flatten().to_numpy() + firsts
        self.topk_ids = scores.field("topk_ids").flatten().to_numpy().reshape(-1, K)
        self.topk_logp = scores.field("topk_logp").flatten().to_numpy().reshape(-1, K)
        self.allowed = np.ones(VOCABULARY, bool)
        self.allowed[protected] = False
        self.rng = np.random.default_rng(0)
        assert lengths.min() > 0

    def __call__(self) -> tuple[np.ndarray[Any, Any], int, float]:
        at = self.at
        band = (self.logp[at] >= np.log(POLICY.threshold)) & self.allowed[self.ids[at]]
        if not band.all():
            at = at[band]
        choices = self.topk_ids if band.all() else self.topk_ids[band]
        x = (self.topk_logp if band.all() else self.topk_logp[band]).astype(np.float64) / POLICY.temperature
        weights = np.exp(x) * self.allowed[choices]
        cumulative = np.cumsum(weights, axis=1)
        total = cumulative[:, -1]
        target = self.rng.random(len(at)) * total
        pick = (cumulative <= target[:, None]).sum(axis=1)
        old = self.ids[at]
        new = choices[np.arange(len(at)), pick]
        expected = float(np.sum(1 - (weights * (choices == old[:, None])).sum(axis=1) / total))
        out = self.ids.copy()
        out[at] = new
        return out, int((new != old).sum()), expected


def python_loop(e: NumpyEditor) -> list[int]:
    """The same, token by token, in plain Python over lists, in its fastest form."""
    generator = random.Random(0)
    out = e.ids.tolist()
    top = {int(p): i for i, p in enumerate(e.at)}
    threshold = math.log(POLICY.threshold)
    logp, topk_ids, topk_logp = e.logp.tolist(), e.topk_ids.tolist(), e.topk_logp.tolist()
    for position, lp in enumerate(logp):
        if lp >= threshold and e.allowed[out[position]]:
            row = top[position]
            weights = [math.exp(a / POLICY.temperature) for a in topk_logp[row]]
            target, running = generator.random() * sum(weights), 0.0
            for token, weight in zip(topk_ids[row], weights, strict=True):
                running += weight
                if target < running:
                    out[position] = token
                    break
    return out


def element_loop(e: NumpyEditor) -> np.ndarray[Any, Any]:
    """The same, token by token, over NumPy arrays: P of each token, a weighted choice where it is in the band."""
    generator = random.Random(0)
    out = e.ids.copy()
    top = {int(p): i for i, p in enumerate(e.at)}
    for position in range(len(out)):
        if math.exp(e.logp[position]) >= POLICY.threshold and e.allowed[out[position]]:
            row = top[position]
            weights = np.exp(e.topk_logp[row] / POLICY.temperature)
            out[position] = generator.choices(e.topk_ids[row], weights)[0]
    return out


LOOPS = {"loop over lists": python_loop, "loop over arrays": element_loop}


def reference(data: pa.RecordBatch, protected: list[int]) -> Callable[[], object]:
    """The tests' reference: a loop over tokens in Python that makes the same draws, and so the same edits."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from oracle import edit_row

    rows, scores = data["input_ids"].to_pylist(), data["scores"].to_pylist()
    vocabulary = {"special_ids": protected, "tokenizer_size": VOCABULARY, "seed": 0, "epoch": 0}
    return lambda: [edit_row(ids, s, POLICY, **vocabulary) for ids, s in zip(rows, scores, strict=True)]


def main() -> None:
    print(f"Editing from stored scores. {machine()}")
    # Everybody computes in one thread, but for ours with millions of tokens, which takes all cores. The process is not tied
    # to one core: Go's idle monitor would then take turns with it.
    prior = toedit.Prior.builtin()
    editor = toedit.Editor(prior, POLICY)
    protected = prior.describe()["special_ids"]

    for rows, length, rounds, inner, loop in ((64, 512, 40, 20, True), (8192, 512, 7, 1, False)):
        data = batch(rows, length, prior)
        peer = NumpyEditor(data, protected)
        edited = editor.edit(data)
        _, changes, expected = peer()
        # The same work: expected changes agree, changes are other draws of the same distribution.
        assert abs(edited.expected_changes - expected) < 1e-6 * expected, (edited.expected_changes, expected)
        assert abs(changes - edited.changes) < 6 * (2 * expected) ** 0.5, (changes, edited.changes)
        peers: dict[str, Any] = {
            "toedit": lambda data=data: editor.edit(data),
            "numpy": peer,
            "plain copy": lambda peer=peer: peer.ids.copy(),
        }
        timings = take_turns(peers, rounds, inner)
        if loop:
            loops = {
                "loop over lists": lambda peer=peer: python_loop(peer),
                "loop over arrays": lambda peer=peer: element_loop(peer),
            }
            loops["reference, same draws"] = reference(data, protected)
            timings.update(take_turns(loops, 3))
        title = f"{rows} x {length} int64 ids, {edited.candidates:,} candidates, {edited.changes:,} changes"
        report(title, timings, rows * length, "toedit")

    # Crossing: a batch in which nothing is a candidate costs the way to Go and back, the checks and the copy; its rows
    # are then measured again in Go's own time by making the batch eight times as long.
    small = batch(8, 512, prior)
    long = batch(64, 512, prior)
    timings = take_turns({"8 x 512": lambda: editor.edit(small), "64 x 512": lambda: editor.edit(long)}, 60, 50)
    per_row = (timings["64 x 512"].median - timings["8 x 512"].median) / 56
    crossing = timings["8 x 512"].median - 8 * per_row
    least = timings["8 x 512"].least - 8 * (timings["64 x 512"].least - timings["8 x 512"].least) / 56
    whole = timings["8 x 512"].median
    print("\nCrossing Python -> Go -> Python, the intercept over 8 and 64 rows of 512")
    print(f"  8 x 512 takes {whole * 1e6:.1f} µs, of which editing {8 * per_row * 1e6:.1f}; crossing {crossing * 1e6:.1f} µs")
    print(f"  by minima: crossing {least * 1e6:.1f} µs")
    print(f"  (memory still held: {_bridge.call('AllocatedBytes')} bytes)")


if __name__ == "__main__":
    main()
