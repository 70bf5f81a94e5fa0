"""Compares the trainer's tokenizer with the prior's: edits are made in the prior's ids."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toedit._errors import InputError, PriorError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["check_same_tokenizer", "definition", "plain_tokenizer"]

_WAY_OUT = "export a prior that has your model's tokenizer (toedit export MODEL -o DIR)"


def check_same_tokenizer(tokenizer: Any, prior_file: Path) -> None:
    """Raise unless both have the same vocabulary, merges and added tokens.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``, a fast transformers tokenizer, or the path of a tokenizer.json.
        prior_file: the prior's tokenizer.json.

    Raises:
        InputError: they differ, or the tokenizer is a slow one that cannot be compared.
    """
    theirs = _parts(_parse(definition(tokenizer), tokenizer))
    try:
        ours = _parts(json.loads(prior_file.read_text(encoding="utf-8")))
    except OSError as error:
        raise PriorError(f"the prior's tokenizer cannot be read: {error}") from None
    for part, want in ours.items():
        got = theirs[part]
        if got != want:
            raise InputError(f"the tokenizer is not the prior's, they differ in {part} ({_difference(got, want)}); {_WAY_OUT}")


def definition(tokenizer: Any) -> str:
    """The tokenizer.json of a ``tokenizers.Tokenizer``, of a fast transformers tokenizer, or at a path.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(tokenizer, (str, os.PathLike)):
        try:
            return Path(tokenizer).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the tokenizer file cannot be read: {error}") from None
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        raise InputError(
            f"a {type(tokenizer).__name__} cannot be written as a tokenizer.json; pass a fast tokenizer, a "
            "tokenizers.Tokenizer, or the path of a tokenizer.json"
        )
    text: str = backend.to_str()
    return text


def plain_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer without truncation and padding, which its file may ask for."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _parse(text: str, tokenizer: Any) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise InputError(f"{tokenizer} is not a tokenizer.json: {error}") from None
    if not isinstance(parsed, dict):
        raise InputError(f"{tokenizer} is not a tokenizer.json: it holds a {type(parsed).__name__}")
    return parsed


def _parts(definition: dict[str, Any]) -> dict[str, Any]:
    model = definition.get("model") or {}
    vocabulary = model.get("vocab") or {}
    if isinstance(vocabulary, list):  # Unigram: pieces with their scores, in the order of their ids
        vocabulary = {str(piece): [index, score] for index, (piece, score) in enumerate(vocabulary)}
    # Merges are written as "a b" by older versions of tokenizers and as ["a", "b"] by newer ones.
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model.get("merges") or []]
    added = {str(t["content"]): int(t["id"]) for t in definition.get("added_tokens") or []}
    return {"model": model.get("type"), "vocabulary": vocabulary, "merges": merges, "added tokens": added}


def _difference(got: Any, want: Any) -> str:
    if isinstance(want, dict):
        for token in want.keys() | got.keys():
            if got.get(token) != want.get(token):
                return f"{token!r} is {got.get(token, 'missing')}, the prior has {want.get(token, 'none')}"
    if isinstance(want, list):
        for rank, (a, b) in enumerate(zip(got, want, strict=False)):
            if a != b:
                return f"number {rank} is {a}, the prior has {b}"
        return f"{len(got)} against {len(want)}"
    return f"{got!r} against {want!r}"
