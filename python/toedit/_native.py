"""Loads the native library (the extension module ``toedit._gobridge``), anew in every forked process.

The extension holds a Go runtime, and a Go runtime does not survive fork(): its threads are gone, so the first goroutine
switch in a child hangs. A child therefore loads a second instance, from a private copy of the file: dlopen() returns the
instance it has for a path or file that it knows, so neither the path nor the file may have been seen by any ancestor.

gopy's generated Python module is not used: importing it changes the working directory, and its collector callback calls
into Go during Python's garbage collection, which hangs forked children.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import os
import sysconfig
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from toedit._errors import MissingDependencyError

__all__ = ["load", "process_token"]

_NAME = "toedit._gobridge"
_BUILD = "pip install -e ."


class _Library:
    """What one process knows about the library. A forked child inherits its parent's and replaces it."""

    def __init__(self, ancestor: _Library | None = None) -> None:
        self.lock = threading.RLock()
        self.pid = os.getpid()
        self.forks: int = ancestor.forks + 1 if ancestor else 0
        self.module: ModuleType | None = None
        # The library's file as the first process of this ancestry to load it found it: another may stand there by now.
        self.file: _OpenFile | None = ancestor.file if ancestor else None

    def load(self) -> ModuleType:
        with self.lock:
            if self.module is None:
                if self.file is None:
                    path = _find()
                    # Before the import: a child that is forked during it must know that this path is taken.
                    self.file = _OpenFile(path)
                    try:
                        self.module = _import(str(path))
                    except ImportError as error:
                        self.file = None
                        raise MissingDependencyError(f"the native library of toedit cannot be loaded: {error}") from error
                    _warn_if_stale(path)
                else:
                    self.module = _import_copy(self.file)
            return self.module


class _OpenFile:
    """A file kept open, and known again after a daemon has closed every descriptor and its number was given away."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._identity = self._identify(self.descriptor)

    @staticmethod
    def _identify(descriptor: int) -> tuple[int, int, int]:
        status = os.fstat(descriptor)
        return status.st_dev, status.st_ino, status.st_size

    def read(self) -> bytes:
        with contextlib.suppress(OSError):
            if self._identify(self.descriptor) == self._identity:
                return os.pread(self.descriptor, self._identity[2], 0)
        with open(self.path, "rb") as file:
            if self._identify(file.fileno()) == self._identity:
                return file.read()
        raise MissingDependencyError(
            f"{self.path} was replaced while this process ran and its descriptor was closed: toedit cannot be loaded in a "
            "forked process any more; start again."
        )


_library = _Library()


def _before_fork() -> None:
    # A fork waits for other threads that are loading: half a dlopen() is nothing to inherit.
    _library.lock.acquire()


def _after_fork_in_parent() -> None:
    # Not held where Ctrl-C ended the waiting.
    with contextlib.suppress(RuntimeError):
        _library.lock.release()


def _after_fork_in_child() -> None:
    global _library
    # Its lock is new as well: after a fork that Python was not told of, nobody may be here to let go of the old one.
    _library = _Library(_library)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def load() -> ModuleType:
    """The native library's functions, for this process. Safe in any thread; loads at the first call in each process.

    Raises:
        MissingDependencyError: the extension was not built for this interpreter.
    """
    library = _library
    if library.pid != os.getpid():
        # Forked by other than os.fork(): C code that does not tell Python.
        _after_fork_in_child()
        library = _library
    return library.module or library.load()


def process_token() -> tuple[int, int]:
    """A value that is the same throughout a process and another in every process forked from it, also where the system
    hands out an ancestor's process id again. What was opened under one token is not there under another."""
    return os.getpid(), _library.forks


def _find() -> Path:
    path = Path(__file__).with_name("_gobridge" + str(sysconfig.get_config_var("EXT_SUFFIX")))
    if not path.exists():
        raise MissingDependencyError(f"{path.name}, the native library of toedit, is not built: run `{_BUILD}`.")
    return path


def _import(path: str) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(_NAME, path)
    spec = importlib.util.spec_from_file_location(_NAME, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _import_copy(file: _OpenFile) -> ModuleType:
    image = file.read()
    failures: list[Exception] = []
    for copy in (_in_memory, _in_temporary_file):
        try:
            with copy(image) as path:
                return _import(path)
        except (ImportError, OSError) as failure:
            failures.append(failure)
    raise MissingDependencyError(
        "the native library of toedit could not be loaded anew in a forked process: "
        f"{'; '.join(map(str, failures))}. Start worker processes with spawn or forkserver instead."
    )


@contextlib.contextmanager
def _in_memory(image: bytes) -> Iterator[str]:
    descriptor = os.memfd_create("toedit", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(image)
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    except BaseException:
        os.close(descriptor)
        raise
    # Stays open: were its number free for a descendant's copy, that could come to the same path as this one.


@contextlib.contextmanager
def _in_temporary_file(image: bytes) -> Iterator[str]:
    descriptor, path = tempfile.mkstemp(prefix=f"toedit-{os.getpid()}-", suffix=".so")
    try:
        with open(descriptor, "wb") as file:
            file.write(image)
        yield path
    finally:
        os.unlink(path)


def _warn_if_stale(path: Path) -> None:
    """In a checkout (an editable install), where the library stands among the sources it was built from."""
    root = path.parents[2]
    if not (root / "go.mod").exists() or not (root / "gobridge").is_dir():
        return
    sources = [root / "go.mod", root / "gobridge" / "symbols.map"]
    for folder in ("editor", "capi", "gobridge"):
        sources += (file for file in (root / folder).rglob("*") if file.suffix in (".go", ".c", ".h", ".s"))
    newest = max((file for file in sources if not file.name.endswith("_test.go")), key=lambda file: file.stat().st_mtime)
    if newest.stat().st_mtime > path.stat().st_mtime:
        warnings.warn(
            f"the native library of toedit is older than {newest.relative_to(root)}: run `{_BUILD}` in {root}.",
            RuntimeWarning,
            stacklevel=2,
        )
