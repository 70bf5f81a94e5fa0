"""Makes the libraries that ONNX Runtime's CUDA provider needs findable before it is loaded.

They come as pip packages (with torch, or by themselves) in folders that the system's loader does not search. Loaded by path
beforehand, they are found by their names when the provider asks for them, whichever copy of toedit's library opens it.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterable
from pathlib import Path

from toedit._errors import MissingDependencyError

__all__ = ["preload"]

# In an order in which each finds what it needs itself. Those of cuDNN load one another, but by name.
_LIBRARIES = (
    "libcudart",
    "libnvrtc",
    "libnvJitLink",
    "libcublasLt",
    "libcublas",
    "libcufft",
    "libcurand",
    "libcudnn_graph",
    "libcudnn_ops",
    "libcudnn_cnn",
    "libcudnn_adv",
    "libcudnn_heuristic",
    "libcudnn_engines_precompiled",
    "libcudnn_engines_runtime_compiled",
    "libcudnn",
)


def preload(library: str, folders: Iterable[str] | None = None) -> list[str]:
    """Load CUDA's libraries from pip's packages; returns the paths of those that were there.

    What is not there may still be installed in the system, and what is missing in the end is named when the provider is
    loaded.

    Args:
        library: the path of libonnxruntime, beside which the provider must lie.
        folders: where packages are installed; by default the interpreter's path.

    Raises:
        MissingDependencyError: the installed ONNX Runtime has no CUDA provider.
    """
    if not Path(library).with_name("libonnxruntime_providers_cuda.so").exists():
        raise MissingDependencyError(
            f"this prior runs on CUDA, but the ONNX Runtime at {library} has no CUDA provider: "
            "pip uninstall onnxruntime; pip install 'toedit[cuda]' (never both: the two overwrite each other)"
        )
    loaded = []
    for name in _LIBRARIES:
        for path in _candidates(name, sys.path if folders is None else folders):
            # A library that cannot be loaded is for another driver or machine; the provider says so better than we could.
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
                loaded.append(str(path))
                break
    return loaded


def _candidates(name: str, folders: Iterable[str]) -> list[Path]:
    # nvidia/cublas/lib (CUDA 12) and nvidia/cu13/lib (CUDA 13); the newest first.
    found = (path for folder in folders for path in Path(folder).glob(f"nvidia/*/lib/{name}.so.*"))
    return sorted(found, key=lambda path: path.name, reverse=True)
