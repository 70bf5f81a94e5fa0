"""Forked processes edit and score, whatever their parent was doing.

Each test is a program of its own (:func:`program`), which forks on purpose: a hang ends in a failure that names the test,
never in a test run that stands still.
"""

from __future__ import annotations

import atexit
import faulthandler
import functools
import gc
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import toedit
from toedit import _bridge, _native

TESTS = Path(__file__).parent
PACKAGE = Path(toedit.__file__).parent

# A child that is not done by then hangs.
CHILD_SECONDS = 30


@functools.cache
def policy() -> toedit.Policy:
    """Made when it is asked for: making one loads the library, and some programs want that not done."""
    return toedit.Policy(threshold=0.2, exclude_original=True)


_programs: dict[str, Callable[[], None]] = {}
_generation = 0


# Programs and children


def program(seconds: float, needs: str | None = None) -> Callable[[Callable[[], None]], Callable[..., None]]:
    """A test whose body runs in a process of its own, under a deadline."""

    def decorate(body: Callable[[], None]) -> Callable[..., None]:
        _programs[body.__name__] = body

        @functools.wraps(body)
        def test() -> None:
            if needs:
                pytest.importorskip(needs)
            run_program(body.__name__, seconds, {})

        return pytest.mark.timeout(seconds + 30)(test)

    return decorate


def run_program(name: str, seconds: float, environment: dict[str, str], path: str = "") -> None:
    """Run a program; at its deadline kill it and all its children."""
    given = dict(os.environ)
    given.update(environment, PYTHONPATH=os.pathsep.join(filter(None, (path, str(TESTS), given.get("PYTHONPATH")))))
    command = [sys.executable, "-W", "ignore", "-c", f"import test_fork; test_fork.main({name!r})"]
    # A file: the end of a pipe would come only when the last child has let go of it.
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=given, stdout=output, stderr=output, start_new_session=True)
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        left_behind = True
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            left_behind = False
        process.wait()
        output.seek(0)
        said = output.read()
    assert code is not None, f"not done after {seconds} s:\n{said}"
    assert code == 0, said
    assert not left_behind, said


def main(name: str) -> None:
    faulthandler.register(signal.SIGUSR1)
    _programs[name]()


def fork(child: Callable[[], object]) -> int:
    """Run a function in a forked child."""
    global _generation
    pid = os.fork()
    if pid == 0:
        code = 1
        _generation += 1
        try:
            child()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def join(pid: int) -> None:
    """Wait for a child; one that hangs or fails is an error."""
    # Of a child that waits for its own child, the latter is the one to blame.
    deadline = time.monotonic() + CHILD_SECONDS - 5 * _generation
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, f"the child ended with {os.waitstatus_to_exitcode(status)}"
            return
        time.sleep(0.002)
    os.kill(pid, signal.SIGUSR1)  # says where it is
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child hung")


def in_child(child: Callable[[], object]) -> None:
    join(fork(child))


class Parent:
    """A process that has opened everything, scored and edited, and holds what came of it."""

    def __init__(self) -> None:
        chance = random.Random(7)
        self.rows = [[chance.randrange(1, 4096) for _ in range(length)] for length in (60, 1, 33, 0, 90)]
        self.prior = toedit.Prior.builtin(threads=2)
        self.editor = toedit.Editor(self.prior, policy(), seed=1)
        self.scores = self.prior.score(self.rows, keep=[(0.0, 1.0)], k=policy().k)
        # Random ids are never likely, so their scores are made so.
        self.policy = toedit.Policy(threshold=1e-6, exclude_original=True)
        self.editor = toedit.Editor(self.prior, self.policy, seed=1)
        self.edited = self.editor(self.batch())
        assert self.edited.changes > 10

    def batch(self) -> dict[str, Any]:
        return {"input_ids": self.rows, "scores": self.scores}

    def edits(self) -> None:
        """From stored scores, with the parent's editor."""
        again = self.editor(self.batch())
        assert again["input_ids"] == self.edited["input_ids"]
        # Column by column: RecordBatch.equals locks a mutex of pyarrow's without the GIL, which a fork may catch.
        assert all(a.equals(b) for a, b in zip(again.log.columns, self.edited.log.columns, strict=True))

    def scores_anew(self) -> None:
        assert self.prior.score(self.rows, keep=[(0.0, 1.0)], k=policy().k).equals(self.scores)

    def works(self) -> None:
        self.edits()
        self.scores_anew()
        fresh = self.editor({"input_ids": self.rows})
        assert fresh["input_ids"] == self.edited["input_ids"]


@contextmanager
def threads(*work: Callable[[], object]) -> Iterator[list[int]]:
    """Threads that do their work over and over; what they raise is raised here."""
    stop = threading.Event()
    rounds = [0] * len(work)
    errors: list[BaseException] = []

    def loop(n: int) -> None:
        try:
            while not stop.is_set():
                work[n]()
                rounds[n] += 1
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=loop, args=(n,)) for n in range(len(work))]
    for thread in running:
        thread.start()
    try:
        yield rounds
    finally:
        stop.set()
        for thread in running:
            thread.join()
    assert not errors, errors
    assert all(rounds)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def children() -> list[int]:
    found: list[int] = []
    for task in os.listdir("/proc/self/task"):
        with suppress(FileNotFoundError):  # the thread has ended
            found += map(int, Path(f"/proc/self/task/{task}/children").read_text().split())
    return found


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# What a child can do


@program(60)
def test_a_child_edits_and_scores() -> None:
    parent = Parent()
    for work in (parent.edits, parent.scores_anew, parent.works):
        in_child(work)
    parent.works()


@program(60)
def test_the_parent_has_only_imported_toedit() -> None:
    assert _native._library.module is None
    in_child(lambda: Parent().works())
    assert _native._library.module is None
    in_child(lambda: Parent().works())


@program(60)
def test_the_parent_has_edited_and_the_child_scores_first() -> None:
    """ONNX Runtime is opened by the children alone."""
    prior = toedit.Prior.builtin()
    prior.describe()
    for _ in range(3):
        in_child(lambda: Parent().works())
    assert "onnxruntime" not in Path("/proc/self/maps").read_text()


@program(60)
def test_forks_of_forks() -> None:
    parent = Parent()

    def generation(left: int) -> None:
        before = _native.process_token()
        parent.works()
        if left:
            in_child(lambda: generation(left - 1))
            parent.works()
        assert _native.process_token() == before == (os.getpid(), 3 - left)

    generation(3)


@program(60)
def test_a_child_forks_before_it_does_anything() -> None:
    parent = Parent()
    in_child(lambda: in_child(lambda: in_child(parent.works)))


@program(60)
def test_a_child_drops_and_collects_what_it_inherited() -> None:
    parent = Parent()
    pieces = parent.prior.score(parent.rows, keep=policy())
    held: dict[str, Any] = {
        "scores": parent.scores,
        "edited": parent.edited,
        "log": parent.edited.log,
        "arrow": parent.editor(pa.table(parent.batch())),
        "numpy": parent.editor({"input_ids": np.array([row[:1] * 8 for row in parent.rows if row])}),
        "slice": pieces.slice(1, 2),
        "field": pieces.field("logp"),
        "capsules": pieces.__arrow_c_array__(),
        "stream": pa.table({"scores": pieces}).__arrow_c_stream__(),
        "view": parent.scores.field("topk_ids").flatten().to_numpy(),
        "scalar": pieces[0],
    }
    held["loop"] = held
    wanted = [parent.edited["input_ids"], parent.scores.to_pylist()]
    del pieces

    def child() -> None:
        # Reads, copies and drops, before the library is there and after.
        for _ in range(2):
            assert held["scores"].to_pylist() == wanted[1]
            copies = [
                pa.concat_arrays([held["scores"], held["slice"]]),
                pc.take(held["scores"], pa.array([0, 2])),
                pickle.loads(pickle.dumps(held["log"])),
                held["arrow"].batch.slice(1).combine_chunks(),
            ]
            assert len(copies[0]) == len(wanted[1]) + 2
            del copies
            gc.collect()
            parent.works()
        parent.__dict__.clear()
        held.clear()
        gc.collect()
        anew = Parent()
        assert anew.edited["input_ids"] == wanted[0]
        del anew
        gc.collect()
        assert _bridge.call("Exports") == _bridge.call("AllocatedBytes") == _bridge.call("Handles") == 0

    def child_that_only_drops() -> None:
        parent.__dict__.clear()
        held.clear()
        gc.collect()

    for _ in range(5):
        in_child(child_that_only_drops)
        in_child(child)
    parent.works()
    parent.__dict__.clear()
    held.clear()
    gc.collect()
    assert _bridge.call("Exports") == _bridge.call("AllocatedBytes") == _bridge.call("Handles") == 0


@program(60)
def test_a_child_closes_what_it_inherited() -> None:
    parent = Parent()

    def child(opened: bool) -> None:
        if opened:
            parent.works()
        parent.prior.close()
        parent.prior.close()
        with pytest.raises(toedit.ClosedError, match="is closed"):
            parent.prior.score(parent.rows)
        parent.prior = toedit.Prior.builtin()
        parent.editor = toedit.Editor(parent.prior, parent.policy, seed=1)
        parent.works()

    in_child(lambda: child(False))
    in_child(lambda: child(True))
    parent.works()


@program(60)
def test_handles_of_the_parent_are_refused() -> None:
    parent = Parent()
    handles = {
        "prior": parent.prior.handle,
        "scorer": parent.prior._scorer.get(),
        "editor": parent.editor._native.get(),
    }
    here = os.getpid()

    def child(opened: bool) -> None:
        if opened:
            parent.works()
        for handle in handles.values():
            for name, arguments in (
                ("DescribePrior", (handle,)),
                ("OpenEditor", (handle, policy().to_json())),
                ("OpenScorer", (handle, "libonnxruntime.so", '{"threads": 1}')),
                ("WaitScore", (handle, 1)),
                ("CancelScore", (handle,)),
                ("Close", (handle,)),
            ):
                with pytest.raises(toedit.ClosedError, match=f"belongs to process {here} and this is process {os.getpid()}"):
                    _bridge.call(name, *arguments)
        parent.works()

    in_child(lambda: child(False))
    in_child(lambda: child(True))
    parent.works()


# How a child ends


@pytest.mark.parametrize("work", ["nothing", "edits", "scores_anew", "works"])
@pytest.mark.parametrize("parent_scored", [False, True], ids=["unscored", "scored"])
def test_a_child_that_ends_as_programs_do(work: str, parent_scored: bool) -> None:
    run_program("ends_as_programs_do", 60, {"WORK": work, "SCORED": "yes" if parent_scored else ""})


def ends_as_programs_do() -> None:
    """With atexit functions, finalizers and the destructors of C++ libraries, ONNX Runtime's among them."""
    work = os.environ["WORK"]
    parent = Parent() if os.environ["SCORED"] else None
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        mine = parent or (Parent() if work != "nothing" else None)
        if mine is not None and work != "nothing":
            getattr(mine, work)()
        atexit.register(os.write, write, b"at exit")
        sys.exit(0)
    join(pid)
    assert os.read(read, 100) == b"at exit"
    if parent is not None:
        parent.works()


_programs["ends_as_programs_do"] = ends_as_programs_do


# What the parent is doing


@program(150)
def test_fifty_forks_while_two_threads_score() -> None:
    parent = Parent()
    with threads(parent.scores_anew, parent.scores_anew):
        for n in range(50):
            if n == 5:  # by now everything has been used once
                before = descriptors(), children(), resident_mib()
            in_child(parent.works if n % 5 == 0 else parent.edits)
        after = descriptors(), children(), resident_mib()
    assert after[:2] == before[:2] == (before[0], [])
    assert after[2] < before[2] + 32
    parent.works()


@program(150)
def test_fifty_forks_while_two_threads_edit() -> None:
    parent = Parent()
    parent.edits()  # reads the tokenizer for the log, once: a file that is open for a moment
    with threads(parent.edits, parent.edits):
        before = descriptors(), children()
        for n in range(50):
            in_child(parent.works if n % 10 == 0 else parent.edits)
        assert (descriptors(), children()) == before
    parent.works()


@program(200)
def test_fifty_forks_while_two_threads_open_and_close() -> None:
    """ONNX Runtime's global mutexes are locked while a session is created, and a child shares them."""
    parent = Parent()

    def opens() -> None:
        with toedit.Prior.builtin(threads=1) as prior:
            prior.score([[1, 2, 3]])

    with threads(opens, opens):
        for _ in range(50):
            in_child(parent.scores_anew)
    parent.works()


@program(60)
def test_a_fork_waits_for_what_other_threads_open() -> None:
    class Owner:
        pass

    owner, opening, opened = Owner(), threading.Event(), threading.Event()

    def slow() -> int:
        opening.set()
        time.sleep(0.5)
        opened.set()
        return 1

    def child() -> None:
        assert opened.is_set()
        assert handle.get() == 1  # opened anew: nobody holds the lock

    handle = _bridge.PerProcess(owner, slow)
    handle._finalizer = None
    thread = threading.Thread(target=handle.get)
    thread.start()
    opening.wait()
    in_child(child)
    thread.join()


@program(100)
def test_forks_while_the_library_is_loaded_for_the_first_time() -> None:
    def fresh(delay: float) -> None:
        assert _native._library.module is None
        with threads(lambda: Parent().works()):
            time.sleep(delay)
            in_child(lambda: Parent().works())

    for n in range(8):
        in_child(functools.partial(fresh, n * 0.004))


@program(60)
def test_a_thread_forks_and_its_child_has_threads() -> None:
    parent = Parent()

    def child() -> None:
        with threads(parent.works, parent.edits):
            parent.works()
            in_child(parent.works)

    def forks() -> None:
        parent.edits()
        in_child(child)

    with threads(forks):
        time.sleep(2)
    parent.works()


@program(60)
def test_other_programs_start_while_two_threads_score() -> None:
    parent = Parent()
    with threads(parent.scores_anew, parent.scores_anew):
        for _ in range(10):
            assert subprocess.run(["true"], timeout=CHILD_SECONDS).returncode == 0


# multiprocessing and PyTorch


_parent: Parent | None = None


def work_in_pool(n: int) -> tuple[int, pa.StructArray, list[list[int]]]:
    assert _parent is not None
    _parent.works()
    return n, _parent.prior.score(_parent.rows, keep=[(0.0, 1.0)], k=8), _parent.editor(_parent.batch())["input_ids"]


@program(90)
def test_a_pool_of_forked_processes() -> None:
    global _parent
    _parent = Parent()
    # Programs import this file as test_fork, and so must what is sent to the pool.
    sys.modules["test_fork"]._parent = _parent  # type: ignore[attr-defined]
    with threads(_parent.scores_anew), multiprocessing.get_context("fork").Pool(3) as pool:
        results = pool.map_async(work_in_pool, range(12)).get(CHILD_SECONDS)
    for n, (number, scores, ids) in enumerate(results):
        assert number == n
        assert scores.equals(_parent.scores)
        assert ids == _parent.edited["input_ids"]


@program(120, needs="torch")
def test_a_data_loader_while_two_threads_score() -> None:
    import torch

    from toedit.torch import EditCollator

    parent = Parent()
    stored = [{"input_ids": row, "scores": score} for row, score in zip(parent.rows, parent.scores.to_pylist(), strict=True)]
    with threads(parent.scores_anew, parent.scores_anew):
        data: Any
        for data in (stored, parent.rows):
            collator = EditCollator(parent.editor, list)
            loader: Any = torch.utils.data.DataLoader(
                data * 6, batch_size=len(data), collate_fn=collator, num_workers=3, multiprocessing_context="fork", timeout=60
            )
            for epoch in range(2):
                collator.set_epoch(epoch)
                expected = parent.editor(parent.batch(), epoch)["input_ids"]
                for batch in loader:
                    assert [row["input_ids"] if data is stored else row for row in batch] == expected
            assert collator.stats().rows == 2 * 6 * len(data)


# The library's file


@pytest.mark.parametrize("how", ["replaced", "deleted", "closed", "closed and replaced"])
def test_the_file_of_the_library_changes(how: str, tmp_path: Path) -> None:
    """An upgrade under a running program: its children load what their parent has loaded."""
    shutil.copytree(PACKAGE, tmp_path / "toedit", ignore=shutil.ignore_patterns("__pycache__"))
    run_program("file_changes", 60, {"HOW": how}, path=str(tmp_path))


def file_changes() -> None:
    how = os.environ["HOW"]
    parent = Parent()
    library = _native._library.file
    assert library is not None
    assert library.path.parent == PACKAGE
    if "replaced" in how:
        another = library.path.with_suffix(".new")
        another.write_bytes(b"another version")
        another.replace(library.path)
    if how == "deleted":
        library.path.unlink()

    def child() -> None:
        if "closed" in how:
            os.closerange(3, 256)  # as daemons do
            for _ in range(100):
                os.open("/dev/null", os.O_RDONLY)  # the library's number is another file's now
        if how == "closed and replaced":
            with pytest.raises(toedit.MissingDependencyError, match="was replaced while this process ran"):
                parent.edits()
            return
        parent.works()
        in_child(parent.works)

    for _ in range(2):
        in_child(child)
    parent.works()


_programs["file_changes"] = file_changes


@program(60)
def test_without_memfd_a_temporary_file_serves() -> None:
    parent = Parent()

    def refuse(name: str, flags: int = 0) -> int:
        raise PermissionError(1, "memfd_create is not permitted")

    def nested() -> None:
        parent.works()
        in_child(parent.works)

    os.memfd_create = refuse
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        in_child(nested)
        with threads(parent.scores_anew):
            for _ in range(5):
                in_child(parent.works)
        assert os.listdir(folder) == []

        def refused() -> None:
            tempfile.tempdir = folder + "/nowhere"
            with pytest.raises(toedit.MissingDependencyError, match=r"memfd_create is not permitted.*nowhere.*spawn"):
                parent.edits()

        in_child(refused)


# ONNX Runtime


def test_onnxruntime_reports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it reports to its makers it first writes below the user's cache folder. (The thread that does so is also what
    children wait for in vain when they exit, see above.)"""
    home = {name: str(tmp_path) for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "TMPDIR")}
    # It stays silent where it finds itself tested, and where the user says so.
    for name in (
        "CI", "GITHUB_ACTIONS", "GITLAB_CI", "TF_BUILD", "JENKINS_URL", "CIRCLECI", "TRAVIS", "BUILDKITE", "APPVEYOR",
        "TEAMCITY_VERSION", "CODEBUILD_BUILD_ID", "ORT_RUNNING_UNIT_TESTS", "ORT_DISABLE_TELEMETRY",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    run_program("scores", 60, home)
    assert list(tmp_path.rglob("*")) == []


def scores() -> None:
    Parent().works()
    time.sleep(0.5)


_programs["scores"] = scores
