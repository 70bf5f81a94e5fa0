"""Calls into the native library: Arrow structures by address, errors as toedit's exceptions, one native half a process.

Nothing native crosses a fork or a pickle. Objects that users hold (:class:`toedit.Prior`, :class:`toedit.Editor`) are
plain settings; what they opened natively belongs to the process that opened it.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa

from toedit import _native
from toedit._errors import translate

__all__ = ["ArrowIn", "ArrowOut", "PerProcess", "call"]

T = TypeVar("T")

# sizeof(struct ArrowArray) and sizeof(struct ArrowSchema) of the Arrow C data interface, in 8-byte words.
_ARRAY_WORDS, _SCHEMA_WORDS = 10, 9


def call(name: str, *args: Any) -> Any:
    """Call a function of package gobridge in this process's copy of the library."""
    function = getattr(_native.load(), "gobridge_" + name)
    try:
        return function(*args)
    except RuntimeError as error:
        raise translate(error) from None


class ArrowOut:
    """Room for a struct array that the native library fills, and its import."""

    __slots__ = ("_memory", "array", "schema")

    def __init__(self) -> None:
        self._memory = (ctypes.c_uint64 * (_ARRAY_WORDS + _SCHEMA_WORDS))()
        self.array = ctypes.addressof(self._memory)
        self.schema = self.array + 8 * _ARRAY_WORDS

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
        batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
        batch._export_to_c(self.array, self.schema)


_lock = threading.RLock()


def _new_lock() -> None:
    # Another thread may have held the lock when the process forked; in the child nobody would ever let go of it.
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_new_lock)


class PerProcess:
    """A native handle that is opened at its first use in each process, and closed with its owner.

    Args:
        owner: closes the handle when it is collected.
        open_: opens the handle.
    """

    def __init__(self, owner: object, open_: Callable[[], int]) -> None:
        self._open = open_
        self._owner = weakref.ref(owner)
        self._pid = 0
        self._handle = 0
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def get(self) -> int:
        """The handle in this process."""
        if self._pid == os.getpid():
            return self._handle
        with _lock:
            if self._pid != os.getpid():
                self._handle = self._open()
                owner = self._owner()
                if owner is not None:
                    self._finalizer = weakref.finalize(owner, _close, self._handle, os.getpid())
                    # At the end of the process the system takes everything back; closing would wait for running jobs.
                    self._finalizer.atexit = False
                self._pid = os.getpid()
            return self._handle

    def close(self) -> None:
        """Close the handle, if this process opened one."""
        with _lock:
            if self._pid == os.getpid() and self._finalizer is not None:
                self._pid = 0
                self._finalizer()


def _close(handle: int, pid: int) -> None:
    if pid == os.getpid():
        call("Close", handle)
