"""A prior: the language model whose probabilities decide what is edited."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from toedit import _arrow, _bridge, _cuda, _runtime
from toedit._arrow import SCORES_TYPE
from toedit._errors import (
    ClosedError,
    Error,
    InputError,
    MemoryWarning,
    MissingDependencyError,
    PriorError,
    ScoringError,
    TokenizerWarning,
)
from toedit.policy import Policy

__all__ = ["SCORES_TYPE", "Prior"]

DEFAULT_K = 8
WINDOWS = ("rolling", "lm-eval", "off")
DEFAULT_KEEP = 0.9

# A prior's settings beside its path, and what they are where nothing else is said.
_SETTINGS: dict[str, Any] = {
    "device": None,
    "threads": None,
    "memory_limit": None,
    "windows": "rolling",
    "min_context": None,
    "cross_documents": False,
}
# Python looks for Ctrl-C between two slices of waiting.
_SLICE_MS = 50
# Only the main thread sees Ctrl-C. Another one may put a function here, as its own ``check``, that is called between two
# slices of waiting and raises to end them.
waiting = threading.local()
# Scored tokens after which a mean ln P below chance is put down to the tokenizer.
_TOKENIZER_CHECK = 10_000


class Prior:
    """A prior folder, as ``toedit export`` makes it.

    A prior is a plain, picklable setting: it opens its native half at the first use in each process, so it may be handed
    to worker processes however they are started.

    Args:
        path: the folder.
        device: "cpu", "cuda" or "cuda:N"; by default the one that the prior was exported for. Another one is an error.
        threads: how many runs are computed at a time on the CPU, one core each. By default 1 in a worker process and every
            available core in the main one. Scores never depend on it.
        memory_limit: bytes that scoring may take beside the weights, about; runs then have fewer rows and wait for each
            other. A single row is run whatever it takes. Scores never depend on it.
        windows: how documents longer than the context are read. "rolling": in overlapping windows; every token is scored
            once, with at least *min_context* tokens before it wherever the document has them. "lm-eval": in the windows of
            lm-evaluation-harness's ``loglikelihood_rolling``, for comparison. "off": what lies beyond the context is not
            scored.
        min_context: for rolling windows, 1 to the context length less 1; by default half the context.
        cross_documents: read a packed row as one document. By default each of its documents is read by itself.

    The last three decide scores and are part of the fingerprint.

    Raises:
        InputError: an argument is out of its range.
        PriorError: at the first use, where the folder is missing, truncated, or not what its prior.json says.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str | None = None,
        threads: int | None = None,
        memory_limit: int | None = None,
        windows: str = "rolling",
        min_context: int | None = None,
        cross_documents: bool = False,
    ) -> None:
        self.path = Path(path)
        for name, value in (("threads", threads), ("memory_limit", memory_limit), ("min_context", min_context)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name} is {value!r}; it must be an integer of at least 1, or None")
        if device is not None and (not isinstance(device, str) or not re.fullmatch("cpu|cuda(:[0-9]+)?", device)):
            raise InputError(f"device is {device!r}; it must be 'cpu', 'cuda', 'cuda:N' with a card's number, or None")
        if windows not in WINDOWS:
            raise InputError(f"windows is {windows!r}; it must be one of {', '.join(map(repr, WINDOWS))}")
        if min_context is not None and windows != "rolling":
            raise InputError(f"min_context is {min_context}, but belongs to windows='rolling'; leave it out with {windows!r}")
        self.device = device
        self.threads = threads
        self.memory_limit = memory_limit
        self.windows = windows
        self.min_context = min_context
        self.cross_documents = bool(cross_documents)
        self._closed = False
        self._scored = 0
        self._sum_logp = 0.0
        self._short_of_memory = False
        # What any process first found in the folder: all others must find the same.
        self._opened_as: dict[str, str] = {}
        self._open()

    def _open(self) -> None:
        path, asked, threads, limit = str(self.path), self.device, self.threads, self.memory_limit or 0
        reading = json.dumps(
            {"windows": self.windows, "min_context": self.min_context or 0, "cross_documents": self.cross_documents}
        )

        opened_as = self._opened_as

        def open_prior() -> int:
            handle = int(_bridge.call("OpenPrior", path, reading))
            fingerprint = str(json.loads(_bridge.call("DescribePrior", handle))["fingerprint"])
            if opened_as.setdefault("fingerprint", fingerprint) != fingerprint:
                _bridge.call("Close", handle)
                raise PriorError(
                    f"{path} holds another prior than when this run began (fingerprint {fingerprint}, then "
                    f"{opened_as['fingerprint']}): its folder was replaced. Start again, or put the former one back"
                )
            return handle

        def open_scorer() -> int:
            n = _runtime.threads(threads, in_worker=multiprocessing.parent_process() is not None)
            library = _runtime.library()
            device = json.loads(_bridge.call("DescribePrior", prior.get()))["device"]
            if device == "cuda" and asked != "cpu":
                _cuda.preload(library)
            options = json.dumps({"threads": n, "device": asked or "", "memory_limit": limit})
            try:
                return int(_bridge.call("OpenScorer", prior.get(), library, options))
            except ScoringError as error:
                # Nothing was scored yet: the library itself cannot be used.
                raise MissingDependencyError(str(error)) from None

        prior = self._prior = _bridge.PerProcess(self, open_prior)
        self._scorer = _bridge.PerProcess(self, open_scorer)
        self._about: dict[str, Any] | None = None

    @classmethod
    def builtin(cls, **settings: Any) -> Prior:
        """The bundled prior: 5.5 million parameters, trained on public-domain English, for trying and for tests.

        For training, export a prior that has your model's tokenizer. *settings* are those of :class:`Prior`.
        """
        return cls(Path(__file__).with_name("builtin_prior"), **settings)

    def __getstate__(self) -> dict[str, Any]:
        # Always with the fingerprint, so that a prior's pickle, which caches hash, is the same before and after its first use.
        with contextlib.suppress(Error):
            self._opened_as.setdefault("fingerprint", self.fingerprint)
        return {name: getattr(self, name) for name in ("path", *_SETTINGS, "_closed", "_opened_as")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _scored=0, _sum_logp=0.0, _short_of_memory=False)
        self._open()

    def __repr__(self) -> str:
        names = ("windows", "min_context", "cross_documents")  # those that decide scores
        changed = (f", {name}={getattr(self, name)!r}" for name in names if getattr(self, name) != _SETTINGS[name])
        return f"Prior({str(self.path)!r}{''.join(changed)})"

    @property
    def handle(self) -> int:
        """The native handle in this process. For :class:`toedit.Editor`."""
        if self._closed:
            raise ClosedError(f"{self!r} is closed; open it again with toedit.Prior(path)")
        return self._prior.get()

    def describe(self) -> dict[str, Any]:
        """What the prior is: name, fingerprint, dtype, device, context_length, vocab_size, tokenizer_size, special_ids,
        k (the largest k that may be stored), bos (the rule and the id), windows, min_context, cross_documents and check
        (how far its ln P is from the model's, as the export measured it)."""
        if self._about is None:
            self._about = json.loads(_bridge.call("DescribePrior", self.handle))
        return dict(self._about)

    @property
    def fingerprint(self) -> str:
        """32 hex digits over everything that decides a score or an edit; every row of scores carries it."""
        return str(self.describe()["fingerprint"])

    def stats(self) -> dict[str, int]:
        """What this process has scored with the prior: ``runs`` of the model, ``positions`` that they read, ``padded``
        (those and the padding that was computed with them), ``halved`` (runs cut in two for want of memory) and ``waited``
        (runs of one row that there was memory for only when no other thread made one)."""
        return dict(json.loads(_bridge.call("ScorerStats", self._scorer.get())))

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
        split_after: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> pa.StructArray:
        """Score every token of a batch.

        Args:
            batch: rows of token ids: anything with ``__arrow_c_array__`` or ``__arrow_c_stream__``, lists, NumPy, torch,
                a list of mappings or a mapping with ``input_ids`` (and, where rows are padded, ``attention_mask``). Rows
                that hold several documents say where these begin: ``document_ids`` (int [tokens], another value in each
                document), ``position_ids`` (int [tokens], restarting in each) or ``seq_lengths`` (int [documents], adding
                up to the row's tokens). Each document is then scored by itself.
            k: how many of the most probable tokens are stored at a kept position; the policy's k, else 8.
            keep: where top-k is stored: a policy (the bands that it resamples) or closed ranges of P; by default P >= 0.9.
            split_after: an id after which another document begins inside a row (an end-of-sequence token).
            progress: called now and then with the tokens scored so far and all tokens.

        Returns:
            A struct column of :data:`SCORES_TYPE`, one struct a row; ``logp`` is as long as the row's real tokens. Tokens
            that the prior cannot score (a document's first one, where the prior puts nothing in front; with
            ``windows="off"`` those beyond its context) are null. Empty rows have empty scores.

        Raises:
            InputError: a row is null, an id is outside the vocabulary, k or a range is out of bounds.
            PriorError: the prior's folder is damaged.
            MissingDependencyError: ONNX Runtime is not installed.
            ClosedError: the prior was closed.
        """
        k, ranges = wanted(k, keep)
        opened = _arrow.open_batch(batch)
        if _arrow.IDS not in opened.names:
            raise InputError(f"the batch has no column {_arrow.IDS!r}, only {opened.names}")
        if split_after is not None and (isinstance(split_after, bool) or not isinstance(split_after, int) or split_after < 0):
            raise InputError(f"split_after is {split_after!r}; it must be a token id, or None")
        columns = {name: opened.column(name)[0] for name in _arrow.SCORING_COLUMNS if name in opened.names}
        return self.score_columns(columns, k, ranges, split_after, progress)

    def score_columns(
        self,
        columns: dict[str, pa.Array],
        k: int,
        ranges: list[tuple[float, float]],
        split_after: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> pa.StructArray:
        """:meth:`score` for columns that are Arrow arrays already."""
        _ = self.handle  # a closed prior or a damaged folder comes before a missing ONNX Runtime
        scorer = self._scorer.get()
        total = 0
        if progress is not None:
            total = pc.sum(pc.list_value_length(columns[_arrow.IDS])).as_py() or 0
        given = _bridge.ArrowIn(columns)
        options: dict[str, Any] = {"k": k, "keep": ranges}
        if split_after is not None:
            options["split_after"] = split_after
        job = 0
        try:
            job = _bridge.call("StartScore", scorer, given.array, given.schema, json.dumps(options))
            check = getattr(waiting, "check", None)
            while not _bridge.call("WaitScore", job, _SLICE_MS):
                if check is not None:
                    check()
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
        self._check_memory()
        return scores

    def _check_memory(self) -> None:
        """Warn once when there was no memory for a run."""
        if self._short_of_memory:
            return
        stats = self.stats()
        if stats["halved"] or stats["waited"]:
            self._short_of_memory = True
            # A card's products may round otherwise in another shape.
            same = "the same" if self.describe()["device"] == "cpu" else "the same but for rounding"
            warnings.warn(
                "there was no memory for a run of the model, so it was made in halves or after those of other threads; the "
                f"scores are {same}. A memory_limit for the prior, or fewer threads, saves the attempt",
                MemoryWarning,
                stacklevel=_level_of_caller(),
            )

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


def wanted(k: int | None, keep: Policy | Iterable[tuple[float, float]] | None) -> tuple[int, list[tuple[float, float]]]:
    """What is to be stored of the top-k: k, and the ranges of P where."""
    if isinstance(keep, Policy):
        k = keep.k if k is None else k
        ranges = [(band.low, band.high) for band in keep.candidate_bands if band.action == "resample"]
    else:
        ranges = [(DEFAULT_KEEP, 1.0)] if keep is None else _ranges(keep)
    k = DEFAULT_K if k is None else k
    if isinstance(k, bool) or not isinstance(k, int):
        raise InputError(f"k is {k!r}; it must be an integer")
    if not 1 <= k < 2**31:  # the prior's own limit is looked at where it is known
        raise InputError(f"k is {k}; it must be at least 1")
    return k, ranges


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
