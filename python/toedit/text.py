"""Text in, text out: edits are made in a text's tokens, and bytes outside of the edited tokens stay as they are."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from toedit import _arrow
from toedit._arrow import IDS, to_lists
from toedit._errors import InputError
from toedit._tokenizer import plain_tokenizer
from toedit.projection import Projection, place, tokenise

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from toedit.editor import Counts, Edited, Editor
    from toedit.prior import Prior

__all__ = ["EditedText", "edit_text"]

DROPPED = -1


@dataclass(frozen=True)
class EditedText:
    """Edited texts.

    Attributes:
        text: the texts, in the container that came in (a list for other sequences than Arrow's).
        edited: the edit in tokens of the prior: an Arrow record batch with ``input_ids`` (list<int32>). What was withheld is in
            neither its ids, its log nor its changes.
        withheld: edits that were drawn and not made, because the text would no longer be UTF-8 (the token is part of a
            character, as of an emoji, that the new token does not complete), or because the tokenizer does not tell which bytes
            are the token's.
        passed_through: rows with such edits whose tokens were not found in the text at all, so that the whole row stays.
        retokenised: the share of all texts whose edited text the prior's tokenizer splits into other ids than the edited ones;
            None if that was not checked.
        input_ids: with *tokenizer*, the ids of the edited texts in that tokenizer: a list of lists, or an Arrow list<int32>
            array for Arrow texts. None without.
    """

    text: Any
    edited: Edited
    withheld: int
    passed_through: int
    retokenised: float | None
    input_ids: Any
    places: InitVar[pa.RecordBatch]

    def __post_init__(self, places: pa.RecordBatch) -> None:
        object.__setattr__(self, "_places", places)

    @functools.cached_property
    def log(self) -> pa.RecordBatch:
        """The log of the edit, and for each edit the bytes [``start``, ``end``) of the original text (UTF-8, int64) that it
        replaced by ``length`` bytes; null where the text stays, as with tokens that are masked only."""
        log, places = self.edited.log, self.__dict__["_places"]
        return pa.RecordBatch.from_arrays([*log.columns, *places.columns], names=[*log.schema.names, *places.schema.names])

    @property
    def counts(self) -> Counts:
        """What was met and done, in tokens of the prior."""
        return self.edited.counts


def edit_text(
    editor: Editor,
    texts: Any,
    epoch: int = 0,
    scores: Any = None,
    check: bool = True,
    keys: Any = None,
    tokenizer: Any = None,
    input_ids: Any = None,
) -> EditedText:
    """Edit texts in the tokens of the editor's prior.

    Nothing is decoded: the bytes of an edited token are replaced by those of the new one, and all others stay. Tokens are
    found in the text by their bytes or, where the tokenizer normalises (lower case, NFKC, single spaces), by the places that
    it gives.

    Args:
        editor: the editor.
        texts: a sequence of str, or an Arrow array of strings.
        epoch: as for :meth:`Editor.__call__`.
        scores: the scores of the texts' tokens (of the prior's tokenizer, without special tokens), one struct a text, as
            :meth:`Prior.score` or ``toedit score --text-column`` makes them; by default they are made here.
        check: whether to tokenise the edited texts, for ``retokenised``.
        keys: the texts' keys, where the editor has a key column: strings or integers, one a text.
        tokenizer: another tokenizer whose ids are wanted: a :class:`toedit.projection.Projection`, or what that is made of.
            Make one yourself to use it for many batches.
        input_ids: the ids of *texts* in that tokenizer, without special tokens, where you have them: rows of ids. Ids that no
            edit touches are kept exactly.

    Raises:
        InputError: a text is no str or is null, or an argument does not fit.
        PriorError: the bytes of the prior's tokens are not known (its tokenizer is none of those that the README lists).
        ScoresError: the scores are of other ids, another prior, or do not hold what the policy needs.
    """
    column, back = _open(texts)
    if input_ids is not None and tokenizer is None:
        raise InputError("input_ids are another tokenizer's, and belong to tokenizer=...")
    projection = tokenizer if tokenizer is None or isinstance(tokenizer, Projection) else Projection(tokenizer)
    prior_tokenizer = _prior_tokenizer(editor.prior)
    ids = tokenise(prior_tokenizer, column.to_pylist())
    columns = {IDS: ids}
    if scores is not None:
        columns["scores"] = _arrow.to_arrow(scores, "scores")[0]
    if editor.key is not None and keys is not None:
        columns[editor.key] = pa.array(keys) if not isinstance(keys, (pa.Array, pa.ChunkedArray)) else keys
    elif (editor.key is None) != (keys is None):
        raise InputError(f"the editor's key is {editor.key!r}, and keys is {keys!r}; keys go with an editor that has key=...")
    if editor.offset is not None:
        raise InputError(f"the editor has offset={editor.offset!r}; a text is a whole document, edit it without")
    if editor.generations > 1:
        raise InputError(
            f"the editor makes {editor.generations} generations, and a text is edited once; edit the result again with "
            "another epoch"
        )
    edited = editor.edit(pa.RecordBatch.from_arrays([_one(c) for c in columns.values()], names=list(columns)), epoch)
    editor.note(edited.counts, stacklevel=3)

    log = edited._logs[0].small()
    writes = _numpy(log, "old") != _numpy(log, "new")  # the others only mask the loss
    written = log.filter(pa.array(writes))
    out, places = place(
        "EditText",
        editor.prior.handle,
        prior_tokenizer,
        {"text": column, IDS: ids},
        {name: written.column(name) for name in ("row", "position", "new")},
    )
    made = np.ones(log.num_rows, bool)
    made[writes] = _numpy(places, "made") == 1
    edited = _withhold(edited, ids, log, made)
    result = out.column("text")
    return EditedText(
        text=back(result),
        edited=edited,
        withheld=int((~made).sum()),
        passed_through=int((_numpy(out, "aligned") == 0).sum()),
        retokenised=_retokenised(prior_tokenizer, result, edited) if check else None,
        input_ids=None if projection is None else _project(projection, column, result, places, written, input_ids, texts),
        places=_places(writes, places).filter(pa.array(made)),
    )


def _open(texts: Any) -> tuple[pa.Array, Callable[[pa.Array], Any]]:
    """The texts as an Arrow array of strings, and the way back."""
    if isinstance(texts, (pa.Array, pa.ChunkedArray)):
        column, back = _one(texts), lambda a: a
        if isinstance(texts, pa.ChunkedArray):
            lengths = [len(c) for c in texts.chunks]
            back = functools.partial(_arrow.rechunk, lengths=lengths)
        if pa.types.is_null(column.type):
            column = column.cast(pa.string())
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise InputError(f"texts is an Arrow array of {column.type}; it must be of string or large_string")
    elif isinstance(texts, Sequence) and not isinstance(texts, (str, bytes)):
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"row {i}: the text is a {type(text).__name__}; it must be a str")
        _arrow.pyarrow_imports()
        try:
            column, back = pa.array(texts, pa.large_string()), lambda a: a.to_pylist()
        except UnicodeEncodeError as error:
            raise InputError(f"a text cannot be written as UTF-8: {error}") from None
    else:
        raise InputError(f"texts is a {type(texts).__name__}; it must be a sequence of str or an Arrow array of strings")
    if column.null_count:
        raise InputError(f"row {column.is_null().to_pylist().index(True)}: the text is null; drop the row or make it empty")
    return column, back


def _one(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


@functools.lru_cache(maxsize=4)
def _read_tokenizer(path: str, changed: int) -> Tokenizer:
    from tokenizers import Tokenizer

    return plain_tokenizer(Tokenizer.from_file(path))


def _prior_tokenizer(prior: Prior) -> Tokenizer:
    # Reading one takes up to half a second, and a prior, which is pickled, is no place to keep it between calls.
    return _read_tokenizer(str(prior.tokenizer_file), prior.tokenizer_file.stat().st_mtime_ns)


def _numpy(batch: pa.RecordBatch, name: str) -> np.ndarray[Any, Any]:
    values: np.ndarray[Any, Any] = batch.column(name).to_numpy()
    return values


def _withhold(edited: Edited, ids: pa.Array, log: pa.RecordBatch, made: np.ndarray[Any, Any]) -> Edited:
    """The edit without what was not made in the text."""
    if made.all():
        return edited
    kept = log.filter(pa.array(made))
    row, position, new = (_numpy(kept, name) for name in ("row", "position", "new"))
    rows = to_lists(edited[IDS])
    for i in np.unique(_numpy(log, "row")[~made]):
        tokens = ids[i].as_py()
        of_row = row == i
        for at, token in zip(position[of_row], new[of_row], strict=True):
            tokens[at] = int(token)
        rows[i] = [token for token in tokens if token != DROPPED]
    result = copy.copy(edited)
    index = edited.batch.schema.get_field_index(IDS)
    result.batch = edited.batch.set_column(index, IDS, pa.array(rows, ids.type))
    dropped = int(((_numpy(log, "new") == DROPPED) & ~made).sum())
    result.counts = replace(
        edited.counts, changes=edited.changes - int((~made).sum()) + dropped, dropped=edited.counts.dropped - dropped
    )
    result.generations, result._logs, result._log = [result.counts], [edited._logs[0].without(pa.array(~made))], None
    return result


def _places(writes: np.ndarray[Any, Any], places: pa.RecordBatch) -> pa.RecordBatch:
    """The bytes that each edit replaced, null where it wrote nothing."""
    columns = {}
    for name in ("start", "end", "length"):
        values = np.zeros(len(writes), np.int64)
        values[writes] = _numpy(places, name)
        columns[name] = pa.array(values, mask=~writes)
    return pa.RecordBatch.from_pydict(columns)


def _retokenised(tokenizer: Tokenizer, texts: pa.Array, edited: Edited) -> float:
    rows = np.unique(_numpy(edited._logs[0].small(), "row"))
    if len(rows) == 0:
        return 0.0
    again = tokenise(tokenizer, texts.take(pa.array(rows)).to_pylist())
    ids = edited[IDS].take(pa.array(rows))
    others: int = sum(a != b for a, b in zip(again.to_pylist(), ids.to_pylist(), strict=True))
    return others / len(texts)


def _project(
    projection: Projection,
    texts: pa.Array,
    edited: pa.Array,
    places: pa.RecordBatch,
    written: pa.RecordBatch,
    input_ids: Any,
    container: Any,
) -> Any:
    made = pa.array(_numpy(places, "made") == 1)
    edits = {"row": written.column("row"), **{name: places.column(name) for name in ("start", "end", "length")}}
    ids = projection(texts, edited, pa.RecordBatch.from_pydict(edits).filter(made), input_ids)
    return ids if isinstance(container, (pa.Array, pa.ChunkedArray)) else to_lists(ids)
