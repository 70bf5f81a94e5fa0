"""Timing side by side: peers take turns in one run, each figure is a minimum and a median, results are ratios.

The machines that this runs on are shared and noisy. Taking turns gives every peer the same noise; the ratio of medians is
what may be quoted, with the minima beside it.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# A form that takes this many times as long as another of the same is nobody's choice, and an hour's benchmark.
HOPELESS = 4


@dataclass
class Timing:
    """Seconds of one peer's runs."""

    name: str
    seconds: list[float]

    @property
    def least(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


def take_turns(peers: dict[str, Callable[[], object]], rounds: int, inner: int = 1) -> dict[str, Timing]:
    """Run the peers in turn, rounds times after one round to warm up; inner calls are timed together."""
    timings = {name: Timing(name, []) for name in peers}
    for turn in range(rounds + 1):
        for name, call in peers.items():
            begun = time.perf_counter()
            for _ in range(inner):
                call()
            seconds = (time.perf_counter() - begun) / inner
            if turn > 0:
                timings[name].seconds.append(seconds)
    return timings


def bfloat16_left_out() -> bool:
    """Whether torch's peers in bfloat16 are to be left out, as this processor has no instructions for it; says so."""
    import torch

    a = torch.rand(256, 256)
    half = a.bfloat16()
    timings = take_turns({"float32": lambda: a @ a, "bfloat16": lambda: half @ half}, 3)
    times = timings["bfloat16"].least / timings["float32"].least
    if times > HOPELESS:
        print(f"  torch in bfloat16: left out, a product of 256 x 256 takes {times:.0f} times as long as in float32 here")
    return times > HOPELESS


def report(title: str, timings: dict[str, Timing], tokens: int, ours: str) -> None:
    """A table: microseconds, tokens/s, and how many times faster ours is than each peer."""
    print(f"\n{title}")
    width = max(len(name) for name in timings)
    print(f"  {'':{width}}  min µs      median µs   Mtokens/s (median)   ours is ... times as fast: by min, by median")
    mine = timings[ours]
    for name, t in timings.items():
        ratio = "" if name == ours else f"{t.least / mine.least:20.2f} {t.median / mine.median:8.2f}"
        print(f"  {name:{width}}  {t.least * 1e6:10.1f}  {t.median * 1e6:10.1f}  {tokens / t.median / 1e6:12.3f}  {ratio}")


def machine() -> str:
    """One line about where the figures come from."""
    information = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in information if line.startswith("model name")), platform.machine())
    cores = len(os.sched_getaffinity(0))
    return f"{time.strftime('%Y-%m-%d')}, {model}, {cores} cores, Python {platform.python_version()}, NumPy {np.__version__}"
