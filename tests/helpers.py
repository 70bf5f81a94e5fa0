"""What several test files need: text as rows of ids, priors for editing alone, the package's edits beside the reference's."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pyarrow as pa
import pytest
from tokenizers import Tokenizer

import oracle
import toedit
from toedit import _bridge, _native


def need_exporter() -> None:
    """Skip where priors cannot be exported: without the extra, and on Python 3.10, which has ONNX Runtime's library only."""
    for package in ("torch", "onnxscript", "onnxruntime"):
        pytest.importorskip(
            package, exc_type=ImportError, reason=f"exporting a prior needs {package}, which cannot be imported here"
        )


def usage() -> tuple[int, int, int]:
    """Bytes, Arrow structures and handles that the native library holds; nothing where it was not loaded."""
    if _native._library.module is None:
        return 0, 0, 0
    size, exports, handles = (int(_bridge.call(name)) for name in ("AllocatedBytes", "Exports", "Handles"))
    return size, exports, handles


def text_rows(tokenizer: Tokenizer, tokens: int, seed: int = 0, longest: int = 400) -> list[list[int]]:
    """Rows of mixed lengths, as text comes, cut from the help texts that every Python carries."""
    chance = random.Random(seed)
    rows: list[list[int]] = []
    for name in sorted(topics):
        ids = tokenizer.encode(topics[name]).ids
        while ids and tokens > 0:
            length = min(int(chance.lognormvariate(4.5, 1.0)) + 1, longest, tokens, len(ids))
            rows.append(ids[:length])
            ids = ids[length:]
            tokens -= length
    return rows


def builtin_copy(folder: Path, **changes: Any) -> Path:
    """A copy of the bundled prior's folder with other settings."""
    shutil.copytree(toedit.Prior.builtin().path, folder)
    settings = json.loads((folder / "prior.json").read_text())
    (folder / "prior.json").write_text(json.dumps(settings | changes))
    return folder


def editing_prior(
    folder: Path,
    *,
    vocab_size: int = 512,
    tokenizer_size: int = 508,
    special_ids: Sequence[int] = (0, 1, 2),
    k: int = 64,
    tokenizer: str | None = None,
) -> toedit.Prior:
    """A prior that can edit but not score: its model is not one, and editing from stored scores never opens it. Its
    tokenizer.json is the bundled prior's, or the text given."""
    builtin = toedit.Prior.builtin().path
    folder.mkdir(parents=True)
    text = (builtin / "tokenizer.json").read_text("utf-8") if tokenizer is None else tokenizer
    (folder / "tokenizer.json").write_text(text, "utf-8")
    (folder / "model.onnx").write_bytes(b"no model")
    settings = json.loads((builtin / "prior.json").read_text())
    settings |= {
        "vocab_size": vocab_size,
        "tokenizer_size": tokenizer_size,
        "special_ids": list(special_ids),
        "k": k,
        "files": {p.name: file_entry(p) for p in (folder / "model.onnx", folder / "tokenizer.json")},
    }
    (folder / "prior.json").write_text(json.dumps(settings))
    return toedit.Prior(folder)


def file_entry(path: Path) -> dict[str, Any]:
    """A file as prior.json lists it."""
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def word_classes(prior: toedit.Prior) -> list[int]:
    """Of every id of a prior with a byte-level tokenizer: 1 where it begins a word, 2 where it continues one, else 0.

    A token begins a word with white space and then a letter, and continues one with a letter at once. Letters are Unicode's
    letters, marks and numbers, and bytes that are part of a character.
    """
    # GPT-2's alphabet: printable bytes stand for themselves, the others for the characters from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte_of = {chr(b): b for b in printable}
    byte_of |= {chr(256 + n): b for n, b in enumerate(b for b in range(256) if b not in printable)}
    classes = [0] * int(prior.describe()["vocab_size"])
    for token, i in json.loads(prior.tokenizer_file.read_text())["model"]["vocab"].items():
        if i < len(classes):
            text = bytes(byte_of[c] for c in token).decode(errors="surrogateescape")
            word = text.lstrip(" \t\n\v\f\r\x85\xa0")
            if word and (unicodedata.category(word[0])[0] in "LMN" or "\udc80" <= word[0] <= "\udcff"):
                classes[i] = 2 if word == text else 1
    for i in prior.describe()["special_ids"]:
        classes[i] = 0
    return classes


def reference(
    editor: toedit.Editor,
    ids: Sequence[oracle.Ids],
    scores: Iterable[Mapping[str, Any]],
    epoch: int = 0,
    **columns: Any,
) -> oracle.BatchResult:
    """What the reference implementation makes of a batch, with the settings of an editor."""
    about = editor.prior.describe()
    return oracle.edit_batch(
        ids,
        list(scores),
        editor.policy,
        special_ids=about["special_ids"],
        tokenizer_size=about["tokenizer_size"],
        vocab_size=about["vocab_size"],
        word_classes=word_classes(editor.prior) if editor.policy.whole_words else None,
        seed=editor.seed,
        epoch=epoch,
        **columns,
    )


def assert_edits_equal(
    edited: toedit.Edited,
    expected: oracle.BatchResult,
    offsets: Sequence[int] | None = None,
) -> None:
    """The package's edits are the reference's: ids, log and counts exactly, expected changes but for the last bits."""
    assert as_lists(edited["input_ids"]) == expected["ids"]
    counts = edited.counts
    for name in oracle.Totals.__annotations__:
        if name != "expected_changes":
            assert getattr(counts, name) == expected[name], name  # type: ignore[literal-required]
    assert edited.candidates == counts.candidates
    assert edited.changes == counts.changes
    # The package and the reference take exp from different libraries.
    assert edited.expected_changes == pytest.approx(expected["expected_changes"], rel=1e-12, abs=0)
    log = [tuple(change[name] for name in ("row", "position", "old", "new", "band")) for change in edited.log.to_pylist()]
    assert log == [
        (n, (offsets[n] if offsets else 0) + at, old, None if new == -1 else new, band)
        for n, row in enumerate(expected["rows"])
        for at, old, new, band in row["edits"]
    ]


def policy_of(settings: Mapping[str, Any]) -> toedit.Policy:
    """A policy from a golden file."""
    bands = tuple(toedit.Band(**band) for band in settings.get("bands", ()))
    return toedit.Policy(**{**settings, "bands": bands})


def edits_of(edited: toedit.Edited) -> list[list[int]]:
    """The log as golden files have it: row, position, old, new (-1: dropped)."""
    return [
        [change["row"], change["position"], change["old"], -1 if change["new"] is None else change["new"]]
        for change in edited.log.to_pylist()
    ]


def as_lists(column: Any) -> list[list[int]]:
    """Rows of ids of any kind as plain lists."""
    for method in ("to_pylist", "to_list", "tolist"):
        if hasattr(column, method):
            return list(getattr(column, method)())
    return [row if isinstance(row, list) else row.tolist() for row in column]


def pad(
    rows: Sequence[Sequence[int]], width: int, *, left: Sequence[bool] | bool = False, value: int = 0
) -> tuple[list[list[int]], list[list[int]]]:
    """Rows filled up to a width, and their attention mask."""
    sides = [left] * len(rows) if isinstance(left, bool) else left
    ids, mask = [], []
    for row, on_left in zip(rows, sides, strict=True):
        fill, ones = [value] * (width - len(row)), [1] * len(row)
        zeros = [0] * len(fill)
        ids.append(fill + list(row) if on_left else list(row) + fill)
        mask.append(zeros + ones if on_left else ones + zeros)
    return ids, mask


def python(code: str, *, path: Path | None = None, timeout: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own. `path` is searched for modules before everything else."""
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(path), environment.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


def scores_of(column: pa.StructArray) -> list[dict[str, Any]]:
    """A scores column as the reference reads it."""
    return list(column.to_pylist())


def chi_square_tail(statistic: float, freedom: int) -> float:
    """The probability of a chi-square variable above a statistic (Abramowitz and Stegun, 26.4.4 and 26.4.5)."""
    half = statistic / 2.0
    a = 1.0 if freedom % 2 == 0 else 0.5
    tail = math.exp(-half) if freedom % 2 == 0 else math.erfc(math.sqrt(half))
    while a < freedom / 2.0:
        tail += math.exp(a * math.log(half) - half - math.lgamma(a + 1.0)) if half > 0.0 else 0.0
        a += 1.0
    return tail


def accelerate_launch(scored: Any, folder: Path, seed: int, *ways: str) -> dict[tuple[str, int], set[tuple[int, ...]]]:
    """Train over a scored dataset in two processes of `accelerate launch`, see accelerate_script.py; the documents that they
    met in each epoch of each way."""
    scored.save_to_disk(folder / "data")
    # Its name for what starts the processes itself; with --cpu that is left to MPI.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
    options = ["--mixed_precision=no", "--dynamo_backend=no", "--num_cpu_threads_per_process=1", "--main_process_port=0"]
    script = [str(Path(__file__).with_name("accelerate_script.py")), str(folder / "data"), str(folder), str(seed)]
    done = subprocess.run([*launch, *options, *script, *ways], capture_output=True, text=True, timeout=140, check=False)
    # What the processes said stands before what the launcher says of them.
    assert done.returncode == 0, f"{done.stderr[:2000]}\n[...]\n{done.stderr[-1000:]}"
    seen: dict[tuple[str, int], set[tuple[int, ...]]] = {}
    for rank in (0, 1):
        for way, epoch, ids in json.loads((folder / f"{rank}.json").read_text()):
            seen.setdefault((way, epoch), set()).add(tuple(ids))
    return seen
