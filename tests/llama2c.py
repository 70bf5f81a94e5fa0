"""Tiny llama2.c checkpoints, read as transformers models, and the stories that others scored them on."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Words w0, w1, ... as ids 0, 1, ...; ids 0 to 2 are the special ones."""
    vocab = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, size))])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def read_llama2c(path: Path) -> LlamaForCausalLM:
    """A llama2.c checkpoint (legacy float32 layout: seven int32, then the weights in its README's order)."""
    raw = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack("<7i", raw[:28])
    numbers = torch.from_numpy(np.frombuffer(raw, dtype="<f4", offset=28).copy())
    size = dim // heads
    taken = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal taken
        count = int(np.prod(shape))
        taken += count
        return numbers[taken - count : taken].view(*shape)

    def halves(weight: torch.Tensor, count: int) -> torch.Tensor:
        # llama2.c rotates neighbours, transformers the two halves of a head.
        return weight.view(count, size // 2, 2, dim).transpose(1, 2).reshape(count * size, dim)

    names = {
        "input_layernorm": (dim,),
        "self_attn.q_proj": (heads * size, dim),
        "self_attn.k_proj": (kv_heads * size, dim),
        "self_attn.v_proj": (kv_heads * size, dim),
        "self_attn.o_proj": (dim, heads * size),
        "post_attention_layernorm": (dim,),
        "mlp.gate_proj": (hidden, dim),
        "mlp.down_proj": (dim, hidden),
        "mlp.up_proj": (hidden, dim),
    }
    state = {"model.embed_tokens.weight": take(abs(vocab), dim)}
    for name, shape in names.items():
        for layer, weight in enumerate(take(layers, *shape)):
            if name.endswith(("q_proj", "k_proj")):
                weight = halves(weight, heads if name.endswith("q_proj") else kv_heads)
            state[f"model.layers.{layer}.{name}.weight"] = weight
    state["model.norm.weight"] = take(dim)
    take(2, length, size // 2)  # tables of the rotary embedding
    assert vocab > 0, "a checkpoint of its own output embedding"
    assert taken == len(numbers)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=hidden,
        max_position_embeddings=length,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
    )
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    return model.eval()


def tinystories(data: Path, name: str) -> list[list[int]]:
    """The first 40 stories as a checkpoint's ids, BOS first, at most 256 of them where the model reads no more."""
    if name == "ckpt_babyllama105":  # a character each
        pieces = (data / name / "tok105.vocab").read_text(encoding="utf-8").splitlines()
        ids = {piece.split("\t")[0]: index for index, piece in enumerate(pieces)}
        stories = json.loads((data / "synth_tinystories" / "tinystories_1000.json").read_text(encoding="utf-8"))[:40]
        return [
            [1, *(ids.get(character, 0) for character in f" {story}".replace(" ", "\N{LOWER ONE EIGHTH BLOCK}"))][:256]
            for story in stories
        ]
    lines = (data / "ckpt_stories260K" / "golden_ids_tinystories40.txt").read_text().splitlines()
    rows = [[int(token) for token in line.split()] for line in lines]
    return [row[:256] for row in rows] if name == "ckpt_llama2xs" else rows
