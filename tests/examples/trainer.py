"""Hugging Face's Trainer, with and without editing.

    python tests/examples/trainer.py -o loss.png --steps 60

The corpus is scored once. The training dataset then edits it anew in every epoch, which a callback moves; the evaluation
dataset is as it was written, and one collate function serves both.
"""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any

import datasets
import transformers
from common import BATCH, LEARNING_RATE, POLICY, SEED, Run, arguments, corpus, report, tiny_model

import toedit
from toedit import hf
from toedit.torch import EditedDataset


def train(training: Any, evaluation: Any, steps: int, tokenizer: Any, *callbacks: Any) -> Run:
    with TemporaryDirectory() as folder:
        args = transformers.TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            logging_steps=max(steps // 20, 1),
            eval_strategy="steps",
            eval_on_start=True,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            seed=SEED,
        )
        trainer = transformers.Trainer(
            tiny_model(),
            args,
            transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False),
            train_dataset=training,
            eval_dataset=evaluation,
            callbacks=list(callbacks),
        )
        trainer.train()
    log = trainer.state.log_history
    return Run(
        [(entry["step"], entry["loss"]) for entry in log if "loss" in entry],
        [(entry["step"], entry["eval_loss"]) for entry in log if "eval_loss" in entry],
    )


def main() -> None:
    args = arguments(__doc__)
    datasets.disable_progress_bars()
    prior = toedit.Prior.builtin()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(prior.tokenizer_file), pad_token="<|endoftext|>")
    training, evaluation = (datasets.Dataset.from_list(rows) for rows in corpus(prior, args.rows))
    scored = hf.score(training, prior, POLICY)
    edit = EditedDataset(scored, toedit.Editor(prior, POLICY, seed=SEED))
    without = train(training, evaluation, args.steps, tokenizer)
    edited = train(edit, evaluation, args.steps, tokenizer, hf.EpochCallback(edit))
    report(args.output, "Trainer", without, edited, edit.stats())


if __name__ == "__main__":
    main()
