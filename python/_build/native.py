"""Makes the extension module `toedit._gobridge` from the Go sources, for the interpreter that runs this.

gopy writes Go wrappers (cgo) and a pybindgen script, which writes the C wrappers; both are then compiled with `go build`
into one shared library. gopy's own `build` command is not used: it links against libpython and compiles all C with
-ffast-math.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from . import golang

ROOT = Path(__file__).resolve().parents[2]
SYMBOLS = ROOT / "gobridge" / "symbols.map"
_GO_FOLDERS = ("editor", "capi", "gobridge")
_SOURCE_SUFFIXES = {".go", ".c", ".h", ".s", ".map"}


def workshop() -> Path:
    """Where everything that is generated goes. Go's `./...` passes over a folder that begins with `_`."""
    return ROOT / "_gen"


def go_sources() -> list[Path]:
    """Every file that the extension is made from, without tests."""
    files = [ROOT / "go.mod", ROOT / "go.sum"]
    for folder in _GO_FOLDERS:
        files += (path for path in (ROOT / folder).rglob("*") if path.suffix in _SOURCE_SUFFIXES)
    return sorted(path for path in files if not path.name.endswith("_test.go"))


def build_extension() -> Path:
    """Builds the extension and returns its path. Does nothing if it stands there already, made from the same sources
    with the same tools. The caller holds the lock of the workshop."""
    go = golang.find()
    if go is None:
        raise SystemExit(golang.MISSING)
    compiler = _c_compiler()
    _check_python_header()

    # One folder for each ABI, so that interpreters do not overwrite each other's.
    folder = workshop() / str(sysconfig.get_config_var("SOABI"))
    extension = folder / f"_gobridge{sysconfig.get_config_var('EXT_SUFFIX')}"
    stamp = folder / "stamp"
    made_from = _fingerprint(go, compiler)
    if extension.exists() and stamp.exists() and stamp.read_text() == made_from:
        os.utime(extension)  # it is up to date, whatever a checkout did to the sources' times
        return extension

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    env = _environment(go, compiler)
    _generate(go, folder / "src", env)
    # -s -w: no symbol table and no debug information, a third of the size.
    flags = f"-s -w -extldflags {shlex.quote(f'-Wl,--version-script={SYMBOLS}')}"
    _run([go, "build", "-buildmode=c-shared", "-ldflags", flags, "-o", extension, "."], folder / "src", env)
    stamp.write_text(made_from)
    return extension


def _generate(go: Path, folder: Path, env: dict[str, str]) -> None:
    package, main, header = "toedit/gobridge", "gobridge.go", "gobridge_go.h"
    gopy = [go, "tool", "gopy", "gen", f"-vm={sys.executable}", f"-output={folder}", "-name=gobridge", package]
    _run(gopy, ROOT, env)
    _run([go, "tool", "goimports", "-w", main], folder, env)

    # The C wrappers include the header that cgo makes; cgo makes it without building anything.
    objects, include = folder / "_cgo", f"-I{_include()}"
    _run([go, "tool", "cgo", f"-objdir={objects}", f"-exportheader={header}", "--", include, main], folder, env)
    shutil.rmtree(objects)

    script = folder / "build.py"
    script.write_text(_free_returned_errors(script.read_text()))
    _run([sys.executable, script.name], folder, env)

    # An extension module finds Python's symbols in the process that loads it: neither libpython nor an rpath.
    source = folder / main
    source.write_text(re.sub(r"^#cgo LDFLAGS:.*\n", "", source.read_text(), flags=re.MULTILINE))


def _free_returned_errors(script: str) -> str:
    """gopy's wrappers of functions that return only an error leak a C string at each call; those of functions that return
    a string free theirs. Both return `char*`, so the second kind serves for both."""
    return re.sub(
        r"^add_checked_function\((mod, '\w+', retval\('char\*'\))",
        r"add_checked_string_function(\1",
        script,
        flags=re.MULTILINE,
    )


def _environment(go: Path, compiler: Sequence[str]) -> dict[str, str]:
    env = dict(os.environ)
    for name in ("GOROOT", "GOOS", "GOARCH", "GOWORK", "GOENV", "GOEXPERIMENT", "CGO_CPPFLAGS", "CGO_LDFLAGS", "CGO_CXXFLAGS"):
        env.pop(name, None)
    if "HOME" not in env and "XDG_CACHE_HOME" not in env:
        env.setdefault("GOCACHE", str(workshop() / "cache"))
    env.update(
        PATH=os.pathsep.join([str(go.resolve().parent), env.get("PATH", os.defpath)]),  # gopy calls `go` by name
        CC=shlex.join(compiler),
        CGO_ENABLED="1",
        CGO_CFLAGS="-O2",
        GOTOOLCHAIN="local",
        GOWORK="off",
        # -buildmode=pie compiles packages as c-shared does: the tools, gopy's own look at the package and the library
        # then share one set of compiled packages, which halves a first build.
        GOFLAGS="-buildvcs=false -mod=readonly -trimpath -buildmode=pie",
    )
    return env


def _fingerprint(go: Path, compiler: Sequence[str]) -> str:
    sources = hashlib.sha256()
    for path in [*go_sources(), *sorted(Path(__file__).parent.glob("*.py"))]:
        sources.update(f"{path.relative_to(ROOT)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    tools = ([go, "version"], [*compiler, "--version"])
    versions = [subprocess.run(tool, capture_output=True, text=True).stdout.partition("\n")[0] for tool in tools]
    return "\n".join([sources.hexdigest(), *versions, sys.version, _include(), str(ROOT)]) + "\n"


def _include() -> str:
    return sysconfig.get_path("include")


def _c_compiler() -> list[str]:
    named = os.environ.get("CC")
    for name in [named] if named else ["gcc", "cc", "clang"]:
        command = shlex.split(name)
        if shutil.which(command[0]):
            return command
    tried = f"CC={named} is not there" if named else "found none (gcc, cc, clang)"
    raise SystemExit(f"toedit needs a C compiler to build and {tried}: install one, or name one in CC.")


def _check_python_header() -> None:
    if not Path(_include(), "Python.h").exists():
        raise SystemExit(
            f"toedit needs Python's C headers to build and {_include()}/Python.h is missing: "
            f"install the development package of Python {sys.version_info.major}.{sys.version_info.minor}."
        )


_PROXY_FAILURE = re.compile(
    r"dial tcp|no such host|i/o timeout|connection refused|network is unreachable|TLS handshake|x509:"
    r"|proxyconnect|GOPROXY=off|context deadline exceeded|50[234] "
)


def _run(command: Sequence[str | Path], folder: Path, env: dict[str, str]) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode == 0:
        return
    print(done.stdout, file=sys.stderr)
    if _PROXY_FAILURE.search(done.stdout):
        raise SystemExit(
            "toedit could not download the Go modules it is built from: the Go module proxy cannot be reached. "
            "Name one that can be in GOPROXY, or run `go mod download` where there is a network and keep GOMODCACHE."
        )
    raise SystemExit(f"toedit could not be built: `{shlex.join(words)}` failed with status {done.returncode} (output above).")
