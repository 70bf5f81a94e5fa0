"""Train the bundled prior: a small Llama-architecture language model with its own byte-level BPE tokenizer.

    python train.py --data TEXTS --out NEW [--held-back NAME ...] [--minutes 92 | --steps N]

TEXTS holds ``*.txt`` (a document each) and ``*.jsonl`` (a document a line, in the field ``text``), at any depth. NEW
becomes a Hugging Face model folder: weights in half precision, configuration, tokenizer. Needs torch, transformers and
tokenizers.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
"""Id 0: stands in front of every document."""

Ids = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Settings:
    """What decides the result; every field is an option of the command line."""

    vocab: int = 4096
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 704
    sequence: int = 512  # positions of a training window
    positions: int = 1024  # position limit written into the configuration
    batch: int = 16  # windows a step
    learning_rate: float = 2e-3
    warmup: int = 200  # steps
    weight_decay: float = 0.1
    minutes: float = 92.0  # length of the schedule where steps is 0
    steps: int = 0
    report: int = 100  # steps between two lines of the log
    seed: int = 0


def read_documents(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of every document under *folder*, in the order of their paths.

    Raises:
        ValueError: there is none.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix in (".txt", ".jsonl"))
    if not paths:
        raise ValueError(f"{folder} holds no *.txt or *.jsonl")
    for path in paths:
        if path.suffix == ".txt":
            yield path.name, path.read_text(encoding="utf-8")
        else:
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines):
                    yield f"{path.name}:{number}", str(json.loads(line)["text"])


def train_tokenizer(documents: Sequence[str], vocab: int) -> Tokenizer:
    """Byte-level BPE, so that any text has ids; digits stay single, so that numbers are not memorised whole."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # in pieces: the trainer counts words faster in many short texts than in a few whole books
    pieces = (text[start : start + 20_000] for text in documents for start in range(0, len(text), 20_000))
    tokenizer.train_from_iterator(pieces, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: Sequence[str]) -> Ids:
    """All documents in a row, id 0 in front of each: uint16 [tokens]."""
    parts = [np.array([0, *encoding.ids], dtype=np.uint16) for encoding in tokenizer.encode_batch(list(documents))]
    return np.concatenate(parts)


def windows(stream: Ids, length: int, batch: int, rng: np.random.Generator) -> Iterator[torch.Tensor]:
    """Endless batches of windows, int64 [batch, length + 1]: each pass over *stream* in a new order and with a new phase."""
    if len(stream) <= 2 * length:
        raise ValueError(f"the texts have {len(stream)} tokens, but two windows need {2 * length + 1}")
    starts: list[int] = []
    phase = 0
    while True:
        chosen: list[Ids] = []
        while len(chosen) < batch:
            if not starts:
                starts = list(range(phase, len(stream) - length, length))
                rng.shuffle(starts)
                phase = int(rng.integers(length))
            start = starts.pop()
            chosen.append(stream[start : start + length + 1])
        yield torch.from_numpy(np.stack(chosen).astype(np.int64))


def make_model(settings: Settings) -> LlamaForCausalLM:
    """A model with fresh weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=settings.vocab,
            hidden_size=settings.hidden,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.kv_heads,
            intermediate_size=settings.feed_forward,
            max_position_embeddings=settings.positions,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            bos_token_id=0,
            eos_token_id=0,
            rms_norm_eps=1e-5,
        )
    )


def make_optimizer(model: LlamaForCausalLM, settings: Settings) -> torch.optim.Optimizer:
    """AdamW that decays matrices and leaves the norms' vectors alone."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95))


def schedule(settings: Settings, step: int, done: float) -> float:
    """The learning rate: linear warm-up, level for half of the run, then down in a line to a fiftieth."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup))
    return settings.learning_rate * warm * (1.0 if done < 0.5 else max(0.02, 2 * (1 - done)))


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Mean nats per token of *ids* [batch, length + 1] (bfloat16 products, float32 loss)."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def evaluate(model: LlamaForCausalLM, stream: Ids, settings: Settings, most: int = 65_536) -> float:
    """Nats per token over the first *most* tokens of *stream*, in windows that do not overlap."""
    device = next(model.parameters()).device
    model.eval()
    losses = []
    with torch.inference_mode():
        for start in range(0, min(len(stream) - settings.sequence, most), settings.sequence):
            piece = stream[start : start + settings.sequence + 1].astype(np.int64)
            losses.append(loss_of(model, torch.from_numpy(piece)[None].to(device)).item())
    model.train()
    return float(np.mean(losses)) if losses else math.nan


def train(texts: Path, out: Path, settings: Settings, held_back: Sequence[str] = ()) -> list[float]:
    """Train on the documents under *texts* whose names contain none of *held_back*; write the model to *out*.

    Returns the loss of every step in nats per token.
    """
    torch.manual_seed(settings.seed)
    documents: list[str] = []
    held: list[str] = []
    for name, text in read_documents(texts):
        (held if any(part in name for part in held_back) else documents).append(text)
    if not documents:
        raise ValueError("every document is held back")
    tokenizer = train_tokenizer(documents, settings.vocab)
    stream = encode(tokenizer, documents)
    size = sum(len(text.encode()) for text in documents)
    print(f"{len(documents)} documents, {len(stream):,} tokens of {size / len(stream):.2f} bytes", flush=True)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = make_model(settings).to(device).train()
    optimizer = make_optimizer(model, settings)
    batches = windows(stream, settings.sequence, settings.batch, np.random.default_rng(settings.seed))
    losses: list[float] = []
    begun = time.monotonic()
    while True:
        passed = time.monotonic() - begun
        done = len(losses) / settings.steps if settings.steps else passed / (60 * settings.minutes)
        if done >= 1:
            break
        rate = schedule(settings, len(losses), done)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(model, next(batches).to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if len(losses) % settings.report == 0:
            mean = float(np.mean(losses[-settings.report :]))
            speed = len(losses) * settings.batch * settings.sequence / (time.monotonic() - begun)
            print(f"step {len(losses)} ({done:.0%}): loss {mean:.3f}, rate {rate:.2e}, {speed:,.0f} tokens/s", flush=True)
    if held:
        ids = encode(tokenizer, held)
        nats = evaluate(model, ids, settings)
        bits = nats * len(ids) / math.log(2) / sum(len(text.encode()) for text in held)
        print(f"held back: {nats:.4f} nats/token, {bits:.3f} bits/byte", flush=True)

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )
    wrapped.save_pretrained(out)
    model.cpu().half().save_pretrained(out)
    return losses


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of *.txt and *.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument(
        "--held-back", action="append", default=[], metavar="NAME", help="keep files with NAME in theirs for validation"
    )
    for field in fields(Settings):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=type(field.default), default=field.default, help="default: %(default)s")
    options = vars(parser.parse_args(argv))
    settings = Settings(**{field.name: options[field.name] for field in fields(Settings)})
    train(options["data"], options["out"], settings, options["held_back"])


if __name__ == "__main__":
    main()
