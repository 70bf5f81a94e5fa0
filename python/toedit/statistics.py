"""What editing meets and does, as numbers that can be added up in any order."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa

from toedit import _bridge
from toedit._errors import InputError

__all__ = ["Margin", "Statistics"]

_VERSION = 1
# Sums are integers of these parts of a change and of a nat. Floats would depend on the order in which they are added.
_EXPECTED_UNITS, _LOGP_UNITS = 2**30, 2**20
_TENTHS = [i / 10 for i in range(11)]
# Shares of tokens by P that the paper gives for Llama-3-8B on its biomedical corpus (arXiv 2412.14689), in %: the two ends
# of a U.
_PAPER = {0: 34.7, 9: 27.1}


@dataclass(frozen=True)
class Margin:
    """Scored tokens near the edge of a band: with ln edge - delta <= ln P <= ln edge + delta."""

    edge: float
    delta: float
    count: int


@dataclass(frozen=True)
class Statistics:
    """Counts over documents, and how P is distributed over their tokens. :meth:`toedit.Editor.statistics` makes them.

    Statistics add up: ``a + b`` and ``sum(parts)`` are the same, bit for bit, in any order and for any way in which rows were
    divided into batches. Parts must be of one prior and one policy. Seeds and epochs may differ.

    Attributes:
        prior: the prior's fingerprint.
        policy: the policy's fields.
        rows: rows seen; the other counts down to ``masked`` are as in :class:`toedit.editor.Counts`.
        scored: tokens with a score. Histograms, margins and means are over these.
        impossible: scored tokens with ln P < -1024, -inf as a rule. They are in the lowest interval of the histograms, and left
            out of ``sum_logp``, ``mean_logp`` and ``perplexity``.
        expected_units: the expected changes in units of 2**-30; those of each row are rounded to it.
        logp_units: the sum of ln P in units of 2**-20; each is rounded to it.
        edges: the edges of the fine histogram.
        intervals: scored tokens with P in [edge, next edge), in the last interval up to 1. Decided as bands are.
        near: scored tokens near the edges of the policy's bands.
        documents: a row for each row of the batch: its counts, expected_changes, sum_logp, mean_logp and perplexity (null
            where nothing is scored), histogram (list of 10) and margins (list, in the order of :attr:`margins`). None for sums
            and for what was read from JSON.
    """

    prior: str
    policy: dict[str, Any]
    rows: int
    empty_rows: int
    overlong_rows: int
    tokens: int
    scored: int
    unscored: int
    protected: int
    candidates: int
    unselected: int
    truncated: int
    changes: int
    dropped: int
    masked: int
    impossible: int
    expected_units: int
    logp_units: int
    edges: tuple[float, ...]
    intervals: tuple[int, ...]
    near: tuple[Margin, ...]
    documents: pa.Table | None = field(default=None, compare=False, repr=False)

    @property
    def expected_changes(self) -> float:
        """The changes to be expected from the scores."""
        return self.expected_units / _EXPECTED_UNITS

    @property
    def sum_logp(self) -> float:
        """The sum of ln P over the scored tokens, the impossible ones left out."""
        return self.logp_units / _LOGP_UNITS

    @property
    def mean_logp(self) -> float:
        """The mean of ln P over the same tokens; NaN where there are none."""
        possible = self.scored - self.impossible
        return self.sum_logp / possible if possible else math.nan

    @property
    def perplexity(self) -> float:
        """exp of minus that mean; infinite where that is no float."""
        with np.errstate(over="ignore"):
            return float(np.exp(-self.mean_logp))

    @property
    def histogram(self) -> np.ndarray[Any, Any]:
        """int64 [10]: scored tokens with P in [0, 0.1), [0.1, 0.2), ..., [0.9, 1], the paper's intervals."""
        at = [self.edges.index(edge) for edge in _TENTHS]
        return np.add.reduceat(np.array(self.intervals, np.int64), at[:-1])

    @property
    def fine_histogram(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Edges (float64 [n + 1]) and counts (int64 [n]) of all intervals: every 0.01, and more near 0 and 1."""
        return np.array(self.edges), np.array(self.intervals, np.int64)

    @property
    def margins(self) -> pa.Table:
        """A row for each edge of the policy's bands and each of two distances: ``edge`` (P), ``delta``, ``count`` and ``share``
        of the scored tokens whose ln P is at most delta away from ln edge: at most so many decisions are others where scores
        differ by delta, as those of another device or dtype do."""
        columns = {
            "edge": pa.array([margin.edge for margin in self.near], pa.float64()),
            "delta": pa.array([margin.delta for margin in self.near], pa.float64()),
            "count": pa.array([margin.count for margin in self.near], pa.int64()),
            "share": pa.array([margin.count / max(self.scored, 1) for margin in self.near], pa.float64()),
        }
        return pa.table(columns)

    def __add__(self, other: Statistics) -> Statistics:
        """The statistics of both.

        Raises:
            InputError: they are of different priors or policies.
        """
        if not isinstance(other, Statistics):
            return NotImplemented
        mine, others = _made_with(self), _made_with(other)
        for name in {**mine, **others}:
            if mine.get(name) != others.get(name):
                raise InputError(
                    f"statistics: {name} is {mine.get(name)!r} in one and {others.get(name)!r} in the other; "
                    "only those of one prior and one policy can be added"
                )
        return Statistics(
            prior=self.prior,
            policy=self.policy,
            edges=self.edges,
            intervals=tuple(a + b for a, b in zip(self.intervals, other.intervals, strict=True)),
            near=tuple(replace(a, count=a.count + b.count) for a, b in zip(self.near, other.near, strict=True)),
            **{name: getattr(self, name) + getattr(other, name) for name in _NUMBERS},
        )

    def __radd__(self, other: object) -> Statistics:
        # sum() begins with 0.
        return self if other == 0 else NotImplemented

    def to_json(self) -> str:
        """One line of JSON, from which other processes and machines can add them up. Equal statistics give equal text."""
        values = {name: getattr(self, name) for name in _FIELDS}
        return json.dumps({"version": _VERSION, **values, "near": [asdict(margin) for margin in self.near]})

    @classmethod
    def from_json(cls, text: str) -> Statistics:
        """What :meth:`to_json` wrote, without the documents.

        Raises:
            InputError: it is something else; the message names the field and its value.
        """
        try:
            values = json.loads(text)
        except (ValueError, TypeError) as error:
            raise InputError(f"statistics: this is no JSON: {error}") from None
        if not isinstance(values, dict):
            raise InputError(f"statistics: this is a JSON {type(values).__name__}; it must be what to_json wrote")
        version = values.pop("version", None)
        if version != _VERSION:
            raise InputError(f"statistics: version is {version!r}; this release reads {_VERSION}")
        for name in _FIELDS:
            if name not in values:
                raise InputError(f"statistics: {name} is missing; it must be what to_json wrote")
        for name in values:
            if name not in _FIELDS:
                raise InputError(f"statistics: {name} is {values[name]!r}, but there is no such field")
        return cls(**_checked(values))

    def __str__(self) -> str:
        scored = max(self.scored, 1)
        lines = [
            f"{self.tokens:,} tokens in {self.rows:,} rows, {self.scored:,} scored: mean ln P {self.mean_logp:.4f}, "
            f"perplexity {self.perplexity:.2f}" + (f", {self.impossible:,} of P = 0 left out" if self.impossible else ""),
            f"{'Share of tokens by P':54} here   paper (Llama-3-8B; ends only)",
        ]
        for i, count in enumerate(self.histogram):
            share = 100 * int(count) / scored
            interval = f"[{i / 10:.1f}, {(i + 1) / 10:.1f}{']' if i == 9 else ')'}"
            paper = f"{_PAPER[i]:5.1f} %" if i in _PAPER else "      -"
            lines.append(f"{interval}  {'#' * round(share / 2):38} {share:6.1f} %  {paper}")
        lines.append(
            f"{self.candidates:,} candidates ({100 * self.candidates / scored:.2f} % of the scored tokens), "
            f"{self.changes:,} changes, {self.expected_changes:,.1f} expected"
        )
        other = [(name, getattr(self, name)) for name in ("protected", "unselected", "truncated", "dropped", "masked")]
        if any(count for _, count in other):
            lines.append(", ".join(f"{count:,} {name}" for name, count in other if count))
        for margin in self.near:
            share = 100 * margin.count / scored
            lines.append(f"|ln P - ln {margin.edge:g}| <= {margin.delta:g}: {margin.count:,} tokens ({share:.3f} %)")
        return "\n".join(lines)


_FIELDS = [f.name for f in fields(Statistics) if f.name != "documents"]
_NUMBERS = [f.name for f in fields(Statistics) if f.type == "int"]


def measure(editor: int, seed: int, epoch: int, columns: dict[str, pa.Array]) -> Statistics:
    """The statistics of a batch's columns, by the handle of an editor."""
    given, out = _bridge.ArrowIn(columns), _bridge.ArrowOut()
    totals = _bridge.call("Statistics", editor, seed, epoch, given.array, given.schema, out.array, out.schema)
    statistics = Statistics.from_json(totals)
    object.__setattr__(statistics, "documents", _documents(out.take()))
    return statistics


def _documents(batch: pa.RecordBatch) -> pa.Table:
    table = pa.Table.from_batches([batch])
    columns = {name: table[name] for name in table.column_names if name not in ("expected_units", "logp_units")}
    histogram, margins = columns.pop("histogram"), columns.pop("margins")
    expected, sums = (table[name].to_numpy() for name in ("expected_units", "logp_units"))
    possible = table["scored"].to_numpy() - table["impossible"].to_numpy()
    sums = sums / _LOGP_UNITS
    mean = np.divide(sums, possible, out=np.zeros_like(sums), where=possible > 0)
    columns["expected_changes"] = pa.array(expected / _EXPECTED_UNITS)
    columns["sum_logp"] = pa.array(sums)
    columns["mean_logp"] = pa.array(mean, mask=possible == 0)
    with np.errstate(over="ignore"):
        columns["perplexity"] = pa.array(np.exp(-mean), mask=possible == 0)
    return pa.table({**columns, "histogram": histogram, "margins": margins})


def _made_with(statistics: Statistics) -> dict[str, Any]:
    """What statistics must share to be added."""
    near = [(margin.edge, margin.delta) for margin in statistics.near]
    return {"prior": statistics.prior, **statistics.policy, "edges": statistics.edges, "near": near}


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of JSON as those of Statistics, or what is wrong with one of them."""

    def expect(holds: bool, name: str, must: str) -> None:
        if not holds:
            raise InputError(f"statistics: {name} is {values[name]!r}; it must be {must}")

    def is_count(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0

    def is_margin(value: object) -> bool:
        return isinstance(value, dict) and set(value) == {"edge", "delta", "count"} and is_count(value["count"])

    expect(isinstance(values["prior"], str), "prior", "a fingerprint")
    expect(isinstance(values["policy"], dict), "policy", "the fields of a policy")
    for name in _NUMBERS:
        if name == "logp_units":
            expect(type(values[name]) is int and values[name] <= 0, name, "an integer of 0 or below")
        else:
            expect(is_count(values[name]), name, "an integer of 0 or above")
    edges, intervals, near = values["edges"], values["intervals"], values["near"]
    expect(isinstance(edges, list) and edges == sorted(set(edges)) and set(_TENTHS) <= set(edges), "edges", "ascending, 0 to 1")
    expect(isinstance(intervals, list) and all(map(is_count, intervals)), "intervals", "a list of counts")
    expect(len(intervals) == len(edges) - 1, "intervals", f"{len(edges) - 1} counts, one between each two edges")
    expect(sum(intervals) == values["scored"], "scored", f"the sum of intervals, {sum(intervals)}")
    expect(values["scored"] + values["unscored"] == values["tokens"], "tokens", "the sum of scored and unscored")
    expect(isinstance(near, list) and all(map(is_margin, near)), "near", "a list of {edge, delta, count}")
    return {**values, "edges": tuple(edges), "intervals": tuple(intervals), "near": tuple(Margin(**margin) for margin in near)}
