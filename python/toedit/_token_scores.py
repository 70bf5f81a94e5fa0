"""The scores of a token stream: a folder of NumPy files that are aligned with the tokens, mapped into memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from toedit._errors import InputError, ScoresError
from toedit._store_files import Settings, locked

__all__ = ["BLOCK", "Done", "TokenScores", "Unfinished", "unfinished"]

FORMAT = 1
# Tokens that share a hash: the fewer, the less a crop reads beside its own.
BLOCK = 1024

_MANIFEST = "scores.json"
_PARTIAL, _PROGRESS = ".partial", "progress.json"
# The files, and what they hold of each token, stored position or block.
_DTYPES: dict[str, type[np.generic]] = {
    "logp": np.float32,
    "topk_pos": np.int64,
    "topk_ids": np.int32,
    "topk_logp": np.float16,
    "ids_hash": np.uint64,
}
# Where values begin: a NumPy header has room to be written when the length is known.
_HEADER = 128
_READ = 1 << 22

Array = npt.NDArray[Any]


@dataclass
class Done:
    """What is scored of a stream: the first so many ``tokens``, ``unscored`` of them without a score, in so many whole
    ``documents``, with top-k at so many ``positions``."""

    tokens: int = 0
    documents: int = 0
    unscored: int = 0
    positions: int = 0


def _shapes(done: Done, k: int) -> dict[str, tuple[int, ...]]:
    blocks = -(-done.tokens // BLOCK)
    return {
        "logp": (done.tokens,),
        "topk_pos": (done.positions,),
        "topk_ids": (done.positions, k),
        "topk_logp": (done.positions, k),
        "ids_hash": (blocks,),
    }


class TokenScores:
    """A folder of scores, opened. Nothing is read but the manifest.

    Attributes:
        path: the folder.
        settings: the prior's fingerprint, k, and where top-k is stored.
        done: how many tokens, documents, and stored positions.
        logp: float32 [tokens]; NaN where there is no score.
        topk_pos: int64 [positions], ascending.
        topk_ids, topk_logp: int32 and float16 [positions, k].
        ids_hash: uint64 [blocks], the low half of the document hash of each :data:`BLOCK` tokens.

    Raises:
        ScoresError: it is no such folder, or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            manifest = json.loads((self.path / _MANIFEST).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            begun = _partial(self.path).is_dir()
            raise ScoresError(
                f"{self.path} has no scores of a token stream"
                + ("; they were begun and not finished: toedit.tokens.score goes on" if begun else "; toedit.tokens.score does")
            ) from None
        except (OSError, ValueError) as error:
            raise ScoresError(f"{self.path / _MANIFEST} cannot be read: {error}; score the stream again") from None
        try:
            if manifest["format"] != FORMAT:
                raise ScoresError(f"{self.path} is of format {manifest['format']}, but this toedit reads {FORMAT}")
            keep = tuple((low, high) for low, high in manifest["keep"])
            self.settings = Settings(str(manifest["prior"]["fingerprint"]), int(manifest["k"]), keep)
            self.done = Done(*(int(manifest[name]) for name in asdict(Done())))
            self._sums: dict[str, str] = manifest["sha256"]
        except (KeyError, TypeError, ValueError) as error:
            raise ScoresError(f"{self.path / _MANIFEST} is damaged: {error!r}; score the stream again") from None
        shapes = _shapes(self.done, self.settings.k)
        self.logp, self.topk_pos, self.topk_ids, self.topk_logp, self.ids_hash = (
            self._map(name, shapes[name]) for name in _DTYPES
        )

    def _map(self, name: str, shape: tuple[int, ...]) -> Array:
        path = self.path / f"{name}.npy"
        try:
            found: Array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise ScoresError(f"{path} cannot be read: {error}; score the stream again") from None
        if found.dtype != _DTYPES[name] or found.shape != shape:
            raise ScoresError(
                f"{path} holds {found.dtype} {list(found.shape)}, but its manifest speaks of {np.dtype(_DTYPES[name])} "
                f"{list(shape)}; score the stream again"
            )
        return found

    def damaged(self) -> list[str]:
        """Read every file, and say which are not as they were written."""
        return [
            f"{self.path / name} is not what was written; score the stream again"
            for name, expected in self._sums.items()
            if _sha256(self.path / name) != expected
        ]


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_READ):
            found.update(part)
    return found.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# writing


def _partial(out: Path) -> Path:
    return out.with_name(out.name + _PARTIAL)


@contextlib.contextmanager
def unfinished(out: Path, overwrite: bool, settings: Mapping[str, Any], k: int) -> Iterator[Unfinished]:
    """The scores that are made for *out*, begun anew or as far as an earlier run with the same settings came.

    Raises:
        InputError: they cannot be written, another process writes them, or an earlier run had other settings.
    """
    folder = _partial(out)
    if out.exists() and not (overwrite and (out / _MANIFEST).exists()):
        way_out = "" if overwrite else ", or overwrite it"
        raise InputError(f"{out} exists{' and has no scores' if overwrite else ''}; give another name{way_out}")
    try:
        folder.mkdir(exist_ok=True)
        with locked(str(folder), 0), contextlib.ExitStack() as stack:
            yield Unfinished(out, folder, settings, k, stack)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error}") from None


class Unfinished:
    """Scores that are being written, into a folder beside the one that they become.

    Attributes:
        done: what is written and will not be written again.
        begin: where the piece begins that comes next; what it has of tokens that are done is context.
    """

    def __init__(self, out: Path, folder: Path, settings: Mapping[str, Any], k: int, stack: contextlib.ExitStack) -> None:
        self._out, self._folder, self._k = out, folder, k
        # As JSON has them, to compare with what it gives back.
        self._settings = json.loads(json.dumps(settings))
        self.done, self.begin = Done(), 0
        with contextlib.suppress(FileNotFoundError):
            before = json.loads((folder / _PROGRESS).read_bytes())
            if before["settings"] != self._settings:
                differing = _difference(before["settings"], self._settings)
                raise InputError(f"{folder} was begun with other settings ({differing}); give the same, or remove it")
            self.done, self.begin = Done(**before["done"]), before["begin"]
        self._files: dict[str, BinaryIO] = {}
        for name, shape in _shapes(self.done, k).items():
            file = stack.enter_context(open(folder / f"{name}.npy", "a+b"))  # noqa: SIM115 - the caller's stack closes it
            length = shape[0] if name != "ids_hash" else self.done.tokens // BLOCK  # of whole blocks
            size = _HEADER + np.dtype(_DTYPES[name]).itemsize * int(np.prod([length, *shape[1:]]))
            if self.done.tokens and file.tell() < size:
                raise InputError(f"{folder / name}.npy has {file.tell()} bytes, but {size} were written; remove {folder}")
            file.truncate(size)
            self._files[name] = file

    def write(self, name: str, values: Array) -> None:
        """Write values of one of the files behind those that are there."""
        self._files[name].write(np.ascontiguousarray(values, _DTYPES[name]).data)

    def commit(self, done: Done, begin: int) -> None:
        """Keep what was written, whatever happens."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self.done, self.begin = done, begin
        self._write_json(_PROGRESS, {"settings": self._settings, "done": asdict(done), "begin": begin})

    def hashes(self) -> Array:
        """The hashes of whole blocks that are committed."""
        return np.fromfile(self._folder / "ids_hash.npy", np.uint64, offset=_HEADER)

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Give everything its name, once all is committed and the hash of the last block, which may not be whole, written."""
        for name, shape in _shapes(self.done, self._k).items():
            self._files[name].close()
            with open(self._folder / f"{name}.npy", "r+b") as file:
                file.write(_header(_DTYPES[name], shape))
                file.flush()
                os.fsync(file.fileno())
        sums = {f"{name}.npy": _sha256(self._folder / f"{name}.npy") for name in _DTYPES}
        self._write_json(_MANIFEST, {"format": FORMAT, **manifest, **asdict(self.done), "sha256": sums})
        for entry in os.scandir(self._folder):
            if entry.name != _MANIFEST and entry.name not in sums:
                os.unlink(entry.path)
        if self._out.is_dir():
            shutil.rmtree(self._out)
        os.replace(self._folder, self._out)

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        path = self._folder / name
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.new", path)


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} was {before.get(name)}, is {now[name]}" for name in now if before.get(name) != now[name])


def _header(dtype: type[np.generic], shape: tuple[int, ...]) -> bytes:
    """The header of NumPy's format 1.0 (numpy.lib.format), filled up with blanks."""
    text = repr({"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
    length = _HEADER - 10
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", length) + text.ljust(length - 1).encode() + b"\n"
