"""Fixtures for the tests of a training pipeline. pytest finds them wherever toedit is installed.

A repository that trains with another prior or policy replaces ``toedit_prior`` or ``toedit_editor`` in its conftest.py by
fixtures of the same names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest

from toedit import testing
from toedit.editor import Editor
from toedit.policy import Policy
from toedit.prior import Prior

__all__ = ["assert_deterministic", "assert_only_candidates_changed", "toedit_editor", "toedit_prior"]


@pytest.fixture(scope="session")
def toedit_prior() -> Iterator[Prior]:
    """The bundled prior: small, with nothing to download. Its tokenizer is at ``toedit_prior.tokenizer_file``; scoring with it
    needs ONNX Runtime, editing from stored scores does not."""
    with Prior.builtin() as prior:
        yield prior


@pytest.fixture(scope="session")
def toedit_editor(toedit_prior: Prior) -> Editor:
    """An editor that changes much also in little text: every candidate of P >= 0.5 that has another choice."""
    return Editor(toedit_prior, Policy(threshold=0.5, exclude_original=True))


@pytest.fixture(scope="session")
def assert_deterministic() -> Callable[..., None]:
    """:func:`toedit.testing.assert_deterministic`."""
    return testing.assert_deterministic


@pytest.fixture(scope="session")
def assert_only_candidates_changed(toedit_editor: Editor) -> Callable[..., int]:
    """:func:`toedit.testing.assert_only_candidates_changed` for ``toedit_editor``, or the editor that it is given."""
    return functools.partial(testing.assert_only_candidates_changed, editor=toedit_editor)
