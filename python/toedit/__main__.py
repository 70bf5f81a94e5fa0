"""The command line: ``toedit`` or ``python -m toedit``."""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from toedit._errors import Error
from toedit._version import __version__

__all__ = ["main"]

# Imported when they are asked for: an export needs what scoring does not.
_COMMANDS = {"export": "toedit.export", "score": "toedit.score_files", "store": "toedit.store", "demo": "toedit.demo"}

_USAGE = f"""\
toedit {__version__}: token-level editing of training text

  toedit export MODEL -o DIR   make a prior folder from a Hugging Face causal language model
  toedit score FILE... -o OUT  score documents with a prior: their rows and columns, and the scores beside
  toedit store COMMAND PATH    look after a score store: stats, verify, compact
  toedit demo [--text FILE]    score and edit a text with the bundled prior, and show what happened

toedit COMMAND --help tells more."""


@contextlib.contextmanager
def _remembering_interrupts() -> Iterator[None]:
    """Python drops an exception here and there, as where it finalizes an object, and with it a Ctrl-C that comes just then.
    What waits for scores therefore asks whether there was one."""
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # ignored, or another's business
        return
    from toedit.prior import waiting

    came = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        came.set()
        signal.default_int_handler(number, frame)

    def check() -> None:
        if came.is_set():
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handler)
    waiting.check = check
    try:
        yield
    finally:
        waiting.check = None
        signal.signal(signal.SIGINT, signal.default_int_handler)


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    try:
        if command in _COMMANDS:
            with _remembering_interrupts():
                return int(importlib.import_module(_COMMANDS[command]).main(rest) or 0)
    except Error as error:
        print(f"toedit {command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"toedit {command}: interrupted", file=sys.stderr)
        return 130
    if command in ("-h", "--help", "help"):
        print(_USAGE)
        return 0
    if command in ("-V", "--version"):
        print(__version__)
        return 0
    if command:
        print(f"toedit: there is no command {command!r}", file=sys.stderr)
    print(_USAGE, file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
