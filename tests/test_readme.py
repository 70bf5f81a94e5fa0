"""The README's Python runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[1] / "README.md"


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(120)
def test_the_training_loop_and_the_calls_without_torch() -> None:
    torch = pytest.importorskip("torch", reason="the README's loop needs torch")
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer

    import toedit

    tokenizer = Tokenizer.from_file(str(toedit.Prior.builtin().tokenizer_file))
    corpus = [tokenizer.encode(text).ids[:256] for text in list(topics.values())[:24]]
    seen: list[Any] = []

    def pad_and_stack(rows: list[dict[str, Any]]) -> Any:
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(r["input_ids"]) for r in rows], batch_first=True)

    names: dict[str, Any] = {"corpus": corpus, "pad_and_stack": pad_and_stack, "epochs": 2, "step": seen.append}
    loop, calls = blocks()[:2]
    exec(loop, names)
    assert names["collator"].stats().tokens == 2 * sum(map(len, corpus))
    assert len(seen) == 2
    names["batch"] = {"input_ids": corpus}
    exec(calls, names)
    assert names["edited"]["input_ids"] == names["edited"].batch["input_ids"]
    assert names["edited"].counts.rows == len(corpus)
