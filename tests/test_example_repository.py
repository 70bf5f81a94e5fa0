"""A training repository that tests its pipeline with the fixtures of the installed wheel."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

import toedit
from test_build import ROOT, run
from toedit import _runtime

EXAMPLE = Path(__file__).with_name("example_repository")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment: the wheel installed by pip, its dependencies from where these tests run."""
    pytest.importorskip("torch", reason="the example trains with torch, which is not installed here")
    try:
        _runtime.library()
    except toedit.MissingDependencyError:
        pytest.skip("the example scores with ONNX Runtime, which is not installed here")
    folder = tmp_path_factory.mktemp("example")
    # From the checkout itself: what an installation has built there is not built again.
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env")
    python = folder / "env/bin/python"
    site_packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site_packages, wheel)
    # Plain paths: a .pth file of theirs, with which an editable toedit would come, is not read.
    paths = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    Path(site_packages, "dependencies.pth").write_text("".join(f"{path}\n" for path in sorted(paths)))
    return python


def test_a_training_repository_tests_itself(environment: Path, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "repository", ignore=shutil.ignore_patterns("__pycache__"))
    where = run(environment, "-c", "import toedit; print(toedit.__file__)")
    assert Path(where.strip()).is_relative_to(environment.parents[1])
    printed = run(environment, "-m", "pytest", "-v", cwd=tmp_path / "repository")
    assert "5 passed" in printed
    assert "toedit-" in next(line for line in printed.splitlines() if line.startswith("plugins:"))


def test_the_plugin_loads_no_heavy_package(environment: Path, tmp_path: Path) -> None:
    """Every pytest of the environment imports it."""
    (tmp_path / "test_modules.py").write_text(
        "import sys\n"
        "def test_modules():\n"
        "    assert 'toedit.pytest_plugin' in sys.modules\n"
        "    assert not {'torch', 'onnxruntime', 'transformers', 'tokenizers', 'toedit._gobridge'} & set(sys.modules)\n"
    )
    assert "1 passed" in run(environment, "-m", "pytest", "--rootdir", tmp_path, tmp_path)
