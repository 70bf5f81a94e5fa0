"""Edited crops of a token stream as a dataset of PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from toedit._arrow import IDS, LABELS
from toedit._errors import InputError, MissingDependencyError
from toedit._rows import TARGETS
from toedit.editor import _integer
from toedit.tokens import EditedStream

try:
    import torch
    from torch.utils.data import Dataset
except ImportError as error:  # pragma: no cover - depends on the environment
    raise MissingDependencyError("a dataset of crops needs PyTorch: pip install 'toedit[torch]'") from error

from toedit._editing import Editing

__all__ = ["CropDataset"]


class CropDataset(Editing, Dataset[Any]):
    """Made by :meth:`toedit.tokens.EditedStream.dataset`."""

    def __init__(
        self,
        stream: EditedStream,
        length: int,
        stride: int | None,
        starts: Sequence[int] | npt.NDArray[Any] | None,
        targets: str,
    ) -> None:
        # Crops are whole, or their scores are not those of the stream: nothing that training should go on with.
        super().__init__(stream.editor, None, "aligned", "raise", None)
        if targets not in TARGETS:
            raise InputError(f"targets is {targets!r}; it must be one of {', '.join(map(repr, TARGETS))}")
        if stride is not None and starts is not None:
            raise InputError("stride and starts exclude each other: rows begin at equal distances, or where starts says")
        self.stream = stream
        self._shifted = targets == "shifted"
        self._length = _integer("length", length, len(stream) - self._shifted, least=1) + self._shifted
        stride = _integer("stride", length if stride is None else stride, 2**63 - 1, least=1)
        last = len(stream) - self._length
        # A range takes no memory, and workers need none of it.
        self._starts = range(0, last + 1, stride) if starts is None else stream._starts(starts, self._length)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        crops = self.stream.crops([self._starts[i] for i in indices], self._length)
        if not self._shared.epochs_move:
            self._shared.look_for_first_row(crops[IDS])
        edited = self._edit(crops, self.epoch).batch
        ids = torch.from_numpy(edited[IDS])
        labels = torch.from_numpy(edited[LABELS]) if LABELS in edited else None
        if self._shifted:
            return list(zip(ids[:, :-1], (ids if labels is None else labels)[:, 1:], strict=True))
        if labels is None:
            return [{IDS: row} for row in ids]
        return [{IDS: row, LABELS: row_labels} for row, row_labels in zip(ids, labels, strict=True)]
