"""Edits of texts in the ids of another tokenizer than the prior's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from toedit import _bridge
from toedit._arrow import IDS, to_lists
from toedit._errors import InputError
from toedit._tokenizer import definition, plain_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Projection", "place", "tokenise"]

_IDS_TYPE = pa.list_(pa.int32())


class Projection:
    """A tokenizer, and the ids that edited texts have in it.

    Only what edits touch is tokenised anew: a stretch of whole words around each edit, with one more word on either side, by
    which it is seen that the stretch fits between its neighbours. All other ids stay. Where that cannot be seen, the whole
    text is tokenised. It is picklable.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``, a fast transformers tokenizer, or the path of a tokenizer.json.

    Raises:
        InputError: it is none of these, or the bytes of its tokens are not known.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._definition = definition(tokenizer)
        self._open()

    def _open(self) -> None:
        from tokenizers import Tokenizer

        text = self._definition
        self._tokenizer = plain_tokenizer(Tokenizer.from_str(text))
        self._tokens = _bridge.PerProcess(self, lambda: int(_bridge.call("OpenTokens", text)))
        self._tokens.get()  # an error is the caller's who made it
        first = self._tokenizer.encode("a", add_special_tokens=False).tokens[:1]
        # Such a tokenizer puts a space in front of what it is given, also where that is cut out of a text.
        self._adds_space = bool(first) and first[0][:1] in ("\u2581", "\u0120")

    def __getstate__(self) -> str:
        return self._definition

    def __setstate__(self, state: str) -> None:
        self._definition = state
        self._open()

    def __call__(self, texts: pa.Array, edited: pa.Array, edits: pa.RecordBatch, input_ids: Any = None) -> pa.Array:
        """The ids of edited texts.

        Args:
            texts: the original texts (string or large_string).
            edited: the edited texts, in the same type.
            edits: ``row``, ``start``, ``end`` (bytes of the original text) and ``length`` (bytes that stand there now), int64,
                ascending.
            input_ids: the ids of *texts*, rows without special tokens; by default they are made here.

        Returns:
            A list<int32> array, a row a text.

        Raises:
            InputError: these do not fit together.
        """
        ids = tokenise(self._tokenizer, texts.to_pylist()) if input_ids is None else _ids(input_ids, len(texts))
        if edits.num_rows == 0:
            return ids
        # Rows that no edit touches have no part in it.
        rows, row = np.unique(edits.column("row").to_numpy(), return_inverse=True)
        taken = pa.array(rows)
        _, found = place(
            "Stretches",
            self._tokens.get(),
            self._tokenizer,
            {"text": texts.take(taken), "edited": edited.take(taken), IDS: ids.take(taken)},
            {"row": pa.array(row.astype(np.int64)), **{name: edits.column(name) for name in ("start", "end", "length")}},
        )
        out = to_lists(ids)
        whole = self._fit(found, [out[i] for i in rows], out, rows)
        again = tokenise(self._tokenizer, edited.take(pa.array(whole, pa.int64())).to_pylist()).to_pylist()
        for i, tokens in zip(whole, again, strict=True):
            out[i] = tokens
        return pa.array(out, _IDS_TYPE)

    def _fit(
        self, stretches: pa.RecordBatch, originals: list[list[int]], out: list[list[int]], rows: np.ndarray[Any, Any]
    ) -> list[int]:
        """Put the new ids of stretches into rows; returns the rows where one does not fit."""
        row, first, end, left, right = (stretches.column(name).to_pylist() for name in ("row", "first", "end", "left", "right"))
        old, new = (self._tokenise(stretches.column(name).to_pylist(), first) for name in ("old", "new"))
        pieces: list[list[int]] = [[] for _ in originals]
        done = [0] * len(originals)
        misfits = set()
        for i, start, stop, before, after, was, now in zip(row, first, end, left, right, old, new, strict=True):
            tokens = originals[i]
            behind = len(now) - after
            fits = was == tokens[start:stop] and before <= behind
            fits = fits and now[:before] == was[:before] and now[behind:] == was[len(was) - after :]
            if not fits:
                misfits.add(i)
            pieces[i] += tokens[done[i] : start] + now
            done[i] = stop
        for i, tokens in enumerate(originals):
            out[rows[i]] = pieces[i] + tokens[done[i] :]
        return [int(rows[i]) for i in sorted(misfits)]

    def _tokenise(self, texts: list[str], first: list[int]) -> list[list[int]]:
        """The ids of stretches that begin at the given tokens of their rows."""
        if self._adds_space:
            texts = [text.removeprefix(" ") if at > 0 else text for text, at in zip(texts, first, strict=True)]
        return list(tokenise(self._tokenizer, texts).to_pylist())


def _ids(rows: Any, texts: int) -> pa.Array:
    if isinstance(rows, pa.ChunkedArray):
        rows = rows.combine_chunks()
    try:
        ids = rows.cast(_IDS_TYPE) if isinstance(rows, pa.Array) else pa.array([list(r) for r in rows], _IDS_TYPE)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, TypeError) as error:
        raise InputError(f"input_ids must be rows of ids: {error}") from None
    if len(ids) != texts:
        raise InputError(f"input_ids has {len(ids)} rows, but there are {texts} texts")
    return ids


def tokenise(tokenizer: Tokenizer, texts: list[str]) -> pa.Array:
    """The ids of texts, without special tokens, as a list<int32> array."""
    return pa.array([e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)], _IDS_TYPE)


def place(
    function: str, tokens: int, tokenizer: Tokenizer, columns: dict[str, pa.Array], edits: dict[str, pa.Array]
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Call ``EditText`` or ``Stretches`` of the native library. Rows whose tokens do not spell their text (the tokenizer
    normalises) are tokenised again for the places of their tokens."""

    def call(columns: dict[str, pa.Array]) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        batch, given = _bridge.ArrowIn(columns), _bridge.ArrowIn(edits)
        out, other = _bridge.ArrowOut(), _bridge.ArrowOut()
        _bridge.call(
            function, tokens, batch.array, batch.schema, given.array, given.schema, out.array, out.schema, other.array,
            other.schema,
        )  # fmt: skip
        return out.take(), other.take()

    result = call(columns)
    lost = np.flatnonzero(result[0].column("aligned").to_numpy() == 0)
    if len(lost) == 0:
        return result
    offsets: list[list[int]] = [[] for _ in range(len(columns[IDS]))]
    taken = pa.array(lost)
    texts, ids = columns["text"].take(taken).to_pylist(), columns[IDS].take(taken).to_pylist()
    for i, ids_of_row, encoding in zip(lost, ids, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
        if encoding.ids == ids_of_row:
            offsets[i] = [at for pair in encoding.offsets for at in pair]
    return call(columns | {"offsets": pa.array(offsets, pa.list_(pa.int32()))})
