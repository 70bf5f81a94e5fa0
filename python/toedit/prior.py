"""A prior: the language model whose probabilities decide what is edited."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from toedit import _arrow, _bridge, _runtime
from toedit._arrow import SCORES_TYPE
from toedit._errors import ClosedError, InputError, MissingDependencyError, ScoringError, TokenizerWarning
from toedit.policy import Policy

__all__ = ["SCORES_TYPE", "Prior"]

DEFAULT_K = 8
DEFAULT_KEEP = 0.9

# Python looks for Ctrl-C between two slices of waiting.
_SLICE_MS = 50
# Scored tokens after which a mean ln P below chance is put down to the tokenizer.
_TOKENIZER_CHECK = 10_000


class Prior:
    """A prior folder, as ``toedit export`` makes it.

    A prior is a plain, picklable setting: it opens its native half at the first use in each process, so it may be handed
    to worker processes however they are started.

    Args:
        path: the folder.
        threads: how many runs are computed at a time, one core each. By default 1 in a worker process and every
            available core in the main one. Scores never depend on it.

    Raises:
        PriorError: at the first use, where the folder is missing, truncated, or not what its prior.json says.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None) -> None:
        self.path = Path(path)
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise InputError(f"threads is {threads!r}; it must be an integer of at least 1, or None")
        self.threads = threads
        self._closed = False
        self._scored = 0
        self._sum_logp = 0.0
        self._open()

    def _open(self) -> None:
        path, threads = str(self.path), self.threads

        def open_prior() -> int:
            return int(_bridge.call("OpenPrior", path))

        def open_scorer() -> int:
            n = _runtime.threads(threads, in_worker=multiprocessing.parent_process() is not None)
            library = _runtime.library()
            try:
                return int(_bridge.call("OpenScorer", prior.get(), library, n))
            except ScoringError as error:
                # Nothing was scored yet: the library itself cannot be used.
                raise MissingDependencyError(str(error)) from None

        prior = self._prior = _bridge.PerProcess(self, open_prior)
        self._scorer = _bridge.PerProcess(self, open_scorer)
        self._about: dict[str, Any] | None = None

    @classmethod
    def builtin(cls, *, threads: int | None = None) -> Prior:
        """The bundled prior: 5.5 million parameters, trained on public-domain English, for trying and for tests.

        For training, export a prior that has your model's tokenizer.
        """
        return cls(Path(__file__).with_name("builtin_prior"), threads=threads)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "threads": self.threads, "_closed": self._closed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _scored=0, _sum_logp=0.0)
        self._open()

    def __repr__(self) -> str:
        return f"Prior({str(self.path)!r})"

    @property
    def handle(self) -> int:
        """The native handle in this process. For :class:`toedit.Editor`."""
        if self._closed:
            raise ClosedError(f"{self!r} is closed; open it again with toedit.Prior(path)")
        return self._prior.get()

    def describe(self) -> dict[str, Any]:
        """What the prior is: name, fingerprint, dtype, device, context_length, vocab_size, tokenizer_size, special_ids
        and k (the largest k that may be stored)."""
        if self._about is None:
            self._about = json.loads(_bridge.call("DescribePrior", self.handle))
        return dict(self._about)

    @property
    def fingerprint(self) -> str:
        """32 hex digits over everything that decides a score or an edit; every row of scores carries it."""
        return str(self.describe()["fingerprint"])

    @property
    def tokenizer_file(self) -> Path:
        """The prior's tokenizer, for ``tokenizers.Tokenizer.from_file``."""
        return self.path / "tokenizer.json"

    def score(
        self,
        batch: Any,
        *,
        k: int | None = None,
        keep: Policy | Iterable[tuple[float, float]] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> pa.StructArray:
        """Score every token of a batch.

        Args:
            batch: rows of token ids: anything with ``__arrow_c_array__`` or ``__arrow_c_stream__``, lists, NumPy, torch,
                a list of mappings or a mapping with ``input_ids`` (and, where rows are padded, ``attention_mask``).
            k: how many of the most probable tokens are stored at a kept position; the policy's k, else 8.
            keep: where top-k is stored: a policy (its band) or closed ranges of P; by default P >= 0.9.
            progress: called now and then with the tokens scored so far and all tokens.

        Returns:
            A struct column of :data:`SCORES_TYPE`, one struct a row; ``logp`` is as long as the row's real tokens. Tokens
            that the prior cannot score (the first one, where the prior puts nothing in front; those beyond its context)
            are null. Empty rows have empty scores.

        Raises:
            InputError: a row is null, an id is outside the vocabulary, k or a range is out of bounds.
            PriorError: the prior's folder is damaged.
            MissingDependencyError: ONNX Runtime is not installed.
            ClosedError: the prior was closed.
        """
        if isinstance(keep, Policy):
            k = keep.k if k is None else k
            ranges = [(keep.threshold, 1.0)]
        else:
            ranges = [(DEFAULT_KEEP, 1.0)] if keep is None else _ranges(keep)
        k = DEFAULT_K if k is None else k
        if isinstance(k, bool) or not isinstance(k, int):
            raise InputError(f"k is {k!r}; it must be an integer")
        if not 1 <= k < 2**31:  # the prior's own limit is looked at where it is known
            raise InputError(f"k is {k}; it must be at least 1")
        opened = _arrow.open_batch(batch)
        if _arrow.IDS not in opened.names:
            raise InputError(f"the batch has no column {_arrow.IDS!r}, only {opened.names}")
        columns = {name: opened.column(name)[0] for name in (_arrow.IDS, "attention_mask") if name in opened.names}
        return self.score_columns(columns, k, ranges, progress)

    def score_columns(
        self,
        columns: dict[str, pa.Array],
        k: int,
        ranges: list[tuple[float, float]],
        progress: Callable[[int, int], None] | None = None,
    ) -> pa.StructArray:
        """:meth:`score` for columns that are Arrow arrays already."""
        _ = self.handle  # a closed prior or a damaged folder comes before a missing ONNX Runtime
        scorer = self._scorer.get()
        total = 0
        if progress is not None:
            total = pc.sum(pc.list_value_length(columns[_arrow.IDS])).as_py() or 0
        given = _bridge.ArrowIn(columns)
        job = 0
        try:
            job = _bridge.call("StartScore", scorer, given.array, given.schema, json.dumps({"k": k, "keep": ranges}))
            while not _bridge.call("WaitScore", job, _SLICE_MS):
                if progress is not None:
                    progress(_bridge.call("ScoredTokens", job), total)
        except BaseException:
            # Ctrl-C above all. Nothing may still read or write the job's memory when the exception goes on.
            if job:
                _bridge.call("CancelScore", job)
            raise
        out = _bridge.ArrowOut()
        _bridge.call("TakeScore", job, out.array, out.schema)
        scores = out.take_array()
        if progress is not None:
            progress(total, total)
        self._check_tokenizer(scores)
        return scores

    def _check_tokenizer(self, scores: pa.StructArray) -> None:
        """Warn once when the first 10,000 scored tokens are less likely than chance."""
        if self._scored >= _TOKENIZER_CHECK:
            return
        logp = scores.field("logp").flatten()
        self._sum_logp += pc.sum(logp).as_py() or 0.0
        self._scored += len(logp) - logp.null_count
        size = self.describe()["vocab_size"]
        if self._scored >= _TOKENIZER_CHECK and self._sum_logp / self._scored < -math.log(size):
            warnings.warn(
                f"the mean ln P of the first {self._scored} tokens is {self._sum_logp / self._scored:.2f}, worse than a "
                f"uniform guess among {size} ids ({-math.log(size):.2f}): these ids are probably another tokenizer's; "
                f"use the one in {self.path}, or export a prior that has your model's tokenizer",
                TokenizerWarning,
                stacklevel=_level_of_caller(),
            )

    def close(self) -> None:
        """Free the native half in this process. Waits for scoring in other threads. Closing twice is harmless."""
        self._closed = True
        self._scorer.close()
        self._prior.close()

    def __enter__(self) -> Prior:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _ranges(keep: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    try:
        ranges = [(float(low), float(high)) for low, high in keep]
    except (TypeError, ValueError):
        raise InputError(f"keep is {keep!r}; it must be a policy or ranges of P such as [(0.9, 1.0)]") from None
    for low, high in ranges:
        if not 0 <= low <= high <= 1:
            raise InputError(f"keep: ({low}, {high}) is not a range of P; it must have 0 <= low <= high <= 1")
    return ranges


def _level_of_caller() -> int:
    """The stacklevel with which the calling function's warning points at the line that called toedit, by whichever way."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "toedit":
        level, frame = level + 1, frame.f_back
    return level
