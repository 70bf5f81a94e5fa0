"""Scores out of what vLLM says of its prompts (``SamplingParams(prompt_logprobs=k)``). vLLM itself is not imported.

params = SamplingParams(max_tokens=1, prompt_logprobs=8)
outputs = llm.generate([{"prompt_token_ids": [bos, *ids]} for ids in rows], params)
column = toedit.vllm.scores(outputs, rows, prior=prior)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from toedit import _arrow
from toedit._arrow import IDS
from toedit._errors import InputError
from toedit._scores import Ints, Top, check_top, column, inside, prior_of, read_rows
from toedit.policy import Policy
from toedit.prior import Prior, wanted

__all__ = ["scores"]

_FLAT = ("start_indices", "end_indices", "token_ids", "logprobs", "ranks")
_AGAIN = "the outputs belong to other rows, or are in another order"


def scores(
    outputs: Sequence[Any],
    input_ids: Any,
    *,
    prior: Prior,
    k: int | None = None,
    keep: Policy | Iterable[tuple[float, float]] | None = None,
) -> pa.StructArray:
    """The scores column out of vLLM's log-probabilities of prompts.

    Where the prior puts its BOS id in front of a row (``prior.describe()["bos"]``), vLLM must have been given it too.

    Args:
        outputs: one for each row: a ``RequestOutput``, or its ``prompt_logprobs``: a list with a dict of token id to
            ``Logprob`` for each prompt token (None for the first), or a ``FlatLogprobs``. vLLM's model must be the prior's,
            its temperature 1 and its ``logprobs_mode`` "raw_logprobs" (the defaults of prompts).
        input_ids: the rows' ids without a BOS id that the prior puts in front and without padding.
        prior: whose rules, vocabulary and fingerprint the scores get.
        k, keep: as for :meth:`toedit.Prior.score`; k is at most what ``prompt_logprobs`` was.

    Returns:
        A struct column of :data:`toedit.SCORES_TYPE`, one struct a row.

    Raises:
        InputError: outputs and rows do not belong together, or vLLM was asked for fewer than k; the message names row and
            position.
    """
    about = prior_of(prior).describe()
    k, ranges = wanted(k, keep)
    rows = read_rows(prior, {IDS: _arrow.to_arrow(input_ids, IDS)[0]})
    n = len(rows.offsets) - 1
    if not isinstance(outputs, Sequence) or isinstance(outputs, (str, bytes)) or _is_flat(outputs):
        raise InputError(f"outputs is a {type(outputs).__name__}; it must be a list with one output for each row")
    if len(outputs) != n:
        raise InputError(f"there are {len(outputs)} outputs, but {n} rows of ids")
    _check_windows(np.diff(rows.offsets), rows.windows, about["context_length"])
    bos = about["bos"]["id"] if about["bos"]["rule"] == "always" else None
    logp = np.full(len(rows.ids), np.nan, np.float32)
    pos, counts, ids, values = [], [], [], []
    for i, output in enumerate(outputs):
        begin, end = rows.offsets[i : i + 2]
        row = rows.ids[begin:end]
        prefix = bos is not None and len(row) > 0 and row[0] != bos
        try:
            own, kept, top_ids, top_values = _Row(output, row, bos if prefix else None).read(k, ranges)
            if len(kept):
                check_top(Top(kept, np.array([0, len(kept)]), top_ids, top_values), about["vocab_size"])
        except InputError as error:
            raise InputError(f"row {i}: {str(error).removeprefix('row 0: ')}") from None
        logp[begin:end] = own
        pos.append(kept)
        counts.append(len(kept))
        ids.append(top_ids)
        values.append(top_values)
    top = Top(
        np.concatenate([np.zeros(0, np.int64), *pos]),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.concatenate([np.zeros((0, k), np.int64), *ids]),
        np.concatenate([np.zeros((0, k)), *values]),
    )
    return column(rows, logp, ~np.isnan(logp), top, prior)


def _check_windows(lengths: Ints, windows: Ints, context: int) -> None:
    """Raise for rows that the prior does not read in one piece, as vLLM does."""
    ends = np.zeros(len(lengths), np.int64)
    np.maximum.at(ends, windows[:, 0], windows[:, 3])
    wrong = (np.bincount(windows[:, 0], minlength=len(lengths)) > 1) | ((ends < lengths) & (lengths > 1))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"row {row} has {lengths[row]} tokens, more than the prior's context of {context}, which it reads in windows and "
            "vLLM in one piece: those are other scores; cut such rows before both"
        )


def _is_flat(value: Any) -> bool:
    return all(hasattr(value, name) for name in _FLAT)


class _Row:
    """One prompt's log-probabilities as flat arrays: entries in order of their prompt's positions."""

    def __init__(self, output: Any, ids: npt.NDArray[np.int32], bos: int | None) -> None:
        self.before = 0 if bos is None else 1  # tokens of the prompt in front of the row's
        prompt = [*([] if bos is None else [bos]), *ids.tolist()]
        given = getattr(output, "prompt_token_ids", None)
        if given is not None and list(given) != prompt:
            self._other_prompt(list(given), prompt, bos)
        found: Any = getattr(output, "prompt_logprobs", output)
        if found is None and prompt:
            raise InputError("vLLM gave no prompt_logprobs; ask for them with SamplingParams(prompt_logprobs=k)")
        found = [] if found is None else found
        if _is_flat(found):
            lengths = np.asarray(found.end_indices, np.int64) - np.asarray(found.start_indices, np.int64)
            at = np.repeat(np.asarray(found.start_indices, np.int64) - np.cumsum(lengths) + lengths, lengths)
            at = at + np.arange(len(at))
            columns = [list(found.token_ids), list(found.logprobs), list(found.ranks)]
            tokens, logps, ranks = ([values[j] for j in at] for values in columns)
        else:
            if not isinstance(found, Sequence) or isinstance(found, (str, bytes)):
                raise InputError(f"prompt_logprobs is a {type(found).__name__}; it must be a list or a FlatLogprobs")
            entries = [_entries(at, position) for at, position in enumerate(found)]
            lengths = np.array([len(one) for one in entries], np.int64)
            tokens, logps, ranks = ([entry[j] for one in entries for entry in one] for j in range(3))
        if len(lengths) != len(prompt):
            hint = (
                f"; the prior puts its BOS id {bos} in front of this row, so vLLM must be given it too"
                if bos is not None
                else ""
            )
            raise InputError(f"prompt_logprobs has {len(lengths)} positions for a prompt of {len(prompt)} tokens{hint}")
        self.position = np.repeat(np.arange(len(lengths)), lengths)
        self.tokens = np.array(tokens, np.int64)
        self.logps = np.array(logps, np.float64)
        # A rank that is missing is nobody's.
        self.ranks = np.array([np.iinfo(np.int64).max if rank is None else rank for rank in ranks], np.int64)
        self.prompt = np.array(prompt, np.int64)
        self.lengths = lengths

    @staticmethod
    def _other_prompt(given: list[int], prompt: list[int], bos: int | None) -> None:
        if bos is not None and given == prompt[1:]:
            raise InputError(f"the prior puts its BOS id {bos} in front of this row, so vLLM must be given it too")
        at = next((i for i, (a, b) in enumerate(zip(given, prompt, strict=False)) if a != b), min(len(given), len(prompt)))
        raise InputError(f"prompt_token_ids is not the row's from index {at} on; {_AGAIN}")

    def read(self, k: int, ranges: list[tuple[float, float]]) -> tuple[npt.NDArray[Any], Ints, Ints, npt.NDArray[Any]]:
        """ln P of the row's tokens (NaN where there is none), the positions to be kept, and their top-k [M, k]."""
        logp = np.full(len(self.prompt), np.nan)
        # A flat container may hold the prompt's token twice, as itself and among the best: with the same value.
        own = self.tokens == self.prompt[self.position]
        logp[self.position[own]] = self.logps[own]
        lacking = np.flatnonzero(np.isnan(logp) & (self.lengths > 0))
        if len(lacking):
            at = int(lacking[0])
            what = (
                "is NaN" if own[self.position == at].any() else f"does not hold the prompt's token {self.prompt[at]}; {_AGAIN}"
            )
            raise InputError(f"prompt_logprobs[{at}] {what}")
        empty = np.flatnonzero(self.lengths[1:] == 0)
        if len(empty):
            raise InputError(f"prompt_logprobs[{empty[0] + 1}] is None, which only the first may be")
        if (logp > 0).any():
            at = int(np.argmax(logp > 0))
            raise InputError(f"prompt_logprobs[{at}] gives ln P = {logp[at]:g}, but a log-probability is at most 0")
        logp32 = logp.astype(np.float32)
        keep = inside(logp32, ranges)
        keep[: self.before] = False
        return logp32[self.before :], *self._top(np.flatnonzero(keep), k)

    def _top(self, kept: Ints, k: int) -> tuple[Ints, Ints, npt.NDArray[Any]]:
        here = np.isin(self.position, kept)
        position, tokens, logps, ranks = self.position[here], self.tokens[here], self.logps[here], self.ranks[here]
        # One entry for each token of a position, by the better of its ranks: the prompt's token has its rank in the whole
        # vocabulary, where a tie counts as worse, and may stand among the best under another.
        order = np.lexsort((ranks, tokens, position))
        first = np.ones(len(order), dtype=bool)
        first[1:] = (np.diff(position[order]) != 0) | (np.diff(tokens[order]) != 0)
        once = order[first]
        order = once[np.lexsort((tokens[once], -logps[once], ranks[once], position[once]))]
        position, tokens, logps, ranks = position[order], tokens[order], logps[order], ranks[order]
        starts = np.searchsorted(position, kept)
        place = np.arange(len(position)) - np.repeat(starts, np.diff([*starts, len(position)]))
        best = place < k
        found = np.bincount(np.searchsorted(kept, position[best]), minlength=len(kept))
        # The prompt's token is there even where it is not among the best: then what is last has a rank beyond k.
        short = (found < k) | (np.bincount(np.searchsorted(kept, position[best & (ranks > k)]), minlength=len(kept)) > 0)
        if short.any():
            at = int(kept[np.argmax(short)])
            raise InputError(
                f"prompt_logprobs[{at}] holds fewer than the {k} most probable tokens; score with "
                f"SamplingParams(prompt_logprobs={k}) or more"
            )
        return kept - self.before, tokens[best].reshape(-1, k), logps[best].reshape(-1, k)


def _entries(at: int, position: Any) -> list[tuple[int, float, int | None]]:
    """(id, ln P, rank) of one position of the nested form."""
    if position is None:
        return []
    if not isinstance(position, Mapping) or not all(hasattr(entry, "logprob") for entry in position.values()):
        raise InputError(
            f"prompt_logprobs[{at}] is a {type(position).__name__}; it must be a dict of token id to Logprob, or None"
        )
    return [(int(token), entry.logprob, getattr(entry, "rank", None)) for token, entry in position.items()]
