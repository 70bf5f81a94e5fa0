"""`make bench`: every figure that README.md gives."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import bench_editing  # noqa: E402
import bench_loop  # noqa: E402
import bench_scoring  # noqa: E402

for benchmark in (bench_editing, bench_loop, bench_scoring):
    benchmark.main()
    print()
