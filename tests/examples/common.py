"""What the examples share: a text, a tiny model, and a figure of two training runs.

The runs begin with the same weights and read the same rows in the same order; one of them edits. Both are evaluated on other
rows, as they were written. A run of this size shows that editing works, not that it helps.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import matplotlib
import torch
import transformers
from tokenizers import Tokenizer

import toedit
from toedit.editor import Counts

matplotlib.use("Agg")
from matplotlib import pyplot as plt

LENGTH = 128  # tokens of a row
BATCH = 8  # rows of a step
EVALUATION = 32  # rows that are not trained on
LEARNING_RATE = 3e-3
SEED = 0

# A small prior is seldom sure: at the threshold of 0.99 and temperature 1 of the paper, two tokens of this text would change.
POLICY = toedit.Policy(threshold=0.9, temperature=1.5)


@dataclass
class Run:
    """Losses (nats a token), each with the step before which it was measured."""

    training: list[tuple[int, float]]
    evaluation: list[tuple[int, float]]


def arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("loss.png"), help="the figure; its numbers go beside it, .json"
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rows", type=int, default=400, help="rows to train on; there are about 1,000")
    return parser.parse_args()


def corpus(prior: toedit.Prior, rows: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The help texts that every Python carries, in the prior's ids: rows to train on and rows to evaluate on."""
    tokenizer = Tokenizer.from_file(str(prior.tokenizer_file))
    ids = [i for name in sorted(topics) for i in tokenizer.encode(topics[name]).ids]
    cut = [{"input_ids": ids[n : n + LENGTH]} for n in range(0, len(ids) - LENGTH, LENGTH)]
    return cut[:rows], cut[-EVALUATION:]


def tiny_model() -> Any:
    """A Llama of 1.4 million parameters, with the same weights in each call."""
    torch.manual_seed(SEED)
    config = transformers.LlamaConfig(
        vocab_size=4096,  # the bundled prior's
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.LlamaForCausalLM(config)


def report(output: Path, title: str, without: Run, edited: Run, counts: Counts) -> None:
    """Say what was done, and plot the losses."""
    runs = {"without editing": without, "with editing": edited}
    print(title)
    for name, run in runs.items():
        losses = f"training loss {run.training[0][1]:.3f} to {run.training[-1][1]:.3f}"
        print(f"  {name}: {losses}, evaluation loss {run.evaluation[0][1]:.3f} to {run.evaluation[-1][1]:.3f}")
    print(f"  edited: {counts.tokens:,} tokens; candidates {counts.candidates:,}, changes {counts.changes:,}, ", end="")
    print(f"expected changes {counts.expected_changes:,.1f}")

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for (name, run), style in zip(runs.items(), ("-", "--"), strict=True):
        axes.plot(*zip(*run.training, strict=True), style, color="tab:blue", label=f"training, {name}")
        axes.plot(*zip(*run.evaluation, strict=True), style, color="tab:orange", label=f"evaluation, {name}")
    axes.set(title=title, xlabel="step", ylabel="loss (nats a token)")
    axes.legend()
    figure.savefig(output)
    numbers = {name: asdict(run) for name, run in runs.items()} | {"counts": asdict(counts)}
    output.with_suffix(".json").write_text(json.dumps(numbers))
