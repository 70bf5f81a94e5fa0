"""How much of the scoring EditingLoader hides behind a training step that leaves it the processor.

The step sleeps, as a trainer's process does while its GPU computes. Three loops take turns: batches as they are, batches that
are scored and edited before the step, and batches that EditingLoader scores and edits while the step runs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pydoc_data.topics import topics
from typing import Any

import torch
from common import machine, take_turns
from tokenizers import Tokenizer

import toedit
from toedit.torch import EditingLoader

LENGTH, BATCH, STEPS = 256, 16, 24
PREFETCH = 2


def main() -> None:
    prior = toedit.Prior.builtin()
    tokenizer = Tokenizer.from_file(str(prior.tokenizer_file))
    stream = [i for text in topics.values() for i in tokenizer.encode(text).ids]
    rows = [torch.tensor(stream[i : i + LENGTH]) for i in range(0, BATCH * STEPS * LENGTH, LENGTH)]
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.9, exclude_original=True))
    editor(torch.stack(rows[:BATCH]))
    begun = time.perf_counter()
    for start in range(0, len(rows), BATCH):
        editor(torch.stack(rows[start : start + BATCH]))
    editing = (time.perf_counter() - begun) / STEPS
    # A step takes a bit longer than what is to be hidden behind it; a shorter one could not hide it.
    step = 1.3 * editing
    loader: Any = torch.utils.data.DataLoader(rows, BATCH)
    loops: dict[str, Iterable[Any]] = {
        "as they are": loader,
        "edited before the step": EditingLoader(loader, editor, prefetch=0),
        "edited while it runs": EditingLoader(loader, editor, PREFETCH),
    }

    def run(loop: Iterable[Any]) -> None:
        for _ in loop:
            time.sleep(step)

    print(f"EditingLoader, batches of {BATCH} x {LENGTH}, bundled prior on {len(os.sched_getaffinity(0))} threads. {machine()}")
    print(f"  scoring and editing a batch takes {editing * 1e3:.1f} ms, a step sleeps {step * 1e3:.1f} ms")
    timings = take_turns({name: lambda loop=loop: run(loop) for name, loop in loops.items()}, 5)  # type: ignore[misc]
    for name, timing in timings.items():
        print(f"  {name:24} {timing.least / STEPS * 1e3:8.1f} ms a step (min), {timing.median / STEPS * 1e3:8.1f} (median)")
    plain, before, beside = timings.values()
    for what in ("median", "least"):
        hidden = 1 - (getattr(beside, what) - getattr(plain, what)) / (getattr(before, what) - getattr(plain, what))
        print(f"  hidden, by {what}: {100 * hidden:.0f} %, the first batch with it, which no step runs beside")


if __name__ == "__main__":
    main()
