"""toedit: token-level editing of training text (ToEdit, arXiv 2412.14689).

    prior = toedit.Prior.builtin()
    editor = toedit.Editor(prior, toedit.Policy(threshold=0.99, k=8), seed=0)
    scores = prior.score(batch, keep=editor.policy)
    edited = editor(batch, epoch=0)

Importing this package loads neither the native library, ONNX Runtime, nor torch; each is loaded at its first use.
"""

from toedit._errors import (
    ClosedError,
    EpochWarning,
    Error,
    ExpectedChangesWarning,
    IdentityWarning,
    InputError,
    InternalError,
    MemoryWarning,
    MissingDependencyError,
    PriorError,
    RowErrorWarning,
    ScoresError,
    ScoringError,
    StoreWarning,
    TokenizerWarning,
)
from toedit._scores import scores, scores_to_bytes
from toedit._version import __version__
from toedit.editor import Edited, Editor
from toedit.log import apply_log, revert_log
from toedit.policy import Band, Policy
from toedit.prior import SCORES_TYPE, Prior
from toedit.statistics import Statistics
from toedit.store import ScoreStore

__all__ = [
    "SCORES_TYPE",
    "Band",
    "ClosedError",
    "Edited",
    "Editor",
    "EpochWarning",
    "Error",
    "ExpectedChangesWarning",
    "IdentityWarning",
    "InputError",
    "InternalError",
    "MemoryWarning",
    "MissingDependencyError",
    "Policy",
    "Prior",
    "PriorError",
    "RowErrorWarning",
    "ScoreStore",
    "ScoresError",
    "ScoringError",
    "Statistics",
    "StoreWarning",
    "TokenizerWarning",
    "__version__",
    "apply_log",
    "revert_log",
    "scores",
    "scores_to_bytes",
]
