"""Edits made in texts, ids and edits given, against the tokenizer's own decode of the whole edited texts."""

from __future__ import annotations

import os
from pydoc_data.topics import topics

import numpy as np
import pyarrow as pa
from common import machine, report, take_turns
from tokenizers import Tokenizer

import toedit
from toedit.projection import place, tokenise

# The share of tokens that are edited: about what temperature 1.5 changes under an 8-billion-parameter prior.
SHARE = 0.01


def main() -> None:
    print(machine())
    prior = toedit.Prior.builtin()
    tokenizer = Tokenizer.from_file(str(prior.tokenizer_file))
    lines = [line for name in sorted(topics) for line in topics[name].splitlines()]
    texts = ["\n".join(lines[i : i + 40]) for i in range(0, len(lines), 40)]
    column = pa.array(texts, pa.large_string())
    ids = tokenise(tokenizer, texts)
    flat = ids.flatten().to_numpy()
    at = np.flatnonzero(np.random.default_rng(0).random(len(flat)) < SHARE)
    starts = ids.offsets.to_numpy()
    row = np.searchsorted(starts, at, side="right") - 1
    edits = {
        "row": pa.array(row.astype(np.int64)),
        "position": pa.array((at - starts[row]).astype(np.int64)),
        "new": pa.array(flat[(at * 7 + 1) % len(flat)].astype(np.int64)),
    }
    edited = flat.copy()
    edited[at] = edits["new"].to_numpy()
    rows = pa.ListArray.from_arrays(ids.offsets, pa.array(edited)).to_pylist()
    handle = prior.handle

    def splice(column: pa.Array) -> pa.Array:
        out, _ = place("EditText", handle, tokenizer, {"text": column, "input_ids": ids}, edits)
        assert out.column("aligned").to_numpy().all()
        return out.column("text")

    for parallelism in ("false", None):
        if parallelism is None:
            os.environ.pop("TOKENIZERS_PARALLELISM", None)
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = parallelism
        timings = take_turns(
            {
                "toedit, Arrow": lambda: splice(column),
                "toedit, lists of str": lambda: splice(pa.array(texts, pa.large_string())).to_pylist(),
                "decode_batch": lambda: tokenizer.decode_batch(rows, skip_special_tokens=False),
            },
            rounds=40,
        )
        title = f"{len(texts)} texts of {len(flat)} tokens, {len(at)} edits; TOKENIZERS_PARALLELISM={parallelism or 'default'}"
        report(title, timings, len(flat), "toedit, lists of str")


if __name__ == "__main__":
    main()
