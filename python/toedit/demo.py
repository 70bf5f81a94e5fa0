"""The main job on real text: score once with the bundled prior, edit in a DataLoader every epoch."""

from __future__ import annotations

import argparse
import io
import sys
import textwrap
import time
import warnings
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from toedit._errors import ExpectedChangesWarning, InputError, MissingDependencyError
from toedit.editor import Counts, Edited, Editor
from toedit.policy import Policy
from toedit.prior import Prior

__all__ = ["main"]

BATCH = 16
EPOCHS = 2
WORKERS = 2
# Edits shown, and the characters of text around each.
SHOWN, CONTEXT = 8, 32


def main(argv: list[str]) -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="toedit demo", description=__doc__)
    parser.add_argument("--text", type=Path, help="a text file of your own (UTF-8); by default Python's own help topics")
    parser.add_argument("--prior", type=Path, help="a prior folder; by default the bundled one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # in step with the progress bar, also through a pipe

    prior = Prior(options.prior) if options.prior else Prior.builtin()
    tokenizer = Tokenizer.from_file(str(prior.tokenizer_file))
    about = prior.describe()
    table = _rows(_documents(options.text), tokenizer, about["context_length"])
    tokens = pc.sum(pc.list_value_length(table["input_ids"])).as_py()
    print(f"Text: {options.text or 'pydoc_data.topics, the help topics of Python'}, {tokens:,} tokens in {len(table)} rows.")
    print(f"Prior: {about['name']} ({about['dtype']}, {about['vocab_size']:,} ids), fingerprint {about['fingerprint']}.\n")

    print("1. Score once: ln P of every token, and the 8 most probable tokens wherever P >= 0.9.")
    bar = _Bar(sys.stderr)
    begun = time.perf_counter()
    scores = prior.score(table, keep=[(0.9, 1.0)], progress=bar)
    seconds = time.perf_counter() - begun
    bar.done()
    print(f"   {tokens / seconds:,.0f} tokens/s on {_cores(prior)} core(s).\n")
    table = table.append_column("scores", scores)
    paper = Policy()
    editor = Editor(prior, paper, options.seed, key="document", offset="offset")
    statistics = editor.statistics(table)
    print(textwrap.indent(str(statistics), "   "))

    print(f"\n2. The paper's policy: P >= {paper.threshold}, a draw from the {paper.k} most probable tokens.")
    share = 100 * (statistics.candidates + statistics.protected) / statistics.scored
    print(
        f"   {share:.1f} % of these tokens reach P >= {paper.threshold}: the bundled prior is small (an 8B prior: about 12 %)."
    )
    _train(table, editor)
    print("   Candidates are not changes: a token with P = 0.99 keeps its place in 99 of 100 draws.")

    bold = Policy(threshold=0.9, exclude_original=True)
    print("\n3. Policy(threshold=0.9, exclude_original=True): more candidates, and each one changes.")
    editor = Editor(prior, bold, options.seed, key="document", offset="offset")
    _train(table, editor)
    seconds_each = []
    for _ in range(10):
        begun = time.perf_counter()
        edited = editor.edit(table)
        seconds_each.append(time.perf_counter() - begun)
    print(f"   Editing alone, from stored scores: {tokens / min(seconds_each):,.0f} tokens/s.\n")
    _show(table, edited, tokenizer)
    return 0


def _cores(prior: Prior) -> int:
    """The cores that scoring used."""
    from toedit import _runtime

    return _runtime.threads(prior.threads, in_worker=False)


def _documents(path: Path | None) -> dict[str, str]:
    if path is None:
        from pydoc_data.topics import topics

        return dict(topics)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text: {error}") from None
    if not text.strip():
        raise InputError(f"{path} has no text in it")
    return {path.name: text}


def _rows(documents: dict[str, str], tokenizer: Tokenizer, length: int) -> pa.Table:
    """Rows of at most length tokens, each with its document's key and its offset there."""
    rows: dict[str, list[Any]] = {"input_ids": [], "document": [], "offset": []}
    for name, text in documents.items():
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        for offset in range(0, len(ids), length):
            rows["input_ids"].append(ids[offset : offset + length])
            rows["document"].append(name)
            rows["offset"].append(offset)
    return pa.table(
        {"input_ids": pa.array(rows["input_ids"], pa.list_(pa.int64())), "document": rows["document"], "offset": rows["offset"]}
    )


class _Bar:
    """A progress bar: one moving line on a terminal, a line for every tenth elsewhere."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.moving = out, out.isatty()
        self.begun, self.tenth = time.perf_counter(), 0

    def __call__(self, done: int, total: int) -> None:
        share = done / max(total, 1)
        if not self.moving and int(share * 10) == self.tenth:
            return
        self.tenth = int(share * 10)
        speed = done / max(time.perf_counter() - self.begun, 1e-9)
        filled = int(share * 30)
        line = f"   [{'#' * filled}{'.' * (30 - filled)}] {share:4.0%}  {speed:,.0f} tokens/s"
        print(f"\r{line}" if self.moving else line, end="" if self.moving else "\n", file=self.out, flush=True)

    def done(self) -> None:
        if self.moving:
            print(file=self.out)


def _train(table: pa.Table, editor: Editor) -> None:
    """What a training loop does: a DataLoader whose workers edit, epoch after epoch."""
    try:
        from torch.utils.data import DataLoader
    except ImportError:
        raise MissingDependencyError("the demo edits in a PyTorch DataLoader: pip install 'toedit[torch]'") from None
    from toedit.torch import EditCollator

    collator = EditCollator(editor, _pad)
    rows: Any = table.to_pylist()
    loader = DataLoader(rows, BATCH, shuffle=True, num_workers=WORKERS, collate_fn=collator, persistent_workers=True)
    before = Counts()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExpectedChangesWarning)
        for epoch in range(EPOCHS):
            collator.set_epoch(epoch)
            batches = sum(1 for _ in loader)
            now = collator.stats()
            candidates, changes = now.candidates - before.candidates, now.changes - before.changes
            expected = now.expected_changes - before.expected_changes
            print(f"   epoch {epoch}: {batches} batches from {WORKERS} workers; candidates {candidates:,}, ", end="")
            print(f"changes {changes:,}, expected changes {expected:,.1f}")
            before = now


def _pad(rows: list[dict[str, Any]]) -> Any:
    import torch

    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)


def _show(table: pa.Table, edited: Edited, tokenizer: Tokenizer) -> None:
    """A few edits in their context, spread over the text."""
    log = edited.log
    print(f"   {SHOWN} of its {len(log):,} edits (position in the document, P of the old token):")
    for i in np.linspace(0, len(log) - 1, min(SHOWN, len(log))).astype(int):
        edit = {name: log[name][int(i)].as_py() for name in log.schema.names}
        row = table["input_ids"][edit["row"]].as_py()
        at = edit["position"] - table["offset"][edit["row"]].as_py()
        before = _plain(tokenizer.decode(row[:at])[-CONTEXT:])
        after = _plain(tokenizer.decode(row[at + 1 :])[:CONTEXT])
        old, new = (_plain(tokenizer.decode([edit[name]], skip_special_tokens=False)) for name in ("old", "new"))
        print(f"   {edit['position']:6d}  P={np.exp(edit['logp']):.3f}  {before:>{CONTEXT}}[{old} → {new}]{after}")


def _plain(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", "⇥")
