"""A plain PyTorch loop, with and without editing.

    python tests/examples/plain_loop.py -o loss.png --steps 60

The corpus is scored once. A collate function then edits it anew in every epoch, in the DataLoader's workers.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from common import BATCH, LEARNING_RATE, POLICY, SEED, Run, arguments, corpus, report, tiny_model
from torch.utils.data import DataLoader

import toedit
from toedit.torch import EditCollator


def collate(rows: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([row["input_ids"] for row in rows])


@torch.no_grad()
def evaluate(model: Any, rows: list[dict[str, Any]]) -> float:
    model.eval()
    losses = [model(input_ids=ids, labels=ids).loss for ids in DataLoader(rows, BATCH, collate_fn=collate)]
    model.train()
    return float(torch.stack(losses).mean())


def train(
    training: list[dict[str, Any]],
    evaluation: list[dict[str, Any]],
    steps: int,
    collate_fn: Callable[[Any], torch.Tensor],
    set_epoch: Callable[[int], None] = lambda epoch: None,
) -> Run:
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    loader = DataLoader(
        training,
        BATCH,
        shuffle=True,
        generator=torch.Generator().manual_seed(SEED),
        collate_fn=collate_fn,
        num_workers=2,
        persistent_workers=True,
    )
    run = Run([], [])
    epoch = step = 0
    while step < steps:
        set_epoch(epoch)
        for ids in islice(loader, steps - step):
            if step % max(steps // 20, 1) == 0:
                run.evaluation.append((step, evaluate(model, evaluation)))
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.training.append((step, loss.item()))
            step += 1
        epoch += 1
    run.evaluation.append((step, evaluate(model, evaluation)))
    return run


def main() -> None:
    args = arguments(__doc__)
    prior = toedit.Prior.builtin()
    training, evaluation = corpus(prior, args.rows)
    for row, scores in zip(training, prior.score(training, keep=POLICY).to_pylist(), strict=True):
        row["scores"] = scores
    edit = EditCollator(toedit.Editor(prior, POLICY, seed=SEED), collate)
    without = train(training, evaluation, args.steps, collate)
    edited = train(training, evaluation, args.steps, edit, edit.set_epoch)
    report(args.output, "A plain loop", without, edited, edit.stats())


if __name__ == "__main__":
    main()
