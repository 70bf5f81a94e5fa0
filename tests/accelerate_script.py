"""What `accelerate launch` runs for tests/test_hf.py and tests/test_trl.py: two epochs over a scored dataset, in each of the
ways that are named: "loop", a plain loop; "trainer", transformers' Trainer; "sft", TRL's SFTTrainer over packed rows.

    accelerate launch accelerate_script.py DATASET OUT SEED WAY...

Each process writes the documents that its collate functions got to OUT: [way, epoch, ids].
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import datasets
import torch
import transformers

import toedit
from toedit import hf
from toedit.torch import EditedDataset

folder, out, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
prior = toedit.Prior.builtin()
policy = toedit.Policy(threshold=0.3, temperature=1.5)
data = datasets.load_from_disk(folder)
seen: list[Any] = []


def loop() -> None:
    train = EditedDataset(data, toedit.Editor(prior, policy, seed=seed, key="doc"))
    accelerator = accelerate.Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    record = recording("loop", train, padded)
    loader = accelerator.prepare(torch.utils.data.DataLoader(train, 4, shuffle=True, collate_fn=record))
    for epoch in (4, 5):
        loader.set_epoch(epoch)
        train.set_epoch(epoch)
        assert len(list(loader)) > 1


def trainer() -> None:
    train = EditedDataset(data, toedit.Editor(prior, policy, seed=seed, key="doc"))
    args = transformers.TrainingArguments(**options())
    callback = hf.EpochCallback(train)
    record = recording("trainer", train, padded)
    transformers.Trainer(model(), args, record, train_dataset=train, callbacks=[callback]).train()


def sft() -> None:
    import trl

    packed = hf.pack(data, 64, "bfd")
    train = EditedDataset(packed, toedit.Editor(prior, policy, seed=seed, key="doc", offset="offset"))
    unprepared = {"skip_prepare_dataset": True}
    args = trl.SFTConfig(**options(), packing=True, max_length=64, dataset_kwargs=unprepared, gradient_checkpointing=False)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(prior.tokenizer_file), eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    trainer = trl.SFTTrainer(model(), args, train_dataset=packed, processing_class=tokenizer)
    trainer.train_dataset = train
    trainer.data_collator = recording("sft", train, trainer.data_collator)
    trainer.add_callback(hf.EpochCallback(train))
    trainer.train()


def recording(way: str, train: EditedDataset, collate: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    def record(rows: list[dict[str, Any]]) -> Any:
        for row in rows:
            at = 0
            for length in row.get("seq_lengths", [len(row["input_ids"])]):
                seen.append([way, train.epoch, list(row["input_ids"][at : at + length])])
                at += length
        return collate(rows)

    return record


def padded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows])
    return {"input_ids": ids, "labels": ids}


def options() -> dict[str, Any]:
    return {
        "output_dir": str(out),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }


def model() -> transformers.PreTrainedModel:
    size = prior.describe()["vocab_size"]
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=size, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    )


for way in sys.argv[4:]:
    {"loop": loop, "trainer": trainer, "sft": sft}[way]()
(out / f"{os.environ['RANK']}.json").write_text(json.dumps(seen))
# As torch asks. Where that was left to the interpreter's end, it aborted some one run in a hundred.
torch.distributed.destroy_process_group()
