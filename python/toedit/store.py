"""The score store: on-the-fly scores that the first epoch computes and later epochs read."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from toedit import _native, _runtime, _store_files
from toedit._arrow import IDS, SCORES_TYPE
from toedit._errors import InputError, ScoresError, StoreWarning
from toedit._scores import hash_rows
from toedit._store_files import EMPTY, Places, Replaced, Settings, StoreFile, View, Words, list_files, locked, top_k
from toedit._version import __version__
from toedit.policy import Policy
from toedit.prior import Prior, _level_of_caller, wanted

__all__ = ["ScoreStore"]

# A process joins its files, so many at a time, until they are so large: there are never many small ones.
_FAN, _LARGE = 16, 8 << 20
# Seconds for which a writer waits for another one, who writes one file. Waiting without end would hang a training run.
_PATIENCE = 20.0
# About how large a file is that compaction makes.
_COMPACTED = 256 << 20


class Lookups(NamedTuple):
    """What a store had of some rows: how many were read there, scored by the prior, and scored but not stored."""

    hits: int
    misses: int
    unstored: int


class ScoreStore:
    """Scores in a folder, by the hash of the document (128 bits) and the prior's fingerprint.

    ``Editor(prior, policy, store=ScoreStore(path))`` looks up the rows of a batch that has no scores column, scores those that
    are not there, and adds them. Any number of processes may do so at once. What a batch was given is in the store when the
    batch is handed out, and every process finds it at its next look for a document that it does not know. A process that is
    killed loses what it was writing, nothing else. Where nothing can be written (a full disk, no permission), the scores are
    used and not stored, with a :class:`StoreWarning` the first time.

    The files are Arrow IPC, one record batch each: ``hash_high`` (uint64), ``checksum`` (uint64) and ``scores``
    (:data:`toedit.SCORES_TYPE`, whose ``ids_hash`` is the low half of the hash). All of a store are of one prior.

    A store is picklable and is opened at the first use in each process. It takes 16 bytes of memory a document there; the
    scores themselves are mapped.

    Args:
        path: the folder; made when the first scores are written.
        k: how many of the most probable tokens are stored at a kept position. By default what the store has already, else
            what the policy of the editor wants that fills it.
        keep: where, as for :meth:`Prior.score`: a policy or closed ranges of P; by default as *k*. Give what all policies
            need that shall share the store.
        max_bytes: how large all files together may become; without it, as large as the disk. What does not fit is scored
            each time, with a :class:`StoreWarning` the first time.

    Raises:
        InputError: an argument is out of its range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        k: int | None = None,
        keep: Policy | Iterable[tuple[float, float]] | None = None,
        max_bytes: int | None = None,
    ) -> None:
        if max_bytes is not None and (isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1):
            raise InputError(f"max_bytes is {max_bytes!r}; it must be an integer of at least 1, or None")
        self.path = Path(os.path.abspath(path))  # a worker process may have another working directory
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is no folder, which a score store is")
        self.asked = None if k is None and keep is None else wanted(k, keep)
        self.max_bytes = max_bytes
        self._open()

    def _open(self) -> None:
        # What a process knows of the store; a forked child begins with what its parent knew.
        self._processes: dict[tuple[int, int], _Process] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("path", "asked", "max_bytes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __repr__(self) -> str:
        limit = "" if self.max_bytes is None else f", max_bytes={self.max_bytes}"
        asked = "" if self.asked is None else f", k={self.asked[0]}, keep={self.asked[1]}"
        return f"ScoreStore({str(self.path)!r}{asked}{limit})"

    @property
    def _process(self) -> _Process:
        token = _native.process_token()
        found = self._processes.get(token)
        if found is None:
            inherited = [process.view for process in self._processes.values()]
            found = self._processes.setdefault(token, _Process(inherited[-1] if inherited else EMPTY))
        return found

    @staticmethod
    def check_prior(prior: Prior) -> None:
        """Raise where the scores of a prior do not follow from a row's ids."""
        if prior.cross_documents:
            raise InputError(
                "a score store cannot hold scores of a prior with cross_documents=True: they depend on what a row is packed "
                "with; score such rows once, into a column"
            )

    def score_columns(
        self, prior: Prior, columns: dict[str, pa.Array], k: int, ranges: list[tuple[float, float]]
    ) -> tuple[pa.StructArray, Lookups]:
        """The scores of a batch: those that are stored, and fresh ones for the rest, which are added; and how many rows are
        which. Rows with the same ids are scored, and stored, once.

        Args:
            prior: whose scores.
            columns: as :meth:`Prior.score_columns` takes them.
            k, ranges: the top-k that the policy needs, and where.

        Raises:
            InputError: as :meth:`Prior.score`, or a row holds several documents.
            ScoresError: the store is damaged, is another prior's, or does not hold what the policy needs.
        """
        process = self._process
        low, high, tokens = hash_rows(prior, columns)
        documents = list(zip(low.tolist(), high.tolist(), tokens.tolist(), strict=True))
        view = process.view
        places = view.find(low, high)
        if None in places:
            view = process.refresh(str(self.path))
            places = view.find(low, high)
        settings = self._settings(view, prior, k, ranges)
        parts = [
            None if place is None else place[0].read(place[1], *document)
            for document, place in zip(documents, places, strict=True)
        ]
        misses, unstored = places.count(None), 0
        if misses:
            rows: dict[tuple[int, int, int], int] = {}  # of the documents that have to be scored, each once
            for row, (document, place) in enumerate(zip(documents, places, strict=True)):
                if place is None:
                    rows.setdefault(document, row)
            fresh, stored = self._score(process, prior, settings, columns, list(rows.values()), high)
            unstored = 0 if stored else len(fresh)
            number = {document: n for n, document in enumerate(rows)}
            parts = [
                fresh.slice(number[document], 1) if part is None else part
                for document, part in zip(documents, parts, strict=True)
            ]
        found = Lookups(len(places) - misses, misses, unstored)
        process.count(found)
        if len(parts) == 1:
            return parts[0], found
        return pa.concat_arrays(parts) if parts else pa.array([], SCORES_TYPE), found

    def _settings(self, view: View, prior: Prior, k: int, ranges: list[tuple[float, float]]) -> Settings:
        """What the store holds, or will, if that is enough."""
        asked = None if self.asked is None else Settings(prior.fingerprint, self.asked[0], tuple(self.asked[1]))
        settings = view.settings or asked or Settings(prior.fingerprint, k, tuple(ranges))
        if settings.prior != prior.fingerprint:
            raise ScoresError(
                f"the score store {self.path} holds scores of prior {settings.prior}, but this prior is {prior.fingerprint}; "
                "use another folder"
            )
        if not settings.suffice(k, ranges):
            raise ScoresError(
                f"the score store {self.path} holds {settings}, but the policy needs {top_k(k, ranges)}; use another folder, "
                "with a ScoreStore(path, k=…, keep=…) that is enough for every policy that is to share it"
            )
        if asked is not None and not settings.suffice(asked.k, asked.keep):
            raise ScoresError(f"the score store {self.path} holds {settings}, but {asked} was asked for; use another folder")
        return settings

    def _score(
        self,
        process: _Process,
        prior: Prior,
        settings: Settings,
        columns: dict[str, pa.Array],
        rows: list[int],
        high: Words,
    ) -> tuple[pa.StructArray, bool]:
        """Score some rows of a batch, and store what they got; False where it could not be stored."""
        taken = pa.array(rows)
        missing = {name: columns[name].take(taken) for name in (IDS, "attention_mask") if name in columns}
        scores = prior.score_columns(missing, settings.k, list(settings.keep))
        return scores, self._add(process, prior, settings, scores, high[rows])

    def _add(self, process: _Process, prior: Prior, settings: Settings, scores: pa.StructArray, high: Words) -> bool:
        if process.full:
            return False
        folder, batch = str(self.path), _store_files.to_batch(scores, high)
        try:
            os.makedirs(folder, exist_ok=True)
            with process.lock, locked(folder, process.patience):
                stored = process.write(folder, prior, settings, batch, self.max_bytes)
            process.patience = _PATIENCE
        except OSError as error:
            process.patience = 0.0  # one batch may wait in vain, not each
            if process.warn():
                warnings.warn(
                    f"scores cannot be stored in {folder}: {error}. Documents that are not there are scored each time",
                    StoreWarning,
                    stacklevel=_level_of_caller(),
                )
            return False
        if not stored:
            warnings.warn(
                f"the score store {folder} is full (max_bytes={self.max_bytes}): documents that are not there are scored each "
                "time",
                StoreWarning,
                stacklevel=_level_of_caller(),
            )
        return stored

    # -----------------------------------------------------------------------------------------------------------------
    # looking after it

    def stats(self) -> dict[str, int]:
        """What the store holds (``files``, ``bytes``, ``documents``, ``tokens``), and what this process did with it: rows
        read (``hits``), rows scored (``misses``), and documents that were scored and could not be stored (``unstored``). What
        DataLoader workers did with it is in the ``store_stats`` of what edits there."""
        process = self._process
        view = process.refresh(str(self.path))
        rows = _store_files.distinct(view.files)
        return {
            "files": len(list_files(str(self.path))),
            "bytes": _store_files.size(str(self.path)),
            "documents": sum(map(len, rows)),
            "tokens": sum(int(file.tokens[of_file].sum()) for file, of_file in zip(view.files, rows, strict=True)),
            **process.lookups._asdict(),
        }

    def verify(self) -> list[str]:
        """Read every value of every file and say what is wrong: a sentence for each damaged file. What killed processes
        left unfinished is removed."""
        folder = self._folder()
        with (
            contextlib.suppress(OSError),
            locked(folder, _PATIENCE),
        ):  # a store that cannot be written has none that could be removed
            _store_files.remove_leftovers(folder)
        wrong: list[str] = []
        settings: Settings | None = None
        for entry in list_files(folder):
            try:
                file = StoreFile(entry.path)
                file.check()
            except Replaced:
                continue
            except ScoresError as error:
                wrong.append(str(error))
                continue
            settings = settings or file.settings
            if file.settings != settings:
                wrong.append(f"{file.path} holds {file.settings} of prior {file.settings.prior}, unlike those before it")
        return wrong

    def compact(self) -> None:
        """Join small files into large ones and keep each document once. Others may use the store meanwhile. It takes as much
        room again as one large file.

        Raises:
            ScoresError: a file is damaged.
            OSError: a file cannot be written. Nothing is lost.
        """
        folder = self._folder()
        with locked(folder, _PATIENCE):
            _store_files.remove_leftovers(folder)
        files = list(_present(entry.path for entry in list_files(folder)))
        for file in files:
            file.check()
        for portion in _portions(files):
            with locked(folder, _PATIENCE):
                # What is gone by now, another has joined, and with it the documents that are not kept here because it has them.
                portion = [(file, rows) for file, rows in portion if os.path.exists(file.path)]
                if not portion or (len(portion) == 1 and len(portion[0][1]) == len(portion[0][0])):
                    continue
                kept = [file.batch.take(pa.array(rows)) for file, rows in portion if len(rows)]
                if kept:
                    _store_files.write(folder, _store_files.joined(kept), portion[0][0].manifest)
                for file, _ in portion:
                    os.unlink(file.path)

    def _folder(self) -> str:
        if not self.path.is_dir():
            raise InputError(f"there is no score store at {self.path}")
        return str(self.path)


class _Process:
    """What one process knows of a store and did with it."""

    def __init__(self, view: View) -> None:
        self.lock = threading.Lock()
        self.view = view
        self.lookups = Lookups(0, 0, 0)
        self.full = False
        self.patience = _PATIENCE
        self._warned = False
        # Files that this process wrote: those of level n + 1 were joined of _FAN of level n.
        self._levels: list[list[str]] = [[]]
        self._manifests: dict[Settings, bytes] = {}

    def refresh(self, folder: str) -> View:
        with self.lock:
            self.view = self.view.refreshed(folder)
            return self.view

    def count(self, found: Lookups) -> None:
        with self.lock:
            hits, misses, unstored = self.lookups
            self.lookups = Lookups(hits + found.hits, misses + found.misses, unstored + found.unstored)

    def warn(self) -> bool:
        """Whether to warn: the first time only."""
        warned, self._warned = self._warned, True
        return not warned

    def write(self, folder: str, prior: Prior, settings: Settings, batch: pa.RecordBatch, limit: int | None) -> bool:
        """Write documents; False where there is no room for them. The store is locked."""
        if settings not in self._manifests:
            self._manifests[settings] = _store_files.manifest(prior.describe(), settings, _runtime.where(), __version__)
        room = None if limit is None else limit - _store_files.size(folder)
        path = _store_files.write(folder, batch, self._manifests[settings], room)
        self.full = path is None
        if path is None:
            return False
        self._levels[0].append(path)
        # The documents are stored; that their files are many is no harm.
        with contextlib.suppress(OSError):
            self._join(folder, limit)
        return True

    def _join(self, folder: str, limit: int | None) -> None:
        for level, paths in enumerate(self._levels):
            if len(paths) < _FAN:
                return
            files = list(_present(paths))  # without those that a compaction has joined
            if files:
                room = None if limit is None else limit - _store_files.size(folder)
                joined = _store_files.write(
                    folder, _store_files.joined([file.batch for file in files]), files[0].manifest, room
                )
                if joined is None:
                    return
                for file in files:
                    os.unlink(file.path)
                if os.path.getsize(joined) < _LARGE:
                    if level + 1 == len(self._levels):
                        self._levels.append([])
                    self._levels[level + 1].append(joined)
            self._levels[level] = []


def _present(paths: Iterable[str]) -> Iterator[StoreFile]:
    for path in paths:
        with contextlib.suppress(Replaced):
            yield StoreFile(path)


def _portions(files: list[StoreFile]) -> Iterator[list[tuple[StoreFile, Places]]]:
    """The files, each with the rows that are to be kept, in portions that make one large file: the small ones first. A portion
    has files of one origin."""
    sized = [(file.manifest, file.batch.nbytes, i) for i, file in enumerate(files)]
    rows = _store_files.distinct(files)
    portion: list[tuple[StoreFile, Places]] = []
    total, origin = 0, b""
    for made, size, i in sorted(sized):
        if portion and (made != origin or total + size > _COMPACTED):
            yield portion
            portion, total = [], 0
        portion.append((files[i], rows[i]))
        total, origin = total + size, made
    if portion:
        yield portion


# ---------------------------------------------------------------------------------------------------------------------
# the command line


def main(argv: Sequence[str] | None = None) -> int:
    """``toedit store``; returns the exit status."""
    import argparse

    parser = argparse.ArgumentParser(prog="toedit store", description="Look after a score store (toedit.ScoreStore).")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("stats", "what the store holds"),
        ("verify", "read every value, and say which files are damaged (exit status 1)"),
        ("compact", "join small files into large ones, each document once"),
    ):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument("path", metavar="PATH", help="the store's folder")
    args = parser.parse_args(argv)
    store = ScoreStore(args.path)
    if args.command == "verify":
        wrong = store.verify()
        print("\n".join(wrong) or f"{store.path}: every value of {len(list_files(str(store.path)))} files is what was written")
        return 1 if wrong else 0
    if args.command == "compact":
        try:
            store.compact()
        except OSError as error:
            raise InputError(f"{store.path} cannot be written: {error}") from None
    print(_summary(store))
    return 0


def _summary(store: ScoreStore) -> str:
    store._folder()
    held = store.stats()
    settings = store._process.view.settings
    text = (
        f"{store.path}: {held['documents']:,} documents, {held['tokens']:,} tokens, {held['bytes']:,} bytes in "
        f"{held['files']:,} files"
    )
    if settings is None:
        return text
    each = held["bytes"] / max(held["tokens"], 1)
    return f"{text} ({each:.1f} a token); {settings}, of prior {settings.prior}"
