"""Editing from stored scores with every sampler, on one core against NumPy, and on two cores against one.

NumPy comes twice, with a sequential generator of its own, and does the same work from the same batch: edited ids (and
labels), changes, expected changes. Once as one writes it down, in arrays of (candidates, k); and once as one makes it fast:
in float32, a column of choices after the other, without a reduction along the short axis. It checks nothing, hashes nothing
and keeps no log; and at a temperature other than 1 it takes what is stored for the whole distribution of a nucleus.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash  # a test dependency
from common import machine, report, take_turns

import toedit

VOCABULARY, K = 4096, 8
Array = npt.NDArray[Any]
Result = tuple[Array, Array | None, int, float]

LOW_DROP = toedit.Policy.preset("reference-code-low-drop")
MASKED = (toedit.Band(0.99), toedit.Band(0.9, 0.99, action="mask_loss"), toedit.Band(0.0, 0.001, action="drop"))
# P >= 0.99 where nothing else is said.
CASES: dict[str, toedit.Policy] = {
    "top-k": toedit.Policy(),
    "temperature 1.5": toedit.Policy(temperature=1.5),
    "exclude_original": toedit.Policy(exclude_original=True),
    "rejection, 8 tries": toedit.Policy(rejection_tries=8),
    "rejection, 8 tries, temperature 1.5": toedit.Policy(rejection_tries=8, temperature=1.5),
    "top-p 0.9 (the identity)": toedit.Policy(top_p=0.9),
    "top-p 0.9, temperature 1.5": toedit.Policy(top_p=0.9, temperature=1.5),
    "top-p 0.9, P >= 0.5": toedit.Policy(threshold=0.5, top_p=0.9),
    "top-p 0.9, temperature 1.5, P >= 0.5": toedit.Policy(threshold=0.5, top_p=0.9, temperature=1.5),
    "top-p 0.9, temperature 1.5, rejection, P >= 0.5": toedit.Policy(
        threshold=0.5, top_p=0.9, temperature=1.5, rejection_tries=8
    ),
    "exclude_original, temperature 1.5, P >= 0.5": toedit.Policy(threshold=0.5, exclude_original=True, temperature=1.5),
    "top-k, drop P < 0.001": LOW_DROP,
    "the same, mask_loss 0.9 <= P < 0.99": toedit.Policy(bands=MASKED),
}


def batch(rows: int, length: int, prior: toedit.Prior, keep: float, labels: bool, seed: int = 0) -> pa.RecordBatch:
    """Random ids with plausible scores: 35 % of the tokens have P < 0.1, 27 % P >= 0.9 and 14 % P >= 0.99 (as under an
    8-billion-parameter prior). The top-k is stored where P >= keep."""
    rng = np.random.default_rng(seed)
    n = rows * length
    ids = rng.integers(1, VOCABULARY, n)
    p = np.interp(rng.random(n), [0.0, 0.02, 0.35, 0.73, 0.86, 1.0], [1e-5, 0.001, 0.1, 0.9, 0.99, 0.9999])
    at = np.flatnonzero(p >= keep)
    tail = np.sort(rng.dirichlet(np.ones(K), len(at)))[:, :0:-1] * (1 - p[at])[:, None]
    topk_logp = np.log(np.concatenate([p[at][:, None], tail], axis=1)).astype(np.float16).astype(np.float32)
    topk_ids = rng.integers(1, VOCABULARY, (len(at), K)).astype(np.int32)
    topk_ids[:, 0] = ids[at]
    starts = np.concatenate([[0], np.cumsum(np.bincount(at // length, minlength=rows))])
    every = np.arange(rows + 1) * length

    def lists(values: Array, offsets: Array) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))

    hashes = [xxhash.xxh3_128_intdigest(r.astype("<u4").tobytes()) & (2**64 - 1) for r in ids.reshape(rows, length)]
    scores = pa.StructArray.from_arrays(
        [
            lists(np.log(p).astype(np.float32), every),
            lists((at % length).astype(np.int32), starts),
            lists(topk_ids.reshape(-1), starts * K),
            lists(topk_logp.reshape(-1), starts * K),
            pa.array(np.full(rows, K, np.int32)),
            pa.array(np.array(hashes, np.uint64)),
            pa.array([prior.fingerprint] * rows),
        ],
        fields=list(toedit.SCORES_TYPE),
    )
    columns = {"input_ids": lists(ids, every), "scores": scores}
    return pa.RecordBatch.from_pydict(columns | ({"labels": lists(ids.copy(), every)} if labels else {}))


class NumpyEditor:
    """A policy in NumPy. `draw` is what its two forms do differently."""

    def __init__(self, policy: toedit.Policy, protected: list[int]) -> None:
        self.policy = policy
        self.allowed = np.ones(VOCABULARY, np.bool_)
        self.allowed[protected] = False
        self.allowed32 = self.allowed.astype(np.float32)
        self.rng = np.random.Generator(np.random.SFC64(0))
        bands = {band.action: band for band in policy.candidate_bands}
        self.low = np.float32(np.log(bands["resample"].low))
        self.mask_low = np.float32(np.log(bands["mask_loss"].low)) if "mask_loss" in bands else None
        self.drop_below = np.float32(np.log(bands["drop"].high)) if "drop" in bands else None

    def __call__(self, data: pa.RecordBatch) -> Result:
        scores = data["scores"]
        starts = data["input_ids"].offsets.to_numpy()
        ids = data["input_ids"].flatten().to_numpy()
        logp = scores.field("logp").flatten().to_numpy()
        stored = scores.field("topk_pos")
        at = stored.flatten().to_numpy() + np.repeat(starts[:-1], np.diff(stored.offsets.to_numpy()))
        choices = scores.field("topk_ids").flatten().to_numpy().reshape(-1, K)
        top_logp = scores.field("topk_logp").flatten().to_numpy().reshape(-1, K)

        own = np.take(logp, at)
        old = np.take(ids, at)
        editable = np.take(self.allowed, old)
        out = ids.copy()
        labels = None
        if "labels" in data.schema.names:
            labels = data["labels"].flatten().to_numpy().copy()
        masked = at[(own >= self.mask_low) & (own < self.low) & editable] if self.mask_low is not None else None
        met = np.flatnonzero((own >= self.low) & editable)
        if len(met) < len(at):
            at, old, own = np.take(at, met), np.take(old, met), np.take(own, met)
            choices, top_logp = np.take(choices, met, axis=0), np.take(top_logp, met, axis=0)
        new, expected = self.draw(old, own, choices, top_logp)
        out[at] = new
        if labels is not None:
            labels[at] = new
        if masked is not None and labels is not None:
            labels[masked] = -100
        if self.drop_below is not None:
            kept = (logp >= self.drop_below) | ~np.take(self.allowed, ids)
            np.add.reduceat(kept, starts[:-1], dtype=np.int32)  # the rows' new lengths
            out = out[kept]
            labels = None if labels is None else labels[kept]
        return out, labels, int(np.count_nonzero(new != old)), expected

    def draw(self, old: Array, own: Array, choices: Array, top_logp: Array) -> tuple[Array, float]:
        raise NotImplementedError


class PlainEditor(NumpyEditor):
    """As one writes it down."""

    def draw(self, old: Array, own: Array, choices: Array, top_logp: Array) -> tuple[Array, float]:
        policy = self.policy
        weights = np.exp(top_logp.astype(np.float64) / policy.temperature)
        if policy.top_p < 1:
            running = np.cumsum(weights, axis=1)
            whole = 1.0 if policy.temperature == 1 else running[:, -1:]
            weights[running - weights >= policy.top_p * whole] = 0.0
        weights *= self.allowed[choices]
        original = choices == old[:, None]
        if policy.exclude_original:
            weights[original] = 0.0
        total = weights.sum(axis=1)
        keep = (weights * original).sum(axis=1) / total
        u = self.rng.random(len(old))
        if policy.rejection_tries:
            keep **= policy.rejection_tries
            weights[original] = 0.0
        running = np.cumsum(weights, axis=1)
        if policy.rejection_tries:
            stays = u < keep
            target = np.divide(u - keep, 1.0 - keep, out=np.zeros_like(u), where=~stays) * running[:, -1]
        else:
            target = u * total
        pick = (running <= target[:, None]).sum(axis=1)
        new = choices[np.arange(len(old)), np.minimum(pick, K - 1)]
        if policy.rejection_tries:
            new = np.where(stays, old, new)
        return new, float(np.sum(1.0 - keep))


class FastEditor(NumpyEditor):
    """As one makes it fast: float32, columns, np.take, few temporary arrays."""

    def draw(self, old: Array, own: Array, choices: Array, top_logp: Array) -> tuple[Array, float]:
        policy, n = self.policy, len(old)
        weights = top_logp * np.float32(1.0 / policy.temperature)
        np.exp(weights, out=weights)
        if policy.top_p < 1:
            whole = np.float32(1.0) if policy.temperature == 1 else weights.dot(np.ones(K, np.float32))
            limit = np.float32(policy.top_p) * whole
            before = weights[:, 0].copy()
            for j in range(1, K):
                column = weights[:, j]
                inside = before < limit
                before += column
                column *= inside
        weights *= np.take(self.allowed32, choices)
        original = choices == old.astype(np.int32)[:, None]
        if policy.exclude_original:
            weights *= ~original
        running = np.empty((K, n), np.float32)
        u = self.rng.random(n, dtype=np.float32)
        if policy.rejection_tries:
            others = weights * ~original
            self.accumulate(others, running)
            mine = (weights * original).dot(np.ones(K, np.float32))
            keep = mine / (running[-1] + mine)
            keep **= np.float32(policy.rejection_tries)
            stays = u < keep
            target = (u - keep) / np.maximum(np.float32(1.0) - keep, np.float32(1e-30)) * running[-1]
        else:
            self.accumulate(weights, running)
            target = u * running[-1]
            keep = None if policy.exclude_original else (weights * original).dot(np.ones(K, np.float32)) / running[-1]
        pick = np.zeros(n, np.int8)
        for j in range(K - 1):
            pick += (running[j] <= target).view(np.int8)
        flat = np.arange(0, n * K, K)
        flat += pick
        new = np.take(choices.reshape(-1), flat)
        if policy.rejection_tries:
            new = np.where(stays, old, new)
        return new, float(n) if keep is None else n - float(np.sum(keep, dtype=np.float64))

    @staticmethod
    def accumulate(weights: Array, running: Array) -> None:
        running[0] = weights[:, 0]
        for j in range(1, K):
            np.add(running[j - 1], weights[:, j], out=running[j])


def check(edited: toedit.Edited, peer: NumpyEditor, result: Result) -> None:
    """That the peer did the same work: the same tokens are there, changes are other draws of the same distribution."""
    counts = edited.counts
    out, labels, changes, expected = result
    assert len(out) == counts.tokens - counts.dropped
    if labels is not None:
        assert np.count_nonzero(labels == -100) == counts.masked
    if counts.truncated:  # NumPy draws these
        return
    # A nucleus may end elsewhere: the original's mass is not rounded for it in toedit.
    precise = 1e-2 if peer.policy.top_p < 1 else 1e-6 if isinstance(peer, PlainEditor) else 1e-3
    assert abs(expected - counts.expected_changes) <= precise * expected + 1e-9, (counts.expected_changes, expected)
    assert abs(changes - counts.changes) <= 6 * (2 * expected) ** 0.5, (counts.changes, changes)


def samplers(prior: toedit.Prior) -> None:
    protected = prior.describe()["special_ids"]
    for name, policy in CASES.items():
        low = min(band.low for band in policy.candidate_bands if band.action != "drop")
        data = batch(64, 512, prior, keep=low, labels="mask_loss" in name)
        editor = toedit.Editor(prior, policy)
        plain, fast = PlainEditor(policy, protected), FastEditor(policy, protected)
        counts = editor.edit(data).counts
        for peer in (plain, fast):
            check(editor.edit(data), peer, peer(data))
        peers = {
            "toedit": lambda editor=editor, data=data: editor.edit(data),
            "numpy": lambda plain=plain, data=data: plain(data),
            "numpy, tuned": lambda fast=fast, data=data: fast(data),
        }
        what = f"{counts.candidates:,} candidates, {counts.changes:,} changes"
        for count in ("dropped", "masked", "truncated"):
            if getattr(counts, count):
                what += f", {getattr(counts, count):,} {count}"
        report(f"{name}: {what}", take_turns(peers, 40, 20), 64 * 512, "toedit")


TIMES = 10


def edit_when_asked() -> None:
    """Edits 4 million tokens, ten times for each line of standard input."""
    prior = toedit.Prior.builtin()
    data = batch(8192, 512, prior, keep=0.99, labels=False)
    editor = toedit.Editor(prior, toedit.Policy(temperature=1.5))
    for _ in sys.stdin:
        for _ in range(TIMES):
            editor.edit(data)
        print(flush=True)


def two_cores() -> None:
    """One call on two threads against one: in processes of their own, because Go reads how many at its start. A turn is ten
    calls: cores that slept through the other's turn are slower at first."""
    workers = {
        f"{n} threads": subprocess.Popen(
            [sys.executable, __file__, "edit"],
            env={**os.environ, "GOMAXPROCS": str(n)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in (1, 2)
    }

    def ask(worker: subprocess.Popen[str]) -> None:
        assert worker.stdin is not None
        assert worker.stdout is not None
        print(file=worker.stdin, flush=True)
        worker.stdout.readline()

    peers = {name: functools.partial(ask, worker) for name, worker in workers.items()}
    report(f"{TIMES} calls of 8192 x 512 int64 ids", take_turns(peers, 15), TIMES * 8192 * 512, "2 threads")
    for worker in workers.values():
        worker.communicate()


def main() -> None:
    print(f"Editing with every sampler, 64 x 512 int64 ids, one core. {machine()}")
    prior = toedit.Prior.builtin()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", toedit.IdentityWarning)
        samplers(prior)
    two_cores()


if __name__ == "__main__":
    if sys.argv[1:] == ["edit"]:
        edit_when_asked()
    else:
        main()
