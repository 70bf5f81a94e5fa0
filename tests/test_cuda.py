"""What of CUDA can be tested without a card: its libraries are found and loaded by path, and what is missing is named."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import helpers
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


def test_the_check_of_a_card_runs_as_far_as_the_provider(tmp_path: Path) -> None:
    """`make gpu-check`'s script, whole, on the CPU."""
    helpers.need_exporter()
    script = Path(__file__).parent / "bench" / "gpu_check.py"
    command = [sys.executable, script, "--device", "cpu", "--shapes", "tiny", "--tokens", "1500", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.iterdir()
    result = json.loads(file.read_text())
    (parity,) = result["parity"]
    assert parity["max_abs_dlogp"] < 1e-4
    assert parity["rows_that_differ_alone"] == parity["rows_that_differ_in_another_order"] == 0
    assert 0 < result["ctrl_c_s"] < 10
    assert result["speed"][0]["tokens_per_s"]["median"] > 0
