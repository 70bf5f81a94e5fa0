"""A thread that does jobs beside the one that asks for them, and that can be stopped in the middle of scoring."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from toedit import _native, prior

__all__ = ["Background"]

# Scoring is waited for in slices of milliseconds. A thread that is not done by then is in code that nobody can stop.
_STOP_SECONDS = 5.0


class _Stopped(BaseException):
    """Ends the scoring of a thread whose results nobody wants any more."""


class Background:
    """Does jobs one after the other in a thread of its own.

    The thread ends when nobody holds this object any more, and before the interpreter does: at once where a job scores,
    else with the job that it is at.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        stopped = threading.Event()
        # It holds neither this object nor what its jobs are for, or they would never be given up.
        thread = threading.Thread(target=_work, args=(self._jobs, stopped), name="toedit", daemon=True)
        thread.start()
        # Called at the end of the interpreter too, while daemons still run.
        self.stop = weakref.finalize(self, _stop, self._jobs, stopped, thread, _native.process_token())
        """End the thread. What it has not done is cancelled."""

    def submit(self, job: Callable[[], Any]) -> Future[Any]:
        """Do a job after those that were submitted before."""
        future: Future[Any] = Future()
        self._jobs.put((future, job))
        return future


_Job = tuple[Future[Any], Callable[[], Any]] | None


def _work(jobs: queue.SimpleQueue[_Job], stopped: threading.Event) -> None:
    def check() -> None:
        if stopped.is_set():
            raise _Stopped

    prior.waiting.check = check
    while (item := jobs.get()) is not None:
        future, job = item
        try:
            check()
            future.set_result(job())
        except _Stopped:
            future.cancel()
        except BaseException as error:
            future.set_exception(error)
        del item, future, job  # nothing is held while waiting


def _stop(jobs: queue.SimpleQueue[_Job], stopped: threading.Event, thread: threading.Thread, process: tuple[int, int]) -> None:
    if process != _native.process_token():
        return  # a forked child has a copy of everything but the thread
    stopped.set()
    jobs.put(None)
    if thread is not threading.current_thread():  # where a garbage collection comes here
        thread.join(_STOP_SECONDS)
