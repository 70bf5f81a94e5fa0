"""The recipe of the bundled prior: a few steps of it, on a corpus made here."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

RECIPE = Path(__file__).parents[1] / "python" / "prior" / "train.py"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prior_train", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["prior_train"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python's help topics: some as files, some as lines, one held back."""
    from pydoc_data.topics import topics

    folder = tmp_path_factory.mktemp("texts")
    names = sorted(topics)
    (folder / "books").mkdir()
    for name in names[:20]:
        (folder / "books" / f"{name}.txt").write_text(topics[name], encoding="utf-8")
    lines = [json.dumps({"text": topics[name]}) for name in names[20:40]]
    (folder / "lines.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "novel.txt").write_text(topics["strings"], encoding="utf-8")
    return folder


def test_recipe_trains(recipe: ModuleType, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model"
    small = ["--vocab", "400", "--hidden", "32", "--layers", "1", "--heads", "2", "--kv-heads", "1", "--feed-forward", "48"]
    short = ["--sequence", "32", "--positions", "64", "--batch", "4", "--warmup", "4", "--steps", "40", "--report", "10"]
    recipe.main(["--data", str(texts), "--out", str(out), "--held-back", "novel", *small, *short])
    log = capsys.readouterr().out
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in log.splitlines() if line.startswith("step ")]
    assert len(losses) == 4
    assert losses[-1] < losses[0] - 0.2
    assert "40 documents" in log
    assert "held back" in log
    assert "bits/byte" in log

    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    assert (model.config.vocab_size, len(tokenizer), tokenizer.bos_token_id) == (400, 400, 0)
    text = "Any text, 2026: naïve, even this."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_windows_cover_the_stream(recipe: ModuleType) -> None:
    stream = np.arange(1000, dtype=np.uint16)
    batches = recipe.windows(stream, 10, 11, np.random.default_rng(0))
    first = torch.cat([next(batches) for _ in range(9)])  # one pass: 99 windows
    assert first.shape == (99, 11)
    assert sorted(first[:, 0].tolist()) == list(range(0, 990, 10))
    assert (first.diff(dim=1) == 1).all()
    with pytest.raises(ValueError, match="two windows need 21"):
        next(recipe.windows(stream[:20], 10, 11, np.random.default_rng(0)))


def test_schedule(recipe: ModuleType) -> None:
    settings = recipe.Settings(warmup=10, learning_rate=1.0)
    rates = [recipe.schedule(settings, step, done) for step, done in [(0, 0), (9, 0.1), (50, 0.49), (80, 0.75), (99, 1.0)]]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.02])


def test_no_texts(recipe: ModuleType, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no"):
        recipe.train(tmp_path / "none", tmp_path / "out", recipe.Settings())
    with pytest.raises(ValueError, match="held back"):
        recipe.train(texts, tmp_path / "out", recipe.Settings(), held_back=["."])
    assert not (tmp_path / "out").exists()
