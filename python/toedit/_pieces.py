"""How documents are cut into pieces, and which pieces go into a row together."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["WAYS", "Ints", "Pieces", "offsets_of"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pieces:
    """Pieces of rows, in any order: tokens ``start`` to ``end`` of row ``row``, each int64 [pieces]."""

    row: Ints
    start: Ints
    end: Ints

    def __getitem__(self, order: Any) -> Pieces:
        return Pieces(self.row[order], self.start[order], self.end[order])

    @property
    def lengths(self) -> Ints:
        return self.end - self.start


def offsets_of(lengths: Any) -> Ints:
    """Where rows of these lengths begin and end, one behind the other."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def every(lengths: Ints, most: int) -> tuple[Pieces, None]:
    """All of each document, at most so many tokens a piece."""
    pieces = np.maximum(-(-lengths // most), 1)
    row = np.repeat(np.arange(len(lengths)), pieces)
    start = (np.arange(len(row)) - np.repeat(offsets_of(pieces)[:-1], pieces)) * most
    return Pieces(row, start, np.minimum(start + most, lengths[row])), None


def beginning(lengths: Ints, most: int) -> tuple[Pieces, None]:
    return Pieces(np.arange(len(lengths)), lengths * 0, np.minimum(lengths, most)), None


def end(lengths: Ints, most: int) -> tuple[Pieces, None]:
    return Pieces(np.arange(len(lengths)), np.maximum(lengths - most, 0), lengths), None


def best_fit(pieces: Pieces, most: int) -> tuple[Pieces, Ints]:
    """Pieces in rows: the longest first, each where it leaves the least room; of equal ones, where there has been just that
    room for longest. (So has TRL, whose rows these are, token for token.)"""
    pieces = pieces[pieces.lengths > 0]
    members: list[list[int]] = []
    room: list[tuple[int, int, int]] = []  # what is left of each row, since which piece, and its number, ascending
    for n, piece in enumerate(np.argsort(-pieces.lengths, kind="stable").tolist()):
        size = int(pieces.lengths[piece])
        at = bisect.bisect_left(room, (size, 0, 0))
        left, _, row = room.pop(at) if at < len(room) else (most, n, len(members))
        if row == len(members):
            members.append([])
        members[row].append(piece)
        bisect.insort(room, (left - size, n, row))
    order = np.array([n for row in members for n in row], np.int64)
    return pieces[order], offsets_of([len(row) for row in members])


def wrapped(lengths: Ints, most: int) -> tuple[Pieces, Ints]:
    """All documents one behind the other, cut where a row is full."""
    documents = offsets_of(lengths)
    cuts = np.unique(np.concatenate([documents, np.arange(0, documents[-1], most)]))
    row = np.searchsorted(documents, cuts[:-1], side="right") - 1
    pieces = Pieces(row, cuts[:-1] - documents[row], cuts[1:] - documents[row])
    return pieces, np.searchsorted(cuts, np.append(np.arange(0, documents[-1], most), documents[-1]))


# The pieces of documents of some lengths and, where several make a row, where the rows begin and end in them.
WAYS: dict[str, Callable[[Ints, int], tuple[Pieces, Ints | None]]] = {
    "chunk": every,
    "truncate_right": beginning,
    "truncate_left": end,
    "bfd": lambda lengths, most: best_fit(beginning(lengths, most)[0], most),
    "bfd_split": lambda lengths, most: best_fit(every(lengths, most)[0], most),
    "wrapped": wrapped,
}
