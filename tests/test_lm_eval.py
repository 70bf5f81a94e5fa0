"""Against lm-evaluation-harness: its rolling log-likelihoods of the same model, with its windows."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import pytest
from tokenizers import Tokenizer

import helpers
import toedit

SOURCE = Path(__file__).parents[1] / "python" / "prior"


LENGTHS = (3, 200, 512, 513, 700, 1024, 1025, 1900)


def texts_of(tokenizer: Tokenizer) -> list[str]:
    """Texts with LENGTHS tokens each, give or take what another end of a text does to its last token."""
    text = "\n\n".join(topics[name] for name in ("class", "import", "strings", "numbers", "with", "lambda", "if"))
    texts = []
    for n in LENGTHS:
        end = tokenizer.encode(text, add_special_tokens=False).offsets[n][0]
        texts.append(text[:end])
        text = text[end:]
    return texts


def test_rolling_log_likelihoods_agree(fp32_prior: toedit.Prior, tokenizer: Tokenizer) -> None:
    helpers.need_exporter()
    instance = pytest.importorskip("lm_eval.api.instance", reason="lm-eval is not installed")
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="accelerate is not installed")
    texts = texts_of(tokenizer)
    harness = huggingface.HFLM(
        pretrained=str(SOURCE), device="cpu", dtype="float32", max_length=512, batch_size=4, add_bos_token=False
    )
    requests = [instance.Instance("loglikelihood_rolling", doc={}, arguments=(text,), idx=i) for i, text in enumerate(texts)]
    want = harness.loglikelihood_rolling(requests, disable_tqdm=True)

    rows = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert [len(row) for row in rows] == pytest.approx(LENGTHS, abs=1)
    with toedit.Prior(fp32_prior.path, windows="lm-eval", threads=2) as prior:
        scores = prior.score(rows)
        assert prior.fingerprint != fp32_prior.fingerprint
    assert scores.field("logp").flatten().null_count == 0
    got = [sum(row) for row in scores.field("logp").to_pylist()]
    assert got == pytest.approx(want, rel=1e-3)
    # Windows with more context say more of a long text than windows with one token of it.
    rolling = [sum(row) for row in fp32_prior.score(rows).field("logp").to_pylist()]
    assert rolling[:3] == got[:3]
    assert all(r != g for r, g in zip(rolling[5:], got[5:], strict=True))
