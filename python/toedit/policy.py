"""Which tokens are edited, and what they become."""

from __future__ import annotations

import json
import math
import operator
from dataclasses import dataclass

from toedit._errors import InputError

__all__ = ["Policy"]

_MAX_K = 4096


@dataclass(frozen=True)
class Policy:
    """A policy of token-level editing (arXiv 2412.14689, Algorithm 1).

    A token is a candidate where the prior gives it ``P(x_i | x_<i) >= threshold``; it is redrawn from the prior's
    ``k`` most probable tokens at that position. The defaults are the paper's (which tries k = 64 too). With them most
    candidates draw the token that they already are: candidates are not changes.

    Attributes:
        threshold: the least P of a candidate, in (0, 1].
        k: how many tokens are drawn from, 1 to 4096, at most the k that the scores were stored with.
        temperature: ln P is divided by it before the draw; finite and above 0. 1 is the prior's own distribution.
        exclude_original: never draw the token that is there, so that every candidate with another choice changes.
        protect_special: special and added tokens of the prior's tokenizer are never edited and never drawn.
        protected_ids: further ids that are never edited and never drawn.

    Raises:
        InputError: a value is out of its range; the message names the field, the value and the range.
    """

    threshold: float = 0.99
    k: int = 8
    temperature: float = 1.0
    exclude_original: bool = False
    protect_special: bool = True
    protected_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("threshold", "temperature"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InputError(f"policy: {name} is {value!r}; it must be a number")
            object.__setattr__(self, name, float(value))
        if not 0 < self.threshold <= 1:
            raise InputError(f"policy: threshold is {self.threshold!r}; it must be a probability in (0, 1]")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"policy: temperature is {self.temperature!r}; it must be finite and above 0")
        object.__setattr__(self, "k", _integer("k", self.k))
        if not 1 <= self.k <= _MAX_K:
            raise InputError(f"policy: k is {self.k}; it must be 1 to {_MAX_K}")
        for name in ("exclude_original", "protect_special"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"policy: {name} is {getattr(self, name)!r}; it must be True or False")
        try:
            ids = tuple(_integer("protected_ids", i) for i in self.protected_ids)
        except TypeError:
            raise InputError(f"policy: protected_ids is {self.protected_ids!r}; it must be a sequence of ids") from None
        for i in ids:
            if i < 0:
                raise InputError(f"policy: protected_ids holds {i}; ids are at least 0")
        object.__setattr__(self, "protected_ids", ids)

    def to_json(self) -> str:
        """The policy as the native library reads it."""
        return json.dumps({name: getattr(self, name) for name in self.__dataclass_fields__})


def _integer(name: str, value: object) -> int:
    if not isinstance(value, bool):
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    raise InputError(f"policy: {name} is {value!r}; it must be an integer")
