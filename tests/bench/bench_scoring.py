"""Scoring with the bundled prior's weights against torch, rows of mixed lengths as text comes, on every core.

torch gets its best form: inference mode, its fused attention, rows sorted by length into batches that are cut where padding
would begin to cost, and the batch size that is fastest for it. It computes the same: ln P of every token and the top 8 where
P >= 0.9.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from common import bfloat16_left_out, machine, report, take_turns
from tokenizers import Tokenizer

import toedit
import toedit.export

SOURCE = Path(__file__).parents[2] / "python" / "prior"
TOKENS, LONGEST, K, KEEP = 30_000, 512, 8, 0.9
ROUNDS = 7


def rows_of_text(tokenizer: Tokenizer) -> list[list[int]]:
    """Paragraph groups of the help topics, as long as they happen to be, up to LONGEST tokens."""
    rows: list[list[int]] = []
    total = 0
    for text in topics.values():
        for part in text.split("\n\n\n"):
            ids = tokenizer.encode(part).ids[:LONGEST]
            if ids and total < TOKENS:
                rows.append(ids)
                total += len(ids)
    return rows


def batches(rows: list[list[int]], budget: int) -> list[torch.Tensor]:
    """Rows sorted by length, with the first token's context in front, in padded batches of at most budget tokens."""
    ordered = sorted(([0, *row] for row in rows), key=len, reverse=True)
    out, start = [], 0
    while start < len(ordered):
        length = len(ordered[start])
        chunk = ordered[start : start + max(1, budget // length)]
        start += len(chunk)
        out.append(torch.tensor([row + [0] * (length - len(row)) for row in chunk]))
    return out


def torch_scorer(model: Any, data: list[torch.Tensor], autocast: bool) -> Callable[[], float]:
    @torch.inference_mode()
    def score() -> float:
        total = 0.0
        for ids in data:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                logits = model(input_ids=ids[:, :-1], use_cache=False).logits
            log_p = torch.log_softmax(logits.float(), -1)
            of_token = log_p.gather(-1, ids[:, 1:, None]).squeeze(-1)
            wanted = log_p[of_token >= np.log(KEEP)]
            wanted.topk(K, -1)
            total += float(of_token[ids[:, 1:] != 0].sum())
        return total

    return score


def main() -> None:
    from transformers import AutoModelForCausalLM

    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    print(f"Scoring, {cores} cores. {machine()}, torch {torch.__version__}")
    prior = toedit.Prior.builtin()
    rows = rows_of_text(Tokenizer.from_file(str(prior.tokenizer_file)))
    tokens = sum(map(len, rows))
    lengths = sorted(map(len, rows))
    print(f"{tokens:,} tokens in {len(rows)} rows of {lengths[0]} to {lengths[-1]} tokens, median {lengths[len(rows) // 2]}")

    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(SOURCE, dtype=torch.float32).eval()
        half = AutoModelForCausalLM.from_pretrained(SOURCE, dtype=torch.bfloat16).eval()
        fp32 = toedit.Prior(
            toedit.export.export(str(SOURCE), Path(folder) / "fp32", dtype="fp32", bos="always", max_length=LONGEST)
        )

        def toedit_scorer(p: toedit.Prior) -> Callable[[], Any]:
            return lambda: p.score(rows, k=K, keep=[(KEEP, 1.0)])

        def best(name: str, m: Any, autocast: bool) -> Callable[[], float]:
            candidates = {b: torch_scorer(m, batches(rows, b), autocast) for b in (1024, 2048, 4096, 8192)}
            timings = take_turns({str(b): call for b, call in candidates.items()}, 2)
            budget = min(candidates, key=lambda b: timings[str(b)].least)
            print(f"  {name}: batches of {budget} tokens are its fastest")
            return candidates[budget]

        peers: dict[str, Callable[[], Any]] = {
            "toedit int8": toedit_scorer(prior),
            "toedit fp32": toedit_scorer(fp32),
            "torch fp32": best("torch fp32", model, False),
        }
        if not bfloat16_left_out():
            for name, m, autocast in (("torch bf16 autocast", model, True), ("torch bf16 weights", half, False)):
                peers[name] = best(name, m, autocast)
        timings = take_turns(peers, ROUNDS)
    for ours in ("toedit int8", "toedit fp32"):
        report(ours, {k: v for k, v in timings.items() if k == ours or k.startswith("torch")}, tokens, ours)


if __name__ == "__main__":
    main()
