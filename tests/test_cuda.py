"""What of CUDA can be tested without a card: its libraries are found and loaded by path, and what is missing is named."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

import toedit
from toedit import _cuda


def build(path: Path, code: str) -> Path:
    """A shared library of a line of C."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path.with_suffix(".c")
    source.write_text(code)
    subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", path, source], check=True)
    source.unlink()
    return path


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """An ONNX Runtime with something that stands where its CUDA provider would."""
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").touch()
    return tmp_path / "capi" / "libonnxruntime.so.1.32.0"


def test_libraries_of_pip_packages_are_loaded_and_then_found_by_name(runtime: Path, tmp_path: Path) -> None:
    packages = tmp_path / "site-packages"
    rt = build(packages / "nvidia" / "cu13" / "lib" / "libcudart.so.913", "int toedit_test_cudart(void) { return 13; }")
    blas = build(packages / "nvidia" / "cublas" / "lib" / "libcublas.so.912", "int toedit_test_cublas(void) { return 12; }")
    (packages / "nvidia" / "cudnn" / "lib").mkdir(parents=True)
    (packages / "nvidia" / "cudnn" / "lib" / "libcudnn.so.9").write_bytes(b"no library")  # passed over
    with pytest.raises(OSError, match=rt.name):
        ctypes.CDLL(rt.name)
    assert _cuda.preload(str(runtime), [str(packages)]) == [str(rt), str(blas)]
    assert ctypes.CDLL(rt.name).toedit_test_cudart() == 13
    assert ctypes.CDLL(None).toedit_test_cublas() == 12  # global: what the provider links against


def test_without_the_provider_the_wheel_is_named(tmp_path: Path) -> None:
    with pytest.raises(toedit.MissingDependencyError, match=r"has no CUDA provider: .*pip install 'toedit\[cuda\]'"):
        _cuda.preload(str(tmp_path / "libonnxruntime.so"))
