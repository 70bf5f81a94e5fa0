"""Rows that hold several documents, seen as the documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toedit._arrow import IDS, SCORES, TOKEN_COLUMNS, Back, Batch, scores_column
from toedit._cut import cut_scores, from_offsets, lists
from toedit._errors import InputError
from toedit._pieces import Ints, Pieces, offsets_of

__all__ = ["unpack"]

_SEQ_LENGTHS = "seq_lengths"
_TOKENS = (*TOKEN_COLUMNS, "offset_mapping")
# Columns that say where documents begin, which a document by itself has no use for.
_BOUNDS = (_SEQ_LENGTHS, "position_ids", "document_ids")
# The struct column of which a row has one for all of it, or a list with one for each document.


def unpack(batch: Batch, hash_of: Callable[[pa.Array], pa.UInt64Array] | None = None) -> Batch:
    """A batch of packed rows, opened, as a batch of their documents; the ways back pack them again. Any other batch as it is.

    Args:
        batch: packed where it has ``seq_lengths``, the tokens of each document of a row.
        hash_of: hashes rows of ids, where scores are read.

    Raises (its ``column``):
        InputError: ``seq_lengths`` do not add up to a row's tokens, or a column has neither a value for each token nor one
            for each document.
        ScoresError: the scores of a row are not those of its ids.
    """
    if _SEQ_LENGTHS not in batch.names:
        return batch
    seq_lengths = lists(batch.column(_SEQ_LENGTHS)[0], _SEQ_LENGTHS)
    if not pa.types.is_integer(seq_lengths.type.value_type) and len(seq_lengths.flatten()):
        raise InputError(f"column {_SEQ_LENGTHS!r} holds {seq_lengths.type}; it must hold lists of integers")
    documents = seq_lengths.value_lengths().to_numpy().astype(np.int64)
    lengths = pc.fill_null(seq_lengths.flatten(), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    row = np.repeat(np.arange(len(documents)), documents)
    tokens = np.bincount(row, lengths, len(documents)).astype(np.int64)
    if len(lengths) and lengths.min() < 0:
        raise InputError(f"row {row[np.argmin(lengths)]}: {_SEQ_LENGTHS} has a length that is negative or null")

    def column(name: str) -> tuple[pa.Array, Back]:
        array, back = batch.column(name)
        if name == SCORES and pa.types.is_struct(array.type) and hash_of is not None:
            ids = of_tokens(batch.column(IDS)[0], IDS)
            start = offsets_of(lengths)[:-1] - np.repeat(offsets_of(tokens)[:-1], documents)
            return cut_scores(scores_column(array), ids, Pieces(row, start, start + lengths), hash_of), back
        if name not in _TOKENS:
            return _of_documents(lists(array, name), documents, name), back
        values = of_tokens(array, name)
        return from_offsets(values.type, offsets_of(lengths), values.flatten()), lambda a: back(
            from_offsets(a.type, offsets_of(tokens), a.flatten())
        )

    def of_tokens(array: pa.Array, name: str) -> pa.Array:
        values = lists(array, name)
        got = values.value_lengths().to_numpy()
        if (wrong := got != tokens).any():
            n = int(np.argmax(wrong))
            raise InputError(
                f"row {n}: {name} has {got[n]} values, but its {_SEQ_LENGTHS} add up to {tokens[n]}; edit before padding"
            )
        return values

    return replace(batch, names=[name for name in batch.names if name not in _BOUNDS], column=column)


def _of_documents(values: pa.Array, documents: Ints, name: str) -> pa.Array:
    """The values of a column that has lists with one for each document."""
    got = values.value_lengths().to_numpy()
    if (wrong := got != documents).any():
        n = int(np.argmax(wrong))
        raise InputError(f"row {n}: {name} has {got[n]} values for {documents[n]} documents")
    return values.flatten()
