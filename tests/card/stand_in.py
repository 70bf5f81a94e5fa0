"""Builds the libraries that ONNX Runtime's CUDA provider loads, as stand-ins that compute nothing (cudart.c says what that is
good for), so that the provider itself can be opened and run where there is no card."""

from __future__ import annotations

import os
import re
import subprocess
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
DRIVER, CUDNN = "libcuda.so.1", "libcudnn.so.9"


def build(provider: Path, out: Path) -> dict[str, str]:
    """Build them for *provider* (libonnxruntime_providers_cuda.so, for CUDA 13) under the folder *out*.

    Returns the environment that a process needs to find them: as pip's packages, where toedit looks, and but for cuDNN in the
    loader's path, for a process without toedit.
    """
    listing = subprocess.run(["nm", "-D", "--undefined-only", provider], capture_output=True, text=True, check=True).stdout
    wanted: dict[str, set[str]] = defaultdict(set)
    for name, library in re.findall(r" U (\w+)@+(libcu[\w.]+)$", listing, re.MULTILINE):
        wanted[library].add(name)
    if "libcudart.so.13" not in wanted:
        raise ValueError(f"{provider} needs {sorted(wanted)}; the stand-in is of CUDA 13")
    wanted[DRIVER] = set(re.findall(r" U (cu[A-Z]\w+)$", listing, re.MULTILINE))
    wanted["libcurand.so.10"] = set()  # linked against, and nothing of it is called
    # cuDNN is opened by name, and its functions are looked up by theirs.
    wanted[CUDNN] = {name.decode() for name in re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", provider.read_bytes())}
    packages = out / "site" / "nvidia"
    folders = {DRIVER: out / "driver", CUDNN: packages / "stand_in_cudnn" / "lib"}
    others = packages / "stand_in" / "lib"
    for folder in (*folders.values(), others):
        folder.mkdir(parents=True)
    for library, names in wanted.items():
        _library(folders.get(library, others) / library, names)
    return {"PYTHONPATH": str(out / "site"), "LD_LIBRARY_PATH": f"{folders[DRIVER]}:{others}"}


def _library(path: Path, names: set[str]) -> None:
    """One library with functions of these names: those that cudart.c and cublas.c have, and for the rest one that succeeds."""
    behaviour = HERE / ("cudart.c" if path.name.startswith("libcudart") else "cublas.c")
    written = set(re.findall(r"(\w+)\([^;{]*\) *\{", behaviour.read_text()))
    rest = path.with_suffix(".rest.c")
    rest.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(names - written)))
    versions = path.with_suffix(".map")
    versions.write_text(f"{path.name} {{ global: *; }};\n")
    command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-w", "-pthread", "-o", path, rest]
    if path.name != DRIVER:
        command += [behaviour, f"-Wl,--version-script={versions}"]
    subprocess.run([*command, f"-Wl,-soname,{path.name}"], check=True)
