"""The editor: batches in, edited batches out."""

from __future__ import annotations

import ctypes
import operator
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from toedit import _arrow, _bridge
from toedit._arrow import IDS, LABELS, PAIR_COLUMNS, RANGES, SCORES, SCORING_COLUMNS, scores_column
from toedit._drop import follow, refuse_places
from toedit._errors import ExpectedChangesWarning, IdentityWarning, InputError
from toedit._packed import unpack
from toedit._pairs import flat_pairs
from toedit._scores import read_rows
from toedit._tokenizer import check_same_tokenizer
from toedit.log import PendingLog, joined
from toedit.policy import Policy
from toedit.prior import Prior, wanted
from toedit.statistics import Statistics, measure
from toedit.store import Lookups, ScoreStore

if TYPE_CHECKING:
    from toedit.text import EditedText

__all__ = ["Counts", "Edited", "Editor"]

# Columns of these names are understood: padding, labels (-100: context, not edited), and tokens that are not edited.
_MASKS = ("attention_mask", "special_tokens_mask", "protected_mask", "assistant_masks")

_MAX_GENERATIONS = 2**16  # the Philox key has 16 bits for a generation

# Tokens after which a run that is expected to change almost nothing is told so, and what almost nothing is.
_EXPECTED_CHECK = 10_000
_EXPECTED_SHARE = 0.001


@dataclass
class Counts:
    """What editing met and did, as totals.

    Candidates and changes are two numbers: a candidate is a token in the band that may be edited, a change is one whose
    id differs after the draw.

    Attributes:
        rows: rows seen.
        empty_rows: rows without tokens, passed through.
        overlong_rows: rows whose end lies beyond the prior's context and was passed through.
        tokens: tokens seen, padding left out.
        unscored: tokens without a score, passed through.
        protected: tokens in a band that are protected.
        candidates: tokens in a band that may be edited.
        unselected: candidates that ``max_edit_rate`` or ``edit_probability`` left alone.
        truncated: candidates that stay because too little of their distribution is stored to find the ``top_p`` of it.
        changes: candidates whose id changed.
        dropped: candidates that were taken out.
        masked: candidates whose label became -100.
        expected_changes: the changes to be expected from the scores: the sum over candidates of one minus the
            probability that the draw keeps the token.
    """

    rows: int = 0
    empty_rows: int = 0
    overlong_rows: int = 0
    tokens: int = 0
    unscored: int = 0
    protected: int = 0
    candidates: int = 0
    unselected: int = 0
    truncated: int = 0
    changes: int = 0
    dropped: int = 0
    masked: int = 0
    expected_changes: float = 0.0

    def add(self, other: Counts) -> None:
        """Add the counts of another batch."""
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))

    @classmethod
    def of_generations(cls, generations: Sequence[Counts]) -> Counts:
        """The counts of a batch that was edited several times.

        What came in is counted once, as the first generation met it: ``rows``, ``empty_rows``, ``overlong_rows``, ``tokens``,
        ``unscored``. The rest is added up: a token that is a candidate, or changes, in several generations counts in each.
        """
        first, *later = generations
        total = replace(first)
        for counts in later:
            total.add(replace(counts, **dict.fromkeys(_MET, 0)))
        return total


_MET = ("rows", "empty_rows", "overlong_rows", "tokens", "unscored")


class _NativeCounts(ctypes.Structure):
    # struct toedit_counts of capi/toedit.h.
    _fields_ = [(f.name, ctypes.c_double if f.name == "expected_changes" else ctypes.c_int64) for f in fields(Counts)]


_COUNTS = struct.Struct("12qd")  # the same, to read it at once


class Edited(Mapping[str, Any]):
    """An edited batch: a mapping over its columns.

    Attributes:
        batch: the batch, in the container and dtypes that came in, with ``input_ids`` (and ``labels``, where there are
            any) edited and every other column as it was.
        counts: what was met and done, in all generations: what was met counts once, what was done in each
            (:meth:`Counts.of_generations`).
        generations: the counts of each generation; one, unless the editor makes more.
        targets: the edited ``input_ids`` and their ``labels`` as Arrow lists, where :meth:`Editor.edit` was asked for them.
    """

    __slots__ = ("_log", "_logs", "_lookups", "_opened", "batch", "counts", "generations", "targets")

    def __init__(
        self,
        opened: _arrow.Batch,
        batch: Any,
        generations: list[Counts],
        logs: list[PendingLog],
        targets: pa.RecordBatch | None,
        lookups: Lookups | None,
    ) -> None:
        self._opened = opened
        self.batch = batch
        self.generations = generations
        self.counts = generations[0] if len(generations) == 1 else Counts.of_generations(generations)
        self.targets = targets
        self._logs = logs
        self._lookups = lookups  # of the first generation, where there is a store
        self._log: pa.RecordBatch | None = None

    def __getitem__(self, name: str) -> Any:
        if name not in self._opened.names:
            raise KeyError(name)
        return self._opened.get(self.batch, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._opened.names)

    def __len__(self) -> int:
        return len(self._opened.names)

    def __repr__(self) -> str:
        return f"Edited({list(self)}, {self.counts})"

    @property
    def log(self) -> pa.RecordBatch:
        """A row for each edit, with the columns of :data:`toedit.log.SCHEMA`: row, position, old and new id, key, generation,
        texts, P, band, action; one generation behind the other. Where rows are packed, a row is a document. Read it before the
        batch that came in is written to.

        Raises:
            InputError: the batch that came in was changed since.
        """
        if self._log is None:
            self._log = joined([log.whole() for log in self._logs])
        return self._log

    @property
    def candidates(self) -> int:
        """Tokens in the band that may be edited."""
        return self.counts.candidates

    @property
    def changes(self) -> int:
        """Tokens whose id changed."""
        return self.counts.changes

    @property
    def expected_changes(self) -> float:
        """The changes to be expected from the scores."""
        return self.counts.expected_changes


class Editor:
    """Edits batches of token ids (arXiv 2412.14689, Algorithm 1).

    Every draw is a function of the seed, the epoch, the document's key and the token's position alone: workers, batch
    size, order and restarts do not matter. An editor is picklable and opens its native half at the first use in each
    process.

    Args:
        prior: the prior whose scores decide. Editing from stored scores needs no ONNX Runtime.
        policy: which tokens are edited, and how; by default the paper's.
        seed: 0 to 2**64 - 1.
        key: the name of a column (strings or integers) that names each row's document. Without one, a document's key is
            the hash of its ids, and equal documents get equal edits in an epoch.
        offset: the name of an integer column with the position of each row's first token in its document, for rows that
            are chunks of documents.
        tokenizer: the trainer's tokenizer (a ``tokenizers.Tokenizer``, a fast transformers tokenizer, or the path of a
            tokenizer.json), compared with the prior's.
        generations: how often a batch is edited, 1 to 65536: edited, scored again with the prior, edited again, with draws of
            its own in each generation. The first one uses the scores that come with the batch; each later one costs a forward
            pass and needs ONNX Runtime, wherever the editor runs. There a row's scores are of the row alone: of a chunk, not of
            the document that it was cut from. Without a key column a row's key is the hash of the ids that the generation began
            with.
        store: where batches without a scores column find their scores, and leave those that had to be computed. Generations
            after the first are scored each time.

    Raises:
        InputError: an argument is out of its range, the policy's ``protected_ids`` are not in the prior's vocabulary, the
            tokenizer is not the prior's, or a store cannot hold the prior's scores.
        PriorError: the prior's folder is missing or damaged.
    """

    def __init__(
        self,
        prior: Prior,
        policy: Policy | None = None,
        seed: int = 0,
        key: str | None = None,
        offset: str | None = None,
        tokenizer: Any = None,
        generations: int = 1,
        store: ScoreStore | None = None,
    ) -> None:
        if not isinstance(prior, Prior):
            raise InputError(f"prior is a {type(prior).__name__}; it must be a toedit.Prior")
        if policy is not None and not isinstance(policy, Policy):
            raise InputError(f"policy is a {type(policy).__name__}; it must be a toedit.Policy")
        if store is not None:
            if not isinstance(store, ScoreStore):
                raise InputError(f"store is a {type(store).__name__}; it must be a toedit.ScoreStore")
            store.check_prior(prior)
        for name, column in (("key", key), ("offset", offset)):
            if column is not None and not isinstance(column, str):
                raise InputError(f"{name} is {column!r}; it must be the name of a column, or None")
        self.prior = prior
        self.policy = Policy() if policy is None else policy
        self.seed = _integer("seed", seed, 2**64 - 1)
        self.key = key
        self.offset = offset
        self.generations = _integer("generations", generations, _MAX_GENERATIONS, least=1)
        self.store = store
        if _is_identity(self.policy):
            warnings.warn(
                f"this policy changes nothing: at temperature 1 a token with P >= top_p = {self.policy.top_p} is its whole "
                "nucleus. A higher top_p, a lower threshold or another temperature draws from more",
                IdentityWarning,
                stacklevel=2,
            )
        if tokenizer is not None:
            check_same_tokenizer(tokenizer, prior.tokenizer_file)
        self._open()
        if self.policy.protected_ids:
            self._native.get()  # where the policy meets the prior's vocabulary

    def _open(self) -> None:
        prior, policy = self.prior, self.policy.to_json()
        self._native = _bridge.PerProcess(self, lambda: int(_bridge.call("OpenEditor", prior.handle, policy)))
        actions = {band.action for band in self.policy.candidate_bands}
        self._wanted = wanted(None, self.policy)
        self._drops, self._masks_loss = "drop" in actions, "mask_loss" in actions
        self._tokens = 0
        self._expected = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("prior", "policy", "seed", "key", "offset", "generations", "store")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __repr__(self) -> str:
        more = f", generations={self.generations}" if self.generations > 1 else ""
        return f"Editor({self.prior!r}, {self.policy!r}, seed={self.seed}, key={self.key!r}, offset={self.offset!r}{more})"

    def __call__(self, batch: Any, epoch: int = 0) -> Edited:
        """Edit a batch.

        Args:
            batch: as for :meth:`Prior.score`. Beside ``input_ids`` these columns are understood: ``scores`` (else the
                store's are used, or the batch is scored here), ``attention_mask`` (0 is padding), ``labels`` (where -100, the
                token is not edited; elsewhere they are the ids, and follow them unless the policy says otherwise),
                ``special_tokens_mask`` and ``protected_mask`` (not 0: not edited), ``assistant_masks`` (not 0: the assistant's
                words, for the policy's ``protect_assistant`` and ``protect_prompt``), ``protected_ranges`` (pairs of the first
                character that is not edited and the one behind the last, ascending) with ``offset_mapping`` (the same pair for
                each token, as tokenizers give it), and the key and offset columns. Rows with ``seq_lengths`` (the tokens of
                each of their documents) are edited a document at a time: their key and offset columns, and ``scores`` that
                are lists, have a value for each document, as :func:`toedit.hf.pack` makes them.
            epoch: 0 to 2**32 - 1. Another epoch, other draws.

        Returns:
            The edited batch, with as many rows as came in, and as many tokens unless the policy drops some: then every list
            column whose rows are as long as those of ``input_ids`` loses the same values.

        Raises:
            InputError: a row or a value cannot be used; the message names it.
            ScoresError: the scores are of other ids, another prior, or do not hold what the policy needs.
        """
        edited = self.edit(batch, epoch)
        if self._masks_loss and LABELS not in edited:
            raise InputError(
                f"the policy masks loss, but the batch has no column {LABELS!r}; give it labels, or edit with "
                "toedit.torch.EditCollator, which masks those that its collate_fn makes"
            )
        self.note(edited.counts, stacklevel=2)
        return edited

    def note(self, counts: Counts, stacklevel: int) -> None:
        """Count what was edited, and warn once when a run is expected to change almost nothing."""
        if few_expected(self._tokens, self._expected) is None:
            self._tokens += counts.tokens
            self._expected += counts.expected_changes
            warn_if_few_expected(self._tokens, self._expected, stacklevel + 1)

    def edit_text(
        self,
        texts: Any,
        epoch: int = 0,
        scores: Any = None,
        check: bool = True,
        keys: Any = None,
        tokenizer: Any = None,
        input_ids: Any = None,
    ) -> EditedText:
        """Edit texts; see :func:`toedit.text.edit_text`."""
        from toedit.text import edit_text

        return edit_text(self, texts, epoch, scores, check, keys, tokenizer, input_ids)

    def statistics(self, batch: Any, epoch: int = 0) -> Statistics:
        """What editing a batch meets and does, in the first generation, and the distribution of P over its tokens; the edited
        batch is not made.

        Args:
            batch: as for :meth:`__call__`.
            epoch: 0 to 2**32 - 1. It decides the changes, nothing else.

        Raises:
            InputError, ScoresError: as where the batch is edited.
        """
        epoch = _integer("epoch", epoch, 2**32 - 1)
        columns, *_ = self._columns(self._documents(_arrow.open_batch(batch)))
        return measure(self._native.get(), self.seed, epoch, columns)

    def _documents(self, opened: _arrow.Batch) -> _arrow.Batch:
        """The same batch, of packed rows each document as a row, unless the prior reads them as one document."""
        if self.prior.cross_documents:
            return opened
        return unpack(opened, lambda ids: read_rows(self.prior, {IDS: ids}).hashes)

    def _columns(
        self, opened: _arrow.Batch, targets: bool = False, before: Edited | None = None
    ) -> tuple[dict[str, pa.Array], dict[str, _arrow.Back], Lookups | None]:
        """The columns that are read of a batch, or of what a generation before left of it, the ways back for those that are
        edited, and what the store had of the rows."""
        names = opened.names
        if IDS not in names:
            raise InputError(f"the batch has no column {IDS!r}, only {names}")
        ids, ids_back = opened.column(IDS)
        columns = {IDS: ids}
        backs = {IDS: ids_back}
        for name in _MASKS:
            if name in names:
                columns[name] = opened.column(name)[0]
        if RANGES in names:  # else offset_mapping says nothing that is needed
            columns |= {name: flat_pairs(opened.column(name)[0], name) for name in PAIR_COLUMNS if name in names}
        if LABELS in names:
            columns[LABELS], backs[LABELS] = opened.column(LABELS)
        elif before is not None and before.targets is not None:
            columns[LABELS] = before.targets.column(LABELS)
        elif targets:
            columns[LABELS] = _labels_of(ids)
        columns |= _arrow.key_columns(opened, self.key, self.offset)
        lookups = None
        if SCORES in names and before is None:
            columns[SCORES] = scores_column(opened.column(SCORES)[0])
        else:
            given = {
                name: columns[name] if name in columns else opened.column(name)[0] for name in SCORING_COLUMNS if name in names
            }
            if self.store is None or before is not None:  # what a generation makes comes once, and is not stored
                columns[SCORES] = self.prior.score_columns(given, *self._wanted)
            else:
                columns[SCORES], lookups = self.store.score_columns(self.prior, given, *self._wanted)
        return columns, backs, lookups

    def edit(self, batch: Any, epoch: int = 0, targets: bool = False) -> Edited:
        """The same without the warning about runs that change almost nothing, and without the error where loss is to be masked
        and there are no labels: the log says of which tokens, and so do the targets, which are made from the ids where the
        batch has no labels."""
        epoch = _integer("epoch", epoch, 2**32 - 1)
        edited = self._generation(batch, epoch, targets, None)
        for _ in range(1, self.generations):
            edited = self._generation(edited.batch, epoch, targets, edited)
        return edited

    def _generation(self, batch: Any, epoch: int, targets: bool, before: Edited | None) -> Edited:
        """Edit a batch once: for the first time, or as the generation before left it."""
        earlier = [] if before is None else before.generations
        opened = _arrow.open_batch(batch)
        if self._drops:
            refuse_places(opened.names)
        columns, backs, lookups = self._columns(self._documents(opened), targets, before)
        native = self._native.get()
        given = _bridge.ArrowIn(columns)
        out, log = _bridge.ArrowOut(), _bridge.ArrowOut()
        counts = _NativeCounts()
        _bridge.call(
            "Edit", native, self.seed, epoch, len(earlier), given.array, given.schema, out.array, out.schema, log.array,
            log.schema, ctypes.addressof(counts),
        )  # fmt: skip
        result = out.take()
        edited = {name: back(result.column(name)) for name, back in backs.items()}
        if self._drops:
            kept = result.column(result.num_columns - 1)
            others = [name for name in opened.names if name not in edited and name != RANGES]
            edited |= follow(opened, batch, columns[IDS], kept, others)
        return Edited(
            opened,
            opened.rebuild(edited),
            [*earlier, Counts(*_COUNTS.unpack(counts))],
            [*(before._logs if before is not None else []), PendingLog(self.prior, columns, log, len(earlier))],
            result.select([IDS, LABELS]) if targets else None,
            lookups if before is None else before._lookups,
        )


def _is_identity(policy: Policy) -> bool:
    """Whether every token that the policy draws is certain to be its own nucleus. Above 1/2 it is the most probable one."""
    bands = policy.candidate_bands
    return policy.temperature == 1 and all(b.action == "resample" and b.low >= policy.top_p and b.low > 0.5 for b in bands)


def few_expected(tokens: int, expected: float) -> bool | None:
    """Whether less than one token in a thousand is expected to change; None while too few were seen to tell."""
    return None if tokens < _EXPECTED_CHECK else expected < _EXPECTED_SHARE * tokens


def warn_if_few_expected(tokens: int, expected: float, stacklevel: int) -> None:
    """Say so when a run is expected to change less than one token in a thousand."""
    if few_expected(tokens, expected):
        warnings.warn(
            f"this policy is expected to change {expected:.1f} of the first {tokens} tokens "
            f"({100 * expected / tokens:.3f} %): most candidates draw the token that they already are. A lower threshold, "
            "a higher temperature or exclude_original=True changes more",
            ExpectedChangesWarning,
            stacklevel=stacklevel + 1,
        )


def _integer(name: str, value: Any, limit: int, least: int = 0) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} is {value!r}; it must be an integer") from None
    if not least <= number <= limit:
        raise InputError(f"{name} is {number}; it must be {least} to {limit}")
    return number


def _labels_of(ids: pa.Array) -> pa.Array:
    """The ids as labels, which can be negative. What is no list of integers is refused with the ids."""
    values = getattr(ids.type, "value_type", None)
    if values is None or not pa.types.is_unsigned_integer(values):
        return ids
    return ids.cast(pa.large_list(pa.int64()))
