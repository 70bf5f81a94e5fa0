"""Trains a small language model on text that is edited anew every epoch: python train.py FILE..."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader

import toedit
from toedit.torch import EditCollator

LENGTH = 128
PAD = 0


def encode(texts: list[str], prior: toedit.Prior) -> list[dict[str, Any]]:
    """Rows of at most LENGTH ids, with the tokenizer that the prior and the model share."""
    tokenizer = Tokenizer.from_file(str(prior.tokenizer_file))
    documents = [tokenizer.encode(text).ids for text in texts]
    return [{"input_ids": ids[i : i + LENGTH]} for ids in documents for i in range(0, len(ids), LENGTH)]


def score(rows: list[dict[str, Any]], editor: toedit.Editor) -> list[dict[str, Any]]:
    """The rows with their scores, which are made once and serve all epochs."""
    scores = editor.prior.score(rows, keep=editor.policy).to_pylist()
    return [{**row, "scores": of_row} for row, of_row in zip(rows, scores, strict=True)]


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Padded ids, their mask, and labels that ignore the padding."""
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        mask[i, : len(row["input_ids"])] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def training_loader(rows: list[dict[str, Any]], editor: toedit.Editor, workers: int = 0) -> DataLoader[Any]:
    """Shuffled batches of edited rows. Its collate_fn has set_epoch and stats."""
    return DataLoader(rows, batch_size=8, shuffle=True, num_workers=workers, collate_fn=EditCollator(editor, collate))


def evaluation_loader(rows: list[dict[str, Any]]) -> DataLoader[Any]:
    """Batches of rows as they are: evaluation data is never edited."""
    return DataLoader(rows, batch_size=8, collate_fn=collate)


def train(rows: list[dict[str, Any]], editor: toedit.Editor, epochs: int = 2) -> list[float]:
    """The mean loss of each epoch. The model is a placeholder: it predicts a token from the one before."""
    size = editor.prior.describe()["vocab_size"]
    model = torch.nn.Sequential(torch.nn.Embedding(size, 64), torch.nn.Linear(64, size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = training_loader(rows, editor)
    means = []
    for epoch in range(epochs):
        loader.collate_fn.set_epoch(epoch)
        losses = []
        for batch in loader:
            logits = model(batch["input_ids"][:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        means.append(sum(losses) / len(losses))
    return means


if __name__ == "__main__":
    editor = toedit.Editor(toedit.Prior.builtin(), toedit.Policy(threshold=0.9, exclude_original=True))
    corpus = [Path(name).read_text(encoding="utf-8") for name in sys.argv[1:]]
    print(train(score(encode(corpus, editor.prior), editor), editor))
