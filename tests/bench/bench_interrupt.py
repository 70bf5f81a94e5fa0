"""How long Ctrl-C takes, from the signal to the end of the process, in the middle of scoring and of editing; beside the same
loop over torch's DataLoader alone. The signal goes to the workers too, as a terminal sends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from common import machine

ROUNDS = 5
TESTS = Path(__file__).parents[1]
LOOP = """
import sys
from torch.utils.data import DataLoader
from test_faults import interruptible
what, workers = sys.argv[1], int(sys.argv[2])
{make}
try:
    print("begun", flush=True)
    while True:
        for _ in loader:
            pass
except KeyboardInterrupt:
    pass
"""
EDITED = "loader = interruptible(what, workers)[0]"
PLAIN = """
rows = [[1] * 512] * 256
loader = DataLoader(rows, 64, collate_fn=list, num_workers=workers, persistent_workers=workers > 0)
"""


def interrupted(make: str, what: str, workers: int) -> float:
    """Seconds from the signal to the end of a process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))}
    command = [sys.executable, "-W", "ignore", "-c", LOOP.format(make=make), what, str(workers)]
    # Workers that are interrupted say so, each with a traceback.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.5)
        begun = time.perf_counter()
        os.killpg(process.pid, signal.SIGINT)
        status = process.wait()
        seconds = time.perf_counter() - begun
    assert status == 0, f"exit status {status}"
    return seconds


def main() -> None:
    # A shell's jobs in the background ignore Ctrl-C, and so would the processes here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(f"Ctrl-C, seconds from the signal to the end of the process. {machine()}")
    peers = {
        f"{what}, {workers} workers": (EDITED, what, workers)
        for what, workers in (("scoring", 0), ("scoring", 2), ("editing", 0), ("editing", 2))
    } | {f"DataLoader alone, {workers} workers": (PLAIN, "", workers) for workers in (0, 2)}
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(ROUNDS):
        for name, peer in peers.items():
            seconds[name].append(interrupted(*peer))
    for name, found in seconds.items():
        print(f"  {name:29}  median {np.median(found):.2f}  minimum {min(found):.2f}  maximum {max(found):.2f}")


if __name__ == "__main__":
    main()
