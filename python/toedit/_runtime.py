"""Finds the ONNX Runtime library that pip installed, without importing it."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from pathlib import Path

from toedit._errors import MissingDependencyError

__all__ = ["library", "threads", "where"]

_MISSING = (
    "scoring needs ONNX Runtime, which is not installed: pip install 'toedit[cpu]' (or 'toedit[cuda]' on a machine with "
    "an NVIDIA card; never both). Editing from stored scores works without it."
)
# ONNX Runtime has had no wheels for CPython 3.10 since 1.24, but its library does not depend on Python.
_MISSING_ON_3_10 = (
    "scoring needs ONNX Runtime, which has no wheel for Python 3.10 that is new enough. The library of 3.11's wheel works: "
    "pip install --no-deps --ignore-requires-python --only-binary=:all: --python-version 3.11 --platform manylinux_2_28_x86_64 "
    "--target SITE_PACKAGES 'onnxruntime>=1.31,<1.34' (SITE_PACKAGES: this environment's folder of packages). Editing from "
    "stored scores works without it."
)


def library() -> str:
    """The path of libonnxruntime inside the installed ``onnxruntime`` package.

    Raises:
        MissingDependencyError: there is none.
    """
    spec = importlib.util.find_spec("onnxruntime")
    for location in (spec.submodule_search_locations or []) if spec else []:
        found = sorted(Path(location, "capi").glob("libonnxruntime.so*"))
        if found:
            return str(found[-1])
    raise MissingDependencyError(_MISSING if sys.version_info >= (3, 11) else _MISSING_ON_3_10)


def where() -> dict[str, str]:
    """What fresh scores depend on beside the prior: the type of the CPU, ONNX Runtime's version and its optimisation level."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        cpu = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), platform.machine())
    version = Path(library()).name.partition(".so.")[2]
    return {"cpu": cpu, "onnxruntime": version, "optimization": "all"}


def threads(asked: int | None, in_worker: bool) -> int:
    """How many runs are computed at a time: what was asked for, else 1 in a worker process (the trainer and the other
    workers need the cores), else every core that this process may use (the caller waits for the scores)."""
    if asked is not None:
        return asked
    return 1 if in_worker else len(os.sched_getaffinity(0))
