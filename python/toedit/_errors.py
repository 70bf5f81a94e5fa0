"""The exceptions of toedit, and the one place that translates what the native library says."""

from __future__ import annotations

__all__ = [
    "ClosedError",
    "EpochWarning",
    "Error",
    "ExpectedChangesWarning",
    "InputError",
    "InternalError",
    "MemoryWarning",
    "MissingDependencyError",
    "PriorError",
    "RowErrorWarning",
    "ScoresError",
    "ScoringError",
    "StoreWarning",
    "TokenizerWarning",
]


class Error(Exception):
    """Every exception that toedit raises on purpose."""


class InputError(Error, ValueError):
    """An argument or a row of input cannot be used."""


class ScoresError(Error, ValueError):
    """Scores do not belong to these ids, this prior or this policy."""


class PriorError(Error):
    """A prior folder is missing, damaged, or of another kind than needed."""


class MissingDependencyError(Error, ImportError):
    """An optional package is needed and is missing or too old; the message names the extra to install."""


class ScoringError(Error):
    """ONNX Runtime failed while scoring."""


class ClosedError(Error):
    """A closed prior was used."""


class InternalError(Error):
    """A defect in toedit itself. Nothing more is done by the native library in this process."""


class TokenizerWarning(UserWarning):
    """The prior finds the ids less likely than chance: they are probably another tokenizer's."""


class MemoryWarning(UserWarning):
    """There was no memory for a run of the model, which was made in halves or later; the scores are the same."""


class StoreWarning(UserWarning):
    """Scores could not be stored; they were used all the same."""


class ExpectedChangesWarning(UserWarning):
    """The policy is expected to change less than one token in a thousand."""


class EpochWarning(UserWarning):
    """Rows come again, but nobody sets the epoch, so that they get the same edits."""


class RowErrorWarning(UserWarning):
    """A row could not be edited, and was passed on as it is or left out."""


class IdentityWarning(UserWarning):
    """The policy changes nothing, whatever the scores are."""


# The kinds of package capi (capi/status.go). "cancelled" is not among them: only toedit itself cancels.
_KINDS: dict[str, type[Error]] = {
    "input": InputError,
    "scores": ScoresError,
    "prior": PriorError,
    "runtime": ScoringError,
    "closed": ClosedError,
    "internal": InternalError,
}


def translate(error: RuntimeError) -> Error:
    """Turn an error of the native library, whose text begins with its kind and a colon, into an exception of ours."""
    kind, _, message = str(error).partition(": ")
    return _KINDS.get(kind, InternalError)(message or kind)
