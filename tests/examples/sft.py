"""TRL's SFTTrainer, with and without editing.

    python tests/examples/sft.py -o loss.png --steps 60

As with Trainer, the corpus is scored once, the training dataset edits it anew in every epoch, and the evaluation dataset is as
it was written. The rows have their final form: nothing may be done to them between scoring and editing.
"""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any

import datasets
import transformers
import trl
from common import BATCH, LEARNING_RATE, POLICY, SEED, Run, arguments, corpus, report, tiny_model

import toedit
from toedit import hf
from toedit.torch import EditedDataset


def train(training: Any, evaluation: Any, steps: int, tokenizer: Any, edit: EditedDataset | None = None) -> Run:
    with TemporaryDirectory() as folder:
        args = trl.SFTConfig(
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
            bf16=False,
            seed=SEED,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        trainer = trl.SFTTrainer(
            tiny_model(), args, train_dataset=training, eval_dataset=evaluation, processing_class=tokenizer
        )
        if edit is not None:
            # SFTTrainer is made with nothing but datasets' own classes, and trains on whatever it has then.
            trainer.train_dataset = edit
            trainer.add_callback(hf.EpochCallback(edit))
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
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(prior.tokenizer_file), eos_token="<|endoftext|>")
    training, evaluation = (datasets.Dataset.from_list(rows) for rows in corpus(prior, args.rows))
    scored = hf.score(training, prior, POLICY)
    edit = EditedDataset(scored, toedit.Editor(prior, POLICY, seed=SEED))
    without = train(training, evaluation, args.steps, tokenizer)
    edited = train(training, evaluation, args.steps, tokenizer, edit)
    report(args.output, "SFTTrainer", without, edited, edit.stats())


if __name__ == "__main__":
    main()
