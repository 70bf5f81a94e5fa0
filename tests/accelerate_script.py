"""What `accelerate launch` runs for tests/test_hf.py: two epochs of a plain loop, then two of Trainer, over a scored dataset.

    accelerate launch accelerate_script.py DATASET OUT

Each process writes what its collate function got to OUT: [loop or trainer, epoch, ids].
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import accelerate
import datasets
import torch
import transformers

import toedit
from toedit.hf import EpochCallback
from toedit.torch import EditedDataset

folder, out = sys.argv[1], Path(sys.argv[2])
prior = toedit.Prior.builtin()
editor = toedit.Editor(prior, toedit.Policy(threshold=0.3, temperature=1.5), seed=3, key="doc")
data = datasets.load_from_disk(folder)
seen: list[Any] = []


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    seen.extend([phase, train.epoch, list(row["input_ids"])] for row in rows)
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows])
    return {"input_ids": ids, "labels": ids}


phase = "loop"
train = EditedDataset(data, editor)
accelerator = accelerate.Accelerator(cpu=True)
assert accelerator.num_processes == 2
loader = accelerator.prepare(torch.utils.data.DataLoader(train, 4, shuffle=True, collate_fn=collate))
for epoch in (4, 5):
    loader.set_epoch(epoch)
    train.set_epoch(epoch)
    assert len(list(loader)) > 1

phase = "trainer"
train = EditedDataset(data, editor)
config = transformers.GPT2Config(vocab_size=prior.describe()["vocab_size"], n_positions=64, n_embd=16, n_layer=1, n_head=2)
args = transformers.TrainingArguments(
    str(out),
    num_train_epochs=2,
    per_device_train_batch_size=4,
    report_to=[],
    save_strategy="no",
    use_cpu=True,
    disable_tqdm=True,
)
trainer = transformers.Trainer(
    transformers.GPT2LMHeadModel(config), args, collate, train_dataset=train, callbacks=[EpochCallback(train)]
)
trainer.train()
(out / f"{os.environ['RANK']}.json").write_text(json.dumps(seen))
