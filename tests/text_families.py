"""Tokenizers of the three kinds, trained on the help texts that every Python carries, as their models' files have them; and one
that was published."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import helpers
import toedit

LINES = [line for name in sorted(topics) for line in topics[name].splitlines() if line.strip()]
_SIZE = 1500


def byte_level() -> Tokenizer:
    """The bundled prior's."""
    return Tokenizer.from_file(str(toedit.Prior.builtin().tokenizer_file))


def llama() -> Tokenizer:
    """As Llama 2 has it: BPE over whole texts with bytes for characters that it lacks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=_SIZE, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    definition = json.loads(tokenizer.to_str())
    definition["added_tokens"] = definition["added_tokens"][:1]
    definition["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    definition["pre_tokenizer"] = None
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    definition["normalizer"] = {"type": "Sequence", "normalizers": [prepend, replace]}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    definition["decoder"] = {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]}
    return Tokenizer.from_str(json.dumps(definition))


def unigram(normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    """As T5 has it: SentencePiece's Unigram with Metaspace. Its pieces are those of :func:`llama`: training takes long."""
    pieces = [piece for piece in json.loads(llama().to_str())["model"]["vocab"] if piece[:3] != "<0x"]
    pieces += ["\n", "\r", "\t"]
    tokenizer = Tokenizer(models.Unigram([(piece, -math.log(rank + 2)) for rank, piece in enumerate(pieces)], 0))
    tokenizer.add_special_tokens(["<unk>"])
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def nfkc() -> Tokenizer:
    """That with NFKC and line ends as spaces, as T5 and XLM-R have it."""
    return unigram(normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\n", " ")]))


def wordpiece(lowercase: bool) -> Tokenizer:
    """As BERT has it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=_SIZE, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def bert() -> Tokenizer:
    """BERT's own file, where this machine has it."""
    hub = pytest.importorskip("huggingface_hub")
    found = hub.try_to_load_from_cache("google-bert/bert-base-uncased", "tokenizer.json")
    if not isinstance(found, str):
        pytest.skip("tokenizer.json of google-bert/bert-base-uncased is not in the Hugging Face cache")
    return Tokenizer.from_file(found)


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "unigram": unigram,
    "nfkc": nfkc,
    "llama": llama,
    "wordpiece": lambda: wordpiece(lowercase=False),
    "uncased": lambda: wordpiece(lowercase=True),
    "bert": bert,
}


def prior_of(tokenizer: Tokenizer, folder: Path) -> toedit.Prior:
    """A prior for editing alone that has a tokenizer."""
    size = tokenizer.get_vocab_size()
    return helpers.editing_prior(
        folder, vocab_size=size, tokenizer_size=size, special_ids=[0], k=8, tokenizer=tokenizer.to_str()
    )
