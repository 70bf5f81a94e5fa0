"""A prior is a picklable setting that scores, says what it is, and stops when it is told to."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import helpers
import toedit
from toedit import _bridge

Rows = list[list[int]]


def test_describe(prior: toedit.Prior) -> None:
    about = prior.describe()
    check = about.pop("check")
    assert 0 < check["mean_abs_dlogp"] < check["max_abs_dlogp"] < 1
    assert about == {
        "name": "toedit-builtin",
        "fingerprint": prior.fingerprint,
        "dtype": "int8",
        "device": "cpu",
        "context_length": 512,
        "vocab_size": 4096,
        "tokenizer_size": 4096,
        "special_ids": [0],
        "k": 64,
        "bos": {"rule": "always", "id": 0},
        "windows": "rolling",
        "min_context": 256,
        "cross_documents": False,
    }
    assert len(prior.fingerprint) == 32
    assert int(prior.fingerprint, 16) > 0
    about["k"] = 5
    assert prior.describe()["k"] == 64
    assert prior.tokenizer_file.is_file()


def test_the_fingerprint_is_of_what_decides(prior: toedit.Prior, fp32_prior: toedit.Prior, tmp_path: Path) -> None:
    assert prior.fingerprint != fp32_prior.fingerprint
    one = helpers.editing_prior(tmp_path / "one")
    assert one.fingerprint == helpers.editing_prior(tmp_path / "two").fingerprint  # not of where it lies
    assert one.fingerprint != helpers.editing_prior(tmp_path / "three", tokenizer_size=500).fingerprint
    assert one.fingerprint != helpers.editing_prior(tmp_path / "four", special_ids=(0, 1)).fingerprint


def test_pickling(prior: toedit.Prior, rows: Rows) -> None:
    copy = pickle.loads(pickle.dumps(prior))
    assert repr(copy) == repr(prior) == f"Prior({str(prior.path)!r})"
    assert copy.threads == prior.threads == 2
    assert copy.fingerprint == prior.fingerprint
    assert copy.score(rows[:2]).equals(prior.score(rows[:2]))
    assert len(pickle.dumps(prior)) < 500
    closed = toedit.Prior.builtin()
    closed.close()
    with pytest.raises(toedit.ClosedError):
        pickle.loads(pickle.dumps(closed)).describe()


def test_a_prior_opens_at_its_first_use(tmp_path: Path) -> None:
    before = helpers.usage()
    prior = toedit.Prior(tmp_path / "is made later")
    editor = toedit.Editor(prior)
    assert helpers.usage() == before
    helpers.editing_prior(tmp_path / "is made later")
    assert prior.describe()["vocab_size"] == 512
    assert helpers.usage()[2] == before[2] + 1
    del editor


def test_handles_go_with_their_owners() -> None:
    gc.collect()  # what other tests left behind does not go while this one counts
    before = _bridge.call("Handles")
    prior = toedit.Prior.builtin(threads=1)
    prior.score([[1]])
    assert _bridge.call("Handles") == before + 2  # the prior and its scorer
    editor = toedit.Editor(prior)
    editor([[1]])
    assert _bridge.call("Handles") == before + 3
    del prior, editor
    gc.collect()
    assert _bridge.call("Handles") == before


def test_close(rows: Rows) -> None:
    before = _bridge.call("Handles")
    prior = toedit.Prior.builtin(threads=1)
    scores = prior.score(rows[:1])
    editor = toedit.Editor(prior)
    edited = editor({"input_ids": rows[:1], "scores": scores})
    prior.close()
    prior.close()
    assert _bridge.call("Handles") == before + 1  # the editor's own
    for use in (
        lambda: prior.score(rows[:1]),
        lambda: editor(rows[:1]),
        lambda: toedit.Editor(prior)({"input_ids": rows[:1], "scores": scores}),
    ):
        with pytest.raises(toedit.ClosedError, match=r"Prior\(.*builtin_prior'\) is closed; open it again"):
            use()
    # Editing from stored scores does not need the prior any more.
    assert editor({"input_ids": rows[:1], "scores": scores}).batch["input_ids"] == edited["input_ids"]
    with toedit.Prior.builtin(threads=1) as second:
        assert second.score(rows[:1]).equals(scores)
    never_used = toedit.Prior.builtin()
    never_used.close()
    with pytest.raises(toedit.ClosedError):
        never_used.describe()


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_out_of_range(threads: object) -> None:
    with pytest.raises(toedit.InputError, match=f"threads is {threads!r}; it must be an integer of at least 1, or None"):
        toedit.Prior("anywhere", threads=threads)  # type: ignore[arg-type]


def test_progress(prior: toedit.Prior, rows: Rows) -> None:
    seen: list[tuple[int, int]] = []
    prior.score(rows[:30], progress=lambda done, total: seen.append((done, total)))
    tokens = sum(map(len, rows[:30]))
    assert seen[-1] == (tokens, tokens)
    assert {total for _, total in seen} == {tokens}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_an_exception_from_progress_ends_the_job(prior: toedit.Prior, rows: Rows) -> None:
    def stop(done: int, total: int) -> None:
        raise RuntimeError("enough")

    before = helpers.usage()
    with pytest.raises(RuntimeError, match="enough"):
        prior.score(rows, progress=stop)
    assert helpers.usage() == before
    assert len(prior.score(rows[:1])) == 1


# Several threads, and Ctrl-C


def test_threads_may_share_a_prior_and_an_editor(prior: toedit.Prior, rows: Rows, scores: pa.StructArray) -> None:
    some = rows[:6]
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.3, k=16, temperature=2.0), seed=3)
    batch = {"input_ids": rows, "scores": scores}
    expected_scores, expected = prior.score(some), editor(batch)["input_ids"]
    failures: list[object] = []

    def work(n: int) -> None:
        try:
            for _ in range(3):
                same = prior.score(some).equals(expected_scores) and editor.edit(batch)["input_ids"] == expected
                if not same:
                    failures.append(n)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_scoring_lets_other_python_threads_run(prior: toedit.Prior, rows: Rows) -> None:
    """The interpreter's lock is not held: another thread goes on counting all the while."""
    ticks, done = 0, threading.Event()

    def count() -> None:
        nonlocal ticks
        while not done.is_set():
            time.sleep(0.001)
            ticks += 1

    thread = threading.Thread(target=count)
    thread.start()
    began = time.monotonic()
    try:
        prior.score(rows[:25])
    finally:
        took = time.monotonic() - began
        done.set()
        thread.join()
    assert ticks > 20 * took


def test_a_prior_closed_while_it_scores_waits(rows: Rows) -> None:
    prior = toedit.Prior.builtin(threads=1)
    expected = prior.score(rows[:25])
    results: list[pa.StructArray] = []
    thread = threading.Thread(target=lambda: results.append(prior.score(rows[:25])))
    thread.start()
    time.sleep(0.05)
    prior.close()
    thread.join()
    # Closed before it began or after it ended: never in the middle.
    assert all(scores.equals(expected) for scores in results)


INTERRUPTED = """
import signal, sys, threading, time
import toedit

prior = toedit.Prior.builtin(threads=2)
small = [list(range(1, 60))]
before = prior.score(small)
large = [list(range(1 + n, 501 + n)) for n in range(600)]  # half a minute and more
others = []

def score_in_thread():
    others.append(prior.score([list(range(1, 300))] * 4))

for attempt in range(3):
    thread = threading.Thread(target=score_in_thread)
    thread.start()
    print("scoring", flush=True)
    try:
        prior.score(large)
    except KeyboardInterrupt:
        print(time.clock_gettime(time.CLOCK_MONOTONIC), flush=True)
    else:
        raise SystemExit("was not interrupted")
    thread.join()
    assert prior.score(small).equals(before)
assert len(others) == 3 and all(s.equals(others[0]) for s in others)
assert others[0].slice(0, 1).equals(prior.score([list(range(1, 300))]))
from toedit import _bridge
del others, before
assert _bridge.call("AllocatedBytes") == 0
print("done", flush=True)
"""


@pytest.fixture
def interrupted() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def test_ctrl_c_stops_scoring_at_once(interrupted: subprocess.Popen[str]) -> None:
    """Within 300 ms of the signal, in the middle of a run, while another thread scores with the same prior; both go on
    afterwards as if nothing had been."""
    assert interrupted.stdout is not None
    assert interrupted.stderr is not None
    waits = []
    for pause in (0.3, 0.55, 0.8):
        assert interrupted.stdout.readline() == "scoring\n", interrupted.stderr.read()
        time.sleep(pause)
        sent = time.clock_gettime(time.CLOCK_MONOTONIC)
        os.kill(interrupted.pid, signal.SIGINT)
        waits.append(float(interrupted.stdout.readline()) - sent)
    assert interrupted.stdout.readline() == "done\n", interrupted.stderr.read()
    # Other programs may hold the cores for a while, but not three times.
    assert min(waits) < 0.3, waits
    assert sorted(waits)[1] < 0.6, waits


# The warning about another tokenizer's ids


def test_ids_of_another_tokenizer_are_noticed_once(rows: Rows) -> None:
    """Shuffled ids: each is known, and no text is made of them."""
    swap = np.random.default_rng(3).permutation(4096)
    foreign = [[int(swap[token]) for token in row] for row in rows if 0 < len(row) <= 400]
    tokens = sum(map(len, foreign))
    assert 5000 < tokens < 10_000
    prior = toedit.Prior.builtin(threads=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prior.score(foreign)
    with pytest.warns(toedit.TokenizerWarning, match="worse than a uniform guess among 4096 ids") as caught:
        toedit.Editor(prior)(foreign[: len(foreign) // 2])  # by whichever way it is scored
    assert "another tokenizer" in str(caught[0].message)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prior.score(foreign[:5])


def test_real_text_is_not_suspected(rows: Rows) -> None:
    fresh = toedit.Prior.builtin(threads=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh.score(rows)
        fresh.score([row for row in rows if len(row) < 100])
    assert fresh._scored >= 10_000
