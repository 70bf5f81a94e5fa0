"""A policy is a frozen setting that refuses values out of range."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest

import toedit
from toedit import Policy, _bridge


def test_the_default_is_the_papers() -> None:
    assert Policy() == Policy(
        threshold=0.99, k=8, temperature=1.0, exclude_original=False, protect_special=True, protected_ids=()
    )


def test_it_is_frozen_hashable_and_picklable() -> None:
    policy = Policy(threshold=0.5, protected_ids=[3, 1])  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.k = 9  # type: ignore[misc]
    assert policy.protected_ids == (3, 1)
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert len({policy, Policy(threshold=0.5, protected_ids=(3, 1)), Policy()}) == 2
    assert eval(repr(policy), {"Policy": Policy}) == policy
    assert dataclasses.replace(policy, k=64).k == 64


def test_numbers_of_other_types_become_plain_ones() -> None:
    policy = Policy(threshold=np.float64(0.5), k=np.int64(4), temperature=2, protected_ids=np.array([7]))  # type: ignore[arg-type]
    assert [type(v) for v in (policy.threshold, policy.k, policy.temperature, policy.protected_ids[0])] == [
        float,
        int,
        float,
        int,
    ]
    assert json.loads(policy.to_json()) == {**dataclasses.asdict(policy), "protected_ids": [7]}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("threshold", 0.0, r"threshold is 0\.0; it must be a probability in \(0, 1\]"),
        ("threshold", -0.1, r"threshold is -0\.1"),
        ("threshold", 1.0000001, r"threshold is 1\.0000001"),
        ("threshold", math.nan, "threshold is nan"),
        ("threshold", "0.9", "threshold is '0.9'; it must be a number"),
        ("threshold", True, "threshold is True; it must be a number"),
        ("threshold", None, "threshold is None"),
        ("k", 0, "k is 0; it must be 1 to 4096"),
        ("k", 4097, "k is 4097; it must be 1 to 4096"),
        ("k", 8.0, r"k is 8\.0; it must be an integer"),
        ("k", True, "k is True; it must be an integer"),
        ("temperature", 0.0, r"temperature is 0\.0; it must be finite and above 0"),
        ("temperature", -1, r"temperature is -1\.0"),
        ("temperature", math.inf, "temperature is inf"),
        ("temperature", math.nan, "temperature is nan"),
        ("temperature", "hot", "temperature is 'hot'; it must be a number"),
        ("exclude_original", 1, "exclude_original is 1; it must be True or False"),
        ("protect_special", None, "protect_special is None; it must be True or False"),
        ("protected_ids", 5, "protected_ids is 5; it must be a sequence of ids"),
        ("protected_ids", (1, -2), "protected_ids holds -2; ids are at least 0"),
        ("protected_ids", (1.5,), r"protected_ids is 1\.5; it must be an integer"),
    ],
)
def test_values_out_of_range_are_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(toedit.InputError, match=message) as error:
        Policy(**{field: value})
    assert isinstance(error.value, ValueError)


def test_limits_are_inside() -> None:
    for policy in (Policy(threshold=1.0), Policy(threshold=5e-324), Policy(k=1), Policy(k=4096)):
        assert policy == pickle.loads(pickle.dumps(policy))
    assert Policy(temperature=5e-324).temperature > 0


@pytest.mark.parametrize(
    "policy",
    [Policy(), Policy(0.1 + 0.2, 4096, 5e-324, True, False, (0, 5, 511)), Policy(threshold=5e-324, temperature=1e308)],
)
def test_the_native_library_reads_every_policy(small_prior: toedit.Prior, policy: Policy) -> None:
    handle = _bridge.call("OpenEditor", small_prior.handle, policy.to_json())
    _bridge.call("Close", handle)


def test_an_unknown_field_is_refused(small_prior: toedit.Prior) -> None:
    """A policy of a later version must not be half understood."""
    text = json.dumps({**json.loads(Policy().to_json()), "bands": []})
    with pytest.raises(toedit.InputError, match="bands"):
        _bridge.call("OpenEditor", small_prior.handle, text)


def test_a_protected_id_that_the_prior_does_not_have_is_refused(small_prior: toedit.Prior) -> None:
    editor = toedit.Editor(small_prior, Policy(protected_ids=(511, 512)))
    with pytest.raises(toedit.InputError, match="512"):
        editor({"input_ids": [], "scores": []})
