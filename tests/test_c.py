"""libtoedit and its header as a C program meets them: under the sanitizers, as a shared library, from C and C++."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest

import oracle
import toedit
from toedit import _runtime

ROOT = Path(__file__).resolve().parents[1]
HEADER = ROOT / "capi" / "toedit.h"
PROGRAM = ROOT / "tests" / "c" / "test_toedit.c"
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-pedantic"]
IDS = [17, 18, 19, 20, 21]  # as in the program


def run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which(os.environ.get("CC", "gcc"))
    if found is None:
        pytest.skip("there is no C compiler")
    return found


@pytest.fixture(scope="module")
def go() -> str:
    found = shutil.which("go")
    if found is None:
        pytest.skip("there is no Go on the path (make test puts one there)")
    return found


def build(go: str, compiler: str, target: Path, *flags: str) -> Path:
    run(
        go,
        *("build", "-buildvcs=false", "-mod=readonly", *flags, "-o", target, "./capi/lib"),
        CC=compiler,
        CGO_ENABLED="1",
        GOFLAGS="",
        GOTOOLCHAIN="local",
    )
    return target


def program_arguments(prior: toedit.Prior) -> list[str]:
    arguments = [str(prior.path), prior.fingerprint, str(oracle.document_hash(IDS)[0])]
    try:
        return [*arguments, _runtime.library()]
    except toedit.MissingDependencyError:
        return arguments


def test_program_under_sanitizers(tmp_path: Path, compiler: str, go: str, prior: toedit.Prior) -> None:
    """Reads, writes and frees that are wrong end it, in C and in Go, and so does all that is left at its end."""
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    empty = tmp_path / "empty.c"
    empty.write_text("int main(void) { return 0; }\n")
    if subprocess.run([compiler, *sanitizers, empty, "-o", tmp_path / "empty"], capture_output=True).returncode != 0:
        pytest.skip("the C compiler has no address sanitizer")
    library = build(go, compiler, tmp_path / "libtoedit.a", "-buildmode=c-archive", "-asan")
    program = tmp_path / "program"
    flags = ["-std=gnu11", "-g", *WARNINGS, *sanitizers, f"-I{HEADER.parent}"]
    run(compiler, *flags, PROGRAM, library, "-o", program, "-lpthread", "-ldl")
    arguments = program_arguments(prior)
    out = run(program, *arguments, ASAN_OPTIONS="detect_leaks=1", LSAN_OPTIONS="", UBSAN_OPTIONS="print_stacktrace=1")
    assert out == ("edited and scored\n" if len(arguments) == 4 else "edited\n")


def test_shared_library(tmp_path: Path, compiler: str, go: str, prior: toedit.Prior) -> None:
    """It exports the functions of the header, needs nothing but the C library, and works."""
    symbols = ROOT / "capi" / "lib" / "symbols.map"
    library = build(
        go,
        compiler,
        tmp_path / "libtoedit.so",
        "-trimpath",
        "-buildmode=c-shared",
        "-ldflags",
        f"-s -w -extldflags '-Wl,--version-script={symbols},-soname,libtoedit.so'",
    )
    declared = set(re.findall(r"\b(toedit_\w+)\(", re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)))
    assert "toedit_edit" in declared
    if shutil.which("nm") and shutil.which("readelf"):
        exported = {line.split()[-1] for line in run("nm", "-D", "--defined-only", library).splitlines()}
        assert exported == declared
        needed = set(re.findall(r"NEEDED.*\[(.*?)\]", run("readelf", "-d", library)))
        assert all(re.match(r"lib(c|dl|pthread|resolv)\.so|ld-linux", name) for name in needed), needed
    program = tmp_path / "program"
    run(compiler, "-std=gnu11", f"-I{HEADER.parent}", PROGRAM, library, f"-Wl,-rpath,{tmp_path}", "-o", program, "-lpthread")
    assert run(program, *program_arguments(prior)).startswith("edited")


@pytest.mark.parametrize("language", ["c99", "c11", "c++11", "c++17"])
@pytest.mark.parametrize("arrow", ["without", "before", "after"])
def test_header(tmp_path: Path, compiler: str, language: str, arrow: str) -> None:
    """It stands on its own and beside Arrow's, in C and in C++. That its prototypes are those of the functions is checked
    whenever package capi is compiled, which includes it."""
    includes = ['#include "toedit.h"\n', '#include "toedit.h"\n']
    if arrow != "without":
        if not Path(pa.get_include(), "arrow", "c", "abi.h").exists():
            pytest.skip("pyarrow has come without Arrow's headers")
        includes.insert(0 if arrow == "before" else 2, '#include "arrow/c/abi.h"\n')
    suffix = ".cpp" if "++" in language else ".c"
    source = tmp_path / f"header{suffix}"
    source.write_text("".join(includes) + "int (*const f)(char*) = 0; int main(void) { toedit_free(0); return TOEDIT_OK; }\n")
    if suffix == ".cpp" and not shutil.which("g++"):
        pytest.skip("there is no C++ compiler")
    command = "g++" if suffix == ".cpp" else compiler
    flags = [f"-std={language}", *WARNINGS, f"-I{HEADER.parent}", f"-isystem{pa.get_include()}"]
    run(command, *flags, "-c", source, "-o", tmp_path / "header.o")
