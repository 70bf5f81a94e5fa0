"""The files of a score store: one record batch of Arrow IPC each, a document a row, and the index over them.

A file appears whole, under a name of its own, and is never changed. One that takes the place of others is there before they
are removed. So readers need no lock, and whatever is killed at whatever time loses nothing that had a name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from toedit._arrow import SCORES_TYPE
from toedit._errors import ScoresError

__all__ = [
    "EMPTY",
    "Places",
    "Replaced",
    "Settings",
    "StoreFile",
    "View",
    "Words",
    "damaged",
    "distinct",
    "joined",
    "list_files",
    "locked",
    "manifest",
    "remove_leftovers",
    "size",
    "to_batch",
    "top_k",
    "write",
]

FORMAT = 1
ENDING = ".arrow"
# Names that no reader takes for a file of the store: pyarrow's datasets pass over a dot, and so do globs.
_LOCK, _UNFINISHED = ".lock", ".unfinished-"

SCHEMA = pa.schema([("hash_high", pa.uint64()), ("checksum", pa.uint32()), ("scores", SCORES_TYPE)])
_LISTS = ("logp", "topk_pos", "topk_ids", "topk_logp")
_MANIFEST = b"toedit"

# The time of change of a folder advances in steps; two changes in one step look like one.
_STEP_NS = 2_000_000_000
# Looks at a folder in which others are joining files.
_LOOKS = 1000

_ROW_BITS = 32
_ROW_MASK = (1 << _ROW_BITS) - 1

Words = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Settings:
    """What all documents of a store have in common: the prior's fingerprint, and of which the top-k is stored where P lies
    in one of the closed ranges *keep*."""

    prior: str
    k: int
    keep: tuple[tuple[float, float], ...]

    def suffice(self, k: int, ranges: Iterable[tuple[float, float]]) -> bool:
        """Whether a policy that wants top-*k* in these ranges finds it."""
        ranges = list(ranges)
        return not ranges or (k <= self.k and all(self._keeps(low, high) for low, high in ranges))

    def _keeps(self, low: float, high: float) -> bool:
        for from_, to in sorted(self.keep):
            if from_ <= low <= to:
                low = to
        return low >= high

    def __str__(self) -> str:
        return top_k(self.k, self.keep)


def top_k(k: int, ranges: Iterable[tuple[float, float]]) -> str:
    """In words: of how many tokens the ln P is stored, and where."""
    return f"top-{k} where P lies in {', '.join(f'[{low:g}, {high:g}]' for low, high in ranges) or 'no range'}"


# What is said of a folder that is not there.
_ABSENT = (FileNotFoundError, NotADirectoryError)


class Replaced(Exception):
    """A file is gone: another has taken its place."""


# ---------------------------------------------------------------------------------------------------------------------
# one file


class _Content:
    """The values of scored documents, for checksums."""

    def __init__(self, scores: pa.StructArray) -> None:
        self.k: npt.NDArray[np.int32] = scores.field("k").to_numpy()
        # Of each field the offsets of its rows, and its values.
        self.fields: list[tuple[npt.NDArray[np.int32], memoryview]] = []
        for name in _LISTS:
            lists = scores.field(name)
            self.fields.append((lists.offsets.to_numpy(), _values(lists.values, lists.values.buffers()[1], np.uint32)))
        priors = scores.field("prior")
        _, offsets, text = priors.buffers()
        self.fields.append((np.frombuffer(offsets, np.int32)[priors.offset :], _values(priors, text, np.uint8)))

    def checksum(self, row: int, low: int, high: int) -> int:
        """The CRC-32 of a document: the halves of its hash (uint64), its k (int32), the values of its four lists in the order
        of the type, and its prior; all little-endian, and 0 where a value is null."""
        found = zlib.crc32(_HEAD.pack(low, high, self.k[row]))
        for offsets, values in self.fields:
            found = zlib.crc32(values[offsets[row] : offsets[row + 1]], found)
        return found


def _values(of: pa.Array, buffer: pa.Buffer | None, words: type[np.unsignedinteger[Any]]) -> memoryview:
    if buffer is None:  # an array without values may do without memory
        return memoryview(b"")
    values = np.frombuffer(buffer, words)
    return values.data if words is np.uint8 else values[of.offset :].data


_HEAD = struct.Struct("<QQi")


class StoreFile:
    """A file, mapped into memory.

    Attributes:
        path: where it was; others may have taken its place by now, the mapping stays.
        manifest: where the scores come from, as JSON.
        settings: what it holds of each document.
        batch: its rows, :data:`SCHEMA`.
        scores: their scores.
        low, high: the halves of the document hashes.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with pa.memory_map(path) as mapped:
                reader = pa.ipc.open_file(mapped)
                schema, n = reader.schema, reader.num_record_batches
                batch = reader.get_batch(0) if n == 1 else None
            if batch is None or not schema.equals(SCHEMA):
                raise ScoresError(f"{path} is not a file of a score store; move it elsewhere")
            # Offsets that lead out of the file would end the process.
            batch.validate(full=True)
            self.manifest = schema.metadata[_MANIFEST]
            self.settings = _settings(self.manifest)
        except ScoresError:
            raise
        except FileNotFoundError:
            raise Replaced from None
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise damaged(path, str(error)) from None
        self.batch = batch
        self.scores: pa.StructArray = batch.column("scores")
        self.low: Words = self.scores.field("ids_hash").to_numpy()
        self.high: Words = batch.column("hash_high").to_numpy()
        self._checksum: npt.NDArray[np.uint32] = batch.column("checksum").to_numpy()
        self._content = _Content(self.scores)

    def __len__(self) -> int:
        return len(self.low)

    @property
    def tokens(self) -> Places:
        """The tokens of each document."""
        offsets: Places = self.scores.field("logp").offsets.to_numpy().astype(np.int64)
        return np.diff(offsets)

    def read(self, row: int, low: int, high: int, tokens: int) -> pa.StructArray:
        """The scores of a row, which must be those of a document with this hash and so many tokens.

        Raises:
            ScoresError: they are not.
        """
        if self._content.checksum(row, low, high) != self._checksum[row]:
            raise damaged(self.path, f"row {row} is not what was written")
        offsets, _ = self._content.fields[0]
        stored = int(offsets[row + 1]) - int(offsets[row])
        if stored != tokens:
            raise damaged(self.path, f"row {row} has scores of {stored} tokens, but the document with its hash has {tokens}")
        return self.scores.slice(row, 1)

    def check(self) -> None:
        """Raise unless every value is what was written."""
        for row, (low, high) in enumerate(zip(self.low.tolist(), self.high.tolist(), strict=True)):
            if self._content.checksum(row, low, high) != self._checksum[row]:
                raise damaged(self.path, f"row {row} is not what was written")
        for name, value in (("k", self.settings.k), ("prior", self.settings.prior)):
            if not pc.all(pc.equal(self.scores.field(name), value)).as_py():
                raise damaged(self.path, f"{name} is not {value} in every row")


def damaged(path: str, what: str) -> ScoresError:
    return ScoresError(f"{path} is damaged: {what}. Delete the file; its documents will be scored again")


def _settings(manifest: bytes) -> Settings:
    found = json.loads(manifest)
    if found["format"] != FORMAT:
        raise ValueError(f"its format is {found['format']}, but this toedit reads {FORMAT}")
    return Settings(str(found["prior"]["fingerprint"]), int(found["k"]), tuple((low, high) for low, high in found["keep"]))


def write(folder: str, batch: pa.RecordBatch, manifest: bytes, room: int | None = None) -> str | None:
    """Write a file and return its path; None where it would be larger than *room*, in bytes. The store must be locked.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    name = os.urandom(16).hex() + ENDING
    path, unfinished = os.path.join(folder, name), os.path.join(folder, _UNFINISHED + name)
    try:
        with open(unfinished, "xb") as file:
            with pa.ipc.new_file(file, SCHEMA.with_metadata({_MANIFEST: manifest})) as writer:
                writer.write_batch(batch)
            file.flush()
            if room is not None and file.tell() > room:
                return None
            # A name must not outlive its contents where the power fails.
            os.fsync(file.fileno())
        os.rename(unfinished, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# the folder


def list_files(folder: str) -> list[os.DirEntry[str]]:
    """The files of a store, by name; none where there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if e.name.endswith(ENDING) and e.name[0] != "."), key=lambda e: e.name)
    except _ABSENT:
        return []


def size(folder: str) -> int:
    """The bytes of all files of a store."""
    total = 0
    for entry in list_files(folder):
        with contextlib.suppress(FileNotFoundError):
            total += entry.stat().st_size
    return total


@contextlib.contextmanager
def locked(folder: str, seconds: float) -> Iterator[None]:
    """Be the only process that writes into a store. The system lets go of a killed one's lock.

    Raises:
        OSError: the folder cannot be written, or another process has held the lock for so many seconds.
    """
    descriptor = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise OSError(errno.ETIMEDOUT, "another process does not let go of its lock", folder) from None
                time.sleep(0.002)
        try:
            yield
        finally:
            # Closing is not enough: a child that was forked meanwhile has the descriptor, too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: str) -> int:
    """Remove what killed writers left unfinished, and return how many files that were. The store must be locked."""
    with os.scandir(folder) as entries:
        found = [entry.path for entry in entries if entry.name.startswith(_UNFINISHED)]
    for path in found:
        os.unlink(path)
    return len(found)


# ---------------------------------------------------------------------------------------------------------------------
# the index


class _Run(NamedTuple):
    """Documents in the order of the low halves of their hashes, each with its place: file << 32 | row."""

    low: Words
    place: Places


def _run(parts: list[_Run]) -> _Run:
    low, place = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(low, kind="stable")
    return _Run(low[order], place[order])


@dataclass(frozen=True)
class View:
    """What a store held when it was looked at last. It never changes, so that every thread may read it.

    Attributes:
        files: all that were there.
        settings: what they hold; None where there are none.
        runs: the index, each run more than twice as long as the next, so that adding costs little and there are few.
        changed: the folder's time of change then, in ns; 0 where it may have changed since without showing it.
    """

    files: tuple[StoreFile, ...] = ()
    settings: Settings | None = None
    runs: tuple[_Run, ...] = ()
    changed: int = 0

    def find(self, low: Words, high: Words) -> list[tuple[StoreFile, int] | None]:
        """The file and row of each document; None where it is not there."""
        found: list[tuple[StoreFile, int] | None] = [None] * len(low)
        for run in self.runs:
            at = run.low.searchsorted(low)
            (same,) = (run.low.take(at, mode="clip") == low).nonzero()
            for i, place in zip(same.tolist(), run.place[at[same]].tolist(), strict=True):
                file, row = self.files[place >> _ROW_BITS], place & _ROW_MASK
                if file.high[row] == high[i]:
                    found[i] = file, row
            if None not in found:  # the runs behind this one are shorter
                break
        return found

    def refreshed(self, folder: str) -> View:
        """The view of what is there now.

        Raises:
            ScoresError: a file is damaged, or has other settings than the rest, or the folder cannot be read.
        """
        for _ in range(_LOOKS):
            try:
                now, changed = time.time_ns(), os.stat(folder).st_mtime_ns
                if changed == self.changed:
                    return self
                return self._with(list_files(folder), 0 if now - changed < _STEP_NS else changed)
            except Replaced:
                continue
            except _ABSENT:
                return EMPTY
            except OSError as error:
                raise ScoresError(f"the score store {folder} cannot be read: {error}") from None
        raise ScoresError(f"the score store {folder} cannot be read: files go away as fast as they are listed")

    def _with(self, entries: list[os.DirEntry[str]], changed: int) -> View:
        paths = {entry.path for entry in entries}
        # What others took the place of stays mapped, and indexed, until it is most of all.
        files, runs = list(self.files), self.runs
        if 2 * sum(len(file) for file in files if file.path not in paths) > sum(map(len, files)):
            files = [file for file in files if file.path in paths]
            runs = _indexed((), files, 0)
        known = {file.path for file in files}
        new = [StoreFile(path) for path in sorted(paths - known)]
        first = next(iter((*files, *new)), None)
        settings = None if first is None else first.settings
        for file in new:
            if file.settings != settings:
                raise ScoresError(
                    f"{file.path} does not belong to this score store: it holds {file.settings} of prior "
                    f"{file.settings.prior}, the others {settings} of prior {settings and settings.prior}; give each a folder"
                )
        return View((*files, *new), settings, _indexed(runs, new, len(files)), changed)


EMPTY = View()


def _indexed(runs: tuple[_Run, ...], files: list[StoreFile], first: int) -> tuple[_Run, ...]:
    """The index with files added, which are numbered from *first*."""
    parts = [_Run(file.low, (np.int64(first + i) << _ROW_BITS) + np.arange(len(file))) for i, file in enumerate(files)]
    if not sum(len(part.low) for part in parts):
        return runs
    added, older = _run(parts), list(runs)
    while older and len(older[-1].low) <= 2 * len(added.low):
        added = _run([older.pop(), added])
    return (*older, added)


def distinct(files: Sequence[StoreFile]) -> list[Places]:
    """The rows of each file that hold a document that no file before it holds."""
    if not files:
        return []
    low, high = (np.concatenate(halves) for halves in zip(*((f.low, f.high) for f in files), strict=True))
    order = np.lexsort((high, low))  # stable: of equal documents the first comes first
    first = np.ones(len(order), bool)
    first[1:] = (low[order][1:] != low[order][:-1]) | (high[order][1:] != high[order][:-1])
    kept = np.zeros(len(order), bool)
    kept[order[first]] = True
    ends = np.cumsum([len(file) for file in files])[:-1]
    return [np.flatnonzero(of_file) for of_file in np.split(kept, ends)]


def to_batch(scores: pa.StructArray, high: Words) -> pa.RecordBatch:
    """Scored documents as the rows of a file."""
    content, low = _Content(scores), scores.field("ids_hash").to_pylist()
    found = [content.checksum(row, *halves) for row, halves in enumerate(zip(low, high.tolist(), strict=True))]
    return pa.RecordBatch.from_arrays([pa.array(high), pa.array(found, pa.uint32()), scores], schema=SCHEMA)


def joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """The rows of several files as one batch."""
    (batch,) = pa.Table.from_batches([b.replace_schema_metadata(None) for b in batches]).combine_chunks().to_batches()
    return batch


def manifest(describe: dict[str, Any], settings: Settings, where: dict[str, str], version: str) -> bytes:
    """What a file says of where its scores come from."""
    return json.dumps(
        {"format": FORMAT, "toedit": version, "prior": describe, "k": settings.k, "keep": settings.keep, **where}
    ).encode()
