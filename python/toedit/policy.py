"""Which tokens are edited, and what they become."""

from __future__ import annotations

import json
import math
import numbers
import operator
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

from toedit import _bridge

__all__ = ["Band", "Policy"]


@dataclass(frozen=True)
class Band:
    """A range of P with what is done with the tokens in it.

    Attributes:
        low: in the band are tokens with P >= low, in [0, 1]
        high: and P < high, in (0, 1]
        closed: or P = high. None: where high is 1.
        action: ``"resample"`` draws the token anew; ``"drop"`` takes it out of the row, which becomes shorter, with its label,
            its masks and its character offsets; ``"mask_loss"`` keeps it and gives it the label -100.
    """

    low: float = 0.0
    high: float = 1.0
    closed: bool | None = None
    action: str = "resample"

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, _number(getattr(self, name)))
        if self.closed is None:
            object.__setattr__(self, "closed", self.high == 1)


@dataclass(frozen=True, repr=False)
class Policy:
    """A policy of token-level editing.

    The defaults are the paper's (arXiv 2412.14689, Algorithm 1): a token is a candidate where the prior gives it
    ``P(x_i | x_<i) >= 0.99``, and is redrawn from the prior's 8 most probable tokens at that position. With them most
    candidates draw the token that they already are: candidates are not changes. :meth:`preset` has others by name.

    Attributes:
        threshold: short for one band, ``[threshold, 1]``; in (0, 1]. 0.99 where neither it nor bands are given.
        bands: which tokens are candidates, and what is done with them; at most 64 bands, which do not overlap.
        k: how many tokens are drawn from, 1 to 4096, at most the k that the scores were stored with.
        temperature: ln P is divided by it before the draw; finite and above 0. 1 is the prior's own distribution.
        top_p: draw from the nucleus only: the fewest most probable tokens that have this share of the whole distribution
            after the temperature (arXiv 1904.09751), in (0, 1]. Where what is stored cannot tell which these are, the token
            stays and is counted ``truncated``. At temperature 1 a ``top_p`` at or below the threshold is the identity: the
            nucleus is the token itself.
        rejection_tries: propose so often and reject the original; if all proposals were it, it stays. 0 to 1000; 0 is one draw
            of any kind. Ours: the paper names rejection sampling and gives no formula.
        exclude_original: never draw the token that is there, so that every candidate with another choice changes.
        whole_words: draw only tokens that begin a word where the original does, and continue one where it does.
        edit_probability: each candidate is edited with this probability, in (0, 1].
        max_edit_rate: of a row's tokens at most this share is edited, in (0, 1].
        max_edit_order: which, where there are more candidates: ``"highest"`` P first, or a ``"random"`` subset.
        protect_special: special and added tokens of the prior's tokenizer are never edited and never drawn.
        protected_ids: further ids that are never edited and never drawn.
        protect_digits: tokens with a digit are never edited and never drawn.
        protect_punctuation: tokens of nothing but punctuation and symbols are never edited and never drawn.
        protect_subwords: tokens of words that are more than one token are not edited.
        protect_code: tokens between code fences (and the fences) are not edited.
        protected_words: words or phrases whose tokens are not edited; upper and lower case differ.
        protect_first: so many tokens at the beginning of a document are not edited.
        protect_context: tokens whose label is -100 are not edited.
        protect_assistant: tokens that a column ``assistant_masks`` marks are not edited.
        protect_prompt: tokens that it does not mark are not edited.
        labels: ``"edited"``: labels follow the ids. ``"original"``: they keep the originals (edited context, human targets).

    Raises:
        InputError: a value is out of its range; the message names the field, the value and the range.
    """

    threshold: float | None = None
    k: int = 8
    temperature: float = 1.0
    exclude_original: bool = False
    protect_special: bool = True
    protected_ids: tuple[int, ...] = ()
    bands: tuple[Band, ...] = ()
    top_p: float = 1.0
    rejection_tries: int = 0
    whole_words: bool = False
    edit_probability: float = 1.0
    max_edit_rate: float = 1.0
    max_edit_order: str = "highest"
    protect_digits: bool = False
    protect_punctuation: bool = False
    protect_subwords: bool = False
    protect_code: bool = False
    protected_words: tuple[str, ...] = ()
    protect_first: int = 0
    protect_context: bool = True
    protect_assistant: bool = False
    protect_prompt: bool = False
    labels: str = "edited"

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "protected_ids", _tuple(self.protected_ids, _integer))
        put(self, "protected_words", _tuple(self.protected_words, lambda word: word))
        put(self, "bands", _tuple(self.bands, lambda band: band))
        for name in ("k", "rejection_tries", "protect_first"):
            put(self, name, _integer(getattr(self, name)))
        for name in ("threshold", "temperature", "top_p", "edit_probability", "max_edit_rate"):
            put(self, name, _number(getattr(self, name)))
        if self.threshold is None and self.bands == ():
            put(self, "threshold", 0.99)
        _bridge.call("CheckPolicy", self.to_json())

    def __repr__(self) -> str:
        given = [f for f in fields(self) if getattr(self, f.name) != f.default]
        return f"Policy({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in given)})"

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Policy:
        """A policy by name, with changes.

        ``paper``: P >= 0.99, drawn from the top 8 at temperature 1; ``paper-0.999``, ``paper-low-0.1``, ``paper-low-0.01`` and
        ``paper-low-0.001``: the bands of its Table 5, P >= 0.999 and P <= 0.1, 0.01 and 0.001. What its authors' script does:
        ``reference-code`` (P > 0.99 at temperature 1.5), ``reference-code-low-drop`` (P > 0.99 at temperature 1, and drop
        what has P < 0.001), ``reference-code-filter`` (drop what has P < 0.001, nothing else).

        Args:
            name: one of these.
            changes: fields that are to differ from it.

        Raises:
            InputError: there is no such preset, or a change is out of its range.
        """
        settings = json.loads(_bridge.call("PresetPolicy", name if isinstance(name, str) else repr(name)))
        bands = tuple(Band(**band) for band in settings.pop("bands"))
        if changes.get("threshold") is None and not changes.get("bands"):
            # A preset of one band from a threshold up is the same policy as one given that threshold.
            settings |= {"threshold": bands[0].low} if bands == (Band(bands[0].low),) else {"bands": bands}
        return cls(**{**settings, **changes})

    @property
    def candidate_bands(self) -> tuple[Band, ...]:
        """The bands, also where the policy was given a threshold. The log's ``band`` counts in them, from 0."""
        return self.bands if self.threshold is None else (Band(self.threshold),)

    def to_json(self) -> str:
        """The policy as the native library reads it."""
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.threshold is None:
            del settings["threshold"]
        if self.bands == ():
            del settings["bands"]
        elif isinstance(self.bands, tuple):
            settings["bands"] = [asdict(band) if isinstance(band, Band) else band for band in self.bands]
        return json.dumps(_finite(settings), default=repr)


def _number(value: Any) -> Any:
    """A number as a float. Anything else stays what it is, for the native library to refuse; so below."""
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else value


def _integer(value: Any) -> Any:
    return operator.index(value) if hasattr(value, "__index__") and not isinstance(value, bool) else value


def _tuple(values: Any, convert: Callable[[Any], Any]) -> Any:
    if isinstance(values, (str, bytes)):
        return values
    try:
        return tuple(map(convert, values))
    except TypeError:
        return values


def _finite(value: Any) -> Any:
    """The same with the names that the native library has for what JSON has no numbers for."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {name: _finite(v) for name, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, (list, tuple)) else value
