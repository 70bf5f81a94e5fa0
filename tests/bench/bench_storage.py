"""What stored scores take in Parquet (zstd), on Python's help topics with the bundled prior: bytes a token of the scores column
alone, as `toedit score` writes it and as pyarrow does by default."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import machine
from tokenizers import Tokenizer

import toedit
from toedit.score_files import _parquet

K = 8


def bytes_a_token(scores: pa.StructArray, write: Callable[[pa.Table, Path], None]) -> float:
    with TemporaryDirectory() as folder:
        path = Path(folder, "scores.parquet")
        write(pa.table({"scores": scores}), path)
        return path.stat().st_size / len(scores.field("logp").flatten())


def as_toedit(table: pa.Table, path: Path) -> None:
    with _parquet(path, table.schema) as writer:
        writer.write_table(table)


def as_pyarrow(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd")


def main() -> None:
    prior = toedit.Prior.builtin()
    tokenizer = Tokenizer.from_file(str(prior.tokenizer_file))
    rows = [tokenizer.encode(text).ids for text in topics.values()]
    logp = prior.score(rows, k=1, keep=[]).field("logp").flatten().drop_null().to_numpy()
    tokens = sum(map(len, rows))
    print(f"Stored scores, {len(rows)} documents, {tokens:,} tokens. {machine()}")
    eighth = float(np.exp(np.quantile(logp, 1 - 0.125)))
    for title, least in (("12.5 % of the positions kept", eighth), ("P >= 0.9", 0.9), ("P >= 0.99", 0.99)):
        scores = prior.score(rows, k=K, keep=[(least, 1.0)])
        kept = len(scores.field("topk_pos").flatten()) / tokens
        ours, plain = bytes_a_token(scores, as_toedit), bytes_a_token(scores, as_pyarrow)
        print(f"  {title:28s} (P >= {least:.4f}, {100 * kept:4.1f} %, k = {K}): {ours:.2f} bytes, pyarrow's {plain:.2f}")


if __name__ == "__main__":
    main()
