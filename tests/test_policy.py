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
from toedit import Band, Policy, _bridge


def test_the_default_is_the_papers() -> None:
    assert Policy() == Policy.preset("paper") == Policy(
        threshold=0.99, k=8, temperature=1.0, exclude_original=False, protect_special=True, protected_ids=()
    )  # fmt: skip
    assert Policy().candidate_bands == (Band(0.99, 1.0, closed=True, action="resample"),)


def test_it_is_frozen_hashable_and_picklable() -> None:
    policy = Policy(threshold=0.5, protected_ids=[3, 1])  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.k = 9  # type: ignore[misc]
    assert policy.protected_ids == (3, 1)
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert len({policy, Policy(threshold=0.5, protected_ids=(3, 1)), Policy()}) == 2
    banded = Policy(bands=[Band(0.2, 0.4), Band(0.9, action="drop")], labels="original")  # type: ignore[arg-type]
    for each in (policy, banded, Policy()):
        assert eval(repr(each), {"Policy": Policy, "Band": Band}) == each
    assert repr(Policy(k=4)) == "Policy(threshold=0.99, k=4)"
    assert dataclasses.replace(policy, k=64).k == 64
    assert dataclasses.replace(policy, threshold=0.25).candidate_bands == (Band(0.25),)
    assert dataclasses.replace(banded, k=64).candidate_bands == banded.bands


def test_numbers_of_other_types_become_plain_ones() -> None:
    policy = Policy(threshold=np.float64(0.5), k=np.int64(4), temperature=2, protected_ids=np.array([7]))  # type: ignore[arg-type]
    assert [type(v) for v in (policy.threshold, policy.k, policy.temperature, policy.protected_ids[0])] == [
        float,
        int,
        float,
        int,
    ]
    settings = dataclasses.asdict(policy) | {"protected_ids": [7], "protected_words": []}
    del settings["bands"]  # the threshold says it
    assert json.loads(policy.to_json()) == settings


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("threshold", 0.0, r"threshold is 0; it must be a probability in \(0, 1\]"),
        ("threshold", -0.1, r"threshold is -0\.1"),
        ("threshold", 1.0000001, r"threshold is 1\.0000001"),
        ("threshold", math.nan, "threshold is NaN; it must be a probability"),
        ("threshold", "0.9", 'threshold is "0.9"; it must be a number'),
        ("threshold", True, "threshold is true; it must be a number"),
        ("k", 0, r"k is 0; it must be in 1\.\.4096"),
        ("k", 4097, r"k is 4097; it must be in 1\.\.4096"),
        ("k", 8.0, r"k is 8\.0; it must be an integer"),
        ("k", True, "k is true; it must be an integer"),
        ("k", 10**30, "k is 1000000000000000000000000000000; it must be an integer"),
        ("temperature", 0.0, r"temperature is 0; it must be finite and above 0"),
        ("temperature", -1, r"temperature is -1"),
        ("temperature", math.inf, r"temperature is \+Inf"),
        ("temperature", math.nan, "temperature is NaN"),
        ("temperature", "hot", 'temperature is "hot"; it must be a number'),
        ("top_p", 0, r"top_p is 0; it must be in \(0, 1\]"),
        ("top_p", 1.5, r"top_p is 1\.5; it must be in \(0, 1\]"),
        ("rejection_tries", -1, r"rejection_tries is -1; it must be in 0\.\.1000"),
        ("edit_probability", 0, "edit_probability is 0"),
        ("max_edit_rate", 2.0, "max_edit_rate is 2; it must be in"),
        ("max_edit_order", "lowest", 'max_edit_order is "lowest"; it must be one of highest, random'),
        ("exclude_original", 1, "exclude_original is 1; it must be true or false"),
        ("protect_special", None, "protect_special is null; it must be true or false"),
        ("protected_ids", 5, "protected_ids is 5; it must be a list of integers"),
        ("protected_ids", (1, -2), "protected_ids contains -2; token ids are 0 and above"),
        ("protected_ids", (1.5,), r"protected_ids is \[1\.5\]; it must be a list of integers"),
        ("protected_words", "abc", 'protected_words is "abc"; it must be a list of strings'),
        ("protected_words", ("a", ""), "protected_words contains an empty word"),
        ("protect_first", -1, "protect_first is -1; it must be 0 or above"),
        ("labels", "none", 'labels is "none"; it must be one of edited, original'),
        ("bands", 3, "bands is 3; it must be a list of objects"),
        ("bands", (Band(0.5, 0.5),), r"bands has low = 0\.5 and high = 0\.5 in band 0, which holds nothing"),
        ("bands", (Band(0.5, 1.5),), r"bands has high = 1\.5 in band 0"),
        ("bands", (Band(math.nan),), r"bands has low = NaN in band 0"),
        ("bands", (Band("low"),), r'bands\[0\]\.low is "low"; it must be a number'),
        ("bands", (Band(action="dorp"),), r'bands\[0\]\.action is "dorp"; it must be one of resample, drop, mask_loss'),
        ("bands", (Band(0.1, 0.5), Band(0.4, 0.6)), r"bands has bands \[0\.1, 0\.5\) and \[0\.4, 0\.6\), which overlap"),
        ("bands", (Band(0.1, 0.5, closed=True), Band(0.5, 0.6)), "which overlap"),
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
    [
        Policy(),
        Policy(0.1 + 0.2, 4096, 5e-324, True, False, (0, 5, 511)),
        Policy(threshold=5e-324, temperature=1e308),
        Policy.preset("reference-code-low-drop", k=4),
    ],
)
def test_the_native_library_reads_every_policy(small_prior: toedit.Prior, policy: Policy) -> None:
    handle = _bridge.call("OpenEditor", small_prior.handle, policy.to_json())
    _bridge.call("Close", handle)


def test_an_unknown_field_is_refused(small_prior: toedit.Prior) -> None:
    """A policy of a later version must not be half understood."""
    text = json.dumps({**json.loads(Policy().to_json()), "top_pp": 1})
    with pytest.raises(toedit.InputError, match='"top_pp", which is none of a policy; did you mean "top_p"'):
        _bridge.call("OpenEditor", small_prior.handle, text)


def test_presets() -> None:
    low = Policy.preset("reference-code-low-drop")
    assert low.candidate_bands == (Band(0.99), Band(0.0, 0.001, action="drop"))
    assert Policy.preset("reference-code") == Policy(temperature=1.5)
    assert Policy.preset("paper-0.999", k=64) == Policy(threshold=0.999, k=64)
    assert Policy.preset("paper-low-0.1").candidate_bands == (Band(0.0, 0.1, closed=True),)
    assert Policy.preset("reference-code-low-drop", threshold=0.5) == Policy(threshold=0.5)
    with pytest.raises(toedit.InputError, match=r'preset is "papper", which is none; did you mean "paper"\?'):
        Policy.preset("papper")


def test_a_protected_id_that_the_prior_does_not_have_is_refused(small_prior: toedit.Prior) -> None:
    toedit.Editor(small_prior, Policy(protected_ids=(0, 511)))
    with pytest.raises(toedit.InputError, match="protected_ids contains 512; the prior's vocabulary ends at 511: take the ids"):
        toedit.Editor(small_prior, Policy(protected_ids=(511, 512)))
