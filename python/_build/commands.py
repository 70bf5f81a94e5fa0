"""setuptools commands, named in pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import Extension
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

from . import native


class Build(build):
    """Builds below the workshop instead of a folder `build`, which setuptools never clears: modules that were removed
    from the sources would stay in wheels."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_base = str(native.workshop() / "build")
        shutil.rmtree(self.build_base, ignore_errors=True)


class BuildExtension(build_ext):
    """Leaves the extension to `native`."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # A new file, not new contents: a process may have the old one mapped.
        target.unlink(missing_ok=True)
        shutil.copy2(native.build_extension(), target)


class SourceDistribution(sdist):
    """Adds what the extension is built from."""

    def make_distribution(self) -> None:
        build_scripts = Path(__file__).parent.glob("*.py")
        extra = [*native.go_sources(), *build_scripts, native.ROOT / "CHANGELOG.md"]
        self.filelist.extend(str(path.relative_to(native.ROOT)) for path in extra if path.exists())
        self.filelist.exclude_pattern("tests/*", anchor=True)
        super().make_distribution()
