"""A panic in the native library poisons it, in the process where it happened and in no other."""

from __future__ import annotations

import pytest

import helpers
import toedit
from toedit import _bridge

PANIC = """
import toedit
from toedit import _bridge
prior = toedit.Prior.builtin(threads=1)
editor = toedit.Editor(prior)
scores = prior.score([[1, 2, 3]])
kept = editor({"input_ids": [[1, 2, 3]], "scores": scores})
first = None
for attempt in (
    lambda: _bridge.call("PanicForTest", "poison this process"),
    lambda: _bridge.call("PanicForTest", "poison this process"),
    lambda: prior.score([[1, 2, 3]]),
    lambda: editor({"input_ids": [[1, 2, 3]], "scores": scores}),
    lambda: toedit.Prior.builtin().describe(),
    lambda: toedit.Editor(prior, toedit.Policy(k=2))({"input_ids": [[1]], "scores": scores[:1]}),
):
    try:
        attempt()
    except toedit.InternalError as error:
        message = str(error)
        assert "a panic on purpose" in message, message
        assert "does nothing more in this process" in message, message
        assert "report" in message, message
        first = first or message
        assert message == first, message
    else:
        raise SystemExit("a poisoned library went on")
# What it gave away before stays readable, and may be released.
assert kept["input_ids"] == [[1, 2, 3]]
assert len(scores.to_pylist()[0]["logp"]) == 3
del kept, scores, editor, prior
print("done")
"""


def test_a_panic_poisons_the_process(prior: toedit.Prior) -> None:
    done = helpers.python(PANIC)
    assert done.stdout == "done\n"
    assert "Exception ignored" not in done.stderr
    # Here nothing happened.
    assert len(prior.score([[1, 2, 3]])) == 1


FORKED = """
import os, toedit
from toedit import _bridge
prior = toedit.Prior.builtin(threads=1)
before = prior.score([[1, 2, 3]])
child = os.fork()
if child == 0:
    try:
        _bridge.call("PanicForTest", "poison this process")
    except toedit.InternalError as error:
        os._exit(0 if str(os.getpid()) in str(error) else 1)
    os._exit(2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert prior.score([[1, 2, 3]]).equals(before)
try:
    _bridge.call("PanicForTest", "poison this process")
except toedit.InternalError:
    pass
child = os.fork()
if child == 0:  # has an instance of the library of its own, which has not failed
    os._exit(0 if prior.score([[1, 2, 3]]).equals(before) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("done")
"""


def test_a_forked_childs_panic_is_its_own() -> None:
    assert helpers.python(FORKED).stdout == "done\n"


def test_it_asks_before_it_panics() -> None:
    with pytest.raises(toedit.InputError, match="poison this process"):
        _bridge.call("PanicForTest", "please")
