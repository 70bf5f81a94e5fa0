"""The command line: ``toedit`` or ``python -m toedit``."""

from __future__ import annotations

import sys

from toedit._errors import Error
from toedit._version import __version__

__all__ = ["main"]

_USAGE = f"""\
toedit {__version__}: token-level editing of training text

  toedit export MODEL -o DIR   make a prior folder from a Hugging Face causal language model
  toedit score FILE... -o OUT  score documents with a prior: their rows and columns, and the scores beside
  toedit store COMMAND PATH    look after a score store: stats, verify, compact
  toedit demo [--text FILE]    score and edit a text with the bundled prior, and show what happened

toedit COMMAND --help tells more."""


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    try:
        if command == "export":
            from toedit import export

            return int(export.main(rest) or 0)
        if command == "score":
            from toedit import score_files

            return score_files.main(rest)
        if command == "store":
            from toedit import store

            return store.main(rest)
        if command == "demo":
            from toedit import demo

            return demo.main(rest)
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
