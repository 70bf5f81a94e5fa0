"""The native library in forked processes: loaded anew in each, from whatever is left to load it from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

import toedit
from toedit import _native


def in_child(work: Callable[[], None], seconds: int = 30) -> None:
    """Runs work in a forked process; fails if that raises, crashes or hangs."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(seconds)
            work()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def use() -> None:
    """Enters Go, with a goroutine switch and an error on the way back."""
    with pytest.raises(RuntimeError, match=r"no prior\.json"):
        _native.load().gobridge_OpenPrior("/nonexistent", "")


# Python 3.12 warns of every fork of a process with threads; the Go runtime has some.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def test_children_and_their_children_load_anew() -> None:
    use()
    parent = _native.load()

    def child(depth: int) -> None:
        use()
        assert _native.load() is not parent
        assert _native.load() is _native.load()
        if depth:
            in_child(lambda: child(depth - 1))

    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        in_child(lambda: child(3))
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert _native.load() is parent
    use()


def test_token_differs_in_every_process() -> None:
    token = _native.process_token()
    assert _native.process_token() == token

    def child(tokens: list[tuple[int, int]]) -> None:
        mine = _native.process_token()
        assert mine not in tokens
        if len(tokens) < 3:
            in_child(lambda: child([*tokens, mine]))

    in_child(lambda: child([token]))


def test_temporary_file_where_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    use()

    def refused(name: str, flags: int) -> int:
        raise PermissionError("memfd_create: refused")

    monkeypatch.setattr(os, "memfd_create", refused)

    def child() -> None:
        use()
        in_child(use)
        with open("/proc/self/maps") as maps:
            mine = [line for line in maps if f"toedit-{os.getpid()}-" in line]
        assert mine
        assert all("(deleted)" in line for line in mine)

    in_child(child)


def test_error_where_nothing_can_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    use()

    def refused(*args: object, **kwargs: object) -> int:
        raise PermissionError("refused")

    monkeypatch.setattr(os, "memfd_create", refused)
    monkeypatch.setattr(_native.tempfile, "mkstemp", refused)

    def child() -> None:
        with pytest.raises(toedit.MissingDependencyError, match=r"forked process: refused; refused.*spawn"):
            _native.load()

    in_child(child)


def test_file_replaced_after_loading(tmp_path: object) -> None:
    """A child of a process whose library was upgraded gets the one that the process has, also once a daemon has closed
    the descriptor, for as long as the file is there."""
    script = """
        import os, shutil, sys
        import toedit
        from toedit import _native

        library = os.path.join(sys.argv[1], "library.so")
        shutil.copy(_native._find(), library)
        _native._find = lambda: _native.Path(library)
        _native._warn_if_stale = lambda path: None
        _native.load()

        def in_child(work):
            pid = os.fork()
            if pid == 0:
                try:
                    work()
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                    os._exit(1)
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0

        def close_descriptor():
            os.dup2(0, _native._library.file.descriptor)
            _native.load().gobridge_Handles()

        def fails():
            os.dup2(0, _native._library.file.descriptor)
            try:
                _native.load()
            except toedit.MissingDependencyError as error:
                assert "was replaced" in str(error)
            else:
                raise AssertionError("loaded another library")

        in_child(close_descriptor)
        os.unlink(library)
        with open(library, "w") as file:
            file.write("another version")
        in_child(lambda: _native.load().gobridge_Handles())
        in_child(fails)
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), str(tmp_path)], check=True, timeout=60)
