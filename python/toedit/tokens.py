"""Token streams: one long file of token ids, read in crops, as nanoGPT and Megatron-LM have them.

A stream is scored once, document by document. Its scores are files that are aligned with the tokens, so that a crop finds its
own wherever it begins. The edits of a token follow from its place in the stream, whatever crop it is read in.

    stream = TokenStream("train.bin", numpy.uint16, split_after=50256)
    score(stream, "train.scores", prior=prior, keep=policy)
    edited = EditedStream(stream, editor, "train.scores")
    ids = edited.edit(starts, 1025, epoch)["input_ids"]
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from toedit import _runtime
from toedit._arrow import IDS, LABELS, SCORES, SCORES_TYPE
from toedit._errors import InputError, ScoresError
from toedit._pieces import Ints, offsets_of
from toedit._scores import hash_rows
from toedit._store_files import top_k
from toedit._token_scores import BLOCK, Done, TokenScores, Unfinished, unfinished
from toedit._version import __version__
from toedit.editor import Edited, Editor, _integer
from toedit.policy import Policy
from toedit.prior import Prior, wanted

if TYPE_CHECKING:
    from toedit._token_dataset import CropDataset

__all__ = ["EditedStream", "TokenStream", "score"]

# Tokens that are scored at a time, and looked through or hashed at a time.
_TOKENS, _READ = 1 << 18, 1 << 20
# Megatron-LM's index: magic, version, dtype, number of sequences, number of document boundaries.
_INDEX = struct.Struct("<9sQBQQ")
_MAGIC, _VERSION = b"MMIDIDX\x00\x00", 1
_DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
# What rows of ids can be of; other integers become int32.
_ROW_DTYPES = (np.uint16, np.uint32, np.int32, np.int64)
# What a policy can have that depends on the rows that it is given, and why.
_OF_ROWS = {
    "max_edit_rate": "a share of a row; edit_probability is one of the candidates wherever they are",
    "protect_subwords": "about the tokens around a token, which a crop may not have",
    "protect_code": "about the text around a token, which a crop may not have",
    "protected_words": "about the text around a token, which a crop may not have",
    "protect_first": "about the beginnings of documents, which rows of a stream are not",
    "protect_assistant": "about a column that a stream does not have",
    "protect_prompt": "about a column that a stream does not have",
}

_AT = re.compile(r"row (\d+): input_ids\[(\d+)\]")

Array = npt.NDArray[Any]


class TokenStream:
    """A file of token ids, mapped into memory.

    Where a Megatron-LM index (``.idx``) lies beside the file, that says what it holds and where its documents begin. Without
    one it is ids and nothing else, as nanoGPT writes them.

    Args:
        path: the file; with an index also without the ending ``.bin``, as Megatron-LM's ``--data-path`` has it.
        dtype: an integer type of NumPy; needed where there is no index.
        header: bytes in front of the first id.
        split_after: an id after which another document begins (an end-of-sequence token), where there is no index. Without it
            the file is one document.

    Attributes:
        path: the file of ids.
        tokens: them, [tokens]; not to be written to.

    Raises:
        InputError: the file or its index is missing, empty, cut off, or of another kind.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        dtype: npt.DTypeLike | None = None,
        *,
        header: int = 0,
        split_after: int | None = None,
    ) -> None:
        self.path = _file_of(Path(os.path.abspath(path)))  # a worker process may have another working directory
        self._dtype = None if dtype is None else _integers(dtype)
        self._header = _integer("header", header, 2**31)
        self.split_after = split_after
        self._open()

    def _open(self) -> None:
        index = Path(str(self.path).removesuffix(".bin") + ".idx")
        try:
            size = self.path.stat().st_size - self._header
            self._index = _Index(index) if index.exists() else None
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error}") from None
        dtype = self._dtype
        if self._index is not None:
            dtype = self._index.dtype
            if self._dtype not in (None, dtype) or self._header or self.split_after is not None:
                raise InputError(
                    f"{index} says that the ids are {dtype}, and where documents begin; leave out dtype, header and split_after"
                )
            if size != self._index.size:
                raise InputError(f"{self.path} has {size} bytes, but {index} is of a file of {self._index.size}")
        if dtype is None:
            raise InputError(f"{self.path} has no {index.name} beside it, so its dtype must be given, such as numpy.uint16")
        if size <= 0 or size % dtype.itemsize:
            raise InputError(
                f"{self.path} has {size} bytes of ids, which is no number of {dtype}: it was cut off, or has another dtype or "
                "header"
            )
        if self.split_after is not None:
            _integer("split_after", self.split_after, int(np.iinfo(dtype).max))
        try:
            self.tokens: Array = np.asarray(np.memmap(self.path, dtype, "r", self._header))
        except OSError as error:
            raise InputError(f"{self.path} cannot be mapped into memory: {error}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("path", "_dtype", "_header", "split_after")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"TokenStream({str(self.path)!r}, {self.tokens.dtype}, {len(self)} tokens)"

    def documents(self, start: int = 0) -> Iterator[tuple[int, int]]:
        """Where the documents from *start* on, which one begins at, begin and end. None of them is empty."""
        ends = self._ends(start) if self._index is None else self._index.ends(start)
        for end in ends:
            if end > start:
                yield start, end
                start = end
        if start < len(self):
            yield start, len(self)

    def _ends(self, start: int) -> Iterator[int]:
        if self.split_after is None:
            return
        for at in range(start, len(self), _READ):
            yield from (np.flatnonzero(self.tokens[at : at + _READ] == self.split_after) + at + 1).tolist()


def _file_of(path: Path) -> Path:
    """The file of ids that is meant."""
    if path.suffix == ".idx":
        return path.with_suffix(".bin")
    return path if path.exists() or path.suffix == ".bin" else path.with_name(path.name + ".bin")


def _integers(dtype: npt.DTypeLike) -> np.dtype[Any]:
    try:
        found = np.dtype(dtype)
    except TypeError:
        raise InputError(f"dtype is {dtype!r}; it must be an integer type of NumPy's, such as numpy.uint16") from None
    if found.kind not in "iu" or not found.isnative:
        raise InputError(f"dtype is {found}; token ids are integers in the order of this machine's bytes, such as numpy.uint16")
    return found


class _Index:
    """The index of a Megatron-LM file.

    Attributes:
        dtype: of the ids.
        size: of the file that it is of, in bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            head = file.read(_INDEX.size)
        if len(head) < _INDEX.size or not head.startswith(_MAGIC):
            raise InputError(f"{path} is no index of Megatron-LM's, which the name says; move it elsewhere")
        _, version, code, sequences, boundaries = _INDEX.unpack(head)
        if version != _VERSION or code not in _DTYPES:
            raise InputError(f"{path} has version {version} and dtype {code}; known are version {_VERSION} and integers")
        size, need = path.stat().st_size, _INDEX.size + 12 * sequences + 8 * boundaries
        if size not in (need, need + sequences):  # multimodal files have a byte more for each sequence
            raise InputError(f"{path} has {size} bytes, but {need} are needed for {sequences} sequences: it was cut off")
        self.dtype = np.dtype(_DTYPES[code])
        whole = np.asarray(np.memmap(path, np.uint8, "r"))
        lengths: Array = np.frombuffer(whole, np.int32, sequences, _INDEX.size)
        self._pointers: Array = np.frombuffer(whole, np.int64, sequences, _INDEX.size + 4 * sequences)
        self._documents: Array = np.frombuffer(whole, np.int64, boundaries, _INDEX.size + 12 * sequences)
        self.size = int(self._pointers[-1]) + int(lengths[-1]) * self.dtype.itemsize if sequences else 0

    def ends(self, start: int) -> Iterator[int]:
        """Where documents behind *start* begin."""
        for at in range(0, len(self._documents), _READ):
            sequences = self._documents[at : at + _READ]
            sequences = sequences[(sequences > 0) & (sequences < len(self._pointers))]
            found = self._pointers[sequences] // self.dtype.itemsize
            if (np.diff(found) < 0).any():
                raise InputError(f"{self.path}: documents are not in the order of the file")
            yield from found[found > start].tolist()


# ---------------------------------------------------------------------------------------------------------------------
# scoring


def score(
    stream: TokenStream,
    out: str | os.PathLike[str],
    *,
    prior: Prior,
    k: int | None = None,
    keep: Policy | Iterable[tuple[float, float]] | None = None,
    overwrite: bool = False,
    progress: Callable[[int, float], None] | None = None,
) -> Done:
    """Score a stream, document by document, into a folder of files that are aligned with it.

    What is done is kept in ``OUT.partial``, and a run that was interrupted goes on from there. *out* itself appears whole or
    not at all. Memory is bounded, but for documents longer than the context that a prior reads in other than rolling windows:
    these are scored whole.

    Args:
        stream: what to score. With ``Prior(…, cross_documents=True)`` it is read as one document.
        out: the folder to make.
        prior: the prior.
        k, keep: as for :meth:`Prior.score`.
        overwrite: replace *out*.
        progress: called with the tokens scored so far and the share of the stream that is done.

    Returns:
        What was scored, with earlier runs: ``tokens``, ``documents``, ``unscored`` tokens and ``positions`` with top-k.

    Raises:
        InputError: an id is outside the prior's vocabulary (the message says where), *out* cannot be written, or an earlier
            run was of another stream or had other settings.
    """
    k, ranges = wanted(k, keep)
    if not 1 <= k <= (limit := prior.describe()["k"]):
        raise InputError(f"k is {k}; this prior stores 1 to {limit}")
    fingerprint = prior.fingerprint
    settings = {"prior": fingerprint, "k": k, "keep": ranges, "tokens": len(stream), "split_after": stream.split_after}
    with unfinished(Path(os.path.abspath(out)), overwrite, settings, k) as writer:
        if _changed(stream, prior, writer.hashes(), 0, writer.done.tokens // BLOCK) is not None:
            raise InputError(
                f"{stream.path} has changed since its first {writer.done.tokens} tokens were scored; remove {out}.partial"
            )
        for batch in _batches(_pieces(stream, prior, writer.begin, writer.done.tokens)):
            done = _score(stream, prior, k, ranges, batch, writer, progress)
            whole = writer.done.tokens // BLOCK, done.tokens // BLOCK
            writer.write("ids_hash", _hashes_of_blocks(stream, prior, *whole))
            writer.commit(done, batch[-1].next)
        writer.write("ids_hash", _hashes_of_blocks(stream, prior, len(stream) // BLOCK, _blocks(stream)))
        manifest = {"toedit": __version__, "prior": prior.describe(), "k": k, "keep": ranges, "split_after": stream.split_after}
        writer.finish({**manifest, **_runtime.where()})
        return writer.done


@dataclass(frozen=True)
class _Piece:
    """Tokens that are scored together, ``begin`` to ``end``; those in front of ``first`` are context. ``next`` is where the
    piece behind it begins: at its end, or before that in the same document."""

    begin: int
    first: int
    end: int
    next: int


def _pieces(stream: TokenStream, prior: Prior, begin: int, first: int) -> Iterator[_Piece]:
    """The stream in pieces, of which the first begins at *begin* and is scored from *first* on."""
    about = prior.describe()
    documents = [(begin, len(stream))] if about["cross_documents"] else stream.documents(begin)
    for start, end in documents if first < len(stream) else ():
        yield from _cut(stream.tokens, about, start, max(start, first), end)


def _cut(tokens: Array, about: dict[str, Any], begin: int, first: int, end: int) -> Iterator[_Piece]:
    """A document in pieces that begin where one of its windows does, so that each token's window is that of the document.

    A window has the BOS id in front where the rule is "always"; a piece has not if it begins with that id, so none does."""
    always, bos = about["bos"]["rule"] == "always", about["bos"].get("id")
    context, overlap = about["context_length"] - always, about["min_context"]
    while end - begin > _TOKENS and about["windows"] == "rolling":
        step = context + 1 - overlap
        ends = begin + context + 1 + (always and tokens[begin] == bos)  # of the first window
        last = ends + (_TOKENS - (ends - begin)) // step * step
        cut = next((at for at in range(last, ends - 1, -step) if not always or tokens[at - overlap] != bos), None)
        if cut is None:
            break
        yield _Piece(begin, first, cut, cut - overlap)
        begin, first = cut - overlap, cut
    yield _Piece(begin, first, end, end)


def _batches(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces that are scored at a time."""
    batch: list[_Piece] = []
    tokens = 0
    for piece in pieces:
        if batch and tokens + piece.end - piece.begin > _TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(piece)
        tokens += piece.end - piece.begin
    if batch:
        yield batch


def _score(
    stream: TokenStream,
    prior: Prior,
    k: int,
    ranges: list[tuple[float, float]],
    batch: list[_Piece],
    writer: Unfinished,
    progress: Callable[[int, float], None] | None,
) -> Done:
    """Score pieces and write what they got; returns what is done with them."""
    before, total = writer.done, len(stream)

    def report(done: int, _: int) -> None:
        if progress is not None:
            progress(before.tokens + done, (before.tokens + done) / total)

    rows = _rows([stream.tokens[piece.begin : piece.end] for piece in batch])
    try:
        scores = prior.score({IDS: rows}, k=k, keep=ranges, progress=report)
    except InputError as error:
        found = _AT.match(str(error))
        if found is None:
            raise
        at = batch[int(found[1])].begin + int(found[2])
        raise InputError(f"{stream.path}: token {at}{str(error)[found.end() :]}") from None
    begin, first = (np.array([getattr(piece, name) for piece in batch]) for name in ("begin", "first"))
    logp, positions = scores.field("logp"), scores.field("topk_pos")
    tokens = np.repeat(begin - logp.offsets.to_numpy()[:-1], logp.value_lengths()) + np.arange(len(logp.values))
    values = logp.values.fill_null(np.nan).to_numpy()[tokens >= np.repeat(first, logp.value_lengths())]
    at = positions.values.to_numpy() + np.repeat(begin, positions.value_lengths())
    kept = at >= np.repeat(first, positions.value_lengths())
    writer.write("logp", values)
    writer.write("topk_pos", at[kept])
    for name in ("topk_ids", "topk_logp"):
        writer.write(name, scores.field(name).values.to_numpy().reshape(-1, k)[kept])
    return Done(
        batch[-1].end,
        before.documents + sum(piece.next == piece.end for piece in batch),
        before.unscored + int(np.isnan(values).sum()),
        before.positions + int(kept.sum()),
    )


# ---------------------------------------------------------------------------------------------------------------------
# hashes


def _rows(parts: Sequence[Array]) -> pa.ListArray:
    """Rows of ids, as one column."""
    values = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if values.dtype not in _ROW_DTYPES:
        values = values.astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets_of([len(part) for part in parts]).astype(np.int32)), pa.array(values))


def _blocks(stream: TokenStream) -> int:
    return -(-len(stream) // BLOCK)


def _hashes_of_blocks(stream: TokenStream, prior: Prior, start: int, stop: int) -> Array:
    """The hashes of blocks *start* to *stop*."""
    parts = [stream.tokens[at * BLOCK : (at + 1) * BLOCK] for at in range(start, stop)]
    return hash_rows(prior, {IDS: _rows(parts)})[0] if parts else np.empty(0, np.uint64)


def _changed(stream: TokenStream, prior: Prior, hashes: Array, start: int, stop: int, step: int = _READ // BLOCK) -> int | None:
    """The first of some blocks whose hash is not what it was; None if there is none."""
    for at in range(start, stop, step):
        end = min(at + step, stop)
        try:
            differs = _hashes_of_blocks(stream, prior, at, end) != hashes[at:end]
        except InputError:  # ids that the prior does not have, and so did not score
            return at if end - at == 1 else _changed(stream, prior, hashes, at, end, 1)
        if differs.any():
            return at + int(np.argmax(differs))
    return None


# ---------------------------------------------------------------------------------------------------------------------
# editing


class EditedStream:
    """A stream whose crops are edited.

    A crop is edited as a row of one document, which is the stream: its key is the stream's name, and positions count from the
    stream's beginning. So crops that overlap get the same edits where they do, and whoever has the same file, seed, epoch and
    scores gets the same as well, with whatever crops. Each crop's ids are held against those that were scored.

    It is picklable, and maps its files in each process.

    Args:
        stream: the tokens.
        editor: what edits, with names of columns for key and offset: ``Editor(prior, policy, key="stream", offset="start")``.
            Its policy says nothing that depends on how the stream is cut, drops no tokens, and it makes one generation.
        scores: the folder that :func:`score` made.
        key: names the stream; by default its file's name, without folders. Streams of equal names and scores that have the same
            token at the same place get the same draw there, so give shards names of their own.

    Raises:
        InputError: the editor cannot edit crops.
        ScoresError: the scores are of another stream or prior, do not hold what the policy needs, or are damaged.
    """

    def __init__(
        self, stream: TokenStream, editor: Editor, scores: str | os.PathLike[str], *, key: str | int | None = None
    ) -> None:
        if not isinstance(stream, TokenStream):
            raise InputError(f"stream is a {type(stream).__name__}; it must be a toedit.tokens.TokenStream")
        if not isinstance(editor, Editor):
            raise InputError(f"editor is a {type(editor).__name__}; it must be a toedit.Editor")
        if key is not None and (isinstance(key, bool) or not isinstance(key, (str, int))):
            raise InputError(f"key is {key!r}; it must be a string or an integer, or None")
        _check(editor)
        self.stream, self.editor = stream, editor
        self.key = stream.path.name if key is None else key
        self._path = Path(os.path.abspath(scores))
        self._open()

    def _open(self) -> None:
        scores = self._scores = TokenScores(self._path)
        if scores.done.tokens != len(self.stream):
            raise ScoresError(
                f"{self._path} has scores of {scores.done.tokens} tokens, but {self.stream.path}, read as "
                f"{self.stream.tokens.dtype}, has {len(self.stream)}: it is another file, or has another dtype"
            )
        fingerprint, needed = self.editor.prior.fingerprint, self.editor._wanted
        if scores.settings.prior != fingerprint:
            raise ScoresError(
                f"{self._path} has scores of prior {scores.settings.prior}, but the editor's prior is {fingerprint}; score the "
                "stream with that"
            )
        if not scores.settings.suffice(*needed):
            raise ScoresError(
                f"{self._path} holds {scores.settings}, but the policy needs {top_k(*needed)}; score again with keep=policy"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("stream", "editor", "key", "_path")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.stream)

    def __repr__(self) -> str:
        return f"EditedStream({self.stream!r}, {self.editor!r}, {str(self._path)!r}, key={self.key!r})"

    def crops(self, starts: Any, length: int) -> dict[str, Any]:
        """Crops as a batch for the editor, not edited yet.

        Args:
            starts: the place of each crop's first token; integers [crops].
            length: the tokens of each.

        Returns:
            ``input_ids`` (NumPy, int64 [crops, length]), ``scores``, the editor's key and offset columns, and ``labels`` where
            the policy makes labels that are not the edited ids.

        Raises:
            InputError: a crop reaches beyond the stream.
            ScoresError: its ids are not those that were scored.
        """
        at = self._starts(starts, length)
        batch: dict[str, Any] = {IDS: np.empty((len(at), length), np.int64)}
        for row, start in zip(batch[IDS], at.tolist(), strict=True):
            row[:] = self.stream.tokens[start : start + length]
        batch[SCORES] = self._scores_of(at, length, self._hashes(at, length))
        batch[str(self.editor.key)] = pa.repeat(pa.scalar(self.key), len(at))
        batch[str(self.editor.offset)] = at
        policy = self.editor.policy
        if policy.labels == "original" or any(band.action == "mask_loss" for band in policy.candidate_bands):
            batch[LABELS] = batch[IDS].copy()
        return batch

    def edit(self, starts: Any, length: int, epoch: int) -> Edited:
        """Edit crops.

        Args:
            starts, length: as for :meth:`crops`. For inputs and targets that are the next ids ask for a token more.
            epoch: 0 to 2**32 - 1; another epoch, other draws. Where crops are drawn at random, count passes by what is drawn
                (``step * tokens_per_step // len(stream)``) or make each step one.

        Returns:
            The edited batch; ``edited["input_ids"]`` is NumPy, int64 [crops, length].

        Raises:
            InputError, ScoresError: as :meth:`crops` does.
        """
        edited = self.editor.edit(self.crops(starts, length), epoch)
        self.editor.note(edited.counts, stacklevel=2)
        return edited

    def dataset(
        self, length: int, *, stride: int | None = None, starts: Sequence[int] | Array | None = None, targets: str = "aligned"
    ) -> CropDataset:
        """A map-style PyTorch dataset of edited crops, with ``set_epoch`` and ``stats`` as
        :class:`toedit.torch.EditedDataset` has them.

        Args:
            length: the tokens of a row.
            stride: from the beginning of a row to that of the next; by default *length*. What does not fill a row at the end of
                the stream is left out.
            starts: where rows begin, instead.
            targets: "aligned": rows are mappings with ``input_ids`` (and ``labels``, where the policy makes its own).
                "shifted": pairs of inputs and the next ids, as nanoGPT has them, each of *length*; these are read of one crop
                that has a token more.

        Raises:
            InputError: a row reaches beyond the stream, or an argument is none of these.
            MissingDependencyError: there is no PyTorch.
        """
        from toedit._token_dataset import CropDataset

        return CropDataset(self, length, stride, starts, targets)

    def verify(self) -> list[str]:
        """Read the whole stream and all its scores, and say what is not as it was when they were made."""
        wrong = self._scores.damaged()
        block = self._changed(0, _blocks(self.stream))
        return wrong if block is None else [*wrong, self._other_ids(block)]

    def _changed(self, start: int, stop: int) -> int | None:
        return _changed(self.stream, self.editor.prior, self._scores.ids_hash, start, stop)

    def _other_ids(self, block: int) -> str:
        return (
            f"{self.stream.path}: tokens {block * BLOCK} to {min((block + 1) * BLOCK, len(self)) - 1} are not those that "
            f"{self._path} has scores of; score the stream again"
        )

    def _starts(self, starts: Any, length: int) -> Ints:
        at = np.asarray(starts)
        if at.ndim != 1 or at.dtype.kind not in "iu" or not len(at):
            raise InputError(f"starts is an array of {at.dtype} {list(at.shape)}; it must be a row of integers")
        if not 1 <= length <= len(self):
            raise InputError(f"length is {length}; it must be 1 to {len(self)}")
        if at.min() < 0 or at.max() > len(self) - length:
            wrong = int(at.min() if at.min() < 0 else at.max())
            raise InputError(f"a crop of {length} tokens at {wrong} reaches beyond the stream, which has {len(self)}")
        return at.astype(np.int64)

    def _hashes(self, starts: Ints, length: int) -> pa.UInt64Array:
        """The hashes of crops, whose ids must be those that were scored: the blocks that they are in have hashes, too."""
        tokens, n = self.stream.tokens, len(starts)
        first, stop = starts // BLOCK, -(-(starts + length) // BLOCK)
        crops = [tokens[at : at + length] for at in starts.tolist()]
        blocks = [block for low, high in zip(first.tolist(), stop.tolist(), strict=True) for block in range(low, high)]
        rows = _rows([*crops, *(tokens[block * BLOCK : (block + 1) * BLOCK] for block in blocks)])
        try:
            hashes = hash_rows(self.editor.prior, {IDS: rows})[0]
            wrong = np.flatnonzero(hashes[n:] != self._scores.ids_hash[blocks]).tolist()
        except InputError:  # ids that the prior does not have, and so did not score
            wrong = [i for i, block in enumerate(blocks) if self._changed(block, block + 1) is not None]
        if wrong:
            raise ScoresError(self._other_ids(blocks[wrong[0]]))
        return pa.array(hashes[:n])

    def _scores_of(self, starts: Ints, length: int, hashes: pa.UInt64Array) -> pa.StructArray:
        scores, n, k = self._scores, len(starts), self._scores.settings.k
        logp = np.empty((n, length), np.float32)
        for row, start in zip(logp, starts.tolist(), strict=True):
            row[:] = scores.logp[start : start + length]
        flat, missing = logp.reshape(-1), np.isnan(logp).reshape(-1)
        low, high = np.searchsorted(scores.topk_pos, np.stack([starts, starts + length]))
        parts = [slice(*bounds) for bounds in zip(low.tolist(), high.tolist(), strict=True)]
        positions = np.concatenate([scores.topk_pos[part] for part in parts]) - np.repeat(starts, high - low)
        ids = np.concatenate([scores.topk_ids[part] for part in parts])
        values = np.concatenate([scores.topk_logp[part] for part in parts])
        offsets = offsets_of(high - low)
        fields = [
            _list(np.arange(n + 1) * length, pa.array(flat, mask=missing if missing.any() else None)),
            _list(offsets, pa.array(positions.astype(np.int32))),
            _list(offsets * k, pa.array(ids.reshape(-1))),
            _list(offsets * k, pa.array(values.astype(np.float32).reshape(-1))),
            pa.repeat(pa.scalar(k, pa.int32()), n),
            hashes,
            pa.repeat(pa.scalar(scores.settings.prior), n),
        ]
        return pa.StructArray.from_arrays(fields, fields=list(SCORES_TYPE))


def _list(offsets: Ints, values: pa.Array) -> pa.ListArray:
    if offsets[-1] > np.iinfo(np.int32).max:
        raise InputError(f"crops with {offsets[-1]} values are too large for list columns; ask for fewer at a time")
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def _check(editor: Editor) -> None:
    """Raise where crops would not get the edits of the stream."""
    if editor.key is None or editor.offset is None:
        raise InputError(
            f"the editor has key={editor.key!r} and offset={editor.offset!r}; crops have columns for both, whose names it must "
            'know: Editor(…, key="stream", offset="start")'
        )
    if editor.generations > 1:
        raise InputError(
            f"the editor makes {editor.generations} generations, of which the later ones would score crops by themselves; edit "
            "streams with generations=1"
        )
    policy, default = editor.policy, Policy()
    for name, why in _OF_ROWS.items():
        if (value := getattr(policy, name)) != getattr(default, name):
            raise InputError(f"the policy has {name}={value!r}, which is {why}; edit streams without it")
    if any(band.action == "drop" for band in policy.candidate_bands):
        raise InputError("the policy drops tokens, so that crops would have different lengths; edit streams without that")
