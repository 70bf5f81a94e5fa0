"""A whole training loop with and without editing: fetch, edit from stored scores, collate, step of a model of 10 million
parameters.

First everything runs in one process (no workers), so that nothing of the editing hides behind the step: what is measured is the
most that editing can cost. The two loops take turns step by step, on the same rows. Then two workers do it, which live on
from epoch to epoch and share the processor with the step, with the dataset in its default format and as Arrow, and the loops
take turns epoch by epoch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from common import machine, take_turns
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import toedit
from toedit.torch import EditCollator

LENGTH, BATCH, STEPS = 256, 16, 24
WORKERS, ROUNDS = 2, 3


def collate(rows: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([row["input_ids"] for row in rows])


def collate_arrays(rows: list[dict[str, Any]]) -> torch.Tensor:
    return torch.from_numpy(np.stack([row["input_ids"] for row in rows])).long()


def main() -> None:
    from datasets import Dataset

    from toedit import hf

    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    prior = toedit.Prior.builtin()
    tokenizer = Tokenizer.from_file(str(prior.tokenizer_file))
    stream = [i for text in topics.values() for i in tokenizer.encode(text).ids]
    rows = [stream[i : i + LENGTH] for i in range(0, BATCH * STEPS * LENGTH, LENGTH)]
    policy = toedit.Policy(threshold=0.9, exclude_original=True)
    scores = prior.score(rows, keep=policy)
    prior.close()
    config = LlamaConfig(
        vocab_size=4096, hidden_size=320, num_hidden_layers=6, num_attention_heads=5, intermediate_size=1152,
        max_position_embeddings=LENGTH, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"Training loop, {millions:.1f} million parameters, batches of {BATCH} x {LENGTH}, Hugging Face dataset. {machine()}")

    def step(ids: torch.Tensor) -> None:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    editor = toedit.Editor(toedit.Prior.builtin(), policy)
    collator = EditCollator(editor, collate)
    plain = Dataset.from_dict({"input_ids": rows})
    scored = plain.add_column("scores", scores)
    loaders = {
        "without editing": torch.utils.data.DataLoader(plain, BATCH, collate_fn=collate),
        "with editing": torch.utils.data.DataLoader(scored, BATCH, collate_fn=collator),
    }
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    fetching: dict[str, list[float]] = {name: [] for name in loaders}
    for turns in range(2):
        collator.set_epoch(turns)
        iterators = {name: iter(loader) for name, loader in loaders.items()}
        for turn in range(STEPS):
            order = list(iterators) if turn % 2 else list(iterators)[::-1]
            for name in order:
                begun = time.perf_counter()
                ids = next(iterators[name])
                fetched = time.perf_counter()
                step(ids)
                if turn > 1:
                    fetching[name].append(fetched - begun)
                    seconds[name].append(time.perf_counter() - begun)
    fetch = {name: float(np.median(values)) for name, values in fetching.items()}
    for name, values in seconds.items():
        print(f"  {name:16}  a step takes {min(values) * 1e3:8.1f} ms (min), {np.median(values) * 1e3:8.1f} (median), ", end="")
        print(f"{fetch[name] * 1e3:.2f} of them to fetch, edit and collate")
    with_, without = seconds["with editing"], seconds["without editing"]
    print(f"  with / without: {np.median(with_) / np.median(without):.4f} by median, {min(with_) / min(without):.4f} by min")
    share = (fetch["with editing"] - fetch["without editing"]) / np.median(without)
    print(f"  what editing adds to fetching is {100 * share:.2f} % of a step ({collator.stats().changes:,} changes made)")

    def loop(dataset: Any, collate_fn: Any) -> Callable[[], None]:
        loader = torch.utils.data.DataLoader(
            dataset, BATCH, collate_fn=collate_fn, num_workers=WORKERS, persistent_workers=True
        )

        def epoch() -> None:
            if isinstance(collate_fn, EditCollator):
                collate_fn.set_epoch(collate_fn.epoch + 1)
            for ids in loader:
                step(ids)

        return epoch

    over_rows = EditCollator(editor, hf.over_rows(collate_arrays))
    peers = {
        "without editing": loop(plain, collate),
        "with editing": loop(scored, collator),
        "as Arrow": loop(hf.arrow(scored), over_rows),
    }
    loops = take_turns(peers, ROUNDS)
    print(f"  {WORKERS} workers, epochs of {STEPS} steps:")
    without_them = loops["without editing"]
    for name, timing in loops.items():
        print(
            f"  {name:16}  {timing.least / STEPS * 1e3:8.1f} ms a step (min), {timing.median / STEPS * 1e3:8.1f} (median), ",
            end="",
        )
        ratios = timing.median / without_them.median, timing.least / without_them.least
        print("{:.4f} of the time without by median, {:.4f} by min".format(*ratios))


if __name__ == "__main__":
    main()
