"""What goes wrong in the middle of training: workers that are killed, Ctrl-C, a prior whose folder is replaced."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

import helpers
import toedit

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402

from toedit.torch import EditCollator, EditedDataset, EditingLoader  # noqa: E402

TESTS = Path(__file__).parent

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

POLICY = toedit.Policy(threshold=0.3, temperature=1.5)


def row_of(n: int, length: int = 256) -> list[int]:
    return [(n * length + i) % 4000 + 50 for i in range(length)]


# Workers that are killed


class Killer:
    """A dataset at whose row 40 the worker that reads it is killed, as the system does for want of memory."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, n: int) -> list[int]:
        if n == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        return row_of(n, 32)


@pytest.mark.parametrize("kind", ["collator", "dataset", "loader"])
def test_a_worker_that_is_killed(kind: str) -> None:
    """The loader's own error, no hang, and everything works on. In a process of its own: torch can speak of the dead worker
    again whenever another child of the process ends."""
    helpers.python(f"import sys; sys.path.insert(0, {str(TESTS)!r}); import test_faults; test_faults.lose_a_worker({kind!r})")


def lose_a_worker(kind: str) -> None:
    editor = toedit.Editor(toedit.Prior.builtin(), POLICY)
    # Lists, not tensors: of those torch fetches the memory from the worker, and meets a closed socket instead of its own error.
    options: dict[str, Any] = {"batch_size": 4, "num_workers": 2, "collate_fn": list}
    loader: Any
    if kind == "collator":
        loader = DataLoader(Killer(), **{**options, "collate_fn": EditCollator(editor, list)})
    elif kind == "dataset":
        loader = DataLoader(EditedDataset(Killer(), editor), **options)
    else:
        loader = EditingLoader(DataLoader(Killer(), **options), editor)
    batches = iter(loader)
    got = [next(batches)]
    with pytest.raises(RuntimeError, match=r"DataLoader worker .*(killed|exited unexpectedly)"):
        got += batches
    rows = [row_of(n, 32) for n in range(len(got) * 4)]
    assert [row for batch in got for row in batch] == editor(rows)["input_ids"]
    # As long as the pass is there, torch speaks of its dead worker whenever any other worker ends.
    del batches, loader
    gc.collect()
    again = DataLoader(rows, 4, num_workers=2, collate_fn=EditCollator(editor, list))
    assert [row for batch in again for row in batch] == editor(rows)["input_ids"]


# Ctrl-C


def interruptible(what: str, workers: int) -> tuple[Any, list[Any], toedit.Editor]:
    """A loader that scores or edits without a pause, or in the background of a step; its rows and its editor."""
    prior = toedit.Prior.builtin(threads=1)
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.1))
    rows = [row_of(n) for n in range(256)]
    if what == "editing":
        scores = prior.score(rows[:32], keep=editor.policy).to_pylist()
        data: list[Any] = [{"input_ids": rows[n % 32], "scores": scores[n % 32]} for n in range(256)]
    else:
        data = [{"input_ids": row} for row in rows]
    loader: Any
    if what == "step":
        loader = EditingLoader(DataLoader(data, 64, collate_fn=lambda rows: [row["input_ids"] for row in rows]), editor)
    else:
        collator = EditCollator(editor, lambda rows: [row["input_ids"] for row in rows])
        loader = DataLoader(data, 64, collate_fn=collator, num_workers=workers, persistent_workers=workers > 0)
    return loader, data, editor


def train(what: str, workers: int) -> None:
    """A training loop that says when it has begun, and when it was interrupted does one more epoch with all that it has."""
    loader, data, editor = interruptible(what, workers)
    prior = editor.prior
    try:
        print("begun", flush=True)
        while True:
            for _ in loader:
                if what == "step":
                    time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    del loader
    small = DataLoader(data[:8], 4, collate_fn=EditCollator(editor, len), num_workers=2)
    assert list(small) == [4, 4]
    assert len(prior.score([row["input_ids"] for row in data[:2]])) == 2
    prior.close()
    print("done", flush=True)


@pytest.mark.parametrize(("what", "workers"), [("scoring", 0), ("scoring", 2), ("editing", 0), ("editing", 2), ("step", 0)])
def test_ctrl_c(what: str, workers: int) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))}
    command = [sys.executable, "-W", "ignore", "-c", f"import test_faults; test_faults.train({what!r}, {workers})"]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, start_new_session=True
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            time.sleep(0.5)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to the workers too
            said, _ = process.communicate(timeout=60)
        finally:
            left_behind = True
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                left_behind = False
            process.wait()
        errors.seek(0)
        trouble = errors.read()
    assert said == "interrupted\ndone\n", trouble
    assert process.returncode == 0, trouble
    assert not left_behind, trouble


def test_an_interrupt_that_nobody_catches() -> None:
    """The thread of an EditingLoader ends with the interpreter, in the middle of scoring."""
    code = f"""
import os, signal, threading, toedit
from toedit.torch import EditingLoader
rows = [[i % 4000 for i in range(512)]] * 2000
prior = toedit.Prior.builtin(threads=1)
batches = iter(EditingLoader([rows[:1], rows, rows], toedit.Editor(prior, toedit.Policy({POLICY.threshold}))))
next(batches)
while prior.stats()["runs"] < 3:
    pass
os.kill(os.getpid(), signal.SIGINT)
next(batches)
"""
    done = helpers.python(code, check=False)
    assert done.returncode == -signal.SIGINT, done.stderr
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")


# A folder that is replaced


@pytest.mark.parametrize(("method", "stored"), [("fork", True), ("spawn", False)])
def test_a_prior_whose_folder_is_replaced(tmp_path: Path, method: str, stored: bool) -> None:
    """Workers that find another prior say so, and never edit with it; those that run go on."""
    folder = helpers.builtin_copy(tmp_path / "prior")
    prior = toedit.Prior(folder, threads=1)
    editor = toedit.Editor(prior, POLICY)
    rows = [row_of(n, 32) for n in range(8)]
    scores = prior.score(rows, keep=POLICY).to_pylist()
    data = [{"input_ids": row, **({"scores": s} if stored else {})} for row, s in zip(rows, scores, strict=True)]
    want = editor(rows)["input_ids"]
    collator = EditCollator(editor, ids_of)
    collator.set_epoch(0)
    options: dict[str, Any] = {"num_workers": 1, "collate_fn": collator, "multiprocessing_context": method}
    lasting = DataLoader(data, 4, persistent_workers=True, **options)
    assert [ids for batch in lasting for ids in batch] == want
    shutil.move(folder, tmp_path / "former")
    helpers.builtin_copy(folder, context_length=256)
    assert collator(data) == want
    assert [ids for batch in lasting for ids in batch] == want
    with pytest.raises(toedit.PriorError, match="another prior than when this run began"):
        list(DataLoader(data, 4, **options))


def ids_of(rows: list[dict[str, Any]]) -> list[list[int]]:
    return [row["input_ids"] for row in rows]


def test_a_pickle_knows_which_prior_it_is_of(tmp_path: Path) -> None:
    """The same bytes before and after its first use, and others of another prior in the same place: caches rely on it."""
    folder = helpers.builtin_copy(tmp_path / "prior")
    prior = toedit.Prior(folder)
    before = pickle.dumps(prior)
    assert prior.describe()["context_length"] == 512
    assert pickle.dumps(prior) == before
    shutil.rmtree(folder)
    helpers.builtin_copy(folder, context_length=256)
    assert pickle.dumps(toedit.Prior(folder)) != before
    with pytest.raises(toedit.PriorError, match="folder was replaced"):
        pickle.loads(before).describe()
    pickle.dumps(toedit.Prior(tmp_path / "nowhere"))


def test_no_interrupt_is_lost_between_calls() -> None:
    """Python drops an exception in a destructor, and with it an interrupt that is noticed there."""
    lose_no_interrupt = """
import random, signal, sys, test_faults, toedit
dropped = []
sys.unraisablehook = lambda what: dropped.append(what.object)
editor = toedit.Editor(toedit.Prior.builtin(), toedit.Policy(threshold=0.1))
rows = [test_faults.row_of(n, 16) for n in range(4)]
data = {"input_ids": rows, "scores": editor.prior.score(rows, keep=editor.policy)}
editor(data)  # pyarrow looks for pandas once, and drops what comes then where there is none
signal.signal(signal.SIGALRM, signal.default_int_handler)
for _ in range(1000):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005 + random.random() * 0.0005)
        for _ in range(10000):
            editor(data)
        raise SystemExit("an interrupt was lost")
    except KeyboardInterrupt:
        pass
sys.exit(f"dropped in {dropped[0]}" if dropped else 0)
"""
    helpers.python(f"import sys; sys.path.insert(0, {str(TESTS)!r})\n{lose_no_interrupt}")
