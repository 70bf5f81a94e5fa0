"""The check at the end of an export: the finished graph against torch, on real text and on random ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toedit import _cuda, _runtime
from toedit._errors import PriorError

__all__ = ["FP32_TOLERANCE", "Sample", "check", "is_causal", "sample"]

FP32_TOLERANCE = 1e-4
"""Largest |ln P| difference from torch, in nats, with which a float32 export is accepted."""

_THRESHOLDS = (0.9, 0.99, 0.999)
# Lengths that all rows are padded to, tried in turn: below about 64 positions some kernels (attention with heads wider than
# 128) round in another order than above.
_LEAST_POSITIONS = (0, 72, 136)

# Two experts of a mixture may stand so close that rounding decides which of them a token has: once in some 300,000 choices, as
# measured, and a check makes tens of thousands. There torch, with embeddings that are off by as little as this, differs from
# itself, and no graph can be held against it. More such positions than this share are no matter of chance.
_NUDGE, _NUDGES, _UNDECIDED = 2.0**-18, 8, 0.25

_Rows = list[list[int]]


@dataclass
class Sample:
    """Rows as the prior will see them, the BOS id in front where that is the rule."""

    text: _Rows
    random: _Rows

    @property
    def rows(self) -> _Rows:
        return self.text + self.random


def sample(tokenizer: Any, settings: dict[str, Any]) -> Sample:
    """Rows of several lengths: of real text (the help texts that every Python carries), and of random ids, for a tokenizer that
    finds few different ids in that text."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[key] for key in ("if", "assert", "import", "strings", "class", "numbers", "with", "lambda"))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [i for i in ids if i < settings["vocab_size"]] or [0]
    front = [settings["bos"]["id"]] if settings["bos"]["rule"] == "always" else []
    rows, start = [], 0
    for wanted in (256, 129, 65, 64, 33, 17, 9, 3):
        length = min(wanted, settings["context_length"]) - len(front)
        piece = [ids[(start + i) % len(ids)] for i in range(max(length, 2 - len(front)))]
        rows.append(front + piece)
        start += length
    random = np.random.default_rng(0).integers(0, settings["vocab_size"], size=(3, 256))
    lengths = (min(length, settings["context_length"]) for length in (129, 64, 8))
    return Sample(rows, [row[:length].tolist() for row, length in zip(random, lengths, strict=True)])


def is_causal(torch: Any, network: Any, row: list[int]) -> bool:
    """Whether the model's prediction at a position is the same without the tokens to its right."""
    with torch.inference_mode():
        whole, half = (network(input_ids=torch.tensor([ids]), use_cache=False).logits for ids in (row, row[: len(row) // 2]))
        shared = whole[:, : half.shape[1]]
        # not >, rather than <=: what is no number is found, and named, when the graph is checked
        return not bool((shared - half).abs().max() > 1e-4 * half.abs().max())


def _pad(rows: _Rows, least: int, context: int) -> npt.NDArray[np.int64]:
    """int64 [B, S], S - 1 a multiple of 8 (smaller shapes would take other kernels and so other bits) or the context."""
    positions = max(least, *(len(row) - 1 for row in rows))
    out = np.zeros((len(rows), min((positions + 7) // 8 * 8, context) + 1), dtype=np.int64)
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = row
    return out


def _torch_logprobs(torch: Any, network: Any, row: list[int]) -> npt.NDArray[np.float64]:
    """ln P of every id at every position but the last: float64 [len(row) - 1, V]."""
    with torch.inference_mode():
        logits = network(input_ids=torch.tensor([row])[:, :-1], use_cache=False).logits.double()
        out: npt.NDArray[np.float64] = torch.log_softmax(logits, dim=-1)[0].numpy()
        return out


def _undecided(torch: Any, network: Any, row: list[int], logprobs: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Where torch's own ln P of the row, *logprobs*, hangs on rounding: bool [len(row) - 1]."""
    noise = torch.Generator().manual_seed(0)

    def nudge(_: Any, __: Any, vectors: Any) -> Any:
        return vectors * (1 + _NUDGE * (2 * torch.rand(vectors.shape, generator=noise) - 1))

    hook = network.get_input_embeddings().register_forward_hook(nudge)
    try:
        moved = [np.abs(_torch_logprobs(torch, network, row) - logprobs).max(axis=-1) for _ in range(_NUDGES)]
    finally:
        hook.remove()
    return np.asarray(np.max(moved, axis=0) > FP32_TOLERANCE)


class _Graph:
    """The finished graph, in Python's ONNX Runtime."""

    def __init__(self, path: Path, card: dict[str, str] | None, context: int) -> None:
        import onnxruntime

        self.context = context

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.version = onnxruntime.__version__
        try:
            if card is None:
                providers: list[Any] = ["CPUExecutionProvider"]
            else:
                _cuda.preload(_runtime.library())
                providers = [("CUDAExecutionProvider", card), "CPUExecutionProvider"]  # this one computes shapes
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:
            raise PriorError(f"ONNX Runtime {self.version} does not open the exported graph: {error}") from error
        if card is not None and "CUDAExecutionProvider" not in self.session.get_providers():
            raise PriorError(f"ONNX Runtime {self.version} sees a card and does not use it: see what it says above")

    def __call__(self, rows: _Rows, least: int) -> list[npt.NDArray[Any]]:
        feeds = {
            "input_ids": _pad(rows, least, self.context),
            "k": np.array([1]),
            "keep_low": np.array([-np.inf], np.float32),
            "keep_high": np.zeros(1, np.float32),
        }
        try:
            return list(self.session.run(None, feeds))
        except Exception as error:
            raise PriorError(f"ONNX Runtime {self.version} does not run the exported graph: {error}") from error


def _least_positions(graph: _Graph, rows: _Rows) -> tuple[int, list[npt.NDArray[Any]]]:
    """The least padded length with which a row's scores are its own, and the outputs of all rows together."""
    turned = list(range(len(rows)))[::-1]
    for least in _LEAST_POSITIONS:
        if least > graph.context:
            break
        together = graph(rows, least)
        pairs = [(i, graph([row], least)[0][0]) for i, row in enumerate(rows)]
        some = graph([rows[i] for i in turned[: len(rows) // 2]], least)[0]
        pairs += list(zip(turned, some, strict=False))
        if all(together[0][i, : len(rows[i]) - 1].tobytes() == got[: len(rows[i]) - 1].tobytes() for i, got in pairs):
            return least, together
    raise PriorError("the exported graph's scores of a row depend on the rows that it is run with, whatever it is padded to")


def check(
    torch: Any, network: Any, path: Path, rows: Sample, *, context: int, exact: bool, card: dict[str, str] | None = None
) -> tuple[dict[str, Any], int]:
    """Score the sample with torch and with the finished graph.

    Args:
        network: the model in float32 on the CPU.
        path: the graph.
        context: the most positions of a row.
        exact: whether the graph must agree with torch to FP32_TOLERANCE (and not just be measured).
        card: options of ONNX Runtime's CUDA provider, which then computes; None is the CPU.

    Returns:
        What prior.json keeps as "check": the differences of ln P on the rows of real text and the share of decisions at usual
        thresholds that differ; of an exact mixture of experts that differs at some positions because rounding decides there
        which experts a token has, how many these are; and the least positions that rows must be padded to.

    Raises:
        PriorError: the graph does not run, gives what is no number, disagrees with torch, or scores a row by its company.
    """
    graph = _Graph(path, card, context)
    if card is None:
        least, together = _least_positions(graph, rows.rows)
    else:
        least, together = 0, graph(rows.rows, 0)
    differences, best, flips = [], [], np.zeros(len(_THRESHOLDS))
    comparable = []  # positions that torch decides
    # half precision rounds the stored top-k by at most 2^-11 of its size
    of_best = FP32_TOLERANCE - 2**-11 * float(together[3].min(initial=-1.0))
    width = together[0].shape[1]
    for index, row in enumerate(rows.rows):
        logprobs = _torch_logprobs(torch, network, row)
        want = logprobs[np.arange(len(row) - 1), row[1:]]
        got = together[0][index, : len(row) - 1]
        if not np.isfinite(got).all():
            raise PriorError(
                f"the exported graph gives ln P that is not finite (row {index} of the check); are the weights whole?"
            )
        differences.append(np.abs(got - want))
        if index < len(rows.text):
            flips += [((got >= np.log(t)) != (want >= np.log(t))).sum() for t in _THRESHOLDS]
        top = together[3][index * width : index * width + len(row) - 1, 0]
        best.append(np.abs(top - logprobs.max(axis=-1)))
        off = (differences[-1] > FP32_TOLERANCE) | (best[-1] > of_best)
        excused = exact and off.any() and network._can_set_experts_implementation()
        comparable.append(~(off & _undecided(torch, network, row, logprobs)) if excused else np.ones_like(off))
    compared = np.concatenate(comparable)
    if np.mean(~compared) > _UNDECIDED:
        compared[:] = True
    largest = float(np.concatenate(differences)[compared].max())
    if exact and not largest <= FP32_TOLERANCE:
        raise PriorError(f"the exported graph differs from torch by up to {largest:.3g} nats, more than {FP32_TOLERANCE:g}")
    if exact and np.concatenate(best)[compared].max() > of_best:
        raise PriorError("the exported graph's top-k is not torch's")
    undecided = int((~compared[: sum(len(row) - 1 for row in rows.text)]).sum())
    on_text = np.concatenate(differences[: len(rows.text)])
    return {
        "max_abs_dlogp": float(f"{on_text.max():.3g}"),
        "mean_abs_dlogp": float(f"{on_text.mean():.3g}"),
        "decisions_that_differ": {str(t): float(f"{n / on_text.size:.3g}") for t, n in zip(_THRESHOLDS, flips, strict=True)},
        "positions": int(on_text.size),
        **({"decided_by_rounding": undecided} if undecided else {}),
    }, least
