"""Writes a file of golden edits: python tests/make_goldens.py SET (tests/goldens/edits_SET.json), a set of those below.

Goldens are only ever added. The edits are the package's own; before they are written the reference has to agree. Random
ids and scores are written out in full, because NumPy's generators may change what they draw.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import helpers
import oracle
import toedit

PRIOR: dict[str, Any] = {"vocab_size": 300, "tokenizer_size": 297, "special_ids": [0, 1]}
BANDS = [
    {"low": 0.9},
    {"low": 0.3, "high": 0.6, "action": "drop"},
    {"low": 0.6, "high": 0.7, "closed": True, "action": "mask_loss"},
]
SETS: dict[str, list[dict[str, Any]]] = {}
SETS["1"] = [
    {"policy": {"threshold": 0.99}, "seed": 0, "epoch": 0},
    {"policy": {"threshold": 0.5, "temperature": 1.5}, "seed": 1, "epoch": 0},
    {"policy": {"threshold": 0.5, "temperature": 1.5}, "seed": 1, "epoch": 1},
    {"policy": {"threshold": 0.9, "exclude_original": True}, "seed": 2**64 - 1, "epoch": 2**32 - 1},
    {"policy": {"threshold": 0.5, "k": 3, "temperature": 0.005, "exclude_original": True}, "seed": 5, "epoch": 6},
    {"policy": {"threshold": 0.5, "temperature": 100.0, "protect_special": False}, "seed": 7, "epoch": 8},
    {"policy": {"threshold": 0.7, "temperature": 3.0, "protected_ids": list(range(2, 150))}, "seed": 9, "epoch": 10},
    {"policy": {"threshold": 0.6, "temperature": 2.0}, "seed": 11, "epoch": 0, "keys": ["a", "", "ß"]},
    {"policy": {"threshold": 0.6, "temperature": 2.0}, "seed": 11, "epoch": 0, "keys": [-1, 0, 2**62]},
    {
        "policy": {"threshold": 0.6, "temperature": 2.0},
        "seed": 11,
        "epoch": 0,
        "keys": ["a", "a", "a"],
        "offsets": [0, 40, 2**33],
    },
]
SETS["policies"] = [
    {"policy": {"threshold": 0.5, "top_p": 0.9}, "seed": 1, "epoch": 0},
    {"policy": {"threshold": 0.5, "top_p": 0.999, "exclude_original": True}, "seed": 2, "epoch": 3},
    {"policy": {"threshold": 0.5, "top_p": 0.8, "temperature": 1.5}, "seed": 3, "epoch": 0},
    {"policy": {"threshold": 0.5, "top_p": 0.95, "temperature": 0.7, "k": 5}, "seed": 4, "epoch": 1},
    {"policy": {"threshold": 0.5, "rejection_tries": 3}, "seed": 5, "epoch": 0},
    {"policy": {"threshold": 0.5, "rejection_tries": 8, "temperature": 1.5, "k": 6}, "seed": 6, "epoch": 2},
    {"policy": {"threshold": 0.5, "rejection_tries": 2, "top_p": 0.95}, "seed": 7, "epoch": 0},
    {"policy": {"threshold": 0.5, "edit_probability": 0.4, "exclude_original": True}, "seed": 8, "epoch": 0},
    {"policy": {"threshold": 0.5, "max_edit_rate": 0.1, "exclude_original": True}, "seed": 9, "epoch": 0},
    {
        "policy": {"threshold": 0.5, "max_edit_rate": 0.1, "max_edit_order": "random", "exclude_original": True},
        "seed": 9,
        "epoch": 0,
        "keys": ["a", "b", "c"],
        "offsets": [0, 1, 2**33],
    },
    {"policy": {"bands": BANDS, "temperature": 2.0}, "seed": 10, "epoch": 0},
    {
        "policy": {"bands": BANDS, "edit_probability": 0.5, "max_edit_rate": 0.2, "exclude_original": True},
        "seed": 11,
        "epoch": 4,
    },
]


def main(name: str) -> None:
    path = Path(__file__).parent / "goldens" / f"edits_{name}.json"
    if path.exists():
        raise SystemExit(f"{path} exists, and goldens are never changed; make another set")
    rng = np.random.default_rng(20)
    ids = [rng.integers(0, 300, size=n).tolist() for n in (40, 33, 21)]
    scores = [oracle.make_scores(rng, row, 300, 8, 0.5) for row in ids]
    with tempfile.TemporaryDirectory() as folder:
        prior = helpers.editing_prior(Path(folder) / "prior", **PRIOR)
        rows = [{**row, "prior": prior.fingerprint} for row in scores]
        cases = []
        for case in SETS[name]:
            columns = {column: case[column + "s"] for column in ("key", "offset") if column + "s" in case}
            names = {column: column for column in columns}
            editor = toedit.Editor(prior, helpers.policy_of(case["policy"]), seed=case["seed"], **names)
            batch = {"input_ids": ids, "scores": oracle.scores_to_arrow(rows), **columns}
            edited = editor.edit(batch, case["epoch"])
            expected = helpers.reference(editor, ids, rows, case["epoch"], keys=case.get("keys"), offsets=case.get("offsets"))
            helpers.assert_edits_equal(edited, expected, case.get("offsets"))
            cases.append(
                {
                    **case,
                    "edits": helpers.edits_of(edited),
                    "candidates": edited.candidates,
                    "expected_changes": edited.expected_changes,
                }
            )
    plain = [{key: getattr(v, "tolist", lambda v=v: v)() for key, v in row.items() if key != "prior"} for row in scores]
    golden = {"prior": PRIOR, "input_ids": ids, "scores": plain, "cases": cases}
    path.write_text(as_text(golden) + "\n")


def as_text(value: Any, indent: str = "") -> str:
    """JSON with a line for each list of numbers."""
    inner = indent + " "
    if isinstance(value, dict):
        items = [f"{inner}{json.dumps(key)}: {as_text(v, inner)}" for key, v in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
        return "[\n" + ",\n".join(inner + as_text(v, inner) for v in value) + f"\n{indent}]"
    return json.dumps(value)


if __name__ == "__main__":
    main(sys.argv[1])
