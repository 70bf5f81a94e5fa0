"""Scoring with a loaded PyTorch model: slower than a prior folder, exact for every architecture, on any device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from toedit import _arrow
from toedit._errors import InputError, ScoringError
from toedit._scores import Ints, Rows, Top, column, inside, prior_of, read_rows
from toedit.policy import Policy
from toedit.prior import Prior, wanted

__all__ = ["score"]

# Log-softmax is taken in float32 of so many logits at a time: their copies stay below this, whatever the chunk.
_HEAD_BYTES = 1 << 28


def score(
    model: torch.nn.Module,
    batch: Any,
    *,
    prior: Prior,
    k: int | None = None,
    keep: Policy | Iterable[tuple[float, float]] | None = None,
    batch_tokens: int = 4096,
    split_after: int | None = None,
) -> pa.StructArray:
    """Score every token of a batch with a loaded causal language model: the column that ``prior.score`` makes.

    For architectures that do not export, for devices that ONNX Runtime does not know, and as the reference that exported
    priors are held against. It reads rows as the prior does (BOS id, context, windows, packed documents), on the device and
    in the dtype that the model has; logits become log-probabilities in float32. Scores of other dtypes than float32 depend
    on the batch a little, so store them.

    Args:
        model: a transformers causal language model, or a module that turns ids [B, T] into logits [B, T, V]. It must be
            the model of *prior*: only the size of its vocabulary is compared. Its modes and weights stay as they are.
        batch, k, keep, split_after: as for :meth:`toedit.Prior.score`; here *k* may be up to the vocabulary's size.
        prior: whose rules, vocabulary and fingerprint the scores get.
        batch_tokens: the most positions that go through the model together, padding included (a window that is longer goes
            alone). Their logits are in memory at once: 4096 of a 152k vocabulary take 1.2 GB in bfloat16.

    Returns:
        A struct column of :data:`toedit.SCORES_TYPE`, one struct a row.

    Raises:
        InputError: as :meth:`toedit.Prior.score`, or the model has another vocabulary than the prior.
        ScoringError: the model gives NaN.
    """
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
    if isinstance(batch_tokens, bool) or not isinstance(batch_tokens, int) or batch_tokens < 1:
        raise InputError(f"batch_tokens is {batch_tokens!r}; it must be an integer of at least 1")
    about = prior_of(prior).describe()
    k, ranges = wanted(k, keep)
    if k > about["vocab_size"]:
        raise InputError(f"k is {k}, but the vocabulary has {about['vocab_size']} ids")
    opened = _arrow.open_batch(batch)
    if _arrow.IDS not in opened.names:
        raise InputError(f"the batch has no column {_arrow.IDS!r}, only {opened.names}")
    columns = {name: opened.column(name)[0] for name in _arrow.SCORING_COLUMNS if name in opened.names}
    rows = read_rows(prior, columns, split_after)
    bos = about["bos"]["id"]
    work = _Work(model, rows, about["vocab_size"], -1 if bos is None else int(bos), k, ranges)
    with _evaluating(model), torch.inference_mode():
        for windows in _chunks(rows.windows, batch_tokens):
            work.score(windows)
    return work.column(prior)


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout inside the block; afterwards every module is in the mode that it was in."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def _positions(windows: Ints) -> Ints:
    """How many positions the model reads of each window: its inputs are the tokens before the last, and the BOS id."""
    _, start, _, end, prefix = windows.T
    positions: Ints = end - 1 - start + prefix
    return positions


def _chunks(windows: Ints, batch_tokens: int) -> Iterator[Ints]:
    """Windows that go through the model together: of like lengths, longest first, so that memory runs out at once or never."""
    windows = windows[np.argsort(-_positions(windows), kind="stable")]
    lengths, at = _positions(windows), 0
    while at < len(windows):
        n = max(1, batch_tokens // int(lengths[at]))
        yield windows[at : at + n]
        at += n


@dataclass
class _Work:
    """Scores on their way: flat over all rows' tokens, and pieces of the top-k."""

    model: torch.nn.Module
    rows: Rows
    vocabulary: int
    bos: int
    k: int
    ranges: list[tuple[float, float]]

    def __post_init__(self) -> None:
        self.logp = np.full(len(self.rows.ids), np.nan, np.float32)
        self.top: list[tuple[Ints, npt.NDArray[np.int64], npt.NDArray[np.float32]]] = []
        parameter = next(self.model.parameters(), None)
        self.device = torch.device("cpu") if parameter is None else parameter.device

    def score(self, windows: Ints) -> None:
        """Score the tokens [first, end) of some windows."""
        row, start, first, end, prefix = windows.T
        base, positions = self.rows.offsets[row], _positions(windows)
        context = np.zeros((len(windows), int(positions.max())), np.int64)  # what stands in the padding is never seen
        for b in range(len(windows)):
            context[b, prefix[b] : positions[b]] = self.rows.ids[base[b] + start[b] : base[b] + end[b] - 1]
            context[b, : prefix[b]] = self.bos
        logits = self.logits(torch.from_numpy(context).to(self.device))

        counts = end - first
        of = np.repeat(np.arange(len(windows)), counts)
        token = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[of]
        output = token - start[of] + prefix[of] - 1
        flat = base[of] + token
        step = max(1, _HEAD_BYTES // (4 * self.vocabulary))
        for s in (slice(at, at + step) for at in range(0, len(flat), step)):
            self.store(logits[self.on_device(of[s]), self.on_device(output[s])], flat[s])

    def logits(self, context: torch.Tensor) -> torch.Tensor:
        options = {"use_cache": False} if hasattr(self.model, "config") else {}
        out = self.model(context, **options)
        logits = getattr(out, "logits", out)
        if not isinstance(logits, torch.Tensor) or logits.shape != (*context.shape, self.vocabulary):
            shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise InputError(
                f"for ids of shape {tuple(context.shape)} the model gives {shape}, but the prior's vocabulary has "
                f"{self.vocabulary} ids; it must be a causal language model, and the one that the prior was made from"
            )
        return logits

    def store(self, logits: torch.Tensor, flat: Ints) -> None:
        """The scores of tokens by their logits [n, V]."""
        logprobs = torch.log_softmax(logits.float(), dim=-1).clamp_(max=0)
        targets = self.on_device(self.rows.ids[flat].astype(np.int64))
        logp = logprobs.gather(1, targets.unsqueeze(1)).squeeze(1).cpu().numpy()
        if np.isnan(logp).any():
            at = int(flat[np.argmax(np.isnan(logp))])
            row = int(np.searchsorted(self.rows.offsets, at, side="right")) - 1
            raise ScoringError(f"row {row}: the model gives NaN at position {at - self.rows.offsets[row]}; it is damaged")
        self.logp[flat] = logp
        kept = np.flatnonzero(inside(logp, self.ranges))
        if len(kept):
            ids, values = _top(logprobs[self.on_device(kept)], self.k)
            self.top.append((flat[kept], ids.cpu().numpy(), values.cpu().numpy()))

    def on_device(self, array: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    def column(self, prior: Prior) -> pa.StructArray:
        """All of it as the scores column."""
        flat = np.concatenate([np.zeros(0, np.int64), *(at for at, _, _ in self.top)])
        ids = np.concatenate([np.zeros((0, self.k), np.int64), *(ids for _, ids, _ in self.top)])
        values = np.concatenate([np.zeros((0, self.k), np.float32), *(values for _, _, values in self.top)])
        order = np.argsort(flat)
        flat = flat[order]
        offsets = np.searchsorted(flat, self.rows.offsets).astype(np.int64)
        pos = flat - np.repeat(self.rows.offsets[:-1], np.diff(offsets))
        return column(self.rows, self.logp, ~np.isnan(self.logp), Top(pos, offsets, ids[order], values[order]), prior)


def _top(logprobs: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k most probable ids of each row and their ln P. Where ids are tied for the last place, the lowest get it: torch's
    own top-k takes any of them."""
    values, ids = logprobs.topk(k, dim=-1)
    tied = (logprobs >= values[:, -1:]).sum(dim=-1) > k
    if bool(tied.any()):
        ordered, order = logprobs[tied].sort(dim=-1, descending=True, stable=True)
        values[tied], ids[tied] = ordered[:, :k], order[:, :k]
    return ids, values
