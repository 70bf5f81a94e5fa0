"""PEP 517 and 660 hooks: setuptools' own, behind a check of the platform and a lock, with Go asked for where it is missing."""

from __future__ import annotations

import fcntl
import functools
import os
import platform
import struct
import sys
from collections.abc import Callable
from typing import Any

from setuptools import build_meta

from . import golang, native

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Hook = Callable[..., Any]


def _check_platform() -> None:
    glibc = "CS_GNU_LIBC_VERSION" in os.confstr_names and os.confstr("CS_GNU_LIBC_VERSION")
    machine = platform.machine()
    if (
        sys.platform != "linux"
        or not glibc
        or machine not in ("x86_64", "aarch64")
        or struct.calcsize("P") != 8
        or sys.implementation.name != "cpython"
        or not (3, 10) <= sys.version_info[:2] <= (3, 13)
    ):
        raise SystemExit(
            "toedit runs on Linux with glibc (x86-64 or aarch64) and CPython 3.10 to 3.13; "
            f"this is {platform.python_implementation()} {platform.python_version()} on {platform.system()} {machine}"
            f"{'' if glibc else ' without glibc'}."
        )


def _alone(hook: Hook) -> Hook:
    """One build at a time in this source tree: setuptools' intermediate folders do not bear two."""

    @functools.wraps(hook)
    def locked(*args: Any, **kwargs: Any) -> Any:
        native.workshop().mkdir(exist_ok=True)
        with open(native.workshop() / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return hook(*args, **kwargs)

    return locked


def _supported(hook: Hook) -> Hook:
    @functools.wraps(hook)
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_platform()
        return hook(*args, **kwargs)

    return _alone(checked)


def _asking_for_go(hook: Hook) -> Hook:
    @functools.wraps(hook)
    def asking(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **kwargs) + ([] if golang.find() else [golang.REQUIREMENT])

    return _supported(asking)


get_requires_for_build_sdist = _alone(build_meta.get_requires_for_build_sdist)
build_sdist = _alone(build_meta.build_sdist)

get_requires_for_build_wheel = _asking_for_go(build_meta.get_requires_for_build_wheel)
prepare_metadata_for_build_wheel = _supported(build_meta.prepare_metadata_for_build_wheel)
build_wheel = _supported(build_meta.build_wheel)

get_requires_for_build_editable = _asking_for_go(build_meta.get_requires_for_build_editable)
prepare_metadata_for_build_editable = _supported(build_meta.prepare_metadata_for_build_editable)
build_editable = _supported(build_meta.build_editable)
