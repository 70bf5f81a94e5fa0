"""Calls into the native library: Arrow structures by address, errors as toedit's exceptions, one native half a process.

Nothing native crosses a fork or a pickle. Objects that users hold (:class:`toedit.Prior`, :class:`toedit.Editor`) are
plain settings; what they opened natively belongs to the process that opened it.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa

from toedit import _native
from toedit._errors import InputError, InternalError, translate

__all__ = ["ArrowIn", "ArrowOut", "PerProcess", "call", "no_fork"]

T = TypeVar("T")

# sizeof(struct ArrowArray) and sizeof(struct ArrowSchema) of the Arrow C data interface, in 8-byte words.
_ARRAY_WORDS, _SCHEMA_WORDS = 10, 9
# The place of an ArrowArray's release callback, null once it is released.
_ARRAY_RELEASE = 8


def call(name: str, *args: Any) -> Any:
    """Call a function of package gobridge in this process's copy of the library."""
    function = getattr(_native.load(), "gobridge_" + name)
    if _left:
        _release_left()
    try:
        return function(*args)
    except RuntimeError as error:
        raise translate(error) from None


# The memory of every ArrowOut, with the process that it is of; and those ArrowOuts that are gone, until the next call.
#
# Not a __del__: Python drops an exception there, and so a Ctrl-C that it notices on the way in. A callback that is no Python
# code notices none.
_rooms: dict[weakref.ref[ArrowOut], tuple[ctypes.Array[ctypes.c_uint64], tuple[int, int]]] = {}
_left: collections.deque[weakref.ref[ArrowOut]] = collections.deque()


def _release_left() -> None:
    """Release what nobody imported of those that are gone. An importer marks the structures released."""
    with contextlib.suppress(IndexError):  # another thread was faster
        while _left:
            memory, process = _rooms.pop(_left.popleft())
            # A forked child has its own library, and leaves its parent's alone.
            if memory[_ARRAY_RELEASE] and process == _native.process_token():
                array = ctypes.addressof(memory)
                # A library that has failed releases nothing more.
                with contextlib.suppress(RuntimeError):
                    _native.load().gobridge_ReleaseArrow(array, array + 8 * _ARRAY_WORDS)


class ArrowOut:
    """Room for a struct array that the native library fills, and its import. What nobody imports is released, with the next
    call."""

    __slots__ = ("__weakref__", "array", "schema")

    def __init__(self) -> None:
        memory = (ctypes.c_uint64 * (_ARRAY_WORDS + _SCHEMA_WORDS))()
        self.array = ctypes.addressof(memory)
        self.schema = self.array + 8 * _ARRAY_WORDS
        _rooms[weakref.ref(self, _left.append)] = memory, _native.process_token()

    def take(self) -> pa.RecordBatch:
        """The columns, without a copy."""
        return pa.RecordBatch._import_from_c(self.array, self.schema)

    def take_array(self) -> pa.StructArray:
        """The same as one struct column."""
        return pa.Array._import_from_c(self.array, self.schema)


class ArrowIn(ArrowOut):
    """Columns on their way to the native library, which releases them."""

    __slots__ = ()

    def __init__(self, columns: dict[str, pa.Array]) -> None:
        super().__init__()
        (first, ids), *others = columns.items()
        for name, column in others:
            if len(column) != len(ids):
                raise InputError(f"column {name} has {len(column)} rows, but {first} has {len(ids)}")
        with no_fork:
            batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
            batch._export_to_c(self.array, self.schema)


# Two locks that a fork holds, so that it waits for what other threads do under them.
#
# Opening: a child shares its parent's mapping of ONNX Runtime, whose global mutexes are locked while a session is created
# (a run and a close lock none), and would wait for ever for one that was locked at the time.
_opening = threading.RLock()
# Whatever else a fork must not catch in the middle: an import (a child would wait for ever for a module that another thread was
# importing), and the making and handing out of record batches (pyarrow reads their columns without the GIL, under a mutex of
# libstdc++'s for the whole process).
no_fork = threading.RLock()


def _before_fork() -> None:
    _opening.acquire()
    no_fork.acquire()


def _after_fork_in_parent() -> None:
    for lock in (no_fork, _opening):
        # Not held where Ctrl-C ended the waiting.
        with contextlib.suppress(RuntimeError):
            lock.release()


def _after_fork_in_child() -> None:
    global _opening, no_fork
    _opening, no_fork = threading.RLock(), threading.RLock()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


class PerProcess:
    """A native handle that is opened at its first use in each process, and closed with its owner.

    Args:
        owner: closes the handle when it is collected.
        open_: opens the handle.
    """

    def __init__(self, owner: object, open_: Callable[[], int]) -> None:
        self._open = open_
        self._owner = weakref.ref(owner)
        self._process: tuple[int, int] | None = None  # the one that the handle is of
        self._handle = 0
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def get(self) -> int:
        """The handle in this process."""
        process = _native.process_token()
        if self._process == process:
            return self._handle
        with _opening:
            if self._process != process:
                self._handle = self._open()
                owner = self._owner()
                if owner is not None:
                    self._finalizer = weakref.finalize(owner, _close, self._handle, process)
                    # At the end of the process the system takes everything back; closing would wait for running jobs.
                    self._finalizer.atexit = False
                self._process = process
            return self._handle

    def close(self) -> None:
        """Close the handle, if this process opened one."""
        with _opening:
            finalizer, self._finalizer = self._finalizer, None
            self._process = None
        # Not under the lock: closing waits for running jobs, and nobody who opens or forks should.
        if finalizer is not None:
            finalizer()


def _close(handle: int, process: tuple[int, int]) -> None:
    if process == _native.process_token():
        # A library that has failed closes nothing more; inside a collection nobody could catch the exception.
        with contextlib.suppress(InternalError):
            call("Close", handle)
