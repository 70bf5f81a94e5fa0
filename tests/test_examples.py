"""The examples: a tiny model trained with and without editing, in the loops that people have."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from tokenizers import Tokenizer

import toedit

EXAMPLES = Path(__file__).with_name("examples")
# What each needs beside torch.
NEEDS = {
    "plain_loop": ("matplotlib", "transformers"),
    "trainer": ("matplotlib", "transformers", "datasets", "accelerate"),
    "sft": ("matplotlib", "trl"),
}
# Two epochs of two batches of eight.
ROWS, STEPS, EPOCHS = 16, 4, 2
LENGTH, SEED = 128, 0

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Path, subprocess.Popen[str]]]]:
    """The scripts as their users start them, all at once, and where their figures go. Most of their time they import."""
    running = {}
    for name, packages in NEEDS.items():
        if all(map(find_spec, packages)):
            figure = tmp_path_factory.mktemp("figures") / f"{name}.png"
            command = [sys.executable, EXAMPLES / f"{name}.py", "-o", figure, f"--steps={STEPS}", f"--rows={ROWS}"]
            # torch's threads spin where they have to share the cores.
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            running[name] = figure, process
    yield running
    for _, process in running.values():
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def counts(prior: toedit.Prior, tokenizer: Tokenizer) -> toedit.editor.Counts:
    """What editing the rows that they train on comes to, without a loader."""
    ids = [i for name in sorted(topics) for i in tokenizer.encode(topics[name]).ids]
    rows = [ids[n : n + LENGTH] for n in range(0, ROWS * LENGTH, LENGTH)]
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.9, temperature=1.5), seed=SEED)
    total = toedit.editor.Counts()
    for epoch in range(EPOCHS):
        total.add(editor(rows, epoch).counts)
    return total


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", NEEDS)
def test_an_example(started: dict[str, tuple[Path, subprocess.Popen[str]]], counts: toedit.editor.Counts, name: str) -> None:
    if name not in started:
        pytest.skip(f"the example needs {', '.join(NEEDS[name])}, of which one is not installed")
    figure, process = started[name]
    printed, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]
    assert figure.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    numbers = json.loads(figure.with_suffix(".json").read_text())

    found = numbers["counts"]
    assert found.pop("expected_changes") == pytest.approx(counts.expected_changes, abs=1e-4)
    assert found == {field: value for field, value in vars(counts).items() if field != "expected_changes"}
    assert 0 < counts.changes < counts.candidates
    assert f"candidates {counts.candidates:,}, changes {counts.changes:,}, expected changes" in printed

    without, edited = (numbers[key] for key in ("without editing", "with editing"))
    for run in (without, edited):
        assert [step for step, _ in run["evaluation"]] == list(range(STEPS + 1))
        assert len(run["training"]) == STEPS
        for losses in run.values():
            assert all(math.isfinite(loss) for _, loss in losses)
            assert losses[-1][1] < losses[0][1] - 0.3
    # The same weights, and evaluation data that nobody edits; then the training data differ.
    assert without["evaluation"][0] == edited["evaluation"][0]
    assert without["training"][0] != edited["training"][0]
