"""How far a long job is: one moving line on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import TextIO

__all__ = ["Progress"]

_WIDTH = 30
# Seconds between two reports: on a terminal, and where every one is a line in somebody's log.
_MOVING, _LOGGED = 0.1, 30.0


class Progress:
    """Reports of tokens done, their speed and the time that is left.

    Args:
        out: where to.
    """

    def __init__(self, out: TextIO) -> None:
        self.out, self.moving = out, out.isatty()
        self.begun = self.last = time.perf_counter()
        self.length = 0

    def __call__(self, tokens: int, share: float) -> None:
        """Say that so many tokens, and this share of the whole job, are done."""
        now = time.perf_counter()
        if now - self.last < (_MOVING if self.moving else _LOGGED):
            return
        self.last = now
        seconds = max(now - self.begun, 1e-9)
        left = f", {_clock(seconds * (1 - share) / share)} left" if share > 0 else ""
        line = f"{share:4.0%}  {tokens:,} tokens, {tokens / seconds:,.0f} tokens/s{left}"
        if self.moving:
            filled = int(share * _WIDTH)
            line = f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {line}"
        # Blanks over what a longer line before has left.
        print(f"\r{line:{self.length}}" if self.moving else line, end="" if self.moving else "\n", file=self.out, flush=True)
        self.length = len(line)

    def close(self) -> None:
        """Leave the line as it is."""
        if self.moving and self.length:
            print(file=self.out, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
